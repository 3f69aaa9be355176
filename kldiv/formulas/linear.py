r"""Losses of linear layers' softmax, a chunk of rows at a time.

A side's logits are f(a (h Wᵀ + b)), where a is a scale and f is c·tanh(·/c) for a soft cap c, else
nothing.  The loss is a sum of losses of rows (`kldiv.formulas.rows`, `.sparse`, `.labels`), each
times a number, of these logits and of other arrays of rows; logits never exist whole.  With
G = f′·a·∂L/∂s of the student's rows, and Gᵀ 1 its sum,

    ∂h_s = G W_s        ∂W_s = Gᵀ h_s        ∂b_s = Gᵀ 1

and likewise for the teacher.  ∂h is a chunk's own; ∂W and ∂b are totals, added up over the chunks
in the dtype of the logits and rounded once.  A reduced loss weighs all its rows alike, so that
weight is left to `LinearLoss.scaled`: the passes over the chunks need no upstream gradient.

Logits are in float32, or float64 where an array or the result is.  A factor in a half type is
multiplied in that dtype where the library sums the products in float32 and returns these, and G
is then rounded to it; elsewhere a block of classes at a time is converted.

On a CPU new memory costs as much as the passes over it.  So G is written over the products, a block
of rows at a time, and all else that has a block's size exists for one block.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from kldiv.formulas.blocks import flat, rows_at_a_time, slices
from kldiv.formulas.layers import Layer, Products, Side, multiplied
from kldiv.formulas.reductions import Loss, cast
from kldiv.formulas.reductions import like as in_dtype
from kldiv.formulas.rows import RowLoss
from kldiv.formulas.terms import Rows, Term

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Operation, Run, Tangents
    from kldiv.formulas.terms import Tools


class Pass(NamedTuple):
    """One pass over the rows of a loss of layers, whose reduction is left to the caller."""

    operation: LinearLoss
    arrays: Sequence[Array]
    wanted: Sequence[int] = ()
    """Indices of the arrays to differentiate in."""
    weight: Array | None = None
    """One factor per row for the gradients of the rows' sum; None is 1."""


class Chunk(NamedTuple):
    """The results of a chunk of rows."""

    values: Array
    of_rows: list[Array]
    """The wanted gradients in arrays of rows."""
    factors: list[tuple[Array, Array | None]]
    """For each wanted weight and bias the gradient in the logits, and h; None for a bias."""


@dataclass(frozen=True)
class LinearLoss(Loss):
    """The sum of losses of each row, reduced.

    Arrays: h_s, W_s, where there is a second layer h_t and W_t, the biases that there are, then
    arrays of rows: those that it is differentiable in, others, and the mask.
    """

    layers: tuple[Layer, ...] = field(default_factory=lambda: (Layer(), Layer()))
    """The student's, and the teacher's where it has one."""
    terms: tuple[Term, ...] = field(default_factory=lambda: (Term(1.0, RowLoss(), (0, 1)),))
    moved_rows: int = 0
    """How many arrays of rows it is differentiable in."""
    fixed_rows: int = 0
    """How many others there are before the mask."""

    name: ClassVar[str] = "linear_kl_div"

    @property
    def differentiable(self) -> int:
        return self._own + self.moved_rows

    @property
    def leading(self) -> int:
        return self.differentiable + self.fixed_rows

    @property
    def _own(self) -> int:
        return sum(2 + layer.bias for layer in self.layers)

    @property
    def sides(self) -> list[Side]:
        """The student's arrays, and the teacher's."""
        found, last = [], 2 * len(self.layers)
        for number, layer in enumerate(self.layers):
            bias = last if layer.bias else None
            found.append(Side(2 * number, 2 * number + 1, bias, layer))
            last += layer.bias
        return found

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.terms[0].loss.shape(arrays)  # rows are the same in all
        return shape

    def is_of_rows(self, index: int) -> bool:
        """Return whether an array has the rows' axes."""
        return index >= self._own or index in self._hidden

    @property
    def _hidden(self) -> range:
        """The places of hidden states."""
        return range(0, 2 * len(self.layers), 2)

    # ---- of all rows at once: the logits exist whole ---------------------------------------------

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        return self._of_whole(xp, lambda loss, *own: loss.elements(xp, *own), arrays)

    def by_logits(self, xp: Namespace, run: Run, *arrays: Array) -> Array:
        """Return the loss of all logits at once, whose products the library differentiates."""
        return self.finish(xp, self._of_whole(xp, run, arrays), self.keep(arrays))

    def _of_whole(self, xp: Namespace, run: Callable[..., Array], arrays: Sequence[Array]) -> Array:
        """Return the sum of the losses of each row, which ``run`` computes of all logits."""
        given, keep = self._whole(xp, arrays)[0], self.keep(arrays)
        found = [
            multiplied(term.factor, run(term.loss, *term.arrays(given, keep)))
            for term in self.terms
        ]
        return sum(found[1:], found[0])

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        arrays = self._without_dropped(xp, arrays)
        given, products = self._whole(xp, arrays)
        shape, keep = self.shape(arrays), self.keep(arrays)
        weight = self.weight(xp, cotangent, shape, keep)
        if self.reduction != "none":
            weight = weight * xp.ones_like(given[0][..., 0])
        place = self._place(index)
        shares = []
        for term in self.terms:
            if place in term.places:
                own = term.arrays(given, keep)
                number = term.places.index(place)
                shares.append(term.loss.pullback(xp, run, number, term.factor * weight, *own))
        slope = sum(shares[1:], shares[0])
        if index >= self._own:
            return self._dressed(xp, slope, arrays[index])
        side, multiply = self.sides[place], Products(xp, self.compute)
        slope = side.layer.slope(_formulas(xp), slope, products[place])
        hidden = arrays[side.hidden]
        if index == side.hidden:
            gradient = multiply(slope, arrays[side.weight])
        else:
            rows = flat(xp, slope, slope)
            factor = None if index == side.bias else flat(xp, hidden, hidden)
            gradient = self.in_total(multiply, (rows, factor))
        return self._dressed(xp, gradient, arrays[index])

    def moved(
        self, xp: Namespace, run: Run, tangents: Tangents, weight: Array | None, *arrays: Array
    ) -> Array:
        arrays = self._without_dropped(xp, arrays)
        given, products = self._whole(xp, arrays)
        steps = [
            self._moved(Products(xp, self.compute), side, product, tangents, arrays)
            for side, product in zip(self.sides, products, strict=True)
        ]
        steps.extend(tangents[self._own : self.differentiable])
        found = []
        for term in self.terms:
            own = term.arrays(given, self.keep(arrays))
            part = [
                steps[place] if place < len(steps) else None
                for place in term.places[: term.loss.differentiable]
            ]
            if any(step is not None for step in part):
                moved = term.loss.moved(xp, run, part, weight, *own)
                found.append(multiplied(term.factor, moved))
        return sum(found[1:], found[0])

    def _place(self, index: int) -> int:
        """Return the place, among logits and arrays of rows, of an array or of its logits."""
        if index >= self._own:
            return len(self.layers) + index - self._own
        return next(k for k, side in enumerate(self.sides) if index in side[:3])

    def _whole(self, xp: Namespace, arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Return the logits of all rows and the arrays of rows, and the products of each side."""
        arrays = self._without_dropped(xp, arrays)
        multiply = Products(xp, self.compute)
        products = []
        for side in self.sides:
            found = multiply(arrays[side.hidden], arrays[side.weight].T)
            if side.bias is not None:
                found = found + multiply.cast(arrays[side.bias])
            products.append(multiplied(side.layer.scale, found))
        logits = [
            side.layer.logits(_formulas(xp), found)
            for side, found in zip(self.sides, products, strict=True)
        ]
        return [*logits, *self._rows(multiply, arrays)], products

    def _rows(self, products: Products, arrays: Sequence[Array]) -> list[Array]:
        """Return the arrays of rows but for the mask, in the dtype of the logits."""
        end = self.differentiable
        moved = [products.cast(array) for array in arrays[self._own : end]]
        return [*moved, *arrays[end : self.leading]]

    def _moved(
        self,
        products: Products,
        side: Side,
        found: Array,
        tangents: Tangents,
        arrays: Sequence[Array],
    ) -> Array | None:
        """Return the tangent of a side's logits, given its products."""
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
        if not parts:
            return None
        return side.layer.slope(_formulas(products.xp), sum(parts[1:], parts[0]), found)

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
        self,
        rows: int,
        classes: int,
        wanted: Iterable[int],
        most_bytes: int,
        *,
        over: bool = False,
        fused: bool = False,
    ) -> list[slice]:
        """Return chunks of rows, nearly equal, whose logits and gradients take ``most_bytes``.

        With ``over`` gradients are written over the products; ``fused`` says that a compiler forms
        soft caps where they are used, so that of these the products alone are kept.
        """
        arrays, moving = len(self.layers), self.moving(wanted)
        if not over:
            capped = [side for side, layer in enumerate(self.layers) if layer.softcap is not None]
            extra = len({*capped} & {*moving}) if fused else 3 * len(capped)
            arrays += len(moving) + extra
        width = classes * arrays
        number = math.ceil(rows / rows_at_a_time((width,), self.compute, most_bytes))
        return slices(rows, math.ceil(rows / number)) if rows else [slice(0, 0)]

    def moving(self, wanted: Iterable[int]) -> list[int]:
        """Return the sides in whose logits a gradient is needed."""
        return [k for k, side in enumerate(self.sides) if not {*side[:3]}.isdisjoint(wanted)]

    def chunk(
        self, tools: Tools, arrays: Sequence[Array], wanted: Sequence[int], weight: Array | None
    ) -> Chunk:
        """Evaluate some rows, given the arrays of these, and differentiate in the wanted ones.

        ``weight`` is one factor per row for the gradients; None is 1.
        """
        products = tools.products
        xp = products.xp
        arrays = self._without_dropped(xp, arrays)
        if weight is not None:  # products would spread NaN and ∞ of rows that count for nothing
            lost = weight == 0
            lost = xp.all(lost, axis=-1, keepdims=True) if lost.ndim > 1 else lost[..., None]
            arrays = tuple(
                xp.where(lost, xp.zeros_like(array), array) if index in self._hidden else array
                for index, array in enumerate(arrays)
            )
        found = [self._products(products, side, arrays) for side in self.sides]
        places = [self._place(index) for index in wanted]
        given, keep = [*found, *self._rows(products, arrays)], self.keep(arrays)
        rows = Rows(tools, self.layers, self.terms, given, keep, {*places}, weight)
        values, slopes = rows.in_blocks()
        of_rows: list[Array] = []
        factors: list[tuple[Array, Array | None]] = []
        for index, place in zip(wanted, places, strict=True):
            slope = slopes[place]
            if index >= self._own:
                of_rows.append(slope)
                continue
            side = self.sides[place]
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
            return _sum_of_rows(products.xp, slope)
        return products(products.slope(slope, hidden).T, hidden)

    def add_to(
        self,
        products: Products,
        totals: Sequence[Array],
        factors: Sequence[tuple[Array, Array | None]],
    ) -> None:
        """Add a chunk's shares to the gradients in weights and biases, in place."""
        for total, (slope, hidden) in zip(totals, factors, strict=True):
            if hidden is None:
                total += self.in_total(products, (slope, hidden))  # noqa: PLW2901 - in place
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
        return xp.reshape(values, self.shape(arrays)), gradients

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
        weight = self.weight(xp, cotangent, self.shape(arrays), self.keep(arrays))
        scale: Callable[..., Array] = operator.imul if reuse else operator.mul
        return [scale(gradient, weight) for gradient in gradients]

    def row_weight(self, xp: Namespace, cotangent: Array, arrays: Sequence[Array]) -> Array:
        """Return the factors of each row's gradient, given the gradient in unreduced rows."""
        return cast(xp, flat(xp, cotangent, arrays[0]), self.compute)

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
        return in_dtype(xp, xp.reshape(gradient, like.shape), like)

    def _products(self, products: Products, side: Side, arrays: Sequence[Array]) -> Array:
        """Return the products of a side, with the bias and the scale."""
        weight = arrays[side.weight]
        hidden, blocks = products.factor(arrays[side.hidden]), products.blocks(weight)
        if len(blocks) == 1:
            found = products(hidden, weight.T)
        else:
            found = products.empty(hidden, hidden.shape[0], weight.shape[0])
            for block in blocks:
                found[:, block] = products(hidden, weight[block, :].T)
        if side.bias is not None:
            found += products.cast(arrays[side.bias])
        if side.layer.scale != 1:
            found *= side.layer.scale
        return found

    def _hidden_gradient(self, products: Products, slope: Array, weight: Array) -> Array:
        slope = products.slope(slope, weight)
        first, *others = products.blocks(weight)
        total = products(slope[:, first], weight[first, :])
        for block in others:
            total += products(slope[:, block], weight[block, :])
        return total

    def _without_dropped(self, xp: Namespace, arrays: Sequence[Array]) -> tuple[Array, ...]:
        """Return the arrays, with zeros in masked rows of h: products would spread NaN and ∞."""
        return tuple(
            self._kept(xp, array, arrays) if index in self._hidden else array
            for index, array in enumerate(arrays)
        )

    def _kept(self, xp: Namespace, array: Array, arrays: Sequence[Array]) -> Array:
        keep = self.keep(arrays)
        return array if keep is None else xp.where(keep[..., None], array, xp.zeros_like(array))


def _formulas(xp: Namespace) -> Run:
    """Return a function that evaluates operations."""

    def run(operation: Operation, *arrays: Array) -> Array:
        return operation.value(xp, *arrays)

    return run


def _sum_of_rows(xp: Namespace, rows: Array) -> Array:
    """Return the sum along the first axis, by groups of 64.

    NumPy adds one row after another there, which costs 200 u over a vocabulary.
    """
    while rows.shape[0] > 64:
        cut = rows.shape[0] // 64 * 64
        groups = xp.reshape(rows[:cut, ...], (cut // 64, 64, *rows.shape[1:]))
        rows = xp.concat([xp.sum(groups, axis=1), rows[cut:, ...]], axis=0)
    return xp.sum(rows, axis=0)


def added(totals: Sequence[Array], parts: Sequence[Array]) -> list[Array]:
    """Return the sums of two lists, one by one."""
    return [total + part for total, part in zip(totals, parts, strict=True)]


def summed(xp: Namespace, parts: Sequence[Array]) -> Array:
    """Return the sum of all parts, by a tree where the library has one."""
    return xp.sum(xp.stack(parts), axis=0)
