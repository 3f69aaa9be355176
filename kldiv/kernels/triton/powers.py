"""α-divergences but Hellinger's, sums of p^α q^κ: the formulas of `kldiv.formulas.powers`.

Seen from the own side p^α q^κ is own^other_rate·other^rate: the rates are κ and α for the teacher,
α and κ for the student, whose numbers are exchanged. α ≥ ½, and κ = 1 − α may be negative: then the
divergence is infinite where a class has p > 0 = q.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kldiv.kernels.triton.elementary import NEAR, bounded, divide, exp, like, phi_ratio, total
from kldiv.kernels.triton.state import (
    FARTHEST,
    anchor_power,
    both_probabilities,
    falling,
    finite,
    from_anchor,
    log_ratio,
    origin,
)

_LEAST_32 = tl.constexpr(8 * 2.0**-126)
_LEAST_64 = tl.constexpr(8 * 2.0**-1022)
"""Probabilities below which digits are lost."""


@triton.jit
def _logarithm(logits, top, mass, hot, wide: tl.constexpr):
    """Return the logarithm of probabilities without its constant, and that."""
    kind = tl.float64 if wide else tl.float32
    part = (finite(logits) - origin(top).to(kind)) * hot.inverse
    least = like(part, -FARTHEST)
    part = tl.where((part < least) | (logits == -float("inf")), least, part)
    return part, tl.log(1.0 / mass)


@triton.jit
def _power(own, other, p, q, x, view, wide: tl.constexpr):
    """Return p^α q^κ: of the larger of p and q, or by logarithms where that underflows."""
    kind = tl.float64 if wide else tl.float32
    a, rate, other_rate = view.state, view.numbers.first, view.numbers.second
    log_own, own_constant = _logarithm(own, a.t_max, a.t_sum, view.hot, wide)
    log_other, other_constant = _logarithm(other, a.s_max, a.s_sum, view.hot, wide)
    constant = (0.5 * (other_rate * own_constant + rate * other_constant)).to(kind)
    half_rate, other_half = (0.5 * rate).to(kind), (0.5 * other_rate).to(kind)
    base = tl.where(x < 0.0, q, p)
    lost = base < like(base, _LEAST_64 if wide else _LEAST_32)
    base = tl.where(lost, 1.0, base)
    exponent = other_half * log_own + half_rate * log_other + constant
    half = exp(tl.where(lost, exponent, x * tl.where(x < 0.0, other_half, -half_rate)))
    return (base * half) * half


@triton.jit
def alpha_elements(t, s, view, wide: tl.constexpr):
    """Return the sum of the classes' terms, each of them ≥ 0."""
    kind = tl.float64 if wide else tl.float32
    p, q = both_probabilities(t, s, view, wide)
    x = log_ratio(t, s, view, wide)
    kappa = view.numbers.first
    rate = kappa.to(kind)
    near_x = bounded(x, like(x, NEAR))
    z = rate * x
    near_z = bounded(z, like(z, NEAR))
    ratio = phi_ratio(near_z)
    close = p * near_x * near_x * (phi_ratio(near_x) - rate * ratio)
    # (p^α q^κ − p)/κ, also where κ is small.
    change = _power(t, s, p, q, x, view, wide) - p
    change = tl.where(tl.abs(z) < NEAR, (p * x) * (near_z * ratio - 1.0), divide(change, rate))
    apart = falling(t, s, view, wide) - change
    widest = (1.0 / tl.maximum(tl.abs(kappa), 1.0)).to(kind)
    term = tl.where(tl.abs(x) < widest, close, apart) * (1.0 / view.numbers.second).to(kind)
    gone = tl.where(kappa < 0.0, float("inf"), term)
    gone = tl.where(t == -float("inf"), 0.0, gone)
    return total(tl.where(s == -float("inf"), gone, term))


@triton.jit
def alpha_rise(own, other, view, wide: tl.constexpr):
    """Return p, and p·(u less its value at the anchor): NaN where that is infinite."""
    kind = tl.float64 if wide else tl.float32
    rate, other_rate = view.numbers.first.to(kind), view.numbers.second.to(kind)
    p, q = both_probabilities(own, other, view, wide)
    x = log_ratio(own, other, view, wide)
    step = from_anchor(own, other, view, wide)
    scaled = p * anchor_power(view, view.numbers.first).to(kind)
    z = rate * step
    near_z = bounded(z, like(z, NEAR))
    near = scaled * step * (1.0 - near_z * phi_ratio(near_z))
    far = divide(scaled - _power(own, other, p, q, x, view, wide), rate)
    rise = tl.where(tl.abs(z) < NEAR, near, far)
    own_alone = tl.where(rate < 0.0, float("nan"), rise)
    other_alone = tl.where(other_rate < 0.0, float("nan"), tl.zeros_like(rise))
    other_alone = tl.where(other == -float("inf"), 0.0, other_alone)
    rise = tl.where(other == -float("inf"), own_alone, rise)
    return p, tl.where(own == -float("inf"), other_alone, rise)
