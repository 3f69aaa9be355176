"""The places of rows, their tiles and their states in a GPU's memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kldiv.kernels.triton.state import State

FIELDS = tl.constexpr(len(State._fields))
"""Numbers of a `State`."""


@triton.jit
def row_offsets(rows, inner, strides):
    """Return the offsets of rows that lie in two axes, ``inner`` the length of the second."""
    outer_stride, inner_stride, _ = strides
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
def pair_of(s, t, rows, inner, classes, s_strides, t_strides):
    """Return rows of both logits, given the strides of these: outer, inner, and along classes."""
    s_offsets, t_offsets = row_offsets(rows, inner, s_strides), row_offsets(rows, inner, t_strides)
    return Pair(s, t, s_offsets, t_offsets, s_strides[2], t_strides[2], classes)


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
    found = ()
    for k in tl.static_range(FIELDS):
        found = found + (tl.load(pointer + offsets + k, mask=there, other=0.0),)  # noqa: RUF005 - Triton's
    return State(*found)


@triton.jit
def write_state(pointer, offsets, state, there):
    """Write a state, number after number."""
    for k in tl.static_range(FIELDS):
        tl.store(pointer + offsets + k, state[k], mask=there)
