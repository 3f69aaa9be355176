"""The divergences of all rows, in a file where memory is too small, and their statistics."""

from __future__ import annotations

import math
import tempfile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.streaming.columns import largest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from kldiv.streaming._types import Floats

IN_MEMORY: Final = 128 << 20
"""Bytes of divergences above which they lie in a temporary file."""

_CHUNK: Final = 1 << 20


class Statistics(NamedTuple):
    """Statistics of the rows of one measure."""

    total: float
    """Rounded once, where it is finite."""
    median: float
    """NaN where any row is."""
    max: float
    infinite: int


def room(shape: tuple[int, ...], beside: Path | None = None) -> Floats:
    """Return zeros for measures, along the first axis, of rows, or the contents of such a file."""
    size = math.prod(shape) * 8
    if size <= IN_MEMORY:
        return np.zeros(shape)
    # A temporary file is gone once nothing maps it.
    with tempfile.TemporaryFile() if beside is None else beside.open("a+b") as file:
        file.truncate(size)
        return np.memmap(file, np.float64, "r+", shape=shape)


def statistics(rows: Floats) -> Statistics:
    """Return the statistics of rows, looking at a part of them at a time."""
    flat = rows.reshape(-1)
    infinite, most = 0, -math.inf
    for part in _chunks(flat):
        infinite += int(np.count_nonzero(np.isinf(part)))
        most = float(np.maximum(most, part.max()))
    try:
        total = math.fsum(x for part in _chunks(flat) for x in part.tolist())
    except (OverflowError, ValueError):  # beyond the largest number; both infinities
        total = sum(float(part.sum()) for part in _chunks(flat))
    return Statistics(total, percentiles(flat, [50.0])[0], most, infinite)


def percentiles(flat: Floats, percents: Sequence[float]) -> list[float]:
    """Return percentiles, between neighbours in proportion; NaN where any number is."""
    if any(np.isnan(part).any() for part in _chunks(flat)):
        return [math.nan for _ in percents]
    last = len(flat) - 1
    places = [percent / 100 * last for percent in percents]
    ranks = sorted({min(int(place) + i, last) for place in places for i in (0, 1)})
    copy = room(flat.shape)
    copy[:] = flat
    copy.partition(ranks)
    found = []
    for place in places:
        low, high = (float(copy[min(int(place) + i, last)]) for i in (0, 1))
        share = place - int(place)
        # Two equal infinities have no difference.
        found.append(low if low == high or not share else (1 - share) * low + share * high)
    return found


def worst(rows: Floats, top: int) -> list[int]:
    """Return the rows of largest D(P‖Q), Jensen-Shannon deciding between equals."""
    kl, js = rows[0].reshape(-1), rows[2].reshape(-1)
    best = np.zeros(0, np.int64)
    for start in range(0, len(kl), _CHUNK):
        places = np.concatenate([best, np.arange(start, min(start + _CHUNK, len(kl)))])
        best = places[largest(top, kl[places], js[places])]
    return [int(i) for i in best]


def chunks(size: int) -> Iterator[slice]:
    """Yield slices of so many rows, a part that memory holds at a time."""
    for start in range(0, size, _CHUNK):
        yield slice(start, start + _CHUNK)


def _chunks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (flat[part] for part in chunks(len(flat)))
