"""The Gamma family: Gamma, Exponential, Chi2, InverseGamma; Weibull, whose power is exponential."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv.distributions.closed_forms.location import power_law
from kldiv.distributions.families import Chi2, Exponential, Gamma, InverseGamma, Weibull
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import gamma_excess, interior, lgamma_remainder, times_phi
from kldiv.formulas.special import log_ratio

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


def _parameters(xp: Namespace, d: Any) -> tuple[Array, Array]:
    """Return the concentration and the rate."""
    if isinstance(d, Chi2):
        return 0.5 * d.df, xp.full_like(d.df, 0.5)
    if isinstance(d, Exponential):
        return xp.ones_like(d.rate), d.rate
    return d.concentration, d.rate


@register_kl(Gamma, Gamma)
@register_kl(Gamma, Exponential)
@register_kl(Gamma, Chi2)
@register_kl(Exponential, Gamma)
@register_kl(Exponential, Chi2)
@register_kl(Chi2, Gamma)
@register_kl(Chi2, Exponential)
@register_kl(InverseGamma, InverseGamma)
def gamma(xp: Namespace, p: Any, q: Any) -> Array:
    """c φ(−w) + the remainder of log Γ(x) − x log x + x, w = log of the ratio of means."""
    a, rate_p = _parameters(xp, p)
    c, rate_q = _parameters(xp, q)
    alive, edge, (a, rate_p, c, rate_q) = interior(xp, (a, rate_p), (c, rate_q))
    apart = log_ratio(xp, a, c) + log_ratio(xp, rate_q, rate_p)
    # Two large logarithms of opposite sign would lose what they have in common.
    far = log_ratio(xp, a / c, rate_p / rate_q)
    w = xp.where(abs(log_ratio(xp, a, c)) < 1.0, apart, far)
    root = xp.sqrt(rate_p)
    value = times_phi(xp, c, w, (a / root) * (rate_q / root)) + gamma_excess(xp, a, c)
    return xp.where(alive, value, edge)


@register_kl(Chi2, Chi2)
def chi2(xp: Namespace, p: Chi2, q: Chi2) -> Array:
    """The remainder of log Γ from df₁/2 to df₂/2."""
    alive, edge, (a, c) = interior(xp, (0.5 * p.df,), (0.5 * q.df,))
    return xp.where(alive, lgamma_remainder(xp, a, c), edge)


@register_kl(Weibull, Weibull)
@register_kl(Weibull, Exponential)
@register_kl(Exponential, Weibull)
def weibull(xp: Namespace, p: Any, q: Any) -> Array:
    """φ(−u) + the remainder of log Γ from 1 to s, s = k₂/k₁, u = log Γ(1+s) + k₂ log(λ₁/λ₂)."""
    one_p, one_q = isinstance(p, Exponential), isinstance(q, Exponential)
    k_p = xp.ones_like(p.rate) if one_p else p.concentration
    k_q = xp.ones_like(q.rate) if one_q else q.concentration
    scale_p = 1.0 / p.rate if one_p else p.scale
    scale_q = 1.0 / q.rate if one_q else q.scale
    alive, edge, (k_p, scale_p, k_q, scale_q) = interior(xp, (k_p, scale_p), (k_q, scale_q))
    s, less = k_q / k_p, (k_q - k_p) / k_p
    value = power_law(xp, s, less, k_q * log_ratio(xp, scale_p, scale_q))
    return xp.where(alive, value, edge)
