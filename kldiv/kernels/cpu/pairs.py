"""Kernels of measures of all pairs of rows, and of their gradients: each term as it stands.

The formulas are those of `kldiv.formulas.measures`, but for the logarithm of a quotient: where a/b
is not near 1 it is that of a/(b·2ᵏ), which is, and k log 2. Numbers are finite and ≥ 0, and where
there are logarithms none but 0 is subnormal: what calls the kernel sees to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from kldiv.kernels.cpu.code import DOUBLE, I64, Code, Value, at_most, select
from kldiv.kernels.cpu.elementary import artanh_rest, format_of
from kldiv.kernels.cpu.sums import Total, block_sums

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv.kernels.cpu.code import Real

FRAME: Final = (
    "classes",  # a whole number of vectors
    "others",  # how many rows the second array has
    "symmetric",  # whether only pairs on and above the diagonal are wanted
    "first",  # addresses of the arrays, and of float64 results
    "second",
    "numbers",
    "values",
)

SLOPE_FRAME: Final = (
    "classes",  # a whole number of vectors
    "others",  # how many rows the other array has
    "own",  # addresses of the arrays, of a number for each pair, and of the gradient
    "other",
    "numbers",
    "weights",
    "gradient",
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
    a = _or_one(p)
    term = _relative(a, select(p > 0.0, m, 1.0), select(p > 0.0, rest * (p - q), 0.0))
    return select(p == 0.0, m, term)


def _jensen_shannon(p: Value, q: Value, numbers: Sequence[Value]) -> Value:
    own, rest = numbers
    apart = p - q
    m = own * p + rest * q
    terms = []
    for weight, each, other in ((own, p, rest * apart), (rest, q, -(own * apart))):
        some = each > 0.0
        inside = _relative(_or_one(each), select(some, m, 1.0), select(some, other, 0.0))
        terms.append(weight * select(some, inside, m))
    return terms[0] + terms[1]


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


TERMS: Final[dict[str, Callable[[Value, Value, Sequence[Value]], Value]]] = {
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
    mine, rest = numbers
    some, above = own > 0.0, rest * (own - other)
    a, m = _or_one(own), select(some, mine * own + rest * other, 1.0)
    slope = _quotient(a, m, select(some, above, 0.0)).logarithm - mine * (above / m)
    return select(some, slope, 0.0)


def _skew_in_q(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    mine, rest = numbers
    m = select(other > 0.0, rest * other + mine * own, 1.0)
    return mine * select(other > 0.0, mine * (own - other) / m, 1.0)


def _jensen_shannon_slope(own: Value, other: Value, numbers: Sequence[Value]) -> Value:
    mine, rest = numbers
    some = own > 0.0
    m, above = mine * own + rest * other, rest * (own - other)
    quotient = _quotient(_or_one(own), select(some, m, 1.0), select(some, above, 0.0))
    return select(some, mine * quotient.logarithm, 0.0)


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


SLOPES: Final[dict[str, tuple[Callable[[Value, Value, Sequence[Value]], Value], ...]]] = {
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


def write(code: Code, *, real: Real, measure: str) -> None:
    """Write a measure's kernel; it takes a frame, and the first and last row of the first array."""
    frame_at, begin, end = code.arguments
    frame = {name: code.load(I64, frame_at, index) for index, name in enumerate(FRAME)}
    numbers = [
        code.load(DOUBLE, frame["numbers"], index).to(real.scalar).spread(real.lanes)
        for index in range(2)
    ]
    classes, others = frame["classes"], frame["others"]
    rooted = measure in BY_ROOTS
    row_size = classes * real.size * (1 + rooted)
    with code.loop(end, begin, TOGETHER) as start:
        from_here = select(frame["symmetric"] != 0, start, 0)
        stop = at_most(start + TOGETHER, end)
        with code.loop(others, from_here) as column, code.loop(stop, start) as row:
            first, second = (
                frame[name] + place * row_size
                for name, place in (("first", row), ("second", column))
            )
            total = Total(code)
            with code.loop(classes, step=_SEGMENT) as segment:
                ends = [at_most(segment + each, classes) // real.lanes for each in (0, _SEGMENT)]

                def body(k: Value, at: tuple[Value, Value] = (first, second)) -> list[Value]:
                    p, q = (code.load(real.vector, each, k * real.lanes) for each in at)
                    if not rooted:
                        return [TERMS[measure](p, q, numbers)]
                    roots = [code.load(real.vector, x, classes + k * real.lanes) for x in at]
                    return [TERMS[measure](p, q, roots)]

                total.add(*block_sums(code, real, (ends[0], ends[1]), _STRIP, body, 1))
            code.store(frame["values"], total.get(), row * others + column)


def write_slope(code: Code, *, real: Real, measure: str, index: int) -> None:
    """Write the kernel of a gradient in one array's rows; it takes the first and last of these."""
    frame_at, begin, end = code.arguments
    frame = {name: code.load(I64, frame_at, place) for place, name in enumerate(SLOPE_FRAME)}
    numbers = [
        code.load(DOUBLE, frame["numbers"], place).to(real.scalar).spread(real.lanes)
        for place in range(2)
    ]
    slope, zero = SLOPES[measure][index], code.constant(real.vector, 0.0)
    classes, others, rooted = frame["classes"], frame["others"], measure in BY_ROOTS
    row_size = classes * real.size * (1 + rooted)

    def group(row: Value, places: Sequence[Value]) -> None:
        """Add up the slopes of some vectors of a row."""
        here = frame["own"] + row * row_size
        own = [code.load(real.vector, here, at) for at in places]
        roots = [code.load(real.vector, here, classes + at) for at in places] if rooted else []
        totals = [Total(code, zero) for _ in places]
        with code.loop(others, step=_RUN) as start:
            sums = [code.variable(zero) for _ in places]
            with code.loop(at_most(start + _RUN, others), start) as column:
                weight = code.load(real.scalar, frame["weights"], row * others + column)
                # The pairs that count for nothing may have infinite slopes.
                with code.when(weight != 0.0):
                    there = frame["other"] + column * row_size
                    for place, (each, at, p) in enumerate(zip(sums, places, own, strict=True)):
                        given = numbers
                        if rooted:
                            given = [roots[place], code.load(real.vector, there, classes + at)]
                        found = slope(p, code.load(real.vector, there, at), given)
                        each.set(each.get() + weight.spread(real.lanes) * found)
            for total, each in zip(totals, sums, strict=True):
                total.add(each.get())
        for total, at in zip(totals, places, strict=True):
            code.store(frame["gradient"] + row * classes * real.size, total.get(), at)

    whole = classes // (real.lanes * _GROUP) * (real.lanes * _GROUP)
    with code.loop(end, begin, TOGETHER) as start:
        stop = at_most(start + TOGETHER, end)
        with code.loop(whole, step=real.lanes * _GROUP) as at, code.loop(stop, start) as row:
            group(row, [at + place * real.lanes for place in range(_GROUP)])
        with code.loop(classes, whole, real.lanes) as at, code.loop(stop, start) as row:
            group(row, [at])
