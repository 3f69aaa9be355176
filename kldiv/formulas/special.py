r"""Small pieces without cancellation: φ, log1p with its remainder, and exact sums.

Each series is accurate to a few roundings u on the interval that it names; its number of terms follows
from the dtype.  Only ``exp`` and ``log`` of the libraries enter, never near a zero of theirs: XLA's
``log1p`` on a CPU is off by up to 129 u in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace

NEAR = 2.0
"""|x| below which φ is a power series; beyond it ``e⁻ˣ + (x − 1)`` loses nothing."""

# φ(x)/x² = Σ (−x)ᵏ/(k + 2)!: the first term left out is below u/4 of the sum at |x| = 2.
_PHI = tuple((-1) ** k / math.factorial(k + 2) for k in range(25))
_PHI_TERMS = {False: 14, True: 25}
# (log1p(y) − 2z)/z³ = Σ 2z²ᵏ/(2k + 3) with z = y/(2 + y): the same at |z| = 1/3.
_TAIL = tuple(2 / (2 * k + 3) for k in range(16))
_TAIL_TERMS = {False: 7, True: 16}


def phi(xp: Namespace, x: Array) -> Array:
    """Return φ(x) = e⁻ˣ − 1 + x ≥ 0, the convex function behind every divergence here."""
    return xp.where(abs(x) < NEAR, phi_near(xp, x), xp.exp(-x) + (x - 1.0))


def phi_near(xp: Namespace, x: Array) -> Array:
    """Return φ(x) for |x| < `NEAR`."""
    return x * x * _polynomial(x, _PHI[: _PHI_TERMS[x.dtype == xp.float64]])


def log1p(xp: Namespace, y: Array) -> Array:
    """Return log(1 + y), y > −1."""
    z, tail = _halves(xp, y)
    # Beyond the series 1 + y is exact (y < −1/2) or its rounding small beside the logarithm (y > 1).
    return xp.where(abs(z) < _Z, 2.0 * z + tail, xp.log(1.0 + y))


def log1p_gap(xp: Namespace, y: Array) -> Array:
    """Return y − log(1 + y) ≥ 0, y > −1."""
    z, tail = _halves(xp, y)
    return xp.where(abs(z) < _Z, y * z - tail, y - xp.log(1.0 + y))


_Z = 1 / 3  # −1/2 < y < 1


def _halves(xp: Namespace, y: Array) -> tuple[Array, Array]:
    # log1p(y) = 2 artanh(z) = 2z + tail, and y − 2z = y·z exactly.
    z = y / (2.0 + y)
    square = z * z
    return z, z * square * _polynomial(square, _TAIL[: _TAIL_TERMS[y.dtype == xp.float64]])


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    *rest, value = coefficients
    for coefficient in reversed(rest):
        value = value * x + coefficient
    return value


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b rounded, and what the rounding lost [Knuth, TAOCP 2, 4.2.2, theorem B]."""
    high = a + b
    other = high - a
    return high, (a - (high - other)) + (b - other)


def two_difference(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a − b rounded, and what the rounding lost."""
    high = a - b
    other = high - a
    return high, (a - (high - other)) - (b + other)
