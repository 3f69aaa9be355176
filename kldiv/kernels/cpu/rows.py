"""Rows of logits: how a divergence and its gradients are made of a few passes over a row.

A row is a few segments, each read as blocks that the first-level cache holds. The passes, stages of
a call, are

0. maxima of a block, then sums of weights: the pivot T·log(Σe^{t/T}/Σe^{s/T}) follows from these;
1. the divergence about that pivot, and y = Σ p (e⁻ˣ − 1), by which the pivot is not exact;
2. and 3. the same about a better pivot, only where y is not small beside Σ p |e⁻ˣ − 1|;
4. the mean of u, for the gradient in the teacher, about the class where p is largest;
5. the same about the mean of x, where u may be nearly constant; 6. again about the former, where
   that was nearer; 7. to 9. likewise the mean of v for the student;
10. gradients.

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

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kldiv.kernels.cpu.code import DOUBLE, I8, I64, Code, at_least, at_most, select
from kldiv.kernels.cpu.divergences import Lane, exchanged
from kldiv.kernels.cpu.elementary import (
    Heat,
    added,
    difference,
    eighth_difference,
    exp,
    format_of,
    log,
    log1p_near,
    power,
    shift_of,
    two_difference,
)
from kldiv.kernels.cpu.sums import Total, block_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv.kernels.cpu.code import Real, Value
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

# Stages; the last of those without gradients, and of all.
PIVOT: Final = 1
TEACHER: Final = 4
STUDENT: Final = 7
GRADIENTS: Final = 10

ARRAYS: Final = ("student", "teacher", "gradient_s", "gradient_t")

# The frame, integers: sizes, addresses, and steps from one row to the next in bytes.
FRAME: Final = (
    "classes",
    "segments",
    "shared",  # whether a unit is a segment; else it is a row
    *ARRAYS,  # addresses; 0 where an array is copied, or not there
    *(f"move_{name}" for name in ARRAYS),  # what copies it; 0 where nothing does
    "wants_s",
    "wants_t",
    "table",
    "heats",
    "heat_step",
    "keep",  # 0: every row is kept
    "factors",
    "factor_step",
    "numbers",  # of the divergence
    "number_step",
    "order",  # the rows that are computed; 0: every row
    "values",
    "parts",  # [rows, segments, PART], where segments are shared
    "width",  # classes of the longest segment, in whole vectors
    "weights",  # [rows, segments, 4, width] of weights and what gradients keep, likewise
    "low",  # what t − s is more than the logits say, where wide: see `low_width`
)

# Numbers of a temperature.
HEAT: Final = ("temperature", "inverse", "per", "ln2", "ln2_low", "ln2_64", "ln2_low_64")

_SUMS: Final = 8
_RECORD: Final = 10
"""Of a block: both maxima and sums of weights, whether a class is lost on one side, the sums
beside the maxima on the other, and factors that take weights to the scale of the row."""

PART: Final = _SUMS * GRADIENTS + _RECORD * SEGMENT // (BLOCK * 8)
"""Numbers of a segment: sums of each stage, then records of blocks."""

_STATE: Final = (
    *HEAT,  # times ``unit``, or over it
    "moved",  # whether logits are copied: times ``unit``, so that none overflows, less shifts
    "unit",
    "shift_t",
    "shift_s",
    "t_origin",
    "t_exponent",
    "t_scale",
    "s_origin",
    "s_exponent",
    "s_scale",
    "ratio",
    "ratio_low",
    "first",
    "first_low",
    "pivot",
    "pivot_low",
    "pivot_rest",
    "y",
    "plain",  # whether the pivot is one word of the elements' dtype, and no difference overflows
    "settled",
    "top_t",
    "top_s",
    "beside_t",
    "beside_s",
    "lost",
    "lone",
    "value",
    "at",
    "mean_t",
    "anchor_t",
    "anchor_t_low",
    "at_t",
    "mean_s",
    "anchor_s",
    "anchor_s_low",
    "at_s",
    "below_t",  # where u has no anchor: the mass below it, and at it
    "level_t",
    "below_s",
    "level_s",
    "known",  # whether the pass for the value found the student's mean
    "again",  # whether the mean has to be taken about another anchor
    "size",  # Σ own |u| about the first anchor, and that anchor
    "old",
    "old_low",
    "old_at",
)
_STATE_SIZE: Final = -(-len(_STATE) // 8) * 64
_PADS: Final = 3 * 16 * 8
"""Bytes for the last vectors of a segment, of two arrays and a gradient."""


def scratch_size(segments: int, width: int, real: Real, *, buffers: bool) -> int:
    """Return how many bytes of room a thread needs."""
    fixed = _PADS + _STATE_SIZE + 8 * PART * segments
    return fixed + (4 * segments * width + 2 * width + 3 * buffers * SEGMENT) * real.size


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
        self.pads = scratch
        self.state_at = scratch + _PADS
        self.own_parts = self.state_at + _STATE_SIZE
        self.own_weights = self.own_parts + self.frame["segments"] * (8 * PART)
        self.weights_size = self.frame["width"] * (4 * real.size)
        self.moved = self.own_weights + self.frame["segments"] * self.weights_size
        self.buffers = self.moved + self.frame["width"] * (2 * real.size)
        self.own = format_of(code.constant(real.scalar, 0.0))
        self.most = real.largest
        self.keeps = gradients and divergence.exact
        self.along = gradients and divergence.along
        count = GRADIENTS + 1 if gradients else TEACHER + 1
        with code.loop(last, first) as unit:
            self._unit(unit, last_stage, count, gradients=gradients)

    # ---- places ----------------------------------------------------------------------------------

    def get(self, name: str) -> Value:
        """Return a number of the state."""
        return self.code.load(DOUBLE, self.state_at, _STATE.index(name))

    def set(self, **numbers: Value) -> None:
        """Change numbers of the state."""
        for name, value in numbers.items():
            self.code.store(self.state_at, value, _STATE.index(name))

    def number(self, index: int) -> Value:
        """Return a number of the divergence."""
        at = self.frame["numbers"] + self.row * self.frame["number_step"]
        return self.code.load(DOUBLE, at, index)

    def heat(self, name: str) -> Value:
        """Return a number of the row's temperature."""
        return self.get(name)

    def vector(self, value: Value) -> Value:
        """Return a float64 number as a vector of elements."""
        return value.to(self.real.scalar).spread(self.real.lanes)

    def eighth_temperature(self) -> Value:
        """Return T/8, which goes with eighths of logits."""
        return self.heat("temperature") * 0.125

    def of_eighths(self) -> Value:
        """Return 8/T, which eighths of logits are multiplied by."""
        return self.heat("inverse") * 8.0

    def finite(self, x: Value) -> Value:
        """Return ``x``, finite: where p is 0 a product with ∞ would be NaN; NaN is kept."""
        return at_most(at_least(x, -self.most), self.most)

    def heat_of(self, change: Callable[[Value], Value]) -> Heat:
        """Return the temperature's constants for elements."""
        return Heat(*(change(self.heat(name)) for name in HEAT[:5]))

    def heat_64(self) -> Heat:
        """Return the temperature's constants for sums."""
        names = ("temperature", "inverse", "per", "ln2_64", "ln2_low_64")
        return Heat(*map(self.heat, names))

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
        of_row = frame["weights"] + place * segments * self.weights_size
        self.weights = select(shared, of_row, self.own_weights)
        kept = code.variable(code.whole(1))
        with code.when(frame["keep"] != 0):
            kept.set(code.load(I8, frame["keep"], self.row).to(I64))
        with code.either(kept.get() != 0) as (then, otherwise):
            with then, code.loop(at_most(last_stage + 1, count)) as stage:
                self._prepare(stage, gradients=gradients)
                with code.when(stage >= self.first_stage), code.loop(end, begin) as segment:
                    self._stage(stage, segment, gradients=gradients)
            with otherwise:
                code.store(frame["values"], code.real(0.0), self.row)
                if gradients:
                    with code.when(last_stage == GRADIENTS), code.loop(end, begin) as segment:
                        self._zeros(segment)

    def _prepare(self, stage: Value, *, gradients: bool) -> None:
        """Draw the conclusions from the stages before."""
        code = self.code
        with code.when(stage == 0):
            self.set(settled=code.real(0.0), again=code.real(1.0))
        with code.when(stage == PIVOT):
            self._find_pivot()
        with code.when((stage > PIVOT) & (stage <= TEACHER) & (self.get("settled") == 0.0)):
            self._better_pivot(stage)
        for base, side in ((TEACHER, "t"), (STUDENT, "s")) if gradients else ():
            if self.divergence.has_mean(side):
                with code.when((stage > base) & (stage <= base + 3)):
                    self._find_mean(stage, side)
                with code.when(stage == base):
                    self._first_anchor(side)

    def _stage(self, stage: Value, segment: Value, *, gradients: bool) -> None:
        code = self.code
        start = segment * SEGMENT
        n = at_most(self.frame["classes"] - start, SEGMENT)
        part = self.parts + segment * (8 * PART)
        again = (stage == PIVOT) | (self.frame["segments"] > 1) | (self.frame["shared"] != 0)
        moved = (stage >= PIVOT) & again & (self.get("moved") != 0.0)
        with code.when((stage == 0) | moved):
            sides = [side for side in "ts" if gradients and self.divergence.has_mean(side)]
            both = Segment(self, start, n, fresh=True)
            with code.either(stage == 0) as (then, otherwise):
                with then:
                    both.weights(sides)
                with otherwise:
                    both.move()
        unsettled = self.get("settled") == 0.0
        with code.when((stage >= PIVOT) & (stage < TEACHER) & unsettled):
            place = part + stage * (8 * _SUMS)
            both = Segment(self, start, n)
            if self.divergence.exact:
                with code.either(self.get("plain") != 0.0) as (then, otherwise):
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
            now = (stage >= base) & (stage < base + 3) & (self.get("again") != 0.0)
            with code.when(now & wanted):
                Segment(self, start, n).mean(part + stage * (8 * _SUMS), side)
        with code.when(stage == GRADIENTS):
            both = Segment(self, start, n)
            for side in ("s", "t"):
                with code.when(self.frame[f"wants_{side}"] != 0):
                    both.gradient(side)

    def _zeros(self, segment: Value) -> None:
        """Write zeros: the gradients of a row that a mask drops."""
        code, real = self.code, self.real
        start = segment * SEGMENT
        n = at_most(self.frame["classes"] - start, SEGMENT)
        for side in ("s", "t"):
            with code.when(self.frame[f"wants_{side}"] != 0):
                out, direct = self.place(f"gradient_{side}", start, 2)
                with code.loop(n) as k:
                    code.store(out, code.constant(real.scalar, 0.0), k)
                with code.when(~direct):
                    self.move(f"gradient_{side}", start, n, out)

    def place(self, name: str, start: Value, buffer: int) -> tuple[Value, Value]:
        """Return the address of a part of the row, or a buffer's, and whether it is the former."""
        base = self.frame[name]
        at = base + (self.row * self.frame["classes"] + start) * self.real.size
        own = self.buffers + buffer * SEGMENT * self.real.size
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

    def origin(self, top: Value) -> tuple[Value, Value]:
        """Return origin and exponent of 2 of weights whose largest logit is ``top``."""
        heat = self.heat_64()
        far = abs(top) > heat.temperature * self.own.deep
        origin = select(far & (top > -float("inf")), top, 0.0)
        rounding = 1.5 * 2.0**52
        exponent = ((top - origin) * heat.per + rounding) - rounding
        return origin, select(top > -float("inf"), exponent, 0.0)

    def least(self, top: Value, origin: Value) -> Value:
        """Return the lowest difference from the origin whose weight counts."""
        return select(
            top > -float("inf"), (top - origin) - self.heat("temperature") * self.own.gone, 0.0
        )

    def _blocks(self) -> tuple[Value, Value]:
        classes = self.frame["classes"]
        size = BLOCK * self.real.lanes
        return (classes + (size - 1)) // size, self.code.whole(SEGMENT // size)

    def _record(self, block: Value) -> Value:
        """Return the address of a block's record."""
        _, each = self._blocks()
        part = self.parts + (block // each) * (8 * PART) + 8 * _SUMS * GRADIENTS
        return part + (block % each) * (8 * _RECORD)

    def _find_pivot(self) -> None:
        code, heat = self.code, self.heat_64()
        blocks, _ = self._blocks()
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
            origin, exponent = self.origin(top)
            total = Total(code)
            with code.loop(blocks) as block:
                record = self._record(block)
                own, powers = self.origin(code.load(DOUBLE, record, 2 * index))
                part = code.load(DOUBLE, record, 2 * index + 1)
                away, powers = own - origin, exponent - powers
                gone = (part == 0.0) | (away * heat.per - powers < -1000.0)
                away, powers = (select(gone, 0.0, each) for each in (away, powers))
                # A power of 2 where both have one origin.
                scale = power(away, code.real(-float("inf")), shift_of(powers), heat)
                scale = select(gone, 0.0, scale * 2.0 ** -format_of(scale).lift)
                code.store(record, scale, 8 + index)
                total.add(part * scale)
            found = total.get()
            ends.append((top, origin, exponent, found))
            numbers = {
                f"{side}_exponent": exponent,
                f"{side}_scale": 1.0 / found,
            }
            self.set(**numbers)
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
        plain = select(moderate, code.real(1.0), 0.0)
        self.set(
            ratio=ratio[0],
            ratio_low=ratio[1],
            first=first[0],
            first_low=first[1],
            pivot=select(both, pivot, float("nan")),
            pivot_low=low,
            pivot_rest=code.real(0.0),
            plain=plain if self.divergence.exact else code.real(0.0),
            beside_t=besides[0],
            beside_s=besides[1],
            t_origin=t_origin,
            s_origin=s_origin,
            top_t=t_top,
            top_s=s_top,
            lost=self.divergence.counted(self, 0, flags[0].get()),
            lone=self.divergence.counted(self, 1, flags[1].get()),
        )

    def _shifts(self, t_top: Value, s_top: Value) -> tuple[Value, tuple[Value, Value]]:
        """Return the unit of logits and both shifts in it, and take constants of T to that."""
        code, zero = self.code, self.code.real(0.0)
        bound = self.heat("temperature") * FAR
        far = [(abs(top) > bound) & (abs(top) < float("inf")) for top in (t_top, s_top)]
        moved = far[0] | far[1]
        large = at_least(abs(t_top), abs(s_top)) > 1e30
        unit = select(moved & large, code.real(0.5), 1.0)
        t_shift, s_shift = (
            select(each, top * unit, zero) for each, top in zip(far, (t_top, s_top), strict=True)
        )
        inverse = 1.0 / unit
        powers = {name: inverse if name in {"inverse", "per"} else unit for name in HEAT}
        self.set(
            moved=select(moved, code.real(1.0), 0.0),
            unit=unit,
            shift_t=t_shift,
            shift_s=s_shift,
            **{name: self.heat(name) * power for name, power in powers.items()},
        )
        return unit, (t_shift, s_shift)

    def _better_pivot(self, stage: Value) -> None:
        """Settle the pivot, or move it by log1p(y)."""
        code, divergence = self.code, self.divergence
        temperature = self.eighth_temperature()
        before = stage - 1
        y, size, value = (self._sum(before, index) for index in range(3))
        offset = log1p(y)
        pivot = self.get("pivot"), self.get("pivot_low")
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
                if not divergence.smooth:
                    # Moving the pivot by y changes either half of the sum by that times its mass.
                    value = value + (self._sum(before, 3) - 0.5) * y
                value = select(value < 0.0, 0.0, value)
                for flag, infinite in zip(("lost", "lone"), divergence.unbounded, strict=True):
                    if infinite:
                        value = select(self.get(flag) > 0.0, float("inf"), value)
                value = select(pivot[0] == pivot[0], value, float("nan"))
                self.set(settled=code.real(1.0), value=value, y=y)
                if self.along:
                    # Of q that is by y too large: that is less than a gradient's roundings.
                    # Signs alone tell whether its mean is exact: about p = q one class far
                    # away may have most of the square.
                    mean, size = (self._sum(before, index) for index in (3, 4))
                    known = (size - abs(mean)) * 2.0 >= abs(mean)
                    known = known & (abs(y) <= 0.5 * most[1]) & (value < float("inf"))
                    self.set(mean_s=mean, known=select(known, code.real(1.0), 0.0))
                self.set(pivot_rest=-(temperature * offset))
                code.store(self.frame["values"], value, self.row)
            with otherwise:
                first = self.get("first"), self.get("first_low")
                ratio = self.get("ratio"), self.get("ratio_low")
                sane = abs(offset) < 0.5
                moved = _either(sane, moved, ratio)
                snap = 2.0**-16 if self.real.single else 2.0**-40
                near = abs(difference(moved, first)) <= abs(temperature * offset) * snap
                moved = _either(near, first, moved)
                self.set(pivot=moved[0], pivot_low=moved[1], plain=code.real(0.0))

    def _find_mean(self, stage: Value, side: str) -> None:
        """Take the mean that the stage before found, or another anchor."""
        code = self.code
        sign = 1.0 if side == "t" else -1.0
        base = TEACHER if side == "t" else STUDENT
        with code.when((self.get("again") != 0.0) & (self.frame[f"wants_{side}"] != 0)):
            mean, size, middle = (self._sum(stage - 1, index) for index in range(3))
            self.set(**{f"mean_{side}": mean})
            if not self.divergence.smooth:
                names = f"below_{side}", f"level_{side}"
                self.set(**dict(zip(names, (size, middle), strict=True)), again=code.real(0.0))
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
                pivot = self.get("pivot"), self.get("pivot_low")
                away = self.eighth_temperature() * middle * sign + self.get("pivot_rest")
                with code.when(~known):
                    old = (self.get(name) for name in _anchor_names(side))
                    self.set(size=size, **dict(zip(("old", "old_low", "old_at"), old, strict=True)))
                    self._anchor(side, added(pivot, away), middle)
                self.set(again=select(known, code.real(0.0), 1.0))
            with code.when(stage == base + 2):
                # Rounding of u is beside Σ own |u|: the anchor with the smaller one is better.
                worse = size > self.get("size")
                with code.when(worse):
                    self._anchor(side, (self.get("old"), self.get("old_low")), self.get("old_at"))
                self.set(again=select(worse, code.real(1.0), 0.0))

    def _first_anchor(self, side: str) -> None:
        """Take the anchor where the own side is largest: in the bulk, if all is in one class."""
        top, beside = (self.get(f"{name}_{side}") for name in ("top", "beside"))
        pivot = self.get("pivot"), self.get("pivot_low")
        anchor = eighth_difference(*((top, beside) if side == "t" else (beside, top)))
        if self.wide and side == "t":
            place = low_width(self.frame["classes"], self.real.lanes) - self.real.lanes
            low = self.code.load(self.real.scalar, self.low_at(), place).to(DOUBLE)
            anchor = anchor[0], anchor[1] + low * (self.get("unit") * 0.125)
        at = (difference(anchor, pivot) - self.get("pivot_rest")) * self.of_eighths()
        self._anchor(side, anchor, at if side == "t" else -at)
        known = self.get("known") if self.along and side == "s" else self.code.real(0.0)
        self.set(again=1.0 - known)

    def _anchor(self, side: str, anchor: tuple[Value, Value], at: Value) -> None:
        self.set(**dict(zip(_anchor_names(side), (*anchor, at), strict=True)))


def _anchor_names(side: str) -> tuple[str, str, str]:
    return f"anchor_{side}", f"anchor_{side}_low", f"at_{side}"


def _either(
    condition: Value, yes: tuple[Value, Value], no: tuple[Value, Value]
) -> tuple[Value, Value]:
    return select(condition, yes[0], no[0]), select(condition, yes[1], no[1])


def log1p(y: Value) -> Value:
    """Return log(1 + y)."""
    close = (y > -0.5) & (y < 1.0)
    return select(close, log1p_near(select(close, y, 0.0))[0], log(y + 1.0))


class Segment:
    """A segment of a row: its passes."""

    def __init__(self, rows: Rows, start: Value, n: Value, *, fresh: bool = False) -> None:
        self.rows, self.code, self.real = rows, rows.code, rows.real
        self.start, self.n = start, n
        segment = start // SEGMENT
        self.weights_at = rows.weights + segment * rows.weights_size
        self.records = rows.parts + segment * (8 * PART) + 8 * _SUMS * GRADIENTS
        code, real, frame = self.code, self.real, rows.frame
        lanes = real.lanes
        self.whole = n // lanes
        self.count = (n + (lanes - 1)) // lanes
        self.sources = []
        again = code.whole(1) if fresh else (frame["segments"] > 1).to(I64) | frame["shared"]
        moved = None if fresh else rows.get("moved") != 0.0
        for index, name in enumerate(("student", "teacher")):
            at, direct = rows.place(name, start, index)
            read = ~direct & (again != 0)
            with code.when(read if moved is None else read & ~moved):
                rows.move(name, start, n, at)
            if moved is not None:
                at = select(moved, self._moved(index), at)
            # The last vector is filled up with classes that both mask.
            pad = rows.pads + index * 128
            code.store(pad, code.constant(real.vector, -float("inf")))
            with code.loop(n, self.whole * lanes) as k:
                code.store(pad, code.load(real.scalar, at, k), k - self.whole * lanes)
            self.sources.append((at, pad))

    def _moved(self, index: int) -> Value:
        """Return the address of the student's (0) or the teacher's logits, less their shift."""
        return self.rows.moved + self.rows.frame["width"] * (index * self.real.size)

    def move(self) -> None:
        """Copy the logits less their shifts."""
        code, rows = self.code, self.rows
        unit, *shifts = (rows.vector(rows.get(name)) for name in ("unit", "shift_s", "shift_t"))
        with code.loop(self.count) as k:
            for index, logits in enumerate(self._logits(k)):
                near = logits * unit - shifts[index]
                masked = logits == -float("inf")
                place = self._moved(index) + k * (self.real.lanes * self.real.size)
                code.store(place, select(masked, logits, near))

    def _at(self, source: tuple[Value, Value], k: Value) -> Value:
        at, pad = source
        return select(k == self.whole, pad, at + k * (self.real.lanes * self.real.size))

    def _logits(self, k: Value) -> tuple[Value, Value]:
        s, t = (self.code.load(self.real.vector, self._at(each, k)) for each in self.sources)
        return s, t

    def _low(self, k: Value) -> Value:
        return self.code.load(
            self.real.vector, self.rows.low_at(), self.start + k * self.real.lanes
        )

    # ---- sums of weights -------------------------------------------------------------------------

    def weights(self, sides: Sequence[str]) -> None:
        """Write maxima and sums of weights of each block; of some sides the sums beside those."""
        code, rows, vector = self.code, self.rows, self.real.vector
        nothing = -float("inf")
        with code.loop(self.count, step=BLOCK) as begin:
            end = at_most(begin + BLOCK, self.count)
            tops = [code.variable(code.constant(vector, nothing)) for _ in range(2)]
            ends = [code.variable(code.constant(vector, -nothing)) for _ in range(2)]
            with code.loop(end, begin) as k:
                s, t = self._logits(k)
                for index, own in enumerate((t, s)):
                    top, bottom = tops[index].get(), ends[index].get()
                    tops[index].set(select(own > top, own, top))
                    ends[index].set(select(own < bottom, own, bottom))
            place = self._record(begin)
            parts = []
            for index in range(2):
                top = largest(tops[index].get()).to(DOUBLE)
                code.store(place, top, 2 * index)
                code.store(place, code.real(0.0), 4 + index)
                origin, exponent = rows.origin(top)
                parts.append((origin, rows.least(top, origin), exponent))
                lowest_of_other = -largest(-ends[1 - index].get())
                if rows.divergence.unbounded[index]:
                    with code.when(lowest_of_other == nothing):
                        code.store(place, self._lost(begin, end, index), 4 + index)
            weigh = [self._weigher(*each) for each in parts]

            beside = {side: code.variable(code.constant(vector, nothing)) for side in sides}
            peaks = [rows.vector(code.load(DOUBLE, place, 2 * index)) for index in range(2)]

            def body(k: Value) -> list[Value]:
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
                    code.store(self._weights(k, index), weight)
                return split_in_halves(weights)

            ends_of = begin, end
            found = block_sums(code, self.real, ends_of, STRIP, body, 2 if self.real.single else 4)
            for index in range(2):
                whole = (
                    found[index] if self.real.single else found[2 * index] + found[2 * index + 1]
                )
                code.store(place, whole, 2 * index + 1)
            for side, highest in beside.items():
                code.store(place, largest(highest.get()).to(DOUBLE), 6 + "ts".index(side))

    def _record(self, begin: Value) -> Value:
        return self.records + (begin // BLOCK) * (8 * _RECORD)

    def _weights(self, k: Value, index: int) -> Value:
        """Return the address of weights of the teacher (0), the student (1), or of numbers kept."""
        size = self.real.size
        return self.weights_at + (self.rows.frame["width"] * index + k * self.real.lanes) * size

    def _factor(self, record: Value, index: int, scale: Value) -> Value:
        """Return the factor that takes a block's weights, lowered by their lift, to probabilities.

        Without that the factor of a block far below the largest class would underflow before p.
        """
        lift = 2.0**self.rows.own.lift
        return self.rows.vector(scale * lift * self.code.load(DOUBLE, record, 8 + index))

    def _share(self, k: Value, index: int, factor: Value) -> Value:
        """Return the probabilities of a vector of classes."""
        weights = self.code.load(self.real.vector, self._weights(k, index))
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

    def _weigher(self, origin: Value, least: Value, exponent: Value) -> Callable[[Value], Value]:
        rows = self.rows
        start, lowest = rows.vector(origin), rows.vector(least)
        shift = shift_of(exponent.to(self.real.scalar)).spread(self.real.lanes)
        heat = rows.heat_of(rows.vector)

        def weigh(logits: Value) -> Value:
            return power(logits - start, lowest, shift, heat)

        return weigh

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
        high, low = rows.get(pivot), rows.get(f"{pivot}_low")
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
            away = difference(
                (rows.get("pivot"), rows.get("pivot_low")),
                (rows.get("ratio"), rows.get("ratio_low")),
            )
            scales[1] = scales[1] * exp(away * rows.of_eighths())
        plain = pivot.second is None
        apart = two_difference if plain else eighth_difference
        inverse = rows.vector(rows.heat("inverse") if plain else rows.of_eighths())
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

        def body(begin: Value) -> Callable[[Value], list[Value]]:
            lane = block(begin)

            def of(k: Value) -> list[Value]:
                seen = lane(k)
                fall, term, *risen = terms(seen)
                if self.rows.keeps:
                    self.code.store(self._weights(k, 2), fall)
                sums = [fall, abs(fall), term]
                if self.rows.along:
                    own, size, *_ = divergence.moments(exchanged(seen), *risen)
                    self.code.store(self._weights(k, 3), own)
                    sums += [own, size]
                return sums if smooth else [*sums, select(seen.x > 0.0, seen.p, 0.0)]

            return of

        self._sums(body, 3 + (not smooth) + 2 * self.rows.along, place)

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
                    self.code.store(self._weights(k, 2 + "ts".index(side)), moments[0])
                return moments

            return of

        self._sums(body, 3 + divergence.squares, place)

    def gradient(self, side: str) -> None:
        """Write a gradient."""
        code, rows, real = self.code, self.rows, self.real
        out, direct = rows.place(f"gradient_{side}", self.start, 2)
        pad = rows.pads + 2 * 128
        factor = code.load(DOUBLE, rows.frame["factors"] + rows.row * rows.frame["factor_step"])
        scale = rows.vector(factor * rows.get("unit") / rows.heat("temperature"))
        slope, has_mean = rows.divergence.slope(rows, side), rows.divergence.has_mean(side)
        keeps, index = rows.divergence.keeps, "ts".index(side)
        rising: Any = self._rise(side) if has_mean and not keeps else None
        if has_mean:
            value, mean = rows.get("value"), rows.get(f"mean_{side}")
            # Of an infinite divergence the kept parts are NaN, but for classes that take no part.
            mean = select(mean == mean, mean, 0.0)  # noqa: PLR0124 - asks for NaN
            mean = rows.vector(select(value == value, mean, value))  # noqa: PLR0124 - likewise
        else:
            # q − p, of p (e⁻ˣ − 1) about the pivot before it was moved by log(1 + y).
            share = 1.0 / (rows.get("y") + 1.0)
            kept, moved = rows.vector(share), rows.vector(-rows.get("y") * share)
        with code.loop(self.count, step=BLOCK) as begin:
            record = self._record(begin)
            of_block = rising and rising(begin)
            which = index if has_mean else 0
            own = self._factor(record, which, rows.get("ts"[which] + "_scale"))
            with code.loop(at_most(begin + BLOCK, self.count), begin) as k:
                if of_block:
                    lane, u = of_block(k)
                    found = slope(lane, u - mean)
                else:
                    place = 2 + index if has_mean else 2
                    p = self._share(k, which, own)
                    part = code.load(real.vector, self._weights(k, place))
                    found = part - p * mean if has_mean else part * kept + p * moved
                code.store(self._at((out, pad), k), found * scale)
        with code.loop(self.n, self.whole * real.lanes) as k:
            code.store(out, code.load(real.scalar, pad, k - self.whole * real.lanes), k)
        with code.when(~direct):
            rows.move(f"gradient_{side}", self.start, self.n, out)


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
