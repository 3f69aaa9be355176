r"""Divergences of logits class by class: the second reading, given the constants of the rows.

Every function takes a block of classes (all of them, or any part) and the constants of its rows
that `kldiv.formulas.state.finish` returns, a `Side`; those that sum return the block's share.  p
and q are softmax(t/T) and softmax(s/T); gradients are those in the given logits, 1/T included.

KL needs one state, that of (s, t).  With r = log(q/p) and x = (t − s)/T,

    ∂KL/∂s = (q − p)/T = p·expm1(r)/T         ∂KL/∂t = p·(x − Σ p x)/T

Every f-divergence D = Σ p g(ℓ), ℓ = log(p/q) and g(0) = g′(0) = 0, has gradients of one form,

    ∂D/∂t = p·(u − Σ p u)/T,  u = g + g′         ∂D/∂s = q·(v − Σ q v)/T,  v = −e^ℓ g′

which have the curvature h = p u′(ℓ) = −q v′(ℓ) in common.  Exchanging the two sides
exchanges u and v: so both gradients are one function, of the side that moves (``own``) and the
``other``, with the state of (other, own): (s, t) for the teacher, (t, s) for the student.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from kldiv.formulas.numbers import DEEP, DEEP_32, DEEP_LARGE, DEEPEST, EIGHTH, LARGE, NEAR
from kldiv.formulas.special import (
    difference,
    expm1,
    expm1_near,
    log1p,
    log1p_gap,
    phi_near,
    total,
    two_difference,
    two_sum,
)
from kldiv.formulas.state import (
    at_least,
    differences,
    exp_of_rows,
    over,
    steps_from,
    tempered,
    weights_of,
)

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace
    from kldiv.formulas.state import Logits, Rows, Temperature


class Side(NamedTuple):
    """A block as seen from the side of t; from the other one s and t change places."""

    xp: Namespace
    s: Array
    t: Array
    rows: Rows
    """The constants of the state of (s, t)."""
    temperature: Temperature = 1.0


class Slopes(NamedTuple):
    """T times both gradients of a block."""

    t: Array
    s: Array
    both: Array
    """Their sum for every class, right where p is near q."""

    @property
    def swapped(self) -> Slopes:
        """The same with P and Q exchanged."""
        return Slopes(self.s, self.t, self.both)


# --- Kullback–Leibler -----------------------------------------------------------------------------


def grad_input(side: Side) -> Array:
    """Return ∂KL/∂s of a block, finite where KL is ∞ too."""
    return over(_excess(side), side.temperature)


def grad_target(side: Side) -> Array:
    """Return ∂KL/∂t of a block: 0 where t = −∞, and NaN elsewhere where a class has p > 0 = q."""
    return over(over(_slope(side), side.temperature), EIGHTH * side.temperature)


def kl_slopes(side: Side) -> Slopes:
    """Return T times both gradients of KL."""
    xp, rows, p, r = side.xp, side.rows, own(side), log_ratio(side)
    both = p * (phi_near(xp, xp.clip(-r, -NEAR, NEAR)) - rows.kl)
    return Slopes(over(_slope(side), EIGHTH * side.temperature), _excess(side), both)


def _excess(side: Side) -> Array:
    """Return q − p: by p·(eʳ − 1) where they are close."""
    xp, p, q, r = side.xp, own(side), other(side), log_ratio(side)
    return xp.where(abs(r) < NEAR, p * expm1_near(xp, xp.clip(r, -NEAR, NEAR)), q - p)


def _slope(side: Side) -> Array:
    """Return p·(d − Σ p d), in eighths: over T at last, as d/T may overflow where that does not."""
    xp, s, t, rows, _ = side
    steps = difference(*differences(xp, s, t), rows.anchor, rows.anchor_low)
    # 0·d would be NaN where a gap makes the row NaN; a row that is NaN as a whole stays so.
    return xp.where(t == -xp.inf, 0.0 * rows.offset, own(side) * (steps - rows.mean))


# --- any f-divergence -----------------------------------------------------------------------------


def slopes_of(
    side: Side, of_t: Array, of_s: Array, terms: Array, value: Array, level: Array
) -> Slopes:
    """Return T times both gradients, given them, the classes' shares of D, D and Σ p u."""
    return Slopes(of_t, of_s, (terms - other(side) * value) + _excess(side) * level)


def temperature_share(side: Side, slopes: Slopes) -> Array:
    r"""Return a block's share of −T ∂D/∂T.

    With a = (t − max t)/T and b = (s − max s)/T it is Σ (G_t a + G_s b), G the gradients at T = 1.
    For p near q these nearly cancel, class by class, down to the size of D itself, as does
    G_t (a − b) + (G_t + G_s) b, where nothing cancels.  Far apart, where D may be at its bound and
    all slopes small beside it, it is the other way round.
    """
    xp, (a, b, apart, near) = side.xp, _along(side)
    of_t, of_s, both = slopes
    return total(xp, xp.where(near, of_t * apart + both * b, of_t * a + of_s * b))


def temperature_bend(side: Side, slopes: Slopes, curvature: Array) -> Array:
    r"""Return the second derivative of D along (s, t)/T, of whole rows.

    With α = b − Σ q b, β = a − Σ p a and h the curvature it is Σ G_t β² + G_s α² + h (β − α)².
    """
    xp, (a, b, apart, near) = side.xp, _along(side)
    in_t, in_s, both = slopes
    p, q = own(side), other(side)
    shift = total(xp, xp.where(near, p * apart - _excess(side) * b, p * a - q * b))
    of_t, of_s, step = a - total(xp, p * a), b - total(xp, q * b), apart - shift
    close = (in_t * step) * (of_t + of_s) + (both * of_s) * of_s
    far = (in_t * of_t) * of_t + (in_s * of_s) * of_s
    return total(xp, xp.where(near, close, far) + (curvature * step) * step)


def _along(side: Side) -> tuple[Array, Array, Array, Array]:
    """Return a, b, a − b, and where p is near q."""
    xp, s, t, rows, temperature = side
    tops = two_difference(EIGHTH * rows.t_max, EIGHTH * rows.s_max)
    apart = tempered(xp, difference(*differences(xp, s, t), *tops), EIGHTH * temperature)
    a, b = relative(xp, t, rows.t_max, temperature), relative(xp, s, rows.s_max, temperature)
    return a, b, apart, abs(log_ratio(side)) < NEAR


def from_anchor(side: Side) -> tuple[Array, Array]:
    """Return log(p/q) at the anchor, in the bulk of p, and each class's excess over it."""
    xp, s, t, rows, temperature = side
    steps = difference(*differences(xp, s, t), rows.anchor, rows.anchor_low)
    return anchor_log(xp, rows, temperature), tempered(xp, steps, EIGHTH * temperature)


def anchor_log(xp: Namespace, rows: Rows, temperature: Temperature) -> Array:
    """Return log(p/q) at the anchor."""
    z = difference(rows.anchor, rows.anchor_low, rows.pivot, rows.pivot_low)
    return tempered(xp, z, EIGHTH * temperature) + rows.offset


def anchor_power(xp: Namespace, rows: Rows, rate: float, temperature: Temperature) -> Array:
    """Return (other/own)^rate at the anchor, to a few u beside the rounding of rate."""
    z, z_low = _anchor_over_pivot(rows)
    unit = EIGHTH * temperature
    # Beyond the square root of the largest number the power is as it comes.
    large = -rate * z > 0.5 * math.log(float(xp.finfo(z.dtype).max)) * unit
    near = exp_of_rows(
        xp, xp.where(large, 0.0, -rate * z), xp.where(large, 0.0, -rate * z_low), unit
    )
    power = xp.where(large, xp.exp(tempered(xp, -rate * z, unit)), near)
    return power * xp.exp(-rate * rows.offset)


def _anchor_over_pivot(rows: Rows) -> tuple[Array, Array]:
    """Return the anchor less the pivot, in eighths, as a double word."""
    high, low = two_difference(rows.anchor, rows.pivot)
    # Added anew: where both are large, the low word is not small beside the high one.
    return two_sum(high, low + (rows.anchor_low - rows.pivot_low))


# --- mixtures -------------------------------------------------------------------------------------


class Mix(NamedTuple):
    """The divergence a·D(P‖M) + b·D(Q‖M), M = mP + (1 − m)Q, 0 < m < 1."""

    m: Array | float
    """An array has a number for each row: then it is a Jensen-Shannon divergence, a = m."""
    rest: Array | float
    """1 − m, given apart: a difference from 1 loses the last digits of the smaller."""
    a: Array | float
    b: Array | float

    @property
    def even(self) -> bool:
        """Whether P and Q count alike; never for weights of each row."""
        return isinstance(self.m, int | float) and self == self.swapped

    @property
    def swapped(self) -> Mix:
        """The same with P and Q exchanged."""
        return Mix(self.rest, self.m, self.b, self.a)


def mixture_terms(side: Side, mix: Mix) -> Array:
    r"""Return elements that are all ≥ 0 and sum to the divergence.

    Of p and q take the larger as the base, γ its share of M and ω the weight of its divergence, and
    write the other, of weight ω′, as base·e^(−ρ), ρ ≥ 0.  With a = e^(−ρ) − 1, g = (1−γ)a and
    w = γa/(1+g), which are M/base − 1 and the other/M − 1,

        ω base (g − log(1+g)) + ω′ base (1+g) ((1+w) log(1+w) − w)

    This is ω base log(base/M) + ω′ base e^(−ρ) log(1+w), but for multiples of Σ p − Σ q = 0.
    """
    xp, p, q = side.xp, own(side), other(side)
    # Beyond 100 the smaller one counts for nothing: so a masked class needs no case of its own.
    rho = xp.clip(abs(log_ratio(side)), 0.0, 100.0)
    gamma: Array | float
    gamma, rest, of_base, of_other = mix
    is_number = isinstance(gamma, int | float)
    if not mix.even:
        student = q > p
        gamma, rest, of_base, of_other = (
            xp.where(student, of_q, xp.full_like(p, of_p) if is_number else of_p)
            for of_p, of_q in zip(mix, mix.swapped, strict=True)
        )
    smaller = xp.exp(-rho)
    a = xp.where(rho < NEAR, expm1_near(xp, -xp.clip(rho, 0.0, NEAR)), smaller - 1.0)
    g = rest * a
    m = gamma + rest * smaller  # 1 + g, right even where g is close to −1
    log_m = xp.log(m)
    near = g > -0.5
    gap = xp.where(near, log1p_gap(xp, g), g - log_m)
    w = gamma * a / m
    ratio = smaller / m  # 1 + w
    log = xp.where(near, gap - g, -log_m) - rho  # log(1+w)
    # (1+w) log(1+w) − w = w² − (1+w)(w − log(1+w))
    bregman = xp.where(w > -0.5, w * w - (1.0 + w) * log1p_gap(xp, w), ratio * log - w)
    return xp.maximum(p, q) * (of_base * gap + of_other * m * bregman)


def mixture_rise(side: Side, mix: Mix) -> tuple[Array, Array]:
    r"""Return p, and u less its value where d is at the anchor; for the student q and v.

    u is a·log(p/M) − m(a p + b q)/M, but for a constant.  A gradient is p·(u − its mean), and where
    p and q have little in common u is nearly constant.  About an anchor in the bulk of p that
    constant is gone.  With θ = (1−m) q/M and κ = θ p/q at the anchor and x = (anchor − d)/T, from
    there M/p grows by the factor 1 + y, y = θ expm1(x) = κ q/p − θ.  For the student ``mix`` is
    swapped.
    """
    xp, s, t, rows, temperature = side
    theta, rest, kappa = _mixture_anchor(xp, rows, mix, temperature)
    p, q = own(side), other(side)
    d, unit = differences(xp, s, t), EIGHTH * temperature
    u = tempered(xp, difference(rows.anchor, rows.anchor_low, *d), unit)
    r = tempered(xp, difference(rows.pivot, rows.pivot_low, *d), unit) - rows.offset
    # The ratio of probabilities is right to a few u, e^r only to u·|r|.
    near = theta * expm1_near(xp, xp.clip(u, -NEAR, NEAR))
    # Not where q/p is large: its slope, in a second derivative, may overflow.
    alike = kappa * q < 4.0 * p
    y = xp.where(abs(u) < NEAR, near, kappa * (q / xp.where(alike, p, 1.0)) - theta)
    # log(1 + y) = log((1 − θ) + κ q/p), without overflow: below e^(−deep) p/q gives way to r.
    larger = xp.maximum(p, q)
    larger = xp.where(larger > 0, larger, 1.0)
    share = p / larger
    m = rest * share + kappa * (q / larger)
    deep = DEEP if m.dtype == xp.float64 else DEEP_32
    deep = xp.where(kappa > LARGE, DEEP_LARGE, xp.full_like(kappa, deep))
    m = xp.where(m > 0, m, 1.0) / xp.maximum(share, xp.exp(-deep))
    far = xp.log(m) + xp.clip(r - deep, 0.0, DEEPEST)
    close = (y > -0.5) & (y < 1.0) & (alike | (abs(u) < NEAR))
    y = xp.where(close, y, 0.0)
    return p, _combined(xp, mix, (theta, rest), close, y, (m, far))


def mixture_level(xp: Namespace, rows: Rows, mix: Mix, temperature: Temperature) -> Array:
    """Return u at the anchor of (s, t), u being 0 for p = q."""
    z = xp.clip(-anchor_log(xp, rows, temperature), -80.0, 80.0)
    y, m = mix.rest * expm1(xp, z), mix.m + mix.rest * xp.exp(z)  # y and 1 + y
    close = (y > -0.5) & (y < 1.0)
    return _combined(xp, mix, (mix.rest, mix.m), close, y, (m, xp.log(m)))


def mixture_curvature(xp: Namespace, p: Array, q: Array, mix: Mix) -> Array:
    """Return p u′(ℓ) = (p/M)·(q/M)·(a (1−m)² q + b m² p)."""
    m = mix.m * p + mix.rest * q
    m = xp.where(m > 0, m, 1.0)
    return (mix.a * mix.rest**2 * (q / m) + mix.b * mix.m**2 * (p / m)) * (p * (q / m))


def _combined(
    xp: Namespace,
    mix: Mix,
    theta: tuple[Array | float, Array | float],
    close: Array,
    y: Array,
    far: tuple[Array, Array],
) -> Array:
    r"""Return how u changes where M/p grows by 1 + y = 1/(1 − η); ``theta`` are θ and 1 − θ.

    Where it is not ``close`` to 1, 1 + y and its logarithm are ``far``.

    Then w = (1−m) q/M, which was θ, grows by η(1 − θ).  With k = b m/(1−m) and
    F(w) = −w − log(1 − w) the change is −a·ΔF − k·Δw.  As ΔF + Δw = log, the smaller of a and k
    multiplies the logarithm (for Jensen-Shannon that is all), and the rest has one sign: nothing
    cancels.
    """
    log = xp.where(close, log1p(xp, y), far[1])
    if not isinstance(mix.m, int | float):
        return -(mix.a * log)  # a = k: weights of each row are those of Jensen-Shannon
    # 1 + y is no less than 1 − θ, but where it is cut since p is 0.
    eta = xp.where(close, y / (1.0 + y), 1.0 - 1.0 / at_least(xp, far[0], theta[1]))
    a, k = mix.a, mix.b * mix.m / mix.rest
    both = min(a, k)
    change = both * log
    if a > k:
        # ΔF = (−η − log(1 − η)) + θη, of its own size however small η is.
        gap = log1p_gap(xp, xp.where(close, -eta, 0.0)) + eta * theta[0]
        change = change + (a - k) * xp.where(close, gap, log - theta[1] * eta)
    elif k > a:
        change = change + (k - a) * (theta[1] * eta)
    return -change


def _mixture_anchor(
    xp: Namespace, rows: Rows, mix: Mix, temperature: Temperature
) -> tuple[Array, Array, Array]:
    """Return θ = 1/(1 + k e^z), 1 − θ and κ = θ e^z: z = log(p/q) at the anchor, k = m/(1−m)."""
    k = mix.m / mix.rest
    z, z_low = _anchor_over_pivot(rows)
    positive = z > 0
    # Not abs(z), which has no slope where the anchor is the pivot.
    less, less_low = (xp.where(positive, -each, each) for each in (z, z_low))
    small = exp_of_rows(xp, less, less_low, EIGHTH * temperature)
    small = small * xp.exp(xp.where(positive, -rows.offset, rows.offset))  # e^(−|z|)
    above, below = small + k, 1.0 + k * small
    theta = xp.where(positive, small / above, 1.0 / below)
    rest = xp.where(positive, k / above, k * small / below)
    kappa = xp.where(positive, 1.0 / above, small / below)
    return theta, rest, kappa


# --- pieces ---------------------------------------------------------------------------------------


def own(side: Side) -> Array:
    """Return p."""
    return weights_of(side.xp, side.t, side.rows.t_max, side.temperature) * side.rows.t_scale


def other(side: Side) -> Array:
    """Return q."""
    return weights_of(side.xp, side.s, side.rows.s_max, side.temperature) * side.rows.s_scale


def relative(xp: Namespace, logits: Logits, top: Array, temperature: Temperature) -> Array:
    """Return (logits − top)/T, finite."""
    return tempered(xp, steps_from(xp, logits, top), EIGHTH * temperature)


def log_ratio(side: Side) -> Array:
    """Return r = log(q/p); huge, but finite, where one of them is 0."""
    xp, s, t, rows, temperature = side
    apart = difference(rows.pivot, rows.pivot_low, *differences(xp, s, t))
    return tempered(xp, apart, EIGHTH * temperature) - rows.offset
