"""A kernel's arrays as one table of integers, of the same form for every layout and dtype.

Row 0 has the number of axes, and the shape from column `STRIDES` on; every other row is an array:
its address, whether it is contiguous, and its strides in bytes. Axes are
merged where all arrays allow it, so that rows of a table are few and runs of elements long. A
frame, another one, has all else that a kernel takes.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace

Buffer: TypeAlias = np.ndarray[Any, Any]
"""An array of NumPy inside a kernel: a buffer, or a table."""

ADDRESS: Final = 0
CONTIGUOUS: Final = 1
STRIDES: Final = 2

SIZES: Final = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "bool": 1, "uint8": 1}
"""Bytes of a number of each dtype."""


class Memory(NamedTuple):
    """The place of an array in memory; strides are in bytes."""

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@cache
def _name(dtype: Any) -> str:
    """Return the name of a dtype, which NumPy puts together in 5 µs each time."""
    return str(dtype).rpartition(".")[2]


def dtype_name(array: Array) -> str:
    """Return the name of an array's dtype, as NumPy spells it."""
    return _name(array.dtype)


def memory(array: Array) -> Memory:
    """Return the place of an array of NumPy, PyTorch or CuPy in memory."""
    shape = tuple(array.shape)
    if hasattr(array, "data_ptr"):
        size = array.element_size()
        strides = tuple([step * size for step in array.stride()])
        return Memory(array.data_ptr(), dtype_name(array), shape, strides)
    address = array.ctypes.data if hasattr(array, "ctypes") else array.data.ptr
    return Memory(address, dtype_name(array), shape, array.strides)


class _Place:
    """Memory as NumPy takes it; its content is not read."""

    def __init__(self, array: Array) -> None:
        place = memory(array)
        self.__array_interface__ = {
            "version": 3,
            "data": (place.address, True),
            "shape": place.shape,
            "strides": place.strides,
            "typestr": f"|V{array.dtype.itemsize}",
        }


_WORK: Any = 10_000
"""Steps in which it is told whether strided arrays have memory in common."""


def shared(arrays: Sequence[Array]) -> str | None:
    """Return in words whether the first array shares memory, also where that is hard to tell."""
    first, *others = (np.asarray(_Place(array)) for array in arrays)
    if any(size > 1 and not step for size, step in zip(first.shape, first.strides, strict=True)):
        return "its elements share memory"
    try:
        if any(np.shares_memory(first, other, max_work=_WORK) for other in others):
            return "it shares memory with an argument, or with another result"
    except np.exceptions.TooHardError:
        return "it may share memory with an argument, or with another result"
    return None


_LARGE: Final = 1 << 22
"""Bytes from which the size of pages matters."""


def empty_like(xp: Namespace, array: Array) -> Array:
    """Return an array like another, not initialised.

    NumPy asks for huge pages, torch does not, and half of a kernel's time can go into page faults;
    so torch's large results lie in memory that NumPy allocated.
    """
    if not hasattr(array, "data_ptr") or array.nbytes < _LARGE or not array.is_contiguous():
        return xp.empty_like(array)
    integers = {2: np.int16, 4: np.int32, 8: np.int64}[array.element_size()]
    return xp.asarray(np.empty(tuple(array.shape), integers), device="cpu").view(array.dtype)


def table(arrays: Sequence[Memory | None], *, whole_rows: bool = False) -> np.ndarray[Any, Any]:
    """Return the table of arrays that broadcast to the first one's shape; None is no array.

    With ``whole_rows`` the last axis stays one of its own; else axes come in the order in which the
    first array has them in memory.
    """
    first = arrays[0]
    assert first is not None  # noqa: S101 - of the caller's own making
    shape = first.shape
    there = [array for array in arrays if array is not None]
    size = math.prod(shape)
    # Most arrays are of one shape without gaps: their axes merge without a look at each.
    if size > 1 and all(array.shape == shape and _is_packed(array) for array in there):
        sizes = [size // shape[-1], shape[-1]] if whole_rows else [size]
        sizes = sizes[-1:] if sizes[0] == 1 else sizes
        columns = [[*_packed((*sizes,), SIZES[array.dtype])] for array in there]
        return _filled(arrays, sizes, columns)
    columns = [_broadcast(array, shape) for array in there]
    if whole_rows:
        sizes, steps = merged(shape[:-1], [column[:-1] for column in columns])
        sizes.append(shape[-1])
        columns = [[*step, column[-1]] for step, column in zip(steps, columns, strict=True)]
    else:
        order = sorted(range(len(shape)), key=lambda axis: -abs(columns[0][axis]))
        sizes, columns = merged(
            [shape[axis] for axis in order], [[c[axis] for axis in order] for c in columns]
        )
        sizes, columns = sizes or [1], [step or [0] for step in columns]
    return _filled(arrays, sizes, columns)


def _filled(
    arrays: Sequence[Memory | None], sizes: list[int], columns: Sequence[Sequence[int]]
) -> np.ndarray[Any, Any]:
    rows = [[len(sizes), 0, *sizes]]
    strides = iter(columns)
    for array in arrays:
        if array is None:
            rows.append([0] * len(rows[0]))
        else:
            steps = next(strides)
            packed = _contiguous(sizes, steps, SIZES[array.dtype])
            rows.append([array.address, packed, *steps])
    return np.array(rows, dtype=np.int64)


@lru_cache
def _packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the strides of an array of a shape without gaps, the last axis adjacent."""
    return tuple([itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))])


def _is_packed(array: Memory) -> bool:
    return array.strides == _packed(array.shape, SIZES[array.dtype])


def _broadcast(array: Memory, shape: tuple[int, ...]) -> list[int]:
    """Return the strides with which an array fills a shape: 0 along axes that it lacks."""
    missing = len(shape) - len(array.shape)
    return [0] * missing + [
        0 if size != full else stride
        for size, full, stride in zip(array.shape, shape[missing:], array.strides, strict=True)
    ]


def merged(shape: Sequence[int], columns: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Return sizes and strides, neighbouring axes joined where all arrays step evenly over both."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in columns]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(
            step[-1] == size * column[axis] for step, column in zip(steps, columns, strict=True)
        ):
            sizes[-1] *= size
            for step, column in zip(steps, columns, strict=True):
                step[-1] = column[axis]
        else:
            sizes.append(size)
            for step, column in zip(steps, columns, strict=True):
                step.append(column[axis])
    return sizes, steps


def _contiguous(sizes: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    steps = zip(sizes, strides, _packed((*sizes,), itemsize), strict=True)
    return all(size == 1 or stride == expected for size, stride, expected in steps)


def words_of(names: Sequence[str], frame: dict[str, Any]) -> Buffer:
    """Return a frame: integers in the order in which a kernel names them.

    Of an array it is the address, which holds as long as ``frame`` does; 0 of one that is missing.
    """
    found = [frame.get(name) for name in names]
    return np.array(
        [each.ctypes.data if isinstance(each, np.ndarray) else int(each or 0) for each in found]
    )


def step_of(array: Buffer) -> int:
    """Return the bytes from one row to the next; 0 where there is one for all."""
    return array.strides[0] if len(array) > 1 else 0


def arrays_of(
    names: Sequence[str],
    inputs: Sequence[Array | None],
    outputs: Sequence[Array | None],
    real: str,
    mover: Callable[..., int],
    *,
    whole_rows: bool,
) -> dict[str, Any]:
    """Return a frame's entries about arrays: their table, addresses, and copying functions.

    The address is that of an array that is read or written in place, the function that of another.
    """
    places = [None if array is None else memory(array) for array in (*inputs, *outputs)]
    rows = table(places, whole_rows=whole_rows)
    found: dict[str, Any] = {"table": rows}
    for index, (name, place, row) in enumerate(zip(names, places, rows[1:].tolist(), strict=True)):
        direct = place is not None and row[CONTIGUOUS] and place.dtype == real
        found[name] = row[ADDRESS] if direct else 0
        found[f"move_{name}"] = 0
        if place is not None and not direct:
            packed, writing = row[-1] == SIZES[place.dtype], index >= len(inputs)
            found[f"move_{name}"] = mover(place.dtype, real, packed=packed, writing=writing)
    return found
