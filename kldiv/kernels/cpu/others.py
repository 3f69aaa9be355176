"""Rows of logits of which some classes are given: the others' largest, and their weights.

A row is copied into a buffer in the cache, where the given classes become −∞. All exponentials are
taken once; where there is a place for them they are written there, for the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kldiv.kernels.cpu.code import DOUBLE, FLOAT32, I64, SINGLE, Code, select
from kldiv.kernels.cpu.elementary import Heat, format_of, power
from kldiv.kernels.cpu.rows import STRIP, largest
from kldiv.kernels.cpu.sums import block_sums

if TYPE_CHECKING:
    from kldiv.kernels.cpu.code import Value

FRAME: Final = (
    "classes",
    "entries",  # how many classes of a row are given
    "student",  # address; 0 where rows are copied by
    "move_student",
    "table",
    "places",  # of the given classes, 64-bit integers; one beyond the last is none
    "heats",
    "heat_step",
    "own",  # the given classes' logits, float64
    "highest",  # of each row, float64
    "weights",  # Σ e^((s − highest)/T), float64
    "out",  # the weights of all classes, float32; 0 where they are not wanted
)

_DEEP: Final = 87.0
"""−log of a weight that counts as 0."""


def scratch_size(classes: int) -> int:
    """Return how many bytes of room a thread needs."""
    return (classes // FLOAT32.lanes + 2) * FLOAT32.lanes * FLOAT32.size


def write(code: Code) -> None:
    """Write the kernel down; it takes a frame, room, and the first and last row."""
    frame_at, room, first, last = code.arguments
    frame = {name: code.load(I64, frame_at, index) for index, name in enumerate(FRAME)}
    lanes, classes = FLOAT32.lanes, frame["classes"]
    whole = classes // lanes * lanes
    end = (classes + (lanes - 1)) // lanes * lanes
    nothing = code.constant(FLOAT32.vector, -float("inf"))
    with code.loop(last, first) as row:
        code.store(room, nothing, whole)
        code.store(room, nothing, whole + lanes)
        _copy(code, frame["student"] + row * classes * 4, room, classes, frame["student"] != 0)
        with code.when(frame["move_student"] != 0):
            moved = frame["table"], 1, row * classes, classes, room
            code.call(frame["move_student"], *moved)
        entries = row * frame["entries"]
        with code.loop(frame["entries"]) as k:
            place = code.load(I64, frame["places"], entries + k)
            code.store(frame["own"], code.load(SINGLE, room, place).to(DOUBLE), entries + k)
        with code.loop(frame["entries"]) as k:
            place = code.load(I64, frame["places"], entries + k)
            code.store(room, nothing.element(0), place)
        highest = _largest(code, room, end)
        code.store(frame["highest"], highest.to(DOUBLE), row)
        origin = select(highest > -float("inf"), highest, 0.0).spread(lanes)
        heat_at = frame["heats"] + row * frame["heat_step"]
        numbers = [code.load(DOUBLE, heat_at, index) for index in range(5)]
        heat = Heat(*(number.to(SINGLE).spread(lanes) for number in numbers))
        own = format_of(origin)
        shift = code.constant(FLOAT32.vector, own.round + own.bias)
        least = heat.temperature * -_DEEP

        # Written where they are wanted at once; the last vector is longer than the row.
        target = select(frame["out"] != 0, frame["out"] + row * classes * 4, room)

        def weigh(k: Value) -> list[Value]:
            apart = code.load(FLOAT32.vector, room, k * lanes) - origin
            weight = power(apart, least, shift, heat)
            at = select(k * lanes < whole, target, room)
            code.store(at, weight, k * lanes)
            return [weight]

        ends = code.whole(0), end // lanes
        (total,) = block_sums(code, FLOAT32, ends, STRIP, weigh, 1)
        code.store(frame["weights"], total, row)
        with code.when(frame["out"] != 0), code.loop(classes, whole) as k:
            code.store(target, code.load(SINGLE, room, k), k)


def _copy(code: Code, source: Value, target: Value, count: Value, wanted: Value) -> None:
    lanes = FLOAT32.lanes
    whole = count // lanes * lanes
    with code.when(wanted):
        with code.loop(whole, step=lanes) as k:
            code.store(target, code.load(FLOAT32.vector, source, k), k)
        with code.loop(count, whole) as k:
            code.store(target, code.load(SINGLE, source, k), k)


def _largest(code: Code, room: Value, end: Value) -> Value:
    """Return the largest number; NaN is passed over, as it shows in the sum."""
    found = code.variable(code.constant(FLOAT32.vector, -float("inf")))
    with code.loop(end, step=FLOAT32.lanes) as k:
        each, before = code.load(FLOAT32.vector, room, k), found.get()
        found.set(select(each > before, each, before))
    return largest(found.get())
