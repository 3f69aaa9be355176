"""Cut two arrays that need not fit into memory into steps, pieces and blocks.

A *block* is computed on at a time, a *piece* is read at a time, and a *step* is added to the result
at a time: by another thread, by another machine, or in another run.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from kldiv.errors import OptionError
from kldiv.readers.stored import Stored, order_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from kldiv.streaming._types import Floats, Index

BUDGET: Final = 4 << 20
"""Bytes of one block in float64; a dozen arrays of this size exist at a time."""

_SHARE: Final = 128  # of the memory in use, one for each block: threads, pieces, temporaries
_PIECE: Final = 8  # blocks: 16 MiB of float32 a file
_STEP: Final = 8  # pieces
_CHUNK: Final = 32  # blocks: the largest piece that whole chunks of a store may make
_RUN: Final = 4096  # bytes that lie together on disk; below, reading whole rows would take seeks


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the parts are: the same wherever a step is done."""

    block: int
    """Numbers."""
    piece: int
    """Blocks."""
    step: int
    """Pieces."""

    @classmethod
    def within(cls, memory: int | None = None) -> Self:
        """Return sizes that stay within about so many bytes, by default 512 MiB."""
        if memory is not None and (type(memory) is not int or memory <= 0):
            raise OptionError(f"memory={memory!r}: expected a positive number of bytes, or None")
        budget = BUDGET if memory is None else memory // _SHARE
        return cls(max(budget // 8, 1), _PIECE, _STEP)

    @property
    def memory(self) -> int:
        """The number of bytes that they stay within."""
        return 8 * self.block * _SHARE


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

    @property
    def count(self) -> int:
        """The number of its rows."""
        return math.prod(part.stop - part.start for part in self.rows)

    def read(self, array: Any) -> Floats:
        """Copy the block to float64; a row's classes lie together, so that sums are pairwise."""
        part = np.moveaxis(array[self.index], self.axis, -1)
        return np.asarray(part.astype(np.float64, order="C").reshape(-1, part.shape[-1]))

    def place(self, row: int, column: int) -> tuple[int, ...]:
        """Return the index in the whole array of an element of the matrix that `read` returns."""
        sizes = [part.stop - part.start for part in self.rows]
        place = list(np.unravel_index(row, sizes)) if sizes else []
        place.insert(self.axis, np.intp(column))
        return tuple(int(i) + part.start for i, part in zip(place, self.index, strict=True))


@dataclass(frozen=True, slots=True)
class Piece:
    """A block of an array in memory, whose parts have the same places as in the whole array."""

    array: NDArray[Any]
    block: Block

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Return a part."""
        pairs = zip(index, self.block.index, strict=True)
        return self.array[tuple(slice(i.start - b.start, i.stop - b.start) for i, b in pairs)]


def _grid(index: Index, axis: int, steps: Sequence[int], order: Sequence[int]) -> Iterator[Block]:
    """Yield the blocks of a part of an array.

    They go along memory, but for the classes, which come last: blocks of the same classes follow
    one another, and together have all rows of that part.
    """
    slices = [
        [slice(i, min(i + step, part.stop)) for i in range(part.start, part.stop, step)]
        for part, step in zip(index, steps, strict=True)
    ]
    outer = [axis, *(a for a in reversed(order) if a != axis)]
    for chosen in itertools.product(*(slices[a] for a in outer)):
        places = dict(zip(outer, chosen, strict=True))
        yield Block(tuple(places[a] for a in range(len(places))), axis)


class Plan:
    """The order in which P and Q are read.

    Where rows fit into a block they are kept whole, and each number is read once.  Where they do
    not, blocks have some classes of some rows, and the constants of whole rows (their totals, the
    states of their logits) take a read of their own.

    Parameters
    ----------
    p, q : array
        In memory or `Stored`; of one shape.
    axis : int
        The axis of the classes, counted from 0.
    sizes : Sizes
        How large the parts are.
    """

    def __init__(self, p: Any, q: Any, axis: int, sizes: Sizes) -> None:
        self.axis = axis
        self._block = sizes.block
        self._orders = order_of(p), order_of(q)
        self._chunks = _common_chunks(p, q)
        index = tuple(slice(0, size) for size in p.shape)
        pieces = self._cut(index, sizes.piece * self._block, whole=True, chunks=True)
        self.whole = (
            p.shape[axis] <= 2 * self._block
            and math.prod(pieces) <= _CHUNK * self._block
            and all(_lies_together(array, pieces) for array in (p, q))
        )
        if not self.whole:
            pieces = self._cut(index, sizes.piece * self._block, whole=False, chunks=True)
        grid = tuple(_grid(index, axis, pieces, self._orders[0]))
        # Where rows are cut a step is added to all of them, so it should be small.
        size = sizes.step if self.whole else 1
        self.steps = tuple(grid[i : i + size] for i in range(0, len(grid), size))
        """The pieces of each step."""

    def blocks(self, piece: Block) -> Iterator[Block]:
        """Return the blocks of a piece."""
        steps = self._cut(piece.index, self._block, whole=self.whole, chunks=False)
        return _grid(piece.index, self.axis, steps, self._orders[0])

    def _cut(self, index: Index, most: int, *, whole: bool, chunks: bool) -> list[int]:
        """Return the lengths of parts with at most so many elements, long where memory runs."""
        sizes = [part.stop - part.start for part in index]
        steps = [1] * len(sizes)
        if whole:
            steps[self.axis] = sizes[self.axis]
        elif self._orders[0] != self._orders[1]:
            # Neighbours in one array are far apart in the other: a part long in both.
            for order in self._orders:
                steps[order[0]] = max(min(sizes[order[0]], math.isqrt(most)), 1)
        for a in self._orders[0]:
            if whole and a == self.axis:
                continue
            steps[a] = min(sizes[a], max(most // (math.prod(steps) // steps[a]), 1))
            if not whole and a == self.axis:  # sums by class take memory
                steps[a] = min(steps[a], 2 * self._block)
            if chunks and steps[a] < sizes[a]:
                steps[a] = min(max(steps[a] // self._chunks[a], 1) * self._chunks[a], sizes[a])
        return steps


def _common_chunks(p: Any, q: Any) -> list[int]:
    """Return lengths that cut few chunks of either array, none where that is possible."""
    both = [a.chunks if isinstance(a, Stored) else (1,) * a.ndim for a in (p, q)]
    common = []
    for one, other in zip(*both, strict=True):
        least = math.lcm(one, other)
        common.append(least if least <= 4 * max(one, other) else max(one, other))
    return common


def _lies_together(array: Any, steps: Sequence[int]) -> bool:
    """Return whether parts of an array are read in runs that are long enough."""
    if not isinstance(array, Stored) or tuple(steps) == array.shape:
        return True
    run = array.dtype.itemsize
    for a in array.order:
        run *= steps[a]
        if steps[a] < array.shape[a]:
            break
    return run >= _RUN
