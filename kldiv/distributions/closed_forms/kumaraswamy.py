"""A Kumaraswamy and a Beta: the one moment without a name is an integral at fixed nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kldiv.distributions import families as f
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import EULER, interior
from kldiv.formulas.special import expm1

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace

_NODES: Final = {False: 128, True: 384}
"""For float32 and float64: steps of logit v below 1/3 and 1/4 for b/a up to 1e8."""
_AT_ONCE: Final = 16
_BEYOND: Final = {False: 18.0, True: 38.0}
"""How far the integral goes beyond where its integrand begins to fall, as e^y at least."""


@register_kl(f.Kumaraswamy, f.Beta)
def kumaraswamy_beta(xp: Namespace, p: f.Kumaraswamy, q: f.Beta) -> Array:
    """−H(P) − E[log q], by the moments of P, E log(1 − x) by an integral."""
    alive, edge, (a, b, c, d) = interior(
        xp, (p.concentration1, p.concentration0), (q.concentration1, q.concentration0)
    )
    a, b = xp.broadcast_arrays(a, b)
    log_x = -(xp.special.digamma(b + 1.0) + EULER) / a
    value = xp.log(a * b) + (a - c) * log_x - (b - 1.0) / b
    gammaln = xp.special.gammaln
    value = value + (gammaln(c) + gammaln(d) - gammaln(c + d))
    return xp.where(alive, value - (d - 1.0) * _log_rest(xp, a, b), edge)


def _log_rest(xp: Namespace, a: Array, b: Array) -> Array:
    """Return E log(1 − x).

    v = 1 − xᵃ has the density b v^(b − 1), and E log v = −1/b.  The difference of log(1 − x)
    and log(v/a) vanishes with v, so that ∫ dy, y = logit v, falls as e^((1 + b) y) and as e^(−y).
    """
    wide = a.dtype == xp.float64
    low = xp.where(a < 1, xp.log(a), 0.0) - _BEYOND[wide]
    high = xp.where(b > 1, xp.log(b), 0.0) + _BEYOND[wide]
    step = (high - low) / _NODES[wide]
    places = xp.astype(xp.arange(_NODES[wide] + 1), step.dtype)
    total = 0.0 * step
    for start in range(0, _NODES[wide] + 1, _AT_ONCE):
        y = low[..., None] + step[..., None] * places[start : start + _AT_ONCE]
        total = total + xp.sum(_term(xp, y, a[..., None], b[..., None]), axis=-1)
    return step * total - 1.0 / b - xp.log(a)


def _term(xp: Namespace, y: Array, a: Array, b: Array) -> Array:
    rest = xp.log1p(xp.exp(-abs(y)))
    below, above = rest + xp.where(y > 0, y, 0.0), rest + xp.where(y < 0, -y, 0.0)
    v = xp.exp(-above)  # and 1 − v is e^(−below)
    beside = xp.log(-expm1(xp, -below / a) * (a / v))
    return b * xp.exp(-b * above - below) * beside
