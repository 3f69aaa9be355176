"""How much of a large array is worked on at a time."""

from __future__ import annotations

import math

BLOCK_BYTES = 2**20
"""A block of this size and the dozen temporaries of a formula stay in a CPU's cache."""


def row_blocks(shape: tuple[int, ...], itemsize: int) -> list[tuple[int | slice, ...]]:
    """Return the indices of blocks that cover an array of this shape, whole along its last axis."""
    if len(shape) == 1:
        return [()]
    size = math.prod(shape[1:]) * itemsize
    if size > BLOCK_BYTES and len(shape) > 2:
        inner = row_blocks(shape[1:], itemsize)
        return [(index, *rest) for index in range(shape[0]) for rest in inner]
    step = rows_at_a_time(size)
    return [(slice(start, start + step),) for start in range(0, shape[0], step)] or [()]


def rows_at_a_time(size: int) -> int:
    """Return how many rows of ``size`` bytes make a block: one at least."""
    return max(1, BLOCK_BYTES // max(1, size))
