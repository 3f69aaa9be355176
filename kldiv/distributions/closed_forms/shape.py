"""Families on an interval or a circle with themselves: Beta, ContinuousBernoulli, VonMises, …."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from kldiv.distributions.closed_forms.edges import at_edges, inside
from kldiv.distributions.families import (
    Beta,
    ContinuousBernoulli,
    Dirichlet,
    Kumaraswamy,
    VonMises,
)
from kldiv.distributions.masses import probabilities
from kldiv.distributions.registry import register_kl
from kldiv.formulas.circle import (
    SMALL,
    TINY,
    cosine_variance,
    decayed_bessel,
    mean_cosine,
    small_log_bessel,
    tiny_excess,
)
from kldiv.formulas.measures import relative_entropy
from kldiv.formulas.remainders import (
    gamma_excess,
    gamma_excess_gap,
    integrated_remainder,
    ratio_phi,
)
from kldiv.formulas.special import expm1, log_ratio, polynomial

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(Dirichlet, Dirichlet)
def dirichlet(xp: Namespace, p: Dirichlet, q: Dirichlet) -> Array:
    """B·D(β/B‖α/A) + Σ E(αᵢ → βᵢ) − E(A → B), E the remainder of log Γ(x) − x log x + x."""
    return of_concentrations(xp, p.concentration, q.concentration)


def of_concentrations(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the divergence of two Dirichlets of these concentrations."""
    a, b = xp.broadcast_arrays(a, b)
    own = gamma_excess(xp, a, b, b - a)
    # Sums may be beyond the largest number, beside which small concentrations are nothing.
    large = xp.sum(a, axis=-1, keepdims=True) + xp.sum(b, axis=-1, keepdims=True) == math.inf
    unit = xp.where(large, 0.5 ** (a.shape[-1].bit_length() + 1), 1.0)
    a, b = unit * a, unit * b
    change = b - a
    total_a, total_b = (xp.sum(x, axis=-1, keepdims=True) for x in (a, b))
    total_change = xp.sum(change, axis=-1, keepdims=True)
    # The largest concentration may be all of A but little: what it adds is a difference.  That of
    # another one may be all of B, whose slope it then shares.
    main = _largest(xp, a)
    second = _largest(xp, xp.where(main, -1.0, b)) & ~main
    share = a / total_a
    moved, expected = share * total_change, share * total_b
    close = abs(change) + abs(moved) < b + expected
    shift = xp.where(close, change - moved, b - expected)
    shift = xp.where(main, -xp.sum(xp.where(main, 0.0, shift), axis=-1, keepdims=True), shift)
    spread = xp.sum(relative_entropy(xp, b, expected, shift), axis=-1) / unit[..., 0]
    parts = [
        [xp.sum(xp.where(chosen, x, 0.0), axis=-1) for x in (a, b, change)]
        for chosen in (main, second, ~(main | second))
    ]
    own = xp.where(main | second, 0.0, own)
    return spread + xp.sum(own, axis=-1) + gamma_excess_gap(xp, *parts)


def _largest(xp: Namespace, x: Array) -> Array:
    """Return where the largest is along the last axis, the first of several."""
    largest = x == xp.max(x, axis=-1, keepdims=True)
    return largest & (xp.cumulative_sum(xp.astype(largest, x.dtype), axis=-1) == 1.0)


@register_kl(Beta, Beta)
def beta(xp: Namespace, p: Beta, q: Beta) -> Array:
    """The Dirichlet's, of two concentrations."""
    parts = [
        xp.stack(xp.broadcast_arrays(d.concentration1, d.concentration0), axis=-1) for d in (p, q)
    ]
    return of_concentrations(xp, *parts)


@register_kl(Kumaraswamy, Kumaraswamy)
def kumaraswamy(xp: Namespace, p: Kumaraswamy, q: Kumaraswamy) -> Array:
    """φ(log b₁/b₂) for equal a; NaN for others, which have no closed form."""
    value = ratio_phi(xp, p.concentration0, q.concentration0)
    same = (p.concentration1 == q.concentration1) & (p.concentration1 > 0)
    return xp.where(same, value, xp.nan)


def natural(xp: Namespace, d: ContinuousBernoulli) -> Array:
    """Return the logits."""
    if d.logits is not None:
        return d.logits
    p1, p0 = probabilities(xp, d)
    return log_ratio(xp, p1, p0, p1 - p0)


def _bernoulli_numbers(most: int) -> list[Fraction]:
    found = [Fraction(1)]
    for m in range(1, most + 1):
        total = sum((math.comb(m + 1, k) * found[k] for k in range(m)), Fraction(0))
        found.append(-total / (m + 1))
    return found


# 1/x² − 1/(4 sinh²(x/2)) = Σ B₂ₙ (2n − 1)/(2n)! x^(2n − 2), right to 1e-18 for |x| below 2.5.
_EVEN = {n: number / math.factorial(n) for n, number in enumerate(_bernoulli_numbers(48))}
_CURVATURE = tuple(float(_EVEN[n] * (n - 1)) for n in range(2, 49, 2))
# ½ coth(x/2) − 1/x = Σ B₂ₙ/(2n)! x^(2n − 1), likewise.
_MEAN = tuple(float(_EVEN[n]) for n in range(2, 49, 2))
# log(sinh(x/2)/(x/2)) = Σ B₂ₙ/(2n (2n)!) x^(2n).
_LOGARITHM = tuple(float(_EVEN[n] / n) for n in range(2, 49, 2))
_SMALL = 2.5


def magnitude(xp: Namespace, x: Array) -> Array:
    """Return |x| with the slope 1 at 0, where functions of x ≥ 0 then have their own slope."""
    return xp.where(x < 0, -x, x)


def curvature(xp: Namespace, x: Array) -> Array:
    """Return the variance: 1/x² − 1/(4 sinh²(x/2))."""
    small = abs(x) < _SMALL
    near = xp.where(small, x, 0.0)
    square = near * near
    series = polynomial(square, _CURVATURE)
    far = xp.where(small, 1.0, abs(x))
    decay = xp.exp(-far)
    lost = 1.0 - decay
    return xp.where(small, series, 1.0 / (far * far) - decay / (lost * lost))


def lower_mean(xp: Namespace, size: Array) -> Array:
    """Return the mean of the ContinuousBernoulli with logits −size ≤ 0: 1/size − 1/(e^size − 1)."""
    small = size < _SMALL
    near = xp.where(small, size, 0.0)
    far = xp.where(small, _SMALL, size)
    decay = xp.exp(-far)
    series = 0.5 - near * polynomial(near * near, _MEAN)
    return xp.where(small, series, 1.0 / far - decay / (1.0 - decay))


def mean(xp: Namespace, x: Array) -> Array:
    """Return the mean of a ContinuousBernoulli with logits x."""
    low = lower_mean(xp, magnitude(xp, x))
    return xp.where(x < 0, low, 1.0 - low)


def log_decay(xp: Namespace, x: Array) -> Array:
    """Return log((1 − e⁻ˣ)/x) for x > 0."""
    small = x < _SMALL
    near, far = xp.where(small, x, 0.0), xp.where(small, _SMALL, x)
    series = near * (near * polynomial(near * near, _LOGARITHM) - 0.5)
    return xp.where(small, series, xp.log(-expm1(xp, -far)) - xp.log(far))


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def continuous_bernoulli(xp: Namespace, p: ContinuousBernoulli, q: ContinuousBernoulli) -> Array:
    """The remainder of log((eˣ − 1)/x) between the logits."""
    (alive_p, valid_p, safe_p), (alive_q, valid_q, safe_q) = (inside(xp, d) for d in (p, q))
    a, b = natural(xp, safe_p), natural(xp, safe_q)
    change = b - a
    if p.probs is not None and q.probs is not None:
        more = safe_q.probs - safe_p.probs
        change = log_ratio(xp, safe_q.probs, safe_p.probs, more)
        change = change - log_ratio(xp, 1.0 - safe_q.probs, 1.0 - safe_p.probs, -more)
    value = of_logits(xp, a, b, change)
    return xp.where(alive_p & alive_q, value, at_edges(xp, p, q, valid_p & valid_q, value))


def of_logits(xp: Namespace, a: Array, b: Array, change: Array) -> Array:
    """Return the divergence of two ContinuousBernoullis of logits a and b = a + change."""
    close = abs(change) < 3.0
    step = xp.where(close, change, 0.0)
    near = integrated_remainder(xp, lambda x: curvature(xp, x), a, step)
    # Mirrored so that a ≥ 0: log((eˣ − 1)/x) is x + log((1 − e⁻ˣ)/x), and without the x for x < 0.
    mirrored = a < 0
    b = xp.where(mirrored, -b, b)
    large = (abs(a) >= 3.5) & (b >= 2.0) & (b < 2.5 * abs(a))  # beyond, slopes would cancel
    size_a, size_b = magnitude(xp, a), magnitude(xp, b)
    # Two large ones are nearly two Exponentials, of rates a and b: what is not is small.
    less_a, less_b = (xp.exp(-xp.where(large, x, 1.0)) for x in (size_a, size_b))
    rate = less_a / (1.0 - less_a)  # 1/(eᵃ − 1)
    own = log_ratio(xp, 1.0 - less_b, 1.0 - less_a, less_a - less_b)
    nearer = xp.where(mirrored, change, -change)  # |a| − b
    apart = ratio_phi(xp, size_a, size_b, difference=nearer) + own + nearer * rate
    less = log_decay(xp, size_b) - log_decay(xp, size_a)
    mixed = less + (b - size_a) * lower_mean(xp, size_a) + xp.where(b < 0, size_b, 0.0)
    return xp.where(close, near, xp.where(large, apart, mixed))


@register_kl(VonMises, VonMises)
def von_mises(xp: Namespace, p: VonMises, q: VonMises) -> Array:
    """The remainder of log I₀ from κ₁ to κ₂ + 2 κ₂ A(κ₁) sin²((μ₁ − μ₂)/2), A = I₁/I₀."""
    known, a, b = p.loc - q.loc, p.concentration, q.concentration
    alive = (a >= 0) & (b >= 0) & (a < math.inf) & (b < math.inf)
    valid = (a >= 0) & (b >= 0) & xp.isfinite(known)
    same = (a == b) & (known == 0)
    a, b = xp.where(alive, a, 1.0), xp.where(alive, b, 1.0)
    change = b - a
    close = (abs(change) < 1.0) | ((abs(change) < 0.5 * a) & (abs(change) < 0.5 * b))
    step = xp.where(close, change, 0.0)
    near = integrated_remainder(xp, lambda k: cosine_variance(xp, k), a, step)
    ratio, rest = mean_cosine(xp, a)
    far = xp.log(decayed_bessel(xp, b) / decayed_bessel(xp, a)) + change * rest
    small = small_log_bessel(xp, b) + tiny_excess(xp, a) - b * ratio
    far = xp.where((a < TINY) & (b < SMALL), small, far)
    half = xp.sin(0.5 * known)
    value = xp.where(close, near, far) + 2.0 * b * ratio * half * half
    edge = xp.where(same, 0.0, xp.full_like(value, math.inf))  # of a point, where κ is +∞
    return xp.where(alive, value, xp.where(valid, edge, math.nan))
