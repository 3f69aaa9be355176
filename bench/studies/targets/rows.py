"""Rows of probabilities and logits: arrays of them, and divergences by mpmath."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mpmath
from mpmath import mp

import kldiv

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CLASSES = 3
ROWS = 2 * CLASSES
TWINS = tuple((i, CLASSES + i) for i in range(CLASSES))


def space(number: Any) -> Any:
    """Return the namespace of an array."""
    return kldiv.backends.find(number).namespace(number)


def halves(numbers: Sequence[Any]) -> tuple[Any, Any]:
    """Return both halves of a sequence."""
    return numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]


def vector(*numbers: Any) -> Any:
    """Return arrays of n numbers as n rows."""
    return space(numbers[0]).stack(numbers, axis=-1)


def by_rows(function: Any, numbers: Any, **options: Any) -> Any:
    """Return a function of two rows: the first half of the numbers, and the rest."""
    return function(*(vector(*half) for half in halves(numbers)), **options)


def generalised(*numbers: Any) -> Any:
    """Return KL of rows that need not sum to 1."""
    pairs = zip(*halves(numbers), strict=True)
    return mpmath.fsum(p * mp.log(p / q) - p + q for p, q in pairs)


def of_mixture(m: Any, a: Any, b: Any) -> Callable[..., Any]:
    """Return a·D(P‖M) + b·D(Q‖M), M = mP + (1 − m)Q, of two rows."""
    m, a, b = map(mp.mpf, (m, a, b))

    def value(*numbers: Any) -> Any:
        p, q = halves(numbers)
        mixture = [m * x + (1 - m) * y for x, y in zip(p, q, strict=True)]
        return a * generalised(*p, *mixture) + b * generalised(*q, *mixture)

    return value


def renyi(alpha: float) -> Callable[..., Any]:
    """Return a function of P and Q: Rényi's divergence."""

    def value(*numbers: Any) -> Any:
        pairs = zip(*halves(numbers), strict=True)
        order = mp.mpf(alpha)
        return mp.log(mpmath.fsum(p**order * q ** (1 - order) for p, q in pairs)) / (order - 1)

    return value


def entropy(*p: Any) -> Any:
    """Return the entropy of P."""
    return -mpmath.fsum(x * mp.log(x) for x in p)


def cross_entropy(*numbers: Any) -> Any:
    """Return −Σ p log q."""
    return -mpmath.fsum(p * mp.log(q) for p, q in zip(*halves(numbers), strict=True))


def softmax(logits: Sequence[Any]) -> list[Any]:
    """Return the probabilities of logits."""
    weights = [mp.exp(x) for x in logits]
    total = mpmath.fsum(weights)
    return [w / total for w in weights]


def softmaxed(truth: Callable[..., Any], temperature: float = 1.0) -> Callable[..., Any]:
    """Return a function of P and Q as one of the logits of Q and P."""
    scale = mp.mpf(temperature)

    def value(*logits: Any) -> Any:
        s, t = halves([x / scale for x in logits])
        return truth(*softmax(t), *softmax(s))

    return value


def variation(*numbers: Any) -> Any:
    """Return the total variation distance."""
    return mpmath.fsum(abs(p - q) for p, q in zip(*halves(numbers), strict=True)) / 2


def hellinger(*numbers: Any) -> Any:
    """Return the squared Hellinger distance."""
    pairs = zip(*halves(numbers), strict=True)
    return mpmath.fsum((mp.sqrt(p) - mp.sqrt(q)) ** 2 for p, q in pairs) / 2


def alpha_divergence(alpha: float, times: float = 1.0) -> Callable[..., Any]:
    """Return a function of P and Q: the α-divergence, a number of times."""

    def value(*numbers: Any) -> Any:
        pairs = zip(*halves(numbers), strict=True)
        order = mp.mpf(alpha)
        powers = mpmath.fsum(p**order * q ** (1 - order) for p, q in pairs)
        return times * (powers - 1) / (order * (order - 1))

    return value
