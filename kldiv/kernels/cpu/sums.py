"""Sums over vectors: a few in their own dtype, and all that is made of these in float64."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Final

from kldiv.kernels.cpu.code import DOUBLE, at_most, select
from kldiv.kernels.cpu.elementary import format_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv.kernels.cpu.code import Code, Real, Value


STRIP: Final = 8
"""Vectors of a row's block whose sum is taken in the elements' dtype."""


class Total:
    """A sum, in float64 unless said, with the sum of its rounding errors."""

    def __init__(self, code: Code, zero: Value | None = None) -> None:
        zero = code.real(0.0) if zero is None else zero
        self.high, self.low = (code.variable(zero) for _ in range(2))

    def add(self, term: Value) -> None:
        """Add a number."""
        before = self.high.get()
        after = before + term
        back = after - before
        self.low.set(self.low.get() + ((before - (after - back)) + (term - back)))
        self.high.set(after)

    def get(self) -> Value:
        """Return the sum."""
        high, low = self.high.get(), self.low.get()
        return select(abs(high) < float("inf"), high + low, high)


def block_sums(
    code: Code,
    real: Real,
    ends: tuple[Value, Value],
    strip: int,
    body: Callable[[Value], Sequence[Value]],
    count: int,
) -> list[Value]:
    """Return the sums of the values that ``body`` returns for each vector of a block.

    So many vectors as a strip has are added in their own dtype.
    """
    begin, end = ends
    zero = code.constant(real.vector, 0.0)
    wide = [code.variable(zero.to(DOUBLE)) for _ in range(count)]
    with code.loop(end, begin, strip) as start:
        sums = [code.variable(zero) for _ in range(count)]
        with code.loop(at_most(start + strip, end), start) as k:
            for each, term in zip(sums, body(k), strict=True):
                each.set(each.get() + term)
        for each, part in zip(wide, sums, strict=True):
            each.set(each.get() + part.get().to(DOUBLE))
    return [each.get().folded(operator.add) for each in wide]


def largest(vector: Value) -> Value:
    """Return a vector's largest number."""
    return vector.folded(lambda low, high: select(low > high, low, high))


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
    """Return the sums of weights, given those of the results of `split_in_halves`."""
    if real.single:
        return sums
    return [head + tail for head, tail in zip(sums[::2], sums[1::2], strict=True)]
