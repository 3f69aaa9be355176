"""PyTorch: the formulas on tensors, without a gradient hook."""

from __future__ import annotations

from typing import TYPE_CHECKING

import array_api_compat.torch as xp
import torch

from kldiv.backends._torch_state import transforming
from kldiv.backends.base import in_row_blocks
from kldiv.formulas.reductions import RowWise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation


def evaluate(operation: Operation, arrays: Sequence[Array]) -> Array:
    """Return the value of an operation."""
    if isinstance(operation, RowWise):
        return operation.gather(xp, elements(operation, *arrays), arrays)
    return operation.value(xp, *arrays)


def elements(operation: RowWise, *arrays: Array) -> Array:
    """Return the elements of an operation on rows."""
    # A compiler fuses the whole, and a transform's tensors cannot be written into others.
    if torch.compiler.is_compiling() or transforming():
        return operation.elements(xp, *arrays)
    return in_row_blocks(operation, xp, arrays)
