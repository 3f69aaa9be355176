"""The comparison itself: what two distributions, or rows of them, add up to, a block at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import kldiv
from kldiv.cli.arithmetic import Logits
from kldiv.cli.blocks import Blocks
from kldiv.cli.forms import look, scale_of
from kldiv.cli.inputs import read_pair
from kldiv.cli.progress import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv.cli.arithmetic import Floats
    from kldiv.cli.forms import Distribution
    from kldiv.cli.inputs import Pair
    from kldiv.cli.request import Reduction, Request
    from kldiv.explanation import Explanation

MEASURES: Final = ("kl_pq", "kl_qp", "js")
_NAMED: Final = 8  # classes that a message names


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one class adds to the divergences, and its mean probabilities."""

    label: str
    index: int
    p: float
    q: float
    kl_pq: float
    kl_qp: float
    js: float


@dataclass(frozen=True, slots=True)
class Zeros:
    """Classes to which one distribution gives no probability where the other gives some."""

    classes: int
    share: float
    """Their part of the other distribution."""
    labels: tuple[str, ...]
    """The labels of the largest."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two distributions, or rows of them, compared."""

    p: Distribution
    q: Distribution
    pair: Pair
    rows: dict[str, Floats]
    """The divergences of each row, by measure."""
    contributions: tuple[Contribution, ...]
    zeros: dict[str, Zeros]
    """What makes ``kl_pq`` (zeros of Q) and ``kl_qp`` (zeros of P) infinite."""
    reduction: Reduction
    top: int
    smoothing: float
    explanation: Explanation

    @property
    def count(self) -> int:
        """How many rows there are."""
        return math.prod(self.pair.shape)

    def values(self, measure: str) -> Floats:
        """Return the divergence after the reduction: 0-d but for "none"."""
        return self.rows[measure] if self.reduction == "none" else np.asarray(self.overall(measure))

    def overall(self, measure: str) -> float:
        """Return one number for all rows: their mean where there is no reduction."""
        rows = self.rows[measure]
        return _total(rows) / divisor(rows.shape, self.reduction)

    @property
    def over(self) -> str:
        """What `overall` is, in words; nothing where there is one row only."""
        if not self.pair.shape:
            return ""
        words = {"sum": "sum over", "batchmean": "batch mean over"}
        return f"{words.get(self.reduction, 'mean over')} {self.count:,} rows"

    def summary(self, measure: str) -> dict[str, float]:
        """Return mean, median and maximum over the rows; NaN where any is."""
        rows = self.rows[measure]
        return {
            "mean": _total(rows) / rows.size,
            "median": float(np.median(rows)),
            "max": float(np.max(rows)),
        }

    def worst(self) -> list[int]:
        """Return the rows of largest D(P‖Q), Jensen-Shannon deciding between equals."""
        order = _largest(self.top, self.rows["kl_pq"].ravel(), self.rows["js"].ravel())
        return [int(i) for i in order]


def divisor(shape: tuple[int, ...], reduction: Reduction) -> int:
    """Return what the sum over rows is divided by, as in `kldiv.kl_div` of their divergences."""
    if reduction == "sum":
        return 1
    if reduction == "batchmean":
        return shape[0] if shape else 1
    return math.prod(shape)


def compare(request: Request) -> Comparison:
    """Read, check and compare two files under the settings that hold now."""
    scale = scale_of(request)
    # Before the files: a backend that cannot run should say so at once.
    explanation = kldiv.explain(np.zeros(1), np.ones(1), operation=scale.operation)
    pair = read_pair(request)
    both = (("P", pair.p), ("Q", pair.q))
    steps = sum(len(Blocks(table.array, pair.axis)) for _, table in (*both, both[0]))
    if isinstance(scale, Logits):
        steps += len(Blocks(pair.p.array, pair.axis, whole=True))
    with Progress(steps) as progress:
        p, q = (look(name, table, pair, scale, request, progress) for name, table in both)
        sums = _Sums(pair.shape, request.top)
        for group in Blocks(pair.p.array, pair.axis):
            columns = _Columns()
            for block in group:
                at_p, at_q = p.read(block), q.read(block)
                parts = scale.divergences(at_p, at_q)
                sums.add_rows(block.rows, parts)
                columns.add(scale.probabilities(at_p), scale.probabilities(at_q), *parts)
                progress.advance()
            sums.add_columns(block.classes.start, columns)
        if isinstance(scale, Logits):
            _read_rows(pair, scale, sums.rows, progress)
    weights = divisor(pair.shape, "mean"), divisor(pair.shape, request.reduction)
    return Comparison(
        p,
        q,
        pair,
        dict(zip(MEASURES, sums.rows, strict=True)),
        tuple(_contribution(each, pair, *weights) for each in sums.best.T),
        {
            "kl_pq": sums.zeros_q.named(pair, sums.masses[0]),
            "kl_qp": sums.zeros_p.named(pair, sums.masses[1]),
        },
        request.reduction,
        request.top,
        request.smoothing,
        explanation,
    )


def _read_rows(pair: Pair, scale: Logits, rows: tuple[Floats, ...], progress: Progress) -> None:
    """Write the divergences of whole rows of logits over what their elements add up to."""
    for group in Blocks(pair.p.array, pair.axis, whole=True):
        for block in group:
            parts = scale.divergences_of_rows(block.read(pair.p.array), block.read(pair.q.array))
            for result, part in zip(rows, parts, strict=True):
                result[block.rows] = part.reshape(result[block.rows].shape)
            progress.advance()


def _contribution(column: Floats, pair: Pair, rows: int, weight: int) -> Contribution:
    index = int(column[0])
    p, q = (float(x) / rows for x in column[1:3])
    kl_pq, kl_qp, js = (float(x) / weight for x in column[3:])
    return Contribution(pair.class_name(index), index, p, q, kl_pq, kl_qp, js)


class _Columns:
    """Sums over all rows for the classes of one group of blocks."""

    def __init__(self) -> None:
        self.sums: Floats = np.zeros((5, 1))  # of P, Q and their divergences
        self.lost: Floats = np.zeros((2, 1))  # of P where Q = 0, and of Q where P = 0
        self.holes: NDArray[np.bool_] = np.zeros((2, 1), dtype=bool)

    def add(self, p: Floats, q: Floats, *parts: Floats) -> None:
        self.sums = self.sums + np.stack([part.sum(axis=0) for part in (p, q, *parts)])
        # An element is infinite exactly there.
        infinite = [part == np.inf for part in parts[:2]]
        self.holes = self.holes | np.stack([mask.any(axis=0) for mask in infinite])
        lost = [
            np.where(mask, x, 0.0).sum(axis=0) for mask, x in zip(infinite, (p, q), strict=True)
        ]
        self.lost = self.lost + np.stack(lost)


class _Holes:
    """Classes where one distribution is zero and the other is not; the largest are kept."""

    def __init__(self) -> None:
        self.count = 0
        self.mass = 0.0
        self.largest: list[tuple[float, int]] = []

    def add(self, start: int, holes: NDArray[np.bool_], lost: Floats) -> None:
        found = np.flatnonzero(holes)
        self.count += len(found)
        self.mass += float(lost[found].sum())
        best = found[_largest(_NAMED, lost[found])]
        self.largest += [(float(lost[i]), start + int(i)) for i in best]
        self.largest = sorted(self.largest, key=lambda each: -each[0])[:_NAMED]

    def named(self, pair: Pair, mass: float) -> Zeros:
        labels = tuple(pair.class_name(index) for _, index in self.largest)
        return Zeros(self.count, self.mass / mass if self.count else 0.0, labels)


class _Sums:
    """What the blocks add up to, by row and by class; of the classes only the largest are kept."""

    def __init__(self, shape: tuple[int, ...], top: int) -> None:
        self.rows = tuple(np.zeros(shape) for _ in MEASURES)
        self.best: Floats = np.zeros((6, 0))
        self.masses: Floats = np.zeros(2)
        self.zeros_q, self.zeros_p = _Holes(), _Holes()
        self._top = top

    def add_rows(self, index: tuple[slice, ...], parts: tuple[Floats, ...]) -> None:
        for rows, part in zip(self.rows, parts, strict=True):
            rows[index] += part.sum(axis=-1).reshape(rows[index].shape)

    def add_columns(self, start: int, columns: _Columns) -> None:
        index = np.arange(start, start + columns.sums.shape[1], dtype=np.float64)
        found = np.concatenate([self.best, np.vstack([index, columns.sums])], axis=1)
        self.best = found[:, _largest(self._top, np.abs(found[3]), found[5])]
        self.masses = self.masses + columns.sums[:2].sum(axis=1)
        self.zeros_q.add(start, columns.holes[0], columns.lost[0])
        self.zeros_p.add(start, columns.holes[1], columns.lost[1])


def _largest(count: int, *keys: Floats) -> NDArray[Any]:
    """Return the places of the largest, later keys deciding between equals; NaN counts as least."""
    clean = [np.where(np.isnan(key), -np.inf, key) for key in keys]
    places = np.arange(len(clean[0]))
    if 0 < count < len(places):  # most need not be sorted
        least = -np.partition(-clean[0], count - 1)[count - 1]
        places = np.flatnonzero(clean[0] >= least)
    order = np.lexsort([-key[places] for key in reversed(clean)])
    return places[order][:count]


def _total(values: Floats) -> float:
    """Return the sum, rounded once where it is finite."""
    if not np.all(np.isfinite(values)):
        return float(np.sum(values))
    return math.fsum(values.ravel())
