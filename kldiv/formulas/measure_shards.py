"""Measures of probabilities whose classes are sharded: the sums of a part, and its slopes.

The operations take the arrays of probabilities, then the sums of whole rows so far, packed: those
of probabilities where they are to be normalised, the measure's, and the mean of a slope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from kldiv.formulas.measures import RowMeasure, RowSlope
from kldiv.formulas.reductions import cast
from kldiv.formulas.shards import split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace


class Known(NamedTuple):
    """The sums of whole rows: of probabilities, the measure's, and the mean of a slope."""

    totals: list[Array]
    sums: list[Array]
    mean: Array | None


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
        ps, _ = self.probabilities(xp, arrays, known_to(self, arrays[self.number :]).totals)
        return xp.concat(self.measure.sums(xp, *ps), axis=-1)


@dataclass(frozen=True)
class ShardValues(RowMeasure):
    """The measure of each row. Arrays: the packed sums."""

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        return self.in_units(self.measure.whole(xp, known_to(self, arrays).sums)[..., 0])


@dataclass(frozen=True)
class ShardMean(RowSlope):
    """A part's share of the mean slope under p."""

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], 1)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        known = known_to(self, arrays[self.number :])
        ps, _ = self.probabilities(xp, arrays, known.totals)
        terms = self.mean_terms(xp, ps, self.slopes(xp, ps, known.sums))
        return xp.sum(terms, axis=-1, keepdims=True)


@dataclass(frozen=True)
class ShardSlope(RowSlope):
    """A number per row times the derivative in a part. Arrays: ps, that number, the packed sums."""

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        *ps, weight = arrays[: self.number + 1]
        totals, sums, mean = known_to(self, arrays[self.number + 1 :])
        ps, _ = self.probabilities(xp, ps, totals)
        return self.weighted(xp, self.slopes(xp, ps, sums), totals, mean, weight)


def known_to(operation: RowMeasure, packed: Sequence[Array]) -> Known:
    """Unpack the sums of whole rows; without an array there are none."""
    numbers = split(packed[0]) if packed else []
    totals = numbers[: operation.number] if operation.normalize else []
    rest = numbers[len(totals) :]
    mean = None
    if isinstance(operation, ShardSlope) and operation.normalize:
        *rest, mean = rest
    return Known(totals, rest, mean)
