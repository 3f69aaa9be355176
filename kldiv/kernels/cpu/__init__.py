"""Fused kernels for arrays in a CPU's memory, compiled by Numba; imported without it."""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from kldiv.formulas.rows import RowLoss
from kldiv.kernels import KernelError, Work, no_fused_form, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation

NAME: Final = "cpu"

WORDS: Final = "fused, compiled by Numba"

SMALL: Final = 1 << 14
"""Elements below which the formulas are as fast, and need no compiler."""

_failure: str | None = None


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


def problem() -> str | None:
    """Return why these kernels cannot run here, or None."""
    if not _installed():
        return 'Numba is not installed; pip install "kldiv[cpu]"'
    return _failure


def thread_number(library: int | None) -> int:
    """Return how many threads to use, given how many the library does."""
    from kldiv.kernels.cpu.threads import number  # noqa: PLC0415 - small calls need none

    return number(library)


def refusal(operation: Operation, arrays: Sequence[Array]) -> str | None:
    """Return why an operation on arrays has no kernel here, or None where it has."""
    return no_fused_form(operation, arrays)


def prepare(work: Work) -> Callable[[Work], tuple[Array | None, list[Array]]]:
    """Return what computes it, compiled; of the arrays only the dtypes are looked at.

    Raises
    ------
    KernelError
        It cannot be compiled here.
    """
    global _failure  # noqa: PLW0603 - one for the process
    try:
        name = "row_loss" if isinstance(work.operation, RowLoss) else "pointwise_loss"
        loss = import_module(f"kldiv.kernels.cpu.{name}")  # Numba is loaded when it is needed
        return partial(loss.run, kernel=loss.compile_for(work))
    except Exception as error:  # whatever a compiler, or a file system, may raise
        _failure = f"compiling it fails: {told(error)}"
        raise KernelError(_failure) from error


def compute(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are: see `Kernels.compute`."""
    return prepare(work)(work)


def compilers() -> dict[str, Callable[[], Any]]:
    """Return for each kernel what compiles it, or loads it where that is done."""
    found = {}
    for name, module in (
        ("kl_div", "pointwise"),
        ("kl_div_with_logits", "logits"),
        ("js_div_with_logits", "jensen_shannon"),
    ):
        kernels = import_module(f"kldiv.kernels.cpu.{module}")
        for dtype in ("float32", "float64"):
            found[f"{name}, {dtype}"] = getattr(kernels, dtype)
    return found


def scaled(gradients: list[Array], cotangent: Array) -> list[Array] | None:
    """Return gradients times a scalar, written in place; None where that would round twice."""
    factor = float(cotangent)
    if factor == 1.0:
        return gradients
    for gradient in gradients:
        if str(gradient.dtype).rpartition(".")[2] in {"float16", "bfloat16"}:
            return None
    for gradient in gradients:
        gradient *= factor  # noqa: PLW2901 - in place
    return gradients
