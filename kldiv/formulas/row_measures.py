"""Measures of rows of probabilities as operations: normalised, in a unit, with their slopes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from kldiv.formulas.measures import KullbackLeibler, Measure
from kldiv.formulas.packing import split
from kldiv.formulas.reductions import RowWise, cast
from kldiv.formulas.special import largest, total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run


def known(xp: Namespace, sums: Array) -> Array:
    """Return a row's sum: NaN where it is beyond the largest number, by which all would be 0."""
    return xp.where(sums == math.inf, math.nan, sums)


@dataclass(frozen=True)
class RowMeasure(RowWise):
    """A measure of each row, in units of ``unit`` nats."""

    measure: Measure = field(default_factory=KullbackLeibler)
    normalize: bool = False
    unit: float = 1.0
    number: int = 2
    """How many arrays of probabilities there are."""
    given: bool = field(default=False, kw_only=True)
    """Whether the sums of whole rows come along, packed: after a slope's arrays, in a value's
    place."""

    common: ClassVar[tuple[str, ...]] = ("measure", "normalize", "unit", "number")

    @property
    def name(self) -> str:  # type: ignore[override]
        """The measure's name."""
        return self.measure.name

    @property
    def differentiable(self) -> int:
        return self.number

    @property
    def with_classes(self) -> int:  # type: ignore[override]
        return self.number

    def probabilities(
        self, xp: Namespace, arrays: Sequence[Array], totals: Sequence[Array] | None = None
    ) -> tuple[list[Array], list[Array]]:
        """Return the probabilities in the compute dtype, normalised if asked, and the row sums."""
        ps = [cast(xp, array, self.compute) for array in arrays[: self.number]]
        if not self.normalize:
            return ps, []
        sums = [total(xp, p) for p in ps] if totals is None else totals
        sums = [known(xp, each) for each in sums]
        return [p / each for p, each in zip(ps, sums, strict=True)], sums

    def unpacked(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Unpack the sums of probabilities, if there are any, and the others."""
        numbers = split(arrays[0]) if arrays else []
        count = self.number if self.normalize else 0
        return numbers[:count], numbers[count:]

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        if self.given:
            return self.in_units(self.measure.whole(xp, self.unpacked(arrays)[1])[..., 0])
        ps, _ = self.probabilities(xp, arrays)
        return self.in_units(self.measure.value(xp, *ps))

    def in_units(self, nats: Array) -> Array:
        """Convert nats to the requested unit."""
        return nats if self.unit == 1.0 else nats / self.unit

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        del xp  # all arithmetic is the operation's
        return run(self.settings(RowSlope, index=index), *arrays, weight)

    def keep(self, arrays: Sequence[Array]) -> Array | None:
        return None


@dataclass(frozen=True)
class RowSlope(RowMeasure):
    """A number per row times the measure's derivative. Arrays: the probabilities, that number."""

    index: int = 0
    keeps_classes: ClassVar[bool] = True
    native: ClassVar[bool] = True

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        weight, known = arrays[self.number], arrays[self.number + 1 :]
        if self.given:
            totals, sums = self.unpacked(known)
            mean = sums.pop() if self.normalize else None
            ps, _ = self.probabilities(xp, arrays, totals)
        else:
            ps, totals = self.probabilities(xp, arrays)
            sums, mean = self.measure.sums(xp, *ps) if self.measure.slope_takes_sums else [], None
        if self.normalize and mean is None:
            slopes = self._from_likeliest(xp, ps, sums)
            mean = total(xp, self.mean_terms(xp, ps, slopes))
        else:
            slopes = self.slopes(xp, ps, sums)
        if self.normalize:
            slopes = (slopes - mean) / totals[self.index]
        return cast(xp, weight, self.compute)[..., None] * slopes

    def _from_likeliest(self, xp: Namespace, ps: Sequence[Array], sums: Sequence[Array]) -> Array:
        """Return slopes less that of the likeliest class, which is 0 itself; if it is finite.

        That may be nearly all of their mean.
        """
        p = ps[self.index]
        top = p == largest(xp, p)
        top = top & (xp.cumulative_sum(xp.astype(top, p.dtype), axis=-1) == 1)
        slopes = self.in_units(self.measure.slope_about(xp, self.index, top, *ps, sums=sums))
        own = total(xp, xp.where(top, slopes, 0.0))
        known = abs(own) < math.inf
        # Not left to the difference: a compiler computes both sides, and rounds them differently.
        return xp.where(top & known, 0.0, slopes - xp.where(known, own, 0.0))

    def slopes(self, xp: Namespace, ps: Sequence[Array], sums: Sequence[Array]) -> Array:
        """Return the measure's derivative in its probabilities, in the requested unit."""
        return self.in_units(self.measure.slope(xp, self.index, *ps, sums=sums))

    def mean_terms(self, xp: Namespace, ps: Sequence[Array], slopes: Array) -> Array:
        """Return the terms of the mean slope under p."""
        p = ps[self.index]
        return xp.where(p == 0, 0.0, p * xp.where(p == 0, 0.0, slopes))
