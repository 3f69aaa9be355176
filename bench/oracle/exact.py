"""KL and JS from logits by mpmath, with its digits doubled until nothing changes at 1e-25."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np

from .rows import Truth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Numbers = Sequence[Any]

_SMALL = mpmath.mpf(10) ** -330
"""As good as zero to any dtype."""


def exact(s: Any, t: Any, *, temperature: float = 1.0, beta: float | None = None) -> Truth:
    """Return KL (or JS, given ``beta``) of softmax(t/T) from softmax(s/T), of one row."""
    s, t = (np.asarray(a, dtype=np.float64) for a in (s, t))
    if _invalid(s, t):
        return _nothing(s, np.nan)
    if constant(s, t):
        return _nothing(s, 0.0)

    def compute() -> list[Numbers]:
        scale = mpmath.mpf(1) / mpmath.mpf(float(temperature))
        arguments = numbers(s, scale), numbers(t, scale)
        value, gs, gt = kl(*arguments) if beta is None else js(*arguments, mpmath.mpf(beta))
        return [[value], [g * scale for g in gs], [g * scale for g in gt]]

    (value,), gs, gt = converged(compute)
    return Truth(float(value), *(np.array([float(g) for g in each]) for each in (gs, gt)))


def converged(compute: Callable[[], list[Numbers]]) -> list[Numbers]:
    """Return divergences and their gradients, computed with digits doubled until none changes."""
    digits, before = 40, None
    while True:
        with mpmath.workdps(digits):
            now = compute()
            if before is not None and _settled(before, now, digits):
                return now
        before, digits = now, 2 * digits


def _settled(before: list[Numbers], now: list[Numbers], digits: int) -> bool:
    tolerance = mpmath.mpf("1e-25")
    pairs = [pair for parts in zip(before, now, strict=True) for pair in zip(*parts, strict=True)]
    if not all(mpmath.isfinite(a) for _, a in pairs):
        return True
    # No divergence of different logits is zero: one that is has been lost to rounding both times.
    values, *gradients = now
    if min(values) <= _SMALL and digits < 700:
        return False
    if any(abs(a - b) > max(tolerance * abs(b), _SMALL) for a, b in pairs):
        return False
    # A gradient sums to zero; one that does not has lost a class to rounding both times.
    return all(
        abs(mpmath.fsum(g)) <= max(tolerance * mpmath.fsum(map(abs, g)), _SMALL) for g in gradients
    )


def numbers(values: Any, scale: Any = 1) -> Numbers:
    """Return logits as mpmath's numbers; None stands for −∞."""
    return [None if v == -np.inf else mpmath.mpf(float(v)) * scale for v in values]


def _invalid(s: Any, t: Any) -> bool:
    bad = np.isnan(s) | np.isnan(t) | (s == np.inf) | (t == np.inf)
    return bool(bad.any()) or bool((s == -np.inf).all()) or bool((t == -np.inf).all())


def constant(s: Any, t: Any) -> bool:
    """Whether t − s is one number over all classes that take part, in exact arithmetic."""
    if ((s == -np.inf) != (t == -np.inf)).any():
        return False
    alive = s > -np.inf
    pairs = zip(t[alive], s[alive], strict=True)
    return len({Fraction(float(a)) - Fraction(float(b)) for a, b in pairs}) == 1


def _nothing(s: Any, value: float) -> Truth:
    same = np.full(s.shape, value)
    return Truth(value, same, same)


def softmax(values: Numbers) -> tuple[Numbers, Numbers]:
    """Return probabilities and their logarithms; None stands for −∞."""
    top = max(v for v in values if v is not None)
    weights = [mpmath.mpf(0) if v is None else mpmath.exp(v - top) for v in values]
    total = mpmath.fsum(weights)
    shift = top + mpmath.log(total)
    return [w / total for w in weights], [None if v is None else v - shift for v in values]


def kl(s: Numbers, t: Numbers) -> tuple[Any, Numbers, Numbers]:
    """Return KL and its gradients in (s, t) at the working precision."""
    q, log_q = softmax(s)
    p, log_p = softmax(t)
    grad_input = [b - a for a, b in zip(p, q, strict=True)]
    if any(a is not None and b is None for a, b in zip(t, s, strict=True)):
        nan = mpmath.nan
        return mpmath.inf, grad_input, [mpmath.mpf(0) if a is None else nan for a in t]
    ratio = [mpmath.mpf(0) if a is None else a - b for a, b in zip(log_p, log_q, strict=True)]
    value = mpmath.fsum(a * r for a, r in zip(p, ratio, strict=True))
    return value, grad_input, [a * (r - value) for a, r in zip(p, ratio, strict=True)]


def js(s: Numbers, t: Numbers, beta: Any) -> tuple[Any, Numbers, Numbers]:
    """Return JS and its gradients in (s, t) at the working precision."""
    q, p = softmax(s)[0], softmax(t)[0]
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]

    def half(own: Numbers) -> tuple[Any, Numbers]:
        logs = [mpmath.log(a / c) if a else mpmath.mpf(0) for a, c in zip(own, m, strict=True)]
        value = mpmath.fsum(a * x for a, x in zip(own, logs, strict=True))
        return value, [a * (x - value) for a, x in zip(own, logs, strict=True)]

    (a, of_t), (b, of_s) = half(p), half(q)
    rest = 1 - beta
    return beta * a + rest * b, [rest * g for g in of_s], [beta * g for g in of_t]
