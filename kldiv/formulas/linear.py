r"""Divergences of two linear layers' softmax, a chunk of rows at a time.

With s = h_s W_sᵀ + b_s and t = h_t W_tᵀ + b_t the loss is that of `kldiv.formulas.rows.RowLoss` on
the logits (s, t), which never exist whole.  With G = ∂KL/∂s of these rows, and Gᵀ 1 its sum,

    ∂h_s = G W_s        ∂W_s = Gᵀ h_s        ∂b_s = Gᵀ 1

and likewise for t.  ∂h is a chunk's own; ∂W and ∂b are totals, added up over the chunks in the
dtype of the logits and rounded once.  A reduced loss weighs all its rows alike, so that weight is
left to `LinearLoss.scaled`: the passes over the chunks need no upstream gradient.

Logits are in float32, or float64 where an array or the result is.  A factor in a half type is
multiplied in that dtype where the library sums the products in float32 and returns these, and G
is then rounded to it; elsewhere a block of classes at a time is converted.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

from kldiv.formulas import state
from kldiv.formulas.blocks import flat, rows_at_a_time, slices
from kldiv.formulas.reductions import Loss, cast
from kldiv.formulas.rows import (
    Divergence,
    KullbackLeibler,
    RowGradient,
    RowLoss,
    TemperatureSlope,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run

    Fused: TypeAlias = Callable[..., tuple[Array, list[Array]] | None]
    """(operation, arrays, sides, weight) → value and gradients of a chunk, or None."""

_BLOCK_BYTES = 2**24
"""Bytes of a weight, or of its gradient, that are converted or added at a time."""


class Products:
    """Products of matrices in the dtype of the logits; adapters derive faster ones."""

    in_blocks: ClassVar[bool] = True
    """Whether a weight of another dtype is converted a block of classes at a time."""

    def __init__(self, xp: Namespace, dtype: str) -> None:
        self.xp = xp
        self.dtype = dtype

    def takes(self, array: Array) -> bool:  # noqa: ARG002
        """Return whether half-type arrays like this multiply unconverted, with float32 sums."""
        return False

    def __call__(self, a: Array, b: Array) -> Array:
        """Return a·b."""
        return self.xp.matmul(self.cast(a), self.cast(b))

    def accumulate(self, total: Array, a: Array, b: Array) -> None:
        """Add a·b to ``total``, in place."""
        for block in self._slices(total):
            total[block, :] += self(a[block, :], b)

    def cast(self, array: Array) -> Array:
        """Return an array in the dtype of the logits."""
        return cast(self.xp, array, self.dtype)

    def factor(self, array: Array) -> Array:
        """Return an array in the dtype of its products."""
        return array if self.takes(array) else self.cast(array)

    def slope(self, gradient: Array, other: Array) -> Array:
        """Return a gradient in logits in the dtype of its products with another array."""
        return self.xp.astype(gradient, other.dtype) if self.takes(other) else gradient

    def blocks(self, weight: Array) -> list[slice]:
        """Return blocks of a weight's classes that are multiplied at a time."""
        if not self.in_blocks or self.takes(weight) or weight.dtype == getattr(self.xp, self.dtype):
            return [slice(None)]
        return self._slices(weight)

    def _slices(self, weight: Array) -> list[slice]:
        classes, features = weight.shape
        return slices(classes, rows_at_a_time((classes, features), self.dtype, _BLOCK_BYTES))


class Side(NamedTuple):
    """Indices of the arrays that make the logits of the student, or of the teacher."""

    hidden: int
    weight: int
    bias: int | None


class Tools(NamedTuple):
    """An adapter's functions that compute a chunk."""

    products: Products
    run: Run
    fused: Fused


class Chunk(NamedTuple):
    """The results of a chunk of rows."""

    values: Array
    of_rows: list[Array]
    """The wanted gradients in arrays of rows."""
    factors: list[tuple[Array, Array | None]]
    """For each wanted weight and bias the gradient in the logits, and h; None for a bias."""


@dataclass(frozen=True)
class LinearLoss(Loss):
    """The divergence of each row, reduced.

    Arrays: h_s, W_s, h_t, W_t, the biases that there are, then numbers per row: the temperature
    where it is an array, and the mask.
    """

    temperature: float | None = 1.0
    """None: an array of one number per row."""
    biases: tuple[bool, bool] = (False, False)
    """Whether the student and the teacher have one."""
    divergence: Divergence = KullbackLeibler()  # noqa: RUF009 - frozen

    name: ClassVar[str] = "linear_kl_div"

    @property
    def differentiable(self) -> int:
        return self._own + (self.temperature is None)

    @property
    def _own(self) -> int:
        return 4 + sum(self.biases)

    @property
    def sides(self) -> tuple[Side, Side]:
        """The student's arrays and the teacher's."""
        student, teacher = self.biases
        return (
            Side(0, 1, 4 if student else None),
            Side(2, 3, 4 + student if teacher else None),
        )

    @property
    def of_logits(self) -> RowLoss:
        """The same loss, of the logits and of the row arrays: temperature and mask."""
        dtypes = self.compute, self.total, self.result
        return RowLoss(self.reduction, *dtypes, self.divergence, self.temperature)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        shape: tuple[int, ...] = arrays[0].shape[:-1]
        return shape

    def is_of_rows(self, index: int) -> bool:
        """Return whether an array has the rows' axes."""
        return index in (0, 2) or index >= self._own

    # ---- of all rows at once: the logits exist whole ---------------------------------------------

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        return self.of_logits.value(xp, *self._whole(xp, arrays))

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        return self.of_logits.elements(xp, *self._whole(xp, arrays))

    def by_logits(self, xp: Namespace, run: Run, *arrays: Array) -> Array:
        """Return the loss of all logits at once, whose products the library differentiates."""
        return run(self.of_logits, *self._whole(xp, self._without_dropped(xp, arrays)))

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        arrays = self._without_dropped(xp, arrays)
        logits = self._whole(xp, arrays)
        if index >= self._own:
            return self.of_logits.pullback(xp, run, 2, cotangent, *logits)
        number, side = next((k, side) for k, side in enumerate(self.sides) if index in side)
        slope = self.of_logits.pullback(xp, run, number, cotangent, *logits)
        hidden, products = arrays[side.hidden], Products(xp, self.compute)
        if index == side.hidden:
            gradient = products(slope, arrays[side.weight])
        else:
            rows = flat(xp, slope, slope)
            factor = None if index == side.bias else flat(xp, hidden, hidden)
            gradient = self.in_total(products, (rows, factor))
        return self._dressed(xp, gradient, arrays[index])

    def pushforward(
        self, xp: Namespace, run: Run, tangents: Sequence[Array | None], *arrays: Array
    ) -> Array:
        arrays = self._without_dropped(xp, arrays)
        moved = [
            self._moved(Products(xp, self.compute), side, tangents, arrays) for side in self.sides
        ]
        return self.of_logits.pushforward(
            xp, run, [*moved, *tangents[self._own :]], *self._whole(xp, arrays)
        )

    def _whole(self, xp: Namespace, arrays: Sequence[Array]) -> list[Array]:
        """Return the logits of all rows, and the row arrays: temperature and mask."""
        arrays = self._without_dropped(xp, arrays)
        products = Products(xp, self.compute)
        found = []
        for side in self.sides:
            logits = products(arrays[side.hidden], arrays[side.weight].T)
            found.append(logits if side.bias is None else logits + products.cast(arrays[side.bias]))
        return [*found, *arrays[self._own :]]

    def _moved(
        self,
        products: Products,
        side: Side,
        tangents: Sequence[Array | None],
        arrays: Sequence[Array],
    ) -> Array | None:
        """Return the tangent of a side's logits."""
        hidden, weight = tangents[side.hidden], tangents[side.weight]
        bias = None if side.bias is None else tangents[side.bias]
        parts = []
        if hidden is not None:
            parts.append(products(hidden, arrays[side.weight].T))
        if weight is not None:
            parts.append(products(arrays[side.hidden], weight.T))
        if bias is not None:
            shape = (*arrays[side.hidden].shape[:-1], bias.shape[0])
            parts.append(products.xp.broadcast_to(products.cast(bias), shape))
        return sum(parts[1:], parts[0]) if parts else None

    # ---- of some rows at a time; the rows' axes are one ------------------------------------------

    def flattened(self, xp: Namespace, arrays: Sequence[Array]) -> list[Array]:
        """Return the arrays with one axis of rows."""
        like = arrays[0]
        return [
            flat(xp, array, like) if self.is_of_rows(index) else array
            for index, array in enumerate(arrays)
        ]

    def picked(self, arrays: Sequence[Array], rows: slice | Array) -> list[Array]:
        """Return the arrays of some rows."""
        return [
            array[(rows, ...)] if self.is_of_rows(index) else array
            for index, array in enumerate(arrays)
        ]

    def chunks(
        self, rows: int, classes: int, wanted: Iterable[int], most_bytes: int
    ) -> list[slice]:
        """Return chunks of rows, nearly equal, whose logits and gradients take ``most_bytes``."""
        width = classes * (2 + len(self.moving(wanted)))
        number = math.ceil(rows / rows_at_a_time((width,), self.compute, most_bytes))
        return slices(rows, math.ceil(rows / number)) if rows else [slice(0, 0)]

    def moving(self, wanted: Iterable[int]) -> list[int]:
        """Return the sides in whose logits a gradient is needed."""
        return [k for k, side in enumerate(self.sides) if not set(side).isdisjoint(wanted)]

    def chunk(
        self, tools: Tools, arrays: Sequence[Array], wanted: Sequence[int], weight: Array | None
    ) -> Chunk:
        """Evaluate some rows.

        Parameters
        ----------
        tools : Tools
            The adapter's functions.
        arrays : sequence of array
            The operation's, of these rows.
        wanted : sequence of int
            Indices of the arrays to differentiate in.
        weight : array or None
            One factor per row for the gradients; None is 1.
        """
        products = tools.products
        xp = products.xp
        arrays = self._without_dropped(xp, arrays)
        if weight is not None:  # products would spread NaN and ∞ of rows that count for nothing
            lost = (weight == 0)[..., None]
            arrays = tuple(
                xp.where(lost, xp.zeros_like(array), array) if index in {0, 2} else array
                for index, array in enumerate(arrays)
            )
        others = arrays[self._own :]
        logits = [self._logits(products, *self._given(side, arrays)) for side in self.sides]
        moving = self.moving(wanted)
        rows: RowLoss = self.of_logits.elementwise()  # type: ignore[assignment]
        values, slopes = self._evaluated(tools, rows, [*logits, *others], moving, weight)
        of_rows: list[Array] = []
        factors: list[tuple[Array, Array | None]] = []
        for index in wanted:
            if index >= self._own:
                slope = tools.run(rows.settings(TemperatureSlope), *logits, *others)
                of_rows.append(slope if weight is None else slope * weight)
                continue
            number, side = next((k, side) for k, side in enumerate(self.sides) if index in side)
            slope = slopes[moving.index(number)]
            if index == side.hidden:
                gradient = self._hidden_gradient(products, slope, arrays[side.weight])
                of_rows.append(self._kept(xp, gradient, arrays))
            else:
                hidden = products.factor(arrays[side.hidden])
                factors.append((slope, None if index == side.bias else hidden))
        return Chunk(values, of_rows, factors)

    def in_total(self, products: Products, factor: tuple[Array, Array | None]) -> Array:
        """Return a chunk's share of the gradient in a weight, or in a bias."""
        slope, hidden = factor
        if hidden is None:
            return state.total(products.xp, slope, 0)[0, ...]
        return products(products.slope(slope, hidden).T, hidden)

    def add_to(self, products: Products, total: Array, factor: tuple[Array, Array | None]) -> None:
        """Add a chunk's share to the gradient in a weight or bias, in place."""
        slope, hidden = factor
        if hidden is None:
            total += self.in_total(products, factor)
        else:
            products.accumulate(total, products.slope(slope, hidden).T, hidden)

    def collected(
        self,
        xp: Namespace,
        arrays: Sequence[Array],
        wanted: Sequence[int],
        of_rows: Sequence[Array],
        totals: Sequence[Array],
    ) -> tuple[Array, list[Array]]:
        """Return the values in the shape of the rows, and gradients in that of their arrays.

        ``of_rows`` are the values, and the gradients that have the rows' axis.
        """
        values, *rest = of_rows
        sources = {True: iter(rest), False: iter(totals)}
        gradients = [
            xp.reshape(next(sources[self.is_of_rows(index)]), arrays[index].shape)
            for index in wanted
        ]
        return xp.reshape(values, arrays[0].shape[:-1]), gradients

    def finished(
        self,
        xp: Namespace,
        gradients: Sequence[Array],
        wanted: Sequence[int],
        arrays: Sequence[Array],
        cotangent: Array | None,
        *,
        reuse: bool = False,
    ) -> list[Array]:
        """Return gradients of a reduced loss, given those of the sum of its rows.

        With ``reuse`` they are written over.
        """
        if cotangent is not None:
            gradients = self.scaled(xp, gradients, arrays, cotangent, reuse=reuse)
        return [
            self._dressed(xp, gradient, arrays[index])
            for gradient, index in zip(gradients, wanted, strict=True)
        ]

    def scaled(
        self,
        xp: Namespace,
        gradients: Sequence[Array],
        arrays: Sequence[Array],
        cotangent: Array,
        *,
        reuse: bool = False,
    ) -> list[Array]:
        """Return gradients of a reduced loss, not yet rounded."""
        weight = self.weight(xp, cotangent, arrays[0].shape[:-1], self.keep(arrays))
        scale: Callable[..., Array] = operator.imul if reuse else operator.mul
        return [scale(gradient, weight) for gradient in gradients]

    def row_weight(self, xp: Namespace, cotangent: Array) -> Array:
        """Return the factor of each row's gradient, given the gradient in unreduced rows."""
        return cast(xp, xp.reshape(cotangent, (-1,)), self.compute)

    def contracted(
        self, xp: Namespace, gradients: Sequence[Array], tangents: Sequence[Array]
    ) -> Array:
        """Return the tangent of a reduced loss, given its gradients."""
        shares = [
            xp.sum(gradient * cast(xp, tangent, self.compute))
            for gradient, tangent in zip(gradients, tangents, strict=True)
        ]
        return cast(xp, sum(shares[1:], shares[0]), self.result)

    def _dressed(self, xp: Namespace, gradient: Array, like: Array) -> Array:
        gradient = xp.reshape(gradient, like.shape)
        return gradient if gradient.dtype == like.dtype else xp.astype(gradient, like.dtype)

    def _given(self, side: Side, arrays: Sequence[Array]) -> tuple[Array, Array, Array | None]:
        bias = None if side.bias is None else arrays[side.bias]
        return arrays[side.hidden], arrays[side.weight], bias

    def _logits(
        self, products: Products, hidden: Array, weight: Array, bias: Array | None
    ) -> Array:
        hidden, blocks = products.factor(hidden), products.blocks(weight)
        if len(blocks) == 1:
            logits = products(hidden, weight.T)
        else:
            dtype = getattr(products.xp, self.compute)
            shape = (hidden.shape[0], weight.shape[0])
            logits = products.xp.empty(shape, dtype=dtype, device=hidden.device)
            for block in blocks:
                logits[:, block] = products(hidden, weight[block, :].T)
        if bias is not None:
            logits += products.cast(bias)
        return logits

    def _hidden_gradient(self, products: Products, slope: Array, weight: Array) -> Array:
        slope = products.slope(slope, weight)
        first, *others = products.blocks(weight)
        total = products(slope[:, first], weight[first, :])
        for block in others:
            total += products(slope[:, block], weight[block, :])
        return total

    def _evaluated(
        self,
        tools: Tools,
        rows: RowLoss,
        arrays: Sequence[Array],
        moving: Sequence[int],
        weight: Array | None,
    ) -> tuple[Array, list[Array]]:
        """Return the value of each row, and the gradients in the logits of the moving sides."""
        if moving:
            found = tools.fused(rows, arrays, moving, weight)
            if found is not None:
                return found
        values = tools.run(rows, *arrays)
        if moving and weight is None:
            weight = tools.products.xp.ones_like(values)
        s, t, *others = arrays
        slopes = [
            tools.run(rows.settings(RowGradient, index=k), s, t, weight, *others) for k in moving
        ]
        return values, slopes

    def _without_dropped(self, xp: Namespace, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Return the arrays, with zeros in masked rows of h: products would spread NaN and ∞."""
        return tuple(
            self._kept(xp, array, arrays) if index in (0, 2) else array
            for index, array in enumerate(arrays)
        )

    def _kept(self, xp: Namespace, array: Array, arrays: Sequence[Array]) -> Array:
        keep = self.keep(arrays)
        return array if keep is None else xp.where(keep[..., None], array, xp.zeros_like(array))


def added(totals: Sequence[Array], parts: Sequence[Array]) -> list[Array]:
    """Return the sums of two lists, one by one."""
    return [total + part for total, part in zip(totals, parts, strict=True)]


def summed(xp: Namespace, parts: Sequence[Array]) -> Array:
    """Return the sum of all parts, by a tree where the library has one."""
    return xp.sum(xp.stack(parts), axis=0)
