"""Kernels of KL from rows of logits: the value from one read, gradients while a row is in a cache.

The formulas are those of `kldiv.formulas.logits`, of whole rows or of the parts of a few long ones.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kldiv.kernels.cpu import general, quick
from kldiv.kernels.cpu.compiling import inline, kernel
from kldiv.kernels.cpu.memory import address_of, flush, sink, source
from kldiv.kernels.cpu.passes import SIZE
from kldiv.kernels.cpu.rows import (
    GRADIENT_S,
    GRADIENT_T,
    LEVELS,
    LOST,
    PART,
    QUICK,
    S,
    T,
    merged,
    part_state,
    room_for,
    row_state,
    zeros,
)
from kldiv.kernels.cpu.state import FIELDS, finish, heat
from kldiv.kernels.layout import ADDRESS, Buffer

# Stages of a call: whole rows, or the states of parts, these merged to rows, and parts' gradients.
WHOLE: Final = 0
STATES: Final = 1
MERGED: Final = 2
GRADIENTS: Final = 3


# --- gradients ------------------------------------------------------------------------------------


@inline
def _slowly(
    table: Buffer,
    first: int,
    classes: int,
    a: Any,
    ends: tuple[float, float],
    factor: float,
    hot: Any,
    buffers: Buffer,
) -> None:
    """Write the gradients of a part; ``ends`` are KL and the offset of its row."""
    kind, size = buffers[0], buffers.shape[1]
    kl, offset = ends
    for start in range(0, classes, size):
        n, at = min(size, classes - start), first + start
        t = source(table, T, at, n, buffers[0])
        s = source(table, S, at, n, buffers[1])
        if table[GRADIENT_S, ADDRESS] != 0:
            out = sink(table, GRADIENT_S, at, buffers[2])
            general.gradient_s(t, s, n, out, a, offset, factor, hot, kind)
            flush(table, GRADIENT_S, at, n, buffers[2])
        if table[GRADIENT_T, ADDRESS] != 0:
            out = sink(table, GRADIENT_T, at, buffers[2])
            general.gradient_t(t, s, n, out, a, kl, factor, hot, kind)
            flush(table, GRADIENT_T, at, n, buffers[2])


@inline
def _quickly(
    table: Buffer,
    first: int,
    classes: int,
    a: Any,
    offset: float,
    factor: float,
    temperature: float,
    hot: Any,
    buffers: Buffer,
    room: tuple[Buffer, Buffer],
    begin: int,
) -> None:
    """Write the gradients of a part from its kept terms, made again where ``begin`` < 0."""
    kind, size = buffers[0], buffers.shape[1]
    kept, guesses = room
    again = begin < 0
    guess, unused = np.empty(quick.GUESSES), np.empty(FIELDS)
    for number, start in enumerate(range(0, classes, size)):
        n, at = min(size, classes - start), first + start
        place = address_of(kept[0 if again else begin + number])
        if again:
            t = source(table, T, at, n, buffers[0])
            s = source(table, S, at, n, buffers[1])
            quick.state(t, s, n, number == 0, place, temperature, hot, guess, unused)
        else:
            guess[:] = guesses[begin + number]
        for which in (GRADIENT_S, GRADIENT_T):
            if table[which, ADDRESS] != 0:
                out = sink(table, which, at, buffers[2])
                of_teacher = which == GRADIENT_T
                quick.gradient(
                    of_teacher, place, n, out, guess, a, offset, factor, temperature, kind
                )
                flush(table, which, at, n, buffers[2])


# --- all ------------------------------------------------------------------------------------------


@inline
def _rows(
    table: Buffer,
    classes: int,
    temperatures: Buffer,
    keep: Buffer,
    factors: Buffer,
    first: int,
    last: int,
    values: Buffer,
    buffers: Buffer,
) -> None:
    """Compute whole rows."""
    size = buffers.shape[1]
    stack = np.empty((LEVELS, FIELDS))
    gradients = table[GRADIENT_S, ADDRESS] != 0 or table[GRADIENT_T, ADDRESS] != 0
    room = room_for(classes, gradients, buffers[0])
    temperature = temperatures[0]
    hot = heat(temperature, buffers[0])
    for row in range(first, last):
        values[row] = 0.0
        if keep.size != 0 and keep[row] == 0:
            zeros(table, row * classes, classes, buffers)
            continue
        if temperatures.size > 1:
            temperature = temperatures[row]
            hot = heat(temperature, buffers[0])
        lost, fast = row_state(table, T, S, row, classes, temperature, hot, buffers, stack, room)
        ends = finish(stack[0], lost)
        values[row] = ends[0]
        if not gradients:
            continue
        factor = factors[row if factors.size > 1 else 0] / temperature
        for start in range(0, classes, PART):
            at, n = row * classes + start, min(PART, classes - start)
            if fast:
                begin = start // size if classes <= quick.LONGEST else -1
                _quickly(
                    table,
                    at,
                    n,
                    stack[0],
                    ends[1],
                    factor,
                    temperature,
                    hot,
                    buffers,
                    room,
                    begin,
                )
            else:
                _slowly(table, at, n, stack[0], ends, factor, hot, buffers)


@inline
def _parts(
    stage: int,  # `STATES`, `MERGED` or `GRADIENTS`
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    classes: int,  # classes of a row
    temperatures: Buffer,  # [rows] or [1] of float64
    keep: Buffer,  # [rows] of uint8, 0 where a row is left out; or [0], for none
    factors: Buffer,  # [rows] or [1] of float64, gradient in each row's divergence
    first: int,  # the first part; or the first row, by `MERGED`
    last: int,  # the part, or the row, after the last
    values: Buffer,  # [rows] of float64, output: each row's divergence
    parts: Buffer,  # [rows · parts, PART_FIELDS], parts' states between stages
    room: tuple[Buffer, Buffer],  # terms of parts' blocks and their guesses; or empty
    buffers: Buffer,  # [8, size], room, in the dtype to compute in
) -> None:
    """Do one stage of the work, on parts, or on rows where these are merged."""
    stack = np.empty((LEVELS, FIELDS))
    keeps = room[0].shape[0] != 0
    if not keeps:
        room = room_for(classes, False, buffers[0])
    number = (classes + PART - 1) // PART
    for unit in range(first, last):
        row = unit if stage == MERGED else unit // number
        at = row * number if stage == MERGED else unit
        start = (at - row * number) * PART
        place, n = row * classes + start, min(PART, classes - start)
        begin = at * (PART // SIZE) if keeps else 0
        temperature = temperatures[row if temperatures.size > 1 else 0]
        hot = heat(temperature, buffers[0])
        if keep.size != 0 and keep[row] == 0:
            if stage == MERGED:
                values[row] = 0.0
            if stage == GRADIENTS:
                zeros(table, place, n, buffers)
        elif stage == STATES:
            lost, fast = part_state(
                table, T, S, place, n, temperature, hot, buffers, stack, 0, room, begin
            )
            parts[at, :FIELDS] = stack[0]
            parts[at, LOST] = 1.0 if lost else 0.0
            parts[at, QUICK] = 1.0 if fast else 0.0
        elif stage == MERGED:
            merged(parts[at : at + number], stack, temperature)
            values[row], _ = finish(parts[at], parts[at, LOST] != 0)
        else:
            a = parts[row * number]
            ends = finish(a, a[LOST] != 0)
            factor = factors[row if factors.size > 1 else 0] / temperature
            if a[QUICK] != 0:
                _quickly(
                    table,
                    place,
                    n,
                    a,
                    ends[1],
                    factor,
                    temperature,
                    hot,
                    buffers,
                    room,
                    begin if keeps else -1,
                )
            else:
                _slowly(table, place, n, a, ends, factor, hot, buffers)


_SIGNATURE = (
    "void(i8, i8[:,::1], i8, f8[::1], u1[::1], f8[::1], i8, i8, f8[::1], "
    "f8[:,::1], f4[:,::1], f8[:,::1])"
)


@kernel(_SIGNATURE)
def float32(
    stage: int,  # `WHOLE`, `STATES`, `MERGED` or `GRADIENTS`
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    classes: int,  # classes of a row
    temperatures: Buffer,  # [rows] or [1] of float64
    keep: Buffer,  # [rows] of uint8, 0 where a row is left out; or [0], for none
    factors: Buffer,  # [rows] or [1] of float64, gradient in each row's divergence
    first: int,  # the first row; or the first part, by `STATES` and `GRADIENTS`
    last: int,  # the row, or the part, after the last
    values: Buffer,  # [rows] of float64, output: each row's divergence
    parts: Buffer,  # [rows · parts, PART_FIELDS], parts' states between stages; [0, …] by `WHOLE`
    kept: Buffer,  # [blocks, 3 SIZE] of float32, terms of parts' blocks, for gradients; or [0, …]
    guesses: Buffer,  # [blocks, GUESSES], guesses that these terms are about
) -> None:
    """Compute rows ``first`` to ``last``, or a stage of parts, in float32."""
    buffers = np.empty((8, SIZE), np.float32)
    if stage == WHOLE:
        _rows(table, classes, temperatures, keep, factors, first, last, values, buffers)
    else:
        _parts(
            stage,
            table,
            classes,
            temperatures,
            keep,
            factors,
            first,
            last,
            values,
            parts,
            (kept, guesses),
            buffers,
        )


@kernel(_SIGNATURE)
def float64(
    stage: int,  # `WHOLE`, `STATES`, `MERGED` or `GRADIENTS`
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    classes: int,  # classes of a row
    temperatures: Buffer,  # [rows] or [1] of float64
    keep: Buffer,  # [rows] of uint8, 0 where a row is left out; or [0], for none
    factors: Buffer,  # [rows] or [1] of float64, gradient in each row's divergence
    first: int,  # the first row; or the first part, by `STATES` and `GRADIENTS`
    last: int,  # the row, or the part, after the last
    values: Buffer,  # [rows] of float64, output: each row's divergence
    parts: Buffer,  # [rows · parts, PART_FIELDS], parts' states between stages; [0, …] by `WHOLE`
    kept: Buffer,  # [blocks, 3 SIZE] of float32, terms of parts' blocks, for gradients; or [0, …]
    guesses: Buffer,  # [blocks, GUESSES], guesses that these terms are about
) -> None:
    """Compute rows ``first`` to ``last``, or a stage of parts, in float64."""
    buffers = np.empty((8, 1024), np.float64)
    if stage == WHOLE:
        _rows(table, classes, temperatures, keep, factors, first, last, values, buffers)
    else:
        _parts(
            stage,
            table,
            classes,
            temperatures,
            keep,
            factors,
            first,
            last,
            values,
            parts,
            (kept, guesses),
            buffers,
        )
