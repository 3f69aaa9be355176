"""Closed forms of divergences as textbooks have them, evaluated by mpmath in many digits."""

from __future__ import annotations

from functools import lru_cache

import mpmath
from mpmath import mp

EULER = mpmath.euler


@lru_cache(maxsize=4096)
def _remembered(function, _precision, *x):
    return function(*x)


def _slow(function):
    """Return a function that differences ask for at the same few points again and again."""
    return lambda *x: _remembered(function, mp.prec, *x)


besseli, digamma, loggamma = map(_slow, (mp.besseli, mp.digamma, mp.loggamma))


def normal(m, s, n, t):
    return mp.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - mp.mpf(1) / 2


def half_normal(s, t):
    return normal(mp.mpf(0), s, mp.mpf(0), t)


def laplace(m, b, n, c):
    d = abs(m - n)
    return mp.log(c / b) + (b * mp.exp(-d / b) + d) / c - 1


def cauchy(m, s, n, t):
    return mp.log(((s + t) ** 2 + (m - n) ** 2) / (4 * s * t))


def gumbel(m, b, n, c):
    return (
        mp.log(c / b)
        + (m - n) / c
        + EULER * (b / c - 1)
        + mp.exp((n - m) / c) * mp.gamma(b / c + 1)
        - 1
    )


def exponential(a, b):
    return mp.log(a / b) + b / a - 1


def gamma(a, r, c, s):
    return (a - c) * digamma(a) - loggamma(a) + loggamma(c) + c * mp.log(r / s) + a * (s - r) / r


def chi2(a, c):
    return gamma(a / 2, mp.mpf(1), c / 2, mp.mpf(1))


def weibull(l, k, m, j):  # noqa: E741
    return (
        mp.log(k / l**k)
        - mp.log(j / m**j)
        + (k - j) * (mp.log(l) - EULER / k)
        + (l / m) ** j * mp.gamma(j / k + 1)
        - 1
    )


def pareto(s, a, t, b):
    return mp.log(a / b) + b * mp.log(s / t) + b / a - 1 if s >= t else mp.inf


def dirichlet(a, b):
    total = loggamma(mp.fsum(a)) - loggamma(mp.fsum(b))
    for x, y in zip(a, b, strict=True):
        total += loggamma(y) - loggamma(x)
        total += (x - y) * (digamma(x) - digamma(mp.fsum(a)))
    return total


def beta(a, b, c, d):
    return dirichlet([a, b], [c, d])


def continuous_bernoulli(p, q):
    def log_normal(x):
        return mp.log((mp.exp(x) - 1) / x)

    a, b = mp.log(p / (1 - p)), mp.log(q / (1 - q))
    mean = 1 / (1 - mp.exp(-a)) - 1 / a
    return log_normal(b) - log_normal(a) - (b - a) * mean


def von_mises(m, k, n, j):
    ratio = besseli(1, k) / besseli(0, k)
    return mp.log(besseli(0, j) / besseli(0, k)) + k * ratio - j * ratio * mp.cos(m - n)


def poisson(a, b):
    return a * mp.log(a / b) + b - a


def bernoulli(p, q):
    return p * mp.log(p / q) + (1 - p) * mp.log((1 - p) / (1 - q))


def bernoulli_logits(a, b):
    return bernoulli(1 / (1 + mp.exp(-a)), 1 / (1 + mp.exp(-b)))


def geometric(p, q):
    return bernoulli(p, q) / p


def kumaraswamy(a, b, _, c):
    return mp.log(b / c) + c / b - 1
