"""From elements to a loss: mask, reduce (none, mean, batchmean, sum), round once.

``where`` follows one rule: what it leaves out is replaced before the function sees it and again
after, so that NaN and ∞ there reach neither the value nor any derivative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kldiv.formulas.operation import Operation, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace, Reduction
    from kldiv.formulas.pointwise import Pointwise

REDUCTIONS: tuple[Reduction, ...] = ("none", "mean", "batchmean", "sum")


def cast(xp: Namespace, array: Array, dtype: str) -> Array:
    """Return ``array`` in the dtype of that name, itself where it is so already."""
    wanted = getattr(xp, dtype)
    return array if array.dtype == wanted else xp.astype(array, wanted)


def count(
    xp: Namespace, reduction: Reduction, shape: tuple[int, ...], keep: Array | None, dtype: str
) -> Array | float | None:
    """Return what the sum is divided by: how many elements, or batch entries; None for a sum."""
    if reduction == "batchmean" and shape:
        if keep is None:
            return float(shape[0])
        rows = xp.broadcast_to(keep, shape)
        if len(shape) > 1:
            rows = xp.any(rows, axis=tuple(range(1, len(shape))))
        return _number_of(xp, rows, dtype)
    if reduction == "mean":
        if keep is None:
            return float(math.prod(shape))
        return _number_of(xp, xp.broadcast_to(keep, shape), dtype)
    return None


def _number_of(xp: Namespace, mask: Array, dtype: str) -> Array | float:
    # Counted as integers: a float32 counter would stop at 2²⁴.
    number = xp.count_nonzero(mask)
    return float(number) if isinstance(number, int) else cast(xp, number, dtype)  # int: old NumPy


def divide(xp: Namespace, total: Array, number: Array | float | None, empty: float) -> Array:
    """Return ``total / number``, and ``total · empty`` where nothing was counted."""
    if number is None:
        return total
    if isinstance(number, float):
        return total / number if number else total * empty
    nothing = number == 0
    return xp.where(nothing, total * empty, total / xp.where(nothing, 1.0, number))


@dataclass(frozen=True)
class Loss(Operation):
    """A pointwise function, masked, reduced and rounded once to the result's dtype.

    Its arrays are ``x``, ``y`` and, where there is a mask, ``keep`` (boolean, broadcasting to
    them).
    """

    pointwise: Pointwise
    reduction: Reduction = "none"
    compute: str = "float32"
    """Name of the dtype that elements are computed in."""
    total: str = "float32"
    """Name of the dtype that sums are accumulated in: wider where the library does so cheaply."""
    result: str = "float32"

    name: ClassVar[str] = "kl_div"
    differentiable: ClassVar[int] = 2

    @property
    def native(self) -> bool:
        return self.pointwise.native

    def elements(self, xp: Namespace, x: Array, y: Array, keep: Array | None = None) -> Array:
        """Evaluate every element in the compute dtype; zero where ``keep`` is False."""
        x = cast(xp, x, self.compute)
        y = cast(xp, y, self.compute)
        if keep is None:
            return self.pointwise.value(xp, x, y)
        values = self.pointwise.value(xp, xp.where(keep, x, 0.0), xp.where(keep, y, 0.0))
        return xp.where(keep, values, 0.0)

    def finish(self, xp: Namespace, values: Array, keep: Array | None = None) -> Array:
        """Reduce the elements, where masked ones are 0, and round; the mean of nothing is NaN."""
        return self._reduce(xp, values, keep, math.nan)

    def _reduce(self, xp: Namespace, values: Array, keep: Array | None, empty: float) -> Array:
        if self.reduction != "none":
            number = count(xp, self.reduction, values.shape, keep, self.total)
            values = divide(xp, self._sum(xp, values), number, empty)
        return cast(xp, values, self.result)

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        return self.finish(xp, self.elements(xp, *arrays), *arrays[2:])

    def _sum(self, xp: Namespace, values: Array) -> Array:
        if self.total == self.compute:
            return xp.sum(values)
        return xp.sum(values, dtype=getattr(xp, self.total))

    def elementwise(self) -> Loss:
        """Return the operation that computes the elements only, one block apart from another."""
        return self._elements_of(self.pointwise)

    def partial(self, index: int) -> Loss:
        """Return the elementwise derivative in array ``index``, not yet rounded."""
        return self._elements_of(self.pointwise.derivative(index))

    def _elements_of(self, pointwise: Pointwise) -> Loss:
        return Loss(pointwise, "none", self.compute, self.compute, self.compute)

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        slope = run(self.partial(index), *arrays)
        keep = arrays[2] if len(arrays) > 2 else None
        number = count(xp, self.reduction, slope.shape, keep, self.compute)
        weight = divide(xp, cast(xp, cotangent, self.compute), number, 0.0)
        gradient = weight * slope
        wanted = arrays[index].dtype
        return gradient if gradient.dtype == wanted else xp.astype(gradient, wanted)

    def pushforward(
        self, xp: Namespace, run: Run, tangents: Sequence[Array | None], *arrays: Array
    ) -> Array:
        moved = [
            run(self.partial(index), *arrays) * cast(xp, tangent, self.compute)
            for index, tangent in enumerate(tangents[:2])
            if tangent is not None
        ]
        keep = arrays[2] if len(arrays) > 2 else None
        return self._reduce(xp, moved[0] if len(moved) == 1 else moved[0] + moved[1], keep, 0.0)
