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


def _gumbel(m, b):
    return -mp.log(b) - 1 - mp.euler, m + mp.euler * b, (mp.pi * b) ** 2 / 6, None, None


def _half_normal(s):
    own = HALF * mp.log(2 / mp.pi) - mp.log(s) - HALF
    log = mp.log(s) - HALF * (mp.euler + mp.log(2))
    return own, s * mp.sqrt(2 / mp.pi), s * s * (1 - 2 / mp.pi), log, None


def _pareto(s, a):
    mean = a * s / (a - 1) if a > 1 else mp.inf
    variance = s * s * a / ((a - 1) ** 2 * (a - 2)) if a > 2 else mp.inf
    return mp.log(a / s) - 1 - 1 / a, mean, variance, mp.log(s) + 1 / a, None


P: dict[str, Callable[..., Any]] = {
    "Beta": _beta,
    "ContinuousBernoulli": _continuous_bernoulli,
    "Exponential": lambda r: _gamma(mp.mpf(1), r),
    "Gamma": _gamma,
    "Gumbel": _gumbel,
    "HalfNormal": _half_normal,
    "Laplace": lambda m, b: (-mp.log(2 * b) - 1, m, 2 * b * b, None, None),
    "LogNormal": _log_normal,
    "Normal": lambda m, s: (-_normal_entropy(s), m, s * s, None, None),
    "Pareto": _pareto,
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


TRANSFORM: dict[str, Callable[..., Any]] = {
    "Exponential": lambda t, r: 1 / (1 + t / r),
    "Gamma": lambda t, a, r: (1 + t / r) ** -a,
    "Laplace": lambda t, m, b: mp.exp(-m * t) / (1 - (b * t) ** 2) if b * t < 1 else mp.inf,
    "Normal": lambda t, m, s: mp.exp((s * t) ** 2 / 2 - m * t),
    "Uniform": lambda t, low, high: (mp.exp(-low * t) - mp.exp(-high * t)) / (t * (high - low)),
}
"""E e^(−tx)."""


def _distance_of_uniform(c, low, high):
    above, below = high - c, c - low
    if above <= 0 or below <= 0:
        return abs(above - below) / 2
    return (above**2 + below**2) / (2 * (high - low))


DISTANCE: dict[str, Callable[..., Any]] = {
    "Normal": lambda c, m, s: (
        s * mp.sqrt(2 / mp.pi) * mp.exp(-(((m - c) / s) ** 2) / 2)
        + (m - c) * mp.erf((m - c) / (s * mp.sqrt(2)))
    ),
    "Uniform": _distance_of_uniform,
}
"""E |x − c|."""


def divergence(p: str, q: str, size: int) -> Callable[..., Any]:
    """D(P‖Q) as a function of all parameters, of which P has ``size``."""

    def value(*x):
        own, *moments = P[p](*x[:size])
        if q == "Gumbel":
            m, b = x[size:]
            power = mp.exp(m / b) * TRANSFORM[p](1 / b, *x[:size])
            return own + mp.log(b) + (moments[0] - m) / b + power
        if q == "Laplace":
            m, b = x[size:]
            return own + mp.log(2 * b) + DISTANCE[p](m, *x[:size]) / b
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
