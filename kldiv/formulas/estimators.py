"""Estimators of D(P‖Q) from one sample of P: functions of log p and log q, with derivatives.

With x = log p − log q (J. Schulman, "Approximating KL divergence", 2020): k1 = x has the mean
D(P‖Q); k3 = φ(x) = x + (e⁻ˣ − 1) too, as the added term has the mean 0, and is never negative;
k2 = x²/2 is biased, and close where P and Q are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kldiv.formulas.pointwise import Constant, Pointwise
from kldiv.formulas.special import expm1, phi, two_difference

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@dataclass(frozen=True)
class K1(Pointwise):
    """f = x."""

    sign: float = 1.0

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        return self.sign * (x - y)

    def derivative(self, index: int) -> Pointwise:
        return Constant(self.sign * (1.0, -1.0)[index])


@dataclass(frozen=True)
class K2(Pointwise):
    """f = x²/2."""

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        ratio = x - y
        return 0.5 * ratio * ratio

    def derivative(self, index: int) -> Pointwise:
        return K1((1.0, -1.0)[index])


@dataclass(frozen=True)
class K3(Pointwise):
    """f = φ(x) = e⁻ˣ − 1 + x."""

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        ratio, rest = _log_ratio(xp, x, y)
        # From −10⁴ on e⁻ˣ is ∞ in every dtype, and beside it −∞ would make NaN.
        return phi(xp, xp.clip(ratio, -1e4, xp.inf)) - _product(xp, rest, expm1(xp, -ratio))

    def derivative(self, index: int) -> Pointwise:
        return Fall((1.0, -1.0)[index])


@dataclass(frozen=True)
class Fall(Pointwise):
    """f = ±(1 − e⁻ˣ), the derivative of φ."""

    sign: float

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        ratio, rest = _log_ratio(xp, x, y)
        return -self.sign * (expm1(xp, -ratio) - _product(xp, rest, xp.exp(-ratio)))

    def derivative(self, index: int) -> Pointwise:
        return Ratio(self.sign * (1.0, -1.0)[index])


@dataclass(frozen=True)
class Ratio(Pointwise):
    """f = ±e⁻ˣ = ±q/p."""

    sign: float

    native = True

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        return self.sign * xp.exp(y - x)

    def derivative(self, index: int) -> Pointwise:
        return Ratio(self.sign * (-1.0, 1.0)[index])


@dataclass(frozen=True)
class ScoreFunction(Pointwise):
    """The value of another estimator with the derivative of k2: x times that of x.

    On samples of P its mean is the gradient of D(P‖Q) itself: E[x ∇log p], as E[∇log p] = 0.
    """

    of: Pointwise

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        return self.of.value(xp, x, y)

    def derivative(self, index: int) -> Pointwise:
        return K2().derivative(index)


@dataclass(frozen=True)
class Clipped(Pointwise):
    """f of x moved into [−limit, limit], with the derivatives of f there, as if nothing had moved.

    The clip's own derivative is 1 everywhere (straight through), so that no sample stops learning.
    """

    of: Pointwise
    limit: float

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        ratio = x - y
        above, below = ratio > self.limit, ratio < -self.limit
        x = xp.where(above, self.limit, xp.where(below, -self.limit, x))
        return self.of.value(xp, x, xp.where(above | below, 0.0, y))

    def derivative(self, index: int) -> Pointwise:
        return Clipped(self.of.derivative(index), self.limit)


def _product(xp: Namespace, rest: Array, slope: Array) -> Array:
    """Return the low word of x times the slope: 0 where the slope is infinite."""
    finite = xp.isfinite(slope)
    return xp.where(finite, rest * xp.where(finite, slope, 0.0), 0.0)


def _log_ratio(xp: Namespace, x: Array, y: Array) -> tuple[Array, Array]:
    """Return log p − log q as a double word; the low word is 0 where these are not finite."""
    high, low = two_difference(x, y)
    return high, xp.where(xp.isfinite(high) & xp.isfinite(low), low, 0.0)
