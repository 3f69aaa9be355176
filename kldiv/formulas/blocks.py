"""Blocks of rows, and of classes, that are computed at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace

BLOCK_BYTES = 2**20
"""A block of this size and the dozen temporaries of a formula stay in a CPU's cache."""

PAIR_BLOCK_BYTES = 2**17
"""A block of pairs of this size is the fastest on a CPU: the second cache holds its temporaries."""

DEVICE_BLOCK_BYTES = 2**26
"""A block of pairs of this size keeps a GPU at work."""

BLOCK_CLASSES = 2**16
"""A row with more classes than this is summed in parts."""


def rows_at_a_time(shape: tuple[int, ...], dtype: str, block_bytes: int = BLOCK_BYTES) -> int:
    """Return how many rows, the last axis of an array of this shape, make a block."""
    itemsize = 8 if dtype == "float64" else 4
    return max(1, block_bytes // max(1, shape[-1] * itemsize))


def pairs_at_a_time(
    own: tuple[int, ...], others: tuple[int, ...], dtype: str, block_bytes: int
) -> tuple[int, int]:
    """Return of two arrays of rows how many of each make a block of pairs."""
    most = rows_at_a_time(own, dtype, block_bytes)
    across = min(most, max(1, others[0]))
    return max(1, most // across), across


def row_blocks(
    shape: tuple[int, ...], dtype: str, block_bytes: int = BLOCK_BYTES
) -> list[tuple[int | slice, ...]]:
    """Return the indices of blocks that cover an array of this shape, each of whole rows."""
    if len(shape) < 2 or 0 in shape:
        return [()]
    most = rows_at_a_time(shape, dtype, block_bytes)
    inner = math.prod(shape[1:-1])
    if inner > most:
        return [
            (index, *rest)
            for index in range(shape[0])
            for rest in row_blocks(shape[1:], dtype, block_bytes)
        ]
    step = max(1, most // max(1, inner))
    return [(block,) for block in slices(shape[0], step)]


def flat(xp: Namespace, array: Array, like: Array) -> Array:
    """Return ``array`` with all axes of rows as one; ``like`` has one more, the last."""
    if like.ndim == 1:  # a single row, which Dask cannot reshape
        return array[None, ...]
    last = array.shape[like.ndim - 1 :]
    return xp.reshape(array, (math.prod(like.shape[:-1]), *last))


def class_blocks(classes: int) -> list[slice]:
    """Return slices that cover the classes of a row, of nearly equal size."""
    number = max(1, math.ceil(classes / BLOCK_CLASSES))
    size = math.ceil(classes / number)
    return slices(classes, max(1, size))


def slices(length: int, step: int) -> list[slice]:
    """Return slices of ``step`` that cover ``length``, none of them reaching beyond it."""
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def is_shared_evenly(length: int, parts: Sequence[int]) -> bool:
    """Return whether the product of ``parts`` divides ``length``."""
    return length % math.prod(parts) == 0
