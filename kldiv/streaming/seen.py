"""Oddities seen along the way: numbers that are none, negative ones, rows that do not sum to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv.streaming._types import Floats
    from kldiv.streaming.blocks import Block


@dataclass
class Oddity:
    """The count of numbers that should not be there, and the place of the first."""

    count: int = 0
    first: tuple[int, ...] = ()

    def add(self, mask: NDArray[np.bool_], block: Block) -> None:
        """Count the marked elements of a block."""
        found = int(np.count_nonzero(mask))
        if found:
            row, column = np.unravel_index(int(np.argmax(mask)), mask.shape)
            self.join(Oddity(found, block.place(int(row), int(column))))

    def join(self, other: Oddity) -> None:
        """Count those of another part, which comes later."""
        self.first = self.first if self.count else other.first
        self.count += other.count


@dataclass
class Seen:
    """The oddities of P, or of Q."""

    undefined: Oddity = field(default_factory=Oddity)
    """NaN."""
    infinite: Oddity = field(default_factory=Oddity)
    """+∞."""
    negative: Oddity = field(default_factory=Oddity)
    off: int = 0
    """Rows that sum neither to 1, up to rounding, nor to NaN."""
    low: float = math.inf
    """The least sum of these."""
    high: float = -math.inf
    nothing: int = 0
    """Rows that give no class any probability."""
    beyond: int = 0
    """Rows whose sum is +∞."""
    sum: float = math.nan
    """The sum of the last row, before any normalisation."""

    def add_elements(self, values: Floats, block: Block, *, linear: bool) -> None:
        """Look at the numbers of a block."""
        # A finite sum proves all numbers finite, in less time than a look at each.
        if not np.isfinite(values.sum()):
            self.undefined.add(np.isnan(values), block)
            self.infinite.add(values == np.inf, block)
        if linear and values.min(initial=0.0) < 0:
            self.negative.add(values < 0, block)

    def join(self, other: Seen) -> None:
        """Add the oddities of another part."""
        self.undefined.join(other.undefined)
        self.infinite.join(other.infinite)
        self.negative.join(other.negative)

    def add_totals(self, totals: Floats, sums: Floats, empty: float, rounding: float) -> None:
        """Look at the totals of whole rows, and at the probabilities that these are."""
        off = sums[np.abs(sums - 1.0) > rounding]
        self.off += len(off)
        self.low = float(off.min(initial=self.low))
        self.high = float(off.max(initial=self.high))
        self.nothing += int(np.count_nonzero(totals == empty))
        self.beyond += int(np.count_nonzero(totals == np.inf))
        self.sum = float(sums[-1])
