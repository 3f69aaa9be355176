"""Fused kernels for arrays in a CPU's memory, compiled by Numba; imported without it.

An adapter asks `problem` whether they can run here at all and `refusal` whether they take a call;
then `compute` gives the value, gradients, or both from one pass over the data.
"""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Operation

NAME: Final = "cpu"

SMALL: Final = 1 << 14
"""Elements below which the formulas are as fast, and need no compiler."""

SMALL_TEXT: Final = f"arrays of fewer than {SMALL} elements"

_failure: str | None = None


class KernelError(Exception):
    """A kernel that cannot be compiled here."""


class Work(NamedTuple):
    """What is wanted of an operation on arrays."""

    operation: Any
    xp: Namespace
    arrays: Sequence[Array]
    threads: int
    value: bool = True
    gradients: tuple[int, ...] = ()
    """Indices of the arrays to differentiate in."""
    cotangent: Array | None = None
    """The gradient in the result; None is 1."""


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


def problem() -> str | None:
    """Return why these kernels cannot run here, or None."""
    if not _installed():
        return 'Numba is not installed; pip install "kldiv[cpu]"'
    return _failure


def is_small(array: Array) -> bool:
    """Return whether a call is so small that the formulas are as fast."""
    return math.prod(array.shape) < SMALL


def thread_number(library: int | None) -> int:
    """Return how many threads to use, given how many the library does."""
    from kldiv.kernels.cpu.threads import number  # noqa: PLC0415 - small calls need none

    return number(library)


def refusal(operation: Operation, arrays: Sequence[Array]) -> str | None:
    """Return why an operation on arrays has no kernel here, or None where it has."""
    if 0 in arrays[0].shape:
        return "there are no elements"
    if isinstance(operation, PointwiseLoss) and operation.function in {KL(), KLLogTarget()}:
        return None
    if isinstance(operation, RowLoss) and isinstance(
        operation.divergence, KullbackLeibler | JensenShannon
    ):
        return None
    return f"there is no fused form of {type(operation).__name__}"


def compute(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are.

    Raises
    ------
    KernelError
        The kernel cannot be compiled here, or kept on disk; `problem` says so from then on.
    """
    global _failure  # noqa: PLW0603 - one for the process
    try:
        name = "row_loss" if isinstance(work.operation, RowLoss) else "pointwise_loss"
        loss = import_module(f"kldiv.kernels.cpu.{name}")  # Numba is loaded when it is needed
        kernel = loss.compile_for(work)
    except Exception as error:  # whatever a compiler, or a file system, may raise
        _failure = f"compiling it fails: {type(error).__name__}: {_first_line(error)}"
        raise KernelError(_failure) from error
    return loss.run(work, kernel)


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
