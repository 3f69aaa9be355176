"""Pairs that are infinitely far apart whatever their parameters, though supports do not say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv.distributions import families as f
from kldiv.distributions.registry import blank, register_kl

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(f.Cauchy, f.Gumbel)
@register_kl(f.Cauchy, f.Laplace)
@register_kl(f.Cauchy, f.Normal)
@register_kl(f.HalfCauchy, f.Chi2)
@register_kl(f.HalfCauchy, f.Exponential)
@register_kl(f.HalfCauchy, f.Gamma)
@register_kl(f.HalfCauchy, f.Gumbel)
@register_kl(f.HalfCauchy, f.HalfNormal)
@register_kl(f.HalfCauchy, f.Laplace)
@register_kl(f.HalfCauchy, f.Normal)
def without_mean(xp: Namespace, p: Any, q: Any) -> Array:
    """+∞: P has no mean."""
    return blank(xp, p) + blank(xp, q) + float("inf")


def singular(xp: Namespace, p: Any, q: Any) -> Array:
    """+∞: a simplex has no volume."""
    return blank(xp, p) + blank(xp, q) + float("inf")


for _normal in (f.MultivariateNormal, f.MultivariateNormalDiag, f.LowRankMultivariateNormal):
    register_kl(f.Dirichlet, _normal)(singular)
    register_kl(_normal, f.Dirichlet)(singular)
