"""The launch of kernels: tiles, settings and device."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from kldiv._types import Array

TILE: Final = {False: 2048, True: 1024}
"""Elements of a tile of float32, or of float64: 8 or 4 a thread, so that nothing spills."""

SPAN: Final = 4
"""Tiles of a program that writes gradients, each of which needs a row's numbers once."""

STATE_TILE: Final = {False: 1024, True: 512}
"""Elements of a tile whose state is found: 4 or 2 a thread, beside the numbers of its rows."""

PROGRAMS: Final = 512
"""Programs that keep the largest GPU busy: one number for all GPUs, so that all add up alike."""

OPTIONS: Final = {"num_warps": 8, "enable_fp_fusion": False}
"""Products and sums are contracted where the kernels say so, and nowhere else."""


class Tiling(NamedTuple):
    """The division of rows among programs."""

    height: int
    """Rows of a tile: more than one where rows are short; they fill half of one, as each row has
    numbers of its own."""
    width: int
    """Classes of a tile, a power of two."""
    parts: int
    """Programs that share a row, each with one chunk of it."""
    chunk: int
    """Classes of a chunk."""


def power_of_two(n: int) -> int:
    """Return the least power of two that is not less than ``n``."""
    return 1 << max(0, n - 1).bit_length()


def tiling(rows: int, classes: int, tile: int) -> Tiling:
    """Return the division of rows among programs."""
    width = min(tile, max(16, power_of_two(classes)))
    height = max(1, min(tile // (2 * width), power_of_two(rows)))
    # A part is worth merging from two tiles on; they are merged one after another.
    parts = max(1, min(PROGRAMS // rows, classes // (2 * width), 64))
    chunk = -(-classes // parts)
    chunk = -(-chunk // width) * width
    return Tiling(height, width, -(-classes // chunk), chunk)


def bits(number: float) -> int:
    """Return the bits of a float64: Triton would round a float to float32."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def on(array: Array) -> AbstractContextManager[Any]:
    """Return the context in which kernels run where ``array`` is."""
    return torch.cuda.device(array.device) if array.is_cuda else nullcontext()


def axes(
    shape: Sequence[int], strides: Sequence[Sequence[int]], most: int
) -> tuple[tuple[int, ...], list[tuple[int, ...]]] | None:
    """Return shape and strides of arrays as ``most`` axes, or None where they have more.

    Axes are joined that follow each other without a gap in every array.
    """
    found: list[tuple[int, tuple[int, ...]]] = []
    for size, steps in zip(shape, zip(*strides, strict=True), strict=True):
        if size == 1:
            continue
        if found and all(a == b * size for a, b in zip(found[-1][1], steps, strict=True)):
            found[-1] = (found[-1][0] * size, steps)
        else:
            found.append((size, steps))
    if len(found) > most:
        return None
    one = (1, (0,) * len(strides))
    padded = [one] * (most - len(found)) + found
    return tuple([size for size, _ in padded]), [
        tuple([steps[k] for _, steps in padded]) for k in range(len(strides))
    ]


def strides_of(array: Array, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array that broadcasts to a shape."""
    return tuple(array.expand(tuple(shape)).stride())
