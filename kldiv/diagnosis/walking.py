"""Going through arrays block by block: where things are, how many, and the least of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from kldiv._types import Array

    Floats: TypeAlias = NDArray[np.float64]
    Mask: TypeAlias = NDArray[np.bool_]

BLOCK: Final = 1 << 20
"""Elements looked at together."""


def blocks(*arrays: Array) -> Iterator[tuple[slice, ...]]:
    """Yield the indices of slabs of the arrays' common shape, cut along one axis."""
    shape = arrays[0].shape
    if not shape:
        yield ()
        return
    # Along the first axis, which is contiguous, unless that is too short to make the slabs small.
    wanted = math.prod(shape) / BLOCK
    cut = next((i for i, n in enumerate(shape) if n >= wanted), shape.index(max(shape)))
    step = max(1, int(shape[cut] / wanted))
    for array in arrays:
        chunks = getattr(array, "chunks", None)
        if chunks:  # Dask's: a slab that cuts through one would compute it twice
            chunk = max(1, *chunks[cut])
            step = max(1, step // chunk) * chunk
    whole = [slice(None)] * len(shape)
    for start in range(0, shape[cut], step):
        yield (*whole[:cut], slice(start, min(start + step, shape[cut])), *whole[cut + 1 :])


@dataclass
class Tally:
    """How many elements are of some sort, and where the first is, in the order of the last axis."""

    shape: tuple[int, ...]
    count: int = 0
    first: int = -1

    def add(self, mask: Mask, index: tuple[slice, ...]) -> None:
        """Count the marked elements of the block at an index."""
        found = int(np.count_nonzero(mask))
        if not found:
            return
        self.count += found
        place = np.unravel_index(int(np.argmax(mask)), mask.shape)
        whole = tuple(int(i) + (s.start or 0) for i, s in zip(place, index, strict=True))
        flat = int(np.ravel_multi_index(whole, self.shape)) if whole else 0
        self.first = flat if self.first < 0 else min(self.first, flat)

    @property
    def where(self) -> str:
        """Where the first one is."""
        return place(tuple(int(i) for i in np.unravel_index(self.first, self.shape)))


def place(index: tuple[int | str, ...]) -> str:
    """Return an index as it is written."""
    return f"[{', '.join(map(str, index))}]"


@dataclass
class Least:
    """The least of some values, and how many equal it."""

    value: float = math.inf
    count: int = 0

    def add(self, values: Floats) -> None:
        """Take more values into account."""
        low = float(np.min(values, initial=math.inf))
        if low < self.value:
            self.value, self.count = low, 0
        if low == self.value and low < math.inf:
            self.count += int(np.count_nonzero(values == low))
