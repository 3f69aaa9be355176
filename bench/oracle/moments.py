"""E log p and −E log q of pairs of families by textbook moments, by mpmath in many digits.

Digits are doubled until nothing changes: where the two families are close nearly all cancel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mpmath
from mpmath import mp

if TYPE_CHECKING:
    from collections.abc import Callable

HALF = mpmath.mpf(1) / 2


def _normal_entropy(scale):
    return mp.log(scale) + HALF * mp.log(2 * mp.pi * mp.e)


def _beta(a, b):
    total = a + b
    log, rest = mp.digamma(a) - mp.digamma(total), mp.digamma(b) - mp.digamma(total)
    own = (a - 1) * log + (b - 1) * rest - mp.log(mp.beta(a, b))
    return own, a / total, a * b / (total**2 * (total + 1)), log, rest


def _continuous_bernoulli(x):
    mean = 1 / (1 - mp.exp(-x)) - 1 / x
    own = x * mean - mp.log((mp.exp(x) - 1) / x)
    return own, mean, 1 / x**2 - 1 / (4 * mp.sinh(x / 2) ** 2), None, None


def _gamma(a, r):
    own = mp.log(r) - a - mp.loggamma(a) - (1 - a) * mp.digamma(a)
    return own, a / r, a / r**2, mp.digamma(a) - mp.log(r), None


def _log_normal(m, s):
    square = s * s
    variance = mp.exp(2 * m + square) * mp.expm1(square)
    return -_normal_entropy(s) - m, mp.exp(m + square / 2), variance, m, None


def _weibull(s, k):
    first, second = mp.gamma(1 + 1 / k), mp.gamma(1 + 2 / k)
    own = mp.log(k / s) - mp.euler * (1 - 1 / k) - 1
    return own, s * first, s * s * (second - first**2), mp.log(s) - mp.euler / k, None


def _uniform(low, high):
    def mean_log(start, stop):
        ends = [x * mp.log(x) if x > 0 else mp.mpf(0) for x in (start, stop)]
        return (ends[1] - ends[0]) / (stop - start) - 1

    width = high - low
    logs = mean_log(low, high), mean_log(1 - high, 1 - low)
    return -mp.log(width), (low + high) / 2, width**2 / 12, *logs


P: dict[str, Callable[..., Any]] = {
    "Beta": _beta,
    "ContinuousBernoulli": _continuous_bernoulli,
    "Gamma": _gamma,
    "LogNormal": _log_normal,
    "Uniform": _uniform,
    "Weibull": _weibull,
}
"""E log p, the mean, the variance, E log x, E log(1 − x)."""

Q: dict[str, Callable[..., Any]] = {
    "Beta": lambda m, v, x, y, a, b: mp.log(mp.beta(a, b)) - (a - 1) * x - (b - 1) * y,
    "ContinuousBernoulli": lambda m, v, x, y, t: mp.log((mp.exp(t) - 1) / t) - t * m,
    "Exponential": lambda m, v, x, y, r: r * m - mp.log(r),
    "Gamma": lambda m, v, x, y, a, r: mp.loggamma(a) - a * mp.log(r) - (a - 1) * x + r * m,
    "HalfNormal": lambda m, v, x, y, s: (
        HALF * mp.log(mp.pi / 2) + mp.log(s) + (m * m + v) / (2 * s * s)
    ),
    "Normal": lambda m, v, x, y, c, s: (
        HALF * (mp.log(2 * mp.pi) + ((m - c) ** 2 + v) / s**2) + mp.log(s)
    ),
    "Pareto": lambda m, v, x, y, s, a: (a + 1) * x - mp.log(a) - a * mp.log(s),
    "Uniform": lambda m, v, x, y, low, high: mp.log(high - low),
}
"""−E log q, given the moments of P and the parameters of Q."""


def divergence(p: str, q: str, size: int) -> Callable[..., Any]:
    """D(P‖Q) as a function of all parameters, of which P has ``size``."""

    def value(*x):
        own, *moments = P[p](*x[:size])
        return own + Q[q](*moments, *x[size:])

    return value


def exact(function: Callable[..., Any], x: Any) -> Any:
    """Evaluate a function of numbers, its digits doubled until 20 of them stay."""
    last, digits = None, 40
    while True:
        with mpmath.workdps(digits):
            found = function(*(mpmath.mpf(float(v)) for v in x))
            if last is not None and abs(found - last) <= abs(found) * mpmath.mpf(10) ** -20:
                return found
        last, digits = found, 2 * digits


def condition(function: Callable[..., Any], x: Any) -> float:
    """Σ |θ ∂D/∂θ| / D over all parameters, at least 1, by differences in many digits."""
    value, total = exact(function, x), mpmath.mpf(0)
    with mpmath.workdps(150):
        numbers = [mpmath.mpf(float(v)) for v in x]
        for i, number in enumerate(numbers):
            if number == 0:
                continue
            step = number * mpmath.mpf(10) ** -40
            moved = [*numbers]
            ends = []
            for sign in (1, -1):
                moved[i] = number + sign * step
                ends.append(function(*moved))
            total += abs(number * (ends[0] - ends[1]) / (2 * step))
    return max(1.0, float(total / abs(value)))
