"""The launch of kernels: tiles, settings and device."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from kldiv.kernels.layout import SIZES, STRIDES, memory, table

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

SMALL: Final = 1 << 18
"""Logits of one side up to which a second launch costs more than the quick way gains."""

OPTIONS: Final = {"num_warps": 8, "enable_fp_fusion": False}
"""Products and sums are contracted where the kernels say so, and nowhere else."""

QUICK_OPTIONS: Final = {**OPTIONS, "maxnreg": 128}
"""For the quick way: two programs run on a multiprocessor, and one reads while one adds up."""


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


def _layout(
    tensors: Sequence[Array | None], most: int, *, whole_rows: bool
) -> tuple[list[int], list[tuple[int, ...]]] | None:
    """Return the sizes of ``most`` axes and each tensor's strides, or None where there are more.

    With ``whole_rows`` the last axis is another one, of which the size is left out. A tensor that
    is None has the strides of one number.
    """
    places = [None if each is None else memory(each) for each in tensors]
    (axes, _, *sizes), *rows = table(places, whole_rows=whole_rows).tolist()
    padding = most + whole_rows - axes
    if padding < 0:
        return None
    strides = [(*[0] * most, *[1] * whole_rows) for _ in places]
    for index, (place, row) in enumerate(zip(places, rows, strict=True)):
        if place is not None:
            steps = (step // SIZES[place.dtype] for step in row[STRIDES:])
            strides[index] = (*[0] * padding, *steps)
    return [*[1] * padding, *sizes][:most], strides


class Placed(NamedTuple):
    """Arrays as a kernel takes them: copies, where their axes are too many for it."""

    inputs: Sequence[Any]
    outputs: Sequence[Array | None]
    sizes: list[int]
    strides: list[tuple[int, ...]]
    """Of the inputs, and of the outputs."""


def placed(
    inputs: Sequence[Array | None],
    outputs: Sequence[Array | None] = (),
    *,
    most: int,
    whole_rows: bool = False,
) -> Placed:
    """Return arrays that broadcast to the first one's shape as a kernel of few axes takes them."""
    found = _layout([*inputs, *outputs], most, whole_rows=whole_rows)
    if found is None:
        shape = inputs[0].shape  # type: ignore[union-attr] # the first is one
        inputs = [None if each is None else each.expand(shape).contiguous() for each in inputs]
        outputs = [None if each is None else each.new_empty(each.shape) for each in outputs]
        found = _layout([*inputs, *outputs], most, whole_rows=whole_rows)
        assert found is not None  # noqa: S101 - contiguous tensors have one axis
    return Placed(inputs, outputs, *found)


def give(results: Sequence[Array | None], outputs: Sequence[Array | None]) -> None:
    """Copy outputs to the results that they were made for, if they are others."""
    for result, output in zip(results, outputs, strict=True):
        if result is not None and result is not output:
            result.copy_(output)
