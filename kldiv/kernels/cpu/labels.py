"""Rows of logits: −log p(label), the entropy, and their gradient, from one read.

A row is read a block at a time, which the first-level cache holds: its largest logit, then the
weights of all others and their depths below it. What is made of the blocks is in float64; words
and formulas are those of `kldiv.formulas.labels`, but for the gradient of the entropy, whose mean
is taken a second time about a logit in the bulk of p: so nothing cancels where depths are alike.
The weights lie where the gradient is to be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kldiv.kernels.cpu.code import DOUBLE, I8, I64, Code, at_least, at_most, select
from kldiv.kernels.cpu.elementary import Heat, format_of, power, shift_of
from kldiv.kernels.cpu.rows import BLOCK, HEAT, STRIP, largest, log1p, split_in_halves
from kldiv.kernels.cpu.sums import Total, block_sums

if TYPE_CHECKING:
    from kldiv.kernels.cpu.code import Real, Value

FRAME: Final = (
    "classes",
    "student",  # addresses; 0 where a row is copied by
    "gradient",
    "move_student",
    "move_gradient",
    "table",
    "labels",  # 64-bit integers; 0: there are none
    "heats",
    "heat_step",
    "keep",  # 0: every row is kept
    "factors",  # of −log p(label) and of the entropy, of each row
    "values",  # likewise
)

# Of a block: its largest logit, the weights of all below it, these times their depths, how many
# have that logit, and the factor that takes weights to the scale of the row.
_RECORD: Final = 5
_PADS: Final = 2 * 128
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
        self.whole = classes // real.lanes
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
        self.source, self.target = (
            self._place(name, index) for index, name in enumerate(("student", "gradient"))
        )
        with code.either(kept.get() != 0) as (then, otherwise):
            with then:
                self._values()
            with otherwise:
                for index in range(2):
                    code.store(frame["values"], code.real(0.0), self.row * 2 + index)
                if self.gradients:
                    self._zeros()
        if self.gradients:
            self._move("gradient", self.target)

    # ---- places ----------------------------------------------------------------------------------

    def _place(self, name: str, index: int) -> Value:
        """Return the address of the row, or of its buffer."""
        base = self.frame[name]
        own = base + self.row * self.frame["classes"] * self.real.size
        return select(base != 0, own, self.buffers[index])

    def _move(self, name: str, at: Value) -> None:
        """Copy the row to its buffer, or from it, where it has one."""
        mover, classes = self.frame[f"move_{name}"], self.frame["classes"]
        place = ("student", "gradient").index(name) + 1
        with self.code.when(mover != 0):
            self.code.call(mover, self.frame["table"], place, self.row * classes, classes, at)

    def _at(self, at: Value, k: Value, index: int) -> Value:
        """Return the address of a vector; the last one has a place of its own."""
        pad = self.room + index * 128
        return select(k == self.whole, pad, at + k * (self.real.lanes * self.real.size))

    def _logits(self, k: Value) -> Value:
        return self.code.load(self.real.vector, self._at(self.source, k, 0))

    def _weights(self, k: Value) -> Value:
        return self._at(self.target, k, 1)

    def _record(self, begin: Value) -> Value:
        return self.records + (begin // BLOCK) * (8 * _RECORD)

    def _vector(self, value: Value) -> Value:
        return value.to(self.real.scalar).spread(self.real.lanes)

    # ---- weights ---------------------------------------------------------------------------------

    def _origin(self, top: Value) -> tuple[Value, Value]:
        """Return origin and exponent of 2 of weights whose largest logit is ``top``."""
        heat = self.heat_64
        far = (abs(top) > heat.temperature * self.own.deep) & (top > -float("inf"))
        origin = select(far, top, 0.0)
        rounding = 1.5 * 2.0**52
        exponent = ((top - origin) * heat.per + rounding) - rounding
        return origin, select(top > -float("inf"), exponent, 0.0)

    def _weight(self, logit: Value, top: Value) -> Value:
        """Return the weight of one logit in float64, where the largest is ``top``."""
        origin, exponent = self._origin(top)
        least = (top - origin) - self.heat_64.temperature * format_of(top).gone
        found = power(logit - origin, least, shift_of(exponent), self.heat_64)
        return select(logit > -float("inf"), found * 2.0 ** -format_of(found).lift, 0.0)

    def _bound(self) -> Value:
        """Return a depth below the largest logit beyond which weights are 0."""
        return self.heat.temperature * self.own.gone

    # ---- the row ---------------------------------------------------------------------------------

    def _values(self) -> None:
        code, real, frame = self.code, self.real, self.frame
        self._move("student", self.source)
        first = self.whole * real.lanes
        code.store(self.room, code.constant(real.vector, -float("inf")))
        with code.loop(frame["classes"], first) as k:
            code.store(self.room, code.load(real.scalar, self.source, k), k - first)
        with code.loop(self.count, step=BLOCK) as begin:
            self._block(begin)
        top, rest, mean, scale = self._whole_row()
        log_sum = log1p(rest)
        code.store(frame["values"], log_sum + mean, self.row * 2 + 1)
        label = code.variable(code.whole(-1))
        with code.when(frame["labels"] != 0):
            label.set(code.load(I64, frame["labels"], self.row))
            own, inside = self._label(label.get())
            chosen = (top - own) / self.heat_64.temperature + log_sum
            chosen = select(inside, chosen, float("nan"))
            code.store(frame["values"], chosen, self.row * 2)
        if self.gradients:
            self._gradient(top, rest, mean, scale, label.get())

    def _label(self, label: Value) -> tuple[Value, Value]:
        """Return the logit of a label, and whether it is a class."""
        inside = (label >= 0) & (label < self.frame["classes"])
        found = self.code.load(self.real.scalar, self.source, select(inside, label, 0))
        return found.to(DOUBLE), inside

    def _block(self, begin: Value) -> None:
        """Write the record of a block, and its weights."""
        code, real = self.code, self.real
        end = at_most(begin + BLOCK, self.count)
        highest = code.variable(code.constant(real.vector, -float("inf")))
        with code.loop(end, begin) as k:
            each, before = self._logits(k), highest.get()
            highest.set(select(each > before, each, before))
        top = largest(highest.get()).to(DOUBLE)
        origin, exponent = self._origin(top)
        there = top > -float("inf")
        least = select(there, (top - origin) - self._bound(), 0.0)
        start, lowest, peak, bound = map(self._vector, (origin, least, top, self._bound()))
        from_peak = self._vector(select(there, top, 0.0))
        shift = shift_of(exponent.to(real.scalar)).spread(real.lanes)
        heat = Heat(*map(self._vector, self.heat))

        def body(k: Value) -> list[Value]:
            s = self._logits(k)
            weight = power(s - start, lowest, shift, heat)
            if self.gradients:
                code.store(self._weights(k), weight)
            is_top = s == peak
            below = select(is_top, 0.0, weight)
            depth = at_most(from_peak - s, bound) * heat.inverse
            return [select(is_top, weight.of(1.0), 0.0), *split_in_halves([below, below * depth])]

        count = 3 if real.single else 5
        ties, *found = block_sums(code, real, (begin, end), STRIP, body, count)
        if not real.single:
            found = [found[0] + found[1], found[2] + found[3]]
        for index, value in enumerate((top, *found, ties)):
            code.store(self._record(begin), value, index)

    def _whole_row(self) -> tuple[Value, Value, Value, Value]:
        """Return the largest logit, r, the mean depth, and 1/Σ of weights at the row's scale."""
        code, heat = self.code, self.heat_64
        highest, taken = code.variable(code.real(-float("inf"))), code.variable(code.real(0.0))
        with code.loop(self.count, step=BLOCK) as begin:
            own, before = code.load(DOUBLE, self._record(begin)), highest.get()
            highest.set(select(own > before, own, before))
        top = highest.get()
        origin, exponent = self._origin(top)
        rest, depths = Total(code), Total(code)
        with code.loop(self.count, step=BLOCK) as begin:
            record = self._record(begin)
            own, below, moment, ties = (code.load(DOUBLE, record, index) for index in range(4))
            own_origin, own_exponent = self._origin(own)
            away, powers = own_origin - origin, exponent - own_exponent
            gone = (own == -float("inf")) | (away * heat.per - powers < -1000.0)
            away, powers = (select(gone, 0.0, each) for each in (away, powers))
            # A power of 2 where both have one origin.
            scale = power(away, code.real(-float("inf")), shift_of(powers), heat)
            scale = select(gone, 0.0, scale * 2.0 ** -format_of(scale).lift)
            code.store(record, scale, 4)
            first = select((own == top) & (taken.get() == 0.0), code.real(1.0), 0.0)
            taken.set(taken.get() + first)
            below, moment = (each * 2.0**-self.own.lift for each in (below, moment))
            peaks = self._weight(own, own) * (ties - first)
            # A lost block is beyond numbers, but NaN in it counts.
            share = scale * (below + peaks)
            rest.add(share)
            depth = select(gone, 0.0, top - own) / heat.temperature
            depths.add(scale * moment + share * depth)
        peak = self._weight(top, top)
        found = rest.get() / peak
        scale = 1.0 / (peak * (found + 1.0))
        return top, found, depths.get() * scale, scale

    # ---- the gradient ----------------------------------------------------------------------------

    def _gradient(self, top: Value, rest: Value, mean: Value, scale: Value, label: Value) -> None:
        code, frame = self.code, self.frame
        temperature = self.heat_64.temperature
        of_label, of_entropy = (
            code.load(DOUBLE, frame["factors"], self.row * 2 + index) / temperature
            for index in range(2)
        )
        with code.either((of_label != 0.0) | (of_entropy != 0.0)) as (then, otherwise):
            with then:
                anchor = (top - temperature * mean).to(self.real.scalar)
                lean = code.variable(code.real(0.0))
                with code.when(of_entropy != 0.0):
                    lean.set(self._lean(anchor, scale))
                self._slopes(anchor, scale, lean.get(), (of_label, of_entropy))
                own, inside = self._label(label)
                with code.when(inside):
                    p = self._weight(own, top) * scale
                    lack = select(own == top, -(rest / (rest + 1.0)), p - 1.0)
                    step = select(p > 0.0, (own - anchor.to(DOUBLE)) / temperature, 0.0)
                    slope = of_label * lack + of_entropy * (p * (lean.get() - step))
                    code.store(self.target, slope.to(self.real.scalar), label)
            with otherwise:
                self._zeros()

    def _shares(self, begin: Value, anchor: Value, scale: Value) -> tuple[Value, ...]:
        """Return the vectors of a block that `_share` takes."""
        own = self.code.load(DOUBLE, self._record(begin), 4) * scale
        factor = self._vector(own)
        inverse, bound = map(self._vector, (self.heat.inverse, self._bound()))
        return factor, anchor.spread(self.real.lanes), inverse, bound

    def _share(self, k: Value, shares: tuple[Value, ...]) -> tuple[Value, Value]:
        """Return p and (s − anchor)/T of a vector of classes."""
        factor, anchor, inverse, bound = shares
        weight = self.code.load(self.real.vector, self._weights(k))
        p = weight * 2.0**-self.own.lift * factor
        return p, at_least(self._logits(k) - anchor, -bound) * inverse

    def _lean(self, anchor: Value, scale: Value) -> Value:
        """Return Σ p (s − anchor)/T."""
        total = Total(self.code)
        with self.code.loop(self.count, step=BLOCK) as begin:
            end = at_most(begin + BLOCK, self.count)
            shares = self._shares(begin, anchor, scale)

            def body(k: Value, shares: tuple[Value, ...] = shares) -> list[Value]:
                p, step = self._share(k, shares)
                return [p * step]

            total.add(*block_sums(self.code, self.real, (begin, end), STRIP, body, 1))
        return total.get()

    def _slopes(
        self, anchor: Value, scale: Value, lean: Value, factors: tuple[Value, Value]
    ) -> None:
        """Write the gradient of all classes but the label."""
        code, real = self.code, self.real
        of_label, of_entropy, middle = map(self._vector, (*factors, lean))
        with code.loop(self.count, step=BLOCK) as begin:
            shares = self._shares(begin, anchor, scale)
            with code.loop(at_most(begin + BLOCK, self.count), begin) as k:
                p, step = self._share(k, shares)
                code.store(self._weights(k), p * ((middle - step) * of_entropy + of_label))
        first = self.whole * real.lanes
        with code.loop(self.frame["classes"], first) as k:
            value = code.load(real.scalar, self.room + 128, k - first)
            code.store(self.target, value, k)

    def _zeros(self) -> None:
        with self.code.loop(self.frame["classes"]) as k:
            self.code.store(self.target, self.code.constant(self.real.scalar, 0.0), k)
