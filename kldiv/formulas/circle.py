"""The log-partition function of the VonMises, log I₀, without its leading term.

Means over the circle by the trapezium rule, of weights e^(−k(1 − cos θ)): all terms are ≥ 0, and
the rule converges geometrically.  Where the weights become too narrow for it the asymptotic series
stands.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kldiv.formulas.special import log1p, polynomial

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace

_LARGE = 24.0
"""Below, 56 nodes are right to 2 I₅₆/I₀, 1e-22, of which the variance is 1e-3 beside squares; from
here on the series is, to e^(−2·24)."""

# 1 − cos θ at one half of the circle, the other one being its mirror image; the smallest terms are
# added first.
_NODES = tuple(2 * math.sin((j + 0.5) * math.pi / 56) ** 2 for j in reversed(range(28)))


def _asymptotics() -> list[float]:
    """Return aₙ of A = I₁/I₀ = 1 − Σ aₙ k⁻ⁿ, from its equation dA/dk = 1 − A/k − A²."""
    a = [1.0]
    for n in range(1, 37):
        products = sum(a[i] * a[n - i] for i in range(1, n))
        a.append(((n - 2) * a[n - 1] - products) / 2)
    return [-value for value in a[1:]]


_FALLING = _asymptotics()
_LOGARITHM = [0.0, *(c / n for n, c in enumerate(_FALLING[1:], 1))]
_VARIANCE = [(n + 1) * c for n, c in enumerate(_FALLING)]

# I₀ − 1 = x Σ xᵐ/(m + 1)!², x = k²/4, right to 1e-19 for k below 4.
TINY, SMALL = 1.5, 4.0
_RISE = [1 / math.factorial(m + 1) ** 2 for m in range(16)]


def _near_zero() -> list[float]:
    """Return bₙ of A = k Σ bₙ k²ⁿ, from the same equation, right to 1e-17 below `TINY`.

    They fall as the first zero of I₀(ik) has it, by 2.405². Their signs alternate: the slope of
    the sum has no digits to lose.
    """
    b = [0.5]
    for n in range(1, 42):
        b.append(-sum(b[i] * b[n - 1 - i] for i in range(n)) / (2 * n + 2))
    return b


_RISING = _near_zero()
_EXCESS = [(2 * n + 1) / (2 * n + 2) * b for n, b in enumerate(_RISING)]


def _split(xp: Namespace, k: Array) -> tuple[Array, Array, Array]:
    """Return where k is below `_LARGE`, k there, and 1/k elsewhere."""
    small = k < _LARGE
    return small, xp.where(small, k, 1.0), 1.0 / xp.where(small, _LARGE, k)


def decayed_bessel(xp: Namespace, k: Array) -> Array:
    """Return e⁻ᵏ I₀(k) ≤ 1 for k ≥ 0."""
    small, near, inverse = _split(xp, k)
    mean = sum(xp.exp(-w * near) for w in _NODES) / len(_NODES)
    # The series of the logarithm: its derivative is that of A.
    root = math.sqrt(2 * math.pi) * xp.sqrt(xp.where(small, _LARGE, k))  # 2πk may overflow
    far = xp.exp(polynomial(inverse, _LOGARITHM)) / root
    return xp.where(small, mean, far)


def small_log_bessel(xp: Namespace, k: Array) -> Array:
    """Return log I₀(k) where k is below `SMALL`, 0 elsewhere."""
    half = 0.5 * xp.where(k < SMALL, k, 0.0)
    x = half * half
    return log1p(xp, x * polynomial(x, _RISE))


def tiny_excess(xp: Namespace, k: Array) -> Array:
    """Return k A(k) − log I₀(k) where k is below `TINY`, 0 elsewhere: its slope is k A′(k)."""
    near = xp.where(k < TINY, k, 0.0)
    x = near * near
    return x * polynomial(x, _EXCESS)


def mean_cosine(xp: Namespace, k: Array) -> tuple[Array, Array]:
    """Return A = I₁/I₀, the derivative of log I₀, and 1 − A, each to a few units of itself."""
    small, near, inverse = _split(xp, k)
    total = part = 0.0
    for w in _NODES:
        weight = xp.exp(-w * near)
        total, part = total + weight, part + w * weight
    rest = xp.where(small, part / total, polynomial(inverse, _FALLING) * inverse)
    tiny = k < TINY  # there the slope of 1 − A cancels, beyond it that of the quotient
    near = xp.where(tiny, k, 0.0)
    ratio = near * polynomial(near * near, _RISING)
    return xp.where(tiny, ratio, 1.0 - rest), xp.where(tiny, 1.0 - ratio, rest)


def cosine_variance(xp: Namespace, k: Array) -> Array:
    """Return the derivative of A, the variance of cos θ, for k ≥ 0."""
    small, near, inverse = _split(xp, k)
    total = part = square = 0.0
    for w in _NODES:  # of 1 − cos θ, whose mean is as small as its deviation
        weight = xp.exp(-w * near)
        total, part, square = total + weight, part + w * weight, square + w * w * weight
    mean = part / total
    far = polynomial(inverse, _VARIANCE) * inverse * inverse
    return xp.where(small, square / total - mean * mean, far)
