"""Fused kernels for torch tensors on a GPU, compiled by Triton; imported without it.

Nothing here waits for the GPU: what a result is divided by, masks and the gradient in it are read
from device memory.  Forward kernels keep a few numbers a row, from which the gradients follow with
one more read of the logits.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from kldiv.formulas.rows import RowLoss
from kldiv.kernels import KernelError, Work, no_fused_form, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation

NAME: Final = "triton"

WORDS: Final = "fused, compiled by Triton"

SMALL: Final = 0
"""Launching the formulas' many kernels takes longer than anything fused, however small."""

KEPT: Final = 19
"""Float64 numbers of a row of logits from which its gradients follow."""

_failure: str | None = None


@cache
def installed() -> bool:
    """Return whether there is Triton."""
    return find_spec("triton") is not None


@cache
def _has_gpu() -> bool:
    return bool(import_module("torch").cuda.is_available())


def interpreted() -> bool:
    """Return whether Triton interprets kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def problem() -> str | None:
    """Return why these kernels cannot run here, or None."""
    if not installed():
        return "Triton is not installed; it comes with builds of torch for CUDA"
    if not (interpreted() or _has_gpu()):
        return "torch finds no CUDA device"
    return _failure


def refusal(operation: Operation, arrays: Sequence[Array]) -> str | None:
    """Return why an operation on arrays has no kernel here, or None where it has."""
    return no_fused_form(operation, arrays)


def compute(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are: see `Kernels.compute`."""
    global _failure  # noqa: PLW0603 - one for the process
    torch = import_module("torch")
    try:
        name = "row_loss" if isinstance(work.operation, RowLoss) else "pointwise_loss"
        loss = import_module(f"kldiv.kernels.triton.{name}")  # Triton is loaded when it is needed
        with torch.no_grad():
            return loss.run(work)
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # no fault of a kernel's
        raise
    except Exception as error:  # whatever a compiler may raise
        _failure = f"compiling it fails: {told(error)}"
        raise KernelError(_failure) from error


def scaled(gradients: list[Array], cotangent: Array) -> list[Array] | None:  # noqa: ARG001
    """Return None: a gradient is computed when its factor is known."""
    return None
