"""Kernels of the gradients of rows: one read of both logits, one write of each gradient wanted.

A program has a tile, or several rows of one, and the row's constants that the forward kernels kept;
the gradient in the result, and the divisor of a mean, come from device memory as well.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kldiv.kernels.triton.divergences import JS, KL, exchanged, numbers_of, slopes
from kldiv.kernels.triton.elementary import rounded
from kldiv.kernels.triton.mixtures import mixture_rise
from kldiv.kernels.triton.places import (
    columns_from,
    load_tile,
    read_state,
    row_offsets,
    temperature_of,
)
from kldiv.kernels.triton.quick import quick_student, quick_teacher, slopes_of
from kldiv.kernels.triton.quick_js import looks_of, quick_js_student, quick_js_teacher
from kldiv.kernels.triton.rows import (
    _KL,
    _OFFSET,
    _QUICK,
    _S_MEAN,
    _S_SECOND,
    _T_MEAN,
    _T_SECOND,
    SAVED,
    UNSPECIALISED,
)
from kldiv.kernels.triton.state import (
    clipped,
    falling,
    finite,
    heated,
    probability,
    split,
    steps,
    student_view,
)


@triton.jit
def _kl_teacher(t, s, a, kl, temperature, hot, wide: tl.constexpr):
    """Return p·(x − Σ p x), divided by T at last; 0 where t = −∞, NaN elsewhere where KL is ∞."""
    kind = tl.float64 if wide else tl.float32
    p = probability(t, a.t_max, a.t_sum, hot, wide)
    c, c_low, left = split(a.anchor, a.anchor_low, wide)
    mean = left + temperature * (a.drift / a.t_sum)
    mean = tl.where(kl < float("inf"), mean, float("nan")).to(kind)
    step = clipped(steps(finite(t), finite(s), c, c_low) - mean)
    masked = tl.where(kl == kl, 0.0, kl).to(kind)
    return tl.where(t == -float("inf"), masked, p * step * hot.inverse)


@triton.jit
def _student_slope(t, s, a, offset, factor, quick, own, hot, wide: tl.constexpr):
    """Return the gradient of KL in the student's logits, times a factor."""
    if wide:
        slope = factor * falling(t, s, a, offset, hot, wide)
    elif quick:
        slope = quick_student(t, s, own, hot)
    else:
        slope = factor.to(tl.float32) * falling(t, s, a, offset, hot, wide)
    return slope


@triton.jit
def _teacher_slope(t, s, a, kl, factor, quick, own, temperature, hot, wide: tl.constexpr):
    """Return the gradient of KL in the teacher's logits, times a factor."""
    if wide:
        slope = factor * _kl_teacher(t, s, a, kl, temperature, hot, wide)
    elif quick:
        slope = quick_teacher(t, s, own, hot)
    else:
        slope = factor.to(tl.float32) * _kl_teacher(t, s, a, kl, temperature, hot, wide)
    return slope


@triton.jit
def _js_slope(
    own,  # [height, width], logits of p
    other,  # [height, width], logits of q
    a,  # State [height, 1], of (own, other)
    offset,  # [height, 1] of float64, log(p/q) less x
    shift,  # [height, 1], Σ p log(p/m), less its value at the anchor
    factor,  # [height, 1] of float64, gradient in each row's divergence, over T
    numbers,  # Numbers, of (own, other)
    temperature,  # [height, 1] of float64
    hot,  # Heat [height, 1], constants of the temperature
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
):
    """Return the gradient of Jensen-Shannon in ``own``, times a factor."""
    p, ell = mixture_rise(own, other, a, offset, numbers, temperature, hot, wide, shannon=True)
    return (numbers.first * factor).to(p.dtype) * (p * (ell - shift))


@triton.jit
def _js_student_slope(
    t,  # [height, width], teacher's logits
    s,  # [height, width], student's logits
    a,  # State [height, 1]
    offset,  # [height, 1] of float64, log(p/q) less x
    shift,  # [height, 1], Σ q log(q/m), less its value at the anchor
    factor,  # [height, 1] of float64, gradient in each row's divergence, over T
    numbers,  # Numbers, the divergence's
    quick,  # bool, whether all rows of the tile went the quick way
    looks,  # Looks [height, 1], constants of rows that did
    temperature,  # [height, 1] of float64
    hot,  # Heat [height, 1], constants of the temperature
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
):
    """Return the gradient of Jensen-Shannon in the student's logits, times a factor."""
    view, back = student_view(a), exchanged(numbers)
    if wide:
        slope = _js_slope(s, t, view, -offset, shift, factor, back, temperature, hot, wide)
    elif quick:
        slope = quick_js_student(t, s, looks, shift, numbers.second * factor, hot)
    else:
        slope = _js_slope(s, t, view, -offset, shift, factor, back, temperature, hot, wide)
    return slope


@triton.jit
def _js_teacher_slope(
    t,  # [height, width], teacher's logits
    s,  # [height, width], student's logits
    a,  # State [height, 1]
    offset,  # [height, 1] of float64, log(p/q) less x
    shift,  # [height, 1], Σ p log(p/m), less its value at the anchor
    factor,  # [height, 1] of float64, gradient in each row's divergence, over T
    numbers,  # Numbers, the divergence's
    quick,  # bool, whether all rows of the tile went the quick way
    looks,  # Looks [height, 1], constants of rows that did
    temperature,  # [height, 1] of float64
    hot,  # Heat [height, 1], constants of the temperature
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
):
    """Return the gradient of Jensen-Shannon in the teacher's logits, times a factor."""
    if wide:
        slope = _js_slope(t, s, a, offset, shift, factor, numbers, temperature, hot, wide)
    elif quick:
        slope = quick_js_teacher(t, s, looks, shift, numbers.first * factor, hot)
    else:
        slope = _js_slope(t, s, a, offset, shift, factor, numbers, temperature, hot, wide)
    return slope


@triton.jit(do_not_specialize=[*UNSPECIALISED, "factor_stride"])
def gradients(  # noqa: C901, PLR0912, PLR0915 - a branch a divergence, taken while compiling
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
    s_outer,  # int, stride of s along the first axis of rows, in elements
    s_inner,  # int, stride of s along the second
    s_step,  # int, stride of s along classes
    t_outer,  # int, stride of t along the first axis of rows, in elements
    t_inner,  # int, stride of t along the second
    t_step,  # int, stride of t along classes
    s_out_outer,  # int, stride of s_out along the first axis of rows, in elements
    s_out_inner,  # int, stride of s_out along the second
    s_out_step,  # int, stride of s_out along classes
    t_out_outer,  # int, stride of t_out along the first axis of rows, in elements
    t_out_inner,  # int, stride of t_out along the second
    t_out_step,  # int, stride of t_out along classes
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    divergence: tl.constexpr,  # int, the divergence
    height: tl.constexpr,  # int, rows of a tile
    width: tl.constexpr,  # int, classes of a tile, a power of 2
    span: tl.constexpr,  # int, tiles of a program, side by side
):
    """Write the gradients that are wanted, of any divergence, in ``span`` tiles."""
    kind = tl.float64 if wide else tl.float32
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    there = row < rows
    kept = there
    if keep is not None:
        kept = there & (tl.load(keep + row, mask=there, other=0) != 0)
    temperature = temperature_of(temperatures, temperature_bits, row, there)
    hot = heated(temperature, wide)
    half = heated(2.0 * temperature, wide)
    a = read_state(saved, row * SAVED, there)
    view = student_view(a)
    kl = tl.load(saved + row * SAVED + _KL, mask=there, other=0.0)
    offset = tl.load(saved + row * SAVED + _OFFSET, mask=there, other=0.0)
    factor = tl.load(factors + row * factor_stride, mask=there, other=0.0) / temperature
    quick = tl.min(tl.load(saved + row * SAVED + _QUICK, mask=there, other=1.0)) > 0
    t_offsets = row_offsets(row, inner, t_outer, t_inner)
    s_offsets = row_offsets(row, inner, s_outer, s_inner)
    if divergence == KL:
        own = slopes_of(a, offset, factor, temperature)
    else:
        numbers = numbers_of(first_bits, second_bits, third_bits, fourth_bits)
        s_mean = tl.load(saved + row * SAVED + _S_MEAN, mask=there, other=0.0).to(kind)
        t_mean = tl.load(saved + row * SAVED + _T_MEAN, mask=there, other=0.0).to(kind)
        s_second = tl.load(saved + row * SAVED + _S_SECOND, mask=there, other=0.0).to(kind)
        t_second = tl.load(saved + row * SAVED + _T_SECOND, mask=there, other=0.0).to(kind)
        if divergence == JS:
            looks = looks_of(a, offset, numbers.first, temperature)
    first = tl.program_id(1).to(tl.int64) * width * span
    for start in range(first, tl.minimum(first + width * span, classes), width):
        columns = columns_from(start, width)
        inside = columns < classes
        t_tile = load_tile(t, t_offsets, columns, t_step, kept & inside, wide)
        s_tile = load_tile(s, s_offsets, columns, s_step, kept & inside, wide)
        if s_out is not None:
            if divergence == KL:
                slope = _student_slope(t_tile, s_tile, a, offset, factor, quick, own, hot, wide)
            elif divergence == JS:
                slope = _js_student_slope(
                    t_tile, s_tile, a, offset, s_mean, factor, numbers, quick, looks,
                    temperature, hot, wide,
                )  # fmt: skip
            else:
                slope = factor.to(kind) * slopes(
                    s_tile, t_tile, view, -offset, exchanged(numbers), s_mean, s_second,
                    temperature, hot, half, wide, divergence,
                )  # fmt: skip
            place = row_offsets(row, inner, s_out_outer, s_out_inner) + columns * s_out_step
            slope = rounded(tl.where(kept, slope, 0.0), s_out.dtype.element_ty)
            tl.store(s_out + place, slope, mask=there & inside)
        if t_out is not None:
            if divergence == KL:
                slope = _teacher_slope(
                    t_tile, s_tile, a, kl, factor, quick, own, temperature, hot, wide
                )
            elif divergence == JS:
                slope = _js_teacher_slope(
                    t_tile, s_tile, a, offset, t_mean, factor, numbers, quick, looks,
                    temperature, hot, wide,
                )  # fmt: skip
            else:
                slope = factor.to(kind) * slopes(
                    t_tile, s_tile, a, offset, numbers, t_mean, t_second, temperature, hot, half,
                    wide, divergence,
                )  # fmt: skip
            place = row_offsets(row, inner, t_out_outer, t_out_inner) + columns * t_out_step
            slope = rounded(tl.where(kept, slope, 0.0), t_out.dtype.element_ty)
            tl.store(t_out + place, slope, mask=there & inside)
