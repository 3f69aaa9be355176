"""Kernels of y·(log y − x) and its derivatives, one pass over the data.

The formulas are those of `kldiv.formulas.pointwise`, in the buffers' dtype; sums of a few hundred
elements are collected in float64, together with the rounding errors of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kldiv.kernels.cpu.code import AHEAD, DOUBLE, I8, Code, at_least, at_most, select
from kldiv.kernels.cpu.elementary import exp, format_of, log, log_normal
from kldiv.kernels.cpu.runs import PAD, Run
from kldiv.kernels.cpu.sums import Total, block_sums

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv.kernels.cpu.code import Real, Value

    Load = Callable[[Value], tuple[Value, Value]]
    """Gives a vector of x, and of y."""

UNIT: Final = 1 << 18
"""Elements of a unit of work, each of which has its own sum."""

_BLOCK: Final = 2048
_STRIP: Final = 16
"""Vectors whose sum is taken in the elements' dtype."""

INPUTS: Final = ("x", "y", "keep", "cotangent")
OUTPUTS: Final = ("elements", "gradient_x", "gradient_y")
ARRAYS: Final = (*INPUTS, *OUTPUTS)

FRAME: Final = (
    "size",
    "reduce",  # whether the sum of all elements is wanted
    "weight",  # address of the gradient in each element's divergence
    "table",
    "totals",
    *ARRAYS,  # addresses; 0 where an array is copied, or not there
    *(f"move_{name}" for name in ARRAYS),  # its copying function; 0 where nothing is copied
)

_PADS: Final = 3 * PAD


def scratch_size(real: Real) -> int:
    """Return how many bytes of room a thread needs."""
    return _PADS + len(ARRAYS) * _BLOCK * real.size


def _kl(x: Value, y: Value) -> Value:
    return select(y == 0.0, select(x != x, x, y), y * (log(y) - x))  # noqa: PLR0124


def _kl_log_target(x: Value, y: Value, order: float) -> Value:
    weight, gap = exp(y), (y - x) + order
    infinite = abs(gap) == float("inf")
    value = select(infinite, gap, weight * gap)
    edge = select(x != x, x, weight)  # noqa: PLR0124
    return select(y == -float("inf"), edge, value)


class Elements:
    """The writer of a kernel: a dtype, a kind of target, with other results than a sum or not."""

    def __init__(self, code: Code, real: Real, *, log_target: bool, outputs: bool) -> None:
        self.code, self.real, self.log_target = code, real, log_target
        frame, scratch, first, last = code.arguments
        self.frame = code.frame(frame, FRAME)
        self.pads, self.buffers = scratch, scratch + _PADS
        careful = code.variable(code.whole(0))
        with code.loop(last, first) as unit:
            total = Total(code)
            end = at_most((unit + 1) * UNIT, self.frame["size"])
            with code.loop(end, unit * UNIT, _BLOCK) as start:
                self._block(start, at_most(end - start, _BLOCK), total, careful, outputs=outputs)
            code.store(self.frame["totals"], total.get(), unit)

    def _block(self, start: Value, n: Value, total: Total, careful: Any, *, outputs: bool) -> None:
        code, frame = self.code, self.frame
        at = {name: self._place(name, start) for name in ARRAYS}
        for index, name in enumerate(INPUTS):
            with code.when(frame[f"move_{name}"] != 0):
                code.call(frame[f"move_{name}"], frame["table"], index + 1, start, n, at[name])
        with code.when(frame["move_keep"] != 0):
            self._drop(at, n)
        runs: list[Run] = []
        for name, nothing in (("x", 0.0), ("y", -float("inf") if self.log_target else 1.0)):
            there = select(frame["move_keep"] != 0, self._buffer(name), at[name])
            runs.append(self._run(there, n, len(runs)))
            runs[-1].fill(nothing)

        def load(k: Value) -> tuple[Value, Value]:
            for run in runs:
                run.fetch(k + AHEAD)
            x, y = (run.load(k) for run in runs)
            return x, y

        with code.when(frame["reduce"] != 0):
            self._add(load, runs[0].count, total, careful)
        for name in OUTPUTS if outputs else ():
            with code.when((frame[name] != 0) | (frame[f"move_{name}"] != 0)):
                self._write(name, load, at, start, n)

    def _run(self, at: Value, n: Value, place: int) -> Run:
        return Run(self.code, self.real, at, n, self.pads + place * PAD)

    def _buffer(self, name: str) -> Value:
        return self.buffers + ARRAYS.index(name) * _BLOCK * self.real.size

    def _place(self, name: str, start: Value) -> Value:
        base = self.frame[name]
        return select(base != 0, base + start * self.real.size, self._buffer(name))

    def _drop(self, at: dict[str, Value], n: Value) -> None:
        """Copy arrays to buffers, with elements that count for nothing where they are dropped."""
        code, scalar = self.code, self.real.scalar
        for name, nothing in (("x", 0.0), ("y", -float("inf") if self.log_target else 0.0)):
            with code.loop(n) as k:
                kept = code.load(I8, at["keep"], k) != 0
                value = select(kept, code.load(scalar, at[name], k), nothing)
                code.store(self._buffer(name), value, k)

    def _add(self, load: Load, vectors: Value, total: Total, careful: Any) -> None:
        """Add the elements of a block."""
        code = self.code

        def sums(body: Callable[[Value], list[Value]], count: int) -> list[Value]:
            return block_sums(code, self.real, (code.whole(0), vectors), _STRIP, body, count)

        if self.log_target:
            total.add(*sums(lambda k: [_kl_log_target(*load(k), 0.0)], 1))
            return

        # The bits of positive numbers are in the order of the numbers; NaN's are beyond both ends.
        one = code.constant(self.real.vector, 1.0)
        least, most = (one.of(each).bits() for each in (format_of(one).tiny, float("inf")))
        lowest, highest = code.variable(most), code.variable(least)

        def normal(k: Value) -> list[Value]:
            x, y = load(k)
            lowest.set(at_most(y.bits(), lowest.get()))
            highest.set(at_least(y.bits(), highest.get()))
            return [y * (log_normal(y) - x)]

        # Where there is one zero there are more.
        with code.when(careful.get() == 0):
            (part,) = sums(normal, 1)
            above = lowest.get().folded(at_most) >= least.element(0)
            below = highest.get().folded(at_least) < most.element(0)
            with code.either(above & below) as (then, otherwise):
                with then:
                    total.add(part)
                with otherwise:
                    careful.set(code.whole(2))
        with code.when(careful.get() != 0):
            total.add(*sums(lambda k: [_kl(*load(k))], 1))

    def _write(self, name: str, load: Load, at: dict[str, Value], start: Value, n: Value) -> None:
        """Write the elements, or a gradient."""
        code, real, frame = self.code, self.real, self.frame
        out, written = at[name], self._run(at[name], n, 2)
        weight = code.load(DOUBLE, frame["weight"]).to(real.scalar).spread(real.lanes)
        with code.loop(written.count) as k:
            written.fetch(k + AHEAD, write=True)
            written.store(k, self._result(name, *load(k), weight))
        written.finish()
        if name != "elements":
            times = (frame["cotangent"] != 0) | (frame["move_cotangent"] != 0)
            with code.when(times), code.loop(n) as k:
                by = code.load(real.scalar, at["cotangent"], k)
                code.store(out, code.load(real.scalar, out, k) * by, k)
        move = frame[f"move_{name}"]
        with code.when(move != 0):
            code.call(move, frame["table"], ARRAYS.index(name) + 1, start, n, out)

    def _result(self, name: str, x: Value, y: Value, weight: Value) -> Value:
        if name == "elements":
            return _kl_log_target(x, y, 0.0) if self.log_target else _kl(x, y)
        if name == "gradient_x":
            return -weight * (exp(y) if self.log_target else y)
        if self.log_target:
            return weight * _kl_log_target(x, y, 1.0)
        return weight * select(y == 0.0, y, (log(y) + 1.0) - x)
