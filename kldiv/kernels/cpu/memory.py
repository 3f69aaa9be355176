"""Blocks of arrays of any layout and dtype, read to and written from contiguous buffers.

A kernel gets its arrays as one table of integers, `kldiv.kernels.layout` makes it. So it is
compiled once for all layouts; an array that is contiguous and has the dtype of the buffers is read
and written in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from kldiv.kernels.cpu.compiling import inline
from kldiv.kernels.cpu.instructions import (
    bits,
    like,
    load_float32,
    load_float64,
    load_uint8,
    load_uint16,
    select,
    store_float32,
    store_float64,
    store_uint16,
)
from kldiv.kernels.layout import (
    ADDRESS,
    BFLOAT16,
    CODE,
    CONTIGUOUS,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    STRIDES,
    Buffer,
)

# --- half types -----------------------------------------------------------------------------------


@inline
def _from_bfloat16(half: int) -> float:
    return bits(np.int32(np.int32(half) << np.int32(16)))


@inline
def _from_float16(half: int) -> float:
    word = np.int32(half)
    rest = bits(np.int32((word & np.int32(0x7FFF)) << np.int32(13)))
    value = rest * np.float32(2.0**112)  # shifts the exponent, of subnormal numbers too
    special = np.int32(bits(rest) | np.int32(0x7F800000))
    value = select((word & np.int32(0x7C00)) == np.int32(0x7C00), bits(special), value)
    sign = np.int32((word & np.int32(0x8000)) << np.int32(16))
    return bits(np.int32(bits(value) | sign))


@inline
def _to_bfloat16(value: float) -> Any:
    word = bits(value)
    odd = np.int32((word >> np.int32(16)) & np.int32(1))
    rounded = np.int32(np.int32(word + np.int32(0x7FFF) + odd) >> np.int32(16))
    nan = np.int32((word >> np.int32(16)) | np.int32(0x40))
    return np.uint16(select(value != value, nan, rounded))  # noqa: PLR0124 - asks for NaN


@inline
def _to_float16(value: float) -> Any:
    word = bits(value)
    size = np.int32(word & np.int32(0x7FFFFFFF))
    sign = np.int32((word >> np.int32(16)) & np.int32(0x8000))
    odd = np.int32((size >> np.int32(13)) & np.int32(1))
    normal = np.int32((size - np.int32(0x38000000) + np.int32(0xFFF) + odd) >> np.int32(13))
    # Adding ½ leaves a subnormal number in the lowest bits, rounded.
    small = np.int32(bits(bits(size) + np.float32(0.5)) - np.int32(0x3F000000))
    half = select(size < np.int32(0x38800000), small, normal)
    half = select(size >= np.int32(0x47800000), np.int32(0x7C00), half)
    half = select(size > np.int32(0x7F800000), np.int32(0x7E00), half)
    return np.uint16(half | sign)


# --- runs of equal distance -----------------------------------------------------------------------


# An index that might be negative keeps a loop scalar, so these are unsigned.


@inline
def _read_run(code: int, address: int, stride: int, n: int, buffer: Buffer, at: int) -> None:
    if code == FLOAT32:
        if stride == 4:
            for k in range(n):
                buffer[np.uint64(at + k)] = load_float32(address, k)
        else:
            for k in range(n):
                buffer[np.uint64(at + k)] = load_float32(address + k * stride, 0)
    elif code == FLOAT64:
        for k in range(n):
            buffer[np.uint64(at + k)] = load_float64(address + k * stride, 0)
    elif code == BFLOAT16:
        if stride == 2:
            for k in range(n):
                buffer[np.uint64(at + k)] = _from_bfloat16(load_uint16(address, k))
        else:
            for k in range(n):
                buffer[np.uint64(at + k)] = _from_bfloat16(load_uint16(address + k * stride, 0))
    elif code == FLOAT16:
        if stride == 2:
            for k in range(n):
                buffer[np.uint64(at + k)] = _from_float16(load_uint16(address, k))
        else:
            for k in range(n):
                buffer[np.uint64(at + k)] = _from_float16(load_uint16(address + k * stride, 0))
    else:
        for k in range(n):
            buffer[np.uint64(at + k)] = load_uint8(address + k * stride, 0) != 0


@inline
def _write_run(code: int, address: int, stride: int, n: int, buffer: Buffer, at: int) -> None:
    if code == FLOAT32:
        for k in range(n):
            store_float32(address + k * stride, 0, np.float32(buffer[np.uint64(at + k)]))
    elif code == FLOAT64:
        for k in range(n):
            store_float64(address + k * stride, 0, np.float64(buffer[np.uint64(at + k)]))
    elif code == BFLOAT16:
        if stride == 2:
            for k in range(n):
                store_uint16(address, k, _to_bfloat16(np.float32(buffer[np.uint64(at + k)])))
        else:
            for k in range(n):
                store_uint16(
                    address + k * stride, 0, _to_bfloat16(np.float32(buffer[np.uint64(at + k)]))
                )
    elif stride == 2:
        for k in range(n):
            store_uint16(address, k, _to_float16(np.float32(buffer[np.uint64(at + k)])))
    else:
        for k in range(n):
            store_uint16(
                address + k * stride, 0, _to_float16(np.float32(buffer[np.uint64(at + k)]))
            )


@inline
def _place(table: Buffer, row: int, run: int) -> int:
    """Return the address of the first element of a run, the last axis of the table's shape."""
    address = table[row, ADDRESS]
    for axis in range(table[0, 0] - 2, -1, -1):
        size = table[0, STRIDES + axis]
        address += (run % size) * table[row, STRIDES + axis]
        run //= size
    return address


@inline
def address_of(buffer: Buffer) -> Any:
    """Return the address of a buffer's first element."""
    return np.int64(buffer.ctypes.data)


# --- blocks ---------------------------------------------------------------------------------------


@inline
def read(table: Buffer, row: int, start: int, n: int, buffer: Buffer) -> None:
    """Fill ``buffer`` with the ``n`` elements from position ``start`` on."""
    code, axis = table[row, CODE], table[0, 0] - 1
    length, stride = table[0, STRIDES + axis], table[row, STRIDES + axis]
    run, offset, at = start // length, start % length, 0
    while at < n:
        size = min(length - offset, n - at)
        address = _place(table, row, run) + offset * stride
        _read_run(code, address, stride, size, buffer, at)
        at += size
        run += 1
        offset = 0


@inline
def write(table: Buffer, row: int, start: int, n: int, buffer: Buffer) -> None:
    """Write ``n`` elements of ``buffer`` from position ``start`` on."""
    code, axis = table[row, CODE], table[0, 0] - 1
    length, stride = table[0, STRIDES + axis], table[row, STRIDES + axis]
    run, offset, at = start // length, start % length, 0
    while at < n:
        size = min(length - offset, n - at)
        address = _place(table, row, run) + offset * stride
        _write_run(code, address, stride, size, buffer, at)
        at += size
        run += 1
        offset = 0


@inline
def direct(table: Buffer, row: int, buffer: Buffer) -> bool:
    """Return whether the array is contiguous and of the buffer's dtype."""
    return (table[row, CONTIGUOUS] != 0) & (table[row, CODE] == code_of(buffer))


def code_of(buffer: Buffer) -> int:
    """Return the code of a buffer's dtype."""
    raise NotImplementedError


@overload(code_of)
def _code_of(buffer: Buffer) -> Any:
    code = FLOAT32 if buffer.dtype == types.float32 else FLOAT64

    def generic(buffer: Buffer) -> int:
        return code

    return generic


@inline
def source(table: Buffer, row: int, start: int, n: int, buffer: Buffer) -> int:
    """Return the address of the elements from ``start`` on: where they lie, or the buffer's."""
    if direct(table, row, buffer):
        return table[row, ADDRESS] + start * buffer.itemsize
    read(table, row, start, n, buffer)
    return address_of(buffer)


@inline
def sink(table: Buffer, row: int, start: int, buffer: Buffer) -> int:
    """Return the address for elements from ``start`` on; `flush` takes them to the array."""
    if direct(table, row, buffer):
        return table[row, ADDRESS] + start * buffer.itemsize
    return address_of(buffer)


@inline
def flush(table: Buffer, row: int, start: int, n: int, buffer: Buffer) -> None:
    """Write the buffer that `sink` may have returned."""
    if not direct(table, row, buffer):
        write(table, row, start, n, buffer)


def load(address: int, index: int, kind: Buffer) -> float:
    """Return an element of the dtype of the array ``kind``."""
    raise NotImplementedError


@overload(load)
def _load(address: int, index: int, kind: Buffer) -> Any:
    function = load_float32 if kind.dtype == types.float32 else load_float64

    def generic(address: int, index: int, kind: Buffer) -> float:
        return function(address, index)

    return generic


def store(address: int, index: int, value: float) -> None:
    """Write an element of the dtype of ``value``."""
    raise NotImplementedError


@overload(store)
def _store(address: int, index: int, value: Any) -> Any:
    function = store_float32 if value == types.float32 else store_float64

    def generic(address: int, index: int, value: Any) -> None:
        function(address, index, value)

    return generic


@inline
def dropped(keep: Buffer, n: int, address: int, buffer: Buffer, value: float) -> int:
    """Copy ``n`` elements to the buffer, with ``value`` where they are not kept."""
    for k in range(n):
        buffer[k] = select(keep[k] != 0, load(address, k, buffer), like(buffer[k], value))
    return address_of(buffer)
