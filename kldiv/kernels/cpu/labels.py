"""Rows of logits: −log p(label), the entropy, and their gradient, from one read.

A row is read a block at a time, which the first-level cache holds: its largest logit, then the
weights of all others and their depths below it. What is made of the blocks is in float64. The
weights lie where the gradient is to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kldiv.kernels.cpu.code import DOUBLE, I8, I64, Code, at_most, select
from kldiv.kernels.cpu.elementary import Heat, format_of
from kldiv.kernels.cpu.peaks import Peak, Scale, Slopes, Sums, counter, peak_of
from kldiv.kernels.cpu.rows import BLOCK, HEAT, STRIP, joined_halves, largest, split_in_halves
from kldiv.kernels.cpu.runs import PAD, Run
from kldiv.kernels.cpu.sums import Total, block_sums

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv.kernels.cpu.code import Real, Value

ARRAYS: Final = ("student", "gradient")

FRAME: Final = (
    "classes",
    *("table", *ARRAYS),  # addresses; 0 where a row is copied by
    *(f"move_{name}" for name in ARRAYS),
    "labels",  # 64-bit integers; 0: there are none
    "heats",
    "heat_step",
    "keep",  # 0: every row is kept
    "factors",  # of −log p(label) and of the entropy, of each row
    "values",  # likewise
)

_RECORD: Final = 5
"""Of a block: the numbers of `Sums`."""
_PADS: Final = 2 * PAD
"""Bytes for the last vectors of a row and of its gradient."""


def scratch_size(classes: int, real: Real, *, buffers: bool) -> int:
    """Return how many bytes of room a thread needs."""
    vectors = -(-classes // real.lanes)
    row = vectors * real.lanes * real.size
    return _PADS + -(-vectors // BLOCK) * 8 * _RECORD + 2 * buffers * row


class LabelRows:
    """The writer of a kernel, which takes a frame, room, and the first and last row."""

    def __init__(self, code: Code, real: Real, *, gradients: bool) -> None:
        self.code, self.real, self.gradients = code, real, gradients
        frame, self.room, first, last = code.arguments
        self.frame = {name: code.load(I64, frame, index) for index, name in enumerate(FRAME)}
        self.own = format_of(code.constant(real.scalar, 0.0))
        classes = self.frame["classes"]
        self.count = (classes + (real.lanes - 1)) // real.lanes
        self.records = self.room + _PADS
        blocks = (self.count + (BLOCK - 1)) // BLOCK
        buffers = self.records + blocks * (8 * _RECORD)
        self.buffers = buffers, buffers + self.count * (real.lanes * real.size)
        with code.loop(last, first) as row:
            self.row = row
            self._unit()

    def _unit(self) -> None:
        code, frame = self.code, self.frame
        heat_at = frame["heats"] + self.row * frame["heat_step"]
        numbers = [code.load(DOUBLE, heat_at, index) for index in range(len(HEAT))]
        self.heat, self.heat_64 = Heat(*numbers[:5]), Heat(*numbers[:3], *numbers[5:])
        kept = code.variable(code.whole(1))
        with code.when(frame["keep"] != 0):
            kept.set(code.load(I8, frame["keep"], self.row).to(I64))
        self.source, self.target = map(self._run, range(2))
        with code.either(kept.get() != 0) as (then, otherwise):
            with then:
                self._values()
            with otherwise:
                for index in range(2):
                    code.store(frame["values"], code.real(0.0), self.row * 2 + index)
                if self.gradients:
                    self._zeros()
        if self.gradients:
            self._move(1, self.target)

    # ---- places ----------------------------------------------------------------------------------

    def _run(self, index: int) -> Run:
        """Return the row of an array, or its buffer."""
        base, classes = self.frame[ARRAYS[index]], self.frame["classes"]
        own = base + self.row * classes * self.real.size
        at = select(base != 0, own, self.buffers[index])
        return Run(self.code, self.real, at, classes, self.room + index * PAD)

    def _move(self, index: int, run: Run) -> None:
        """Copy the row of an array to its buffer, or from it, where it has one."""
        mover, classes = self.frame[f"move_{ARRAYS[index]}"], self.frame["classes"]
        with self.code.when(mover != 0):
            place = index + 1, self.row * classes, classes, run.at
            self.code.call(mover, self.frame["table"], *place)

    def _record(self, begin: Value) -> Value:
        return self.records + (begin // BLOCK) * (8 * _RECORD)

    def _vector(self, value: Value) -> Value:
        return value.to(self.real.scalar).spread(self.real.lanes)

    # ---- the row ---------------------------------------------------------------------------------

    def _scale(self, top: Value) -> Scale:
        """Return the scale of weights whose largest logit is ``top``."""
        return Scale(self.own, self.heat_64, top)

    def _bound(self) -> Value:
        """Return a depth below the largest logit beyond which weights are 0."""
        return self.heat.temperature * self.own.gone

    def _values(self) -> None:
        code, frame = self.code, self.frame
        self._move(0, self.source)
        self.source.fill(-float("inf"))
        highest = code.variable(code.real(-float("inf")))
        with code.loop(self.count, step=BLOCK) as begin:
            own, before = self._block(begin), highest.get()
            highest.set(select(own > before, own, before))
        peak = self._peak(self._scale(highest.get()))
        code.store(frame["values"], peak.entropy, self.row * 2 + 1)
        label = code.variable(code.whole(-1))
        with code.when(frame["labels"] != 0):
            label.set(code.load(I64, frame["labels"], self.row))
            code.store(frame["values"], peak.cost(*self._label(label.get())), self.row * 2)
        if self.gradients:
            self._gradient(peak, label.get())

    def _label(self, label: Value) -> tuple[Value, Value]:
        """Return the logit of a label, and whether it is a class."""
        inside = (label >= 0) & (label < self.frame["classes"])
        found = self.code.load(self.real.scalar, self.source.at, select(inside, label, 0))
        return found.to(DOUBLE), inside

    def _block(self, begin: Value) -> Value:
        """Write the record of a block, and its weights; return its largest logit."""
        code, real = self.code, self.real
        end = at_most(begin + BLOCK, self.count)
        highest = code.variable(code.constant(real.vector, -float("inf")))
        with code.loop(end, begin) as k:
            each, before = self.source.load(k), highest.get()
            highest.set(select(each > before, each, before))
        top = largest(highest.get()).to(DOUBLE)
        weigh = self._scale(top).weigher(real, Heat(*map(self._vector, self.heat)))
        count = counter(top, self._bound(), self.heat.inverse, self._vector)

        def body(k: Value) -> list[Value]:
            s = self.source.load(k)
            weight = weigh(s)
            if self.gradients:
                self.target.store(k, weight)
            ties, *below = count(s, weight)
            return [ties, *split_in_halves(below)]

        ties, *found = block_sums(code, real, (begin, end), STRIP, body, 3 if real.single else 5)
        for index, value in enumerate((top, ties, *joined_halves(found, real))):
            code.store(self._record(begin), value, index)
        return top

    def _peak(self, scale: Scale) -> Peak:
        """Return the row's peak, and write the factors of its blocks."""

        def read(block: Value) -> Sums:
            record = self._record(block * BLOCK)
            numbers = [self.code.load(DOUBLE, record, index) for index in range(_RECORD - 1)]
            factor = scale.of(self._scale(numbers[0]), numbers[0] == -float("inf"))
            self.code.store(record, factor, _RECORD - 1)
            return Sums._make([*numbers, factor])

        return peak_of(self.code, (self.count + (BLOCK - 1)) // BLOCK, read, scale)

    # ---- the gradient ----------------------------------------------------------------------------

    def _gradient(self, peak: Peak, label: Value) -> None:
        code, frame = self.code, self.frame
        temperature = self.heat_64.temperature
        of_label, of_entropy = factors = tuple(
            code.load(DOUBLE, frame["factors"], self.row * 2 + index) / temperature
            for index in range(2)
        )
        with code.either((of_label != 0.0) | (of_entropy != 0.0)) as (then, otherwise):
            with then:
                anchor, per = peak.anchor(self.real), peak.per
                slopes = Slopes(anchor, self._bound(), self.heat.inverse, self._vector)
                lean = code.variable(code.real(0.0))
                with code.when(of_entropy != 0.0):
                    lean.set(self._lean(slopes, per))
                self._slopes(slopes, per, lean.get(), factors)
                own, inside = self._label(label)
                with code.when(inside):
                    slope = peak.slope_of_label(own, anchor, lean.get(), factors)
                    code.store(self.target.at, slope.to(self.real.scalar), label)
            with otherwise:
                self._zeros()

    def _factor(self, begin: Value, per: Value) -> Value:
        """Return the factor that takes a block's weights, lowered by their lift, to p."""
        return self._vector(self.code.load(DOUBLE, self._record(begin), _RECORD - 1) * per)

    def _share(self, k: Value, factor: Value) -> Value:
        """Return p of a vector of classes."""
        return self.target.load(k) * 2.0**-self.own.lift * factor

    def _lean(self, slopes: Slopes, per: Value) -> Value:
        """Return Σ p (s − anchor)/T."""
        total = Total(self.code)
        with self.code.loop(self.count, step=BLOCK) as begin:
            end, factor = at_most(begin + BLOCK, self.count), self._factor(begin, per)

            def body(k: Value, factor: Value = factor) -> list[Value]:
                return [self._share(k, factor) * slopes.step(self.source.load(k))]

            total.add(*block_sums(self.code, self.real, (begin, end), STRIP, body, 1))
        return total.get()

    def _slopes(self, slopes: Slopes, per: Value, lean: Value, factors: Sequence[Value]) -> None:
        """Write the gradient of all classes but the label."""
        code = self.code
        middle, *of = map(self._vector, (lean, *factors))
        with code.loop(self.count, step=BLOCK) as begin:
            factor = self._factor(begin, per)
            with code.loop(at_most(begin + BLOCK, self.count), begin) as k:
                p = self._share(k, factor)
                self.target.store(k, slopes.slope(p, self.source.load(k), middle, of))
        self.target.finish()

    def _zeros(self) -> None:
        with self.code.loop(self.frame["classes"]) as k:
            self.code.store(self.target.at, self.code.constant(self.real.scalar, 0.0), k)
