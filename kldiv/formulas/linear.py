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
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

from kldiv.formulas import state
from kldiv.formulas.blocks import flat, rows_at_a_time, slices
from kldiv.formulas.operation import Operation
from kldiv.formulas.reductions import Loss, cast
from kldiv.formulas.rows import RowLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run, Tangents
    from kldiv.formulas.reductions import RowWise

    Fused: TypeAlias = Callable[..., tuple[Array, list[Array]] | None]
    """(operation, arrays, sides, weight) → value and gradients of a chunk, or None."""

_BLOCK_BYTES = 2**24
"""Bytes of a weight, or of its gradient, that are converted or added at a time."""


class Products:
    """Products of matrices in the dtype of the logits; adapters derive faster ones."""

    in_blocks: ClassVar[bool] = True
    """Whether a weight of another dtype is converted a block of classes at a time."""

    def __init__(self, xp: Namespace, dtype: str, block_bytes: int | None = None) -> None:
        self.xp = xp
        self.dtype = dtype
        self.block_bytes = block_bytes
        """Bytes of products that gradients are written over at a time; None: over none."""

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

    def rows(self, products: Array) -> list[slice]:
        """Return blocks of rows whose losses are computed at a time."""
        return self._slices(products, self.block_bytes or _BLOCK_BYTES) or [slice(0, 0)]

    def empty(self, like: Array, *shape: int) -> Array:
        """Return a new array in the dtype of the logits, where another is."""
        place = {"device": like.device} if hasattr(like, "device") else {}
        return self.xp.empty(shape, dtype=getattr(self.xp, self.dtype), **place)

    def _slices(self, array: Array, block_bytes: int = _BLOCK_BYTES) -> list[slice]:
        return slices(array.shape[0], rows_at_a_time(array.shape, self.dtype, block_bytes))


@dataclass(frozen=True)
class SoftCap(Operation):
    """Logits under a soft cap: c·tanh(x/c), −∞ as it is. Arrays: x."""

    cap: float
    factor: float = 1.0
    """Of the derivative."""

    name: ClassVar[str] = "a soft cap"
    result: ClassVar[str] = "float32"  # or float64, as the arrays are

    @property
    def native(self) -> bool:
        return True

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        (x,) = arrays
        return xp.where(x == -xp.inf, -xp.inf, self.cap * xp.tanh(x / self.cap))


@dataclass(frozen=True)
class SoftCapSlope(SoftCap):
    """A gradient in such logits times their derivative. Arrays: the gradient, x."""

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        gradient, x = arrays
        # 1 − tanh² has no digit left where it is small.
        shrink = xp.exp(-2.0 * abs(x / self.cap))
        return _times(self.factor, gradient * (4.0 * shrink / (1.0 + shrink) ** 2))


class Layer(NamedTuple):
    """The settings of one side's layer."""

    bias: bool = False
    """Whether it has one."""
    softcap: float | None = None
    scale: float = 1.0

    def logits(self, run: Run, products: Array) -> Array:
        """Return the logits, given products with the bias and the scale; −∞ stays."""
        return products if self.softcap is None else run(SoftCap(self.softcap), products)

    def slope(self, run: Run, gradient: Array, products: Array) -> Array:
        """Return a gradient in the products without the scale, given that in the logits."""
        if self.softcap is None:
            return _times(self.scale, gradient)
        return run(SoftCapSlope(self.softcap, self.scale), gradient, products)


class Side(NamedTuple):
    """Indices of the arrays that make the logits of the student, or of the teacher."""

    hidden: int
    weight: int
    bias: int | None
    layer: Layer


class Term(NamedTuple):
    """One of the losses of rows that are added up."""

    factor: float
    loss: RowWise
    """Elementwise and not rounded."""
    places: tuple[int, ...]
    """Its arrays but for the mask: logits by their side, then arrays of rows, counted on."""


class Pass(NamedTuple):
    """One pass over the rows of a loss of layers, whose reduction is left to the caller."""

    operation: LinearLoss
    arrays: Sequence[Array]
    wanted: Sequence[int] = ()
    """Indices of the arrays to differentiate in."""
    weight: Array | None = None
    """One factor per row for the gradients of the rows' sum; None is 1."""


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


_VALUE = -1
"""The place of values among results."""

_SIDES = Layer(), Layer()

_KL = Term(1.0, RowLoss(), (0, 1))


@dataclass(frozen=True)
class LinearLoss(Loss):
    """The sum of losses of each row, reduced.

    Arrays: h_s, W_s, where there is a second layer h_t and W_t, the biases that there are, then
    arrays of rows: those that it is differentiable in, others, and the mask.
    """

    layers: tuple[Layer, ...] = _SIDES
    """The student's, and the teacher's where it has one."""
    terms: tuple[Term, ...] = (_KL,)
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

    def _of(self, term: Term, given: Sequence[Array], keep: Array | None) -> list[Array]:
        """Return the arrays of a term, given logits and arrays of rows."""
        own = [given[place] for place in term.places]
        return own if keep is None else [*own, keep]

    # ---- of all rows at once: the logits exist whole ---------------------------------------------

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        given, _ = self._whole(xp, arrays)
        keep = self.keep(arrays)
        found = [
            _times(term.factor, term.loss.elements(xp, *self._of(term, given, keep)))
            for term in self.terms
        ]
        return sum(found[1:], found[0])

    def by_logits(self, xp: Namespace, run: Run, *arrays: Array) -> Array:
        """Return the loss of all logits at once, whose products the library differentiates."""
        arrays = self._without_dropped(xp, arrays)
        given, keep = self._whole(xp, arrays)[0], self.keep(arrays)
        found = [
            _times(term.factor, run(term.loss, *self._of(term, given, keep))) for term in self.terms
        ]
        return self.finish(xp, sum(found[1:], found[0]), keep)

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
                own = self._of(term, given, keep)
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
            own = self._of(term, given, self.keep(arrays))
            part = [
                steps[place] if place < len(steps) else None
                for place in term.places[: term.loss.differentiable]
            ]
            if any(step is not None for step in part):
                moved = term.loss.moved(xp, run, part, weight, *own)
                found.append(_times(term.factor, moved))
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
            products.append(_times(side.layer.scale, found))
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
            lost = weight == 0
            lost = xp.all(lost, axis=-1, keepdims=True) if lost.ndim > 1 else lost[..., None]
            arrays = tuple(
                xp.where(lost, xp.zeros_like(array), array) if index in self._hidden else array
                for index, array in enumerate(arrays)
            )
        found = [self._products(products, side, arrays) for side in self.sides]
        places = [self._place(index) for index in wanted]
        given, keep = [*found, *self._rows(products, arrays)], self.keep(arrays)
        values, slopes = self._in_blocks(tools, given, keep, {*places}, weight)
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
            return state.total(products.xp, slope, 0)[0, ...]
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
        gradient = xp.reshape(gradient, like.shape)
        return gradient if gradient.dtype == like.dtype else xp.astype(gradient, like.dtype)

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

    def _in_blocks(
        self,
        tools: Tools,
        given: Sequence[Array],
        keep: Array | None,
        places: set[int],
        weight: Array | None,
    ) -> tuple[Array, dict[int, Array]]:
        """Return the results of `_evaluated`; gradients in products are written over these."""
        products = tools.products
        if products.block_bytes is None:
            return self._evaluated(tools, given, keep, places, weight)
        results = {place: given[place] for place in places if place < len(self.layers)}
        for rows in products.rows(given[0]):
            own = [array[rows, ...] for array in given]
            kept, factors = (each if each is None else each[rows, ...] for each in (keep, weight))
            value, parts = self._evaluated(tools, own, kept, places, factors)
            parts[_VALUE] = value
            while parts:  # none is left when the next block comes
                place, part = parts.popitem()
                if place not in results:
                    results[place] = products.empty(part, given[0].shape[0], *part.shape[1:])
                results[place][rows, ...] = part
                del part
        return results.pop(_VALUE), results

    def _evaluated(
        self,
        tools: Tools,
        given: Sequence[Array],
        keep: Array | None,
        places: set[int],
        weight: Array | None,
    ) -> tuple[Array, dict[int, Array]]:
        """Return the value of each row, and the gradients in some of the given arrays.

        These are products with the bias and the scale, then arrays of rows.
        """
        sides = len(self.layers)
        logits = [layer.logits(tools.run, x) for layer, x in zip(self.layers, given, strict=False)]
        given, found = [*logits, *given[sides:]], given
        values: list[Array] = []
        slopes: dict[int, Array] = {}
        for term in self.terms:
            own = self._of(term, given, keep)
            asked = [k for k, place in enumerate(term.places) if place in places]
            value, gradients = self._of_term(tools, term, own, asked, weight)
            values.append(_times(term.factor, value))
            for k, slope in zip(asked, gradients, strict=True):
                place = term.places[k]
                if place in slopes:
                    slopes[place] += slope  # in place, where the library has that
                else:
                    slopes[place] = slope
        for place in places.intersection(range(sides)):
            slopes[place] = self.layers[place].slope(tools.run, slopes[place], found[place])
        return sum(values[1:], values[0]), slopes

    def _of_term(
        self,
        tools: Tools,
        term: Term,
        arrays: Sequence[Array],
        asked: Sequence[int],
        weight: Array | None,
    ) -> tuple[Array, list[Array]]:
        """Return the value of each row of a term, and its gradients, with the term's factor."""
        xp, loss = tools.products.xp, term.loss
        wide = [k for k in asked if arrays[k].ndim == arrays[0].ndim]
        if term.factor != 1:
            ones = xp.ones_like(arrays[0][..., 0])
            weight = term.factor * (ones if weight is None else weight)
        found = tools.fused(loss, arrays, wide, weight) if wide else None
        value, gradients = (tools.run(loss, *arrays), []) if found is None else found
        slopes = dict(zip(wide, gradients, strict=True)) if gradients else {}
        if weight is None and len(slopes) < len(asked):
            weight = xp.ones_like(value)
        for k in asked:
            if k not in slopes:
                slopes[k] = loss.pullback(xp, tools.run, k, weight, *arrays)
        return value, [slopes[k] for k in asked]

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


def _times(factor: float, array: Array) -> Array:
    return array if factor == 1 else array * factor


def added(totals: Sequence[Array], parts: Sequence[Array]) -> list[Array]:
    """Return the sums of two lists, one by one."""
    return [total + part for total, part in zip(totals, parts, strict=True)]


def summed(xp: Namespace, parts: Sequence[Array]) -> Array:
    """Return the sum of all parts, by a tree where the library has one."""
    return xp.sum(xp.stack(parts), axis=0)
