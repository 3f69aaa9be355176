"""The route of a call: its library, backend, device and kernel, resolved once per settings.

A route keeps the choices of kernels that were made on it, each with its launcher, for later calls
of the same operation on arrays of which the same is true: these ask nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kldiv import config
from kldiv.backends import choice
from kldiv.backends.base import Backend
from kldiv.backends.exchange import move
from kldiv.backends.registry import find, find_type, get, on_registration, unusable
from kldiv.errors import LibraryError
from kldiv.formulas.operation import Composite
from kldiv.kernels.cpu import CPU
from kldiv.kernels.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.backends.choice import Plan
    from kldiv.formulas.operation import Operation
    from kldiv.kernels.work import Found

_MOST = 256
"""Choices that a route keeps: a program that changes a number in every step makes many."""


@dataclass(frozen=True)
class Route:
    """The caller, backend, device and kernel of a call: its settings, resolved.

    No tuple: libraries would take that for a container of arrays.
    """

    caller: Backend
    backend: Backend
    device: str | None
    """None: where the arrays are."""
    kernel: str
    mixed: bool = False
    """Whether the arrays come from different libraries."""
    first: int = 0
    """The place among an operation's arrays of the caller's first, whose device gets results."""
    moves: bool = field(init=False, compare=False)
    """Whether arrays are moved to another library or to a device that was set."""
    hooked: bool = field(init=False, compare=False)
    """Whether the caller's library has a gradient hook of its own."""
    checks: bool = field(init=False, compare=False)
    """Whether the caller's library has arrays that no operation takes."""
    plans: dict[Any, Plan | None] = field(init=False, compare=False, repr=False)
    """Choices by operation, outputs and the facts of the arrays; None of one that is not kept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "moves", self.device is not None or self.crosses)
        own = type(self.caller)
        checks = own.check, own.check_devices
        object.__setattr__(self, "hooked", own.run is not Backend.run)
        object.__setattr__(self, "checks", checks != (Backend.check, Backend.check_devices))
        object.__setattr__(self, "plans", {})

    def __reduce__(self) -> Any:  # launchers cannot be pickled
        own = self.caller, self.backend, self.device, self.kernel, self.mixed, self.first
        return Route, own

    def run(self, operation: Operation, *arrays: Array) -> Array:
        """Run ``operation``, differentiably where the caller's library can."""
        if self.hooked:
            return self.caller.run(operation, self, arrays)
        return self.compute(operation, *arrays)

    def by_formulas(self) -> Route:
        """Return the same without kernels."""
        return replace(self, kernel="pure")

    @property
    def crosses(self) -> bool:
        """Whether another library computes."""
        return self.backend is not self.caller

    def compute(self, operation: Operation, *arrays: Array) -> Array:
        """Run ``operation`` without a gradient hook; the result is in the caller's library."""
        if isinstance(operation, Composite):
            return self._composed(operation, arrays)
        if self.moves:
            return self._moved(operation, arrays)
        if self.is_small(operation, arrays):
            return self.backend.compute(operation, arrays, "pure")
        found = self._as_before(operation, arrays)
        return found[0] if found else self.backend.compute(operation, arrays, self.kernel)

    def _moved(self, operation: Operation, arrays: Sequence[Array]) -> Array:
        with self.backend.receiving([self.caller.dtype_name(array) for array in arrays]):
            moved = [move(array, self.caller, self.backend, self.device) for array in arrays]
            result = self.backend.compute(operation, moved, self.kernel)
            home = self.caller.device(arrays[self.first])
            return self.caller.deliver(move(result, self.backend, self.caller, home))

    def _composed(self, operation: Composite, arrays: Sequence[Array]) -> Array:
        with self.caller.context(arrays[0]):
            xp = self.caller.namespace(arrays[0])
            return operation.composed(xp, self.compute, *arrays)

    def fused(self, operation: Operation, arrays: Sequence[Array], **wanted: Any) -> Found | None:
        """Compute value and gradients in one pass, or return None where there is no such pass.

        ``wanted`` are the fields of `Work` that name the results.
        """
        if self.moves:
            return None
        if isinstance(operation, Composite):
            with self.caller.context(arrays[0]):
                xp = self.caller.namespace(arrays[0])
                return operation.fused(xp, self.fused, arrays, **wanted)
        if self.is_small(operation, arrays):
            return None
        found = self._as_before(operation, arrays, **wanted)
        if found is None:
            work = Work(operation, self.backend.namespace(arrays[0]), arrays, **wanted)
            found = self.backend.fused(work, self.kernel)
        return found

    def is_fused(self, operation: Operation, arrays: Sequence[Array]) -> bool:
        """Return whether a technology computes the value of an operation."""
        if self.moves or self.is_small(operation, arrays):
            return False
        work = Work(operation, self.backend.namespace(arrays[0]), arrays)
        return choice.choose(self.backend, self.kernel, work).technology is not None

    def is_small(self, operation: Operation, arrays: Sequence[Array]) -> bool:
        """Return whether the formulas compute, whatever the kernels, as `choice.choose` says."""
        keeps = self.kernel == "auto" and self.backend.facts is not None
        return keeps and operation.size is None and self.backend.is_small(operation, arrays)

    def _as_before(
        self, operation: Operation, arrays: Sequence[Array], **wanted: Any
    ) -> Found | None:
        """Compute by a choice that was kept, or return None where none was.

        All that the choice follows from is in its key, or looked at here: whether the kernels have
        failed since.
        """
        backend = self.backend
        facts = None if backend.facts is None else backend.facts(arrays)
        if facts is None or wanted.get("cotangent") is not None:
            return None
        size = backend.size(arrays)
        if not size:
            return None
        threads = backend.threads and backend.threads()
        work = Work(operation, backend.namespace(arrays[0]), arrays, threads, **wanted)
        is_large = size >= CPU.small
        key = operation, facts, is_large, work.value, work.gradients, work.keep
        try:
            plan = self.plans[key]
        except KeyError:
            plan = self._keep(key, work)
        except TypeError:  # a user's divergence without a hash
            return None
        if plan is None or plan.technology.failure is not None:
            return None
        return plan.launch(work)

    def _keep(self, key: Any, work: Work) -> Plan | None:
        plan = choice.plan(self.backend, self.kernel, work)
        if len(self.plans) >= _MOST:
            self.plans.clear()
        self.plans[key] = plan
        return plan


_lock = Lock()
_routes = SimpleNamespace()
"""The routes by name: no list, whose first content a compiler would take for its only one."""
_places: dict[tuple[Any, ...], str] = {}
"""Their names, by types and all that settings follow from."""


# A type may be another backend's, once one is registered.
on_registration.append(lambda: _places.clear())  # noqa: PLW0108 - tests put another dict there


def gather(route: Route, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the arrays in the caller's library, where the first of them is."""
    caller, home = route.caller, route.caller.device(arrays[0])
    return tuple(
        array if find(array) is caller else move(array, find(array), caller, home)
        for array in arrays
    )


def resolve(names: Sequence[str], *arrays: Array) -> Route:
    """Return the route of ``arrays`` under the current settings; the first decides the library."""
    found: Route = getattr(_routes, _settle(names, *[type(array) for array in arrays]))
    return found


def _settle(names: Sequence[str], *types: type) -> str:
    """Return the name in `_routes` of the route for arrays of these types."""
    key = _key(types)
    place = _places.get(key)
    if place is None:
        route = _choose(", ".join(names), config.current(), tuple(map(find_type, types)))
        with _lock:
            place = f"route_{len(vars(_routes))}"
            setattr(_routes, place, route)
            if _key(types) == key:  # else the settings have changed meanwhile
                _places[key] = place
    return place


def _key(types: tuple[type, ...]) -> tuple[Any, ...]:
    return (types, config.changes, *[source() for source in config.SOURCES])


# torch.compile runs a function with this mark for real while it traces, and keeps its result:
# settings are read then, and a first call may load the adapter. The mark is torch's own; it is set
# by name because the adapter, which could call torch.compiler.assume_constant_result, comes too
# late.
_settle._dynamo_marked_constant = True  # type: ignore[attr-defined] # noqa: SLF001


def _choose(argument: str, settings: config.Settings, callers: tuple[Backend, ...]) -> Route:
    caller = callers[0]
    mixed = len(set(callers)) > 1
    if settings.backend == "auto":
        if mixed:
            libraries = " and ".join(dict.fromkeys(other.name for other in callers))
            raise LibraryError(
                f"{argument} come from different libraries, {libraries}; convert them to one, or "
                "set a backend that takes both, for example kldiv.set_config(backend='numpy')"
            )
        backend = caller
    else:
        backend = get(settings.backend)
    problem = backend.problem()
    if problem is not None:
        raise unusable(backend.name, problem, backend.install)
    device = None if settings.device == "auto" else backend.find_device(settings.device)
    return Route(caller, backend, device, choice.check_kernel(backend, settings.kernel), mixed)
