"""Divergences from a mixture M = mP + (1 − m)Q: the formulas of `kldiv.formulas.logits`.

Their numbers are m, 1 − m, and the weights a and b of D(P‖M) and D(Q‖M).
"""

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
    total,
)
from kldiv.kernels.triton.state import both_probabilities, from_anchor, log_ratio

_DEEP = tl.constexpr(numbers.DEEP)
"""r beyond which e^(−r), for p/q, would soon underflow in float32."""

_LEAST = tl.constexpr(math.exp(-numbers.DEEP))


@triton.jit
def mixture_elements(t, s, view, wide: tl.constexpr):
    """Return the sum of the classes' terms, each of them ≥ 0."""
    kind = tl.float64 if wide else tl.float32
    numbers = view.numbers
    p, q = both_probabilities(t, s, view, wide)
    rho = tl.abs(log_ratio(t, s, view, wide))
    # Beyond 100 the smaller one counts for nothing: so a masked class needs no case of its own.
    rho = tl.where(rho > 100.0, 100.0, rho)
    first, second = numbers.first.to(kind), numbers.second.to(kind)
    of_p, of_q = numbers.third.to(kind), numbers.fourth.to(kind)
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
    log_of_other = tl.where(near, gap - g, -log_m) - rho
    close = w > -0.5
    _, w_gap = log1p_near(tl.where(close, w, 0.0))
    # (1+w) log(1+w) − w = w² − (1+w)(w − log(1+w))
    bregman = tl.where(close, w * w - (1.0 + w) * w_gap, divide(smaller, m) * log_of_other - w)
    parts = tl.where(student, of_q, of_p) * gap + tl.where(student, of_p, of_q) * m * bregman
    return total(tl.where(student, q, p) * parts)


@triton.jit
def _anchored(view, k):
    """Return θ = 1/(1 + k e^z), 1 − θ and κ = θ e^z: z = log(p/q) at the anchor, k = β/(1−β)."""
    a = view.state
    z = difference(a.anchor, a.anchor_low, a.pivot, a.pivot_low) / view.temperature + view.offset
    small = tl.exp(-tl.abs(z))
    above, below = small + k, 1.0 + k * small
    positive = z > 0
    theta = tl.where(positive, small / above, 1.0 / below)
    rest = tl.where(positive, k / above, k * small / below)
    kappa = tl.where(positive, 1.0 / above, small / below)
    return theta, rest, kappa


@triton.jit
def mixture_rise(own, other, view, wide: tl.constexpr, shannon: tl.constexpr):
    """Return p, and u less its value where d is at the anchor; of Jensen-Shannon u/a."""
    kind = tl.float64 if wide else tl.float32
    numbers = view.numbers
    theta, rest, kappa = _anchored(view, numbers.first / numbers.second)
    theta, rest, kappa = theta.to(kind), rest.to(kind), kappa.to(kind)
    p, q = both_probabilities(own, other, view, wide)
    u = from_anchor(own, other, view, wide)
    r = -log_ratio(own, other, view, wide)
    # The ratio of probabilities is right to a few u, e^r only to u·|r|.
    far = kappa * divide(q, tl.where(p > 0.0, p, 1.0)) - theta
    y = tl.where(tl.abs(u) < NEAR, theta * less(u), far)
    # log(1 + y) = log((1 − θ) + κ q/p), without overflow.
    larger = tl.where(q > p, q, p)
    larger = tl.where(larger > 0.0, larger, 1.0)
    share = divide(p, larger)
    m = rest * share + kappa * divide(q, larger)
    m = divide(tl.where(m > 0.0, m, 1.0), tl.where(share < _LEAST, like(share, _LEAST), share))
    near = (y > -0.5) & (y < 1.0)
    log_near, _ = log1p_near(tl.where(near, y, 0.0))
    change = tl.where(near, log_near, log(m) + tl.where(r > _DEEP, r - _DEEP, 0.0))
    if not shannon:
        change = _combined(change, near, y, m, theta, rest, numbers)
    nan = tl.where(view.offset == view.offset, 0.0, view.offset).to(kind)  # of a row that is NaN
    return p, nan - change


@triton.jit
def _combined(log_growth, near, y, growth, theta, rest, numbers):
    """Return how −u changes where M/p grows by 1 + y = 1/(1 − η).

    Then w = (1 − m) q/M, which was θ, grows by η(1 − θ). With k = b m/(1 − m) and
    F(w) = −w − log(1 − w) the change is a·ΔF + k·Δw. As ΔF + Δw = log(1 + y), the smaller of a and
    k multiplies the logarithm, and the rest has one sign: nothing cancels.
    """
    of_own, of_other = numbers.third, numbers.fourth * (numbers.first / numbers.second)
    both = tl.minimum(of_own, of_other)
    eta = tl.where(near, divide(y, 1.0 + y), 1.0 - divide(like(growth, 1.0), growth))
    # ΔF = (−η − log(1 − η)) + θη, of its own size however small η is.
    _, gap = log1p_near(tl.where(near, -eta, 0.0))
    rising = tl.where(near, gap + eta * theta, log_growth - rest * eta)
    change = both.to(y.dtype) * log_growth + (of_own - both).to(y.dtype) * rising
    return change + (of_other - both).to(y.dtype) * (rest * eta)
