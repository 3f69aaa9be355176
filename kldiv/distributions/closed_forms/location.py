"""Families of location and scale with themselves; those of a scale alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kldiv.distributions.families import (
    Cauchy,
    Exponential,
    Gumbel,
    HalfNormal,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    Uniform,
)
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import lgamma_from_two, lgamma_remainder, ratio_phi
from kldiv.formulas.special import log1p, log_ratio, phi

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


def quotient(xp: Namespace, a: Array, b: Array) -> Array:
    """Return a/b, 0 where a = 0 ≤ b: equal locations are no distance apart at any scale."""
    zero = (a == 0) & (b >= 0)
    return xp.where(zero, 0.0, a / xp.where(zero, 1.0, b))


@register_kl(Normal, Normal)
@register_kl(LogNormal, LogNormal)
def normal(xp: Namespace, p: Normal, q: Normal) -> Array:
    """½ φ(2 log(σ₂/σ₁)) + ½ ((μ₁ − μ₂)/σ₂)²."""
    z = quotient(xp, p.loc - q.loc, q.scale)
    return 0.5 * (ratio_phi(xp, q.scale, p.scale, 2.0) + z * z)


@register_kl(HalfNormal, HalfNormal)
def half_normal(xp: Namespace, p: HalfNormal, q: HalfNormal) -> Array:
    """½ φ(2 log(σ₂/σ₁))."""
    return 0.5 * ratio_phi(xp, q.scale, p.scale, 2.0)


@register_kl(Laplace, Laplace)
def laplace(xp: Namespace, p: Laplace, q: Laplace) -> Array:
    """φ(log b₂/b₁) + (b₁/b₂) φ(|μ₁ − μ₂|/b₁), its second part |μ₁ − μ₂|/b₂ where b₁ = 0."""
    distance = abs(p.loc - q.loc)
    point = p.scale == 0
    safe = xp.where(point, 1.0, p.scale)
    spread = quotient(xp, safe * phi(xp, distance / safe), q.scale)
    apart = xp.where(point, quotient(xp, distance, q.scale), spread)
    return ratio_phi(xp, q.scale, p.scale) + apart


@register_kl(Cauchy, Cauchy)
def cauchy(xp: Namespace, p: Cauchy, q: Cauchy) -> Array:
    """log(1 + ((γ₁ − γ₂)² + (x₁ − x₂)²)/(4 γ₁ γ₂))."""
    scale, loc = p.scale - q.scale, p.loc - q.loc
    return log1p(xp, quotient(xp, scale * scale + loc * loc, 4.0 * p.scale * q.scale))


@register_kl(Gumbel, Gumbel)
def gumbel(xp: Namespace, p: Gumbel, q: Gumbel) -> Array:
    """φ(−u) + the remainder of log Γ from 1 to s, s = β₁/β₂, u = log Γ(1+s) − (μ₁ − μ₂)/β₂."""
    return power_law(
        xp, p.scale / q.scale, (p.scale - q.scale) / q.scale, (q.loc - p.loc) / q.scale
    )


def power_law(xp: Namespace, s: Array, less: Array, w: Array) -> Array:
    """Return E[log e^(…)] between y and e^w yˢ of an exponential y; ``less`` is s − 1."""
    u = w + lgamma_from_two(xp, s, less)
    return phi(xp, -u) + lgamma_remainder(xp, xp.ones_like(s), s, less)


@register_kl(Exponential, Exponential)
def exponential(xp: Namespace, p: Exponential, q: Exponential) -> Array:
    """φ(log λ₁/λ₂)."""
    return ratio_phi(xp, p.rate, q.rate)


@register_kl(Pareto, Pareto)
def pareto(xp: Namespace, p: Pareto, q: Pareto) -> Array:
    """φ(log α₁/α₂) + α₂ log(s₁/s₂); +∞ where s₁ < s₂."""
    fits = p.scale >= q.scale
    start = q.alpha * log_ratio(xp, xp.where(fits, p.scale, q.scale), q.scale)
    value = ratio_phi(xp, p.alpha, q.alpha) + start
    return xp.where(fits, value, xp.where(p.scale < q.scale, xp.inf, xp.nan))


@register_kl(Uniform, Uniform)
def uniform(xp: Namespace, p: Uniform, q: Uniform) -> Array:
    """log((b₂ − a₂)/(b₁ − a₁)); +∞ where the interval does not fit."""
    fits = (p.low >= q.low) & (p.high <= q.high)
    more = (q.high - p.high) + (p.low - q.low)
    narrow, wide = p.high - p.low, q.high - q.low
    same = fits & (narrow == wide)  # also two points
    usable = fits & (narrow > 0) & ~same
    value = log_ratio(
        xp,
        xp.where(usable, wide, 1.0),
        xp.where(usable, narrow, 1.0),
        xp.where(usable, more, 0.0),
    )
    apart = xp.where(xp.isnan(narrow + wide), xp.nan, xp.full_like(value, xp.inf))
    return xp.where(usable | same, value, apart)
