r"""The state of a block of classes: all that KL from logits needs to know of it, mergeable in any order.

With teacher logits t, student logits s, temperature T, weights w = exp((t − max t)/T), d = t − s and
x = (d − c)/T for a pivot c, every sum below is a plain sum over classes, and for *any* pivot

    p = w/Σw,   Φ = Σ p φ(x),   y = Σ p (e⁻ˣ − 1),   φ(x) = e⁻ˣ − 1 + x ≥ 0
    KL(p‖q) = Φ − (y − log(1 + y)),   log(p/q) = x + log(1 + y)

Where y is small nothing large is subtracted, so KL is right to a few roundings however close p is to q.
That holds at the pivot T·log(Σe^{t/T}/Σe^{s/T}), where x is log(p/q) itself and KL is Σ p φ(log p/q).
Four details keep it so in finite precision:

* d and c are double words: x is right relative to itself even for d ≈ 100 and x ≈ 1e-8, and is exactly
  zero where t − s is constant.
* T divides differences, never logits: a rounded logit would be taken for a divergence.
* Where logits are close, the two sums of exponentials tell the pivot to u·log V only, so it is taken from
  the mean of d, which is exact there, and y absorbs the rest.
* The gradient in t is p·(x − mean), and its x may all be large and nearly equal (peaks that disagree).
  It takes the mean about a second pivot, the anchor, near the bulk of p.

The rounding of (t − max t) is compensated too: at −60 it alone would cost 32 u.  Nothing here looks at
data: masked classes (−∞) become the lowest finite number, whose weight is exactly 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from kldiv.formulas.special import (
    NEAR,
    add,
    difference,
    log1p,
    log1p_gap,
    phi_near,
    two_difference,
    two_sum,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace

Temperature: TypeAlias = "Array | float"
"""A number, or an array of one number per row (the axis of the classes has length one)."""


class State(NamedTuple):
    """Summary of a block: sums over its classes; each array has length one along their axis."""

    t_max: Array
    t_sum: Array
    """Σ w, w = exp((t − t_max)/T)."""
    s_max: Array
    s_sum: Array
    """Σ exp((s − s_max)/T)."""
    pivot: Array
    pivot_low: Array
    y: Array
    """Σ w (e⁻ˣ − 1), x about the pivot: a small residual."""
    phi: Array
    """Σ w φ(x)."""
    anchor: Array
    anchor_low: Array
    drift: Array
    """Σ w (d − anchor)/T: how far the mean of d is from the anchor."""
    gap: Array
    """∞ where a class has p > 0 = q, else 0: KL is ∞, but gradients still need all the rest."""


class Rows(NamedTuple):
    """Constants of whole rows: KL, and what gradients need when they read the logits again."""

    kl: Array
    t_max: Array
    t_scale: Array
    """1/Σ w."""
    s_max: Array
    s_scale: Array
    pivot: Array
    pivot_low: Array
    offset: Array
    """log(1 + y): log(p/q) = x + offset, x about the pivot."""
    anchor: Array
    anchor_low: Array
    mean: Array
    """Σ p x, x about the anchor."""


def block_state(
    xp: Namespace, s: Array, t: Array, axis: int = -1, temperature: Temperature = 1.0
) -> State:
    """Return the state of a block of student logits ``s`` and teacher logits ``t``.

    Parameters
    ----------
    xp : namespace
        Array API namespace of the logits.
    s, t : array
        Logits in float32 or float64; −∞ masks a class.  NaN or +∞ makes KL of the row NaN.
    axis : int
        Axis of the classes.
    temperature : float or array
        What divides both logits.
    """
    t_max, t_top = _top(xp, t, axis)
    s_max, s_top = _top(xp, s, axis)
    t_low, s_low = finite(xp, t), finite(xp, s)
    w, v = weights(xp, t_low, t_top, temperature), weights(xp, s_low, s_top, temperature)
    t_sum, s_sum = total(xp, w, axis), total(xp, v, axis)
    d, d_low = two_difference(t_low, s_low)

    # The anchor is d at the teacher's maximum, so that x is exactly zero where d is constant.
    beside = xp.max(xp.where(t == t_max, s_low, -xp.inf), axis=axis, keepdims=True)
    anchor, anchor_low = two_difference(t_top, beside)
    x = tempered(xp, (d - anchor) + (d_low - anchor_low), temperature)
    drift = total(xp, w * x, axis)

    mean = add(anchor, anchor_low, temperature * (drift / xp.where(t_sum > 0, t_sum, 1.0)))
    both, ratio = _ratio_of_sums(xp, t_top, t_sum, s_top, s_sum, temperature)
    close = abs(over(difference(*mean, *ratio), temperature)) < 16 * xp.finfo(t.dtype).eps
    pivot, pivot_low = _choose(xp, both, _choose(xp, close, mean, ratio), (0.0, 0.0))

    x = tempered(xp, difference(d, d_low, pivot, pivot_low), temperature)
    near = xp.clip(x, -NEAR, NEAR)
    w_near, w_x = w * near, w * x
    # w·e⁻ˣ by the student's own exponential: it stays where the teacher's underflows or is zero.
    mass = v * _exp_sum(xp, s_top, t_top, pivot, pivot_low, temperature)
    # w·φ(x) for |x| < NEAR, and beyond it w·e⁻ˣ − w + w·near: then y + w·near and φ − w·(x − near).
    term = xp.where(abs(x) < NEAR, w * phi_near(xp, near), (mass - w) + w_near)
    y, phi, moment = (
        total(xp, a, axis) for a in (term - w_near, term + (w_x - w_near), w_x)
    )

    nearer = abs(moment) < abs(drift)
    anchor, anchor_low = _choose(xp, nearer, (pivot, pivot_low), (anchor, anchor_low))
    drift = xp.where(nearer, moment, drift)
    lost = xp.any((s == -xp.inf) & (t > -xp.inf), axis=axis, keepdims=True)
    gap = xp.where(lost, xp.inf, xp.zeros_like(t_max))
    return State(
        t_max, t_sum, s_max, s_sum, pivot, pivot_low, y, phi, anchor, anchor_low, drift, gap
    )
