"""Kernels of measures of all pairs of rows, and of their gradients: each term as it stands.

The formulas are those of `kldiv.formulas.measures`, but for the logarithm of a quotient: where a/b
is not near 1 it is that of a/(b·2ᵏ), which is, and k log 2. Numbers are finite and ≥ 0, and where
there are logarithms none but 0 is subnormal: the caller sees to that.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from kldiv.kernels.cpu.code import DOUBLE, Code, Value, at_most, select
from kldiv.kernels.cpu.elementary import artanh_rest, format_of
from kldiv.kernels.cpu.sums import Total, block_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kldiv.kernels.cpu.code import Real

    _Function = Callable[[Value, Value, Sequence[Value]], Value]

FRAME: Final = (
    "classes",  # a whole number of vectors
    "others",  # how many rows the other array has
    "symmetric",  # whether only pairs on and above the diagonal are wanted
    *("own", "other", "numbers"),  # addresses of both arrays, the first unless it is a gradient
    "weights",  # of a gradient: a number for each pair
    "found",  # float64 numbers of pairs, or the gradient
)

TOGETHER: Final = 8
"""Rows of the first array that meet a row of the second while it is in the cache."""

_SEGMENT: Final = 2048
_STRIP: Final = 8
"""Vectors whose sum is taken in the elements' dtype."""

_GROUP: Final = 4
"""Vectors of a row whose gradients stay in registers while the others pass by."""

_RUN: Final = 32
"""Other rows whose slopes are added without the sum's rounding errors."""

_NEAR: Final = 0.95
"""Difference of approximate binary logarithms up to which a/b lies between ½ and 2."""


# --- terms ----------------------------------------------------------------------------------------


class _Quotient(NamedTuple):
    """The quotient of numbers above 0, a/b, as a/(b·2ᵏ) near 1 and k."""

    logarithm: Value
    near: Value
    """Whether k is 0."""
    z: Value
    apart: Value
    """a − b·2ᵏ."""
    rest: Value
    """2 artanh(z) − 2z."""


def _quotient(a: Value, b: Value, change: Value) -> _Quotient:
    """Return a/b, given a − b too."""
    own = format_of(a)
    # The bits of a float are its binary logarithm, to a tenth.
    bits, most = a.bits() - b.bits(), int(_NEAR * 2**own.mantissa)
    near = (bits < most) & (bits > -most)
    k = select(near, 0, (bits + (1 << (own.mantissa - 1))) >> own.mantissa)
    scaled = (b.bits() + (k << own.mantissa)).bits()
    apart = select(near, change, a - scaled)
    z, k = apart / (a + scaled), k.to(a.scalar)
    rest = artanh_rest(z)
    return _Quotient(k * own.ln2 + (z + z + (rest + k * own.ln2_low)), near, z, apart, rest)


def _relative(a: Value, b: Value, change: Value) -> Value:
    """Return a·log(a/b) + b − a of numbers above 0; ``change`` is a − b."""
    found = _quotient(a, b, change)
    return select(found.near, found.z * found.apart + a * found.rest, a * found.logarithm - change)


def _or_one(x: Value) -> Value:
    return select(x > 0.0, x, 1.0)


def _kl(p: Value, q: Value, numbers: Sequence[Value]) -> Value:
    a, b = _or_one(p), _or_one(q)
    term = _relative(a, b, a - b)
    return select(p == 0.0, q, select(q == 0.0, float("inf"), term))


def _jeffreys(p: Value, q: Value, numbers: Sequence[Value]) -> Value:
    a, b = _or_one(p), _or_one(q)
    term = (a - b) * _quotient(a, b, a - b).logarithm
    one = select(p == q, p.of(0.0), float("inf"))
    return select((p == 0.0) | (q == 0.0), one, term)


def _skew(p: Value, q: Value, numbers: Sequence[Value]) -> Value:
    own, rest = numbers
    m = own * p + rest * q
    some = p > 0.0
    term = _relative(_or_one(p), select(some, m, 1.0), select(some, rest * (p - q), 0.0))
    return select(some, term, m)


def _jensen_shannon(p: Value, q: Value, numbers: Sequence[Value]) -> Value:
    own, rest = numbers
    return own * _skew(p, q, numbers) + rest * _skew(q, p, (rest, own))


def _tv(p: Value, q: Value, numbers: Sequence[Value]) -> Value:
    return abs(p - q) * 0.5


def _hellinger(p: Value, q: Value, numbers: Sequence[Value]) -> Value:
    root_p, root_q = numbers
    root = (p - q) / _or_one(root_p + root_q)
    return root * root * 0.5


def _chi2(p: Value, q: Value, numbers: Sequence[Value]) -> Value:
    apart = p - q
    edge = select(p == 0.0, p, float("inf"))
    return select(q == 0.0, edge, apart * (apart / _or_one(q)))


TERMS: Final[dict[str, _Function]] = {
    "kl_divergence": _kl,
    "js_divergence": _jensen_shannon,
    "skew_divergence": _skew,
    "jeffreys_divergence": _jeffreys,
    "tv_divergence": _tv,
    "hellinger_divergence": _hellinger,
    "chi2_divergence": _chi2,
}
"""The term of a class of each measure that has a kernel."""

BY_ROOTS: Final = {"hellinger_divergence"}
"""The measures whose numbers are the square roots of probabilities, which lie behind each row: to
take them for each pair would be most of the time."""

BY_BITS: Final = {"kl_divergence", "js_divergence", "skew_divergence", "jeffreys_divergence"}
"""The measures with logarithms, for which no number may be subnormal."""


# --- slopes ---------------------------------------------------------------------------------------
# Derivatives of terms in a probability of the first array, or of the second: ``own``. Of the
# numbers the first is ``own``'s.


def _kl_in_p(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    a, b = _or_one(own), _or_one(other)
    slope = select(other == 0.0, float("inf"), _quotient(a, b, a - b).logarithm)
    return select(own == 0.0, 0.0, slope)


def _kl_in_q(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    slope = select(own == 0.0, -float("inf"), (own - other) / _or_one(own))
    return select(other == 0.0, 1.0, slope)


def _jeffreys_slope(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    a, b = _or_one(own), _or_one(other)
    slope = _quotient(a, b, a - b).logarithm + (a - b) / a
    edge = select(own == 0.0, -float("inf"), select(other == 0.0, float("inf"), slope))
    return select(own == other, 0.0, edge)


def _skew_in_p(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    logarithm, above = _by_mixture(own, other, numbers)
    return select(own > 0.0, logarithm - numbers[0] * above, 0.0)


def _skew_in_q(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    mine, rest = numbers
    m = select(other > 0.0, rest * other + mine * own, 1.0)
    return mine * select(other > 0.0, mine * (own - other) / m, 1.0)


def _jensen_shannon_slope(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    return select(own > 0.0, numbers[0] * _by_mixture(own, other, numbers)[0], 0.0)


def _by_mixture(own: Value, other: Value, numbers: Sequence[Value]) -> tuple[Value, Value]:
    """Return log(own/m), m being the mixture of both, and (own − m)/m."""
    mine, rest = numbers
    some, above = own > 0.0, rest * (own - other)
    m = select(some, mine * own + rest * other, 1.0)
    return _quotient(_or_one(own), m, select(some, above, 0.0)).logarithm, above / m


def _tv_slope(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    return select(own > other, 0.5, select(own < other, -0.5, own.of(0.0)))


def _hellinger_slope(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    root, root_other = numbers
    safe = _or_one(root)
    return select(own > 0.0, (own - other) / (safe + root_other) * 0.5 / safe, 0.0)


def _chi2_in_p(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    edge = select(own == 0.0, own.of(-2.0), float("inf"))
    return select(other == 0.0, edge, 2.0 * ((own - other) / _or_one(other)))


def _chi2_in_q(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    apart = (other - own) / _or_one(own)
    slope = select(own == 0.0, -float("inf"), -(apart * (apart + 2.0)))
    return select(other == 0.0, 1.0, slope)


SLOPES: Final[dict[str, tuple[_Function, ...]]] = {
    "kl_divergence": (_kl_in_p, _kl_in_q),
    "js_divergence": (_jensen_shannon_slope,),
    "skew_divergence": (_skew_in_p, _skew_in_q),
    "jeffreys_divergence": (_jeffreys_slope,),
    "tv_divergence": (_tv_slope,),
    "hellinger_divergence": (_hellinger_slope,),
    "chi2_divergence": (_chi2_in_p, _chi2_in_q),
}
"""The slope in each array; one function where the other's is the same with sides exchanged."""


# --- the kernels ----------------------------------------------------------------------------------


class _Call:
    """The arguments of a call: a frame, and the first and last row of the own array."""

    def __init__(self, code: Code, real: Real, measure: str) -> None:
        self.code, self.real, self.rooted = code, real, measure in BY_ROOTS
        frame_at, _, self.begin, self.end = code.arguments
        self.frame = code.frame(frame_at, FRAME)
        numbers = (code.load(DOUBLE, self.frame["numbers"], place) for place in range(2))
        self.numbers = [number.to(real.scalar).spread(real.lanes) for number in numbers]
        self.classes, self.others = self.frame["classes"], self.frame["others"]

    def row(self, name: str, index: Value) -> Value:
        """Return the address of a row of an array, which its square roots may follow."""
        return self.frame[name] + index * (self.classes * self.real.size * (1 + self.rooted))

    def load(self, row: Value, at: Value) -> list[Value]:
        """Return a vector of a row, and its square roots where a measure takes these."""
        places = [at, self.classes + at] if self.rooted else [at]
        return [self.code.load(self.real.vector, row, place) for place in places]

    def of(self, function: _Function, own: Sequence[Value], other: Sequence[Value]) -> Value:
        """Return a term, or a slope, of two loaded vectors."""
        numbers = [own[1], other[1]] if self.rooted else self.numbers
        return function(own[0], other[0], numbers)

    @contextmanager
    def together(self) -> Iterator[tuple[Value, Value]]:
        """Repeat for rows that meet the others together: the first, and that behind the last."""
        with self.code.loop(self.end, self.begin, TOGETHER) as start:
            yield start, at_most(start + TOGETHER, self.end)


def write(code: Code, *, real: Real, measure: str) -> None:
    """Write a measure's kernel."""
    call = _Call(code, real, measure)
    with call.together() as (start, stop):
        from_here = select(call.frame["symmetric"] != 0, start, 0)
        with code.loop(call.others, from_here) as column, code.loop(stop, start) as row:
            rows, total = (call.row("own", row), call.row("other", column)), Total(code)

            def body(k: Value, rows: tuple[Value, Value] = rows) -> list[Value]:
                return [
                    call.of(TERMS[measure], *(call.load(each, k * real.lanes) for each in rows))
                ]

            with code.loop(call.classes, step=_SEGMENT) as segment:
                first, last = (
                    at_most(segment + each, call.classes) // real.lanes for each in (0, _SEGMENT)
                )
                total.add(*block_sums(code, real, (first, last), _STRIP, body, 1))
            code.store(call.frame["found"], total.get(), row * call.others + column)


def write_slope(code: Code, *, real: Real, measure: str, index: int) -> None:
    """Write the kernel of a gradient in one array's rows."""
    call = _Call(code, real, measure)
    slope, zero = SLOPES[measure][index], code.constant(real.vector, 0.0)
    frame, classes, others = call.frame, call.classes, call.others

    def group(row: Value, places: Sequence[Value]) -> None:
        """Add up the slopes of some vectors of a row."""
        here = call.row("own", row)
        own = [call.load(here, at) for at in places]
        totals = [Total(code, zero) for _ in places]
        with code.loop(others, step=_RUN) as start:
            sums = [code.variable(zero) for _ in places]
            with code.loop(at_most(start + _RUN, others), start) as column:
                weight = code.load(real.scalar, frame["weights"], row * others + column)
                # The pairs that count for nothing may have infinite slopes.
                with code.when(weight != 0.0):
                    there = call.row("other", column)
                    for each, at, mine in zip(sums, places, own, strict=True):
                        found = call.of(slope, mine, call.load(there, at))
                        each.set(each.get() + weight.spread(real.lanes) * found)
            for total, each in zip(totals, sums, strict=True):
                total.add(each.get())
        for total, at in zip(totals, places, strict=True):
            code.store(frame["found"] + row * classes * real.size, total.get(), at)

    whole = classes // (real.lanes * _GROUP) * (real.lanes * _GROUP)
    with call.together() as (start, stop):
        with code.loop(whole, step=real.lanes * _GROUP) as at, code.loop(stop, start) as row:
            group(row, [at + place * real.lanes for place in range(_GROUP)])
        with code.loop(classes, whole, real.lanes) as at, code.loop(stop, start) as row:
            group(row, [at])
