"""Point masses: −log of the mass that Q has there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution
from kldiv.distributions.masses import information
from kldiv.distributions.registry import blank, infinite, no_closed_form, register_kl
from kldiv.distributions.supports import CONTINUOUS, DISCRETE
from kldiv.distributions.wrappers import WRAPPERS, Image

if TYPE_CHECKING:
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
    found = information(xp, d, x)
    if found is None:
        raise no_closed_form(p, q)
    inside, value = found
    return xp.where(inside, value, xp.where(xp.isnan(value), value, math.inf))
