"""The loss of elements and its slopes, by formulas of `kldiv.formulas.pointwise` in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.pointwise import KLLogTarget
from kldiv.kernels import threads
from kldiv.kernels.blocks.arrays import Room, pieces
from kldiv.kernels.results import ElementResults

if TYPE_CHECKING:
    from kldiv.kernels.blocks.arrays import Buffer
    from kldiv.kernels.work import Found, Work

_GONE = -700.0
"""Log-probability below which e^y may underflow."""


def run(work: Work) -> Found:
    """Return the value, if it is wanted, and the gradients that are."""
    results = ElementResults(work)
    keep, outputs = work.operation.keep(work.arrays), results.outputs
    arrays = [*work.arrays[:2], keep, results.cotangent]
    written = [results.elements, outputs.get(0), outputs.get(1)]
    views, blocks = pieces([*arrays, *written], results.shape)
    kind = LogProbabilities if isinstance(work.operation.function, KLLogTarget) else Probabilities
    totals = np.zeros(len(blocks))

    def part(first: int, last: int) -> None:
        room = Room(3)
        with np.errstate(all="ignore"):
            for place in range(first, last):
                block = blocks[place]
                cut: list[Any] = [None if view is None else view[block] for view in views]
                x, y, kept, cotangent, value, *slopes = cut
                factor = results.weight if cotangent is None else cotangent
                elements = kind(x, y, room.of(x.shape))
                for index, slope in enumerate(slopes):
                    if slope is None or _is_simple(kind, index, slope, y, factor, kept):
                        continue
                    slope[...] = _weighed(elements.slope(index), factor, kept)
                if work.value:
                    found = _masked(elements.value(), kept)
                    totals[place] = found.sum()
                    if value is not None:
                        value[...] = found

    threads.share(part, len(blocks), threads.number(work.threads))
    return results.of_totals(totals)


def _is_simple(
    kind: type, index: int, slope: Buffer, y: Buffer, factor: Any, keep: Buffer | None
) -> bool:
    """Write −y times a factor in one go where that is one rounding in float32; return whether."""
    simple = kind is Probabilities and index == 0 and keep is None and isinstance(factor, float)
    simple = simple and slope.dtype == y.dtype == np.float32 and float(np.float32(factor)) == factor
    if simple:
        np.multiply(y, np.float32(-factor), out=slope)
    return simple


def _masked(values: Buffer, keep: Buffer | None) -> Buffer:
    if keep is not None:
        np.copyto(values, 0.0, where=~keep)
    return values


def _weighed(slope: Buffer, factor: Any, keep: Buffer | None) -> Buffer:
    """Return slopes times their factor, 0 where that is 0."""
    np.multiply(slope, factor, out=slope)
    if isinstance(factor, np.ndarray):
        keep = factor != 0 if keep is None else keep & (factor != 0)
    return _masked(slope, keep)


class Probabilities:
    """y·(log y − x) of a block; results are in buffers, and one lasts until the next.

    The value is asked for last: it overwrites the numbers that slopes are computed from.
    """

    def __init__(self, x: Buffer, y: Buffer, room: list[Buffer]) -> None:
        self.x = x
        self.y, self.difference, self.result = room
        np.copyto(self.y, y)  # once: a product of two dtypes takes three times as long
        np.log(self.y, out=self.difference)
        np.subtract(self.difference, x, out=self.difference)
        self.zero = None if y.min() > 0 else y == 0  # of NaN the minimum is NaN

    def value(self) -> Buffer:
        """Return the elements, 0 where y is, but for NaN."""
        found = np.multiply(self.difference, self.y, out=self.difference)
        if self.zero is not None:
            np.copyto(found, 0.0, where=self.zero & ~np.isnan(self.x))
        return found

    def slope(self, index: int) -> Buffer:
        """Return the slope in x or y, 0 where y is."""
        if index == 0:
            return np.negative(self.y, out=self.result)
        np.add(self.difference, 1.0, out=self.result)
        return _masked(self.result, None if self.zero is None else ~self.zero)


class LogProbabilities:
    """e^y·(y − x) of a block, likewise."""

    def __init__(self, x: Buffer, y: Buffer, room: list[Buffer]) -> None:
        self.x = x
        self.y, self.difference, self.result = room
        np.copyto(self.y, y)
        np.subtract(self.y, x, out=self.difference)
        self.far = not y.min() > _GONE

    def value(self, order: float = 0.0) -> Buffer:
        """Return e^y·(y − x + order), 0 where y is −∞, but for NaN."""
        result, moved = self.result, self.difference
        np.exp(self.y, out=result)
        if order:
            moved = moved + order
        np.multiply(result, moved, out=result)
        if self.far:  # e^y may be 0, whatever it is times
            np.copyto(result, moved, where=np.isinf(moved))
            np.copyto(result, 0.0, where=(self.y == -np.inf) & ~np.isnan(self.x))
            np.copyto(result, np.nan, where=np.isnan(self.x))
        return result

    def slope(self, index: int) -> Buffer:
        """Return the slope in x or y."""
        if index == 0:
            np.exp(self.y, out=self.result)
            return np.negative(self.result, out=self.result)
        return self.value(1.0)
