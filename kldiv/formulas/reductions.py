"""From elements to a loss: reduce (none, mean, batchmean, sum) with a mask, and round once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from kldiv.formulas.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace, Reduction
    from kldiv.formulas.operation import Run, Tangents

Kind = TypeVar("Kind", bound="RowWise")

REDUCTIONS: tuple[Reduction, ...] = ("none", "mean", "batchmean", "sum")


_ADDED_IN_PAIRS = ("float16", "bfloat16", "float32", "float64")
_ONE_BY_ONE = 8
"""Numbers that are added without pairs."""


def cast(xp: Namespace, array: Array, dtype: str) -> Array:
    """Return ``array`` in the dtype of that name, itself where it is so already."""
    wanted = getattr(xp, dtype)
    return array if array.dtype == wanted else xp.astype(array, wanted)


def like(xp: Namespace, array: Array, other: Array) -> Array:
    """Return ``array`` in the dtype of another, itself where it is so already."""
    return array if array.dtype == other.dtype else xp.astype(array, other.dtype)


def sum_in_pairs(
    own: Namespace, x: Array, axis: int | tuple[int, ...] | None, *, keepdims: bool
) -> Array:
    """Return sums, of floats in float64 and in pairs, where a library's ``own`` go one by one."""
    if not any(x.dtype == getattr(own, name) for name in _ADDED_IN_PAIRS):
        return own.sum(x, axis=axis, keepdims=keepdims)
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(sorted(a % x.ndim for a in axes))
    total = own.astype(x, own.float64)
    for each in reversed(axes):
        total = own.moveaxis(total, each, -1)
        while x.dtype == own.float64 and total.shape[-1] > _ONE_BY_ONE:
            half = total.shape[-1] // 2
            rest = total[..., 2 * half :]
            total = total[..., :half] + total[..., half : 2 * half]
            total = own.concat([total, rest], axis=-1) if rest.shape[-1] else total
        total = own.sum(total, axis=-1)
    total = like(own, total, x)
    return own.expand_dims(total, axes) if keepdims and axes else total


def finite_or_zero(xp: Namespace, values: Array) -> Array:
    """Return the values, 0 where they are NaN or infinite."""
    return xp.where(xp.isfinite(values), values, 0.0)


def weighed(xp: Namespace, weight: Array, values: Array) -> Array:
    """Return weight·values, 0 where the weight is 0, were the value NaN or infinite."""
    lost = (weight == 0) & ~xp.isfinite(values)
    return weight * xp.where(lost, 0.0, values)


def count(
    xp: Namespace,
    reduction: Reduction,
    shape: tuple[int, ...],
    keep: Array | None,
    dtype: str,
    lead: int = 0,
) -> Array | float | None:
    """Return the divisor of the sum: how many elements, or batch entries; None for a sum.

    The first ``lead`` axes hold losses of their own.
    """
    own = shape[lead:]
    if reduction == "batchmean" and own:
        if keep is None:
            return _size(xp, own[0], dtype)
        rows = xp.broadcast_to(keep, shape)
        if len(own) > 1:
            rows = xp.any(rows, axis=tuple(range(lead + 1, len(shape))))
        return _number_of(xp, rows, dtype, lead)
    if reduction == "mean":
        if keep is None:
            return _size(xp, math.prod(own), dtype)
        return _number_of(xp, xp.broadcast_to(keep, shape), dtype, lead)
    return None


def _size(xp: Namespace, number: int, dtype: str) -> Array | float:
    """Return a number of elements that an exported program may not know before it runs."""
    if isinstance(number, int):
        return float(number)
    found: Any = 1.0 * number  # JAX makes an array of its symbols, PyTorch another symbol
    return cast(xp, found, dtype) if hasattr(found, "dtype") else found


def _number_of(xp: Namespace, mask: Array, dtype: str, lead: int) -> Array | float:
    # Counted as integers: a float32 counter would stop at 2²⁴.
    if lead:
        axes = tuple(range(lead, mask.ndim))
        return cast(xp, xp.count_nonzero(mask, axis=axes) if axes else mask, dtype)
    number = xp.count_nonzero(mask)
    return float(number) if isinstance(number, int) else cast(xp, number, dtype)  # int: old NumPy


def divide(xp: Namespace, total: Array, number: Array | float | None, empty: float) -> Array:
    """Return ``total / number``, and 0·``empty`` where nothing was counted."""
    if number is None:
        return total
    if isinstance(number, float):
        return total / number if number else total * empty
    if not hasattr(number, "dtype"):  # a symbol
        return total / number
    nothing = number == 0
    # Not `total * empty` beside the quotient: its derivative would be NaN everywhere.
    return xp.where(nothing, empty * 0.0, total) / xp.where(nothing, 1.0, number)


@dataclass(frozen=True)
class Loss(Operation):
    """Elements, reduced and rounded once to the result's dtype.

    Its last array, where there is a mask, is ``keep``: boolean, broadcasting to the elements, which
    are 0 where it is False.
    """

    reduction: Reduction = "none"
    compute: str = "float32"
    """Name of the dtype that elements are computed in."""
    total: str = "float32"
    """Name of the dtype that sums are accumulated in: wider where the library does so cheaply."""
    result: str = "float32"

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        """Evaluate every element in the compute dtype."""
        raise NotImplementedError

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """Return the shape of the elements."""
        return tuple(arrays[0].shape)

    def elementwise(self) -> Loss:
        """Return the operation that computes the elements only, one block apart from another."""
        return replace(self, reduction="none", result=self.compute)

    def keep(self, arrays: Sequence[Array]) -> Array | None:
        """Return the mask among the arrays, if there is one."""
        return arrays[self.leading] if len(arrays) > self.leading else None

    @property
    def leading(self) -> int:
        """How many arrays come before the mask."""
        return self.differentiable

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        return self.gather(xp, self.elements(xp, *arrays), arrays)

    def gather(self, xp: Namespace, elements: Array, arrays: Sequence[Array]) -> Array:
        """Return the value, given its elements."""
        return self.finish(xp, elements, self.keep(arrays))

    def finish(
        self,
        xp: Namespace,
        values: Array,
        keep: Array | None,
        empty: float = math.nan,
        lead: int = 0,
    ) -> Array:
        """Reduce the elements and round; the mean of nothing is ``empty``.

        The first ``lead`` axes stay: they hold losses of their own.
        """
        if self.reduction != "none":
            number = count(xp, self.reduction, values.shape, keep, self.total, lead)
            values = divide(xp, self._sum(xp, values, lead), number, empty)
        return cast(xp, values, self.result)

    def _sum(self, xp: Namespace, values: Array, lead: int) -> Array:
        axes = tuple(range(lead, values.ndim)) if lead else None
        if axes == ():
            return values
        if self.total == self.compute:
            return xp.sum(values, axis=axes)
        return xp.sum(values, axis=axes, dtype=getattr(xp, self.total))

    def weight(
        self,
        xp: Namespace,
        cotangent: Array,
        shape: tuple[int, ...],
        keep: Array | None,
        lead: int = 0,
    ) -> Array:
        """Return the gradient in the elements, given the gradient in the result.

        Of several losses, on the first ``lead`` axes of the elements, there is one for each.
        """
        number = count(xp, self.reduction, shape, keep, self.compute, lead)
        return divide(xp, cast(xp, cotangent, self.compute), number, 0.0)

    def moved(
        self, xp: Namespace, run: Run, tangents: Tangents, weight: Array | None, *arrays: Array
    ) -> Array:
        """Return the tangent of each element, times a weight where there is one."""
        raise NotImplementedError

    def pushforward(self, xp: Namespace, run: Run, tangents: Tangents, *arrays: Array) -> Array:
        moved = self.moved(xp, run, tangents[: self.differentiable], None, *arrays)
        return self.finish(xp, moved, self.keep(arrays), empty=0.0)


@dataclass(frozen=True)
class RowWise(Loss):
    """A loss of rows, the last axis of its arrays, each apart from the others.

    Arrays with one axis less hold a number per row. An adapter may work on a few rows at a time.
    """

    keeps_classes: ClassVar[bool] = False
    """Whether the elements have the rows' axis, or are one number per row."""
    with_classes: ClassVar[int] = 2
    """How many of the leading arrays have the rows' axis."""
    common: ClassVar[tuple[str, ...]] = ()
    """Fields that operations of other kinds on the same rows have as well."""

    def settings(self, kind: type[Kind], **extra: Any) -> Kind:
        """Return an operation of another kind on the same rows, elementwise and not rounded."""
        make: Any = kind
        own = {name: getattr(self, name) for name in self.common} | extra
        found: Kind = make("none", self.compute, self.compute, self.compute, **own)
        return found

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        shape: tuple[int, ...] = arrays[0].shape
        return shape if self.keeps_classes else shape[:-1]

    def masked(self, xp: Namespace, values: Array, keep: Array | None) -> Array:
        """Return row values with zero where the mask drops the row."""
        values = values[..., 0]
        return values if keep is None else xp.where(keep, values, 0.0)

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        """Return a number per row times the gradient in the array of that index."""
        raise NotImplementedError

    def ones(self, xp: Namespace, arrays: Sequence[Array]) -> Array:
        """Return such numbers that are all 1."""
        return cast(xp, xp.ones_like(arrays[0][..., 0]), self.compute)

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        weight = self.weight(xp, cotangent, self.shape(arrays), self.keep(arrays))
        # Not broadcast_to: torch's older vmap, which checks batched gradients, has no rule for it.
        weight = weight * self.ones(xp, arrays)
        return like(xp, self.slope(xp, run, index, weight, arrays), arrays[index])

    def moved(
        self, xp: Namespace, run: Run, tangents: Tangents, weight: Array | None, *arrays: Array
    ) -> Array:
        weight = self.ones(xp, arrays) if weight is None else cast(xp, weight, self.compute)
        moved = []
        for index, tangent in enumerate(tangents):
            if tangent is not None:
                slope = self.slope(xp, run, index, weight, arrays)
                step = slope * cast(xp, tangent, self.compute)
                moved.append(xp.sum(step, axis=-1) if index < self.with_classes else step)
        return sum(moved[1:], moved[0])
