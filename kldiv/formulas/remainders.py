r"""Bregman remainders f(c) − f(a) − (c − a)·df(a) ≥ 0 without cancellation, near c = a and far.

The divergence of two members of an exponential family is such a remainder of its log-partition
function, so these are the pieces of most closed forms.  Everything is a sum of terms that are ≥ 0
and right to a few units, in ``exp`` and ``log`` alone, so that a library's own differentiation is
right too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kldiv.formulas.special import log1p_gap, log_ratio, phi

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace

EULER = 0.5772156649015328606


def ratio_phi(
    xp: Namespace, a: Array, b: Array, power: float = 1.0, difference: Array | None = None
) -> Array:
    """Return φ(power·log(a/b)): 0 where a = b, also at 0; +∞ where only one is 0; else NaN."""
    alive = (a > 0) & (b > 0) & (a < math.inf) & (b < math.inf)
    safe_a, safe_b = xp.where(alive, a, 1.0), xp.where(alive, b, 1.0)
    if difference is not None:
        difference = xp.where(alive, difference, 0.0)
    x = power * log_ratio(xp, safe_a, safe_b, difference)
    edge = xp.where((a >= 0) & (b >= 0), math.inf, xp.full_like(x, math.nan))
    edge = xp.where((a == 0) & (b == 0), 0.0, edge)
    return xp.where(alive, phi(xp, x), edge)


# --- log Γ ----------------------------------------------------------------------------------------

_SHIFT = 10
"""Stirling's series is used from here on; below, Γ(x + 10) = x (x + 1) … (x + 9) Γ(x)."""

# B₂ₙ / (2n (2n−1)): log Γ(x) = (x − ½) log x − x + ½ log 2π + Σ cₙ x^(1−2n), right to 1e-17 of
# itself at x = 10.
_BINET = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)


def lgamma_remainder(xp: Namespace, a: Array, c: Array, difference: Array | None = None) -> Array:
    """Return log Γ(c) − log Γ(a) − (c − a)·digamma(a) for a, c > 0; ``difference`` is c − a.

    Shifted up by Γ's recurrence, whose steps have the remainder φ(log((a + i)/(c + i))), and there
    by Stirling's series, term by term.
    """
    change = c - a if difference is None else difference
    total = _entropy_remainder(xp, a + _SHIFT, c + _SHIFT, change)
    total = total + stirling_remainder(xp, a + _SHIFT, c + _SHIFT, change)
    # On an axis of their own: a compiler sees one formula, not ten.
    change = xp.stack([-change] * _SHIFT, axis=-1)
    a, c = (xp.stack([x + i for i in range(_SHIFT)], axis=-1) for x in (a, c))
    return total + xp.sum(phi(xp, log_ratio(xp, a, c, change)), axis=-1)


def _entropy_remainder(xp: Namespace, a: Array, c: Array, change: Array) -> Array:
    """Return the remainder of x log x − x, which is c log(c/a) − c + a."""
    return c * phi(xp, log_ratio(xp, c, a, change))


def stirling_remainder(xp: Namespace, a: Array, c: Array, difference: Array | None = None) -> Array:
    """Return the remainder of log Γ(x) − x log x + x, for a and c from 10 on."""
    change = c - a if difference is None else difference
    r = log_ratio(xp, c, a, change)
    bend = phi(xp, -r)
    total = 0.5 * bend
    powers = range(1, 2 * len(_BINET), 2)
    bends = phi(xp, xp.stack([m * r for m in powers], axis=-1))
    falling = 1.0 / a
    square = falling * falling
    for n, (m, coefficient) in enumerate(zip(powers, _BINET, strict=True)):
        total = total + coefficient * falling * (bends[..., n] + m * bend)
        falling = falling * square
    return total


def gamma_excess(xp: Namespace, a: Array, c: Array, difference: Array | None = None) -> Array:
    """Return the remainder of log Γ(x) − x log x + x for all a, c > 0; ≥ 0."""
    change = c - a if difference is None else difference
    large = (a >= _SHIFT) & (c >= _SHIFT)
    big_a, big_c = (xp.where(large, x, float(_SHIFT)) for x in (a, c))
    small_a, small_c = (xp.where(large, 1.0, x) for x in (a, c))
    zero = xp.zeros_like(change)
    direct = stirling_remainder(xp, big_a, big_c, xp.where(large, change, zero))
    less = xp.where(large, zero, change)
    shifted = lgamma_remainder(xp, small_a, small_c, less)
    shifted = shifted - _entropy_remainder(xp, small_a, small_c, less)
    return xp.where(large, direct, shifted)


def lgamma_from_two(xp: Namespace, s: Array, less: Array) -> Array:
    """Return log Γ(1 + s), right to a few units of itself near s = 1 too; ``less`` is s − 1."""
    two = xp.full_like(s, 2.0)
    return lgamma_remainder(xp, two, 1.0 + s, less) + less * (1.0 - EULER)


# --- by integration -------------------------------------------------------------------------------

# Nodes and weights of Gauss-Legendre on [0, 1], ten points: exact for polynomials of degree 19.
_NODES = (
    (0.013046735741414140, 0.033335672154344069),
    (0.067468316655507744, 0.074725674575290297),
    (0.160295215850487797, 0.109543181257991022),
    (0.283302302935376405, 0.134633359654998178),
    (0.425562830509184394, 0.147762112357376435),
    (0.574437169490815606, 0.147762112357376435),
    (0.716697697064623595, 0.134633359654998178),
    (0.839704784149512203, 0.109543181257991022),
    (0.932531683344492256, 0.074725674575290297),
    (0.986953264258585860, 0.033335672154344069),
)


def integrated_remainder(curvature: Callable[[Array], Array], a: Array, change: Array) -> Array:
    """Return ∫ₐᶜ (c − t) f″(t) dt, the remainder of f, where ``change`` = c − a is small."""
    parts = [weight * (1.0 - node) * curvature(a + node * change) for node, weight in _NODES]
    return change * change * sum(parts[1:], parts[0])


def log_det_remainder(xp: Namespace, e: Array) -> Array:
    """Return tr E − log det(I + E) ≥ 0 of symmetric matrices of a norm below ½.

    It is ∫₀¹ t tr(E (I + tE)⁻¹ E) dt, whose integrand is ≥ 0; with poles no nearer than t = ±2 the
    ten nodes are right to 5.8⁻²⁰. Smooth at E = 0, and where eigenvalues are equal.
    """
    where = xp.arange(e.shape[-1])
    one = xp.astype(where[:, None] == where[None, :], e.dtype)
    parts = [
        weight * node * xp.sum(e * xp.linalg.solve(one + node * e, e), axis=(-2, -1))
        for node, weight in _NODES
    ]
    return sum(parts[1:], parts[0])


def softplus_remainder(xp: Namespace, a: Array, b: Array) -> Array:
    """Return log(1+eᵇ) − log(1+eᵃ) − (b − a)·σ(a): the divergence of two Bernoullis by logits."""
    d = a - b
    flip = a > 0  # of the two outcomes take the rarer one
    a, b, d = xp.where(flip, -a, a), xp.where(flip, -b, b), xp.where(flip, -d, d)
    p = 1.0 / (1.0 + xp.exp(-a))
    small = abs(d) < 1.0
    near_d = xp.where(small, d, 0.0)
    bend = phi(xp, near_d)
    near = p * bend - log1p_gap(xp, p * (bend - near_d))
    far_d = xp.where(small, 1.0, d)
    far = _softplus(xp, b) - _softplus(xp, a) + p * far_d
    return xp.where(small, near, far)


def _softplus(xp: Namespace, x: Array) -> Array:
    return xp.where(x > 0, x, 0.0) + xp.log1p(xp.exp(-abs(x)))
