"""What one sample of P tells of D(P‖Q): functions of log p and log q, with their derivatives.

With x = log p − log q (J. Schulman, "Approximating KL divergence", 2020): k1 = x has the mean
D(P‖Q); k3 = φ(x) = x + (e⁻ˣ − 1) too, as what it adds has the mean 0, and is never negative;
k2 = x²/2 is biased, and close where P and Q are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kldiv.formulas.pointwise import Pointwise
from kldiv.formulas.special import expm1, phi, two_difference

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@dataclass(frozen=True)
class K1(Pointwise):
    """f = x."""

    sign: float = 1.0

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:  # noqa: ARG002
        return self.sign * (x - y)

    def derivative(self, index: int) -> Pointwise:
        return Constant(self.sign * (1.0, -1.0)[index])


@dataclass(frozen=True)
class Constant(Pointwise):
    """f = a number, whatever x is."""

    number: float

    native = True

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:  # noqa: ARG002
        return xp.full_like(x, self.number)


@dataclass(frozen=True)
class K2(Pointwise):
    """f = x²/2."""

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:  # noqa: ARG002
        ratio = x - y
        return 0.5 * ratio * ratio

    def derivative(self, index: int) -> Pointwise:
        return K1((1.0, -1.0)[index])


@dataclass(frozen=True)
class K3(Pointwise):
    """f = φ(x) = e⁻ˣ − 1 + x."""

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        ratio, rest = _log_ratio(xp, x, y)
        return phi(xp, ratio) - rest * expm1(xp, -ratio)

    def derivative(self, index: int) -> Pointwise:
        return Fall((1.0, -1.0)[index])


@dataclass(frozen=True)
class Fall(Pointwise):
    """f = ±(1 − e⁻ˣ), the derivative of φ."""

    sign: float

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        ratio, rest = _log_ratio(xp, x, y)
        return -self.sign * (expm1(xp, -ratio) - rest * xp.exp(-ratio))

    def derivative(self, index: int) -> Pointwise:
        return Ratio(self.sign * (1.0, -1.0)[index])


@dataclass(frozen=True)
class Ratio(Pointwise):
    """f = ±e⁻ˣ = ±q/p."""

    sign: float

    native = True

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        return self.sign * xp.exp(y - x)


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


def _log_ratio(xp: Namespace, x: Array, y: Array) -> tuple[Array, Array]:
    """Return log p − log q and what rounding lost of it, which is 0 where they are not finite."""
    high, low = two_difference(x, y)
    return high, xp.where(xp.isfinite(high) & xp.isfinite(low), low, 0.0)
