"""Losses of rows added up: their values and gradients in some rows of layers' products."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from kldiv.formulas.layers import multiplied

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array
    from kldiv.formulas.layers import Layer, Products
    from kldiv.formulas.operation import Run
    from kldiv.formulas.reductions import RowWise

    Fused: TypeAlias = Callable[..., tuple[Array, list[Array]] | None]
    """(operation, arrays, sides, weight) → value and gradients of a chunk, or None."""


class Term(NamedTuple):
    """One of the losses of rows that are added up."""

    factor: float
    loss: RowWise
    """Elementwise and not rounded."""
    places: tuple[int, ...]
    """Its arrays but for the mask: logits by their side, then arrays of rows, counted on."""

    def arrays(self, given: Sequence[Array], keep: Array | None) -> list[Array]:
        """Return its arrays, given logits and arrays of rows, and the mask."""
        own = [given[place] for place in self.places]
        return own if keep is None else [*own, keep]


class Tools(NamedTuple):
    """An adapter's functions that compute a chunk."""

    products: Products
    run: Run
    fused: Fused


_VALUE = -1
"""The place of values among results."""


class Rows(NamedTuple):
    """Some rows of layers' products, and the results that are wanted of their losses."""

    tools: Tools
    layers: Sequence[Layer]
    terms: Sequence[Term]
    given: Sequence[Array]
    """The products of each layer with the bias and the scale, then arrays of rows."""
    keep: Array | None
    """The mask."""
    places: set[int]
    """Where the arrays to differentiate in are among those given."""
    weight: Array | None
    """One factor per row for the gradients; None is 1."""

    def picked(self, rows: slice) -> Rows:
        """Return some of these rows."""
        keep, weight = (
            each if each is None else each[rows, ...] for each in (self.keep, self.weight)
        )
        given = [array[rows, ...] for array in self.given]
        return self._replace(given=given, keep=keep, weight=weight)

    def in_blocks(self) -> tuple[Array, dict[int, Array]]:
        """Return the results of `evaluated`; gradients in products are written over these."""
        products, given = self.tools.products, self.given
        if products.block_bytes is None:
            return self.evaluated()
        results = {place: given[place] for place in self.places if place < len(self.layers)}
        for rows in products.rows(given[0]):
            value, parts = self.picked(rows).evaluated()
            parts[_VALUE] = value
            while parts:  # none is left when the next block comes
                place, part = parts.popitem()
                if place not in results:
                    results[place] = products.empty(part, given[0].shape[0], *part.shape[1:])
                results[place][rows, ...] = part
                del part
        return results.pop(_VALUE), results

    def evaluated(self) -> tuple[Array, dict[int, Array]]:
        """Return the value of each row, and the gradients by the places of their arrays."""
        run, sides = self.tools.run, range(len(self.layers))
        logits = [self.layers[side].logits(run, self.given[side]) for side in sides]
        given = [*logits, *self.given[len(sides) :]]
        values: list[Array] = []
        slopes: dict[int, Array] = {}
        for term in self.terms:
            value, gradients = self._of(term, term.arrays(given, self.keep))
            values.append(multiplied(term.factor, value))
            for place, slope in gradients:
                if place in slopes:
                    slopes[place] += slope  # in place, where the library has that
                else:
                    slopes[place] = slope
        for side in self.places.intersection(sides):
            slopes[side] = self.layers[side].slope(run, slopes[side], self.given[side])
        return sum(values[1:], values[0]), slopes

    def _of(self, term: Term, arrays: Sequence[Array]) -> tuple[Array, list[tuple[int, Array]]]:
        """Return the value of each row of a term, and its gradients, each after its place.

        Gradients have the term's factor.
        """
        xp, loss, weight = self.tools.products.xp, term.loss, self.weight
        asked = [index for index, place in enumerate(term.places) if place in self.places]
        wide = [index for index in asked if arrays[index].ndim == arrays[0].ndim]
        if term.factor != 1:
            ones = xp.ones_like(arrays[0][..., 0])
            weight = term.factor * (ones if weight is None else weight)
        found = self.tools.fused(loss, arrays, wide, weight) if wide else None
        value, gradients = (self.tools.run(loss, *arrays), []) if found is None else found
        slopes = dict(zip(wide, gradients, strict=True)) if gradients else {}
        if weight is None and len(slopes) < len(asked):
            weight = xp.ones_like(value)
        for index in asked:
            if index not in slopes:
                slopes[index] = loss.pullback(xp, self.tools.run, index, weight, *arrays)
        return value, [(term.places[index], slopes[index]) for index in asked]
