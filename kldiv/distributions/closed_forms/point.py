"""Point masses: −log of the mass that Q has there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution
from kldiv.distributions.closed_forms.discrete import classes, excess, of_rates, probabilities
from kldiv.distributions.registry import blank, infinite, no_closed_form, register_kl
from kldiv.distributions.supports import CONTINUOUS, DISCRETE
from kldiv.distributions.wrappers import WRAPPERS, Image
from kldiv.formulas.measures import relative_entropy
from kldiv.formulas.remainders import softplus
from kldiv.formulas.special import log1p

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace


@register_kl(f.Delta, f.Delta)
def two_points(xp: Namespace, p: f.Delta, q: f.Delta) -> Array:
    """0 where the points are the same, else +∞."""
    same = _all(xp, p.value == q.value, p.event_dim)
    value = p.log_density - q.log_density + blank(xp, p) + blank(xp, q)
    return xp.where(same, value, value + math.inf)


@register_kl(f.Delta, Distribution)
@register_kl(f.Delta, Image)
def point(xp: Namespace, p: f.Delta, q: Any) -> Array:
    """−log of the mass that Q has at the point; +∞ of a Q with a density: it has none there."""
    discrete = _discrete(q)
    if discrete is None:
        raise no_closed_form(p, q)
    if not discrete:
        return infinite(xp, p, q)
    return p.log_density + _information(xp, q, p.value, p, q)


@register_kl(Distribution, f.Delta)
@register_kl(Image, f.Delta)
def onto_point(xp: Namespace, p: Any, q: f.Delta) -> Array:
    """+∞, but 0 for a P that has all its mass at the point."""
    discrete = _discrete(p)
    if discrete is None:
        raise no_closed_form(p, q)
    if not discrete:
        return infinite(xp, p, q)
    missing = _information(xp, p, q.value, p, q)
    return xp.where(missing == 0, missing - q.log_density, missing + infinite(xp, p, q))


@register_kl(f.Poisson, f.Binomial)
@register_kl(f.NegativeBinomial, f.Binomial)
def beyond_all_trials(xp: Namespace, p: Any, q: f.Binomial) -> Array:
    """+∞, as P has mass beyond all trials; of a P with all its mass at 0 −log of Q's there."""
    apart = infinite(xp, p, q)
    if isinstance(p, f.Poisson):
        point = p.rate == 0
    else:
        never = p.logits == -math.inf if p.probs is None else p.probs == 0
        point = never | (p.total_count == 0)
    return xp.where(point, _information(xp, q, blank(xp, p), p, q), apart)


def _discrete(d: Any) -> bool | None:
    """Return whether outcomes have masses, or None where that is not known."""
    if isinstance(d, (f.Independent, *WRAPPERS)):
        return _discrete(d.base_dist)
    if isinstance(d, f.MixtureSameFamily):
        return _discrete(d.component_distribution)
    if d.support in (*DISCRETE, "categories", "one-hot", "counts"):
        return True
    return False if d.support in (*CONTINUOUS, "vectors", "simplex") else None


def _all(xp: Namespace, which: Array, axes: int) -> Array:
    return xp.all(which, axis=tuple(range(-axes, 0))) if axes else which


def _information(xp: Namespace, d: Any, x: Array, p: Any, q: Any) -> Array:
    """Return −log of the mass at x; +∞ where x is no outcome."""
    if isinstance(d, f.Independent):
        axes = d.reinterpreted_batch_ndims
        value = _information(xp, d.base_dist, x, p, q)
        return xp.sum(value, axis=tuple(range(-axes, 0))) if axes else value
    for family, information in _INFORMATION.items():
        if isinstance(d, family):
            inside, value = information(xp, d, x)
            return xp.where(inside, value, xp.where(xp.isnan(value), value, math.inf))
    raise no_closed_form(p, q)


# Where x is an outcome, and −log of its mass there.  Masses of counts by their distance from the
# mean and what Stirling's formula is off by (Loader 2000, "Fast and accurate computation of
# binomial probabilities"): nothing large cancels.


def _whole(xp: Namespace, x: Array) -> tuple[Array, Array]:
    inside = (x >= 0) & (x == xp.floor(x)) & xp.isfinite(x)
    return inside, xp.where(inside, x, 0.0 * x)


def _poisson(xp: Namespace, d: f.Poisson, x: Array) -> tuple[Array, Array]:
    inside, k = _whole(xp, x)
    return inside, of_rates(xp, k, d.rate) + excess(xp, k)


def _two_way(xp: Namespace, d: Any) -> tuple[Array, Array]:
    """Return −log of the probability of 1 and of 0."""
    if d.probs is not None:
        probs = xp.where((d.probs >= 0) & (d.probs <= 1), d.probs, math.nan)
        return -xp.log(probs), -log1p(xp, -probs)
    return softplus(xp, -d.logits), softplus(xp, d.logits)


def _bernoulli(xp: Namespace, d: f.Bernoulli, x: Array) -> tuple[Array, Array]:
    one, zero = _two_way(xp, d)
    return (x == 0) | (x == 1), xp.where(x == 1, one, zero)


def _geometric(xp: Namespace, d: f.Geometric, x: Array) -> tuple[Array, Array]:
    inside, k = _whole(xp, x)
    success, failure = _two_way(xp, d)
    return inside, success + k * xp.where(k > 0, failure, 0.0)


def _binomial(xp: Namespace, d: f.Binomial, x: Array) -> tuple[Array, Array]:
    inside, k = _whole(xp, x)
    n = d.total_count + 0.0 * k
    inside = inside & (k <= n)
    k = xp.where(inside, k, 0.0 * k)
    p1, p0 = probabilities(xp, d)
    spread = relative_entropy(xp, k, n * p1) + relative_entropy(xp, n - k, n * p0)
    return inside, spread + excess(xp, k) + excess(xp, n - k) - excess(xp, n)


def _negative_binomial(xp: Namespace, d: f.NegativeBinomial, x: Array) -> tuple[Array, Array]:
    inside, k = _whole(xp, x)
    r = d.total_count + 0.0 * k
    n = k + r
    p1, p0 = probabilities(xp, d)
    spread = relative_entropy(xp, k, n * p1) + relative_entropy(xp, r, n * p0)
    ways = excess(xp, k) + excess(xp, r) - excess(xp, n)
    return inside, spread + ways + log1p(xp, k / r)


def _categorical(xp: Namespace, d: f.Categorical, x: Array) -> tuple[Array, Array]:
    number = (d.logits if d.probs is None else d.probs).shape[-1]
    here = xp.astype(xp.arange(number), x.dtype) == x[..., None]
    return xp.any(here, axis=-1), _of_class(xp, d, here)


def _one_hot(xp: Namespace, d: f.OneHotCategorical, x: Array) -> tuple[Array, Array]:
    here = x == 1
    inside = xp.all(here | (x == 0), axis=-1) & (xp.sum(x, axis=-1) == 1)
    return inside, _of_class(xp, d, here)


def _of_class(xp: Namespace, d: Any, here: Array) -> Array:
    """Return −log of the probability of the class where ``here`` is true."""
    if d.probs is not None:
        own = xp.sum(xp.where(here, d.probs, 0.0), axis=-1)
        return -xp.log(own)
    below = d.logits - xp.max(d.logits, axis=-1, keepdims=True)
    own = xp.sum(xp.where(here, below, 0.0), axis=-1)
    weights = xp.exp(below)
    others = xp.sum(xp.where(here, 0.0, weights), axis=-1)
    return xp.where(own == 0, xp.log1p(others), xp.log(xp.sum(weights, axis=-1)) - own)


def _multinomial(xp: Namespace, d: f.Multinomial, x: Array) -> tuple[Array, Array]:
    inside, k = _whole(xp, x)
    total = d.total_count + 0.0 * xp.sum(k, axis=-1)
    fits = xp.all(inside, axis=-1) & (xp.sum(k, axis=-1) == total)
    spread = relative_entropy(xp, k, total[..., None] * classes(xp, d)) + excess(xp, k)
    return fits, xp.sum(spread, axis=-1) - excess(xp, total)


_INFORMATION: Final[dict[Any, Callable[..., tuple[Array, Array]]]] = {
    f.Bernoulli: _bernoulli,
    f.Binomial: _binomial,
    f.OneHotCategorical: _one_hot,
    f.Categorical: _categorical,
    f.Geometric: _geometric,
    f.Multinomial: _multinomial,
    f.NegativeBinomial: _negative_binomial,
    f.Poisson: _poisson,
}
