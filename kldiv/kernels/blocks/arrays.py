"""Arrays of NumPy and PyTorch a block at a time, and buffers that are used again and again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from kldiv._heap import keep_freed_memory
from kldiv.formulas.blocks import row_blocks, slices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array

Buffer: TypeAlias = np.ndarray[Any, Any]
Index: TypeAlias = "tuple[Any, ...]"

SIZE: Final = 1 << 15
"""Numbers of a block: a thread's buffers of them stay in its cache, and calls are long enough."""


class Room:
    """Float64 buffers of a thread."""

    def __init__(self, count: int) -> None:
        keep_freed_memory()
        self._buffers = [np.empty(0) for _ in range(count)]

    def of(self, shape: tuple[int, ...]) -> list[Buffer]:
        """Return the buffers in a shape."""
        size = math.prod(shape)
        if self._buffers[0].size < size:
            self._buffers = [np.empty(size) for _ in self._buffers]
        return [buffer[:size].reshape(shape) for buffer in self._buffers]


def host(array: Array) -> Buffer:
    """Return an array of NumPy in the same memory."""
    return array if isinstance(array, np.ndarray) else array.detach().numpy()


def pieces(arrays: Sequence[Array | None], shape: tuple[int, ...]) -> tuple[list[Any], list[Index]]:
    """Return arrays that broadcast to a shape as views of one form, and the indices of blocks.

    None stays.
    """
    views = [None if array is None else _filling(host(array), shape) for array in arrays]
    first = views[0]
    assert first is not None  # noqa: S101 - of the callers' own making
    order = sorted(range(len(shape)), key=lambda axis: -abs(first.strides[axis]))
    views = [None if view is None else view.transpose(order) for view in views]
    if all(view is None or view.flags.c_contiguous for view in views):
        flat = [None if view is None else view.reshape(-1) for view in views]
        return flat, [(cut,) for cut in slices(math.prod(shape), SIZE)]
    last = shape[order[-1]]
    blocks = row_blocks(tuple(shape[axis] for axis in order), "float64", 8 * SIZE)
    return views, [(*block, ..., cut) for block in blocks for cut in slices(last, SIZE)]


def _filling(array: Buffer, shape: tuple[int, ...]) -> Buffer:
    return array if array.shape == shape else np.broadcast_to(array, shape)
