"""Arrays of any layout and dtype, read to and written from contiguous buffers.

A kernel gets its arrays as one table of integers, `kldiv.kernels.layout` makes it; an array that is
contiguous and has the dtype of the buffers is read and written in place. Functions for the
others stand here, compiled where there is one: for a dtype, with or without steps between elements.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from kldiv.kernels.cpu.code import AHEAD, DOUBLE, I8, I16, I32, I64, SINGLE, Code, at_most, select
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.layout import ADDRESS, SIZES, STRIDES

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv.kernels.cpu.code import Value

_TYPES = {"float32": SINGLE, "float64": DOUBLE, "float16": I16, "bfloat16": I16, "bool": I8}


# --- half types -----------------------------------------------------------------------------------


def _widened(half: Value, dtype: str) -> Value:
    """Return a half-precision number, given as its bits, as a float32."""
    word = half.to(I32)
    if dtype == "bfloat16":
        return (word << 16).bits()
    rest = ((word & 0x7FFF) << 13).bits()
    value = rest * 2.0**112  # shifts the exponent, of subnormal numbers too
    special = (rest.bits() | 0x7F800000).bits()
    value = select((word & 0x7C00) == 0x7C00, special, value)
    return (value.bits() | ((word & 0x8000) << 16)).bits()


def _narrowed(value: Value, dtype: str) -> Value:
    """Return the bits of a float32 number, rounded to a half type."""
    word = value.bits()
    if dtype == "bfloat16":
        odd = (word >> 16) & 1
        rounded = (word + 0x7FFF + odd) >> 16
        return select(value != value, (word >> 16) | 0x40, rounded).to(I16)  # noqa: PLR0124
    size, sign = word & 0x7FFFFFFF, (word >> 16) & 0x8000
    odd = (size >> 13) & 1
    normal = (size - 0x38000000 + 0xFFF + odd) >> 13
    # Adding ½ leaves a subnormal number in the lowest bits, rounded.
    small = (size.bits() + 0.5).bits() - 0x3F000000
    half = select(size < 0x38800000, small, normal)
    half = select(size >= 0x47800000, 0x7C00, half)
    half = select(size > 0x7F800000, 0x7E00, half)
    return (half | sign).to(I16)


def _converted(value: Value, dtype: str, wanted: str) -> Value:
    """Return a number as it is in memory in another dtype."""
    if dtype in {"bool", wanted}:
        return value
    if _TYPES[dtype] == I16:
        value = _widened(value, dtype)
    if _TYPES[wanted] == I16:
        return _narrowed(value.to(SINGLE), wanted)
    return value.to(_TYPES[wanted])


# --- arrays ---------------------------------------------------------------------------------------


def _runs(code: Code, copy: Callable[[Value, Value, Value], None]) -> None:
    """Call ``copy`` with each run of elements: its address, its place in the buffer, its length."""
    table, row, start, n, _ = code.arguments
    axes = code.load(I64, table)
    columns = axes + STRIDES
    own = table + row * columns * 8
    last = columns - 1
    length, stride = code.load(I64, table, last), code.load(I64, own, last)
    run, offset, done = (
        code.variable(each) for each in (start // length, start % length, code.whole(0))
    )
    with code.loop(n // length + 2):
        rest, address = code.variable(run.get()), code.variable(code.load(I64, own, ADDRESS))
        with code.loop(axes - 1) as back:
            axis = last - 1 - back
            size = code.load(I64, table, axis)
            step = (rest.get() % size) * code.load(I64, own, axis)
            address.set(address.get() + step)
            rest.set(rest.get() // size)
        count = at_most(length - offset.get(), n - done.get())
        with code.when(count > 0):
            copy(address.get() + offset.get() * stride, done.get(), count)
        done.set(done.get() + count)
        run.set(run.get() + 1)
        offset.set(code.whole(0))


def _copying(dtype: str, real: str, *, packed: bool, writing: bool) -> Callable[[Code], None]:
    kind, buffer_kind = _TYPES[dtype], I8 if dtype == "bool" else _TYPES[real]
    size, lanes = SIZES[dtype], 16

    def write(code: Code) -> None:
        table, row, *_, buffer = code.arguments
        last = code.load(I64, table) + (STRIDES - 1)
        stride = code.load(I64, table + row * (last + 1) * 8, last)

        def move(kinds: tuple[Any, Any], outside: Value, inside: Value) -> None:
            if writing:
                value = _converted(code.load(kinds[1], inside), real, dtype)
                code.store(outside, value)
            else:
                code.store(inside, _converted(code.load(kinds[0], outside), dtype, real))

        def copy(address: Value, place: Value, count: Value) -> None:
            width = 1 if dtype == "bool" else SIZES[real]
            at = buffer + place * width
            whole = count // lanes * lanes if packed else code.whole(0)
            if packed:
                wide = ir.VectorType(kind, lanes), ir.VectorType(buffer_kind, lanes)
                with code.loop(whole, step=lanes) as k:
                    code.fetch(address + (k + AHEAD * lanes) * size, write=writing)
                    move(wide, address + k * size, at + k * width)
            with code.loop(count, whole) as k:
                move((kind, buffer_kind), address + k * stride, at + k * width)

        _runs(code, copy)

    return write


@cache
def mover(dtype: str, real: str, *, packed: bool, writing: bool) -> int:
    """Return the address of a function that reads elements into a buffer, or writes them from it.

    It takes the table's address, the row of the array, the first element's position, how many they
    are, and the buffer's address.
    """
    way = "write" if writing else "read"
    name = f"{way}-{dtype}-{real}-{'packed' if packed else 'apart'}"
    write = _copying(dtype, real, packed=packed, writing=writing)
    return compiled(name, 5, write).address
