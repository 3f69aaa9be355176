"""The losses that the benchmark measures, by their definitions, in double-double arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .doubles import Double, Floats, difference, double, exp, log, where
from .rows import truth

if TYPE_CHECKING:
    from collections.abc import Callable

    Classes = Callable[..., tuple[Double, Double]]
    """From p, q and their logarithms to F(p, q) of a class, and q ∂F/∂q."""


class Loss(NamedTuple):
    """A loss and its gradient in the input; or its elements, which have none."""

    value: float
    gradient: Floats | None
    elements: Floats | None = None


def terms(x: Floats, y: Floats, *, log_target: bool = False) -> tuple[Double, Double]:
    """Return y and y (log y − x), with y given or its logarithm."""
    p, log_p = (exp(y), double(y)) if log_target else (double(y), log(y))
    return p, p * (log_p - x)


def kl_div(x: Floats, y: Floats, *, log_target: bool = False) -> Loss:
    """Return Σ y (log y − x), with y given or its logarithm."""
    p, elements = terms(x, y, log_target=log_target)
    flat = Double(*(part.reshape(1, -1) for part in elements))
    return Loss(float(flat.sum().high[0, 0]), -p.high, elements.high)


def kl_div_with_logits(s: Floats, t: Floats) -> Loss:
    """Return the mean over rows of KL(softmax(t) ‖ softmax(s))."""
    return _mean(s, t, None)


def js_div_with_logits(s: Floats, t: Floats) -> Loss:
    """Return the mean over rows of JS with M = (P + Q)/2."""
    return _mean(s, t, 0.5)


def _mean(s: Floats, t: Floats, beta: float | None) -> Loss:
    found = truth(s, t, beta=beta)
    return Loss(float(found.value.mean()), found.grad_input / s.shape[0])


def of_classes(classes: Classes, s: Floats, t: Floats) -> Loss:
    """Return the mean over rows of a sum over classes, by its definition in double-doubles.

    That leaves 32 digits less those that cancel, for logits that all are finite.
    """
    (p, log_p), (q, log_q) = _softmax(t), _softmax(s)
    value, slope = classes(p, q, log_p, log_q)
    gradient = slope - q * slope.sum()
    return Loss(float(value.sum().high.mean()), gradient.high / s.shape[0])


def total_variation(p: Double, q: Double, log_p: Double, log_q: Double) -> tuple[Double, Double]:
    """Return |p − q|/2 and its derivative."""
    above = (log_p - log_q).high > 0
    apart = (p - q) * 0.5
    return where(above, apart, -apart), where(above, q * -0.5, q * 0.5)


def jeffreys(p: Double, q: Double, log_p: Double, log_q: Double) -> tuple[Double, Double]:
    """Return (p − q) log(p/q) and its derivative."""
    ratio = log_p - log_q
    return (p - q) * ratio, q - p - q * ratio


def skew(p: Double, q: Double, log_p: Double, log_q: Double) -> tuple[Double, Double]:  # noqa: ARG001
    """Return p log(p/m), m = p/10 + 9q/10, and its derivative."""
    share = double(1.0) / double(10.0)
    rest = double(1.0) - share
    m = share * p + rest * q
    return p * (log_p - log(m)), -(rest * p * q / m)


def cross_entropy(p: Double, q: Double, log_p: Double, log_q: Double) -> tuple[Double, Double]:  # noqa: ARG001
    """Return −p log q and its derivative."""
    return -p * log_q, -p


def labels(s: Floats, places: Floats, *, entropic: bool = False) -> Loss:
    """Return the mean over rows of −log q(label), and with the entropy the value of both."""
    q, log_q = _softmax(s)
    places = places.astype(np.int64)[:, None]
    values = [-np.take_along_axis(part, places, -1) for part in log_q]
    if entropic:
        return Loss(float((-(q * log_q).sum().high + sum(values)).mean()), None)
    gradient = q.high.copy()
    own = np.take_along_axis(gradient, places, -1) - 1.0
    np.put_along_axis(gradient, places, own, -1)
    return Loss(float(sum(values).mean()), gradient / s.shape[0])


def power(alpha: float, scale: float = 1.0) -> Classes:
    """Return a multiple of the terms of an α-divergence, and their derivative."""

    def classes(p: Double, q: Double, log_p: Double, log_q: Double) -> tuple[Double, Double]:
        order, rest = double(alpha), double(1.0) - alpha
        both = exp(order * log_p + rest * log_q)
        terms = (order * p + rest * q - both) / (order * rest)
        return terms * scale, (q - both) / order * scale

    return classes


def _softmax(logits: Floats) -> tuple[Double, Double]:
    shifted = difference(logits, np.max(logits, axis=-1, keepdims=True))
    weights = exp(shifted)
    whole = weights.sum()
    return weights / whole, shifted - log(whole)
