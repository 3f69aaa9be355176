"""Fused kernels for JAX arrays on a GPU, by Pallas and its Triton compiler; imported without them.

What XLA fuses by itself is left to it: `kl_div`, and all that is elementwise once the rows are
known.  A kernel finds the state of rows of logits, which takes XLA several reads, in one.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Final

from kldiv.formulas.pointwise import PointwiseLoss
from kldiv.formulas.rows import RowGradient, RowLoss
from kldiv.formulas.shards import Constants, ShardGradient
from kldiv.kernels import KernelError, Work, no_fused_form, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation

    Spread = Callable[..., Array]
    """Computes an operation on rows, given a namespace, arrays, and what does it on a device."""

NAME: Final = "pallas"

WORDS: Final = "rows read once by a kernel, compiled by Pallas"

SMALL: Final = 0
"""The formulas are more launches, however small the arrays."""

_failure: str | None = None


def interpreted() -> bool:
    """Return whether Pallas interprets the kernels on the CPU, for tests."""
    return os.environ.get("KLDIV_PALLAS_INTERPRET") == "1"


@cache
def _lacking() -> str | None:
    """Return what is missing here, or None."""
    try:
        language = import_module("jax.experimental.pallas.triton")
    except ImportError as error:
        return f"JAX has no Pallas for Triton here: {told(error)}"
    if not all(hasattr(language, name) for name in ("CompilerParams", "load", "store")):
        return "the Pallas of this JAX is too old; upgrade JAX"
    return None


@cache
def _elsewhere() -> str | None:
    """Return why JAX's devices are not for these kernels, or None where they are."""
    jax = import_module("jax")
    return None if jax.default_backend() == "gpu" else "JAX has no GPU"


def problem() -> str | None:
    """Return why these kernels cannot run here, or None."""
    return _lacking() or _failure or (None if interpreted() else _elsewhere())


def refusal(operation: Operation, arrays: Sequence[Array]) -> str | None:
    """Return why an operation on arrays has no kernel here, or None where it has."""
    if isinstance(operation, PointwiseLoss):
        return "XLA itself fuses kl_div to one read of both arrays"
    if isinstance(operation, Constants | RowGradient | ShardGradient):  # parts of a loss' rules
        operation = operation.settings(RowLoss)
    return no_fused_form(operation, arrays)


def compute(work: Work, spread: Spread | None = None) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are: see `Kernels.compute`.

    Arrays that may be spread over devices are left to ``spread``; then only a value can be wanted.
    """
    global _failure  # noqa: PLW0603 - one for the process
    try:
        row_loss = import_module("kldiv.kernels.pallas.row_loss")
        row_loss.check(work)
    except Exception as error:  # whatever a compiler may raise
        if "RESOURCE_EXHAUSTED" in str(error):  # no fault of a kernel's
            raise
        _failure = f"compiling it fails: {told(error)}"
        raise KernelError(_failure) from error
    found: tuple[Array | None, list[Array]] = row_loss.run(work, spread)
    return found


def scaled(gradients: list[Array], cotangent: Array) -> list[Array] | None:  # noqa: ARG001
    """Return None: JAX's arrays are not written in place."""
    return None
