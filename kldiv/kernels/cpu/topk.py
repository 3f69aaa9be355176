"""Rows of logits of which some classes are given: these, and all others as one more class.

Stages of a call are, for each row,

0. the row is copied into a buffer in the cache, where the given classes become −∞; all exponentials
   of the others are taken once, and written where the gradient is to be; logits of the K + 1
   classes follow;
1. the kernel of rows takes these, in float64: value and gradients;
2. the student's gradient: weights times a number, and the given classes' own.

A divergence that no kernel has is computed between calls of the first and the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kldiv.kernels.cpu.code import (
    AHEAD,
    DOUBLE,
    FLOAT32,
    FLOAT64,
    I8,
    I64,
    SINGLE,
    Code,
    Value,
    at_least,
    select,
)
from kldiv.kernels.cpu.elementary import format_of, heat_of, log, power, quotient, two_difference
from kldiv.kernels.cpu.row import GRADIENTS, low_width
from kldiv.kernels.cpu.sums import STRIP, block_sums, largest

if TYPE_CHECKING:
    from collections.abc import Callable

FRAME: Final = (
    "classes",
    "entries",  # how many classes of a row are given
    *("student", "move_student"),  # address, 0 where it is not contiguous; and the copying function
    "gradient",  # the student's, address; 0 where it is not wanted, or rows are copied by
    "move_gradient",
    "table",
    "places",  # of the given classes, 64-bit integers: `NOTHING` or `FOREIGN` beyond the last
    *("temperatures", "temperature_step"),  # float64 numbers, and bytes from one row to the next
    "keep",  # 0: every row is kept
    "factors",  # of gradients, a row each
    "logits",  # of the K + 1 classes, float64
    "low",  # the negatives of their second words, as `kldiv.kernels.cpu.row` takes them
    "peaks",  # the teacher's likeliest of the K + 1 classes
    "weights",  # Σ e^((s − highest)/T) of the others, float64
    "slopes",  # the gradients in ``logits``
    "rows",  # the kernel of rows, and its frame
    "rows_frame",
)

# Stages; the last is that of the student's gradient.
WEIGHTS: Final = 0
ROWS: Final = 1
PRODUCT: Final = 2

NOTHING: Final = 0
"""Beyond the last class: the place of padding."""
FOREIGN: Final = 1
"""Beyond the last class: the place of a number that is no class; the row is NaN."""

_AT_ONCE: Final = 4
"""Vectors of which the largest are taken at once: one after the other they wait for each other."""

_DEEP: Final = 87.0
"""−log of a weight that counts as 0."""


def scratch_size(classes: int) -> int:
    """Return how many bytes of room a thread needs, before that of the kernel of rows."""
    return (classes // FLOAT32.lanes + 1 + _AT_ONCE) * FLOAT32.lanes * FLOAT32.size


class TopKRows:
    """The writer of the kernel; it takes a frame, room, first and last row, and such stages."""

    def __init__(self, code: Code) -> None:
        frame_at, self.room, first, last, first_stage, last_stage = code.arguments
        self.code = code
        self.frame = code.frame(frame_at, FRAME)
        classes, lanes = self.frame["classes"], FLOAT32.lanes
        self.whole = classes // lanes * lanes
        self.end = (classes + (lanes - 1)) // lanes * lanes
        self.scratch = self.room + (self.whole + (1 + _AT_ONCE) * lanes) * FLOAT32.size
        direct = self.frame["gradient"]
        wanted = (direct != 0) | (self.frame["move_gradient"] != 0)
        with code.loop(last, first) as self.row:
            own = direct + self.row * classes * FLOAT32.size
            self.target = select(direct != 0, own, self.room)  # of weights, and of the gradient
            self.entries = self.row * self.frame["entries"]
            self.logits = self.entries + self.row  # of K + 1 classes
            kept = code.load_or(I8, self.frame["keep"], self.row, 1)
            with code.when((kept != 0) & (first_stage == WEIGHTS)):
                self._weights()
            with code.when((first_stage <= ROWS) & (last_stage >= ROWS)):
                rows = self.row, self.row + 1
                stages = 0, GRADIENTS
                code.call(
                    self.frame["rows"], self.frame["rows_frame"], self.scratch, *rows, *stages
                )
            with code.when((last_stage == PRODUCT) & wanted):
                factor = code.load(DOUBLE, self.frame["factors"], self.row)
                with code.either((kept == 0) | (factor == 0.0)) as (then, otherwise):
                    with then:
                        self._multiplied(lambda weights: weights.of(0.0))
                    with otherwise:
                        self._product(factor)
                with code.when(self.frame["move_gradient"] != 0):
                    self._move("gradient", 2)

    def _move(self, name: str, index: int) -> None:
        """Copy the row from an array, or to it."""
        frame, classes = self.frame, self.frame["classes"]
        moved = frame["table"], index, self.row * classes, classes, self.room
        self.code.call(frame[f"move_{name}"], *moved)

    def _place(self, k: Value) -> Value:
        return self.code.load(I64, self.frame["places"], self.entries + k)

    def _temperature(self) -> Value:
        frame = self.frame
        at = frame["temperatures"] + self.row * frame["temperature_step"]
        return self.code.load(DOUBLE, at)

    def _weights(self) -> None:
        """Write the weights of the others, and the logits of the K + 1 classes."""
        code, frame, room, row = self.code, self.frame, self.room, self.row
        lanes, classes = FLOAT32.lanes, frame["classes"]
        nothing = code.constant(FLOAT32.vector, -float("inf"))
        for index in range(1 + _AT_ONCE):
            code.store(room, nothing, self.whole + index * lanes)
        self._move("student", 1)
        code.store(room, code.constant(SINGLE, float("nan")), classes + FOREIGN)
        top = code.variable(code.real(-float("inf")))
        with code.loop(frame["entries"]) as k:
            own = code.load(SINGLE, room, self._place(k)).to(DOUBLE)
            code.store(frame["logits"], own, self.logits + k)
            top.set(at_least(top.get(), own))
        with code.loop(frame["entries"]) as k:
            code.store(room, nothing.element(0), self._place(k))
        code.store(room, nothing.element(0), classes + FOREIGN)
        highest = _largest(code, room, self.end)
        origin = select(highest > -float("inf"), highest, 0.0).spread(lanes)
        temperature = self._temperature()
        heat = heat_of(temperature, FLOAT32).vectors(FLOAT32)
        form = format_of(origin)
        shift = code.constant(FLOAT32.vector, form.round + form.bias)
        least = heat.temperature * -_DEEP

        following = frame["student"] + (row + 1) * classes * FLOAT32.size

        def weigh(k: Value) -> list[Value]:
            # While there is enough to compute, the next row comes into the cache.
            code.fetch(following + k * (lanes * FLOAT32.size))
            code.fetch(self.target + (k + AHEAD) * (lanes * FLOAT32.size), write=True)
            apart = code.load(FLOAT32.vector, room, k * lanes) - origin
            weight = power(apart, least, shift, heat)
            # The last vector is longer than the row.
            at = select(k * lanes < self.whole, self.target, room)
            code.store(at, weight, k * lanes)
            return [weight]

        ends = code.whole(0), self.end // lanes
        (total,) = block_sums(code, FLOAT32, ends, STRIP, weigh, 1)
        code.store(frame["weights"], total, row)
        with code.loop(classes, self.whole) as k:
            code.store(self.target, code.load(SINGLE, room, k), k)
        self._logits(highest.to(DOUBLE), top.get(), total, temperature)

    def _logits(self, highest: Value, own: Value, total: Value, temperature: Value) -> None:
        """Write the logits of the K + 1 classes, over T and less the largest."""
        code, at, entries = self.code, self.frame["logits"], self.frame["entries"]
        top = at_least(own, highest)
        code.store(at, highest, self.logits + entries)
        width = low_width(entries + 1, FLOAT64.lanes)
        low_at = self.frame["low"] + self.row * width * FLOAT64.size
        with code.loop(entries + 1) as k:
            apart = two_difference(code.load(DOUBLE, at, self.logits + k), top)
            high, low = quotient(apart, temperature)
            code.store(at, high, self.logits + k)
            low = select(abs(high) < float("inf"), -low, 0.0)
            code.store(low_at, low, k)
        peak = code.load(I64, self.frame["peaks"], self.row)
        code.store(low_at, code.load(DOUBLE, low_at, peak), width - FLOAT64.lanes)
        # The others' weights are in float32: beside their rounding that of this sum is nothing.
        others = code.load(DOUBLE, at, self.logits + entries) + log(total)
        code.store(at, others, self.logits + entries)

    def _product(self, factor: Value) -> None:
        """Write the student's gradient."""
        code, frame, temperature = self.code, self.frame, self._temperature()

        def slope(k: Value) -> Value:
            return factor * code.load(DOUBLE, frame["slopes"], self.logits + k) / temperature

        total = code.load(DOUBLE, frame["weights"], self.row)
        rate = (slope(frame["entries"]) / select(total > 0.0, total, 1.0)).to(SINGLE)
        self._multiplied(lambda weights: weights * rate)
        with code.loop(frame["entries"]) as k:
            place = self._place(k)
            with code.when(place < frame["classes"]):
                code.store(self.target, slope(k).to(SINGLE), place)

    def _multiplied(self, change: Callable[[Value], Value]) -> None:
        """Change the numbers in the gradient's place."""
        code, out = self.code, self.target
        with code.loop(self.whole, step=FLOAT32.lanes) as k:
            code.store(out, change(code.load(FLOAT32.vector, out, k)), k)
        with code.loop(self.frame["classes"], self.whole) as k:
            code.store(out, change(code.load(SINGLE, out, k)), k)


def _largest(code: Code, room: Value, end: Value) -> Value:
    """Return the largest number; NaN is passed over, as it shows in the sum."""
    nothing, lanes = code.constant(FLOAT32.vector, -float("inf")), FLOAT32.lanes
    tops = [code.variable(nothing) for _ in range(_AT_ONCE)]
    with code.loop(end, step=_AT_ONCE * lanes) as k:
        for index, top in enumerate(tops):
            top.set(at_least(top.get(), code.load(FLOAT32.vector, room, k + index * lanes)))
    first, *others = (top.get() for top in tops)
    for other in others:
        first = at_least(first, other)
    return largest(first)
