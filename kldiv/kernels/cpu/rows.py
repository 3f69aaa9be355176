"""Rows of logits: how a divergence and its gradients are made of a few passes over a row.

A row is a few segments, each read as blocks that the first-level cache holds. The passes, stages of
a call, are

0. maxima of a block, then sums of weights: the pivot T·log(Σe^{t/T}/Σe^{s/T}) follows from these;
1. a copy less the largest logits, where these are far from 0;
2. the divergence about that pivot, and y = Σ p (e⁻ˣ − 1), by which the pivot is not exact;
3. and 4. the same about a better pivot, only where y is not small beside Σ p |e⁻ˣ − 1|;
5. the mean of u, for the gradient in the teacher, about the class where p is largest;
6. the same about the mean of x, where u may be nearly constant; 7. again about the former, where
   that was nearer; 8. to 10. likewise the mean of v for the student;
11. gradients.

Nothing is guessed: whatever the pivot, y is measured about it. Elements are in the dtype of the
logits, their sums, and all that is made of these, in float64. Differences of logits, pivots and
anchors with them, are in eighths, and over T/8: so none overflows, and none is divided by T before
it is multiplied by p. Where the first pass cannot overflow anyway it does without eighths.
Logits whose largest is far from 0 beside T are copied less that, once it is known: pivots then keep
their digits, and −∞ is far below what is as low as can be.
Formulas and words are those of `kldiv.formulas.state` and `kldiv.formulas.logits`. Threads share
rows, or the segments of a few long ones, one stage after the other; results do not depend on that.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kldiv.kernels.cpu.code import AHEAD, DOUBLE, I8, I64, Code, Value, at_least, at_most, select
from kldiv.kernels.cpu.divergences import Lane, exchanged
from kldiv.kernels.cpu.elementary import (
    Heat,
    added,
    difference,
    eighth_difference,
    exp,
    format_of,
    log,
    log1p,
    two_difference,
)
from kldiv.kernels.cpu.peaks import Peak, Scale, Slopes, Sums, counter, peak_of
from kldiv.kernels.cpu.runs import PAD, Run
from kldiv.kernels.cpu.sums import Total, block_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kldiv.kernels.cpu.code import Real
    from kldiv.kernels.cpu.divergences import Divergence

SEGMENT: Final = 1 << 16
"""Classes of a segment."""

BLOCK: Final = 128
"""Vectors of a block."""

STRIP: Final = 8
"""Vectors whose sum is taken in the elements' dtype."""

FAR: Final = 2.0**40
"""A largest logit, over T, that is subtracted: logits with a probability differ from it exactly,
and smaller ones leave digits enough to a pivot of three words of float32."""

_MODERATE: Final = 1e3
"""Σ p^α q^κ, or 1 over it, up to which Rényi's divergence and its gradient are as exact as those
of α."""

# Stages; the last of those without gradients, and of all.
SHIFT: Final = 1
PIVOT: Final = 2
TEACHER: Final = 5
STUDENT: Final = 8
GRADIENTS: Final = 11

ARRAYS: Final = ("student", "teacher", "gradient_s", "gradient_t")

FRAME: Final = (
    *("classes", "segments", "shared"),  # whether a unit is a segment; else it is a row
    *("table", *ARRAYS),  # addresses; 0 where an array is copied, or not there
    *(f"move_{name}" for name in ARRAYS),  # what copies it; 0 where nothing does
    *("wants_s", "wants_t", "heats", "keep", "factors", "numbers"),  # by 0 every row is kept
    *("heat_step", "factor_step", "number_step"),  # bytes from one row to the next
    "labels",  # 64-bit integers, where the kernel takes them
    *("order", "values"),  # the rows that are computed, 0: every row, and their results
    *("width", "parts", "kept"),  # of segments, shared: [rows, segments, PART or KEPT·width]
    "low",  # what t − s is more than the logits say, where wide: see `low_width`
)
"""Integers: sizes, addresses, steps; ``width`` is the longest segment's in whole vectors."""

# Numbers of a temperature.
HEAT: Final = ("temperature", "inverse", "per", "ln2", "ln2_low", "ln2_64", "ln2_low_64")

KEPT: Final = 6
"""Rows that are kept: weights of the teacher and the student, two that the passes for the value and
the means leave to gradients, and logits where they are converted or less their shifts."""

_LOGITS: Final = 4
_SUMS: Final = 8
_RECORD: Final = 13
"""Of a block: both maxima and sums of weights, whether a class is lost on one side, the sums
beside the maxima on the other, and factors that take weights to the scale of the row; with labels
the teacher's ties, weights below these, and their moments."""

PART: Final = _SUMS * GRADIENTS + _RECORD * SEGMENT // (BLOCK * 8)
"""Numbers of a segment: sums of each stage, then records of blocks."""

_STATE: Final = (
    *HEAT,  # times ``unit``, or over it
    *("moved", "unit", "shift_t", "shift_s"),  # whether logits are kept less shifts, in a unit
    *("t_origin", "t_exponent", "t_scale", "s_origin", "s_exponent", "s_scale"),
    *("ratio", "ratio_low", "first", "first_low", "pivot", "pivot_low", "pivot_rest", "y"),
    "plain",  # whether the pivot is one word of the elements' dtype, and no difference overflows
    *("top_t", "top_s", "beside_t", "beside_s", "lost", "lone", "settled", "value"),
    *("mean_t", "anchor_t", "anchor_t_low", "at_t", "mean_s", "anchor_s", "anchor_s_low", "at_s"),
    *("below_t", "level_t", "below_s", "level_s"),  # without anchors: the mass below it, and at it
    "known",  # whether the pass for the value found the student's mean
    "again",  # whether the mean has to be taken about another anchor
    *("size", "old", "old_low", "old_at"),  # Σ own |u| about the first anchor, and that anchor
    *("rest", "depth"),  # of the teacher's peak, and its mean depth
    "slope",  # the factor that makes an α-divergence's gradient that of Rényi's
)
"""Numbers of a row that one stage leaves to the next."""

_STATE_SIZE: Final = -(-len(_STATE) // 8) * 64
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


class Words(NamedTuple):
    """An eighth of a pivot in the dtype of the elements, of three numbers; or a pivot of one."""

    first: Value
    second: Any
    third: Any


class Rows:
    """The writer of a kernel: a dtype, a divergence, with its gradients or without.

    Where ``wide`` logits are double words.
    """

    def __init__(
        self, code: Code, real: Real, divergence: Divergence, *, gradients: bool, wide: bool = False
    ) -> None:
        self.code, self.real, self.divergence, self.wide = code, real, divergence, wide
        frame, scratch, first, last, self.first_stage, last_stage = code.arguments
        self.frame = {name: code.load(I64, frame, index) for index, name in enumerate(FRAME)}
        self.pad = scratch  # for the last vector of a gradient
        self.state_at = scratch + _PADS
        self.own_parts = self.state_at + _STATE_SIZE
        self.own_kept = self.own_parts + self.frame["segments"] * (8 * PART)
        self.kept_size = self.frame["width"] * (KEPT * real.size)
        self.buffer = self.own_kept + self.frame["segments"] * self.kept_size
        self.own = format_of(code.constant(real.scalar, 0.0))
        self.most = real.largest
        self.keeps = gradients and divergence.exact
        self.along = gradients and divergence.along
        self.leans = gradients and divergence.labelled
        self.results = 3 if divergence.labelled else 1
        count = GRADIENTS + 1 if gradients else TEACHER + 1
        with code.loop(last, first) as unit:
            self._unit(unit, last_stage, count, gradients=gradients)

    # ---- places ----------------------------------------------------------------------------------

    def get(self, name: str) -> Value:
        """Return a number of the state."""
        return self.code.load(DOUBLE, self.state_at, _STATE.index(name))

    def words(self, name: str) -> tuple[Value, Value]:
        """Return a double word of the state."""
        return self.get(name), self.get(f"{name}_low")

    def flag(self, name: str) -> Value:
        """Return whether a number of the state is not 0."""
        return self.get(name) != 0.0

    def set(self, **numbers: Value | tuple[Value, Value] | float) -> None:
        """Change numbers of the state, double words and flags."""
        for name, value in numbers.items():
            if isinstance(value, tuple):
                self.set(**dict(zip((name, f"{name}_low"), value, strict=True)))
                continue
            number = value if isinstance(value, Value) else self.code.real(value)
            number = number if number.floating else select(number, self.code.real(1.0), 0.0)
            self.code.store(self.state_at, number, _STATE.index(name))

    def number(self, index: int) -> Value:
        """Return a number of the divergence."""
        at = self.frame["numbers"] + self.row * self.frame["number_step"]
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

    def finite(self, x: Value) -> Value:
        """Return ``x``, finite: where p is 0 a product with ∞ would be NaN; NaN is kept."""
        return at_most(at_least(x, -self.most), self.most)

    def heat_of(self, change: Callable[[Value], Value]) -> Heat:
        """Return the temperature's constants for elements."""
        return Heat(*(change(self.get(name)) for name in HEAT[:5]))

    def heat_64(self) -> Heat:
        """Return the temperature's constants for sums."""
        names = ("temperature", "inverse", "per", "ln2_64", "ln2_low_64")
        return Heat(*map(self.get, names))

    # ---- a unit ----------------------------------------------------------------------------------

    def _unit(self, unit: Value, last_stage: Value, count: int, *, gradients: bool) -> None:
        code, frame = self.code, self.frame
        segments, shared = frame["segments"], frame["shared"] != 0
        place = select(shared, unit // segments, unit)
        row = code.variable(place)
        with code.when(frame["order"] != 0):
            row.set(code.load(I64, frame["order"], place))
        self.row = row.get()
        begin = select(shared, unit % segments, 0)
        end = select(shared, begin + 1, segments)
        heat_at = frame["heats"] + self.row * frame["heat_step"]
        self.set(**{name: code.load(DOUBLE, heat_at, index) for index, name in enumerate(HEAT)})
        of_row = frame["parts"] + place * segments * (8 * PART)
        self.parts = select(shared, of_row, self.own_parts)
        of_row = frame["kept"] + place * segments * self.kept_size
        self.kept = select(shared, of_row, self.own_kept)
        kept = code.variable(code.whole(1))
        with code.when(frame["keep"] != 0):
            kept.set(code.load(I8, frame["keep"], self.row).to(I64))
        with code.either(kept.get() != 0) as (then, otherwise):
            with then, code.loop(at_most(last_stage + 1, count)) as stage:
                self._prepare(stage, gradients=gradients)
                with code.when(stage >= self.first_stage), code.loop(end, begin) as segment:
                    self._stage(stage, segment, gradients=gradients)
            with otherwise:
                for index in range(self.results):
                    code.store(frame["values"], code.real(0.0), self.row * self.results + index)
                if gradients:
                    with code.when(last_stage == GRADIENTS), code.loop(end, begin) as segment:
                        self._zeros(segment)

    def _prepare(self, stage: Value, *, gradients: bool) -> None:
        """Draw the conclusions from the stages before."""
        code = self.code
        with code.when(stage == 0):
            self.set(settled=0.0, again=1.0)
        with code.when(stage == SHIFT):
            self._find_pivot()
        with code.when((stage > PIVOT) & (stage <= TEACHER) & ~self.flag("settled")):
            self._better_pivot(stage)
        for base, side in ((TEACHER, "t"), (STUDENT, "s")) if gradients else ():
            if self.divergence.has_mean(side):
                with code.when((stage > base) & (stage <= base + 3)):
                    self._find_mean(stage, side)
                with code.when(stage == base):
                    self._first_anchor(side)

    def _stage(self, stage: Value, segment: Value, *, gradients: bool) -> None:
        code = self.code
        both = Segment(self, stage, segment)
        place = self.parts + segment * (8 * PART) + stage * (8 * _SUMS)
        with code.when(stage == 0):
            both.read()
            both.weights([side for side in "ts" if gradients and self.divergence.has_mean(side)])
        with code.when((stage == SHIFT) & self.flag("moved")):
            both.shift()
        with code.when((stage >= PIVOT) & (stage < TEACHER) & ~self.flag("settled")):
            if self.divergence.exact:
                with code.either(self.flag("plain")) as (then, otherwise):
                    with then:
                        both.divergence(place, plain=True)
                    with otherwise:
                        both.divergence(place, plain=False)
            else:
                both.divergence(place, plain=False)
        if not gradients:
            return
        for base, side in ((TEACHER, "t"), (STUDENT, "s")):
            if not self.divergence.has_mean(side):
                continue
            wanted = self.frame[f"wants_{side}"] != 0
            now = (stage >= base) & (stage < base + 3) & self.flag("again")
            with code.when(now & wanted):
                both.mean(place, side)
        with code.when(stage == GRADIENTS):
            for side in ("s", "t"):
                with code.when(self.frame[f"wants_{side}"] != 0):
                    both.gradient(side)

    def _zeros(self, segment: Value) -> None:
        """Write zeros: the gradients of a row that a mask drops."""
        code, size = self.code, BLOCK * self.real.lanes
        first = segment * SEGMENT
        end = at_most(first + SEGMENT, self.frame["classes"])
        for side in "st":
            with code.when(self.frame[f"wants_{side}"] != 0), code.loop(end, first, size) as start:
                n = at_most(end - start, size)
                with self.written(f"gradient_{side}", start, n) as run, code.loop(run.count) as k:
                    run.store(k, code.constant(self.real.vector, 0.0))

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
        at = base + (self.row * self.frame["classes"] + start) * self.real.size
        return select(base != 0, at, own), base != 0

    def move(self, name: str, start: Value, n: Value, at: Value) -> None:
        """Copy a part of the row to a buffer, or from it."""
        first = self.row * self.frame["classes"] + start
        given = self.frame["table"], ARRAYS.index(name) + 1, first, n, at
        self.code.call(self.frame[f"move_{name}"], *given)

    def low_at(self) -> Value:
        """Return the address of the row's second words."""
        width = low_width(self.frame["classes"], self.real.lanes)
        return self.frame["low"] + self.row * width * self.real.size

    # ---- sums of a row ---------------------------------------------------------------------------

    def _sum(self, stage: Value, index: int) -> Value:
        """Return a sum of a stage, of all segments."""
        code = self.code
        total = Total(code)
        with code.loop(self.frame["segments"]) as segment:
            total.add(code.load(DOUBLE, self.parts + segment * (8 * PART), stage * _SUMS + index))
        return total.get()

    def scale(self, top: Value) -> Scale:
        """Return the scale of weights whose largest logit is ``top``."""
        return Scale(self.own, self.heat_64(), top)

    def _record(self, block: Value) -> Value:
        """Return the address of a block's record."""
        each = SEGMENT // (BLOCK * self.real.lanes)
        part = self.parts + (block // each) * (8 * PART) + 8 * _SUMS * GRADIENTS
        return part + (block % each) * (8 * _RECORD)

    def _find_pivot(self) -> None:
        code = self.code
        size = BLOCK * self.real.lanes
        blocks = (self.frame["classes"] + (size - 1)) // size
        tops = [code.variable(code.real(-float("inf"))) for _ in range(2)]
        flags, beside = ([code.variable(code.real(0.0)) for _ in range(2)] for _ in range(2))
        with code.loop(blocks) as block:
            record = self._record(block)
            for index in range(2):
                own, other = (
                    code.load(DOUBLE, record, place + index * step)
                    for place, step in ((0, 2), (6, 1))
                )
                higher = own > tops[index].get()
                tops[index].set(select(higher, own, tops[index].get()))
                beside[index].set(select(higher, other, beside[index].get()))
                flags[index].set(at_least(flags[index].get(), code.load(DOUBLE, record, 4 + index)))
        ends = []
        for index, side in enumerate("ts"):
            top = tops[index].get()
            scale, total = self.scale(top), Total(code)
            with code.loop(blocks) as block:
                record = self._record(block)
                part = code.load(DOUBLE, record, 2 * index + 1)
                factor = scale.of(self.scale(code.load(DOUBLE, record, 2 * index)), part == 0.0)
                code.store(record, factor, 8 + index)
                total.add(part * factor)
            found = total.get()
            ends.append((top, scale.origin, scale.exponent, found))
            self.set(**{f"{side}_exponent": scale.exponent, f"{side}_scale": 1.0 / found})
        if self.divergence.labelled:
            self._find_peak(tops[0].get(), blocks)
        (t_top, t_origin, t_exponent, t_sum), (s_top, s_origin, s_exponent, s_sum) = ends
        unit, shifts = self._shifts(t_top, s_top)
        (t_top, t_origin), (s_top, s_origin) = (
            [each * unit - shift for each in both]
            for both, shift in zip(((t_top, t_origin), (s_top, s_origin)), shifts, strict=True)
        )
        besides = [
            at_least(each.get() * unit - shift, -self.most)
            for each, shift in zip(beside, reversed(shifts), strict=True)
        ]
        heat = self.heat_64()
        both = (t_sum > 0.0) & (s_sum > 0.0)
        powers = t_exponent - s_exponent
        temperature = self.eighth_temperature()
        ratio = added(eighth_difference(t_origin, s_origin), powers * (heat.ln2 * 0.125))
        ratio = added(ratio, powers * (heat.ln2_low * 0.125) + temperature * log(t_sum / s_sum))
        first = eighth_difference(t_top, s_top)
        snap = temperature * (2.0**-17 if self.real.single else 2.0**-44)
        near = abs(difference(ratio, first)) <= snap
        pivot, low = _either(near, first, ratio)
        if self.divergence.exact:
            # Of one word first: d − c is exact where it is small, and y tells what is lost.
            pivot, low = pivot.to(self.real.scalar).to(DOUBLE), code.real(0.0)
        # Beside the largest number such a logit is nothing.
        moderate = at_least(abs(t_top), abs(s_top)) < 1e30
        lost, lone = (
            self.divergence.counted(self, index, flag.get()) for index, flag in enumerate(flags)
        )
        self.set(ratio=ratio, first=first, pivot=(select(both, pivot, float("nan")), low))
        self.set(pivot_rest=0.0, plain=moderate if self.divergence.exact else 0.0)
        self.set(beside_t=besides[0], beside_s=besides[1], t_origin=t_origin, s_origin=s_origin)
        self.set(top_t=t_top, top_s=s_top, lost=lost, lone=lone)

    def _find_peak(self, top: Value, blocks: Value) -> None:
        """Write −log p(label) and the entropy of the teacher, and keep what its gradient takes."""
        code = self.code

        def read(block: Value) -> Sums:
            record = self._record(block)
            return Sums(*(code.load(DOUBLE, record, place) for place in (0, 10, 11, 12, 8)))

        peak = peak_of(code, blocks, read, self.scale(top))
        label, inside = self.label()
        of_label = self.parts + (select(inside, label, 0) // SEGMENT) * (8 * PART)
        for index, value in enumerate(
            (peak.cost(code.load(DOUBLE, of_label), inside), peak.entropy)
        ):
            code.store(self.frame["values"], value, self.row * self.results + index)
        self.set(rest=peak.rest, depth=peak.mean)

    def label(self) -> tuple[Value, Value]:
        """Return the row's label, and whether it is a class."""
        label = self.code.load(I64, self.frame["labels"], self.row)
        return label, (label >= 0) & (label < self.frame["classes"])

    def peak(self) -> Peak:
        """Return the teacher's peak, once it is found."""
        return Peak(self.scale(self.get("top_t")), self.get("rest"), self.get("depth"))

    def lean(self) -> Value:
        """Return Σ p (t − anchor)/T, which the first pass for the divergence finds."""
        return self._sum(self.code.whole(PIVOT), 3)

    def factors(self) -> list[Value]:
        """Return the factors of the row's results, over T."""
        at = self.frame["factors"] + self.row * self.frame["factor_step"]
        unit, temperature = self.get("unit"), self.get("temperature")
        numbers = [self.code.load(DOUBLE, at, index) for index in range(self.results)]
        if self.divergence.logarithmic:
            unit = unit * self.get("slope")
        return [number * unit / temperature for number in numbers]

    def slopes(self) -> Slopes:
        """Return the gradients of −log p and of the entropy, of vectors of the teacher's logits."""
        bound = self.get("temperature") * self.own.gone
        anchor = self.peak().anchor(self.real)
        return Slopes(anchor, bound, self.get("inverse"), self.vector)

    def _shifts(self, t_top: Value, s_top: Value) -> tuple[Value, tuple[Value, Value]]:
        """Return the unit of logits and both shifts in it, and take constants of T to that."""
        code, zero = self.code, self.code.real(0.0)
        bound = self.get("temperature") * FAR
        far = [(abs(top) > bound) & (abs(top) < float("inf")) for top in (t_top, s_top)]
        moved = far[0] | far[1]
        large = at_least(abs(t_top), abs(s_top)) > 1e30
        unit = select(moved & large, code.real(0.5), 1.0)
        t_shift, s_shift = (
            select(each, top * unit, zero) for each, top in zip(far, (t_top, s_top), strict=True)
        )
        inverse = 1.0 / unit
        powers = {name: inverse if name in {"inverse", "per"} else unit for name in HEAT}
        self.set(moved=moved, unit=unit, shift_t=t_shift, shift_s=s_shift)
        self.set(**{name: self.get(name) * power for name, power in powers.items()})
        return unit, (t_shift, s_shift)

    def _better_pivot(self, stage: Value) -> None:
        """Settle the pivot, or move it by log1p(y)."""
        code, divergence = self.code, self.divergence
        temperature = self.eighth_temperature()
        before = stage - 1
        y, size, value = (self._sum(before, index) for index in range(3))
        offset = log1p(y)
        pivot = self.words("pivot")
        moved = added(pivot, -(temperature * offset))
        if divergence.exact:
            enough = abs(y) <= size * 0.5
        else:
            # The sum of terms changes by about y² beside size², and by y itself where all is far.
            most = 2.0**-12, 2.0**-22
            most = most if self.real.single else (2.0**-27, 2.0**-51)
            most = most if divergence.smooth else (most[1], most[1])
            enough = abs(y) <= at_most(size * most[0], most[1])
        done = enough | (stage == TEACHER)
        with code.either(done) as (then, otherwise):
            with then:
                value = divergence.value(value, y)
                if divergence.logarithmic:
                    value = self._logarithm(value, self._sum(before, 3 + 2 * self.along))
                if not divergence.smooth:
                    # Moving the pivot by y changes either half of the sum by that times its mass.
                    value = value + (self._sum(before, 3) - 0.5) * y
                value = select(value < 0.0, 0.0, value)
                for flag, infinite in zip(("lost", "lone"), divergence.unbounded, strict=True):
                    if infinite:
                        value = select(self.get(flag) > 0.0, float("inf"), value)
                value = select(pivot[0] == pivot[0], value, float("nan"))
                self.set(settled=1.0, value=value, y=y, pivot_rest=-(temperature * offset))
                if self.along:
                    # Of q that is by y too large: that is less than a gradient's roundings.
                    # Signs alone tell whether its mean is exact: about p = q one class far
                    # away may have most of the square.
                    mean, size = (self._sum(before, index) for index in (3, 4))
                    known = (size - abs(mean)) * 2.0 >= abs(mean)
                    known = known & (abs(y) <= 0.5 * most[1]) & (value < float("inf"))
                    self.set(mean_s=mean, known=known)
                code.store(self.frame["values"], value, (self.row + 1) * self.results - 1)
            with otherwise:
                first = self.words("first")
                moved = _either(abs(offset) < 0.5, moved, self.words("ratio"))
                snap = 2.0**-16 if self.real.single else 2.0**-40
                near = abs(difference(moved, first)) <= abs(temperature * offset) * snap
                self.set(pivot=_either(near, first, moved), plain=0.0)

    def _logarithm(self, value: Value, whole: Value) -> Value:
        """Return Rényi's divergence, given that of α and Σ p^α q^κ; NaN where the latter is far.

        Such a row is left to the formulas.
        """
        alpha, kappa, _, scale = (self.number(index) for index in range(4))
        change = -(alpha * kappa) * value
        near = abs(change) <= 0.5
        whole = select(near, change + 1.0, whole)
        moderate = (whole > 1.0 / _MODERATE) & (whole < _MODERATE)
        whole = select(moderate, whole, float("nan"))
        self.set(slope=scale * alpha / whole)
        found = select(near, log1p(select(near, change, 0.0)), log(whole)) / -kappa
        # Of an order so near to 1 it is the α-divergence itself.
        found = select(abs(change) < 1e-30, alpha * value, found)
        return scale * select(moderate, found, float("nan"))

    def _find_mean(self, stage: Value, side: str) -> None:
        """Take the mean that the stage before found, or another anchor."""
        code = self.code
        sign = 1.0 if side == "t" else -1.0
        base = TEACHER if side == "t" else STUDENT
        with code.when(self.flag("again") & (self.frame[f"wants_{side}"] != 0)):
            mean, size, middle = (self._sum(stage - 1, index) for index in range(3))
            self.set(**{f"mean_{side}": mean})
            if not self.divergence.smooth:
                self.set(**{f"below_{side}": size, f"level_{side}": middle}, again=0.0)
                return
            # Half of what signs cancel, and the share of the anchor's own class, are no less than
            # the mean deviation: either tells that nothing is lost by the mean.
            known = (size - abs(mean)) * 8.0 >= abs(mean)
            known = known | (self.get(f"{side}_scale") > 0.1 * 2.0**-self.own.lift)
            if self.divergence.squares:
                # So is the deviation itself.
                square, own = self._sum(stage - 1, 3), mean * mean
                known = known | (((square - own) * 16.0 >= own) & (square < float("inf")))
            with code.when(stage == base + 1):
                if self.divergence.linear:
                    middle = middle * self.of_eighths() + self.get(f"at_{side}")
                away = self.eighth_temperature() * middle * sign + self.get("pivot_rest")
                with code.when(~known):
                    self.set(size=size, old=self.words(f"anchor_{side}"))
                    self.set(old_at=self.get(f"at_{side}"))
                    self._anchor(side, added(self.words("pivot"), away), middle)
                self.set(again=~known)
            with code.when(stage == base + 2):
                # Rounding of u is beside Σ own |u|: the anchor with the smaller one is better.
                worse = size > self.get("size")
                with code.when(worse):
                    self._anchor(side, self.words("old"), self.get("old_at"))
                self.set(again=worse)

    def _first_anchor(self, side: str) -> None:
        """Take the anchor where the own side is largest: in the bulk, if all is in one class."""
        top, beside = (self.get(f"{name}_{side}") for name in ("top", "beside"))
        anchor = eighth_difference(*((top, beside) if side == "t" else (beside, top)))
        if self.wide and side == "t":
            place = low_width(self.frame["classes"], self.real.lanes) - self.real.lanes
            low = self.code.load(self.real.scalar, self.low_at(), place).to(DOUBLE)
            anchor = anchor[0], anchor[1] + low * (self.get("unit") * 0.125)
        at = (difference(anchor, self.words("pivot")) - self.get("pivot_rest")) * self.of_eighths()
        self._anchor(side, anchor, at if side == "t" else -at)
        self.set(again=~self.flag("known") if self.along and side == "s" else 1.0)

    def _anchor(self, side: str, anchor: tuple[Value, Value], at: Value) -> None:
        self.set(**{f"anchor_{side}": anchor})
        self.set(**{f"at_{side}": at})


def _either(
    condition: Value, yes: tuple[Value, Value], no: tuple[Value, Value]
) -> tuple[Value, Value]:
    return select(condition, yes[0], no[0]), select(condition, yes[1], no[1])


class Segment:
    """A segment of a row: its passes."""

    def __init__(self, rows: Rows, stage: Value, segment: Value) -> None:
        self.rows, self.code, self.real = rows, rows.code, rows.real
        self.start = segment * SEGMENT
        self.n = at_most(rows.frame["classes"] - self.start, SEGMENT)
        self.kept = rows.kept + segment * rows.kept_size
        self.records = rows.parts + segment * (8 * PART) + 8 * _SUMS * GRADIENTS
        shifted = (stage > SHIFT) & rows.flag("moved")
        self.sources, self.direct = [], []
        for index, name in enumerate(("student", "teacher")):
            copy = self._kept(self.code.whole(0), _LOGITS + index)
            at, direct = rows.place(name, self.start, copy)
            last = self._kept(self.n // self.real.lanes, _LOGITS + index)
            self.sources.append(Run(self.code, self.real, select(shifted, copy, at), self.n, last))
            self.direct.append(direct)
        self.count = self.sources[0].count

    def read(self) -> None:
        """Copy the logits where they are not read in place, and their last vector."""
        for source, direct in zip(self.sources, self.direct, strict=True):
            with self.code.when(direct):
                source.fill(-float("inf"))  # classes that both mask

    def _block(self, begin: Value) -> tuple[Value, Value]:
        """Return the first class of a block, and how many it has."""
        first = begin * self.real.lanes
        return first, at_most(self.n - first, BLOCK * self.real.lanes)

    def _read_block(self, begin: Value) -> None:
        """Copy logits of a block."""
        first, n = self._block(begin)
        for name, source, direct in zip(ARRAYS, self.sources, self.direct, strict=False):
            with self.code.when(~direct):
                self.rows.move(name, self.start + first, n, source.at + first * self.real.size)
                with self.code.when(n < BLOCK * self.real.lanes):
                    source.fill(-float("inf"))

    def shift(self) -> None:
        """Copy the logits less their shifts."""
        code, rows = self.code, self.rows
        unit, *shifts = (rows.vector(rows.get(name)) for name in ("unit", "shift_s", "shift_t"))
        with code.loop(self.count) as k:
            for index, logits in enumerate(self._logits(k)):
                near = logits * unit - shifts[index]
                masked = logits == -float("inf")
                code.store(self._kept(k, _LOGITS + index), select(masked, logits, near))

    def _logits(self, k: Value) -> tuple[Value, Value]:
        s, t = (source.load(k) for source in self.sources)
        return s, t

    def _low(self, k: Value) -> Value:
        return self.code.load(
            self.real.vector, self.rows.low_at(), self.start + k * self.real.lanes
        )

    # ---- sums of weights -------------------------------------------------------------------------

    def weights(self, sides: Sequence[str]) -> None:
        """Write maxima and sums of weights of each block; of some sides the sums beside those."""
        code, rows, vector = self.code, self.rows, self.real.vector
        nothing, labelled = -float("inf"), rows.divergence.labelled
        with code.loop(self.count, step=BLOCK) as begin:
            end = at_most(begin + BLOCK, self.count)
            tops = [code.variable(code.constant(vector, nothing)) for _ in range(2)]
            ends = [code.variable(code.constant(vector, -nothing)) for _ in range(2)]
            self._read_block(begin)
            with code.loop(end, begin) as k:
                s, t = self._logits(k)
                for index, own in enumerate((t, s)):
                    top, bottom = tops[index].get(), ends[index].get()
                    tops[index].set(select(own > top, own, top))
                    ends[index].set(select(own < bottom, own, bottom))
            place = self._record(begin)
            scales = []
            for index in range(2):
                top = largest(tops[index].get()).to(DOUBLE)
                code.store(place, top, 2 * index)
                code.store(place, code.real(0.0), 4 + index)
                scales.append(rows.scale(top))
                lowest_of_other = -largest(-ends[1 - index].get())
                if rows.divergence.unbounded[index]:
                    with code.when(lowest_of_other == nothing):
                        code.store(place, self._lost(begin, end, index), 4 + index)
            weigh = [scale.weigher(self.real, rows.heat_of(rows.vector)) for scale in scales]
            bound = rows.get("temperature") * rows.own.gone
            count = counter(scales[0].top, bound, rows.get("inverse"), rows.vector)

            beside = {side: code.variable(code.constant(vector, nothing)) for side in sides}
            peaks = [rows.vector(code.load(DOUBLE, place, 2 * index)) for index in range(2)]

            def body(k: Value) -> list[Value]:
                # While there is enough to compute, the next block comes into the cache.
                for source in self.sources:
                    source.fetch(k + BLOCK)
                s, t = self._logits(k)
                for side, (own, other, peak) in zip(
                    "ts", ((t, s, peaks[0]), (s, t, peaks[1])), strict=True
                ):
                    if side in beside:
                        highest = beside[side].get()
                        found = (own == peak) & (other > highest)
                        beside[side].set(select(found, other, highest))
                weights = [weigh[0](t), weigh[1](s)]
                for index, weight in enumerate(weights):
                    code.store(self._kept(k, index), weight)
                if not labelled:
                    return split_in_halves(weights)
                ties, *below = count(t, weights[0])
                return [*split_in_halves([*weights, *below]), ties]

            parts = 4 if labelled else 2
            number = (parts if self.real.single else 2 * parts) + labelled
            sums = block_sums(code, self.real, (begin, end), STRIP, body, number)
            ties, found = sums[-1], joined_halves(sums[: number - labelled], self.real)
            for index, whole in zip((1, 3), found, strict=False):
                code.store(place, whole, index)
            for index, number_of in enumerate((ties, *found[2:]) if labelled else ()):
                code.store(place, number_of, 10 + index)
            for side, highest in beside.items():
                code.store(place, largest(highest.get()).to(DOUBLE), 6 + "ts".index(side))
        if labelled:
            self._keep_label()

    def _label(self) -> tuple[Value, Value, Value]:
        """Return the place of the row's label, whether that is in the segment, and its logit."""
        label = self.rows.label()[0] - self.start
        here = (label >= 0) & (label < self.n)
        place = select(here, label, 0)
        return place, here, self.code.load(self.real.scalar, self.sources[1].at, place).to(DOUBLE)

    def _keep_label(self) -> None:
        """Keep the label's logit as the first number of the segment."""
        _, here, logit = self._label()
        with self.code.when(here):
            self.code.store(self.records - 8 * _SUMS * GRADIENTS, logit)

    def _record(self, begin: Value) -> Value:
        return self.records + (begin // BLOCK) * (8 * _RECORD)

    def _kept(self, k: Value, index: int) -> Value:
        """Return the address of a vector of what is kept."""
        return self.kept + (self.rows.frame["width"] * index + k * self.real.lanes) * self.real.size

    def _factor(self, record: Value, index: int, scale: Value) -> Value:
        """Return the factor that takes a block's weights, lowered by their lift, to probabilities.

        Without that the factor of a block far below the largest class would underflow before p.
        """
        lift = 2.0**self.rows.own.lift
        return self.rows.vector(scale * lift * self.code.load(DOUBLE, record, 8 + index))

    def _share(self, k: Value, index: int, factor: Value) -> Value:
        """Return the probabilities of a vector of classes."""
        weights = self.code.load(self.real.vector, self._kept(k, index))
        return weights * 2.0**-self.rows.own.lift * factor

    def _lost(self, begin: Value, end: Value, index: int) -> Value:
        """Return 1 where a class has p > 0 = q, by ``index`` 1 where one has p = 0 < q; else 0."""
        flag = self.code.variable(self.code.constant(self.real.vector, 0.0))
        with self.code.loop(end, begin) as k:
            s, t = self._logits(k)
            own, other = (t, s) if index == 0 else (s, t)
            found = (other == -float("inf")) & (own > -float("inf"))
            flag.set(select(found, 1.0, flag.get()))
        return largest(flag.get()).to(DOUBLE)

    # ---- sums ------------------------------------------------------------------------------------

    def _sums(
        self, body: Callable[[Value], Callable[[Value], list[Value]]], count: int, place: Value
    ) -> None:
        """Write the sums, for each block, of the values that ``body`` returns for its vectors."""
        code = self.code
        totals = [Total(code) for _ in range(count)]
        with code.loop(self.count, step=BLOCK) as begin:
            end = at_most(begin + BLOCK, self.count)
            found = block_sums(code, self.real, (begin, end), STRIP, body(begin), count)
            for total, part in zip(totals, found, strict=True):
                total.add(part)
        for index, total in enumerate(totals):
            code.store(place, total.get(), index)

    # ---- classes ---------------------------------------------------------------------------------

    def _words(self, pivot: str) -> Words:
        """Return a pivot as three numbers of the elements' dtype."""
        rows, scalar = self.rows, self.real.scalar
        high, low = rows.words(pivot)
        first = high.to(scalar)
        rest = (high - first.to(DOUBLE)) + low
        second = rest.to(scalar)
        third = rest - second.to(DOUBLE)
        if pivot == "pivot":
            third = third + rows.get("pivot_rest")
        third = third.to(scalar)
        return Words(*(each.spread(self.real.lanes) for each in (first, second, third)))

    def _lanes(self, pivot: Words, anchor: Words | None = None, *, exact: bool) -> Any:
        """Return a function of a block that returns one of a vector of classes.

        ``exact`` is whether q sums to 1 as p does; else it is p e⁻ˣ, about the pivot as it is.
        """
        rows = self.rows
        scales = [rows.get(f"{side}_scale") for side in "ts"]
        if not exact:
            away = difference(rows.words("pivot"), rows.words("ratio"))
            scales[1] = scales[1] * exp(away * rows.of_eighths())
        plain = pivot.second is None
        apart = two_difference if plain else eighth_difference
        inverse = rows.vector(rows.get("inverse") if plain else rows.of_eighths())
        unit = 1.0 if plain else 0.125

        def about(d: Value, d_low: Value, c: Words) -> Value:
            if c.second is None:
                x = (d - c.first) + d_low
            else:
                high, low = two_difference(d_low, c.second)
                x = ((d - c.first) + high) + (low - c.third)
            return x

        def block(begin: Value) -> Callable[[Value], Lane]:
            record = self._record(begin)
            factors = [self._factor(record, index, scale) for index, scale in enumerate(scales)]

            def lane(k: Value) -> Lane:
                s, t = self._logits(k)
                d, d_low = apart(at_least(t, -rows.most), at_least(s, -rows.most))
                if rows.wide:
                    d_low = d_low + self._low(k) * rows.vector(rows.get("unit") * unit)
                p, q = (self._share(k, index, factor) for index, factor in enumerate(factors))
                far = about(d, d_low, pivot)
                step = far if anchor is None else about(d, d_low, anchor)
                x, about_anchor = (rows.finite(each * inverse) for each in (far, step))
                return Lane(s, t, p, q, x, about_anchor, far, step, inverse, unit)

            return lane

        return block

    def divergence(self, place: Value, *, plain: bool) -> None:
        """Write y, Σ p |e⁻ˣ − 1| and the divergence."""
        words = self._words("pivot")
        whole = Words(words.first * 8.0, None, None)
        block = self._lanes(whole if plain else words, exact=False)
        divergence = self.rows.divergence
        terms, smooth = divergence.terms(self.rows), divergence.smooth
        slopes = self.rows.slopes() if self.rows.leans else None

        def body(begin: Value) -> Callable[[Value], list[Value]]:
            lane = block(begin)

            def of(k: Value) -> list[Value]:
                seen = lane(k)
                fall, term, *risen = terms(seen)
                if self.rows.keeps:
                    self.code.store(self._kept(k, 2), fall)
                sums = [fall, abs(fall), term]
                if self.rows.along:
                    own, size, *_ = divergence.moments(exchanged(seen), risen[0])
                    self.code.store(self._kept(k, 3), own)
                    sums += [own, size]
                if divergence.logarithmic:
                    sums.append(risen[-1])
                if slopes:
                    sums.append(seen.p * slopes.step(seen.raw_t))
                return sums if smooth else [*sums, select(seen.x > 0.0, seen.p, 0.0)]

            return of

        more = divergence.logarithmic + self.rows.leans
        self._sums(body, 3 + (not smooth) + 2 * self.rows.along + more, place)

    def _rise(self, side: str) -> Any:
        """Return a function of a block that returns one of a class and the rise from the anchor."""
        words = (self._words("pivot"), self._words(f"anchor_{side}"))
        block = self._lanes(*words, exact=True)
        rise = self.rows.divergence.rise(self.rows, side)

        def of(begin: Value) -> Callable[[Value], tuple[Lane, Value]]:
            lane = block(begin)

            def vector(k: Value) -> tuple[Lane, Value]:
                seen = lane(k) if side == "t" else exchanged(lane(k))
                return seen, rise(seen)

            return vector

        return of

    def mean(self, place: Value, side: str) -> None:
        """Write the sums of the divergence's moments."""
        divergence, block = self.rows.divergence, self._rise(side)

        def body(begin: Value) -> Callable[[Value], list[Value]]:
            vector = block(begin)

            def of(k: Value) -> list[Value]:
                moments = divergence.moments(*vector(k))
                if divergence.keeps:
                    self.code.store(self._kept(k, 2 + "ts".index(side)), moments[0])
                return moments

            return of

        self._sums(body, 3 + divergence.squares, place)

    def gradient(self, side: str) -> None:
        """Write a gradient."""
        code, rows, real = self.code, self.rows, self.real
        *of_labels, factor = rows.factors()
        scale = rows.vector(factor)
        slope, has_mean = rows.divergence.slope(rows, side), rows.divergence.has_mean(side)
        keeps, index = rows.divergence.keeps, "ts".index(side)
        rising: Any = self._rise(side) if has_mean and not keeps else None
        if has_mean:
            value, mean = rows.get("value"), rows.get(f"mean_{side}")
            # Of an infinite divergence the kept parts are NaN, but for classes that take no part;
            # of one beyond the largest number no gradient is known.
            beyond = select(rows.get("lost") > 0.0, code.real(0.0), float("nan"))
            mean = select(abs(mean) < float("inf"), mean, beyond)
            mean = rows.vector(select(value == value, mean, value))  # noqa: PLR0124 - asks for NaN
        else:
            # q − p, of p (e⁻ˣ − 1) about the pivot before it was moved by log(1 + y).
            share = 1.0 / (rows.get("y") + 1.0)
            kept, moved = rows.vector(share), rows.vector(-rows.get("y") * share)
        joined = self._with_labels(of_labels) if of_labels and side == "t" else None
        with code.loop(self.count, step=BLOCK) as begin:
            record = self._record(begin)
            of_block = rising and rising(begin)
            which = index if has_mean else 0
            own = self._factor(record, which, rows.get("ts"[which] + "_scale"))
            start, n = self._block(begin)
            out = rows.written(f"gradient_{side}", self.start + start, n)
            with out as written, code.loop(written.count) as place:
                written.fetch(place + AHEAD, write=True)
                k = begin + place
                if of_block:
                    lane, u = of_block(k)
                    found = slope(lane, u - mean)
                else:
                    p = self._share(k, which, own)
                    part = code.load(real.vector, self._kept(k, 2 + index * has_mean))
                    found = part - p * mean if has_mean else part * kept + p * moved
                found = found * scale
                if of_labels:
                    # Of a divergence that does not count it may be NaN.
                    found = select(scale == 0.0, 0.0, found)
                written.store(place, joined(k, lane, found) if joined else found)
        if joined:
            self._slope_of_label(of_labels)

    def _with_labels(self, factors: Sequence[Value]) -> Callable[[Value, Lane, Value], Value]:
        """Return a function that adds the gradients of −log p and the entropy to that of KL.

        It keeps the latter of the vector that has the label.
        """
        code, rows = self.code, self.rows
        of_label, of_entropy = map(rows.vector, factors)
        slopes, lean = rows.slopes(), rows.vector(rows.lean())
        vector_of_label = self._label()[0] // self.real.lanes
        kept, other = (rows.pad + place * PAD for place in (1, 2))

        def joined(k: Value, lane: Lane, found: Value) -> Value:
            code.store(select(k == vector_of_label, kept, other), found)
            return found + slopes.slope(lane.p, lane.raw_t, lean, (of_label, of_entropy))

        return joined

    def _slope_of_label(self, factors: Sequence[Value]) -> None:
        """Write the gradient in the label's logit."""
        code, rows, scalar = self.code, self.rows, self.real.scalar
        place, here, logit = self._label()
        with code.when(here):
            divergence = code.load(scalar, rows.pad + PAD, place % self.real.lanes)
            anchor = rows.peak().anchor(self.real)
            slope = rows.peak().slope_of_label(logit, anchor, rows.lean(), factors)
            start = self.start + place
            out, direct = rows.place("gradient_t", start, rows.buffer)
            code.store(out, (divergence.to(DOUBLE) + slope).to(scalar))
            with code.when(~direct):
                rows.move("gradient_t", start, code.whole(1), out)


def largest(vector: Value) -> Value:
    """Return a vector's largest number."""
    value = vector
    while value.lanes > 1:
        low, high = value.halves()
        value = select(low > high, low, high)
    return value.element(0)


def split_in_halves(weights: list[Value]) -> list[Value]:
    """Return weights, in float64 the first half of the bits apart.

    Many equal ones are all rounded alike; of so few bits they are added exactly.
    """
    if format_of(weights[0]).real.single:
        return weights
    found, large = [], 2.0 ** (26 + format_of(weights[0]).lift)
    for weight in weights:
        head = (weight + large) - large
        found += [head, weight - head]
    return found


def joined_halves(sums: list[Value], real: Real) -> list[Value]:
    """Return the sums of weights, given those of what `split_in_halves` made of them."""
    if real.single:
        return sums
    return [head + tail for head, tail in zip(sums[::2], sums[1::2], strict=True)]
