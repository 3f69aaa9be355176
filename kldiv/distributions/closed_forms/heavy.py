"""Families without a mean against those whose log-density falls as fast as x or faster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv.distributions import families as f
from kldiv.distributions.registry import blank, register_kl

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(f.Cauchy, f.Gumbel)
@register_kl(f.Cauchy, f.Laplace)
@register_kl(f.Cauchy, f.Normal)
@register_kl(f.HalfCauchy, f.Exponential)
@register_kl(f.HalfCauchy, f.Gamma)
@register_kl(f.HalfCauchy, f.Gumbel)
@register_kl(f.HalfCauchy, f.HalfNormal)
@register_kl(f.HalfCauchy, f.Laplace)
@register_kl(f.HalfCauchy, f.Normal)
def without_mean(xp: Namespace, p: Any, q: Any) -> Array:
    """+∞: P has no mean."""
    return blank(xp, p) + blank(xp, q) + float("inf")
