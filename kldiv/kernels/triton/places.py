"""The places of rows, their tiles and their states in a GPU's memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kldiv.kernels.triton.state import State

FIELDS = tl.constexpr(len(State._fields))
"""Numbers of a `State`, of which `read_state` and `write_state` have the order."""


@triton.jit
def row_offsets(rows, inner, outer_stride, inner_stride):
    """Return the offsets of rows that lie in two axes, ``inner`` the length of the second."""
    return (rows // inner) * outer_stride + (rows % inner) * inner_stride


@triton.jit
def columns_from(start, width: tl.constexpr):
    """Return the classes of a tile, and tell the compiler that it begins at a multiple of 16."""
    columns = tl.arange(0, width)[None, :] + start
    return tl.max_contiguous(tl.multiple_of(columns, [1, 16]), [1, width])


@triton.jit
def load_tile(pointer, offsets, columns, stride, mask, wide: tl.constexpr):
    """Return a tile of logits, −∞ where the mask is false."""
    kind = tl.float64 if wide else tl.float32
    return tl.load(pointer + offsets + columns * stride, mask=mask, other=-float("inf")).to(kind)


class Pair(NamedTuple):
    """Rows of both logits in memory."""

    s: Any
    """A pointer to the student's."""
    t: Any
    """A pointer to the teacher's."""
    s_offsets: Any
    """[height, 1], where rows of s begin, in elements."""
    t_offsets: Any
    s_step: Any
    """The stride of s along classes."""
    t_step: Any
    classes: Any
    """Their number."""


@triton.jit
def load_pair(pair, columns, mask, wide: tl.constexpr):
    """Return a tile of the teacher's logits and one of the student's."""
    t = load_tile(pair.t, pair.t_offsets, columns, pair.t_step, mask, wide)
    return t, load_tile(pair.s, pair.s_offsets, columns, pair.s_step, mask, wide)


@triton.jit
def temperature_of(pointer, bits, rows, there):
    """Return the temperature of rows: an array's, or the number with these bits."""
    if pointer is None:
        temperature = tl.zeros(rows.shape, tl.float64) + bits.to(tl.float64, bitcast=True)
    else:
        temperature = tl.load(pointer + rows, mask=there, other=1.0)
    return temperature


@triton.jit
def read_state(pointer, offsets, there):
    """Return a state that `write_state` has written."""
    return State(
        tl.load(pointer + offsets, mask=there, other=-float("inf")),
        tl.load(pointer + offsets + 1, mask=there, other=0.0),
        tl.load(pointer + offsets + 2, mask=there, other=-float("inf")),
        tl.load(pointer + offsets + 3, mask=there, other=0.0),
        tl.load(pointer + offsets + 4, mask=there, other=0.0),
        tl.load(pointer + offsets + 5, mask=there, other=0.0),
        tl.load(pointer + offsets + 6, mask=there, other=0.0),
        tl.load(pointer + offsets + 7, mask=there, other=0.0),
        tl.load(pointer + offsets + 8, mask=there, other=0.0),
        tl.load(pointer + offsets + 9, mask=there, other=0.0),
        tl.load(pointer + offsets + 10, mask=there, other=0.0),
        tl.load(pointer + offsets + 11, mask=there, other=0.0),
        tl.load(pointer + offsets + 12, mask=there, other=0.0),
        tl.load(pointer + offsets + 13, mask=there, other=0.0),
    )


@triton.jit
def write_state(pointer, offsets, a, there):
    """Write a state."""
    tl.store(pointer + offsets, a.t_max, mask=there)
    tl.store(pointer + offsets + 1, a.t_sum, mask=there)
    tl.store(pointer + offsets + 2, a.s_max, mask=there)
    tl.store(pointer + offsets + 3, a.s_sum, mask=there)
    tl.store(pointer + offsets + 4, a.pivot, mask=there)
    tl.store(pointer + offsets + 5, a.pivot_low, mask=there)
    tl.store(pointer + offsets + 6, a.y, mask=there)
    tl.store(pointer + offsets + 7, a.phi, mask=there)
    tl.store(pointer + offsets + 8, a.anchor, mask=there)
    tl.store(pointer + offsets + 9, a.anchor_low, mask=there)
    tl.store(pointer + offsets + 10, a.drift, mask=there)
    tl.store(pointer + offsets + 11, a.lost, mask=there)
    tl.store(pointer + offsets + 12, a.s_anchor, mask=there)
    tl.store(pointer + offsets + 13, a.s_anchor_low, mask=there)
