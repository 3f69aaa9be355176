r"""The pointwise divergence y·(log y − x) and its derivatives, each in one place.

Here ``x`` is log Q, and ``y`` is P, or log P where the name says ``log_target``. Every class
evaluates one function of one element; `PointwiseLoss` masks and reduces it.

The edges (P = 0, log P = −∞, log Q = ±∞) follow one rule: 0·anything is 0, except that NaN stays
NaN. One ``where`` on the result is enough, because no library differentiates through these values:
the derivatives are the classes themselves. The exceptions are marked ``native``; a library that
differentiates through ``where`` multiplies the side that it drops by zero, and 0·∞ is NaN, so there
both sides are finite before it selects. In x alone `KL` is ``native`` too: the side that it drops
has the slope −y, which is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from kldiv.formulas.reductions import Loss, cast, like, weighed

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run, Tangents


class Pointwise:
    """A function f(x, y) of one element with its partial derivatives."""

    native = False
    native_in_first = False

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        """Evaluate f elementwise."""
        raise NotImplementedError

    def derivative(self, index: int) -> Pointwise:
        """Return ∂f/∂x for index 0, ∂f/∂y for index 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Pointwise):
    """f = a number, whatever x and y are."""

    number: float

    native = True

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        return xp.full_like(x, self.number)

    def derivative(self, index: int) -> Pointwise:
        return Constant(0.0)


@dataclass(frozen=True)
class KL(Pointwise):
    """f = y·(log y − x); 0 at y = 0 whatever x is, but for NaN."""

    native_in_first = True

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        zero = (y == 0) & (x == x)  # noqa: PLR0124 - not of NaN, which stays NaN
        return xp.where(zero, y, y * (xp.log(y) - x))

    def derivative(self, index: int) -> Pointwise:
        return (MinusTarget(), TargetSlope())[index]


@dataclass(frozen=True)
class MinusTarget(Pointwise):
    """∂f/∂x = −y."""

    native = True

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        return -y


@dataclass(frozen=True)
class TargetSlope(Pointwise):
    """∂f/∂y = log y + 1 − x; 0 at y = 0, where the true slope is −∞.

    A softmax before it multiplies the slope by y, and y·log y → 0: so 0 is right for the chain.
    """

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        return xp.where(y == 0, y, xp.log(y) + 1.0 - x)

    def derivative(self, index: int) -> Pointwise:
        # −1 at y = 0 too: f is linear in x with slope −y
        return (Constant(-1.0), TargetCurvature())[index]


@dataclass(frozen=True)
class TargetCurvature(Pointwise):
    """∂²f/∂y² = 1/y; 0 at y = 0, as the slope is constant there."""

    native = True

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        zero = y == 0
        return xp.where(zero, 0.0, 1.0 / xp.where(zero, 1.0, y))


@dataclass(frozen=True)
class KLLogTarget(Pointwise):
    """f = e^y·(y − x + order); 0 at y = −∞.

    Order 0 is the divergence of log-probabilities; ∂/∂y only raises the order, ∂/∂x is −e^y.
    """

    order: int = 0

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        weight = xp.exp(y)
        difference = y - x + float(self.order) if self.order else y - x
        # e^y underflows where y is finite and far below zero; P is positive there all the same, so
        # that an infinite difference must win over the rounded zero.
        value = xp.where(xp.isinf(difference), difference, weight * difference)
        edge = xp.where(xp.isnan(x), x, weight)  # read where y = −∞ only: NaN, or e^y = 0
        return xp.where(y == -xp.inf, edge, value)

    def derivative(self, index: int) -> Pointwise:
        return (MinusExpTarget(), KLLogTarget(self.order + 1))[index]


@dataclass(frozen=True)
class MinusExpTarget(Pointwise):
    """∂f/∂x = −e^y, and every derivative of it in y too."""

    native = True

    def value(self, xp: Namespace, x: Array, y: Array) -> Array:
        return -xp.exp(y)


@dataclass(frozen=True)
class PointwiseLoss(Loss):
    """A pointwise function, masked and reduced.

    Its arrays are ``x``, ``y`` and, where there is a mask, ``keep``. Elements that the mask drops
    are replaced before the function sees them and again after, so that NaN and ∞ there reach
    neither the value nor any derivative.
    """

    function: Pointwise = field(default_factory=KL)

    name: ClassVar[str] = "kl_div"
    differentiable: ClassVar[int] = 2
    leading: ClassVar[int] = 2
    native: ClassVar[bool] = False

    @property
    def native_in_first(self) -> bool:
        # Where nothing is reduced, a cotangent of 0 drops elements, were they NaN or infinite.
        return self.reduction != "none" and self.function.native_in_first

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        x, y = cast(xp, arrays[0], self.compute), cast(xp, arrays[1], self.compute)
        keep = self.keep(arrays)
        if keep is None:
            return self.function.value(xp, x, y)
        values = self.function.value(xp, xp.where(keep, x, 0.0), xp.where(keep, y, 0.0))
        return xp.where(keep, values, 0.0)

    def slope(self, index: int) -> PointwiseLoss:
        """Return the elementwise derivative in the array of that index, not rounded."""
        return elements_of(self.function.derivative(index), self.compute)

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        slope = run(self.slope(index), *arrays)
        weight = self.weight(xp, cotangent, slope.shape, self.keep(arrays))
        gradient = weighed(xp, weight, slope) if self.reduction == "none" else weight * slope
        return like(xp, gradient, arrays[index])

    def moved(
        self, xp: Namespace, run: Run, tangents: Tangents, weight: Array | None, *arrays: Array
    ) -> Array:
        moved = []
        for index, tangent in enumerate(tangents):
            if tangent is not None:
                slope = run(self.slope(index), *arrays)
                slope = slope if weight is None else weighed(xp, weight, slope)
                moved.append(slope * cast(xp, tangent, self.compute))
        return sum(moved[1:], moved[0])


@dataclass(frozen=True)
class NativeElements(PointwiseLoss):
    """Elements that libraries differentiate right by themselves."""

    native: ClassVar[bool] = True
    native_in_first: ClassVar[bool] = True


def elements_of(function: Pointwise, compute: str) -> PointwiseLoss:
    """Return the operation of a function's elements, not rounded."""
    kind = NativeElements if function.native else PointwiseLoss
    return kind("none", compute, compute, compute, function)
