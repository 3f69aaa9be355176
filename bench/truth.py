"""The truth in double-double arithmetic: some 30 digits on any machine that has NumPy.

A number is the unevaluated sum of two float64, high and low. Divergences are summed in the form
whose terms are all ≥ 0, so that nothing cancels however close the two distributions are. The tests
hold this against mpmath.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

_SPLIT = 134217729.0  # 2²⁷ + 1
_HALVINGS = 9
_TERMS = 9  # of exp's series, for arguments below log(2)/2/2⁹
_NEAR, _NEAR_TERMS = 0.05, 25  # where log's series is used, and how many of its terms


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


_LOG_2 = Double(np.float64(0.6931471805599453), np.float64(2.3190468138462996e-17))  # type: ignore[arg-type]


def exp(x: Any) -> Double:
    """Return eˣ: the argument is halved nine times for a short series, the result squared back."""
    x = double(x)
    power = np.rint(x.high / math.log(2))
    reduced = x - _LOG_2 * power
    reduced = Double(*(part / 2.0**_HALVINGS for part in reduced))
    series = double(np.zeros_like(x.high))
    for k in range(_TERMS, 1, -1):  # expm1(r) = r (1 + r/2 (1 + r/3 (…)))
        series = (series + 1.0) * reduced / double(float(k))
    series = (series + 1.0) * reduced
    for _ in range(_HALVINGS):  # expm1(2r) = 2 expm1(r) + expm1(r)²
        series = series + series + series * series
    whole = series + 1.0
    power = np.clip(power, -2000, 2000).astype(np.int32)
    return Double(np.ldexp(whole.high, power), np.ldexp(whole.low, power))


def log(x: Any) -> Double:
    """Return log x for x > 0, and 0 for 0: one Newton step from float64's."""
    x = double(x)
    safe = Double(np.where(x.high > 0, x.high, 1.0), np.where(x.high > 0, x.low, 0.0))
    start = np.log(safe.high)
    return safe * exp(-start) - 1.0 + start


class Truth(NamedTuple):
    """A loss and its gradient in the input; or its elements, which have none."""

    value: float
    gradient: Floats | None
    elements: Floats | None = None


# --- the operations, by their definitions ---------------------------------------------------------


def kl_div(x: Floats, y: Floats, *, log_target: bool = False) -> Truth:
    """Return Σ y (log y − x), with y given or its logarithm."""
    p, log_p = (exp(y), double(y)) if log_target else (double(y), log(y))
    elements = p * (log_p - x)
    return Truth(_total(elements), -p.high, elements.high)


def kl_div_with_logits(s: Floats, t: Floats) -> Truth:
    """Return the mean over rows of Σ p (log p − log q)."""
    (p, _), (q, _) = _softmax(t), _softmax(s)
    return Truth(_mean(_divergence(p, q)), (q - p).high / s.shape[0])


def js_div_with_logits(s: Floats, t: Floats) -> Truth:
    """Return the mean over rows of ½ D(P‖M) + ½ D(Q‖M), M = (P + Q)/2."""
    (p, _), (q, log_q) = _softmax(t), _softmax(s)
    m = (p + q) * 0.5
    of_p, of_q = _divergence(p, m), _divergence(q, m)
    gradient = q * (log_q - log(m) - of_q) * 0.5
    return Truth(_mean((of_p + of_q) * 0.5), gradient.high / s.shape[0])


def _divergence(p: Double, q: Double) -> Double:
    """Return Σ p log(p/q) of rows that sum to 1 as Σ p (δ − log(1 + δ)), with 1 + δ = q/p."""
    some = p.high > 0
    safe = Double(np.where(some, p.high, 1.0), np.where(some, p.low, 0.0))
    ratio = q / safe
    delta = ratio - 1.0
    near = np.abs(delta.high) < _NEAR
    small = Double(*(np.where(near, part, 0.0) for part in delta))
    series = double(np.zeros_like(p.high))
    for k in range(_NEAR_TERMS, 1, -1):  # δ²/2 − δ³/3 + …
        series = series * -small + double(1.0) / double(float(k))
    series = series * small * small
    far = delta - log(ratio)
    gap = Double(*(np.where(near, a, b) for a, b in zip(series, far, strict=True)))
    terms = safe * gap
    parts = (np.where(some, a, b) for a, b in zip(terms, q, strict=True))
    return Double(*parts).sum()


def _softmax(logits: Floats) -> tuple[Double, Double]:
    """Return probabilities and their logarithms."""
    shifted = double(logits) - logits.max(axis=-1, keepdims=True)
    weights = exp(shifted)
    total = weights.sum()
    return weights / total, shifted - log(total)


def _total(rows: Double) -> float:
    flat = Double(rows.high.reshape(1, -1), rows.low.reshape(1, -1))
    return float(flat.sum().high[0, 0])


def _mean(rows: Double) -> float:
    return _total(rows) / rows.high.size
