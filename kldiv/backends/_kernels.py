"""What adapters with fused kernels beside the formulas share: which of them computes a call."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from kldiv.backends.base import Backend
from kldiv.errors import BackendError
from kldiv.formulas.rows import RowGradient
from kldiv.kernels import KernelError, Work, cpu, is_small, small_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation
    from kldiv.kernels import Kernels


def compile_kernels() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each CPU kernel, with what compiles it or loads it.

    Raises
    ------
    BackendError
        They cannot run here.
    """
    problem = cpu.problem()
    if problem:
        raise _cannot_run(cpu.NAME, problem)
    yield from cpu.compilers().items()


def warn_of(kernels: Kernels, error: Exception) -> None:
    """Say that the formulas compute, as the kernels failed."""
    warnings.warn(
        f"kldiv computes by its array-API formulas, not by its kernels {kernels.NAME!r}: {error}; "
        "kernel='pure' chooses them without this warning",
        RuntimeWarning,
        stacklevel=3,
    )


def _cannot_run(name: str, why: object) -> BackendError:
    return BackendError(f"kernel {name!r} cannot run here: {why}")


class KernelBackend(Backend):
    """An adapter with fused kernels, of one or several technologies, beside the formulas."""

    technologies: tuple[Kernels, ...] = ()
    """Their packages, the fastest first."""

    def unreachable(self, kernels: Kernels, arrays: Sequence[Array]) -> str | None:
        """Return why kernels cannot read the arrays as they lie in memory, or None."""
        raise NotImplementedError

    def launch(self, kernels: Kernels, work: Work) -> tuple[Array | None, list[Array]]:
        """Compute by kernels that take the work."""
        return kernels.compute(work)

    def takes(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> bool:
        """Return whether fused kernels compute a call."""
        return any(
            self._refusal(kernels, operation, arrays, kernel) is None
            for kernels in self._asked_for(kernel)
        )

    def threads(self) -> int | None:
        """Return how many of a CPU's threads the library uses, None where it has no setting."""
        return None

    def choose_kernel(self, name: str) -> str:
        for kernels in self.technologies:
            if name == kernels.NAME:
                problem = kernels.problem()
                if problem:
                    raise _cannot_run(name, problem)
        if name == "auto":
            usable = any(kernels.problem() is None for kernels in self.technologies)
            return "auto" if usable else "pure"
        return super().choose_kernel(name)

    def explain_kernel(
        self, name: str, operation: Operation, arrays: Sequence[Array]
    ) -> tuple[str, str]:
        reasons = {}
        # Arrays of another library are moved here first.
        here = all(self.recognises(type(array)) for array in arrays)
        for kernels in self._asked_for(name):
            refusal = self._refusal(kernels, operation, arrays, name, here=here)
            if refusal is None:
                return kernels.NAME, f"{kernels.WORDS}, the fastest that applies"
            reasons[kernels.NAME] = refusal
        if name == "pure":  # chosen, or left where no kernel can run
            reasons = self.kernel_problems()
        why = "the array-API formula, the fastest that applies"
        if not reasons:
            return "pure", why
        if len(reasons) == 1:
            return "pure", f"{why}: {next(iter(reasons.values()))}"
        return "pure", "; ".join([why, *(f"{name}: {each}" for name, each in reasons.items())])

    def kernel_problems(self) -> dict[str, str]:
        found = {kernels.NAME: kernels.problem() for kernels in self.technologies}
        return {name: problem for name, problem in found.items() if problem}

    def compute(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> Array:
        found = self.fused(operation, arrays, kernel)
        return super().compute(operation, arrays, kernel) if found is None else found[0]

    def fused(
        self,
        operation: Operation,
        arrays: Sequence[Array],
        kernel: str,
        gradients: Sequence[int] = (),
        cotangent: Array | None = None,
        *,
        value: bool = True,
        keep: bool = False,
        kept: Array | None = None,
    ) -> tuple[Array | None, list[Array]] | None:
        if any(index > 1 for index in gradients):
            return None  # a temperature's
        for kernels in self._asked_for(kernel):
            if self._refusal(kernels, operation, arrays, kernel):
                continue
            if cotangent is not None and self.unreachable(kernels, [cotangent]):
                continue
            xp = self.namespace(arrays[0])
            threads = cpu.thread_number(self.threads()) if kernels is cpu else 1
            try:
                wanted = value, tuple(gradients), cotangent
                work = Work(operation, xp, arrays, threads, *wanted, keep=keep, kept=kept)
                return self.launch(kernels, work)
            except KernelError as error:
                if kernel == kernels.NAME:
                    raise _cannot_run(kernel, error) from error
                warn_of(kernels, error)
        return None

    def fused_slope(
        self, operation: Operation, arrays: Sequence[Array], kernel: str
    ) -> Array | None:
        """Compute a gradient that is an operation of its own by a kernel, or return None."""
        if not isinstance(operation, RowGradient):
            return None
        s, t, weight, *rest = arrays
        if self.dtype_name(arrays[operation.index]) != operation.result:
            return None  # a kernel would round it
        wanted, every = (operation.index,), [s, t, *rest]
        found = self.fused(operation.loss, every, kernel, wanted, weight, value=False)
        return None if found is None else found[1][0]

    def scaled(self, gradients: list[Array], cotangent: Array) -> list[Array] | None:
        """Return gradients times a scalar, written in place; None where that would round twice."""
        for kernels in self.technologies:
            if self.unreachable(kernels, [*gradients, cotangent]) is None:
                return kernels.scaled(gradients, cotangent)
        return None

    def _asked_for(self, name: str) -> tuple[Kernels, ...]:
        """Return what may compute under the setting ``kernel``."""
        if name == "auto":
            return self.technologies
        return tuple([kernels for kernels in self.technologies if name == kernels.NAME])

    def _refusal(
        self,
        kernels: Kernels,
        operation: Operation,
        arrays: Sequence[Array],
        name: str,
        *,
        here: bool = True,
    ) -> str | None:
        """Return why kernels do not take a call, or None where they do."""
        if name == "auto" and is_small(kernels, arrays[0]):
            return small_text(kernels)
        return (
            kernels.problem()
            or kernels.refusal(operation, arrays)
            or (self.unreachable(kernels, arrays) if here else None)
        )
