"""Negative binomials of different counts: an integral at fixed nodes beside the closed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from kldiv.distributions import families as f
from kldiv.distributions.closed_forms.discrete import (
    times,
    waiting,
    waiting_by_logits,
)
from kldiv.distributions.masses import probabilities, unlikely
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import softplus
from kldiv.formulas.special import expm1, log1p, log1p_gap, log_ratio, phi
from kldiv.formulas.state import held

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace

_NODES: Final = {False: 80, True: 224}
"""For float32 and float64: the step in log t is then below 1/2 and 1/4."""
_AT_ONCE: Final = 16
_BELOW: Final = {False: 1e-4, True: 1e-9}
"""Where the integral starts, in units of the smallest scale: its integrand begins as t²."""
_ABOVE: Final = {False: 20.0, True: 45.0}
"""Where it ends, in units of 1/min(r₁, r₂): it ends as e⁻ᵗ."""


@register_kl(f.NegativeBinomial, f.NegativeBinomial)
def negative_binomial(xp: Namespace, p: f.NegativeBinomial, q: f.NegativeBinomial) -> Array:
    """That of two Geometrics, times r, for equal r; for others an integral, to full precision.

    By way of the one with Q's count r₂ and P's mean m, from where on it is a closed form.  Up to
    there it is, with δ = r₂ − r₁ and Euler's integral for digamma (DLMF 5.9.16),

        ∫ e^(−r₁t) φ(δt)/t h(t) dt,  h(t) = (1 − G)/(1 − e⁻ᵗ) − (1 − e^(−mt))/t,  G = E e^(−kt).
    """
    r1, r2 = p.total_count, q.total_count
    if isinstance(r1, int) and isinstance(r2, int) and r1 == r2:
        return _of_one_count(xp, p, q, r1)
    p1, p0 = probabilities(xp, p)
    r1, r2 = (xp.zeros_like(p1) + r for r in (r1, r2))
    odds, certain = _odds(xp, p, p1, p0, r1)
    m = r1 * odds
    # A count of 0 is a point mass at 0, as is a probability of 0.
    some = xp.where(r2 > 0, r2, 1.0)
    value = _to_other_count(xp, r1, some, odds) + _from_other_count(xp, p, q, r1, some, m)
    edge = xp.where(m > 0, math.inf, xp.where(m == 0, 0.0, math.nan))
    value = xp.where(r2 > 0, value, xp.where(r2 == 0, edge, math.nan))
    value = xp.where(r1 >= 0, value, math.nan)
    # Of probability 1 all mass is at infinity.
    away = xp.where((probabilities(xp, q)[1] == 0) & (r1 == r2), 0.0, math.inf)
    return xp.where(certain & (m > 0), away, value)


def _odds(
    xp: Namespace, p: f.NegativeBinomial, p1: Array, p0: Array, r: Array
) -> tuple[Array, Array]:
    """Return the odds of P, from where more change no digit of the integral, and whether p is 1.

    For odds without end that is the one of two Gammas, and by them and their r-th power nearly so.
    """
    most, root = (700.0, 41.0) if p1.dtype == xp.float64 else (80.0, 21.0)
    share = held(xp, xp.where(r < 1.0, xp.where(r > root / most, r, root / most), 1.0))
    most = root / share
    if p.logits is not None:
        far = p.logits > most
        odds = xp.exp(xp.where(far, most, p.logits))
        return odds, p.logits == math.inf
    most = xp.exp(most)
    far = (p0 >= 0) & (p1 > most * p0)
    return xp.where(far, most, p1 / xp.where(far, 1.0, p0)), p0 == 0


def _of_one_count(xp: Namespace, p: f.NegativeBinomial, q: f.NegativeBinomial, r: int) -> Array:
    if p.logits is not None and q.logits is not None:
        return times(xp, r, waiting_by_logits(xp, -p.logits, -q.logits))
    of_p, of_q, lost = probabilities(xp, p), probabilities(xp, q), unlikely(xp, q)
    found = waiting(xp, of_p[::-1], of_q[::-1], of_q[0] - of_p[0], lost[::-1])
    return times(xp, r, found)


def _from_other_count(
    xp: Namespace, p: f.NegativeBinomial, q: f.NegativeBinomial, r1: Array, r2: Array, m: Array
) -> Array:
    """Return the divergence from Q of the one with Q's count and P's mean m."""
    if p.logits is not None and q.logits is not None:
        alive = m > 0
        logits = xp.where(alive, p.logits, 0.0)
        moved = logits + log_ratio(xp, xp.where(alive, r1, 1.0), xp.where(alive, r2, 1.0))
        value = r2 * waiting_by_logits(xp, -moved, -q.logits)
        empty = r2 * softplus(xp, q.logits)
        return xp.where(alive, value, xp.where(m == 0, empty, math.nan))
    (p1, p0), (q1, q0) = probabilities(xp, p), probabilities(xp, q)
    whole = r1 * p1 + r2 * p0
    share = r1 * p1 / whole
    # Two ways to share − q₁: the one whose terms are the smaller.
    parts = r2 * (p1 - q1) / whole, (r2 - r1) * p1 * q0 / whole
    direct = share + q1 < abs(parts[0]) + abs(parts[1])
    change = xp.where(direct, share - q1, parts[0] - parts[1])
    moved = r2 * p0 / whole, share
    return r2 * waiting(xp, moved, (q0, q1), -change, unlikely(xp, q)[::-1])


def _to_other_count(xp: Namespace, r1: Array, r2: Array, odds: Array) -> Array:
    """Return the divergence to the one with another count and the same mean."""
    wide = r1.dtype == xp.float64
    m = r1 * odds
    least = xp.where(r1 < r2, r1, r2)
    low = xp.log(_BELOW[wide] / (r1 + r2 + m + 1.0))
    high = xp.log(_ABOVE[wide] / xp.where(least > 0, least, 1.0))
    step = (high - low) / _NODES[wide]
    total = 0.0 * step
    r1, r2, odds, m, low, step = (
        x[..., None] for x in xp.broadcast_arrays(r1, r2, odds, m, low, step)
    )
    places = xp.astype(xp.arange(_NODES[wide] + 1), step.dtype)
    # ∫ e^(−r₁t) h = 0: a mean is taken off φ(δt)/t, or off δ − φ(δt)/t where that is smaller, and
    # what is left has the sign of h, or nearly.  Every eighth node gives that mean.
    t = xp.exp(low + step * places[::8])
    size = t * abs(_gap(xp, t, r1, odds, m))
    near, far, down = _weights(xp, t, r1, r2)
    mass = xp.sum(size * down, axis=-1, keepdims=True)
    mass = xp.where(mass > 0, mass, 1.0)
    means = [xp.sum(size * x, axis=-1, keepdims=True) / mass for x in (near, far)]
    use_far = (r2 > r1) & (means[1] < means[0])
    for start in range(0, _NODES[wide] + 1, _AT_ONCE):
        t = xp.exp(low + step * places[start : start + _AT_ONCE])
        near, far, down = _weights(xp, t, r1, r2)
        weight = xp.where(use_far, means[1] * down - far, near - means[0] * down)
        total = total + xp.sum(t * weight * _gap(xp, t, r1, odds, m), axis=-1)
    return step[..., 0] * total


def _weights(xp: Namespace, t: Array, r1: Array, r2: Array) -> tuple[Array, Array, Array]:
    """Return φ(δt)/t and δ − φ(δt)/t, both times e^(−r₁t), and that itself."""
    x, down = (r2 - r1) * t, xp.exp(-r1 * t)
    return _damped(xp, x, r1 * t, r2 * t) / t, -down * expm1(xp, -abs(x)) / t, down


def _gap(xp: Namespace, t: Array, r1: Array, odds: Array, m: Array) -> Array:
    """Return h(t).

    (1 − e⁻ᵗ) h(t) e^(mt) = φ(t) φ(−mt)/t − r₁ (z − log(1 + z)) − φ(−x), z = odds (1 − e⁻ᵗ): the
    terms of first and second order, which cancel, are gone.  x = mt − r₁ log(1 + z), so that
    e^(x − mt) is G.
    """
    bend = phi(xp, t)
    rise = t - bend
    z = odds * rise
    curved, falling = r1 * log1p_gap(xp, z), r1 * log1p(xp, z)
    first = _damped(xp, -m * t, m * t, 0.0 * t)
    last = _damped(xp, -m * bend - curved, m * t, falling)
    close = (bend / t * first - xp.exp(-m * t) * curved - last) / rise
    apart = expm1(xp, -m * t) / t - expm1(xp, -falling) / rise
    return xp.where((t > 1.0) & (m * t > 1.0), apart, close)


def _damped(xp: Namespace, x: Array, down: Array, both: Array) -> Array:
    """Return e^(−down) φ(x), where ``both`` is down + x."""
    near = abs(x) < 1.0
    inner = xp.exp(-down) * phi(xp, xp.where(near, x, 0.0))
    far = xp.exp(-both) + xp.exp(-down) * (x - 1.0)
    return xp.where(near, inner, far)
