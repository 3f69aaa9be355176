"""The choice of the technology that computes a call: the one place that decides.

Running a call, tracing it for a compiler, computing a lazy block and explaining it all ask
`choose`. An adapter says which technologies there are for its arrays (`Backend.technologies`),
whether these can read them (`Backend.unreachable`), and how they are called (`Backend.launch`).
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kldiv.errors import BackendError, OptionError
from kldiv.formulas.labels import LabelGradient
from kldiv.formulas.rows import RowGradient, RowLoss
from kldiv.kernels.cpu import CPU
from kldiv.kernels.spelling import form_of
from kldiv.kernels.technology import KernelError, Technology, size_of
from kldiv.kernels.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.kernels.work import Found


class Adapter(Protocol):
    """The part of an adapter that `choose` uses: see `kldiv.backends.Backend`."""

    name: str
    kernels: tuple[str, ...]
    technologies: tuple[Technology, ...]
    in_blocks: bool

    def namespace(self, array: Array | None = None) -> Namespace: ...
    def dtype_name(self, array: Array) -> str: ...
    def is_small(self, operation: Any, arrays: Sequence[Array]) -> bool: ...
    def size(self, arrays: Sequence[Array]) -> int: ...
    def unreachable(
        self, technology: Technology, arrays: Sequence[Array], kernel: str
    ) -> str | None: ...
    def launch(self, technology: Technology, work: Work) -> Found: ...


class Choice(NamedTuple):
    """The technology that computes a call, or none of them, and why."""

    technology: Technology | None
    """None: the array-API formula."""
    refusals: Callable[[], dict[str, str]]
    """Gives, for each technology that might have computed, the reason why it does not; where one
    computes, for each faster one that is not installed."""

    @property
    def kernel(self) -> str:
        """The kernel that computes; ``pure`` is the array-API formula."""
        return "pure" if self.technology is None else self.technology.name

    @property
    def reason(self) -> str:
        """The reason in words."""
        words = "the array-API formula" if self.technology is None else self.technology.words
        why, reasons = f"{words}, the fastest that applies", self.refusals()
        if self.technology is None and len({*reasons.values()}) == 1:
            return f"{why}: {next(iter(reasons.values()))}"
        return "; ".join([why, *(f"{name}: {reason}" for name, reason in reasons.items())])


class Plan(NamedTuple):
    """The choice for work, to be kept for later work of which the same is true."""

    technology: Technology
    launch: Callable[[Work], Found]


def choose(backend: Adapter, kernel: str, work: Work, moved_to: str | None = None) -> Choice:
    """Choose the technology that computes work under the setting ``kernel``, with the reason.

    Where arrays are moved to a device first, only their shapes matter.
    """
    given = backend, kernel, work, moved_to
    if kernel == "auto" and moved_to is None and _is_small(backend, work.operation, work.arrays):
        return Choice(None, partial(_refusals, *given))
    for technology in backend.technologies:
        if kernel in ("auto", technology.name) and _refusal(technology, *given) is None:
            return Choice(technology, partial(_lacking, backend, kernel, technology))
    return Choice(None, partial(_refusals, *given))


def _is_small(backend: Adapter, operation: Any, arrays: Sequence[Array]) -> bool:
    """Return whether the formulas are as fast as any kernel, without a look at the kernels."""
    return operation.size is None and backend.is_small(operation, arrays)


def plan(backend: Adapter, kernel: str, work: Work) -> Plan | None:
    """Return the choice for work, if it follows from the operation and from types alone.

    Of the arrays' sizes it then needs no more than `Technology.least`.
    """
    while (technology := choose(backend, kernel, work).technology) is not None:
        if not technology.by_types or form_of(work.operation) is None:
            return None
        try:
            return Plan(technology, technology.prepare(work))
        except KernelError as error:
            give_way(technology, kernel, error)
    return None


def _refusals(backend: Adapter, kernel: str, work: Work, moved_to: str | None) -> dict[str, str]:
    """Return for each technology that ``kernel`` allows why it does not compute the work."""
    return {
        each.name: each.problem() or _refusal(each, backend, kernel, work, moved_to) or ""
        for each in backend.technologies
        if kernel in {"auto", each.name}
    }


def _lacking(backend: Adapter, kernel: str, chosen: Technology) -> dict[str, str]:
    """Return, for each faster technology of the same device, the thing that it lacks."""
    faster = backend.technologies[: backend.technologies.index(chosen)] if kernel == "auto" else ()
    lacking = {each.name: each.lacking() for each in faster if each.device == chosen.device}
    return {name: why for name, why in lacking.items() if why}


def _refusal(
    technology: Technology, backend: Adapter, kernel: str, work: Work, moved_to: str | None
) -> str | None:
    """Return why a technology does not compute the work, or None where it does."""
    arrays = work.arrays if work.cotangent is None else [*work.arrays, work.cotangent]
    least = technology.least(work.operation)
    if kernel == "auto" and least:
        own = work.operation.size
        if own is not None:
            size = own(work.arrays)
        else:
            size = backend.size(arrays) if moved_to is None else size_of(work.arrays[0])
        if size < least:
            return f"arrays of fewer than {least} elements"
    if moved_to is None:
        elsewhere = backend.unreachable(technology, arrays, kernel)
    else:
        there = kernel != "auto" or moved_to.startswith(technology.device)
        elsewhere = None if there else f"the arrays are computed on {moved_to}"
    return elsewhere or technology.problem() or technology.refusal(work)


def check_kernel(backend: Adapter, kernel: str) -> str:
    """Return the setting ``kernel``; raise where the backend cannot compute by it.

    Without technologies ``auto`` is the adapter's first kernel, unless it runs blocks.
    """
    if kernel == "auto" and not (backend.technologies or backend.in_blocks):
        return backend.kernels[0]
    if kernel != "auto" and kernel not in backend.kernels:
        raise BackendError(
            f"kernel {kernel!r} does not run on backend {backend.name!r}, which has: "
            f"{', '.join(backend.kernels)}; choose one of these or 'auto'"
        )
    for technology in backend.technologies:
        if technology.name == kernel and (problem := technology.problem()):
            raise cannot_run(kernel, problem)
    return kernel


def kernel_problems(backend: Adapter) -> dict[str, str]:
    """Return the kernels of a backend that cannot run here, and why."""
    problems = {technology.name: technology.problem() for technology in backend.technologies}
    return {name: problem for name, problem in problems.items() if problem}


# ---- computing -----------------------------------------------------------------------------------


def fused(backend: Adapter, kernel: str, work: Work) -> Found | None:
    """Compute by the chosen technology, or return None where the formulas compute.

    One that fails gives way, with a warning, to the next; asked for by name it is an error.
    """
    if work.cotangent is not None:
        work = work._replace(arrays=_counting(work))
    while (technology := choose(backend, kernel, work).technology) is not None:
        try:
            return backend.launch(technology, work)
        except KernelError as error:
            give_way(technology, kernel, error)
    return None


def _counting(work: Work) -> Sequence[Array]:
    """Return the arrays, a row masked whose cotangent is 0: no NaN of it counts."""
    operation, arrays = work.operation, work.arrays
    if operation.reduction != "none" or not isinstance(operation, RowLoss):
        return arrays
    counts, keep = work.cotangent != 0, operation.keep(arrays)
    return [*arrays[: operation.leading], counts if keep is None else keep & counts]


def value(backend: Adapter, kernel: str, operation: Any, arrays: Sequence[Array]) -> Array | None:
    """Compute the value of an operation by the chosen technology, or return None."""
    # As `choose` says, in a tenth of the time.
    if kernel == "auto" and _is_small(backend, operation, arrays):
        return None
    work = Work(operation, backend.namespace(arrays[0]), arrays)
    gradient = isinstance(operation, RowGradient | LabelGradient) and not operation.given
    if gradient and (loss := _of_loss(backend, work)) is not None:
        found = fused(backend, kernel, loss)
        if found is not None:
            return found[1][0]
    found = fused(backend, kernel, work)
    return None if found is None else found[0]


def _of_loss(backend: Adapter, work: Work) -> Work | None:
    """Return the work on the loss whose gradient the operation is, or None."""
    operation = work.operation
    if backend.dtype_name(work.arrays[operation.index]) != operation.result:
        return None  # a kernel would round it
    wanted, (arrays, weight) = (operation.index,), operation.of_loss(work.xp, work.arrays)
    return Work(operation.loss, work.xp, arrays, None, False, wanted, weight)  # noqa: FBT003


def give_way(technology: Technology, kernel: str, error: Exception) -> None:
    """Warn that a slower way computes, as a kernel failed; raise where it was asked for by name."""
    if kernel == technology.name:
        raise cannot_run(kernel, error) from error
    technology.failure = technology.failure or str(error)
    warn_of(technology, error)


def warn_of(technology: Technology, error: Exception) -> None:
    """Warn that a slower way computes, as a kernel failed."""
    warnings.warn(
        f"kldiv computes in a slower way, not by its kernels {technology.name!r}: "
        f"{error}; kernel='pure' chooses the formulas without this warning",
        RuntimeWarning,
        stacklevel=3,
    )


def cannot_run(kernel: str, why: object) -> BackendError:
    """Return the error for a kernel that was asked for by name."""
    return BackendError(f"kernel {kernel!r} cannot run here: {why}")


def compile_kernels(
    names: Collection[str] = (), *, first: bool = False
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each CPU kernel with the function that compiles or loads it.

    Parameters
    ----------
    names : collection of str, default ()
        Public functions, such as ``"tv_div_with_logits"``, whose kernels are yielded; without any
        those of all functions.
    first : bool, default False
        Whether to yield those alone that most programs need.

    Yields
    ------
    name : str
        The function, the kernel's variant, and the dtype.
    compiled : callable
        Compiles it, without gradients and with them.

    Raises
    ------
    BackendError
        They cannot run here.
    OptionError
        No kernel serves a function of that name.
    """
    problem = CPU.problem()
    if problem:
        raise cannot_run(CPU.name, problem)
    kernels = [*CPU.compilers()]
    known = sorted({name for kernel in kernels for name in kernel.functions})
    for name in names:
        if name not in known:
            raise OptionError(f"no CPU kernel serves {name!r}: expected one of {', '.join(known)}")
    wanted = set(names or known)
    for kernel in kernels:
        if not wanted.isdisjoint(kernel.functions) and (kernel.is_first or not first):
            yield kernel.name, kernel.compiled
