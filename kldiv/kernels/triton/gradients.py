"""Kernels of the gradients of rows: one read of both logits, one write of each gradient wanted.

A program has a tile, or several rows of one, and the row's constants that the forward kernels kept;
the gradient in the result, and the divisor of a mean, come from device memory as well.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kldiv.kernels.triton.divergences import JS, KL, numbers_of, slopes
from kldiv.kernels.triton.elementary import rounded
from kldiv.kernels.triton.mixtures import mixture_rise
from kldiv.kernels.triton.places import (
    columns_from,
    load_pair,
    pair_of,
    read_state,
    row_offsets,
    temperature_of,
)
from kldiv.kernels.triton.quick import quick_slope, slopes_of
from kldiv.kernels.triton.quick_js import looks_of, quick_js_slope
from kldiv.kernels.triton.rows import SAVED, UNSPECIALISED, counting, read_known
from kldiv.kernels.triton.state import (
    View,
    clipped,
    falling,
    finite,
    heated,
    probability,
    split,
    steps,
    turned,
)


@triton.jit
def _kl_teacher(t, s, view, kl, wide: tl.constexpr):
    """Return p·(x − Σ p x), divided by T at last; 0 where t = −∞, NaN elsewhere where KL is ∞."""
    kind = tl.float64 if wide else tl.float32
    a = view.state
    p = probability(t, a.t_max, a.t_sum, view.hot, wide)
    c, c_low, left = split(a.anchor, a.anchor_low, wide)
    mean = left + view.temperature * (a.drift / a.t_sum)
    mean = tl.where(kl < float("inf"), mean, float("nan")).to(kind)
    step = clipped(steps(finite(t), finite(s), c, c_low) - mean)
    masked = tl.where(kl == kl, 0.0, kl).to(kind)
    return tl.where(t == -float("inf"), masked, p * step * view.hot.inverse)


@triton.jit
def _slope(
    t,  # [height, width], the teacher's logits
    s,  # [height, width], the student's logits
    view,  # View [height, 1] of the rows, the teacher's
    kl,  # [height, 1] of float64
    mean,  # [height, 1], the first of the sums that the gradient takes
    second,  # [height, 1], the second
    weight,  # [height, 1] of float64, factor of the gradient
    quick,  # bool, whether all rows went the quick way
    row,  # `Slopes` of KL, or `Looks` of Jensen-Shannon; or None
    student: tl.constexpr,  # bool, whether the gradient is in s
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    divergence: tl.constexpr,  # int, the divergence
):
    """Return the gradient in the logits of one side."""
    kind = tl.float64 if wide else tl.float32
    if row is not None and not wide and quick:
        if divergence == KL:
            slope = quick_slope(t, s, row, view.hot, student)
        else:
            slope = quick_js_slope(t, s, row, mean, weight, view.hot, student)
    elif divergence == KL:
        slope = falling(t, s, view, wide) if student else _kl_teacher(t, s, view, kl, wide)
        slope = weight.to(kind) * slope
    else:
        if student:
            own, other, view = s, t, turned(view)
        else:
            own, other = t, s
        if divergence == JS:
            # The mean of log(p/m) is less its value at the anchor.
            p, ell = mixture_rise(own, other, view, wide, shannon=True)
            slope = p * (ell - mean)
        else:
            slope = slopes(own, other, view, mean, second, wide, divergence)
        slope = weight.to(kind) * slope
    return slope


@triton.jit
def _write(out, strides, row, inner, columns, slope, kept, mask):
    """Write a tile of a gradient, 0 in rows that are left out."""
    slope = rounded(tl.where(kept, slope, 0.0), out.dtype.element_ty)
    tl.store(out + row_offsets(row, inner, strides) + columns * strides[2], slope, mask=mask)


@triton.jit(do_not_specialize=[*UNSPECIALISED, "factor_stride"])
def gradients(
    s,  # [rows, classes], student's logits, of any strides
    t,  # [rows, classes], teacher's logits, of any strides
    s_out,  # [rows, classes], output: gradient in s; or None
    t_out,  # [rows, classes], output: gradient in t; or None
    saved,  # [rows, SAVED] of float64, constants of rows, from the forward kernels
    factors,  # [rows] or [1] of float64, gradient in each row's divergence
    keep,  # [rows] of uint8, 0 where a row is left out; or None
    temperatures,  # [rows] of float64; or None, where one temperature is all rows'
    temperature_bits,  # int, bits of that temperature as a float64
    first_bits,  # int, bits of the divergence's first number as a float64
    second_bits,  # int, of the second
    third_bits,  # int, of the third
    fourth_bits,  # int, of the fourth
    rows,  # int, number of rows
    inner,  # int, length of the second of the two axes that rows lie in
    classes,  # int, number of classes
    factor_stride,  # int, 1; or 0, where one factor is all rows'
    s_strides,  # [3], strides of s in elements: along both axes of rows, and along classes
    t_strides,  # [3], likewise of t
    s_out_strides,  # [3], of s_out
    t_out_strides,  # [3], of t_out
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    divergence: tl.constexpr,  # int, the divergence
    height: tl.constexpr,  # int, rows of a tile
    width: tl.constexpr,  # int, classes of a tile, a power of 2
    span: tl.constexpr,  # int, tiles of a program, side by side
):
    """Write the gradients that are wanted, of any divergence, in ``span`` tiles."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    there = row < rows
    kept = counting(keep, row, there)
    temperature = temperature_of(temperatures, temperature_bits, row, there)
    hot, half = heated(temperature, wide), heated(2.0 * temperature, wide)
    state = read_state(saved, row * SAVED, there)
    kl, offset, sums, quick = read_known(saved, row, there, wide)
    t_mean, s_mean, t_second, s_second = sums
    factor = tl.load(factors + row * factor_stride, mask=there, other=0.0) / temperature
    pair = pair_of(s, t, row, inner, classes, s_strides, t_strides)
    numbers = numbers_of(first_bits, second_bits, third_bits, fourth_bits)
    view = View(state, offset, numbers, temperature, hot, half)
    constants, s_weight, t_weight = None, factor, factor
    if divergence == KL:
        constants = slopes_of(state, offset, factor, temperature)
    elif divergence == JS:
        constants = looks_of(view)
        s_weight, t_weight = numbers.second * factor, numbers.first * factor
    first = tl.program_id(1).to(tl.int64) * width * span
    for start in range(first, tl.minimum(first + width * span, classes), width):
        columns = columns_from(start, width)
        inside = columns < classes
        t_tile, s_tile = load_pair(pair, columns, kept & inside, wide)
        if s_out is not None:
            slope = _slope(
                t_tile, s_tile, view, kl, s_mean, s_second, s_weight, quick, constants,
                student=True, wide=wide, divergence=divergence,
            )  # fmt: skip
            _write(s_out, s_out_strides, row, inner, columns, slope, kept, there & inside)
        if t_out is not None:
            slope = _slope(
                t_tile, s_tile, view, kl, t_mean, t_second, t_weight, quick, constants,
                student=False, wide=wide, divergence=divergence,
            )  # fmt: skip
            _write(t_out, t_out_strides, row, inner, columns, slope, kept, there & inside)
