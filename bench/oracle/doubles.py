"""Double-double arithmetic: some 31 digits on any machine that has NumPy.

A number is the unevaluated sum of two float64, high and low. Sums are right to 2⁻¹⁰⁴ of themselves
however much cancels (Joldes, Muller and Popescu 2017, algorithm 6), products and quotients too.
Numbers below 1e-290 lose digits, as their low parts leave float64.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Function = Callable[["Double"], "Double"]

Floats = np.ndarray[Any, np.dtype[np.float64]]

_SPLIT = 134217729.0  # 2²⁷ + 1
_PARTS, _TERMS = 32, 13  # 2⁵ of a doubling; terms of exp's series below log(2)/64
_NEAR, _NEAR_TERMS = 0.05, 25  # where log1p's series is used, and how many of its terms
_MOST = 2000.0  # e^x is 0 or infinity beyond


class Double(NamedTuple):
    """A double-double array."""

    high: Floats
    low: Floats

    def __add__(self, other: Any) -> Double:  # type: ignore[override]
        other = double(other)
        high, error = _two_sum(self.high, other.high)
        low, rest = _two_sum(self.low, other.low)
        return _settle(*_settle(high, error + low), rest)

    def __neg__(self) -> Double:
        return Double(-self.high, -self.low)

    def __sub__(self, other: Any) -> Double:
        return self + -double(other)

    def __mul__(self, other: Any) -> Double:  # type: ignore[override]
        other = double(other)
        high, error = _two_product(self.high, other.high)
        return _settle(high, error + (self.high * other.low + self.low * other.high))

    def __truediv__(self, other: Any) -> Double:
        other = double(other)
        first = self.high / other.high
        rest = self - other * first
        second = rest.high / other.high
        third = (rest - other * second).high / other.high
        return _settle(*_settle(first, second), third)

    def scaled(self, power: Any) -> Double:
        """Return self·2^power."""
        return Double(*(np.ldexp(part, power) for part in self))

    def at(self, index: Any) -> Double:
        """Return one element of each row, as an axis of length 1."""
        return Double(*(np.take_along_axis(part, index[..., None], axis=-1) for part in self))

    def sum(self) -> Double:
        """Return the sum over the last axis, which stays with length 1."""
        high, low = self
        while (size := high.shape[-1]) > 1:
            half = size // 2
            part = Double(high[..., :half], low[..., :half])
            total = part + Double(high[..., half : 2 * half], low[..., half : 2 * half])
            high, low = (
                np.concatenate([a, b[..., 2 * half :]], axis=-1)
                for a, b in zip(total, (high, low), strict=True)
            )
        return Double(high, low)


def double(value: Any) -> Double:
    """Return a float64 array or number as a double-double."""
    if isinstance(value, Double):
        return value
    high = np.asarray(value, dtype=np.float64)
    return Double(high, np.zeros_like(high))


def where(condition: Any, one: Any, other: Any) -> Double:
    """Return the elements of one or the other."""
    pairs = zip(double(one), double(other), strict=True)
    return Double(*(np.where(condition, a, b) for a, b in pairs))


def difference(a: Floats, b: Floats) -> Double:
    """Return a − b of float64, exactly."""
    return Double(*_two_sum(a, -b))


def _two_sum(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _two_product(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    product = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(a: Floats) -> tuple[Floats, Floats]:
    scaled = _SPLIT * a
    high = scaled - (scaled - a)
    return high, a - high


def _settle(high: Floats, low: Floats, rest: Floats | float = 0.0) -> Double:
    total = high + low
    return Double(total, (low - (total - high)) + rest)


def _split(number: Decimal) -> tuple[float, float]:
    high = float(number)
    return high, float(number - Decimal(high))


with localcontext() as _context:
    _context.prec = 60
    _log_2 = Decimal(2).ln()
    _LOG_2 = Double(*map(np.float64, _split(_log_2)))  # type: ignore[arg-type]
    _parts = [_split((_log_2 * j / _PARTS).exp()) for j in range(_PARTS)]
    _POWERS = Double(*np.array(_parts).T)  # 2^(j/32)
    _FACTORIALS = [_split(1 / Decimal(math.factorial(k))) for k in range(_TERMS + 1)]
    _INVERSES = [_split(1 / Decimal(k)) for k in range(1, _NEAR_TERMS + 1)]


def _polynomial(x: Double, coefficients: Sequence[tuple[float, float]], short: int) -> Double:
    """Return Σ c_k x^k; from x^short on a float64's digits are enough."""
    tail = np.zeros_like(x.high)
    for high, _ in reversed(coefficients[short:]):
        tail = tail * x.high + high
    series = double(tail)
    for each in reversed(coefficients[:short]):
        series = series * x + Double(*map(np.float64, each))  # type: ignore[arg-type]
    return series


def _reduced(x: Double) -> tuple[Any, Double, Double]:
    """Return k, c = 2^(j/32) and expm1 of the rest: e^x is 2^k·c·(1 + that)."""
    x = where(np.abs(x.high) < _MOST, x, np.clip(x.high, -_MOST, _MOST))
    steps = np.rint(x.high * (_PARTS / math.log(2)))
    part = x - (_LOG_2 * steps).scaled(-5)
    power, place = np.divmod(np.nan_to_num(steps).astype(np.int32), _PARTS)
    found = _polynomial(part, _FACTORIALS[1:], 7) * part
    return power, Double(*(each[place] for each in _POWERS)), found


def exp(x: Any) -> Double:
    """Return eˣ; 0 and infinity lie beyond the range of float64."""
    power, whole, rest = _reduced(double(x))
    return (whole * rest + whole).scaled(power)


def expm1(x: Any) -> Double:
    """Return eˣ − 1."""
    power, whole, rest = _reduced(double(x))
    near = (power == 0) & (whole.high == 1)
    return where(near, rest, (whole * rest + whole).scaled(power) - 1.0)


def log(x: Any) -> Double:
    """Return log x for x > 0, and 0 for 0."""
    x = double(x)
    x = where(x.high > 0, x, 1.0)
    power = np.frexp(x.high)[1]
    power -= np.ldexp(x.high, -power) < math.sqrt(0.5)
    part = x.scaled(-power)
    return _either(np.abs(part.high - 1.0) < _NEAR, _log_near, _log_far, part) + _LOG_2 * power


def log1p(x: Any) -> Double:
    """Return log(1 + x) for x > −1."""
    x = double(x)
    return _either(np.abs(x.high) < _NEAR, _log1p_near, lambda x: log(x + 1.0), x)


def gap(x: Any) -> Double:
    """Return x − log(1 + x) ≥ 0 for x > −1."""
    x = double(x)
    return _either(np.abs(x.high) < _NEAR, _gap_near, lambda x: x - log(x + 1.0), x)


def _either(condition: Any, one: Function, other: Function, x: Double) -> Double:
    """Return one function where a condition holds and the other elsewhere."""
    found = Double(*np.empty((2, *x.high.shape)))
    for place, function in ((condition, one), (~condition, other)):
        part = function(Double(*(each[place] for each in x)))
        for whole, each in zip(found, part, strict=True):
            whole[place] = each
    return found


def _log_far(x: Double) -> Double:
    start = np.log(x.high)
    return x * exp(-start) - 1.0 + start  # a Newton step


def _log_near(x: Double) -> Double:
    return _log1p_near(x - 1.0)


def _log1p_near(x: Double) -> Double:
    return x - _gap_near(x)


def _gap_near(x: Double) -> Double:
    return _polynomial(-x, _INVERSES[1:], 13) * x * x  # x²/2 − x³/3 + …
