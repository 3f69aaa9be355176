"""Families of location and scale with themselves; those of a scale alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

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
from kldiv.formulas.remainders import EULER, interior, lgamma_from_one, lgamma_remainder, ratio_phi
from kldiv.formulas.special import log1p, log_ratio, phi

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


_FAR: Final = 128.0
"""From here on e⁻ˣ is nothing beside x, in any dtype."""
_ROOT: Final = 1e9
"""From here on 1 is nothing beside x², in any dtype."""


def quotient(xp: Namespace, a: Array, b: Array) -> Array:
    """Return a/b, 0 where both are 0: equal locations are no distance apart at any scale.

    The slope at a = 0 is 1/b, so that a square of it has its second derivative there.
    """
    return a / xp.where((a == 0) & (b == 0), 1.0, b)


def distance(xp: Namespace, a: Array, b: Array) -> Array:
    """Return |a − b|, with a slope at a = b: even functions of it have second derivatives."""
    return xp.where(a < b, b - a, a - b)


def of_points(xp: Namespace, p: Array, q: Array, apart: Array) -> Array:
    """Return D(P‖Q) by scales p, q of which one is 0: 0 of two points in one place, else +∞."""
    edge = xp.where((p >= 0) & (q >= 0), math.inf, xp.full_like(apart, math.nan))
    edge = xp.where(xp.isnan(apart), math.nan, edge)
    return xp.where((p == 0) & (q == 0) & (apart == 0), 0.0, edge)


@register_kl(Normal, Normal)
@register_kl(LogNormal, LogNormal)
def normal(xp: Namespace, p: Normal, q: Normal) -> Array:
    """½ φ(2 log(σ₂/σ₁)) + ½ ((μ₁ − μ₂)/σ₂)²."""
    if _log_scale(p) is not None or _log_scale(q) is not None:
        return _normal_by_logs(xp, p, q)
    z = quotient(xp, p.loc - q.loc, q.scale)
    return 0.5 * (ratio_phi(xp, q.scale, p.scale, 2) + z * z)


def _log_scale(d: Normal | LogNormal) -> Array | None:
    return getattr(d, "log_scale", None)


def _normal_by_logs(xp: Namespace, p: Normal | LogNormal, q: Normal | LogNormal) -> Array:
    """Return the same by log σ: φ of a difference, not of a quotient that may have underflowed."""
    log_p, log_q = (xp.log(d.scale) if (given := _log_scale(d)) is None else given for d in (p, q))
    loc, root = p.loc - q.loc, xp.exp(-0.5 * log_q)  # 1/σ₂ may be beyond the numbers
    root = xp.where((loc == 0) & (root == math.inf), 1.0, root)
    z = (loc * root) * root
    return 0.5 * (phi(xp, 2.0 * (log_q - log_p)) + z * z)


@register_kl(HalfNormal, HalfNormal)
def half_normal(xp: Namespace, p: HalfNormal, q: HalfNormal) -> Array:
    """½ φ(2 log(σ₂/σ₁))."""
    return 0.5 * ratio_phi(xp, q.scale, p.scale, 2)


@register_kl(Laplace, Laplace)
def laplace(xp: Namespace, p: Laplace, q: Laplace) -> Array:
    """φ(log b₂/b₁) + (b₁/b₂) φ(x), x = d/b₁, d = |μ₁ − μ₂|; far: d/b₂ − 1 + log b₂/b₁ + b₁/b₂ e⁻ˣ.

    The first is a sum of terms ≥ 0. Where d is larger than both scales its slope in b₁ would
    cancel, elsewhere that in d of the second.
    """
    apart = distance(xp, p.loc, q.loc)
    far = (apart > p.scale) & (apart > q.scale)
    safe = xp.where(far | (p.scale == 0), 1.0, p.scale)  # where b₁ = 0 is not far it is +∞ below
    long = ~far & (apart >= _FAR * safe)  # a slope of the quotient may be beyond the numbers
    near = safe * phi(xp, xp.where(far | long, 0.0, apart) / safe)
    near = xp.where(long, apart - safe, near)
    near = ratio_phi(xp, q.scale, p.scale) + quotient(xp, near, q.scale)
    alive = far & (p.scale > 0) & (q.scale > 0)
    some, wide, narrow = (xp.where(alive, x, 1.0) for x in (apart, p.scale, q.scale))
    middle = some < _FAR * wide  # where e⁻ˣ is anything beside 1
    tail = wide * xp.exp(-xp.where(middle, some, 1.0) / xp.where(middle, wide, 1.0)) / narrow
    value = (some - narrow) / narrow + log_ratio(xp, narrow, wide) + xp.where(middle, tail, 0.0)
    value = xp.where(alive, value, of_points(xp, p.scale, q.scale, apart))
    return xp.where(far, value, near)


@register_kl(Cauchy, Cauchy)
def cauchy(xp: Namespace, p: Cauchy, q: Cauchy) -> Array:
    """log(1 + u² + v²), u = (γ₁ − γ₂)/g, v = (x₁ − x₂)/g, g = 2√(γ₁ γ₂).

    Far apart: 2 log m − log γ₁ − log γ₂ + log((u/m)² + (v/m)²), m the larger of g u and g v.
    """
    alive = (p.scale > 0) & (q.scale > 0)
    p_scale, q_scale = (xp.where(alive, d.scale, 1.0) for d in (p, q))
    mean = xp.sqrt(p_scale) * xp.sqrt(q_scale)
    u, v = 0.5 * (p_scale - q_scale), 0.5 * (p.loc - q.loc)
    larger = xp.where(abs(u) > abs(v), abs(u), abs(v))
    far = larger > _ROOT * mean
    near = log1p(xp, (xp.where(far, 0.0, u) / mean) ** 2 + (xp.where(far, 0.0, v) / mean) ** 2)
    u, v, larger = (xp.where(far, x, 1.0) for x in (u, v, larger))
    value = 2.0 * xp.log(larger) - xp.log(p_scale) - xp.log(q_scale)
    value = value + xp.log((u / larger) ** 2 + (v / larger) ** 2)
    value = xp.where(far, value, near)
    return xp.where(alive, value, of_points(xp, p.scale, q.scale, p.loc - q.loc))


@register_kl(Gumbel, Gumbel)
def gumbel(xp: Namespace, p: Gumbel, q: Gumbel) -> Array:
    """φ(−u) + the remainder of log Γ from 1 to s, s = β₁/β₂, u = log Γ(1+s) − (μ₁ − μ₂)/β₂."""
    alive = (p.scale > 0) & (q.scale > 0)
    p_scale, q_scale = (xp.where(alive, d.scale, 1.0) for d in (p, q))
    value = power_law(
        xp, p_scale / q_scale, (p_scale - q_scale) / q_scale, (q.loc - p.loc) / q_scale
    )
    return xp.where(alive, value, of_points(xp, p.scale, q.scale, p.loc - q.loc))


def power_law(xp: Namespace, s: Array, less: Array, w: Array) -> Array:
    """Return E[log e^(…)] between y and e^w yˢ of an exponential y; ``less`` is s − 1."""
    u = w + lgamma_from_one(xp, s, less)
    # From 10⁴ on eᵘ is ∞ in every dtype, and beside it −∞ would make NaN.
    value = phi(xp, -xp.clip(u, -math.inf, 1e4)) + lgamma_remainder(xp, xp.ones_like(s), s, less)
    # Where eᵘ is small log Γ(s) cancels, and digamma in the slope.
    small = u < -2.0
    rest = (EULER * less - xp.log(xp.where(small, s, 1.0))) - w
    return xp.where(small, xp.exp(xp.where(small, u, 0.0)) + (rest - 1.0), value)


@register_kl(Exponential, Exponential)
def exponential(xp: Namespace, p: Exponential, q: Exponential) -> Array:
    """φ(log λ₁/λ₂)."""
    return ratio_phi(xp, p.rate, q.rate)


@register_kl(Pareto, Pareto)
def pareto(xp: Namespace, p: Pareto, q: Pareto) -> Array:
    """φ(log α₁/α₂) + α₂ log(s₁/s₂); +∞ where s₁ < s₂."""
    alive, edge, (start, a, least, c) = interior(xp, (p.scale, p.alpha), (q.scale, q.alpha))
    fits = start >= least
    value = ratio_phi(xp, a, c) + c * log_ratio(xp, xp.where(fits, start, least), least)
    return xp.where(alive, xp.where(fits, value, math.inf), edge)


@register_kl(Uniform, Uniform)
def uniform(xp: Namespace, p: Uniform, q: Uniform) -> Array:
    """log((b₂ − a₂)/(b₁ − a₁)); +∞ where the interval does not fit."""
    valid = (p.low <= p.high) & (q.low <= q.high)
    fits = valid & (p.low >= q.low) & (p.high <= q.high)
    # The width of finite ends may be beyond the largest number.
    unit = xp.where(q.high - q.low == math.inf, 0.5, 1.0)
    a, b, low, high = (unit * x for x in (p.low, p.high, q.low, q.high))
    more = (high - b) + (a - low)
    narrow, wide = b - a, high - low
    usable = fits & (narrow > 0) & (wide < math.inf)
    same = fits & ~usable & (narrow == wide)  # two points, two that have no ends
    value = log_ratio(
        xp,
        xp.where(usable, wide, 1.0),
        xp.where(usable, narrow, 1.0),
        xp.where(usable, more, 0.0),
    )
    apart = xp.where(valid, xp.full_like(value, math.inf), math.nan)
    return xp.where(usable | same, value, apart)
