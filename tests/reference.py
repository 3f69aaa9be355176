"""The truth about KL and JS from logits: mpmath where it is fast enough, long doubles beyond.

`exact` doubles its digits until nothing changes at 1e-25. `extended` evaluates the same quantities
in x87 long doubles (64 bits) with exact differences, and a test holds it against `exact`. Both
take the exact values of the given arrays, one row of classes, and return NumPy long doubles.
"""

from __future__ import annotations

from typing import NamedTuple

import mpmath
import numpy as np

LONG = np.longdouble
WIDE = np.finfo(LONG).nmant >= 63
"""Whether a long double is wide enough for `extended` (not so on Windows and ARM Macs)."""


class Truth(NamedTuple):
    """A divergence of one row and its gradients in the logits that were given."""

    value: LONG
    grad_input: np.ndarray
    grad_target: np.ndarray


def exact(s, t, *, temperature=1.0, beta=None):
    """Return KL (or JS, given ``beta``) of softmax(t/T) from softmax(s/T) by mpmath."""
    s, t = (np.asarray(a, dtype=np.float64) for a in (s, t))
    if _invalid(s, t):
        return _nothing(s, np.nan)
    if _constant(s, t):
        return _nothing(s, 0.0)

    def compute():
        scale = mpmath.mpf(1) / mpmath.mpf(float(temperature))
        arguments = (_numbers(s, scale), _numbers(t, scale))
        value, gs, gt = kl(*arguments) if beta is None else js(*arguments, mpmath.mpf(beta))
        return [value, *(g * scale for g in gs), *(g * scale for g in gt)]

    found = converged(compute)
    rest = found[1:]
    return Truth(found[0], rest[: len(s)], rest[len(s) :])


def converged(compute, tolerance=1e-25, digits=40):
    """Evaluate a list of numbers with digits doubled until none changes; return long doubles."""
    before = None
    while True:
        with mpmath.workdps(digits):
            now = compute()
            if before is not None and _settled(before, now, tolerance, digits):
                return np.array([_long(a) for a in now], dtype=LONG)
        before, digits = now, 2 * digits


def _settled(before, now, tolerance, digits):
    if not all(mpmath.isfinite(a) for a in now):
        return True
    # Numbers far below all normal ones are as good as zero to any dtype; but no divergence of
    # different logits is zero, so one that is has been lost to rounding both times.
    small = mpmath.mpf(10) ** -330
    if now[0] <= small and digits < 700:
        return False
    if any(abs(a - b) > max(tolerance * abs(b), small) for a, b in zip(before, now, strict=False)):
        return False
    # A gradient sums to zero; one that does not has lost a class to rounding both times.
    half = len(now) // 2
    return all(
        abs(mpmath.fsum(g)) <= max(tolerance * mpmath.fsum(map(abs, g)), small)
        for g in (now[1 : half + 1], now[half + 1 :])
    )


def _long(a):
    if not WIDE or not mpmath.isfinite(a):
        return LONG(float(a))
    return LONG(mpmath.nstr(a, 25)) if abs(a) > mpmath.mpf(10) ** -330 else LONG(0)


def _numbers(values, scale):
    return [None if v == -np.inf else mpmath.mpf(float(v)) * scale for v in values]


def _invalid(s, t):
    bad = np.isnan(s) | np.isnan(t) | (s == np.inf) | (t == np.inf)
    return bool(bad.any()) or bool((s == -np.inf).all()) or bool((t == -np.inf).all())


def _constant(s, t):
    """Whether t − s is one number over all classes that take part, in exact arithmetic."""
    if ((s == -np.inf) != (t == -np.inf)).any():
        return False
    alive = s > -np.inf
    d = [int_ratio(a) - int_ratio(b) for a, b in zip(t[alive], s[alive], strict=False)]
    return all(x == d[0] for x in d)


def int_ratio(a):
    """Return a float as an exact fraction."""
    from fractions import Fraction

    return Fraction(float(a))


def _nothing(s, value):
    same = np.full(s.shape, value, dtype=LONG)
    return Truth(LONG(value), same, same)


def softmax(values):
    """Return probabilities and their logarithms; None stands for −∞."""
    top = max(v for v in values if v is not None)
    weights = [mpmath.mpf(0) if v is None else mpmath.exp(v - top) for v in values]
    total = mpmath.fsum(weights)
    shift = top + mpmath.log(total)
    return [w / total for w in weights], [None if v is None else v - shift for v in values]


def kl(s, t):
    """Return KL and its gradients in (s, t) at the working precision."""
    q, log_q = softmax(s)
    p, log_p = softmax(t)
    grad_input = [b - a for a, b in zip(p, q, strict=False)]
    if any(a is not None and b is None for a, b in zip(t, s, strict=False)):
        nan = mpmath.nan
        return mpmath.inf, grad_input, [mpmath.mpf(0) if a is None else nan for a in t]
    ratio = [mpmath.mpf(0) if a is None else a - b for a, b in zip(log_p, log_q, strict=False)]
    value = mpmath.fsum(a * r for a, r in zip(p, ratio, strict=False))
    return value, grad_input, [a * (r - value) for a, r in zip(p, ratio, strict=False)]


def js(s, t, beta):
    """Return JS and its gradients in (s, t) at the working precision."""
    q, p = softmax(s)[0], softmax(t)[0]
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=False)]

    def half(own):
        logs = [mpmath.log(a / c) if a else mpmath.mpf(0) for a, c in zip(own, m, strict=False)]
        value = mpmath.fsum(a * x for a, x in zip(own, logs, strict=False))
        return value, [a * (x - value) for a, x in zip(own, logs, strict=False)]

    (a, of_t), (b, of_s) = half(p), half(q)
    rest = 1 - beta
    return beta * a + rest * b, [rest * g for g in of_s], [beta * g for g in of_t]


def extended(s, t, *, temperature=1.0, beta=None):
    """Return what `exact` does in long doubles, without cancellation; ``s`` must be finite."""
    s, t = (np.asarray(a, dtype=LONG) for a in (s, t))
    scale, dead = 1 / LONG(temperature), t == -np.inf
    total_t, total_s = np.exp((t - t.max()) * scale).sum(), np.exp((s - s.max()) * scale).sum()
    p, q = np.exp((t - t.max()) * scale) / total_t, np.exp((s - s.max()) * scale) / total_s

    # x = (d − pivot)/T with d = t − s and its mean as double words: right even where x is far
    # smaller.
    t = np.where(dead, s, t)
    high = t - s
    back = high - t
    low = (t - (high - back)) - (s + back)
    top = np.argmax(p)
    x = (high - high[top]) + (low - low[top])
    pivot = (p * x).sum()
    x = np.where(dead, 0, (x - pivot) * scale)
    mean = (p * x).sum()

    pivot = (high[top] + pivot) + low[top]
    alone = np.exp((s + pivot - t[top]) * scale) / total_t  # p·φ(x) where p = 0
    big = np.where(dead, alone, p * _phi(x)).sum()
    y = big - mean
    value = big - _gap(y) if y < 1 else mean + np.log1p(y)
    r = -(x + np.log1p(y))
    near = ~dead & (abs(r) < 1)
    if beta is None:
        grad_input = np.where(near, p * np.expm1(np.where(near, r, 0)), q - p)
        grad_target = p * (x - mean)
    else:
        value, grad_input, grad_target = _extended_js(p, q, np.where(near, r, 0), near, LONG(beta))
    return Truth(value, grad_input * scale, grad_target * scale)


def _extended_js(p, q, r, near, beta):
    rest = 1 - beta
    m = beta * p + rest * q
    g = rest * np.expm1(r)
    w = beta * np.expm1(r) / (1 + g)
    log_p = np.where(near, -np.log1p(g), _log(p / m))
    log_q = np.where(near, np.log1p(w), _log(q / m))
    half_p = np.where(near, p * _gap(g), p * log_p + m - p)
    # (1 + w) log1p(w) − w = w²(…): written by the remainder of the logarithm.
    half_q = np.where(near, p * (1 + g) * (w * w - (1 + w) * _gap(w)), q * log_q + m - q)
    value_p, value_q = half_p.sum(), half_q.sum()
    value = beta * value_p + rest * value_q
    return value, rest * q * (log_q - value_q), beta * p * (log_p - value_p)


def _log(ratio):
    return np.log(np.where(ratio > 0, ratio, 1))


def _phi(x):
    near = np.where(abs(x) < 0.5, x, 0)
    term, series = near * near / 2, np.zeros_like(near)
    for k in range(3, 25):
        series, term = series + term, term * -near / k
    return np.where(abs(x) < 0.5, series, np.expm1(-x) + x)


def _gap(y):
    near = np.where(abs(y) < 0.1, y, 0)
    power, series = near * near, np.zeros_like(near)
    for k in range(2, 25):
        series, power = series + power / k, power * -near
    return np.where(abs(y) < 0.1, series, y - np.log1p(y))
