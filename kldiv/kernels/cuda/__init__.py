"""Fused kernels for CuPy's arrays on NVIDIA's GPUs: CUDA C++, compiled by NVRTC at first use.

The sources are in ``source/``; importing this package needs neither CuPy nor a GPU.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from kldiv.formulas.rows import RowLoss
from kldiv.kernels import KernelError, Work, no_fused_form, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation

NAME: Final = "cuda"

WORDS: Final = "fused, in CUDA C++"

SMALL: Final = 0
"""A formula is a launch for every operation on arrays, a kernel one or a few at any size."""

_failure: str | None = None


def problem() -> str | None:
    """Return why these kernels cannot run here, or None."""
    if _failure is None:
        return import_module("kldiv.kernels.cuda.compiling").problem()
    return _failure


def refusal(operation: Operation, arrays: Sequence[Array]) -> str | None:
    """Return why an operation on arrays has no kernel here, or None where it has."""
    return no_fused_form(operation, arrays)


def compute(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are.

    Raises
    ------
    KernelError
        The kernel cannot be compiled or launched here; `problem` says so from then on.
    """
    global _failure  # noqa: PLW0603 - one for the process
    name = "row_loss" if isinstance(work.operation, RowLoss) else "pointwise_loss"
    try:
        return import_module(f"kldiv.kernels.cuda.{name}").run(work)
    except MemoryError:
        raise  # the formulas would need more
    except Exception as error:  # whatever a compiler, or the driver, may raise
        _failure = f"compiling or launching it fails: {told(error)}"
        raise KernelError(_failure) from error


def scaled(gradients: list[Array], cotangent: Array) -> list[Array] | None:  # noqa: ARG001
    """Return None: CuPy has no automatic differentiation that could ask for it."""
    return None
