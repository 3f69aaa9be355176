"""−log of the masses of discrete families: under point masses, and on the host."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from kldiv.distributions import families as f
from kldiv.formulas.binet import excess
from kldiv.formulas.measures import relative_entropy
from kldiv.formulas.remainders import chances, softplus
from kldiv.formulas.special import log1p

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace

    Information = tuple[Array, Array]
    """Where x is an outcome, and −log of its mass there."""

TINY: Final = 1e-30
"""Probabilities below it may be no normal numbers: their logarithms are taken from the logits."""


def probabilities(xp: Namespace, d: Any) -> tuple[Array, Array]:
    """Return the probability of 1 and of 0."""
    if d.probs is not None:
        return d.probs, 1.0 - d.probs
    return chances(xp, d.logits)


def classes(xp: Namespace, d: Any) -> Array:
    """Return the probability of each class."""
    if d.probs is not None:
        return d.probs
    weights = xp.exp(d.logits - xp.max(d.logits, axis=-1, keepdims=True))
    return weights / xp.sum(weights, axis=-1, keepdims=True)


def unlikely_classes(xp: Namespace, d: Any) -> Array | None:
    """Return −log of the probability of each class, None where probabilities are given."""
    if d.logits is None:
        return None
    below = d.logits - xp.max(d.logits, axis=-1, keepdims=True)
    return xp.log(xp.sum(xp.exp(below), axis=-1, keepdims=True)) - below


def of_rates(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the relative entropy of a from b; where one is +∞ it is +∞, and 0 where both are."""
    finite = (a < math.inf) & (b < math.inf)
    value = relative_entropy(xp, *(xp.where(finite, x, 1.0) for x in (a, b)))
    edge = xp.where(a == b, 0.0, xp.full_like(value, math.inf))
    edge = xp.where((a >= 0) & (b >= 0), edge, math.nan)
    return xp.where(finite, value, edge)


def information(xp: Namespace, d: Any, x: Array) -> Information | None:
    """Return where x is an outcome and −log of its mass there; None of a family without masses.

    Masses of counts are taken by their distance from the mean and by the error of Stirling's
    formula, ``excess``: nothing large cancels (C. Loader, "Fast and accurate computation of
    binomial probabilities", 2000).
    """
    for family, found in _INFORMATION.items():
        if isinstance(d, family):
            return found(xp, d, x)
    return None


def _whole(xp: Namespace, x: Array) -> Information:
    inside = (x >= 0) & (x == xp.floor(x)) & xp.isfinite(x)
    return inside, xp.where(inside, x, 0.0 * x)


def _two_way(xp: Namespace, d: Any) -> tuple[Array, Array]:
    """Return −log of the probability of 1 and of 0."""
    if d.probs is not None:
        probs = xp.where((d.probs >= 0) & (d.probs <= 1), d.probs, math.nan)
        return -xp.log(probs), -log1p(xp, -probs)
    return softplus(xp, -d.logits), softplus(xp, d.logits)


def unlikely(xp: Namespace, d: Any) -> tuple[Array | None, Array | None]:
    """Return −log of the probability of 1 and of 0, None where probabilities are given."""
    return (None, None) if d.logits is None else _two_way(xp, d)


def from_share(
    xp: Namespace,
    part: Array,
    n: Array,
    p: Array,
    lost: Array | None,
    difference: Array | None = None,
) -> Array:
    """Return the relative entropy of a part of n from n p; ``lost`` is −log p where p may be tiny.

    ``difference`` is part − n p, if known better.
    """
    if lost is None:
        return relative_entropy(xp, part, n * p, difference)
    tiny, some = (p >= 0) & (p < TINY), part > 0
    near = relative_entropy(xp, part, n * xp.where(tiny, 1.0, p), difference)
    share = xp.where(some, part, 1.0) / xp.where(some, n, 1.0)
    far = part * (xp.log(share) + (xp.where(some, lost, 0.0) - 1.0))
    far = xp.where(some, far, xp.where(part == 0, 0.0, math.nan))
    return xp.where(tiny, far + n * p, near)


def _shares(xp: Namespace, d: Any, k: Array, rest: Array, n: Array) -> Array:
    """Return the relative entropy of k successes and the rest failures from n chances."""
    parts = zip((k, rest), probabilities(xp, d), unlikely(xp, d), strict=True)
    return sum(from_share(xp, part, n, p, lost) for part, p, lost in parts)


def _poisson(xp: Namespace, d: f.Poisson, x: Array) -> Information:
    inside, k = _whole(xp, x)
    return inside, of_rates(xp, k, d.rate) + excess(xp, k)


def _bernoulli(xp: Namespace, d: f.Bernoulli, x: Array) -> Information:
    one, zero = _two_way(xp, d)
    return (x == 0) | (x == 1), xp.where(x == 1, one, zero)


def _geometric(xp: Namespace, d: f.Geometric, x: Array) -> Information:
    inside, k = _whole(xp, x)
    success, failure = _two_way(xp, d)
    return inside, success + k * xp.where(k > 0, failure, 0.0)


def _binomial(xp: Namespace, d: f.Binomial, x: Array) -> Information:
    inside, k = _whole(xp, x)
    n = d.total_count + 0.0 * k
    inside = inside & (k <= n)
    k = xp.where(inside, k, 0.0 * k)
    ways = excess(xp, k) + excess(xp, n - k) - excess(xp, n)
    return inside, _shares(xp, d, k, n - k, n) + ways


def _negative_binomial(xp: Namespace, d: f.NegativeBinomial, x: Array) -> Information:
    inside, k = _whole(xp, x)
    r = d.total_count + 0.0 * k
    ways = excess(xp, k) + excess(xp, r) - excess(xp, k + r)
    ways = ways + log1p(xp, k / xp.where(k > 0, r, 1.0))
    return inside, _shares(xp, d, k, r, k + r) + ways


def _categorical(xp: Namespace, d: f.Categorical, x: Array) -> Information:
    number = (d.logits if d.probs is None else d.probs).shape[-1]
    here = xp.astype(xp.arange(number), x.dtype) == x[..., None]
    return xp.any(here, axis=-1), _of_class(xp, d, here)


def _one_hot(xp: Namespace, d: f.OneHotCategorical, x: Array) -> Information:
    here = x == 1
    inside = xp.all(here | (x == 0), axis=-1) & (xp.sum(x, axis=-1) == 1)
    return inside, _of_class(xp, d, here)


def _multinomial(xp: Namespace, d: f.Multinomial, x: Array) -> Information:
    inside, k = _whole(xp, x)
    total = d.total_count + 0.0 * xp.sum(k, axis=-1)
    fits = xp.all(inside, axis=-1) & (xp.sum(k, axis=-1) == total)
    lost = unlikely_classes(xp, d)
    spread = from_share(xp, k, total[..., None] + 0.0 * k, classes(xp, d), lost) + excess(xp, k)
    return fits, xp.sum(spread, axis=-1) - excess(xp, total)


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


_INFORMATION: Final[dict[Any, Callable[..., Information]]] = {
    f.Bernoulli: _bernoulli,
    f.Binomial: _binomial,
    f.OneHotCategorical: _one_hot,
    f.Categorical: _categorical,
    f.Geometric: _geometric,
    f.Multinomial: _multinomial,
    f.NegativeBinomial: _negative_binomial,
    f.Poisson: _poisson,
}
