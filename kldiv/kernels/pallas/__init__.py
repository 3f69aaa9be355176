"""Fused kernels for JAX arrays on a GPU, by Pallas and its Triton compiler; imported without them.

XLA itself fuses `kl_div`, and all that is elementwise once the rows are known; that is left to it.
A kernel finds the state of rows of logits, which takes XLA several reads, in one.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final

from kldiv.formulas.pointwise import PointwiseLoss
from kldiv.formulas.rows import Constants, RowGradient, RowLoss
from kldiv.kernels.spelling import no_fused_form
from kldiv.kernels.technology import Technology, described

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array
    from kldiv.kernels.work import Found, Work

    Spread = Callable[..., Array]
    """Computes an operation on rows, given a namespace, arrays, and the function for one device."""


class Pallas(Technology):
    """Pallas' machine code; the formulas take more launches, however small the arrays."""

    name = "pallas"
    words = "rows read once by a kernel, compiled by Pallas"
    device = "gpu"

    @property
    def interpreted(self) -> bool:
        """Whether Pallas interprets the kernels on the CPU, for tests."""
        return os.environ.get("KLDIV_PALLAS_INTERPRET") == "1"

    def lacking(self) -> str | None:
        return unsupported() or self.failure or (None if self.interpreted else elsewhere())

    def refusal(self, work: Work) -> str | None:
        operation = work.operation
        if isinstance(operation, PointwiseLoss):
            return "XLA itself fuses kl_div to one read of both arrays"
        if work.gradients:
            return "the rules of JAX compute gradients as operations of their own"
        if isinstance(operation, Constants | RowGradient):  # parts of those rules
            operation = operation.settings(RowLoss)
        return no_fused_form(operation, work.arrays)

    def compute(self, work: Work, spread: Spread | None = None) -> Found:
        """Return the value, if it is wanted, and the gradients that are.

        Arrays that may be spread over devices are left to ``spread``; then only a value can be
        wanted.
        """
        try:
            row_loss = import_module("kldiv.kernels.pallas.row_loss")
            row_loss.check(work)
        except Exception as error:  # whatever a compiler may raise
            if "RESOURCE_EXHAUSTED" in str(error):  # no fault of a kernel's
                raise
            raise self.failed(error) from error
        found: Found = row_loss.run(work, spread)
        return found


@cache
def unsupported() -> str | None:
    """Return why this JAX cannot compile the kernels, or None where it can."""
    try:
        language = import_module("jax.experimental.pallas.triton")
    except ImportError as error:
        return f"JAX has no Pallas for Triton here: {described(error)}"
    if not all(hasattr(language, name) for name in ("CompilerParams", "load", "store")):
        return "the Pallas of this JAX is too old; upgrade JAX"
    return None


@cache
def elsewhere() -> str | None:
    """Return why JAX's devices are not for these kernels, or None where they are."""
    jax = import_module("jax")
    return None if jax.default_backend() == "gpu" else "JAX has no GPU"


PALLAS: Final = Pallas()
