"""Arrays that stay on disk: a part is read when it is asked for, and no more than that part.

By plain reads, not by a mapping: a part counts as memory of the process only while it is held, and
a file that shrinks is an error in words instead of a bus error.
"""

from __future__ import annotations

import itertools
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from kldiv.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

Index: TypeAlias = tuple[slice, ...]

_CHUNK: Final = 8 << 20  # bytes that one call of the system reads at most


@dataclass(frozen=True, slots=True)
class Layout:
    """An array as its header declares it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    order: Literal["C", "F"] = "C"

    @property
    def nbytes(self) -> int:
        """How many bytes the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"shape {self.shape} of {self.dtype.name}, {self.nbytes:,} bytes"


class Stored:
    """An array on disk, read by slices.

    Attributes
    ----------
    shape : tuple of int
        Its shape.
    dtype : numpy.dtype
        Of the arrays that reading returns.
    order : tuple of int
        Its axes, the one along which neighbours lie together first.
    chunks : tuple of int
        The shape of a piece that is stored as one; all 1 where any part can be read by itself.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        order: Sequence[int] | None = None,
        chunks: Sequence[int] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype.newbyteorder("=")
        self.order = tuple(reversed(range(len(self.shape))) if order is None else order)
        self.chunks = (1,) * len(self.shape) if chunks is None else tuple(chunks)

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes all of them take."""
        return self.size * self.dtype.itemsize

    @property
    def whole(self) -> Index:
        """The index of everything."""
        return tuple(slice(0, size) for size in self.shape)

    def __getitem__(self, index: Index) -> NDArray[Any]:
        """Return a part, one slice of step 1 an axis, as an array of the caller's own."""
        raise NotImplementedError


class Stamped(Stored):
    """An array in one file, which must not change while its parts are read."""

    def __init__(self, path: Path, *array: Any) -> None:
        super().__init__(*array)
        self.path = path
        self._stamp = _stamp(path.stat()) if path.exists() else None  # a pipe is read at once

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the file, which must be as it was: parts of two versions would be one array."""
        with self.path.open("rb", buffering=0) as file:
            try:
                yield file
                same = _stamp(os.fstat(file.fileno())) == self._stamp
            except EOFError:
                same = False
        if not same:
            raise InputError(
                f"{self.path}: the file has changed since it was opened. Leave it alone while it is"
                " read"
            )


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class StoredFile(Stamped):
    """An array that lies in one file, as its layout says."""

    def __init__(self, path: Path, layout: Layout, *, bfloat16: bool = False) -> None:
        order = range(len(layout.shape))
        super().__init__(
            path,
            layout.shape,
            np.dtype(np.float32) if bfloat16 else layout.dtype,
            tuple(order if layout.order == "F" else reversed(order)),
        )
        self._layout = layout
        self._bfloat16 = bfloat16

    def __getitem__(self, index: Index) -> NDArray[Any]:
        slow = self.order[::-1]
        sizes = [self.shape[axis] for axis in slow]
        parts = [index[axis] for axis in slow]
        lengths = [part.stop - part.start for part in parts]
        raw = np.empty(math.prod(lengths) * self._layout.dtype.itemsize, np.uint8)
        if raw.size:
            self._fill(raw, sizes, parts)
        array = raw.view(self._layout.dtype).reshape(lengths).transpose(np.argsort(slow))
        if self._bfloat16:
            return widened(array)
        return array if array.dtype.isnative else array.astype(self.dtype)

    def _fill(self, raw: NDArray[np.uint8], sizes: list[int], parts: list[slice]) -> None:
        """Read the runs of neighbours that make a part, one after another."""
        # All axes behind the last that is cut are whole: they and a slice of it are one run.
        cut = [i for i, size in enumerate(sizes) if parts[i] != slice(0, size)]
        last = cut[-1] if cut else 0
        itemsize = self._layout.dtype.itemsize
        strides = [math.prod(sizes[i + 1 :]) * itemsize for i in range(len(sizes))]
        outer, run = parts[:last], parts[last]
        start = self._layout.offset + run.start * strides[last]
        length = (run.stop - run.start) * strides[last]
        room, done = raw.data, 0
        with self.opened() as file:
            for place in itertools.product(*(range(part.start, part.stop) for part in outer)):
                file.seek(start + sum(i * s for i, s in zip(place, strides, strict=False)))
                fill(file, room[done : done + length])
                done += length


def fill(file: BinaryIO, room: memoryview) -> None:
    """Fill memory from a file; an end before that is an EOFError."""
    done = 0
    while done < len(room):
        count = file.readinto(room[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count


class Marked(Stored):
    """An array in which some numbers stand for missing ones, read as NaN."""

    def __init__(self, array: Stored, marks: NDArray[Any]) -> None:
        dtype = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
        super().__init__(array.shape, dtype, array.order, array.chunks)
        self._array, self._marks = array, marks

    def __getitem__(self, index: Index) -> NDArray[Any]:
        return np.asarray(without_marks(self._array[index], self._marks))


def without_marks(array: Any, marks: NDArray[Any]) -> Any:
    """Return an array, of floats with NaN where a number stands for a missing one, if any does."""
    if not marks.size:
        return array
    if isinstance(array, Stored):
        return Marked(array, marks)
    missing = np.isin(array, marks)
    floats = array if array.dtype.kind == "f" else array.astype(np.float64)
    return np.where(missing, np.asarray(np.nan, floats.dtype), floats)


class Joined(Stored):
    """Arrays that follow one another along an axis, as one."""

    def __init__(self, parts: Sequence[Stored | NDArray[Any]], axis: int) -> None:
        first = parts[0]
        lengths = [part.shape[axis] for part in parts]
        shape = (*first.shape[:axis], sum(lengths), *first.shape[axis + 1 :])
        same = {part.order if isinstance(part, Stored) else order_of(part) for part in parts}
        order = same.pop() if len(same) == 1 else None
        super().__init__(shape, first.dtype, order)
        self._parts = parts
        self._axis = axis
        self._stops = list(itertools.accumulate(lengths))

    def __getitem__(self, index: Index) -> NDArray[Any]:
        wanted, axis = index[self._axis], self._axis
        found = []
        for part, stop in zip(self._parts, self._stops, strict=True):
            start = stop - part.shape[axis]
            first, last = max(wanted.start, start), min(wanted.stop, stop)
            if first < last:
                inside = slice(first - start, last - start)
                found.append(part[(*index[:axis], inside, *index[axis + 1 :])])
        if len(found) == 1:
            return found[0]
        if not found:
            return np.empty([part.stop - part.start for part in index], self.dtype)
        return np.concatenate(found, axis=axis)


def order_of(array: Any) -> tuple[int, ...]:
    """Return the axes of an array, in memory or on disk, the one that varies fastest first."""
    if isinstance(array, Stored):
        return array.order
    return tuple(sorted(range(array.ndim), key=lambda a: (abs(array.strides[a]), -a)))


def widened(bits: NDArray[Any]) -> NDArray[Any]:
    """Return bfloat16 bits as float32: they are its upper half."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)
