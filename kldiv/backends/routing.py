"""The route of a call: its library, backend, device and kernel, resolved once per settings."""

from __future__ import annotations

from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING

from kldiv import config
from kldiv.backends.base import Route
from kldiv.backends.choice import check_kernel
from kldiv.backends.exchange import move
from kldiv.backends.registry import find, find_type, get, on_registration, unusable
from kldiv.errors import LibraryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.backends.base import Backend


_lock = Lock()
_routes = SimpleNamespace()
"""The routes by name: no list, whose first content a compiler would take for its only one."""
_places: dict[tuple[config.Settings, tuple[type, ...]], str] = {}


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
    key = (config.current(), types)
    place = _places.get(key)
    if place is None:
        route = _choose(", ".join(names), key[0], tuple(map(find_type, types)))
        with _lock:
            place = f"route_{len(vars(_routes))}"
            setattr(_routes, place, route)
            _places[key] = place
    return place


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
    return Route(caller, backend, device, check_kernel(backend, settings.kernel), mixed)
