"""The divergences of all rows, in a file where memory is too small, and their statistics."""

from __future__ import annotations

import math
import tempfile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.streaming.columns import largest

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    """Return zeros for three measures of rows, or the contents of a file of that many."""
    size = math.prod(shape) * 24
    if size <= IN_MEMORY:
        return np.zeros((3, *shape))
    if beside is None:
        with tempfile.TemporaryFile(prefix="kldiv-") as file:  # gone once nothing maps it
            file.truncate(size)
            return np.memmap(file, np.float64, "r+", shape=(3, *shape))
    beside.touch()
    with beside.open("r+b") as file:
        file.truncate(size)
        return np.memmap(file, np.float64, "r+", shape=(3, *shape))


def statistics(rows: Floats) -> Statistics:
    """Return the statistics of rows, looking at a part of them at a time."""
    flat = rows.reshape(-1)
    finite, infinite, most = True, 0, -math.inf
    for part in _chunks(flat):
        finite = finite and bool(np.isfinite(part).all())
        infinite += int(np.count_nonzero(np.isinf(part)))
        most = float(np.maximum(most, part.max()))
    rounded = (float(part.sum()) for part in _chunks(flat))
    try:
        exact = (x for part in _chunks(flat) for x in part.tolist())
        total = math.fsum(exact) if finite else sum(rounded)
    except OverflowError:
        total = sum(rounded)
    if math.isnan(most):
        return Statistics(total, math.nan, most, infinite)
    small = flat.nbytes <= IN_MEMORY // 3
    return Statistics(total, float(np.median(flat)) if small else _median(flat), most, infinite)


def worst(rows: Floats, top: int) -> list[int]:
    """Return the rows of largest D(P‖Q), Jensen-Shannon deciding between equals."""
    kl, js = rows[0].reshape(-1), rows[2].reshape(-1)
    best = np.zeros(0, np.int64)
    for start in range(0, len(kl), _CHUNK):
        places = np.concatenate([best, np.arange(start, min(start + _CHUNK, len(kl)))])
        best = places[largest(top, kl[places], js[places])]
    return [int(i) for i in best]


def _chunks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK]


def _median(flat: Floats) -> float:
    """Return the median without a copy; there is no NaN."""
    middle = [(len(flat) - 1) // 2, len(flat) // 2]
    low, high = (_ranked(flat, rank) for rank in middle)
    return (low + high) / 2


def _ranked(flat: Floats, rank: int) -> float:
    """Return the number of that rank, 16 bits of it at a time, by counting."""
    known = 0
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for part in _chunks(flat):
            keys = _keys(part)
            if shift < 48:
                keys = keys[keys >> np.uint64(shift + 16) == known]
            digits = (keys >> np.uint64(shift)) & np.uint64(0xFFFF)
            counts += np.bincount(digits.astype(np.int64), minlength=1 << 16)
        places = np.cumsum(counts)
        digit = int(np.searchsorted(places, rank, side="right"))
        rank -= int(places[digit - 1]) if digit else 0
        known = known << 16 | digit
    bits = known ^ (1 << 63) if known >> 63 else known ^ (1 << 64) - 1
    return float(np.array(bits, np.uint64).view(np.float64))


def _keys(part: Floats) -> NDArray[np.uint64]:
    """Return whole numbers in the order of the numbers."""
    bits = np.ascontiguousarray(part).view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)
