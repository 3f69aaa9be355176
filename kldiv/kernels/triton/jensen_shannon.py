"""The classes' terms of Jensen-Shannon, and log(p/m): the formulas of `kldiv.formulas.logits`."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from kldiv.formulas import numbers
from kldiv.kernels.triton.elementary import (
    NEAR,
    difference,
    divide,
    exp,
    less,
    like,
    log,
    log1p_near,
    two_difference,
)
from kldiv.kernels.triton.state import (
    State,
    apart,
    clipped,
    finite,
    origin,
    split,
    total,
    weight,
)

_DEEP = tl.constexpr(numbers.DEEP)
"""r beyond which e^(−r), for p/q, would soon underflow in float32."""

_LEAST = tl.constexpr(math.exp(-numbers.DEEP))


@triton.jit
def student_view(a):
    """Return the state of (t, s), given that of (s, t): d, its pivot and its anchor turn round."""
    return State(
        a.s_max,
        a.s_sum,
        a.t_max,
        a.t_sum,
        -a.pivot,
        -a.pivot_low,
        a.y,
        a.phi,
        -a.s_anchor,
        -a.s_anchor_low,
        a.drift,
        a.lost,
        a.anchor,
        a.anchor_low,
    )


@triton.jit
def probability(logits, top, mass, hot, wide: tl.constexpr):
    """Return the probabilities of classes."""
    kind = tl.float64 if wide else tl.float32
    return weight(logits, origin(top).to(kind), hot) * (1.0 / mass).to(kind)


@triton.jit
def js_elements(t, s, a, offset, beta, hot, wide: tl.constexpr):
    """Return the sum of the classes' terms, each of them ≥ 0."""
    kind = tl.float64 if wide else tl.float32
    p = probability(t, a.t_max, a.t_sum, hot, wide)
    q = probability(s, a.s_max, a.s_sum, hot, wide)
    c, c_low, left = split(a.pivot, a.pivot_low, wide)
    behind = (offset - left * hot.inverse.to(tl.float64)).to(kind)
    rho = tl.abs(apart(finite(t), finite(s), c, c_low, hot) + behind)
    # Beyond 100 the smaller one counts for nothing: so a masked class needs no case of its own.
    rho = tl.where(rho > 100.0, 100.0, rho)
    first, second = beta.to(kind), (1.0 - beta).to(kind)
    student = q > p
    gamma = tl.where(student, second, first)
    rest = tl.where(student, first, second)
    smaller = exp(-rho)
    fall = less(rho)
    g = rest * fall
    m = gamma + rest * smaller  # 1 + g, right even where g is close to −1
    log_m = log(m)
    near = g > -0.5
    _, gap = log1p_near(tl.where(near, g, 0.0))
    gap = tl.where(near, gap, g - log_m)
    w = divide(gamma * fall, m)
    log_ratio = tl.where(near, gap - g, -log_m) - rho
    close = w > -0.5
    _, w_gap = log1p_near(tl.where(close, w, 0.0))
    # (1+w) log(1+w) − w = w² − (1+w)(w − log(1+w))
    bregman = tl.where(close, w * w - (1.0 + w) * w_gap, divide(smaller, m) * log_ratio - w)
    return total(tl.where(student, q, p) * (gamma * gap + rest * m * bregman))


@triton.jit
def _anchored(a, offset, k, temperature):
    """Return θ = 1/(1 + k e^z), 1 − θ and κ = θ e^z: z = log(p/q) at the anchor, k = β/(1−β)."""
    z = difference(a.anchor, a.anchor_low, a.pivot, a.pivot_low) / temperature + offset
    small = tl.exp(-tl.abs(z))
    above, below = small + k, 1.0 + k * small
    positive = z > 0
    theta = tl.where(positive, small / above, 1.0 / below)
    rest = tl.where(positive, k / above, k * small / below)
    kappa = tl.where(positive, 1.0 / above, small / below)
    return theta, rest, kappa


@triton.jit
def js_logs(own, other, a, offset, beta, rest_of_beta, temperature, hot, wide: tl.constexpr):
    """Return p, and log(p/m) less its value where d is at the anchor; ``own`` are the logits of p.

    The state ``a`` and the weights ``beta`` and ``rest_of_beta`` are those of (own, other).
    """
    kind = tl.float64 if wide else tl.float32
    theta, rest, kappa = _anchored(a, offset, beta / rest_of_beta, temperature)
    theta, rest, kappa = theta.to(kind), rest.to(kind), kappa.to(kind)
    inverse = hot.inverse.to(tl.float64)
    b, b_low, left = split(a.anchor, a.anchor_low, wide)
    b_behind = (left * inverse).to(kind)
    c, c_low, left = split(a.pivot, a.pivot_low, wide)
    behind = (offset - left * inverse).to(kind)
    p = probability(own, a.t_max, a.t_sum, hot, wide)
    q = probability(other, a.s_max, a.s_sum, hot, wide)
    d, d_low = two_difference(finite(own), finite(other))
    u = clipped(difference(b, b_low, d, d_low) * hot.inverse) + b_behind
    r = clipped(difference(c, c_low, d, d_low) * hot.inverse) - behind
    # The ratio of probabilities is right to a few u, e^r only to u·|r|.
    far = kappa * divide(q, tl.where(p > 0.0, p, 1.0)) - theta
    y = tl.where(tl.abs(u) < NEAR, theta * less(-u), far)
    # log(1 + y) = log((1 − θ) + κ q/p), without overflow.
    larger = tl.where(q > p, q, p)
    larger = tl.where(larger > 0.0, larger, 1.0)
    share = divide(p, larger)
    m = rest * share + kappa * divide(q, larger)
    m = divide(tl.where(m > 0.0, m, 1.0), tl.where(share < _LEAST, like(share, _LEAST), share))
    deep = log(m) + tl.where(r > _DEEP, r - _DEEP, 0.0)
    near = (y > -0.5) & (y < 1.0)
    log_near, _ = log1p_near(tl.where(near, y, 0.0))
    nan = tl.where(offset == offset, 0.0, offset).to(kind)  # of a row that is NaN
    return p, nan - tl.where(near, log_near, deep)


@triton.jit
def js_shift(own, other, a, offset, beta, rest_of_beta, temperature, hot, wide: tl.constexpr):
    """Return Σ p log(p/m) of classes, less its value at the anchor."""
    p, ell = js_logs(own, other, a, offset, beta, rest_of_beta, temperature, hot, wide)
    return total(p * ell)
