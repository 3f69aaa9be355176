"""Kernels of y·(log y − x) and its derivatives, one read of both: `kldiv.formulas.pointwise`.

Arrays are seen as [outer, middle, inner], whatever their strides. A program takes tiles of a few of
the first two axes' rows, one after another, and leaves one float64 sum: which tiles are its own
depends on the shape alone, so a result is the same bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kldiv.kernels.triton.elementary import exp, log, rounded, total, two_sum


@triton.jit
def _edge(x, zero):
    """Return 0 times a function of ``x``: ``zero``, and NaN where ``x`` is."""
    return tl.where(x == x, zero, x)


@triton.jit
def _logarithms(x, y, order):
    """Return e^y·(y − x + order)."""
    weight = exp(y)
    difference = y - x + order
    # e^y underflows where P is positive all the same: an infinite difference wins.
    value = tl.where(tl.abs(difference) == float("inf"), difference, weight * difference)
    return tl.where(y == -float("inf"), _edge(x, weight), value)


@triton.jit
def elements(x, y, log_target: tl.constexpr):
    """Return the divergence of each element."""
    if log_target:
        value = _logarithms(x, y, 0.0)
    else:
        value = tl.where(y == 0.0, _edge(x, y), y * (log(y) - x))
    return value


@triton.jit
def slope_x(y, log_target: tl.constexpr):
    """Return the derivative in x."""
    return -exp(y) if log_target else -y


@triton.jit
def slope_y(x, y, log_target: tl.constexpr):
    """Return the derivative in y."""
    if log_target:
        value = _logarithms(x, y, 1.0)
    else:
        value = tl.where(y == 0.0, y, log(y) + 1.0 - x)
    return value


@triton.jit
def _places(rows, columns, middle, strides, flat: tl.constexpr):
    """Return the offsets of elements, given the strides of the three axes."""
    outer_stride, middle_stride, inner_stride = strides
    places = columns * inner_stride
    if not flat:
        places += (rows // middle) * outer_stride + (rows % middle) * middle_stride
    return places


@triton.jit
def _read(
    x,  # pointer to the input
    y,  # pointer to the target
    keep,  # pointer to uint8, 0 where an element is left out; or None
    rows,  # [height, 1], numbers of rows among outer · middle
    columns,  # [1, width], places in the last axis
    middle,  # int, length of the second axis
    mask,  # [height, width] of bool, elements of the arrays
    x_strides,  # [3], strides of x, in elements
    y_strides,  # [3], strides of y, in elements
    keep_strides,  # [3], strides of keep, in elements
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    log_target: tl.constexpr,  # bool, whether y is logarithms
    flat: tl.constexpr,  # bool, whether there is one row
):
    """Return a tile of both arrays, and the mask of its elements that count."""
    kind = tl.float64 if wide else tl.float32
    nothing = -float("inf") if log_target else 0.0
    if keep is not None:
        place = _places(rows, columns, middle, keep_strides, flat)
        mask = mask & (tl.load(keep + place, mask=mask, other=0) != 0)
    # Elements that are left out are not even read.
    x_tile = tl.load(x + _places(rows, columns, middle, x_strides, flat), mask=mask, other=0.0)
    y_tile = tl.load(y + _places(rows, columns, middle, y_strides, flat), mask=mask, other=nothing)
    return x_tile.to(kind), y_tile.to(kind), mask


@triton.jit
def _added(terms, high, low, lanes, wide: tl.constexpr):
    """Return sums with the terms of a tile: a double word of float64, or float32's in lanes."""
    if wide:
        # The rounding error of the sum is kept, as long as the sum is finite.
        high, lost = two_sum(high, total(terms))
        low += tl.where(tl.abs(high) < float("inf"), lost, 0.0)
    else:
        # Threads add up their own, four of float32 at once, and meet at the end.
        groups = tl.reshape(terms, [terms.shape[0], terms.shape[1] // 4, 4])
        lanes += tl.sum(groups, axis=2).to(tl.float64)
    return high, low, lanes


@triton.jit(do_not_specialize=["rows", "middle"])
def pointwise(
    x,  # [outer, middle, inner], input: logarithms of probabilities
    y,  # [outer, middle, inner], target: probabilities, or their logarithms
    keep,  # [outer, middle, inner] of uint8, 0 where an element is left out; or None
    factor,  # [outer, middle, inner], or [1]: gradient in each element's divergence; None for none
    partial,  # [programs] of float64, output: each program's sum; or None
    value,  # [outer, middle, inner], output: each element's divergence; or None
    x_out,  # [outer, middle, inner], output: gradient in x; or None
    y_out,  # [outer, middle, inner], output: gradient in y; or None
    rows,  # int, outer · middle
    middle,  # int, length of the second axis
    inner,  # int, length of the last axis
    x_strides,  # [3], strides of x, in elements
    y_strides,  # [3], strides of y, in elements
    keep_strides,  # [3], strides of keep, in elements
    factor_strides,  # [3], strides of factor, in elements
    value_strides,  # [3], strides of value, in elements
    x_out_strides,  # [3], strides of x_out, in elements
    y_out_strides,  # [3], strides of y_out, in elements
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    log_target: tl.constexpr,  # bool, whether y is logarithms
    flat: tl.constexpr,  # bool, whether there is one row: then nothing is divided
    one_factor: tl.constexpr,  # bool, whether all elements have one factor
    height: tl.constexpr,  # int, rows of a tile
    width: tl.constexpr,  # int, columns of a tile
):
    """Write the sum of a program's tiles, the elements and the gradients: those that are wanted."""
    kind = tl.float64 if wide else tl.float32
    across = tl.cdiv(inner, width)
    tiles = tl.cdiv(rows, height) * across
    high = tl.zeros([height, 1], tl.float64)
    low, lanes = high, tl.zeros([height, width // 4], tl.float64)
    first, step = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    if partial is None:  # a program has one tile; told of that the compiler makes no loop
        tiles, step = first + 1, 1
    for tile in range(first, tiles, step):
        band = tile * 0 if flat else tile // across
        row = band * height + tl.arange(0, height)[:, None]
        column = (tile - band * across) * width + tl.arange(0, width)[None, :]
        there = (row < rows) & (column < inner)
        x_tile, y_tile, mask = _read(
            x, y, keep, row, column, middle, there, x_strides, y_strides, keep_strides,
            wide, log_target, flat,
        )  # fmt: skip
        if partial is not None:
            terms = elements(x_tile, y_tile, log_target)
            high, low, lanes = _added(terms, high, low, lanes, wide)
        if value is not None:
            result = rounded(elements(x_tile, y_tile, log_target), value.dtype.element_ty)
            tl.store(value + _places(row, column, middle, value_strides, flat), result, mask=there)
        if factor is not None:
            if one_factor:
                by = tl.load(factor).to(kind)
            else:
                place = _places(row, column, middle, factor_strides, flat)
                by = tl.load(factor + place, mask=mask, other=0.0).to(kind)
        if x_out is not None:
            slope = tl.where(mask, by * slope_x(y_tile, log_target), 0.0)
            place = _places(row, column, middle, x_out_strides, flat)
            tl.store(x_out + place, rounded(slope, x_out.dtype.element_ty), mask=there)
        if y_out is not None:
            slope = tl.where(mask, by * slope_y(x_tile, y_tile, log_target), 0.0)
            place = _places(row, column, middle, y_out_strides, flat)
            tl.store(y_out + place, rounded(slope, y_out.dtype.element_ty), mask=there)
    if partial is not None:
        tl.store(partial + tl.program_id(0), tl.sum(high + low) if wide else tl.sum(lanes))
