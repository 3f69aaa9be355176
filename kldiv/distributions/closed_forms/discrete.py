"""Discrete families; near equality they are sums of p·φ(log p/q)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kldiv.distributions.closed_forms.location import quotient
from kldiv.distributions.families import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    Multinomial,
    OneHotCategorical,
    Poisson,
)
from kldiv.distributions.masses import (
    TINY,
    classes,
    from_share,
    of_rates,
    probabilities,
    unlikely,
    unlikely_classes,
)
from kldiv.distributions.registry import infinite, register_kl
from kldiv.formulas.binet import excess
from kldiv.formulas.divergences import KullbackLeibler
from kldiv.formulas.measures import relative_entropy
from kldiv.formulas.numbers import NEAR
from kldiv.formulas.remainders import chances, ratio_phi, softplus, softplus_remainder
from kldiv.formulas.special import expm1, log1p, log_ratio, phi, phi_ratio

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(Poisson, Poisson)
def poisson(xp: Namespace, p: Poisson, q: Poisson) -> Array:
    """λ₁ φ(log λ₁/λ₂); λ₂ where λ₁ = 0."""
    return of_rates(xp, p.rate, q.rate)


@register_kl(Bernoulli, Bernoulli)
def bernoulli(xp: Namespace, p: Any, q: Any) -> Array:
    """p φ(log p/q) + (1−p) φ(log (1−p)/(1−q)); of two logits the remainder of log(1 + eˣ)."""
    if p.logits is not None and q.logits is not None:
        a, b, apart = _finite(xp, p.logits, q.logits)
        return xp.where(apart, math.inf, softplus_remainder(xp, a, b))
    (p1, p0), (q1, q0) = probabilities(xp, p), probabilities(xp, q)
    # 1 − p is rounded, p − q is not where they are close.
    change, (lost1, lost0) = p1 - q1, unlikely(xp, q)
    one = xp.ones_like(change)
    ones = from_share(xp, p1, one, q1, lost1, change)
    return ones + from_share(xp, p0, one, q0, lost0, -change)


@register_kl(Geometric, Geometric)
def geometric(xp: Namespace, p: Geometric, q: Geometric) -> Array:
    """φ(log p/q) + (1−p)/p φ(log (1−p)/(1−q))."""
    if p.logits is not None and q.logits is not None:
        return waiting_by_logits(xp, p.logits, q.logits)
    of_p, of_q = probabilities(xp, p), probabilities(xp, q)
    return waiting(xp, of_p, of_q, of_p[0] - of_q[0], unlikely(xp, q))


def waiting(
    xp: Namespace,
    p: tuple[Array, Array],
    q: tuple[Array, Array],
    change: Array,
    lost: tuple[Array | None, Array | None],
) -> Array:
    """Return the divergence of two numbers of failures before a success.

    P and Q are their chances of success and of failure, ``change`` is p₁ − q₁ and ``lost`` −log of
    Q's, where chances may be tiny.  That of two Bernoullis over p₁ has a slope in p₁ in which
    log(p₁/q₁) would cancel.
    """
    (p1, p0), (q1, q0) = p, q
    one = xp.ones_like(change)
    failures = quotient(xp, from_share(xp, p0, one, q0, lost[1], -change), p1)
    if lost[0] is None:
        return ratio_phi(xp, p1, q1, difference=change) + failures
    tiny = (q1 >= 0) & (q1 < TINY)
    near = ratio_phi(xp, p1, xp.where(tiny, p1, q1), difference=xp.where(tiny, 0.0, change))
    rare = quotient(xp, from_share(xp, p1, one, q1, lost[0], change), p1)
    return xp.where(tiny, rare, near) + failures


def _finite(xp: Namespace, a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Return logits that are finite, and where b alone is infinite, which is +∞ away.

    From ±10⁴ on P has all its mass at one outcome, in every dtype.
    """
    near, certain = xp.where(xp.isinf(a), xp.clip(a, -1e4, 1e4), a), xp.isinf(b)
    return near, xp.where(certain, near, b), certain & ((a < b) | (a > b))


def waiting_by_logits(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the same by logits of success."""
    same = xp.isinf(a) & (a == b)
    a, b, apart = _finite(xp, a, b)
    d = a - b
    close = abs(d) < 0.5
    near_d = xp.where(close, d, 0.0)
    (p1, p0), rise = chances(xp, a), expm1(xp, near_d)
    less = phi(xp, near_d) - near_d
    x = xp.where(close, log1p(xp, p0 * rise), softplus(xp, -b) - softplus(xp, -a))
    y = xp.where(close, log1p(xp, p1 * less), softplus(xp, b) - softplus(xp, a))
    near, rarer = abs(y) < NEAR, y < -NEAR
    # Odds of failure may overflow beside a y² that underflows; where their root does, y is nothing.
    most = 700.0 if a.dtype == xp.float64 else 80.0
    mild = xp.clip(y, -NEAR, NEAR)
    root = xp.exp(xp.clip(-0.5 * a, -math.inf, most)) * mild
    odds = xp.exp(-xp.where(near, 0.0, a))
    more = odds * phi(xp, xp.where(rarer, 0.0, y))  # e⁻ʸ may overflow
    some = xp.where(odds > 0, y, 0.0)
    fewer = (1.0 + odds) * chances(xp, b)[1] - odds * (1.0 - some)
    failures = xp.where(near, root * (root * phi_ratio(xp, mild)), xp.where(rarer, fewer, more))
    value = phi(xp, x) + failures
    return xp.where(same, 0.0, xp.where(apart, math.inf, value))


@register_kl(Binomial, Binomial)
def binomial(xp: Namespace, p: Binomial, q: Binomial) -> Array:
    """The Bernoulli's, times n, for equal n; +∞ for more trials than Q has.

    For fewer trials a sum over P's outcomes where both n are Python numbers, else NaN.
    """
    n, m = p.total_count, q.total_count
    if isinstance(n, int) and isinstance(m, int) and 0 < n < m:
        return _fewer_trials(xp, p, q, n, m)
    value = times(xp, n, bernoulli(xp, p, q))
    (p1, p0), (q1, q0) = probabilities(xp, p), probabilities(xp, q)
    valid = (p1 >= 0) & (p0 >= 0) & (q1 >= 0) & (q0 >= 0) & (n >= 0) & (m >= 0)
    point = valid & ((p1 == 0) | (n == 0))  # P has all its mass at 0
    none = times(xp, m, _none_of(xp, q, point))
    more = xp.where(valid, xp.where(point, none, xp.full_like(value, xp.inf)), xp.nan)
    if isinstance(n, int) and isinstance(m, int):
        return value if n == m else more
    fewer = xp.where(point, none, xp.nan)
    return xp.where(n == m, value, xp.where(n > m, more, fewer))


def _none_of(xp: Namespace, q: Binomial, asked: Array) -> Array:
    """Return −log of the chance of no success in a trial where asked, else 0."""
    if q.logits is not None:
        return softplus(xp, xp.where(asked, q.logits, -math.inf))
    probs = xp.where(asked, q.probs, 0.0)
    return -log1p(xp, -probs)  # 1 − q is rounded


def times(xp: Namespace, n: int | Array, value: Array) -> Array:
    """Return n times a divergence: 0 of no draws, also where it is +∞, and NaN of fewer."""
    if isinstance(n, int) and n > 0:
        return n * value
    n = n + xp.zeros_like(value)
    some = n * xp.where((n > 0) | xp.isnan(value), value, 0.0)
    return xp.where(n >= 0, some, math.nan)


_POINTS = 216
"""How many outcomes on either side of the mean are summed: 18 standard deviations, 12 points each.

A sum over a smooth bell is as good in strides of a twelfth of its width as over every outcome.
"""


_BEYOND = 64
"""How many outcomes beyond P's trials are summed: more have no mass where P and Q are close."""


_FEW = 4
"""Up to how many successes masses are products: of small means they are nearly all of the value,
and an exponential of their logarithm would be off by as many units as that is large."""


def _fewer_trials(xp: Namespace, p: Binomial, q: Binomial, n: int, m: int) -> Array:
    """Return Σ P(k) log(P(k)/Q(k)) for n < m, by logarithms of Γ without the terms that cancel.

    With S(x) = log x! − x log x + x, in strides about P's mean, each term is P(k) times
    k log(np/mq) + (n − k) log((m − k)np₀/((n − k)mq₀)) + (m − n) log((m − k)/(mq₀))
    + S(n) − S(m) + S(m − k) − S(n − k); of a few successes, of their factors instead.
    """
    (p1, p0), (q1, q0) = (xp.broadcast_arrays(*probabilities(xp, d)) for d in (p, q))
    p1, p0, q1, q0 = xp.broadcast_arrays(p1, p0, q1, q0)
    point = p1 == 0
    none = m * _none_of(xp, q, point)  # P is a point mass at 0
    inside = (p1 > 0) & (p1 <= 1) & (q1 > 0) & (q0 > 0)
    valid = (p1 >= 0) & (p1 <= 1) & (q1 >= 0) & (q1 <= 1)
    p1, q1 = (xp.where(inside, x, 0.5)[..., None] for x in (p1, q1))
    p0, q0 = (xp.where(inside, x, 0.5)[..., None] for x in (p0, q0))
    more, trials = float(m - n), xp.full_like(p1, float(n))
    center = xp.floor(n * p1)
    stride = xp.floor(xp.sqrt(n * p1 * p0) / 12.0)
    stride = xp.where(stride > 1.0, stride, 1.0)
    points = min(n, _POINTS)
    ones = xp.broadcast_to(xp.ones_like(p1), (*p1.shape[:-1], 2 * points + 1))
    steps = stride * (xp.cumulative_sum(ones, axis=-1) - (points + 1.0))
    k, rest = center + steps, (trials - center) - steps
    possible = (k >= 0) & (rest >= 0)
    k, rest = xp.where(possible, k, 0.0), xp.where(possible, rest, trials)
    longer = rest + more
    off = xp.where(possible, (center - n * p1) + steps, -n * p1)
    mass = xp.where(possible, stride * _mass(xp, k, rest, trials, p1, p0, off), 0.0)
    closer = p1 - q1
    up = log_ratio(xp, n * p1, m * q1, n * closer - more * q1)
    last = xp.where(p0 > 0, p0, 1.0)  # of p = 1 only k = n has mass
    down = log_ratio(xp, m * q0, n * last, more * q0 + n * closer)
    some = xp.where(rest > 0, rest, 1.0)
    terms = k * up + rest * (log_ratio(xp, some + more, some, some * 0.0 + more) - down)
    terms = terms + more * log_ratio(xp, longer, m * q0)
    ends = excess(xp, trials) - excess(xp, trials + more)
    terms = terms + (ends + (excess(xp, longer) - excess(xp, rest)))
    terms = xp.where(k <= _FEW, _ratio_of_few(xp, k, rest, (n, p1, last), (m, q1, q0)), terms)
    value = xp.sum(mass * terms, axis=-1) / xp.sum(mass, axis=-1)

    # Close to each other it is what φ(log P/Q) sums to, and Q's mass beyond P's trials.  Where P/Q
    # is far from 1 Q's own mass is taken, as e^(−log P/Q) has no slope in P.
    like = abs(terms) < 1.0
    here = mass * phi(xp, xp.where(like, terms, 0.0))
    taken = xp.where(possible, stride * _mass(xp, k, longer, trials + more, q1, q0), 0.0)
    here = xp.where(like, here, mass * (xp.where(like, 0.0, terms) - 1.0) + taken)
    some = min(m - n, _BEYOND)
    k = n + xp.cumulative_sum(xp.broadcast_to(ones[..., :1], (*ones.shape[:-1], some)), axis=-1)
    beyond = _mass(xp, k, (trials + more) - k, trials + more, q1, q0)
    near = xp.sum(here, axis=-1) + xp.sum(beyond, axis=-1)
    value = xp.where(value < 0.5, near, value)
    edge = xp.where(valid, xp.where(point, none, xp.full_like(none, xp.inf)), xp.nan)
    return xp.where(inside, value, edge)


def _ratio_of_few(
    xp: Namespace, k: Array, rest: Array, p: tuple[int, Array, Array], q: tuple[int, Array, Array]
) -> Array:
    """Return log(P(k)/Q(k)) for k up to `_FEW`, given trials and probabilities of both."""
    (n, p1, p0), (m, q1, q0) = p, q
    more, closer = float(m - n), p1 - q1
    value = rest * log_ratio(xp, p0, q0, -closer)
    value = value - more * log_ratio(xp, q0, xp.ones_like(q0), -q1)
    for j in range(min(n, _FEW)):
        up = log_ratio(xp, (n - j) * p1, (m - j) * q1, (n - j) * closer - more * q1)
        value = value + xp.where(k > j, up, 0.0)
    return value


def _mass(
    xp: Namespace, k: Array, rest: Array, n: Array, p1: Array, p0: Array, off: Array | None = None
) -> Array:
    """Return the mass of k successes and the rest failures in n trials; ``off`` is k − n p₁.

    It is taken by that distance (C. Loader, "Fast and accurate computation of binomial
    probabilities", 2000), up to `_FEW` successes by their factors.
    """
    exponent = relative_entropy(xp, k, n * p1, off)
    exponent = exponent + relative_entropy(xp, rest, n * p0, None if off is None else -off)
    ways = excess(xp, n) - excess(xp, k) - excess(xp, rest)
    return xp.where(k <= _FEW, _mass_of_few(xp, k, rest, p1, p0), xp.exp(ways - exponent))


def _mass_of_few(xp: Namespace, k: Array, rest: Array, p1: Array, p0: Array) -> Array:
    """Return the mass of k successes and the rest failures, for k up to `_FEW`."""
    fails = p0 > 0
    one = xp.ones_like(p0)
    mass = xp.exp(rest * log_ratio(xp, xp.where(fails, p0, 1.0), one, xp.where(fails, -p1, 0.0)))
    mass = xp.where(fails | (rest == 0), mass, 0.0)
    for j in range(_FEW):
        mass = mass * xp.where(k > j, (k + rest - j) * p1 / (j + 1.0), 1.0)
    return mass


@register_kl(Bernoulli, Poisson)
def bernoulli_poisson(xp: Namespace, p: Bernoulli, q: Poisson) -> Array:
    """p φ(log p/λ) + (1−p) φ(log(1−p)): log k! is 0 at 0 and 1."""
    p1, p0 = probabilities(xp, p)
    one = xp.ones_like(p0)
    return of_rates(xp, p1, q.rate) + relative_entropy(xp, p0, one, -p1)


@register_kl(Categorical, Categorical)
@register_kl(OneHotCategorical, OneHotCategorical)
def categorical(xp: Namespace, p: Any, q: Any) -> Array:
    """Σ p φ(log p/q) of probabilities, the logits' exact divergence of logits."""
    if p.logits is not None and q.logits is not None:
        s, t = xp.broadcast_arrays(q.logits, p.logits)
        return KullbackLeibler().of_rows(xp, s, t, 1.0)[..., 0]
    shares, others = xp.broadcast_arrays(classes(xp, p), classes(xp, q))
    terms = from_share(xp, shares, xp.ones_like(shares), others, unlikely_classes(xp, q))
    return xp.sum(terms, axis=-1)


@register_kl(Multinomial, Multinomial)
def multinomial(xp: Namespace, p: Multinomial, q: Multinomial) -> Array:
    """The Categorical's, times n; +∞ where n differs, as no outcome is shared."""
    n, m = p.total_count, q.total_count
    value = times(xp, n, categorical(xp, p, q))
    if isinstance(n, int) and isinstance(m, int):
        return value if n == m else infinite(xp, p, q)
    return xp.where(n == m, value, infinite(xp, p, q))
