"""Discrete families; near equality they are sums of p·φ(log p/q)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kldiv.distributions.families import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    Multinomial,
    NegativeBinomial,
    OneHotCategorical,
    Poisson,
)
from kldiv.distributions.registry import register_kl
from kldiv.formulas.measures import relative_entropy
from kldiv.formulas.remainders import softplus_remainder
from kldiv.formulas.rows import KullbackLeibler

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(Poisson, Poisson)
def poisson(xp: Namespace, p: Poisson, q: Poisson) -> Array:
    """λ₁ φ(log λ₁/λ₂); λ₂ where λ₁ = 0."""
    return relative_entropy(xp, p.rate, q.rate)


def probabilities(xp: Namespace, d: Any) -> tuple[Array, Array]:
    """Return the probability of 1 and of 0."""
    if d.probs is not None:
        return d.probs, 1.0 - d.probs
    return 1.0 / (1.0 + xp.exp(-d.logits)), 1.0 / (1.0 + xp.exp(d.logits))


@register_kl(Bernoulli, Bernoulli)
def bernoulli(xp: Namespace, p: Any, q: Any) -> Array:
    """p φ(log p/q) + (1−p) φ(log (1−p)/(1−q)); of two logits the remainder of log(1 + eˣ)."""
    if p.logits is not None and q.logits is not None:
        return softplus_remainder(xp, p.logits, q.logits)
    (p1, p0), (q1, q0) = probabilities(xp, p), probabilities(xp, q)
    # 1 − p is rounded, p − q is not where they are close.
    change = p1 - q1
    return relative_entropy(xp, p1, q1, change) + relative_entropy(xp, p0, q0, -change)


@register_kl(Geometric, Geometric)
def geometric(xp: Namespace, p: Geometric, q: Geometric) -> Array:
    """The Bernoulli's, over p."""
    return bernoulli(xp, p, q) / probabilities(xp, p)[0]


@register_kl(NegativeBinomial, NegativeBinomial)
def negative_binomial(xp: Namespace, p: NegativeBinomial, q: NegativeBinomial) -> Array:
    """The Bernoulli's, times r/(1−p), for equal r; NaN for others, which have no closed form."""
    value = p.total_count * bernoulli(xp, p, q) / probabilities(xp, p)[1]
    return xp.where(p.total_count == q.total_count, value, xp.nan)


@register_kl(Binomial, Binomial)
def binomial(xp: Namespace, p: Binomial, q: Binomial) -> Array:
    """The Bernoulli's, times n, for equal n; +∞ for more trials than Q has.

    For fewer trials a sum over P's outcomes where both n are Python numbers, else NaN.
    """
    n, m = p.total_count, q.total_count
    if isinstance(n, int) and isinstance(m, int) and n < m:
        return _fewer_trials(xp, p, q, n, m)
    value = n * bernoulli(xp, p, q)
    (p1, _), (_, q0) = probabilities(xp, p), probabilities(xp, q)
    none = -m * xp.log(xp.where(p1 == 0, q0, 1.0))  # P is a point mass at 0
    more = xp.where(p1 == 0, none, xp.where(p1 > 0, xp.full_like(value, xp.inf), xp.nan))
    if isinstance(n, int) and isinstance(m, int):
        return value if n == m else more
    fewer = xp.where(p1 == 0, none, xp.nan)
    return xp.where(n == m, value, xp.where(n > m, more + 0.0 * value, fewer))


def _fewer_trials(xp: Namespace, p: Binomial, q: Binomial, n: int, m: int) -> Array:
    """Return n·D(Bernoulli) − (m − n) log(1 − q) − E[log of the ratio of binomial coefficients]."""
    p1, p0 = probabilities(xp, p)
    _, q0 = probabilities(xp, q)
    total = n * bernoulli(xp, p, q) - (m - n) * xp.log(q0)
    for k in range(n + 1):
        mass = math.comb(n, k) * p1**k * p0 ** (n - k)
        total = total + mass * (math.log(math.comb(n, k)) - math.log(math.comb(m, k)))
    return total


@register_kl(Bernoulli, Binomial)
@register_kl(Binomial, Bernoulli)
def one_trial(xp: Namespace, p: Any, q: Any) -> Array:
    """A Bernoulli is a Binomial with one trial."""
    p, q = (Binomial(1, d.probs, d.logits) if isinstance(d, Bernoulli) else d for d in (p, q))
    return binomial(xp, p, q)


@register_kl(Bernoulli, Poisson)
def bernoulli_poisson(xp: Namespace, p: Bernoulli, q: Poisson) -> Array:
    """p φ(log p/λ) + (1−p) φ(log(1−p)): log k! is 0 at 0 and 1."""
    p1, p0 = probabilities(xp, p)
    one = xp.ones_like(p0)
    return relative_entropy(xp, p1, q.rate) + relative_entropy(xp, p0, one, -p1)


@register_kl(Categorical, Categorical)
@register_kl(OneHotCategorical, OneHotCategorical)
def categorical(xp: Namespace, p: Any, q: Any) -> Array:
    """Σ p φ(log p/q) of probabilities, the logits' exact divergence of logits."""
    if p.logits is not None and q.logits is not None:
        s, t = xp.broadcast_arrays(q.logits, p.logits)
        return KullbackLeibler().value(xp, s, t, 1.0)[..., 0]
    return xp.sum(relative_entropy(xp, _classes(xp, p), _classes(xp, q)), axis=-1)


def _classes(xp: Namespace, d: Any) -> Array:
    if d.probs is not None:
        return d.probs
    weights = xp.exp(d.logits - xp.max(d.logits, axis=-1, keepdims=True))
    return weights / xp.sum(weights, axis=-1, keepdims=True)


@register_kl(Multinomial, Multinomial)
def multinomial(xp: Namespace, p: Multinomial, q: Multinomial) -> Array:
    """The Categorical's, times n; +∞ where n differs, as no outcome is shared."""
    n, m = p.total_count, q.total_count
    value = n * categorical(xp, p, q)
    if isinstance(n, int) and isinstance(m, int):
        return value if n == m else value * 0.0 + xp.inf
    return xp.where(n == m, value, xp.where(n != m, xp.inf, value))
