"""Kernels of rows of logits: their states, merged and finished, and the sums of divergences.

A program has one row, or a chunk of one, which it reads a tile at a time; where a row is shorter
than a tile, it has several.  Where a row is shared, every program leaves its state, and `join`
merges these.  Each row's constants are kept for its gradients: float64 numbers, `SAVED` a row.

Large arrays of float32 take `states` twice: rows that can go the quick way, and after it the rest,
which few programs look for.  Apart each takes fewer registers, and more programs run at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kldiv.formulas.numbers import SUM_FIELDS
from kldiv.kernels.triton import SAVED as OF_ROW
from kldiv.kernels.triton.divergences import JS, elements, means, numbers_of
from kldiv.kernels.triton.places import (
    FIELDS,
    columns_from,
    load_pair,
    pair_of,
    read_state,
    temperature_of,
    write_state,
)
from kldiv.kernels.triton.quick import quick_state
from kldiv.kernels.triton.quick_js import looks_of, quick_look
from kldiv.kernels.triton.state import View, block_state, empty_state, finish, heated, merge, turned

SAVED = tl.constexpr(len(OF_ROW))
"""How many numbers are kept of a row; where the last of them are."""

_KL = tl.constexpr(OF_ROW.index("kl"))
_OFFSET = tl.constexpr(OF_ROW.index("offset"))
_MEANS = tl.constexpr(OF_ROW.index(SUM_FIELDS[1]))
_QUICK = tl.constexpr(OF_ROW.index("quick"))

SUMS = tl.constexpr(len(SUM_FIELDS))
"""Sums that `look` makes."""


NUMBER_BITS = ["first_bits", "second_bits", "third_bits", "fourth_bits"]
"""The arguments that are the numbers of a divergence: Triton would specialise those of a tuple."""

UNSPECIALISED = ["temperature_bits", *NUMBER_BITS, "rows", "inner"]
"""Arguments whose values are no reason to compile a kernel again."""


# --- sums over classes ----------------------------------------------------------------------------


ALL = tl.constexpr(0)
"""A way of `states`: all rows, a tile after another."""
QUICK = tl.constexpr(1)
"""Only rows that can go the quick way; it marks the rest by NaN as the first number of a state."""
REST = tl.constexpr(2)
"""Only rows that are so marked."""


@triton.jit
def _scan(
    pair,  # Pair, the logits
    first,  # int, the first class of the part
    end,  # int, the class after its last; may be beyond the row
    there,  # [height, 1] of bool, rows that count
    temperature,  # [height, 1] of float64
    hot,  # Heat [height, 1], constants of the temperature
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    anchors: tl.constexpr,  # bool, whether an anchor in the bulk of q is wanted too
    width: tl.constexpr,  # int, classes of a tile, a power of 2
):
    """Return the state of a part of rows, a tile after another."""
    state = empty_state(temperature)
    for start in range(first, tl.minimum(end, pair.classes), width):
        columns = columns_from(start, width)
        t_tile, s_tile = load_pair(pair, columns, there & (columns < pair.classes), wide)
        block = block_state(t_tile, s_tile, temperature, hot, wide, anchors)
        state = merge(state, block, temperature)
    return state


@triton.jit
def _look(
    pair,  # Pair, the logits
    first,  # int, the first class
    end,  # int, the class after the last; may be beyond the row
    there,  # [height, 1] of bool, rows that count
    view,  # View of whole rows, the teacher's
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    divergence: tl.constexpr,  # int, the divergence
    t_means: tl.constexpr,  # bool, whether to find the sums for the gradient in t
    s_means: tl.constexpr,  # bool, whether to find the sums for the gradient in s
    width: tl.constexpr,  # int, classes of a tile, a power of 2
):
    """Return the divergence's sums over the classes from ``first`` to ``end``."""
    value = tl.zeros_like(view.temperature)
    t_mean, t_second, s_mean, s_second = value, value, value, value
    for start in range(first, tl.minimum(end, pair.classes), width):
        columns = columns_from(start, width)
        t_tile, s_tile = load_pair(pair, columns, there & (columns < pair.classes), wide)
        value += elements(t_tile, s_tile, view, wide, divergence)
        if t_means:
            mean, second = means(t_tile, s_tile, view, wide, divergence)
            t_mean += mean
            t_second += second
        if s_means:
            mean, second = means(s_tile, t_tile, turned(view), wide, divergence)
            s_mean += mean
            s_second += second
    return Sums(value, t_mean, s_mean, t_second, s_second)


# --- the numbers of rows --------------------------------------------------------------------------


class Sums(NamedTuple):
    """The sums over classes that a divergence takes, in the order of `SUM_FIELDS`."""

    value: Any
    t_mean: Any
    s_mean: Any
    t_second: Any
    s_second: Any


@triton.jit
def _write_known(saved, row, kl, offset, sums, quick, there):
    """Write the numbers of rows that follow from their states."""
    at = saved + row * SAVED
    tl.store(at + _QUICK, quick, mask=there)
    tl.store(at + _KL, kl, mask=there)
    tl.store(at + _OFFSET, offset, mask=there)
    _write_means(at, sums, there)


@triton.jit
def _write_means(at, sums, there):
    """Write the sums that gradients take."""
    for k in tl.static_range(1, SUMS):
        tl.store(at + (_MEANS + k - 1), sums[k], mask=there)


@triton.jit
def _write_sums(values, saved, row, sums, kept, there):
    """Write the divergences of rows and the sums that their gradients take."""
    kl = tl.load(saved + row * SAVED + _KL, mask=there, other=0.0)
    value = tl.where(kl == kl, sums.value, float("nan"))
    _write_means(saved + row * SAVED, sums, there)
    tl.store(values + row, tl.where(kept, value, 0.0), mask=there)


@triton.jit
def _all_quick(saved, row, there):
    """Return whether all rows went the quick way."""
    return tl.min(tl.load(saved + row * SAVED + _QUICK, mask=there, other=1.0)) > 0


@triton.jit
def read_known(saved, row, there, wide: tl.constexpr):
    """Return KL, the offset, the sums that gradients take, and whether all went the quick way."""
    kind = tl.float64 if wide else tl.float32
    at = saved + row * SAVED
    sums = ()
    for k in tl.static_range(SUMS - 1):
        each = tl.load(at + (_MEANS + k), mask=there, other=0.0).to(kind)
        sums = sums + (each,)  # type: ignore[assignment] # noqa: RUF005 - Triton's
    kl = tl.load(at + _KL, mask=there, other=0.0)
    offset = tl.load(at + _OFFSET, mask=there, other=0.0)
    return kl, offset, sums, _all_quick(saved, row, there)


@triton.jit
def counting(keep, row, there):
    """Return which of the rows that are there a mask keeps."""
    if keep is not None:
        there = there & (tl.load(keep + row, mask=there, other=0) != 0)
    return there


# --- kernels --------------------------------------------------------------------------------------


@triton.jit
def _states_of(
    group,  # int, the number of the tile's rows; the other arguments are those of `states`
    s, t, values, saved, partial, keep, temperatures, temperature_bits, rows, inner, classes, chunk,
    s_strides, t_strides, wide: tl.constexpr, anchors: tl.constexpr, way: tl.constexpr,
    height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Write the values and constants of a tile's rows, or the states of their parts."""
    row = group.to(tl.int64) * height + tl.arange(0, height)[:, None]
    there = row < rows
    if partial is not None:
        place = partial + (row * tl.num_programs(1) + tl.program_id(1)) * FIELDS
    else:
        place = saved + row * SAVED
    if way == REST:
        mark = tl.load(place, mask=there, other=0.0)
        there = mark != mark
    if tl.max(there.to(tl.int32)) > 0:
        kept = counting(keep, row, there)
        temperature = temperature_of(temperatures, temperature_bits, row, there)
        hot = heated(temperature, wide)
        pair = pair_of(s, t, row, inner, classes, s_strides, t_strides)
        first = tl.program_id(1).to(tl.int64) * chunk
        end = first + chunk  # a multiple of the tile's width
        if way == QUICK:
            state, done = quick_state(
                pair, first, end, kept, temperature, hot, anchors, height, width
            )
        else:
            state = _scan(pair, first, end, kept, temperature, hot, wide, anchors, width)
            done = temperature < 0  # none
        write_state(place, 0, state, there)
        if partial is None:
            kl, offset = finish(state)
            if anchors:
                done &= state.s_anchor == state.pivot
            zero = tl.zeros_like(kl)
            sums = Sums(kl, zero, zero, zero, zero)
            _write_known(saved, row, kl, offset, sums, done.to(tl.float64), there)
            if values is not None:
                tl.store(values + row, tl.where(kept, kl, 0.0), mask=there)


@triton.jit(do_not_specialize=["temperature_bits", "rows", "inner", "span"])
def states(
    s,  # [rows, classes], student's logits, of any strides
    t,  # [rows, classes], teacher's logits, of any strides
    values,  # [rows] of float64, output: each row's KL; or None
    saved,  # [rows, SAVED] of float64, output: constants that the gradients need
    partial,  # [rows, parts, FIELDS] of float64, output in place of both: parts' states; or None
    keep,  # [rows] of uint8, 0 where a row is left out; or None
    temperatures,  # [rows] of float64; or None, where one temperature is all rows'
    temperature_bits,  # int, bits of that temperature as a float64
    rows,  # int, number of rows
    inner,  # int, length of the second of the two axes that rows lie in
    classes,  # int, number of classes
    chunk,  # int, classes of a part, a multiple of width
    span,  # int, tiles' rows of a program, one after another, of the rest
    s_strides,  # [3], strides of s in elements: along both axes of rows, and along classes
    t_strides,  # [3], likewise of t
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    anchors: tl.constexpr,  # bool, whether an anchor in the bulk of q is wanted too
    way: tl.constexpr,  # int, `ALL`, `QUICK` or `REST`
    height: tl.constexpr,  # int, rows of a tile
    width: tl.constexpr,  # int, classes of a tile, a power of 2
):
    """Write the values and constants of rows, or the states of their parts."""
    if way == REST:
        for k in range(span):
            _states_of(
                tl.program_id(0) * span + k, s, t, values, saved, partial, keep, temperatures,
                temperature_bits, rows, inner, classes, chunk, s_strides, t_strides, wide,
                anchors, way, height, width,
            )  # fmt: skip
    else:
        _states_of(
            tl.program_id(0), s, t, values, saved, partial, keep, temperatures, temperature_bits,
            rows, inner, classes, chunk, s_strides, t_strides, wide, anchors, way, height, width,
        )  # fmt: skip


@triton.jit(do_not_specialize=["temperature_bits", "rows", "parts"])
def join(
    partial,  # [rows, parts, FIELDS] of float64, states of parts of rows
    values,  # [rows] of float64, output: each row's KL
    saved,  # [rows, SAVED] of float64, output: constants that the gradients need
    keep,  # [rows] of uint8, 0 where a row is left out; or None
    temperatures,  # [rows] of float64; or None, where one temperature is all rows'
    temperature_bits,  # int, bits of that temperature as a float64
    rows,  # int, number of rows
    parts,  # int, number of parts of a row
    height: tl.constexpr,  # int, rows of a program
):
    """Merge the states of the parts of rows, and finish these."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    there = row < rows
    temperature = temperature_of(temperatures, temperature_bits, row, there)
    state = read_state(partial, row * parts * FIELDS, there)
    for part in range(1, parts):
        state = merge(state, read_state(partial, (row * parts + part) * FIELDS, there), temperature)
    kl, offset = finish(state)
    write_state(saved, row * SAVED, state, there)
    zero = tl.zeros_like(kl)
    _write_known(saved, row, kl, offset, Sums(kl, zero, zero, zero, zero), zero, there)
    tl.store(values + row, tl.where(counting(keep, row, there), kl, 0.0), mask=there)


@triton.jit(do_not_specialize=UNSPECIALISED)
def look(
    s,  # [rows, classes], student's logits, of any strides
    t,  # [rows, classes], teacher's logits, of any strides
    sums,  # [rows, parts, SUMS] of float64, output: sums over parts of rows; or None
    values,  # [rows] of float64, output if rows are not shared: each row's divergence
    saved,  # [rows, SAVED] of float64, constants of rows: likewise the sums' places are output
    keep,  # [rows] of uint8, 0 where a row is left out; or None
    temperatures,  # [rows] of float64; or None, where one temperature is all rows'
    temperature_bits,  # int, bits of that temperature as a float64
    first_bits,  # int, bits of the divergence's first number as a float64
    second_bits,  # int, of the second
    third_bits,  # int, of the third
    fourth_bits,  # int, of the fourth
    rows,  # int, number of rows
    inner,  # int, length of the second of the two axes that rows lie in
    classes,  # int, number of classes
    chunk,  # int, classes of a part, a multiple of width
    s_strides,  # [3], strides of s in elements: along both axes of rows, and along classes
    t_strides,  # [3], likewise of t
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    divergence: tl.constexpr,  # int, the divergence
    t_means: tl.constexpr,  # bool, whether to find the sums for the gradient in t
    s_means: tl.constexpr,  # bool, whether to find the sums for the gradient in s
    height: tl.constexpr,  # int, rows of a tile
    width: tl.constexpr,  # int, classes of a tile, a power of 2
):
    """Make the sums of a divergence over rows whose states are known, or over parts of them."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    inside = row < rows
    there = counting(keep, row, inside)
    temperature = temperature_of(temperatures, temperature_bits, row, there)
    hot, half = heated(temperature, wide), heated(2.0 * temperature, wide)
    first = tl.program_id(1).to(tl.int64) * chunk
    end = first + chunk  # a multiple of the tile's width
    state = read_state(saved, row * SAVED, there)
    offset = tl.load(saved + row * SAVED + _OFFSET, mask=there, other=0.0)
    numbers = numbers_of(first_bits, second_bits, third_bits, fourth_bits)
    view = View(state, offset, numbers, temperature, hot, half)
    pair = pair_of(s, t, row, inner, classes, s_strides, t_strides)
    begin, last = first, tl.minimum(end, classes)
    # Only Jensen-Shannon has a quick way.
    hurried: tl.constexpr = divergence == JS and not wide and sums is None
    if hurried:
        begin = tl.where(_all_quick(saved, row, there), last, first)
        found, found_t, found_s = quick_look(
            pair, first, begin, there, looks_of(view), numbers.first, hot, t_means, s_means,
            height, width,
        )  # fmt: skip
    made = _look(pair, begin, end, there, view, wide, divergence, t_means, s_means, width)
    if hurried:
        value, t_mean, s_mean = made.value + found, made.t_mean + found_t, made.s_mean + found_s
        made = Sums(value, t_mean, s_mean, made.t_second, made.s_second)
    if sums is not None:
        part = sums + (row * tl.num_programs(1) + tl.program_id(1)) * SUMS
        for k in tl.static_range(SUMS):
            tl.store(part + k, made[k], mask=inside)
    else:
        _write_sums(values, saved, row, made, there, inside)


@triton.jit(do_not_specialize=["rows", "parts"])
def join_sums(
    sums,  # [rows, parts, SUMS] of float64, sums over parts of rows, from `look`
    values,  # [rows] of float64, output: each row's divergence
    saved,  # [rows, SAVED] of float64, constants of rows: the sums' places are output
    keep,  # [rows] of uint8, 0 where a row is left out; or None
    rows,  # int, number of rows
    parts,  # int, number of parts of a row
    height: tl.constexpr,  # int, rows of a program
):
    """Add up the sums that `look` has made, part after part."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)
    there = row < rows
    value = tl.zeros([height], tl.float64)
    t_mean, t_second, s_mean, s_second = value, value, value, value
    for part in range(parts):
        at = sums + (row * parts + part) * SUMS
        value += tl.load(at, mask=there, other=0.0)
        t_mean += tl.load(at + 1, mask=there, other=0.0)
        s_mean += tl.load(at + 2, mask=there, other=0.0)
        t_second += tl.load(at + 3, mask=there, other=0.0)
        s_second += tl.load(at + 4, mask=there, other=0.0)
    found = Sums(value, t_mean, s_mean, t_second, s_second)
    _write_sums(values, saved, row, found, counting(keep, row, there), there)
