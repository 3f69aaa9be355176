"""Fused kernels for torch tensors on a GPU, compiled by Triton; imported without it.

Nothing here waits for the GPU: the divisor of a mean, masks and the gradient in the result are read
from device memory.  Forward kernels keep a few numbers a row, from which the gradients follow with
one more read of the logits.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from kldiv.formulas import numbers
from kldiv.kernels.spelling import ON_GPUS
from kldiv.kernels.technology import Technology

if TYPE_CHECKING:
    from kldiv.kernels.work import Found, Work


FIELDS: Final = (*numbers.FIELDS[:11], "lost", "s_anchor", "s_anchor_low")
"""The fields of a state, which merges without the spread: see `kldiv.kernels.triton.state`."""

SAVED: Final = (*FIELDS, "kl", "offset", *numbers.SUM_FIELDS[1:], "quick")
"""The numbers kept of a row: its state, KL, its offset, two sums over classes for each gradient,
and whether all of the row went the quick way."""


class Triton(Technology):
    """Triton's machine code.

    Launching the formulas' many kernels takes longer than a fused one, however small the arrays.
    """

    name = "triton"
    words = "fused, compiled by Triton"
    device = "cuda"
    kept = len(SAVED)
    forms = ON_GPUS

    def __init__(self) -> None:
        self.installed = find_spec("triton") is not None
        self.interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        """Whether Triton interprets kernels on the CPU, for tests."""

    def lacking(self) -> str | None:
        if not self.installed:
            return "Triton is not installed; it comes with builds of torch for CUDA"
        return None if self.interpreted or has_gpu() else "torch finds no CUDA device"

    def compute(self, work: Work) -> Found:
        torch = import_module("torch")
        try:
            with torch.no_grad():
                return super().compute(work)
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # no fault of a kernel's
            raise
        except Exception as error:  # whatever a compiler may raise
            raise self.failed(error) from error


@cache
def has_gpu() -> bool:
    """Return whether torch finds a CUDA device."""
    return bool(import_module("torch").cuda.is_available())


TRITON: Final = Triton()
