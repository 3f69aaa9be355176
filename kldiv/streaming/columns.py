"""Sums by class, and the classes that matter: the largest contributors and the zeros."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv.streaming._types import Floats, Triple

NAMED: Final = 8  # classes that a message names


class Columns:
    """Sums over rows for some classes: of P, Q and their divergences."""

    def __init__(self, classes: slice) -> None:
        size = classes.stop - classes.start
        self.start = classes.start
        self.sums: Floats = np.zeros((5, size))
        self.lost: Floats = np.zeros((2, size))  # of P where Q = 0, and of Q where P = 0
        self.holes: NDArray[np.bool_] = np.zeros((2, size), dtype=bool)

    def add_elements(self, classes: slice, p: Floats, q: Floats, parts: Triple) -> None:
        """Add a block."""
        at = slice(classes.start - self.start, classes.stop - self.start)
        columns = [part.sum(axis=0) for part in (p, q, *parts)]
        for total, column in zip(self.sums, columns, strict=True):
            total[at] += column
        for i, (part, side) in enumerate(zip(parts, (p, q), strict=False)):
            if np.isfinite(columns[2 + i]).all():
                continue
            infinite = part == np.inf  # exactly where one is zero and the other is not
            self.holes[i, at] |= infinite.any(axis=0)
            self.lost[i, at] += np.where(infinite, side, 0.0).sum(axis=0)

    def add(self, other: Columns) -> None:
        """Add the sums over other rows."""
        at = slice(other.start - self.start, other.start - self.start + other.sums.shape[1])
        self.sums[:, at] += other.sums
        self.lost[:, at] += other.lost
        self.holes[:, at] |= other.holes


@dataclass
class Holes:
    """Classes where one distribution is zero and the other is not; the largest are kept."""

    count: int = 0
    mass: float = 0.0
    largest: list[tuple[float, int]] = field(default_factory=list)

    def add(self, start: int, holes: NDArray[np.bool_], lost: Floats) -> None:
        """Add classes from ``start`` on."""
        found = np.flatnonzero(holes)
        best = found[largest(NAMED, lost[found])]
        named = [(float(lost[i]), start + int(i)) for i in best]
        self.join(Holes(len(found), float(lost[found].sum()), named))

    def join(self, other: Holes) -> None:
        """Add those of other classes."""
        self.count += other.count
        self.mass += other.mass
        self.largest = sorted(self.largest + other.largest, key=lambda each: -each[0])[:NAMED]


class Best:
    """The largest contributors, the masses and the holes of all classes whose sums are complete."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.best: Floats = np.zeros((6, 0))
        self.masses: Floats = np.zeros(2)
        self.zeros_q, self.zeros_p = Holes(), Holes()

    def add(self, columns: Columns) -> None:
        """Add classes, each with all of its rows."""
        start = columns.start
        index = np.arange(start, start + columns.sums.shape[1], dtype=np.float64)
        self._keep(np.vstack([index, columns.sums]))
        self.masses = self.masses + columns.sums[:2].sum(axis=1)
        self.zeros_q.add(start, columns.holes[0], columns.lost[0])
        self.zeros_p.add(start, columns.holes[1], columns.lost[1])

    def join(self, other: Best) -> None:
        """Add other classes."""
        self._keep(other.best)
        self.masses = self.masses + other.masses
        self.zeros_q.join(other.zeros_q)
        self.zeros_p.join(other.zeros_p)

    def _keep(self, columns: Floats) -> None:
        found = np.concatenate([self.best, columns], axis=1)
        self.best = found[:, largest(self.top, np.abs(found[3]), found[5])]


def largest(count: int, *keys: Floats) -> NDArray[Any]:
    """Return the places of the largest, later keys deciding between equals; NaN counts as least."""
    clean = [np.where(np.isnan(key), -np.inf, key) for key in keys]
    places = np.arange(len(clean[0]))
    if 0 < count < len(places):  # most need not be sorted
        least = -np.partition(-clean[0], count - 1)[count - 1]
        places = np.flatnonzero(clean[0] >= least)
    order = np.lexsort([-key[places] for key in reversed(clean)])
    return places[order][:count]
