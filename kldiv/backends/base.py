"""The base class of adapters between an array library and the formulas.

The methods of `Backend` serve any library of the array-API standard; a library's own adapter
overrides those of its own: the gradient hook, devices, kernels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from kldiv._heap import keep_freed_memory
from kldiv.backends import choice
from kldiv.backends.chunks import InChunks
from kldiv.errors import LibraryError
from kldiv.formulas.blocks import row_blocks
from kldiv.formulas.reductions import RowWise
from kldiv.kernels.technology import size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Operation
    from kldiv.formulas.rows import RowLoss
    from kldiv.kernels.technology import Technology
    from kldiv.kernels.work import Found, Work


def in_row_blocks(
    operation: RowWise,
    xp: Namespace,
    arrays: Sequence[Array],
    prepared: Callable[[Array], Array] | None = None,
) -> Array:
    """Compute the elements of an operation on rows, a block at a time, in place."""
    blocks = row_blocks(arrays[0].shape, operation.compute)
    keep_freed_memory()
    if len(blocks) == 1:
        return operation.elements(xp, *(map(prepared, arrays) if prepared else arrays))
    result = None
    for block in blocks:
        parts = [array[(*block, ...)] for array in arrays]
        part = operation.elements(xp, *(map(prepared, parts) if prepared else parts))
        if result is None:
            shape = operation.shape(arrays)
            result = xp.empty(shape, dtype=part.dtype, device=part.device)
        result[(*block, ...)] = part
    return result


FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Names of the dtypes that every operation takes, narrowest first."""

HALVES = FLOATS[:2]
"""Names of the half-precision dtypes, which are computed in float32."""


@dataclass(frozen=True)
class BackendStatus:
    """The status of a backend here: usable, or the reason why not and the line that installs it.

    Attributes
    ----------
    name : str
        The backend's name.
    usable : bool
        Whether it works here.
    version : str or None
        The library's version.
    devices : tuple of str
        Its devices here.
    kernels : tuple of str
        Kernels that can run here.
    reason : str or None
        Why it is not usable.
    install : str or None
        A line that installs it.
    kernel_problems : dict of str
        Why each of the other kernels cannot run here.
    """

    name: str
    usable: bool
    version: str | None = None
    devices: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    reason: str | None = None
    install: str | None = None
    kernel_problems: Mapping[str, str] = field(default_factory=dict)


class Spread(Protocol):
    """Rows whose classes are sharded over ranks; a rank may have none."""

    def value(self, operation: RowLoss, arrays: Sequence[Array]) -> Array:
        """Return the loss of all ranks' classes together, differentiably; the same on each rank."""
        ...

    def placed(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """Return the arrays, those of rows where the rows are."""
        return arrays

    def replicated(self, like: Array, array: Array) -> Array:
        """Return an array as one that every rank has, beside arrays like ``like``."""
        return array


class Backend(InChunks):
    """Adapter of one array library: derive from it, and override the methods it does better."""

    roots: tuple[str, ...]
    """Top-level modules that the library's array types are defined in."""
    install: str = ""
    """The line that installs it."""
    kernels: tuple[str, ...] = ("pure",)
    """Names of the kernels, the fastest first; ``pure`` is the array-API formula."""
    technologies: tuple[Technology, ...] = ()
    """The technologies of these kernels, in the same order; ``pure`` needs none."""

    numpy_float32: bool = True
    """Whether the library's float32 is NumPy's, whose logarithm is up to 4.6 u off and whose sums
    lose up to 1e-5: kldiv then takes that logarithm, and sums, in float64."""

    in_blocks: bool = False
    """Whether operations run on a block of each array apart from the others."""

    facts: Callable[[Sequence[Array]], Hashable] | None = None
    """Gives all that `unreachable` looks at in arrays whose kernels run at once, or None of other
    arrays; where there is such a function, routes keep choices."""
    readable: Callable[[Any], bool] | None = None
    """Tells whether an array's numbers can be read: those that a compiler traces cannot."""
    follows: Callable[[Any], bool] | None = None
    """Tells whether derivatives are taken in an array: reading its number would lose them."""
    threads: Callable[[], int] | None = None
    """Gives how many of a CPU's threads the library uses, where it has such a setting."""

    # ---- recognising -----------------------------------------------------------------------------

    def recognises(self, cls: type) -> bool:
        """Return whether arrays of this type are the library's."""
        return any(base.__module__.partition(".")[0] in self.roots for base in cls.__mro__)

    def check(self, name: str, array: Array) -> None:
        """Raise if no operation can take this array of the library."""

    def check_devices(self, names: Sequence[str], arrays: Sequence[Array]) -> None:
        """Raise if arrays are on devices that the library does not compute on together."""

    def autocasts(self, array: Array) -> bool:
        """Return whether a context is active in which losses of half types are float32."""
        return False

    # ---- computing -------------------------------------------------------------------------------

    def run(self, operation: Operation, route: Any, arrays: Sequence[Array]) -> Array:
        """Run ``operation`` inside the library's gradient hook; here there is none."""
        return route.compute(operation, *arrays)

    def spread(self, s: Array, t: Array, group: Any, axis_name: Any) -> Spread | None:
        """Return how rows are spread over ranks; None where every row is whole here."""
        for option, given, library in (
            ("group", group, "torch tensors"),
            ("axis_name", axis_name, "JAX arrays inside jax.shard_map"),
        ):
            if given is not None:
                raise LibraryError(
                    f"{option}= is for {library}; got arrays of {self.name}; leave it out"
                )
        return None

    def compute(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> Array:
        """Return the value of ``operation`` on the library's own arrays, with no gradient hook."""
        if self.technologies and kernel != "pure":
            value = choice.value(self, kernel, operation, arrays)
            if value is not None:
                return value
        return self.by_formulas(operation, arrays)

    def by_formulas(self, operation: Operation, arrays: Sequence[Array]) -> Array:
        """Evaluate the formulas of ``operation``."""
        with self.context(arrays[0]):
            xp = self.namespace(arrays[0])
            if isinstance(operation, RowWise):
                elements = in_row_blocks(operation, xp, arrays, self.adjacent)
                return operation.gather(xp, elements, arrays)
            keep_freed_memory()
            return operation.value(xp, *arrays)

    def fused(self, work: Work, kernel: str) -> Found | None:
        """Compute value and gradients in one pass, or return None where there is no such pass."""
        return choice.fused(self, kernel, work)

    def is_small(self, operation: Operation, arrays: Sequence[Array]) -> bool:
        """Return whether the formulas are as fast as any kernel that could read the arrays."""
        size = self.size(arrays)
        return all(size < technology.least(operation) for technology in self.technologies)

    def size(self, arrays: Sequence[Array]) -> int:
        """Return how many elements a kernel would compute."""
        return size_of(arrays[0])

    def unreachable(
        self, technology: Technology, arrays: Sequence[Array], kernel: str
    ) -> str | None:
        """Return why kernels cannot read the arrays from their place and layout, or None."""
        raise NotImplementedError

    def launch(self, technology: Technology, work: Work) -> Found:
        """Compute work by a technology that takes it."""
        return technology.compute(work)

    def constant(self, array: Array) -> Array:
        """Return the array without its gradient."""
        return array

    def unwritable(self, array: Array, others: Sequence[Array]) -> str | None:
        """Return why nothing can be written into an array while others are read, or None."""
        return None

    def adjacent(self, array: Array) -> Array:
        """Return the array, contiguous along its last axis where exact sums need that."""
        return array

    def register_container(
        self,
        cls: type,
        take_apart: Callable[[Any], tuple[tuple[Any, ...], tuple[Any, ...]]],
        put_together: Callable[[tuple[Any, ...], tuple[Any, ...]], Any],
    ) -> None:
        """Tell the library how its transformations find the arrays in objects of a class."""

    # ---- availability ----------------------------------------------------------------------------

    def problem(self) -> str | None:
        """Return why the backend cannot be used here, or None where it can."""
        try:
            import_module(self.module)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name in self.roots
            return "not installed" if missing else f"import fails: {error}"
        return None

    def version(self) -> str | None:
        """Return the library's version."""
        found = getattr(sys.modules.get(self.roots[0]), "__version__", None)
        return None if found is None else str(found)

    def status(self) -> BackendStatus:
        """Return the backend's status on this machine."""
        reason = self.problem()
        problems = {} if reason else choice.kernel_problems(self)
        return BackendStatus(
            self.name,
            reason is None,
            self.version(),
            () if reason else self.devices(),
            tuple([kernel for kernel in self.kernels if kernel not in problems]),
            reason,
            self.install or None,
            problems,
        )
