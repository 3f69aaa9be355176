"""Rows of logits, a block after the other: their states, for all kernels that take rows.

The states of blocks are merged in pairs, so that the number of blocks hardly adds to the rounding.
A long row is made of parts, each as if it were a row, which threads may share: results do not
depend on that.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from kldiv.kernels.cpu import general, quick
from kldiv.kernels.cpu.compiling import inline
from kldiv.kernels.cpu.memory import address_of, source
from kldiv.kernels.cpu.passes import SIZE
from kldiv.kernels.cpu.state import FIELDS, merge
from kldiv.kernels.layout import ADDRESS, Buffer

S: Final = 1
T: Final = 2
GRADIENT_S: Final = 3
GRADIENT_T: Final = 4

LEVELS: Final = 64
"""Enough to merge any number of blocks in pairs."""

PART: Final = 1 << 16
"""Classes of a part of a row."""

LOST: Final = FIELDS
QUICK: Final = FIELDS + 1
PART_FIELDS: Final = FIELDS + 2
"""A part's state, whether a class has p > 0 = q, and whether it was done quickly."""


@inline
def settled(stack: Any, depth: int, count: int, temperature: float) -> int:
    """Merge the last of ``count`` states with those of as many blocks; return how many are left."""
    while count % 2 == 0:
        depth -= 1
        merge(stack[depth - 1], stack[depth], temperature)
        count //= 2
    return depth


@inline
def close(stack: Any, base: int, depth: int, temperature: float) -> None:
    """Merge all states from ``base`` on."""
    while depth > base + 1:
        depth -= 1
        merge(stack[depth - 1], stack[depth], temperature)


@inline
def room_for(classes: int, gradients: bool, kind: Buffer) -> tuple[Buffer, Buffer]:
    """Return room for the terms and guesses of each block of a row, or of one at a time."""
    blocks = 1
    if kind.itemsize == 4 and gradients and classes <= quick.LONGEST:
        blocks = (classes + SIZE - 1) // SIZE
    return np.empty((blocks, 3 * SIZE), np.float32), np.empty((blocks, quick.GUESSES))


@inline
def part_state(
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    own: int,  # row of the table: the teacher's logits
    other: int,  # row of the table: the student's logits
    first: int,  # place of the part's first element
    classes: int,  # classes of the part
    temperature: float,  # of the row
    hot: Any,  # 5 numbers, `heat` of the temperature
    buffers: Buffer,  # [8, size], room, in the dtype to compute in
    stack: Any,  # [LEVELS, FIELDS], states to be merged
    base: int,  # place in the stack
    room: tuple[Buffer, Buffer],  # terms of blocks and their guesses, kept for gradients
    begin: int,  # place in the room of the part's first block
) -> tuple[bool, bool]:
    """Write the state of a part to the stack, at ``base``.

    Return whether a class has p > 0 = q, and whether all blocks were done quickly.
    """
    size = buffers.shape[1]
    kept, guesses = room
    guess = np.empty(quick.GUESSES)
    lost, fast, depth = False, True, base
    for number, start in enumerate(range(0, classes, size)):
        n = min(size, classes - start)
        t = source(table, own, first + start, n, buffers[0])
        s = source(table, other, first + start, n, buffers[1])
        place = begin + number if begin + number < guesses.shape[0] else 0
        if fast:
            fast = quick.state(
                t,
                s,
                n,
                number == 0,
                address_of(kept[place]),
                temperature,
                hot,
                guess,
                stack[depth],
            )
        if fast:
            guesses[place] = guess
        else:
            lost |= general.block(t, s, n, temperature, hot, buffers, stack[depth])
        depth = settled(stack, depth + 1, number + 1, temperature)
    close(stack, base, depth, temperature)
    return lost, fast


@inline
def row_state(
    table: Buffer,
    own: int,
    other: int,
    row: int,
    classes: int,
    temperature: float,
    hot: Any,
    buffers: Buffer,
    stack: Any,
    room: tuple[Buffer, Buffer],
) -> tuple[bool, bool]:
    """Write the state of a row to the first place of the stack; return as `part_state` does."""
    lost, fast, depth = False, True, 0
    for number, start in enumerate(range(0, classes, PART)):
        gone, quickly = part_state(
            table,
            own,
            other,
            row * classes + start,
            min(PART, classes - start),
            temperature,
            hot,
            buffers,
            stack,
            depth,
            room,
            start // buffers.shape[1],
        )
        lost |= gone
        fast &= quickly
        depth = settled(stack, depth + 1, number + 1, temperature)
    close(stack, 0, depth, temperature)
    return lost, fast


@inline
def merged(parts: Any, stack: Any, temperature: float) -> None:
    """Merge the states of a row's parts, as `row_state` does, into the first of them."""
    depth = 0
    for number in range(parts.shape[0]):
        stack[depth] = parts[number, :FIELDS]
        if number:
            parts[0, LOST] = max(parts[0, LOST], parts[number, LOST])
            parts[0, QUICK] = min(parts[0, QUICK], parts[number, QUICK])
        depth = settled(stack, depth + 1, number + 1, temperature)
    close(stack, 0, depth, temperature)
    parts[0, :FIELDS] = stack[0]


@inline
def zeros(table: Buffer, first: int, classes: int, buffers: Buffer) -> None:
    """Write zeros: the gradients of a row that a mask drops."""
    size = buffers.shape[1]
    for which in (GRADIENT_S, GRADIENT_T):
        if table[which, ADDRESS] != 0:
            for start in range(first, first + classes, size):
                general.zeros(table, which, start, min(size, first + classes - start), buffers[2])
