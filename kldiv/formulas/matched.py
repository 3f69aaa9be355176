r"""Divergences of two vocabularies of which some classes are the same, all others one class more.

Arrays: the student's logits of the classes that match, then its own others (−∞ where a class
matches), likewise the teacher's, those that a class names, the temperature where it is an array,
the divergence's parameters, the mask.  A row becomes two rows of K + 1 logits, the last of them
log Σ e^{s/T} over the others, as double words: a rounded logit would be taken for a divergence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from kldiv.formulas.divergences import STUDENT, TEACHER, Divergence, KullbackLeibler
from kldiv.formulas.reductions import cast, weighed
from kldiv.formulas.row_options import OfDivergence
from kldiv.formulas.rows import times
from kldiv.formulas.sparse import (
    mean_depth,
    moment,
    of_likeliest,
    others_of,
    over_top,
    shares_of,
    together,
)
from kldiv.formulas.special import largest
from kldiv.formulas.state import Wide, over

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run
    from kldiv.formulas.state import Temperature


class Side(NamedTuple):
    """Rows of K + 1 logits of one side."""

    logits: Wide
    top: Array
    """The largest logit; NaN where there is none."""
    shares: Array
    """Those of the others among themselves."""


def side_of(xp: Namespace, own: Array, others: Array, temperature: Temperature) -> Side:
    """Return one side's rows of K + 1 logits, over T, and the numbers that its gradient needs."""
    highest, weight, weights = others_of(xp, others, temperature)
    top = xp.maximum(largest(xp, own), highest)
    top = xp.where(top == -xp.inf, xp.nan, top)
    first = over_top(xp, own, top, temperature, xp.ones_like(own, dtype=xp.bool))
    last = together(xp, highest, weight, top, temperature)
    words = (xp.concat(pair, axis=-1) for pair in zip(first, last, strict=True))
    return Side(Wide(*words), top, shares_of(xp, weights, weight))


@dataclass(frozen=True)
class MatchedOperation(OfDivergence):
    """The common part of operations on matched classes and all others."""

    divergence: Divergence = field(default_factory=KullbackLeibler)
    temperature: float | None = 1.0

    weights: ClassVar[int] = 0
    common: ClassVar[tuple[str, ...]] = ("divergence", "temperature")

    @property
    def differentiable(self) -> int:
        return 4 + self.weights + (self.temperature is None)

    def prepared(
        self, xp: Namespace, arrays: Sequence[Array]
    ) -> tuple[Divergence, Side, Side, Temperature, list[Array]]:
        """Return the divergence, both sides, the temperature and the logits."""
        keep = self.keep(arrays)
        logits = [cast(xp, array, self.compute) for array in arrays[:4]]
        if keep is not None:
            logits = [xp.where(keep[..., None], array, 0.0) for array in logits]
        temperature = self.temperature_of(xp, arrays[self.differentiable - 1 :])
        s, t = (side_of(xp, logits[k], logits[k + 1], temperature) for k in (0, 2))
        return self.bound(xp, arrays), s, t, temperature, logits


@dataclass(frozen=True)
class MatchedLoss(MatchedOperation):
    """The divergence of each row, reduced."""

    name: ClassVar[str] = "kl_div_with_logits"
    with_classes: ClassVar[int] = 4

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        divergence, s, t, _, _ = self.prepared(xp, arrays)
        return self.masked(xp, divergence.of_rows(xp, s.logits, t.logits, 1.0), self.keep(arrays))

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        gradient = self.settings(MatchedGradient, index=index)
        return run(gradient, *arrays[:4], weight, *arrays[4:])


@dataclass(frozen=True)
class MatchedGradient(MatchedOperation):
    """A number per row times the row's gradient. Arrays: the logits, that number."""

    index: int = 0
    """Of the loss' array."""
    weights: ClassVar[int] = 1
    native: ClassVar[bool] = True  # second order is the library's own

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return tuple(arrays[self.index].shape)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        divergence, s, t, temperature, logits = self.prepared(xp, arrays)
        weight, keep = cast(xp, arrays[4], self.compute), self.keep(arrays)

        def of_side(place: int) -> tuple[Array, Array]:
            which = (STUDENT, TEACHER)[place]
            block = divergence.whole(xp, s.logits, t.logits, 1.0, (which,))
            logits = (s, t)[place].logits.high
            found = of_likeliest(xp, logits, divergence.gradient(which, block))
            return found[..., :-1], found[..., -1:]

        if self.index < 4:
            own, last = of_side(self.index // 2)
            side = (s, t)[self.index // 2]
            gradient = last * side.shares if self.index % 2 else own
            found = times(xp, weight, over(gradient, temperature))
            return found if keep is None else xp.where(keep[..., None], found, 0.0)
        slope: Any = 0.0
        for place, side in enumerate((s, t)):
            own, last = of_side(place)
            others = logits[2 * place + 1]
            mean = mean_depth(xp, others, side.top, side.shares, temperature)
            slope = slope + moment(xp, own, side.logits.high[..., :-1]) + last * mean
        return self.masked(xp, weighed(xp, weight[..., None], -slope / temperature), keep)
