"""Blocks of any logits, in float32 and float64: their states and their gradients.

The formulas are those of `kldiv.formulas.state` and `kldiv.formulas.logits`, in several loops over
buffers that the first-level cache holds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kldiv.kernels.cpu.compiling import inline
from kldiv.kernels.cpu.instructions import accumulate, larger, like, select
from kldiv.kernels.cpu.memory import flush, load, sink, store
from kldiv.kernels.cpu.state import (
    ANCHOR,
    ANCHOR_LOW,
    DRIFT,
    NEAR,
    PHI,
    PIVOT,
    PIVOT_LOW,
    S_MAX,
    S_SUM,
    T_MAX,
    T_SUM,
    Y,
    difference,
    finite,
    limits,
    maximum,
    moved_pivot,
    phi_near,
    ratio_of_sums,
    student_scale,
    top,
    total,
    two_difference,
    weight,
)
from kldiv.kernels.layout import Buffer

# --- states ---------------------------------------------------------------------------------------


@inline
def clipped(x: Any, lowest: Any) -> Any:
    """Return ``x``, finite: a masked class has weight 0, and 0·∞ would be NaN."""
    x = select(x < lowest, lowest, x)
    return select(x > -lowest, -lowest, x)


@inline
def sum_of(values: Buffer, n: int) -> float:
    """Return the sum of ``n`` numbers in float64."""
    result = 0.0
    for k in range(n):
        result = accumulate(result, np.float64(values[k]))
    return result


@inline
def split(c: float, c_low: float, like_what: Any) -> Any:
    """Return a float64 double word as one of another dtype, and the remainder."""
    high = like(like_what, c)
    low = like(like_what, (c - high) + c_low)
    return high, low, ((c - high) - low) + c_low


@inline
def _survey(t: int, s: int, n: int, t_max: Any, kind: Buffer) -> tuple[Any, bool]:
    """Return the largest s where t is at its maximum, and whether a class has p > 0 = q."""
    nothing, zero, one = like(t_max, -np.inf), like(t_max, 0.0), like(t_max, 1.0)
    lowest = like(t_max, limits(kind)[0])
    # From the lowest number, not −∞: LLVM would see that it is neutral, and keep the loop scalar.
    beside, lost = lowest, zero
    for k in range(n):
        a, b = load(t, k, kind), load(s, k, kind)
        beside = larger(beside, select(a == t_max, b, lowest))
        lost = accumulate(lost, select((b == nothing) & (a > nothing), one, zero))
    return beside, lost > zero


@inline
def _weights(t: int, s: int, n: int, t_top: Any, s_top: Any, hot: Any, buffers: Buffer) -> None:
    """Fill w, v, and d as a double word."""
    kind = buffers[0]
    w, v, d, d_low = buffers[2], buffers[3], buffers[4], buffers[5]
    lowest = like(kind[0], limits(kind)[0])
    for k in range(n):
        a, b = finite(load(t, k, kind), lowest), finite(load(s, k, kind), lowest)
        high, low = two_difference(a, t_top)
        w[k] = weight(high, low, hot)
        high, low = two_difference(b, s_top)
        v[k] = weight(high, low, hot)
        high, low = two_difference(a, b)
        d[k] = high
        d_low[k] = low


@inline
def _drift(n: int, c: Any, c_low: Any, inverse: Any, buffers: Buffer) -> tuple[float, float]:
    """Return Σ w x and Σ w |x|, x = (d − c)/T."""
    w, d, d_low, out, size = buffers[2], buffers[4], buffers[5], buffers[6], buffers[7]
    lowest = like(c, limits(buffers[0])[0])
    for k in range(n):
        drift = w[k] * clipped(difference(d[k], d_low[k], c, c_low) * inverse, lowest)
        out[k] = drift
        size[k] = abs(drift)
    return sum_of(out, n), sum_of(size, n)


@inline
def _moments(n: int, c: Any, c_low: Any, inverse: Any, scale: Any, buffers: Buffer) -> Any:
    """Return Σ w (e⁻ˣ − 1) and Σ w φ(x)."""
    w, v, d, d_low, fall, phi = (
        buffers[2],
        buffers[3],
        buffers[4],
        buffers[5],
        buffers[6],
        buffers[7],
    )
    lowest, limit = like(c, limits(buffers[0])[0]), like(c, NEAR)
    for k in range(n):
        x = clipped(difference(d[k], d_low[k], c, c_low) * inverse, lowest)
        near = select(x < -limit, -limit, select(x > limit, limit, x))
        mass = w[k]
        w_near = mass * near
        # w·φ(x) within NEAR; less w·near it is w·(e⁻ˣ − 1) everywhere.
        term = select(abs(x) < limit, mass * phi_near(near), (v[k] * scale - mass) + w_near)
        fall[k] = term - w_near
        phi[k] = term + mass * (x - near)
    return sum_of(fall, n), sum_of(phi, n)


@inline
def block(t: int, s: int, n: int, temperature: float, hot: Any, buffers: Buffer, a: Buffer) -> bool:
    """Fill the state of a block; return whether a class has p > 0 = q."""
    kind = buffers[0]
    inverse = hot[0]
    t_max, s_max = maximum(t, n, kind), maximum(s, n, kind)
    t_top, s_top = like(t_max, top(t_max)), like(s_max, top(s_max))
    beside, lost = _survey(t, s, n, t_max, kind)
    _weights(t, s, n, t_top, s_top, hot, buffers)
    t_sum, s_sum = total(buffers[2], n), total(buffers[3], n)
    a[:] = 0.0
    a[T_MAX], a[S_MAX], a[T_SUM], a[S_SUM] = t_max, s_max, t_sum, s_sum
    if t_sum == 0:
        return lost
    # About d at the teacher's maximum x is exactly zero where d is constant.
    first, first_low = two_difference(t_top, beside)
    drift, _ = _drift(n, first, first_low, inverse, buffers)
    middle, middle_low = moved_pivot(
        np.float64(first), np.float64(first_low), temperature * (drift / t_sum)
    )
    mean, mean_low, _ = split(middle, middle_low, t_max)
    residual, spread = _drift(n, mean, mean_low, inverse, buffers)
    if abs(drift) > spread:  # not in the bulk of p
        a[ANCHOR], a[ANCHOR_LOW], a[DRIFT] = mean, mean_low, residual
    else:
        a[ANCHOR], a[ANCHOR_LOW], a[DRIFT] = first, first_low, drift
    if s_sum == 0:
        a[Y] = -t_sum  # e⁻ˣ is 0 everywhere
        return lost
    ratio, ratio_low = ratio_of_sums(t_max, t_sum, s_max, s_sum, temperature)
    kl = difference(middle, middle_low, ratio, ratio_low) / temperature
    c, c_low = mean, mean_low
    if not abs(kl) < 0.5:
        c, c_low, _ = split(ratio, ratio_low, t_max)
    elif abs(drift) <= 0.55 * spread:
        # A far class of little weight may carry the mean away: all others still have x = 0 here.
        c, c_low = first, first_low
    a[PIVOT], a[PIVOT_LOW] = c, c_low
    scale = student_scale(s_max, t_max, a[PIVOT], a[PIVOT_LOW], temperature)
    a[Y], a[PHI] = _moments(n, c, c_low, inverse, like(c, scale), buffers)
    return lost


# --- gradients ------------------------------------------------------------------------------------


@inline
def gradient_s(
    t: int, s: int, n: int, out: int, a: Buffer, shift: float, by: float, hot: Any, kind: Buffer
) -> None:
    """Write the student's gradient, times a factor, from the state of a row and its offset."""
    zero = like(kind[0], 0.0)
    t_top, s_top = like(zero, top(a[T_MAX])), like(zero, top(a[S_MAX]))
    t_scale, s_scale = like(zero, 1.0 / a[T_SUM]), like(zero, 1.0 / a[S_SUM])
    c, c_low, rest = split(a[PIVOT], a[PIVOT_LOW], zero)
    offset, inverse = like(zero, shift - rest * np.float64(hot[0])), hot[0]
    lowest, limit, scale = like(zero, limits(kind)[0]), like(zero, NEAR), like(zero, by)
    for k in range(n):
        a_low, b_low = finite(load(t, k, kind), lowest), finite(load(s, k, kind), lowest)
        high, low = two_difference(a_low, t_top)
        p = weight(high, low, hot) * t_scale
        high, low = two_difference(b_low, s_top)
        q = weight(high, low, hot) * s_scale
        d, d_low = two_difference(a_low, b_low)
        x = clipped(difference(d, d_low, c, c_low) * inverse, lowest) + offset
        excess = select(abs(x) < limit, p * (phi_near(x) - x), q - p)
        store(out, k, scale * excess)


@inline
def gradient_t(
    t: int, s: int, n: int, out: int, a: Buffer, kl: float, factor: float, hot: Any, kind: Buffer
) -> None:
    """Write the teacher's gradient, times a factor, from the state of a row and KL."""
    zero = like(kind[0], 0.0)
    nothing = like(zero, -np.inf)
    t_top, t_scale = like(zero, top(a[T_MAX])), like(zero, 1.0 / a[T_SUM])
    c, c_low, rest = split(a[ANCHOR], a[ANCHOR_LOW], zero)
    mean = like(zero, rest * np.float64(hot[0]) + a[DRIFT] / a[T_SUM])
    masked = like(zero, np.nan if math.isnan(kl) else 0.0)
    gap = like(zero, np.nan if math.isnan(kl) or kl == np.inf else 0.0)
    lowest, inverse, scale = like(zero, limits(kind)[0]), hot[0], like(zero, factor)
    for k in range(n):
        raw = load(t, k, kind)
        a_low, b_low = finite(raw, lowest), finite(load(s, k, kind), lowest)
        high, low = two_difference(a_low, t_top)
        p = weight(high, low, hot) * t_scale
        d, d_low = two_difference(a_low, b_low)
        x = clipped(difference(d, d_low, c, c_low) * inverse, lowest) - mean
        store(out, k, select(raw == nothing, masked, scale * (p * (x + gap))))


@inline
def zeros(table: Buffer, which: int, start: int, n: int, buffer: Buffer) -> None:
    """Write zeros: the gradient of a row that a mask drops."""
    out = sink(table, which, start, buffer)
    for k in range(n):
        store(out, k, like(buffer[0], 0.0))
    flush(table, which, start, n, buffer)
