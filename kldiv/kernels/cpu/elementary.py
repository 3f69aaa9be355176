"""Exponential, logarithm and the small series of a divergence, of vectors in float32 and float64.

Exponential and logarithm are within 1 ulp over their whole domain, subnormal numbers, zeros,
infinities and NaN included; the tests measure it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kldiv.formulas import numbers
from kldiv.formulas.numbers import LN2, LN2_LOW, LOG2_E
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
    root: int
    """The bits of √½."""
    ln2: float
    ln2_low: float
    exp: Sequence[float]
    phi: Sequence[float]
    artanh: Sequence[float]
    tanh: Sequence[float]
    shannon: Sequence[float]
    log1p: Sequence[float]
    gone: float
    """−log of a weight that counts as 0."""
    lift: int
    """The exponent of 2 of the largest weight: so the smallest that counts is a normal number."""
    deep: float
    """The largest logit, over T, from which no origin is subtracted: its multiples of log 2 stay
    exact."""

    @property
    def round(self) -> float:
        """The number that puts the integer part of a float it is added to into the lowest bits."""
        return 1.5 * 2.0**self.mantissa

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return 2.0 ** (1 - self.bias)


def _numbers(suffix: str, *bare: str) -> dict[str, Any]:
    names = ("ROOT", "LN2_HIGH", "LN2_LOW", "EXP", "PHI_NEAR", "ARTANH", "TANH", "SHANNON", "LOG1P")
    fields = Format._fields[3:]
    return {
        field: getattr(numbers, name if name in bare else f"{name}_{suffix}")
        for field, name in zip(fields, names, strict=False)
    }


_SINGLE: Final = Format(FLOAT32, 23, 127, gone=110.0, lift=40, deep=200.0, **_numbers("32"))
_WIDE: Final = _numbers("64", "PHI_NEAR", "ARTANH")
_DOUBLE: Final = Format(FLOAT64, 52, 1023, gone=760.0, lift=100, deep=1500.0, **_WIDE)


def format_of(x: Value) -> Format:
    """Return the format of a value's numbers."""
    return _SINGLE if x.scalar == SINGLE else _DOUBLE


def split_log(x: Value) -> tuple[Value, Value]:
    """Return k and f of x = 2ᵏ(1 + f) with 1 + f between √½ and √2, of positive normal numbers."""
    own = format_of(x)
    i = x.bits() - own.root
    f = ((i & ((1 << own.mantissa) - 1)) + own.root).bits() - 1.0
    return (i >> own.mantissa).to(x.scalar), f


def split_power(x: Value) -> tuple[Value, Value, Value]:
    """Return k, 2ᵏ and 2⁻ᵏ of x = 2ᵏ(1 + f), as `split_log` has it."""
    own = format_of(x)
    k = (x.bits() - own.root) >> own.mantissa
    power, inverse = (((each + own.bias) << own.mantissa).bits() for each in (k, -k))
    return k.to(x.scalar), power, inverse


def gap_near(f: Value) -> Value:
    """Return f − log(1 + f) for 1 + f between √½ and √2."""
    if format_of(f).real.single:
        return f * f * polynomial(f, numbers.LOG_32).fma(-f, 0.5)
    z = f / (f + 2.0)
    return f * z - artanh_rest(z)


def joined_log(k: Value, f: Value, gap: Value) -> Value:
    """Return k log 2 + log(1 + f), given f − log(1 + f)."""
    own = format_of(f)
    return k.fma(own.ln2, f - (gap - k * own.ln2_low))


def log_normal(x: Value) -> Value:
    """Return log x of positive normal numbers; for others the result is meaningless."""
    (k, f), own = split_log(x), format_of(x)
    if own.real.single:
        square = f * f
        low = k.fma(own.ln2_low, f * square * polynomial(f, numbers.LOG_32))
        low = square.fma(-0.5, low)
        return k.fma(own.ln2, f + low)
    z = f / (f + 2.0)
    half = f * 0.5 * f
    rest = z * z * polynomial(z * z, numbers.LOG_64)
    # log(1 + f) = f − (f²/2 − z·(f²/2 + rest))
    return k.fma(own.ln2, f - (half - k.fma(own.ln2_low, z * (half + rest))))


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
    least, most = (-104.0, 89.0) if own.real.single else (-746.0, 710.0)
    x = at_most(at_least(x, least), most)
    shifted = x.fma(LOG2_E, own.round)
    k = shifted - own.round
    r = k.fma(-own.ln2_low, k.fma(-own.ln2, x))
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

    @property
    def doubled(self) -> Heat:
        """The constants of 2T."""
        factors = (2.0, 0.5, 0.5, 2.0, 2.0)
        return Heat(*(each * factor for each, factor in zip(self, factors, strict=True)))

    def vectors(self, real: Real) -> Heat:
        """Return them as vectors of elements."""
        return Heat(*(each.to(real.scalar).spread(real.lanes) for each in self))


def heat_of(temperature: Value, real: Real) -> Heat:
    """Return the constants of a temperature for elements of a dtype, in float64."""
    high = temperature * LN2
    low = _product_rest(temperature, temperature.of(LN2), high) + temperature * LN2_LOW
    head = (high.bits() & -(1 << (38 if real.single else 12))).bits()  # of 15 or 41 bits
    return Heat(temperature, 1.0 / temperature, LOG2_E / temperature, head, (high - head) + low)


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


def artanh_rest(z: Value) -> Value:
    """Return 2 artanh(z) − 2z for |z| ≤ 1/3; log(1 + y) is 2 artanh(y/(2 + y))."""
    square = z * z
    return z * square * polynomial(square, format_of(z).artanh)


def log1p_near(y: Value) -> tuple[Value, Value]:
    """Return log(1 + y) and y − log(1 + y) for −½ < y < 1."""
    z = y / (y + 2.0)
    rest = artanh_rest(z)
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


def eighth_difference(a: Value, b: Value, least: float) -> tuple[Value, Value]:
    """Return (a − b)/8 as a double word; −∞ counts as ``least`` eighths, below all numbers'."""
    return two_difference(*(at_least(each * 0.125, least) for each in (a, b)))


def quotient(a: tuple[Value, Value], b: Value) -> tuple[Value, Value]:
    """Return a double word over a number."""
    high = a[0] / b
    return high, (a[1] - _product_rest(high, b, a[0])) / b


def power_of(x: tuple[Value, Value], rate: Value) -> Value:
    """Return e^(rate·x) of a double word, to a few u: a rounding of rate·x would be magnified."""
    high = x[0] * rate
    low = x[0].fma(rate, -high) + x[1] * rate
    return exp(high) * (select(abs(high) < 1e5, low, 0.0) + 1.0)


def _product_rest(a: Value, b: Value, rounded: Value) -> Value:
    """Return a·b less a number near it, in float64."""
    (one, one_low), (two, two_low) = (_split_in_halves(each) for each in (a, b))
    return (((one * two - rounded) + one * two_low) + one_low * two) + one_low * two_low


def _split_in_halves(x: Value) -> tuple[Value, Value]:
    """Return two numbers of half the bits whose sum is x, in float64."""
    head = (x.bits() & -(1 << 27)).bits()
    return head, x - head


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
