r"""Binet's function g(x) = log Γ(x) − (x − ½) log x + x − ½ log 2π, and functions made of it.

They remain of log Γ and of digamma where the leading terms of a divergence have cancelled by
algebra.  All are right to some tens of units of themselves for x from the smallest numbers to the
largest: Γ's recurrence shifts x up, g(x) − g(x + 1) = (x + ½) log(1 + 1/x) − 1, and there stands
Stirling's series.  Below, dg is the derivative of g.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from kldiv.formulas.remainders import BINET, SHIFT, binet_terms, series_remainder, up_from
from kldiv.formulas.special import artanh_parts, log1p_gap, log_ratio, polynomial

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace


_LEAST: Final = 1e-30
"""Below it x log x is nothing beside 1."""


def _odd(xp: Namespace, x: Array, factor: Callable[[int], float]) -> Array:
    """Return Σ factor(m) cₙ x^(−m), m = 2n − 1."""
    falling = 1.0 / x
    terms = [factor(2 * n + 1) * c for n, c in enumerate(BINET[: binet_terms(xp, x)])]
    return falling * polynomial(falling * falling, terms)


def binet(xp: Namespace, x: Array) -> Array:
    """Return g(x) > 0 for x > 0."""
    each = up_from(xp, x)
    z, rest = artanh_parts(xp, 1.0 / (2.0 * each + 1.0))
    step = (each + 0.5) * log_ratio(xp, each + 1.0, each, xp.ones_like(each)) - 1.0
    step = xp.where(each > 1.0, rest / (2.0 * z), step)
    return xp.sum(step, axis=-1) + _odd(xp, x + SHIFT, lambda _: 1.0)


def excess(xp: Namespace, x: Array) -> Array:
    """Return log x! − x log x + x = g(x) + ½ log 2πx for x ≥ 0, to a few units of 1 or of itself.

    Γ's recurrence is one product here, of few operations and little memory:
    g(x) + ½ log x = g(y) + ½ log y + log(e^(−10) Π y/(x + j)) + x log(y/x), y = x + 10 and j < 10.
    """
    large = x >= SHIFT
    small = xp.where((x > _LEAST) & ~large, x, _LEAST)
    rise = math.exp(-SHIFT) * (1.0 + (SHIFT - 1) / (small + 1.0))
    for j in range(2, SHIFT):
        rise = rise * (1.0 + (SHIFT - j) / (small + j))
    high = xp.where(large, x, small + SHIFT)
    value = xp.log(math.sqrt(2 * math.pi) * xp.sqrt(high) * xp.where(large, 1.0, rise))
    value = value + _odd(xp, high, lambda _: 1.0)
    value = value + xp.where(large, 0.0, small * xp.log1p(SHIFT / small))
    return xp.where(x > 0, value, 0.0 * x)


def binet_slope(xp: Namespace, x: Array) -> Array:
    """Return dg(x) = digamma(x) − log x + 1/(2x) < 0 for x > 0."""
    each = up_from(xp, x)
    z, rest = artanh_parts(xp, 1.0 / (2.0 * each + 1.0))
    step = log_ratio(xp, each + 1.0, each, xp.ones_like(each)) - 0.5 / each - 0.5 / (each + 1.0)
    step = xp.where(each > 1.0, rest - 2.0 * z * z * z / (1.0 - z * z), step)
    return xp.sum(step, axis=-1) + _odd(xp, x + SHIFT, lambda m: -m) / (x + SHIFT)


def binet_slope_growth(xp: Namespace, x: Array, d: Array) -> Array:
    """Return dg(x + d) − dg(x) for d ≥ 0, however small; it is ≥ 0."""
    low, high, more = up_from(xp, x), up_from(xp, x + d), d[..., None]
    step = 0.5 * (more / low / high) * ((more + 1.0) / (low + 1.0) / (high + 1.0))
    step = step - _gap(xp, low, high, more)
    u, v = 1.0 / (x + SHIFT), 1.0 / (x + d + SHIFT)
    total, power, inner = -BINET[0] * (u + v), u, u + v
    for k in range(2, 2 * binet_terms(xp, u)):  # inner is Σ uⁱ vʲ, i + j = k
        power = power * u
        inner = v * inner + power
        if k % 2:
            total = total - k * BINET[k // 2] * inner
    return xp.sum(step, axis=-1) - d * u * v * total


def binet_remainder(xp: Namespace, x: Array, d: Array) -> Array:
    """Return g(x + d) − g(x) − d·dg(x) ≥ 0 for d ≥ 0."""
    low, high, more = up_from(xp, x), up_from(xp, x + d), d[..., None]
    step = 0.5 * (more / low) * (more / high) / (low + 1.0)
    step = step - (high + 0.5) * _gap(xp, low, high, more)
    return xp.sum(step, axis=-1) + series_remainder(xp, x + SHIFT, x + d + SHIFT, d)


def _gap(xp: Namespace, x: Array, y: Array, d: Array) -> Array:
    """Return ρ − log(1 + ρ), 1 + ρ = σ(x)/σ(y), σ(x) = x/(x + 1), d = y − x ≥ 0."""
    rho = -(d / y) / (x + 1.0)
    near = rho > -0.5
    far = rho - log_ratio(xp, x / (x + 1.0), y / (y + 1.0))
    return xp.where(near, log1p_gap(xp, xp.where(near, rho, 0.0)), far)


def gamma_negentropy(xp: Namespace, a: Array) -> Array:
    """Return how far a Gamma is from the Normal of its mean and variance: near 1/(3a)."""
    slope = binet_slope(xp, a)
    return (0.5 / a - (binet(xp, a) - a * slope)) - slope


def beta_negentropy(xp: Namespace, a: Array, b: Array) -> Array:
    """Return how far a Beta is from the Normal of its mean and variance.

    It begins with (a − b)²/(3ab(a + b)).
    """
    total = a + b
    skewed = ((a - b) / total) * ((a - b) / a) / (3.0 * b)
    x = xp.stack([a, b, total], axis=-1)
    slope = binet_slope(xp, x)
    large = x >= SHIFT
    # g − x·dg less its first term, 1/(6x)
    series = _odd(xp, xp.where(large, x, float(SHIFT)), lambda m: 0.0 if m == 1 else m + 1.0)
    rest = xp.where(large, series, (binet(xp, x) - x * slope) - 1.0 / (6.0 * x))
    own = 0.5 * log1p_gap(xp, 1.0 / total) + (rest[..., 2] + 2.0 * slope[..., 2])
    return skewed + own - (rest[..., 0] + slope[..., 0]) - (rest[..., 1] + slope[..., 1])
