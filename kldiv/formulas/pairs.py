"""Measures of every row of one array with every row of another, some pairs at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from kldiv.formulas.blocks import PAIR_BLOCK_BYTES, pairs_at_a_time, slices
from kldiv.formulas.measures import KullbackLeibler, Measure
from kldiv.formulas.reductions import Loss, cast, like, weighed
from kldiv.formulas.row_measures import RowMeasure, known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run, Tangents


def normalized(xp: Namespace, rows: Array, compute: str) -> Array:
    """Return rows in the dtype to compute in, each divided by its sum."""
    rows = cast(xp, rows, compute)
    return rows / known(xp, xp.sum(rows, axis=-1, keepdims=True))


@dataclass(frozen=True)
class PairMeasure(Loss):
    """A measure of each row of one array with each row of another, in units of ``unit`` nats."""

    measure: Measure = field(default_factory=KullbackLeibler)
    unit: float = 1.0
    symmetric: bool = False
    """Whether the arrays are one and the measure is symmetric: then half of the pairs are enough,
    and the values exactly symmetric."""
    block_bytes: int = field(default=PAIR_BLOCK_BYTES, kw_only=True)
    """The size of a block of pairs."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """The measure's name."""
        return self.measure.name

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return arrays[0].shape[0], arrays[1].shape[0]

    def size(self, arrays: Sequence[Array]) -> int:
        """Return how many terms there are."""
        return math.prod([*self.shape(arrays), arrays[0].shape[1]])

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        a, b = self.computed(xp, arrays)
        if 0 in self.shape(arrays):
            return self.at_once(xp, *arrays)
        down, across = self.at_a_time(a, b)
        rows = []
        for some in slices(a.shape[0], down):
            skipped = some.start if self.symmetric else 0
            parts = [xp.zeros_like(a[some, :skipped])] if skipped else []
            rest = b[skipped:, :]
            parts += [
                self.elements(xp, a[some, :], rest[others, :])
                for others in slices(rest.shape[0], across)
            ]
            rows.append(parts[0] if len(parts) == 1 else xp.concat(parts, axis=1))
        found = rows[0] if len(rows) == 1 else xp.concat(rows, axis=0)
        return cast(xp, self.mirrored(xp, found) if self.symmetric else found, self.result)

    def at_a_time(self, own: Array, others: Array) -> tuple[int, int]:
        """Return how many rows of each make a block of pairs."""
        return pairs_at_a_time(own.shape, others.shape, self.compute, self.block_bytes)

    def at_once(self, xp: Namespace, *arrays: Array) -> Array:
        """Evaluate all pairs at once, for compilers that fuse this."""
        return cast(xp, self.elements(xp, *self.computed(xp, arrays)), self.result)

    def computed(self, xp: Namespace, arrays: Sequence[Array]) -> list[Array]:
        """Return arrays in the dtype to compute in."""
        return [cast(xp, array, self.compute) for array in arrays]

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        a, b = arrays
        nats = self.measure.value(xp, a[:, None, :], b[None, :, :])
        return self.of_pairs(xp, self.in_units(nats), a, b)

    def of_pairs(self, xp: Namespace, found: Array, a: Array, b: Array) -> Array:
        """Return a number for each pair: a mixture may be of one array alone."""
        shape = (a.shape[0], b.shape[0])
        if tuple(found.shape) == shape:
            return found
        return found + xp.zeros(shape, dtype=found.dtype, device=found.device)  # no view

    def mirrored(self, xp: Namespace, upper: Array) -> Array:
        """Return a symmetric matrix, given its elements on and above the diagonal."""
        place = xp.arange(upper.shape[0], device=upper.device)
        return xp.where(place[:, None] <= place[None, :], upper, upper.T)

    def in_units(self, nats: Array) -> Array:
        """Convert nats to the requested unit."""
        return nats if self.unit == 1.0 else nats / self.unit

    def of_rows(self) -> RowMeasure:
        """Return the operation on two arrays of rows, each with that in its place."""
        names = "none", self.compute, self.total, self.result
        return RowMeasure(*names, self.measure, unit=self.unit)  # type: ignore[arg-type]

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        own = "none", self.compute, self.total, self.compute
        slope = PairSlope(*own, self.measure, self.unit, index=index)  # type: ignore[arg-type]
        return like(xp, run(slope, *arrays, cotangent), arrays[index])

    def pushforward(self, xp: Namespace, run: Run, tangents: Tangents, *arrays: Array) -> Array:
        rows = self.computed(xp, arrays)
        moved = []
        for index, tangent in enumerate(tangents):
            if tangent is not None:
                slopes = self.slopes(xp, index, *rows)
                step = cast(xp, tangent, self.compute)
                step = step[:, None, :] if index == 0 else step[None, :, :]
                moved.append(xp.sum(slopes * step, axis=-1))
        return cast(xp, self.of_pairs(xp, sum(moved[1:], moved[0]), *rows), self.result)

    def slopes(self, xp: Namespace, index: int, a: Array, b: Array) -> Array:
        """Return the derivative of each pair in the probabilities of one row, in the last axis."""
        ps = a[:, None, :], b[None, :, :]
        takes = self.measure.slope_takes_sums
        sums = self.measure.sums(xp, *ps) if takes else ()
        return self.in_units(self.measure.slope(xp, index, *ps, sums=sums))


@dataclass(frozen=True)
class PairSlope(PairMeasure):
    """Of the rows of one array, the derivative of a sum: a number per pair times its measure.

    Arrays: both arrays of rows, those numbers.
    """

    index: int = 0
    native: ClassVar[bool] = True

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return tuple(arrays[self.index].shape)

    def value(self, xp: Namespace, *arrays: Array) -> Array:
        *rows, weight = self.computed(xp, arrays)
        if 0 in weight.shape:
            return self.at_once(xp, *arrays)
        own, other = rows[self.index], rows[1 - self.index]
        down, across = self.at_a_time(own, other)
        found = []
        for some in slices(own.shape[0], down):
            total = None
            for others in slices(other.shape[0], across):
                places = (some, others) if self.index == 0 else (others, some)
                part = self.elements(
                    xp, rows[0][places[0], :], rows[1][places[1], :], weight[places]
                )
                total = part if total is None else total + part
            found.append(total)
        return cast(xp, found[0] if len(found) == 1 else xp.concat(found, axis=0), self.result)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        a, b, weight = arrays
        slopes = self.slopes(xp, self.index, a, b)
        terms = weighed(xp, weight[:, :, None], slopes)
        return xp.sum(terms, axis=1 - self.index, dtype=getattr(xp, self.total))
