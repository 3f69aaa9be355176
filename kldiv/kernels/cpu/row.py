"""A row in memory: the frame of its call, parts of arrays, records of blocks, and its numbers.

Everything that one pass leaves to the next, and all that the divergence or Python gave the kernel,
is read and written here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from kldiv.kernels.cpu.code import DOUBLE, FLOAT64, I64, Value, select
from kldiv.kernels.cpu.elementary import Heat, format_of, heat_of
from kldiv.kernels.cpu.peaks import Peak, Scale, Slopes
from kldiv.kernels.cpu.runs import PAD, Run
from kldiv.kernels.cpu.sums import Total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kldiv.kernels.cpu.code import Code, Real
    from kldiv.kernels.cpu.divergences import Divergence

SEGMENT: Final = 1 << 16
"""Classes of a segment."""

BLOCK: Final = 128
"""Vectors of a block."""

# Stages; the last of those without gradients, and of all.
PIVOT: Final = 1
TEACHER: Final = 4
STUDENT: Final = 7
GRADIENTS: Final = 10

ARRAYS: Final = ("teacher", "student", "gradient_t", "gradient_s")

FRAME: Final = (
    *("classes", "segments", "shared"),  # whether a unit is a segment; else it is a row
    *("table", *ARRAYS),  # addresses; 0 where an array is copied, or not there
    *(f"move_{name}" for name in ARRAYS),  # its copying function; 0 where nothing is copied
    *("wants_s", "wants_t", "keep", "temperatures", "factors", "numbers"),  # by 0 every row is kept
    *("temperature_step", "factor_step", "number_step"),  # bytes from one row to the next
    "labels",  # 64-bit integers, where the kernel takes them; 0: there are none
    *("order", "values"),  # the rows that are computed, 0: every row, and their results
    *("width", "parts", "kept"),  # of segments, shared: [rows, segments, PART or KEPT·width]
    "low",  # t − s less that of the logits, where wide: see `low_width`
)
"""Integers: sizes, addresses, steps; ``width`` is the longest segment's in whole vectors."""

# Numbers of a temperature.
HEAT: Final = (*Heat._fields, "ln2_64", "ln2_low_64")

KEPT: Final = 6
"""Rows that are kept: weights of the teacher and the student, two that the passes for the value and
the means leave to gradients, and logits where they are converted."""

LOGITS: Final = 4
"""The first kept row of logits, the teacher's."""

SUMS: Final = 8
"""Sums of a segment in a stage."""

LEAN: Final = 3
"""The place among these of Σ p (t − anchor)/T."""

RECORD: Final = 13
"""Of a block: both maxima and sums of weights, whether a class is lost on one side, the sums
beside the maxima on the other, and factors that take weights to the scale of the row; with labels
the teacher's ties, weights below these, and their moments."""

PART: Final = SUMS * GRADIENTS + RECORD * SEGMENT // (BLOCK * 8)
"""Numbers of a segment: sums of each stage, then records of blocks."""

WORDS: Final = ("", "_low", "_rest")
"""The ends of the names of numbers of the elements' dtype that make a pivot, or an anchor."""

STATE: Final = (
    *HEAT,
    *("t_origin", "t_exponent", "t_scale", "s_origin", "s_exponent", "s_scale"),
    *("first", "first_low"),  # the difference of the largest logits
    *("ratio", "ratio_low", "pivot", "pivot_low", "y"),  # pivots less that
    *(f"{name}_words{word}" for name in ("pivot", "anchor_t", "anchor_s") for word in WORDS),
    "plain",  # whether the pivot is one word of the elements' dtype, and no difference overflows
    *("top_t", "top_s", "beside_t", "beside_s", "lost", "lone", "settled", "value"),
    *("mean_t", "anchor_t", "anchor_t_low", "at_t", "at_t_low"),
    *("mean_s", "anchor_s", "anchor_s_low", "at_s", "at_s_low"),
    *("below_t", "level_t", "below_s", "level_s"),  # without anchors: the mass below it, and at it
    "known",  # whether the pass for the value found the student's mean
    "again",  # whether the mean has to be taken about another anchor
    *("size", "old", "old_low"),  # Σ own |u| about the first anchor, and that anchor
    *("rest", "depth"),  # of the teacher's peak, and its mean depth
    "slope",  # the factor that makes an α-divergence's gradient that of Rényi's
)
"""Numbers of a row that one stage leaves to the next."""

_STATE_SIZE: Final = -(-len(STATE) // 8) * 64
_PADS: Final = 3 * PAD
"""Bytes for the last vector of a gradient, for that which has the label, and for others."""


def scratch_size(segments: int, width: int, real: Real, *, buffers: bool) -> int:
    """Return how many bytes of room a thread needs."""
    fixed = _PADS + _STATE_SIZE + 8 * PART * segments
    return fixed + (KEPT * segments * width + buffers * BLOCK * real.lanes) * real.size


def low_width(classes: Any, lanes: int) -> Any:
    """Return the numbers of a row's second words: of all classes, 0 where the student's is largest.

    The last vector begins with that of the class where the teacher's logit is largest.
    """
    return (classes + (2 * lanes - 1)) // lanes * lanes


class Row:
    """The row that a kernel computes, of a dtype and for a divergence.

    Where ``wide`` logits are double words.
    """

    index: Value
    parts: Value
    """Address of the numbers of segments: sums of each stage, then records of blocks."""
    kept: Value
    """Address of the rows that the passes keep."""

    def __init__(
        self, code: Code, real: Real, divergence: Divergence, *, gradients: bool, wide: bool
    ) -> None:
        self.code, self.real, self.divergence, self.wide = code, real, divergence, wide
        frame, scratch, *_ = code.arguments
        self.frame = code.frame(frame, FRAME)
        self.pad = scratch  # for the last vector of a gradient
        self.state_at = scratch + _PADS
        self.own_parts = self.state_at + _STATE_SIZE
        self.own_kept = self.own_parts + self.frame["segments"] * (8 * PART)
        self.kept_size = self.frame["width"] * (KEPT * real.size)
        self.buffer = self.own_kept + self.frame["segments"] * self.kept_size
        self.own = format_of(code.constant(real.scalar, 0.0))
        self.most = real.largest
        self.least = -real.largest / 4  # eighths of −∞
        self.gradients = gradients
        self.keeps = gradients and divergence.exact
        self.along = gradients and divergence.along
        self.leans = gradients and divergence.labelled
        self.results = 2 * divergence.labelled + divergence.paired

    def begin(self, place: Value, segments: Value, *, shared: Value) -> None:
        """Turn to the row of a place in the order of rows."""
        code, frame = self.code, self.frame
        self.index = code.load_or(I64, frame["order"], place, place)
        at = frame["temperatures"] + self.index * frame["temperature_step"]
        own, wide = (heat_of(code.load(DOUBLE, at), real) for real in (self.real, FLOAT64))
        self.set(**own._asdict(), ln2_64=wide.ln2, ln2_low_64=wide.ln2_low)
        of_row = frame["parts"] + place * segments * (8 * PART)
        self.parts = select(shared, of_row, self.own_parts)
        of_row = frame["kept"] + place * segments * self.kept_size
        self.kept = select(shared, of_row, self.own_kept)

    def store(self, value: Value, index: int) -> None:
        """Write a result of the row."""
        self.code.store(self.frame["values"], value, self.index * self.results + index)

    # ---- numbers ---------------------------------------------------------------------------------

    def get(self, name: str) -> Value:
        """Return a number of the state."""
        return self.code.load(DOUBLE, self.state_at, STATE.index(name))

    def words(self, name: str) -> tuple[Value, Value]:
        """Return a double word of the state."""
        return self.get(name), self.get(f"{name}_low")

    def flag(self, name: str) -> Value:
        """Return whether a number of the state is not 0."""
        return self.get(name) != 0.0

    def set(self, **numbers: Value | tuple[Value, ...] | float) -> None:
        """Change numbers of the state, words and flags."""
        for name, value in numbers.items():
            if isinstance(value, tuple):
                names = [f"{name}{word}" for word in WORDS]
                self.set(**dict(zip(names, value, strict=False)))
                continue
            number = value if isinstance(value, Value) else self.code.real(value)
            number = number if number.floating else select(number, self.code.real(1.0), 0.0)
            self.code.store(self.state_at, number, STATE.index(name))

    def number(self, index: int) -> Value:
        """Return a number of the divergence."""
        at = self.frame["numbers"] + self.index * self.frame["number_step"]
        return self.code.load(DOUBLE, at, index)

    def vector(self, value: Value) -> Value:
        """Return a float64 number as a vector of elements."""
        return value.to(self.real.scalar).spread(self.real.lanes)

    def eighth_temperature(self) -> Value:
        """Return T/8, which goes with eighths of logits."""
        return self.get("temperature") * 0.125

    def of_eighths(self) -> Value:
        """Return 8/T, which eighths of logits are multiplied by."""
        return self.get("inverse") * 8.0

    def heat(self) -> Heat:
        """Return the temperature's constants for vectors of elements."""
        return Heat(*map(self.get, Heat._fields)).vectors(self.real)

    def heat_64(self) -> Heat:
        """Return the temperature's constants for sums."""
        names = ("temperature", "inverse", "per", "ln2_64", "ln2_low_64")
        return Heat(*map(self.get, names))

    # ---- arrays ----------------------------------------------------------------------------------

    @contextmanager
    def written(self, name: str, start: Value, n: Value) -> Iterator[Run]:
        """Give the run in which a block of a gradient is written: in place, or in a buffer."""
        at, direct = self.place(name, start, self.buffer)
        run = Run(self.code, self.real, at, n, self.pad)
        yield run
        run.finish()
        with self.code.when(~direct):
            self.move(name, start, n, at)

    def place(self, name: str, start: Value, own: Value) -> tuple[Value, Value]:
        """Return the address of a part of the row, or a buffer's, and whether it is the former."""
        base = self.frame[name]
        at = base + (self.index * self.frame["classes"] + start) * self.real.size
        return select(base != 0, at, own), base != 0

    def move(self, name: str, start: Value, n: Value, at: Value) -> None:
        """Copy a part of the row to a buffer, or from it."""
        first = self.index * self.frame["classes"] + start
        given = self.frame["table"], ARRAYS.index(name) + 1, first, n, at
        self.code.call(self.frame[f"move_{name}"], *given)

    def low_at(self) -> Value:
        """Return the address of the row's second words."""
        width = low_width(self.frame["classes"], self.real.lanes)
        return self.frame["low"] + self.index * width * self.real.size

    # ---- sums ------------------------------------------------------------------------------------

    def sums(self, segment: Value, stage: Value | int) -> Value:
        """Return the address of a segment's sums of a stage; its first has the label's logit."""
        return self.parts + segment * (8 * PART) + stage * (8 * SUMS)

    def records(self, segment: Value) -> Value:
        """Return the address of the records of a segment's blocks."""
        return self.sums(segment, GRADIENTS)

    def sum(self, stage: Value, index: int) -> Value:
        """Return a sum of a stage, of all segments."""
        code = self.code
        total = Total(code)
        with code.loop(self.frame["segments"]) as segment:
            total.add(code.load(DOUBLE, self.sums(segment, stage), index))
        return total.get()

    def scale(self, top: Value) -> Scale:
        """Return the scale of weights whose largest logit is ``top``."""
        return Scale(self.own, self.heat_64(), top)

    @property
    def blocks(self) -> Value:
        """How many blocks it has."""
        size = BLOCK * self.real.lanes
        return (self.frame["classes"] + (size - 1)) // size

    def record(self, block: Value) -> Value:
        """Return the address of a block's record."""
        each = SEGMENT // (BLOCK * self.real.lanes)
        return self.records(block // each) + (block % each) * (8 * RECORD)

    def label(self) -> tuple[Value, Value]:
        """Return the row's label, and whether it is a class: there may be none."""
        label = self.code.load_or(I64, self.frame["labels"], self.index, -1)
        return label, (label >= 0) & (label < self.frame["classes"])

    def peak(self) -> Peak:
        """Return the teacher's peak, once it is found."""
        return Peak(self.scale(self.get("top_t")), self.get("rest"), self.get("depth"))

    def lean(self) -> Value:
        """Return Σ p (t − anchor)/T, which the first pass about the pivot finds."""
        return self.sum(self.code.whole(PIVOT), LEAN)

    def factors(self) -> list[Value]:
        """Return the factors of the row's results, over T; NaN of a label that is no class."""
        at = self.frame["factors"] + self.index * self.frame["factor_step"]
        temperature = self.get("temperature")
        numbers = [self.code.load(DOUBLE, at, index) for index in range(self.results)]
        if self.divergence.labelled:
            there = self.label()[1] | (numbers[0] == 0.0)
            numbers[0] = select(there, numbers[0], float("nan"))
        if self.divergence.logarithmic:
            numbers = [number * self.get("slope") for number in numbers]
        return [number / temperature for number in numbers]

    def slopes(self) -> Slopes:
        """Return the gradients of −log p and of the entropy, of vectors of the teacher's logits."""
        bound = self.get("temperature") * self.own.gone
        anchor = self.peak().anchor(self.real)
        return Slopes(anchor, bound, self.get("inverse"), self.vector)
