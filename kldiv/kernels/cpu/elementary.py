"""Exponential, logarithm and the small series of a divergence, of vectors in float32 and float64.

Exponential and logarithm are within 1 ulp over their whole domain, subnormal numbers, zeros,
infinities and NaN included; the tests measure it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from kldiv.formulas.numbers import (
    ARTANH,
    ARTANH_32,
    EXP_32,
    EXP_64,
    LN2,
    LN2_HIGH_32,
    LN2_HIGH_64,
    LN2_LOW_32,
    LN2_LOW_64,
    LOG2_E,
    LOG_32,
    LOG_64,
    PHI_NEAR,
    PHI_NEAR_32,
    ROOT_32,
    ROOT_64,
)
from kldiv.kernels.cpu.code import FLOAT32, FLOAT64, SINGLE, at_least, at_most, polynomial, select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv.kernels.cpu.code import Real, Value

NEAR: Final = 1.0
"""|x| below which φ(x) is a series."""


class Format(NamedTuple):
    """How a dtype's numbers are made, and the constants that go with it."""

    real: Real
    mantissa: int
    bias: int
    round: float
    """Added to a float this puts its integer part into the lowest bits."""
    tiny: float
    """The smallest normal number."""
    exp: Sequence[float]
    phi: Sequence[float]
    artanh: Sequence[float]
    gone: float
    """−log of a weight that counts as 0."""
    lift: int
    """The exponent of 2 of the largest weight: so the smallest that counts is a normal number."""
    deep: float
    """The largest logit, over T, from which no origin is subtracted: its multiples of log 2 stay
    exact."""


_FORMATS: Final = {
    True: Format(
        FLOAT32,
        23,
        127,
        1.5 * 2.0**23,
        2.0**-126,
        EXP_32,
        PHI_NEAR_32,
        ARTANH_32,
        110.0,
        40,
        200.0,
    ),
    False: Format(
        FLOAT64,
        52,
        1023,
        1.5 * 2.0**52,
        2.0**-1022,
        EXP_64,
        PHI_NEAR,
        ARTANH,
        760.0,
        100,
        1500.0,
    ),
}


def format_of(x: Value) -> Format:
    """Return the format of a value's numbers."""
    return _FORMATS[x.scalar == SINGLE]


def is_normal(x: Value) -> Value:
    """Return whether x is a positive normal number."""
    return (x >= format_of(x).tiny) & (x < float("inf"))


def split_log(x: Value) -> tuple[Value, Value]:
    """Return k and f of x = 2ᵏ(1 + f) with 1 + f between √½ and √2, of positive normal numbers."""
    own = format_of(x)
    root = ROOT_32 if own.real is FLOAT32 else ROOT_64
    i = x.bits() - root
    f = ((i & ((1 << own.mantissa) - 1)) + root).bits() - 1.0
    return (i >> own.mantissa).to(x.scalar), f


def joined_log(k: Value, f: Value, gap: Value) -> Value:
    """Return k log 2 + log(1 + f), given f − log(1 + f)."""
    single = format_of(f).real is FLOAT32
    ln2, ln2_low = (LN2_HIGH_32, LN2_LOW_32) if single else (LN2_HIGH_64, LN2_LOW_64)
    return k.fma(ln2, f - (gap - k * ln2_low))


def log_normal(x: Value) -> Value:
    """Return log x of positive normal numbers; for others the result is meaningless."""
    k, f = split_log(x)
    if format_of(x).real is FLOAT32:
        square = f * f
        low = k.fma(LN2_LOW_32, f * square * polynomial(f, LOG_32))
        low = square.fma(-0.5, low)
        return k.fma(LN2_HIGH_32, f + low)
    z = f / (f + 2.0)
    half = f * 0.5 * f
    rest = z * z * polynomial(z * z, LOG_64)
    # log(1 + f) = f − (f²/2 − z·(f²/2 + rest))
    return k.fma(LN2_HIGH_64, f - (half - k.fma(LN2_LOW_64, z * (half + rest))))


def log(x: Value) -> Value:
    """Return log x: −∞ at 0, NaN below."""
    own = format_of(x)
    # The whole shift is added to a logarithm below −80: that costs no accuracy.
    small = x < own.tiny
    value = log_normal(select(small, x * 2.0**own.mantissa, x))
    value = select(small, value - own.mantissa * LN2, value)
    value = select(x < float("inf"), value, x)
    value = select(x == 0.0, -float("inf"), value)
    return select(x < 0.0, float("nan"), value)


def exp(x: Value) -> Value:
    """Return eˣ."""
    own = format_of(x)
    single = own.real is FLOAT32
    ln2, ln2_low = (LN2_HIGH_32, LN2_LOW_32) if single else (LN2_HIGH_64, LN2_LOW_64)
    least, most = (-104.0, 89.0) if single else (-746.0, 710.0)
    x = at_most(at_least(x, least), most)
    shifted = x.fma(LOG2_E, own.round)
    k = shifted - own.round
    r = k.fma(-ln2_low, k.fma(-ln2, x))
    value = (r * r).fma(polynomial(r, own.exp), r) + 1.0
    whole = shifted.bits() - x.of(own.round).bits()
    # In two steps: the result may be a subnormal number, or 2ᵏ infinite.
    half = whole >> 1
    first, second = (((part + own.bias) << own.mantissa).bits() for part in (half, whole - half))
    return value * first * second


class Heat(NamedTuple):
    """The constants of a temperature T, by which differences of logits are divided.

    T log 2 is ``ln2`` + ``ln2_low``, the first of so few bits that its products with whole numbers
    are exact: then nothing is rounded that e to its power would magnify.
    """

    temperature: Value
    inverse: Value
    per: Value
    """1/(T log 2)."""
    ln2: Value
    ln2_low: Value


def power(x: Value, least: Value, shift: Value, heat: Heat) -> Value:
    """Return e^(x/T)/2ᵐ, lifted; 0 where x is below ``least``; ``shift`` is `shift_of` of m."""
    own = format_of(x)
    under = x < least
    x = select(under, least, x)
    shifted = x.fma(heat.per, shift)
    k = shifted - shift
    r = k.fma(-heat.ln2_low, k.fma(-heat.ln2, x)) * heat.inverse
    value = (r * r).fma(polynomial(r, own.exp), r) + 1.0
    # By a product, which keeps NaN.
    return select(under, 0.0, value * (shifted.bits() << own.mantissa).bits())


def shift_of(exponent: Value) -> Value:
    """Return the shift by which `power` makes 2ᵐ: rounding, and the bias of the result."""
    own = format_of(exponent)
    return (own.round + own.bias + own.lift) - exponent


def phi_near(x: Value) -> Value:
    """Return φ(x) = e⁻ˣ − 1 + x for |x| ≤ `NEAR`; less φ(x), x is 1 − e⁻ˣ."""
    return x * x * phi_ratio(x)


def phi_ratio(x: Value) -> Value:
    """Return φ(x)/x² for |x| ≤ `NEAR`."""
    return polynomial(x, format_of(x).phi)


def log1p_near(y: Value) -> tuple[Value, Value]:
    """Return log(1 + y) and y − log(1 + y) for −½ < y < 1."""
    z = y / (y + 2.0)
    square = z * z
    rest = z * square * polynomial(square, format_of(y).artanh)
    return z + z + rest, y * z - rest


# --- double words ---------------------------------------------------------------------------------


def log1p(y: Value) -> Value:
    """Return log(1 + y)."""
    close = (y > -0.5) & (y < 1.0)
    return select(close, log1p_near(select(close, y, 0.0))[0], log(y + 1.0))


def two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """Return a + b as a double word."""
    high = a + b
    back = high - a
    return high, (a - (high - back)) + (b - back)


def two_difference(a: Value, b: Value) -> tuple[Value, Value]:
    """Return a − b as a double word."""
    high = a - b
    back = high - a
    return high, (a - (high - back)) - (b + back)


def eighth_difference(a: Value, b: Value) -> tuple[Value, Value]:
    """Return (a − b)/8 of finite numbers as a double word; it does not overflow."""
    less = b * -0.125
    high = a.fma(0.125, less)
    back = a.fma(-0.125, high)
    return high, a.fma(0.125, back - high) + (less - back)


def added(a: tuple[Value, Value], b: Value) -> tuple[Value, Value]:
    """Return a double word plus a number."""
    high, low = two_sum(a[0], b)
    low = low + a[1]
    total = high + low
    return total, low - (total - high)


def difference(a: tuple[Value, Value], b: tuple[Value, Value]) -> Value:
    """Return a − b of double words, with a small relative error."""
    high, low = two_difference(a[1], b[1])
    return ((a[0] - b[0]) + high) + low
