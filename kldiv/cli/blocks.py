"""Walking through arrays that need not fit into memory, block by block."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Index: TypeAlias = tuple[slice, ...]

BUDGET: Final = 4 << 20
"""Bytes of one block in float64; a dozen arrays of this size exist at a time."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of an array, read as a matrix with a row per distribution."""

    index: Index
    axis: int

    @property
    def classes(self) -> slice:
        """The classes of the block."""
        return self.index[self.axis]

    @property
    def rows(self) -> Index:
        """Where the block's rows lie in an array without the axis of the classes."""
        return self.index[: self.axis] + self.index[self.axis + 1 :]

    def read(self, array: NDArray[Any]) -> NDArray[np.float64]:
        """Return a copy in float64; a row's classes lie together, so that sums are pairwise."""
        part = np.moveaxis(array[self.index], self.axis, -1)
        return part.astype(np.float64, order="C").reshape(-1, part.shape[-1])

    def place(self, row: int, column: int) -> tuple[int, ...]:
        """Return the index in the whole array of an element of what `read` returns."""
        sizes = [part.stop - part.start for part in self.rows]
        place = list(np.unravel_index(row, sizes)) if sizes else []
        place.insert(self.axis, np.intp(column))
        return tuple(int(i) + part.start for i, part in zip(place, self.index, strict=True))


class Blocks:
    """A grid over an array: blocks within `BUDGET`, long in the direction that memory runs.

    Iterating gives groups of blocks.  The blocks of a group have the same classes, and together all
    rows; so what is added up by class is complete after each group.

    Parameters
    ----------
    array : numpy.ndarray
        Only its shape and strides are looked at.
    axis : int
        The axis of the classes, counted from 0.
    whole : bool
        Whether a block has all classes of its rows, be it larger than the budget.
    """

    def __init__(self, array: NDArray[Any], axis: int, *, whole: bool = False) -> None:
        left = max(BUDGET // 8, 1)
        # The axis with the smallest stride varies fastest, in Fortran's order too.
        order = sorted(range(array.ndim), key=lambda a: (abs(array.strides[a]), -a))
        if whole:
            left = max(left // max(array.shape[axis], 1), 1)
        self._axis = axis
        self._slices: list[list[slice]] = [[] for _ in order]
        for a in order:
            size = array.shape[a]
            if whole and a == axis:
                self._slices[a] = [slice(0, size)]
                continue
            step = max(min(size, left), 1)
            left = max(left // step, 1)
            self._slices[a] = [slice(i, min(i + step, size)) for i in range(0, size, step)]
        self._outer = [a for a in reversed(order) if a != axis]

    def __len__(self) -> int:
        return math.prod(len(slices) for slices in self._slices)

    def __iter__(self) -> Iterator[Iterator[Block]]:
        return map(self._group, self._slices[self._axis])

    def _group(self, classes: slice) -> Iterator[Block]:
        for chosen in itertools.product(*(self._slices[a] for a in self._outer)):
            index = [classes] * len(self._slices)
            for a, part in zip(self._outer, chosen, strict=True):
                index[a] = part
            yield Block(tuple(index), self._axis)
