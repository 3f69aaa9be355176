"""The elements of a loss times a number each, then reduced."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kldiv.formulas.operation import Composite
from kldiv.formulas.reductions import Loss, cast, count, divide, finite_or_zero, like

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run, Tangents


@dataclass(frozen=True)
class Weighted(Composite, Loss):
    """The elements of another loss, each times a weight, reduced.

    Arrays: those of the other loss, the weights, which have the shape of its elements, and the
    mask.  Means divide by how many elements the mask keeps.  Elements of weight 0 are left out
    where the other loss computes them, so that no NaN of theirs counts; the derivative in such a
    weight is the element all the same.
    """

    loss: Any = None
    """The other loss, its elements in the dtype of sums."""

    @classmethod
    def of(cls, loss: Any) -> Weighted:
        """Return a loss with weights, its reduction and dtypes as they are."""
        each = replace(loss, reduction="none", result=loss.total)
        return cls(loss.reduction, loss.total, loss.total, loss.result, each)

    @property
    def own(self) -> int:
        """How many arrays there are before the weights."""
        number: int = self.loss.leading
        return number

    @property
    def differentiable(self) -> int:
        return self.own + 1

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.loss.shape(arrays)
        return shape

    def composed(self, xp: Namespace, run: Run, *arrays: Array) -> Array:
        weight = self._weight(xp, arrays)
        values = run(self.loss, *arrays[: self.own], weight != 0)
        return self.finish(xp, weight * values, self.keep(arrays))

    def natively(
        self,
        xp: Namespace,
        run: Run,
        constant: Callable[[Array], Array],
        arrays: Sequence[Array],
        *,
        twice: bool,
    ) -> Array:
        """Return the value by operations that the library differentiates, and ``run``.

        ``constant`` takes an array's gradient away.  Unless the other loss drops the gradient of
        elements whose cotangent is 0, they are computed ``twice``.
        """
        weight, keep = self._weight(xp, arrays), self.keep(arrays)
        values = run(self.loss, *self.without_weights(arrays))
        finite = xp.isfinite(constant(values))
        if twice:
            counts = (weight != 0) | finite
            counts = counts if keep is None else keep & counts
            values = run(self.loss, *arrays[: self.own], counts)
        slope = xp.where(finite, weight, constant(weight))
        values = xp.where((weight == 0) & ~finite, 0.0, values)
        return self.finish(xp, slope * values, keep)

    def fused(
        self, xp: Namespace, fused: Callable[..., Any], arrays: Sequence[Array], **wanted: Any
    ) -> tuple[Array | None, list[Array]] | None:
        gradients, cotangent = wanted.get("gradients", ()), wanted.get("cotangent")
        if not gradients or self.own in gradients:
            return None
        keep = self.keep(arrays)
        weight, factors = self.factors(xp, cotangent, arrays)
        own, wanted = [*arrays[: self.own], weight != 0], wanted | {"cotangent": factors}
        values, found = fused(self.loss, own, **wanted) or (None, None)
        if found is None:
            return None
        return None if values is None else self.finish(xp, weight * values, keep), found

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        weight, keep = self._weight(xp, arrays), self.keep(arrays)
        factor = self.weight(xp, cotangent, weight.shape, keep)
        if index == self.own:
            slope = factor * finite_or_zero(xp, run(self.loss, *self.without_weights(arrays)))
            return like(xp, slope, arrays[index])
        others = self.without_weights(arrays)
        return self.loss.pullback(xp, run, index, weight * factor, *others)

    def pushforward(self, xp: Namespace, run: Run, tangents: Tangents, *arrays: Array) -> Array:
        moved, others = [], self.without_weights(arrays)
        inner = tangents[: self.loss.differentiable]
        if any(tangent is not None for tangent in inner):
            moved.append(self.loss.moved(xp, run, inner, self._weight(xp, arrays), *others))
        for step in tangents[self.own :]:
            if step is not None:
                values = finite_or_zero(xp, run(self.loss, *others))
                moved.append(values * cast(xp, step, self.compute))
        return self.finish(xp, sum(moved[1:], moved[0]), self.keep(arrays), empty=0.0)

    def factors(
        self, xp: Namespace, cotangent: Array | None, arrays: Sequence[Array]
    ) -> tuple[Array, Array]:
        """Return the weights, and the gradients in the elements, given that in the result."""
        weight = self._weight(xp, arrays)
        number = count(xp, self.reduction, weight.shape, self.keep(arrays), self.compute)
        factors = weight if cotangent is None else weight * cast(xp, cotangent, self.compute)
        return weight, divide(xp, factors, number, 0.0)

    def _weight(self, xp: Namespace, arrays: Sequence[Array]) -> Array:
        """Return the weights in the dtype of sums, 0 where the mask drops the element."""
        weight, keep = cast(xp, arrays[self.own], self.compute), self.keep(arrays)
        return weight if keep is None else xp.where(keep, weight, 0.0)

    def without_weights(self, arrays: Sequence[Array]) -> list[Array]:
        """Return the arrays of the other loss: all but the weights."""
        return [*arrays[: self.own], *arrays[self.own + 1 :]]
