"""What the adapters share whose arrays lie in a CPU's memory: the fused kernels for them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from kldiv.backends.base import Backend
from kldiv.errors import BackendError
from kldiv.kernels import cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation


def compile_kernels() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the name of each CPU kernel, with what compiles it or loads it.

    Raises
    ------
    BackendError
        They cannot run here.
    """
    problem = cpu.problem()
    if problem:
        raise BackendError(f"kernel {cpu.NAME!r} cannot run here: {problem}")
    yield from cpu.compilers().items()


def warn_of(error: Exception) -> None:
    """Say that the formulas compute, as the kernels failed."""
    warnings.warn(
        f"kldiv computes by its array-API formulas, not its CPU kernels: {error}; "
        "kernel='pure' chooses them without this warning",
        RuntimeWarning,
        stacklevel=3,
    )


class CPUBackend(Backend):
    """An adapter with the kernel ``cpu`` beside the formulas."""

    def threads(self) -> int | None:
        """Return how many threads the library uses, None where it has no such setting."""
        return None

    def small(self, array: Array) -> bool:
        """Return whether a call is so small that the formulas are as fast."""
        return cpu.is_small(array)

    def addressable(self, arrays: Sequence[Array]) -> bool:
        """Return whether the elements of all arrays lie as they are in the CPU's memory."""
        raise NotImplementedError

    def choose_kernel(self, name: str) -> str:
        problem = cpu.problem()
        if problem is None:
            return name if name == "auto" else super().choose_kernel(name)
        if name == cpu.NAME:
            raise BackendError(f"kernel {name!r} cannot run here: {problem}")
        return "pure"

    def explain_kernel(
        self, name: str, operation: Operation, arrays: Sequence[Array]
    ) -> tuple[str, str]:
        refusal = cpu.problem()
        if name != "pure" and not refusal:
            small = name == "auto" and cpu.is_small(arrays[0])
            refusal = cpu.SMALL_TEXT if small else cpu.refusal(operation, arrays)
            # Arrays of another library are moved here first.
            if not refusal and all(self.recognises(type(array)) for array in arrays):
                refusal = self._unreachable(arrays)
        if name == "pure" or refusal:
            why = "the array-API formula, the fastest that applies"
            return "pure", f"{why}: {refusal}" if refusal else why
        return cpu.NAME, "fused, compiled by Numba, the fastest that applies"

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
    ) -> tuple[Array | None, list[Array]] | None:
        if kernel == "pure" or self._refusal(operation, arrays, kernel):
            return None
        if any(index > 1 for index in gradients):
            return None  # a temperature's
        if cotangent is not None and not self.addressable([cotangent]):
            return None
        xp = self.namespace(arrays[0])
        threads = cpu.thread_number(self.threads())
        try:
            return cpu.compute(
                cpu.Work(operation, xp, arrays, threads, value, tuple(gradients), cotangent)
            )
        except cpu.KernelError as error:
            if kernel == cpu.NAME:
                raise BackendError(f"kernel {kernel!r} cannot run here: {error}") from error
            warn_of(error)
            return None

    def scaled(self, gradients: list[Array], cotangent: Array) -> list[Array] | None:
        """Return gradients times a scalar, written in place; None where that would round twice."""
        return cpu.scaled(gradients, cotangent)

    def _refusal(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> str | None:
        """Return why the kernel ``cpu`` does not take a call, or None where it does."""
        if kernel == "auto" and self.small(arrays[0]):
            return cpu.SMALL_TEXT
        return cpu.problem() or cpu.refusal(operation, arrays) or self._unreachable(arrays)

    def _unreachable(self, arrays: Sequence[Array]) -> str | None:
        return None if self.addressable(arrays) else "the arrays are not in a CPU's memory"
