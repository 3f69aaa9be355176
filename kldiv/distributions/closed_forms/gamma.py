"""The Gamma family: Gamma, InverseGamma, Chi2; Weibull, whose power is exponential."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv.distributions.closed_forms.location import power_law
from kldiv.distributions.families import Chi2, Gamma, InverseGamma, Weibull
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import gamma_excess, interior, lgamma_remainder, times_phi
from kldiv.formulas.special import log_ratio

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(Gamma, Gamma)
@register_kl(InverseGamma, InverseGamma)
def gamma(xp: Namespace, p: Any, q: Any) -> Array:
    """c φ(−w) + the remainder of log Γ(x) − x log x + x, w = log of the ratio of means."""
    alive, edge, (a, rate_p, c, rate_q) = interior(
        xp, (p.concentration, p.rate), (q.concentration, q.rate)
    )
    apart = log_ratio(xp, a, c) + log_ratio(xp, rate_q, rate_p)
    # Two large logarithms of opposite sign would lose what they have in common; quotients of roots
    # are numbers, as are their slopes.
    shapes, rates = (xp.sqrt(x) / xp.sqrt(y) for x, y in ((a, c), (rate_p, rate_q)))
    far = 2.0 * log_ratio(xp, shapes, rates)
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
def weibull(xp: Namespace, p: Weibull, q: Weibull) -> Array:
    """φ(−u) + the remainder of log Γ from 1 to s, s = k₂/k₁, u = log Γ(1+s) + k₂ log(λ₁/λ₂)."""
    alive, edge, (k_p, scale_p, k_q, scale_q) = interior(
        xp, (p.concentration, p.scale), (q.concentration, q.scale)
    )
    s, less = k_q / k_p, (k_q - k_p) / k_p
    value = power_law(xp, s, less, k_q * log_ratio(xp, scale_p, scale_q))
    return xp.where(alive, value, edge)
