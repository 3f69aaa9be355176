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
    Pair,
    columns_from,
    load_pair,
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
    counting,
)
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
def _student_slope(t, s, view, factor, quick, own, wide: tl.constexpr):
    """Return the gradient of KL in the student's logits, times a factor."""
    if wide:
        slope = factor * falling(t, s, view, wide)
    elif quick:
        slope = quick_student(t, s, own, view.hot)
    else:
        slope = factor.to(tl.float32) * falling(t, s, view, wide)
    return slope


@triton.jit
def _teacher_slope(t, s, view, kl, factor, quick, own, wide: tl.constexpr):
    """Return the gradient of KL in the teacher's logits, times a factor."""
    if wide:
        slope = factor * _kl_teacher(t, s, view, kl, wide)
    elif quick:
        slope = quick_teacher(t, s, own, view.hot)
    else:
        slope = factor.to(tl.float32) * _kl_teacher(t, s, view, kl, wide)
    return slope


@triton.jit
def _js_slope(own, other, view, shift, factor, wide: tl.constexpr):
    """Return the gradient of Jensen-Shannon in ``own``, times a factor.

    ``shift`` is Σ p log(p/m), less its value at the anchor.
    """
    p, ell = mixture_rise(own, other, view, wide, shannon=True)
    return (view.numbers.first * factor).to(p.dtype) * (p * (ell - shift))


@triton.jit
def _js_student_slope(t, s, view, shift, factor, quick, looks, wide: tl.constexpr):
    """Return the gradient of Jensen-Shannon in the student's logits, times a factor."""
    if wide:
        slope = _js_slope(s, t, turned(view), shift, factor, wide)
    elif quick:
        slope = quick_js_student(t, s, looks, shift, view.numbers.second * factor, view.hot)
    else:
        slope = _js_slope(s, t, turned(view), shift, factor, wide)
    return slope


@triton.jit
def _js_teacher_slope(t, s, view, shift, factor, quick, looks, wide: tl.constexpr):
    """Return the gradient of Jensen-Shannon in the teacher's logits, times a factor."""
    if wide:
        slope = _js_slope(t, s, view, shift, factor, wide)
    elif quick:
        slope = quick_js_teacher(t, s, looks, shift, view.numbers.first * factor, view.hot)
    else:
        slope = _js_slope(t, s, view, shift, factor, wide)
    return slope


@triton.jit(do_not_specialize=[*UNSPECIALISED, "factor_stride"])
def gradients(  # noqa: PLR0915 - a branch a divergence, taken while compiling
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
    kept = counting(keep, row, there)
    temperature = temperature_of(temperatures, temperature_bits, row, there)
    hot, half = heated(temperature, wide), heated(2.0 * temperature, wide)
    a = read_state(saved, row * SAVED, there)
    kl = tl.load(saved + row * SAVED + _KL, mask=there, other=0.0)
    offset = tl.load(saved + row * SAVED + _OFFSET, mask=there, other=0.0)
    factor = tl.load(factors + row * factor_stride, mask=there, other=0.0) / temperature
    quick = tl.min(tl.load(saved + row * SAVED + _QUICK, mask=there, other=1.0)) > 0
    t_offsets = row_offsets(row, inner, t_outer, t_inner)
    s_offsets = row_offsets(row, inner, s_outer, s_inner)
    pair = Pair(s, t, s_offsets, t_offsets, s_step, t_step, classes)
    numbers = numbers_of(first_bits, second_bits, third_bits, fourth_bits)
    view = View(a, offset, numbers, temperature, hot, half)
    back = turned(view)
    if divergence == KL:
        own = slopes_of(a, offset, factor, temperature)
    else:
        s_mean = tl.load(saved + row * SAVED + _S_MEAN, mask=there, other=0.0).to(kind)
        t_mean = tl.load(saved + row * SAVED + _T_MEAN, mask=there, other=0.0).to(kind)
        s_second = tl.load(saved + row * SAVED + _S_SECOND, mask=there, other=0.0).to(kind)
        t_second = tl.load(saved + row * SAVED + _T_SECOND, mask=there, other=0.0).to(kind)
        if divergence == JS:
            looks = looks_of(view)
    first = tl.program_id(1).to(tl.int64) * width * span
    for start in range(first, tl.minimum(first + width * span, classes), width):
        columns = columns_from(start, width)
        inside = columns < classes
        t_tile, s_tile = load_pair(pair, columns, kept & inside, wide)
        if s_out is not None:
            if divergence == KL:
                slope = _student_slope(t_tile, s_tile, view, factor, quick, own, wide)
            elif divergence == JS:
                slope = _js_student_slope(t_tile, s_tile, view, s_mean, factor, quick, looks, wide)
            else:
                slope = slopes(s_tile, t_tile, back, s_mean, s_second, wide, divergence)
                slope = factor.to(kind) * slope
            place = row_offsets(row, inner, s_out_outer, s_out_inner) + columns * s_out_step
            slope = rounded(tl.where(kept, slope, 0.0), s_out.dtype.element_ty)
            tl.store(s_out + place, slope, mask=there & inside)
        if t_out is not None:
            if divergence == KL:
                slope = _teacher_slope(t_tile, s_tile, view, kl, factor, quick, own, wide)
            elif divergence == JS:
                slope = _js_teacher_slope(t_tile, s_tile, view, t_mean, factor, quick, looks, wide)
            else:
                slope = slopes(t_tile, s_tile, view, t_mean, t_second, wide, divergence)
                slope = factor.to(kind) * slope
            place = row_offsets(row, inner, t_out_outer, t_out_inner) + columns * t_out_step
            slope = rounded(tl.where(kept, slope, 0.0), t_out.dtype.element_ty)
            tl.store(t_out + place, slope, mask=there & inside)
