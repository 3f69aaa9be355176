"""Measures of probabilities whose classes are sharded: a part's share of the sums of whole rows.

The operations take the arrays of probabilities, then the sums of whole rows so far, packed: those
of probabilities where they are to be normalised, then the measure's. A slope's mean comes last; the
values, and the slopes of a part, follow from all of them (`RowMeasure.given`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kldiv.formulas.reductions import cast
from kldiv.formulas.row_measures import RowMeasure, RowSlope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace


@dataclass(frozen=True)
class ShardTotals(RowMeasure):
    """A part's share of the sums of probabilities."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], self.number)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        ps = (cast(xp, array, self.compute) for array in arrays)
        return xp.concat([xp.sum(p, axis=-1, keepdims=True) for p in ps], axis=-1)


@dataclass(frozen=True)
class ShardSums(RowMeasure):
    """The measure's sums over a part of the classes."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], self.measure.number_of_sums)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        ps, _ = self.probabilities(xp, arrays, self.unpacked(arrays[self.number :])[0])
        return xp.concat(self.measure.sums(xp, *ps), axis=-1)


@dataclass(frozen=True)
class ShardMean(RowSlope):
    """A part's share of the mean slope under p."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], 1)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        totals, sums = self.unpacked(arrays[self.number :])
        ps, _ = self.probabilities(xp, arrays, totals)
        terms = self.mean_terms(xp, ps, self.slopes(xp, ps, sums))
        return xp.sum(terms, axis=-1, keepdims=True)
