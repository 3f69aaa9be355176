"""The losses that the benchmark measures, by their definitions, in double-double arithmetic."""

from __future__ import annotations

from typing import NamedTuple

from .doubles import Double, Floats, double, exp, log
from .rows import truth


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
