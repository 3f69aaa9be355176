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

import math
from fractions import Fraction
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

DoubleWord: TypeAlias = "tuple[Array, Array]"

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
    spread: Array
    """About Σ w |d − mean|/T: an anchor further than that from the mean is not in the bulk."""
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
    t_max, s_max = (xp.max(a, axis=axis, keepdims=True) for a in (t, s))
    t_top, s_top = _origin(xp, t_max), _origin(xp, s_max)
    t_low, s_low = finite(xp, t), finite(xp, s)
    w, v = weights_of(xp, t_low, t_top, temperature), weights(xp, s_low, s_top, temperature)
    t_sum, s_sum = total(xp, w, axis), total(xp, v, axis)
    d, d_low = two_difference(t_low, s_low)

    # About d at the teacher's maximum x is exactly zero where d is constant.
    beside = xp.max(xp.where(t == t_max, s_low, -xp.inf), axis=axis, keepdims=True)
    anchor = two_difference(t_top, beside)
    x = tempered(xp, (d - anchor[0]) + (d_low - anchor[1]), temperature)
    drift = total(xp, w * x, axis)
    mean = add(*anchor, temperature * (drift / xp.where(t_sum > 0, t_sum, 1.0)))
    x = tempered(xp, (d - mean[0]) + (d_low - mean[1]), temperature)
    w_x = w * x
    residual, spread = total(xp, w_x, axis), total(xp, abs(w_x), axis)

    both, ratio = _ratio_of_sums(xp, t_top, t_sum, s_top, s_sum, temperature)
    # The logarithm of the sums is right to a few u, and so tells no divergence below that from zero.
    close = abs(over(difference(*mean, *ratio), temperature)) < 16.0 * xp.finfo(t.dtype).eps
    pivot = _choose(xp, close, mean, ratio)
    pivot = _choose(xp, both, pivot, (0.0, 0.0))

    x = tempered(xp, difference(d, d_low, *pivot), temperature)
    near = xp.clip(x, -NEAR, NEAR)
    w_x, w_near = w * x, w * near
    # w·e⁻ˣ by the student's own exponential: it stays where the teacher's underflows or is zero.
    scale = xp.where(both, _exp_sum(xp, s_top, t_top, pivot, temperature), 0.0)
    # This is w·φ(x) within NEAR, and less w·near it is w·(e⁻ˣ − 1) everywhere.
    term = xp.where(abs(x) < NEAR, w * phi_near(xp, near), (v * scale - w) + w_near)
    y, phi = total(xp, term - w_near, axis), total(xp, term + (w_x - w_near), axis)

    moment = total(xp, w_x, axis)
    nearer = abs(moment) < abs(drift)
    anchor, drift = _choose(xp, nearer, pivot, anchor), xp.where(nearer, moment, drift)
    astray = abs(drift) > spread
    anchor, drift = _choose(xp, astray, mean, anchor), xp.where(astray, residual, drift)
    lost = xp.any((s == -xp.inf) & (t > -xp.inf), axis=axis, keepdims=True)
    return State(
        t_max,
        t_sum,
        s_max,
        s_sum,
        *pivot,
        y,
        phi,
        *_choose(xp, t_sum > 0, anchor, (0.0, 0.0)),
        drift,
        spread,
        xp.where(lost, xp.inf, xp.zeros_like(t_max)),
    )


def merge(
    xp: Namespace, states: Sequence[State], axis: int = -1, temperature: Temperature = 1.0
) -> State:
    """Return the state of all classes of ``states``, which may be any number, in any order."""
    if len(states) == 1:
        return states[0]
    parts = State(*(xp.concat(arrays, axis=axis) for arrays in zip(*states, strict=True)))
    t_max, s_max = (xp.max(a, axis=axis, keepdims=True) for a in (parts.t_max, parts.s_max))
    t_top, s_top = _origin(xp, t_max), _origin(xp, s_max)
    t_scale = _rescale(xp, parts.t_max, t_max, temperature)
    s_scale = _rescale(xp, parts.s_max, s_max, temperature)
    t_sums = t_scale * parts.t_sum
    t_sum, s_sum = total(xp, t_sums, axis), total(xp, s_scale * parts.s_sum, axis)

    # The heaviest block is near the bulk of p, whatever came first and however far its pivot is.
    heaviest = t_sums == xp.max(t_sums, axis=axis, keepdims=True)
    anchor = _pick(xp, heaviest, parts.anchor, parts.anchor_low, axis)
    h = tempered(xp, difference(parts.anchor, parts.anchor_low, *anchor), temperature)
    drift = total(xp, t_scale * parts.drift + t_sums * h, axis)
    mean = add(*anchor, temperature * (drift / xp.where(t_sum > 0, t_sum, 1.0)))
    h = t_sums * tempered(xp, difference(parts.anchor, parts.anchor_low, *mean), temperature)
    residual = total(xp, t_scale * parts.drift + h, axis)
    spread = total(xp, t_scale * parts.spread + abs(h), axis)
    astray = abs(drift) > spread
    anchor, drift = _choose(xp, astray, mean, anchor), xp.where(astray, residual, drift)

    pivot = _pick(xp, heaviest, parts.pivot, parts.pivot_low, axis)
    y = total(xp, _repivoted(xp, parts, t_top, t_scale, pivot, temperature)[0], axis)
    y = y / xp.where(t_sum > 0, t_sum, 1.0)
    both, ratio = _ratio_of_sums(xp, t_top, t_sum, s_top, s_sum, temperature)
    close = abs(y) < 0.5
    step = log1p(xp, xp.where(close, y, 0.0))
    pivot = _choose(xp, close, add(*pivot, -temperature * step), ratio)
    pivot = _choose(xp, both, pivot, (0.0, 0.0))
    ys, phis = _repivoted(xp, parts, t_top, t_scale, pivot, temperature)
    # Beyond NEAR φ follows from y and the mean, as φ(x) = (e⁻ˣ − 1) + x.

    return State(
        t_max,
        t_sum,
        s_max,
        s_sum,
        *pivot,
        total(xp, ys, axis),
        total(xp, phis, axis),
        *anchor,
        drift,
        spread,
        xp.max(parts.gap, axis=axis, keepdims=True),
    )


def _repivoted(
    xp: Namespace,
    parts: State,
    t_top: Array,
    t_scale: Array,
    pivot: DoubleWord,
    temperature: Temperature,
) -> tuple[Array, Array]:
    """Return the sums y and φ of every part about another pivot and maximum."""
    h = tempered(xp, difference(parts.pivot, parts.pivot_low, *pivot), temperature)
    near = (abs(h) < NEAR) & (parts.t_sum > 0)
    # φ(x + h) = φ(x) + φ(h) + (e⁻ˣ − 1)(e⁻ʰ − 1)
    step = phi_near(xp, xp.where(near, h, 0.0))
    fall = step - xp.where(near, h, 0.0)
    y = t_scale * (parts.y + (parts.t_sum + parts.y) * fall)
    phi = t_scale * (parts.phi + parts.t_sum * step + parts.y * fall)
    # Far away w·e⁻ˣ is the student's mass: a teacher's block may be all −∞, or underflow.
    s_top = _origin(xp, parts.s_max)
    mass = xp.where(
        parts.s_sum > 0, parts.s_sum * _exp_sum(xp, s_top, t_top, pivot, temperature), 0.0
    )
    t_sum = t_scale * parts.t_sum
    y_far = mass - t_sum
    h = tempered(xp, difference(parts.anchor, parts.anchor_low, *pivot), temperature)
    phi_far = y_far + (t_scale * parts.drift + t_sum * h)
    return xp.where(near, y, y_far), xp.where(near, phi, phi_far)


def finish(xp: Namespace, state: State, temperature: Temperature = 1.0) -> Rows:
    """Return KL of each row and the constants of its gradients."""
    t_sum, s_sum = state.t_sum, state.s_sum
    y = state.y / t_sum
    kl = state.phi / t_sum - log1p_gap(xp, y)
    kl = xp.where(kl < 0, 0.0, kl)
    kl = xp.where(state.gap > 0, state.gap, kl)
    # NaN where a side has no class at all, or holds NaN or +∞.
    nan = xp.where((t_sum > 0) & (s_sum > 0), 0.0, xp.nan * t_sum)
    return Rows(
        kl + nan,
        state.t_max,
        1.0 / t_sum,
        state.s_max,
        1.0 / s_sum,
        state.pivot,
        state.pivot_low,
        log1p(xp, y) + nan,
        state.anchor,
        state.anchor_low,
        state.drift / t_sum + nan,
    )


def empty_state(xp: Namespace, rows: Array) -> State:
    """Return the state of no classes for rows of that shape: merging it changes nothing."""
    zero = xp.zeros_like(rows)
    none = zero - xp.inf
    return State(none, zero, none, *(zero for _ in range(10)))


# --- pieces --------------------------------------------------------------------------------------


def over(array: Array, temperature: Temperature) -> Array:
    """Return ``array / temperature``; the number 1 costs nothing."""
    if isinstance(temperature, int | float) and temperature == 1:
        return array
    return array / temperature


def tempered(xp: Namespace, x: Array, temperature: Temperature) -> Array:
    """Return ``x / temperature``, finite: of a masked class, whose weight is 0."""
    limits = xp.finfo(x.dtype)
    return xp.clip(over(x, temperature), float(limits.min), float(limits.max))


def exp_over(xp: Namespace, high: Array, low: Array, temperature: Temperature) -> Array:
    """Return exp((high + low)/T) to a few u: of an exponent of −60, rounding alone would cost 32 u."""
    if isinstance(temperature, int | float) and math.frexp(temperature)[0] == 0.5:
        high, low = over(high, temperature), over(low, temperature)  # exact: a power of two
    else:
        first, second = _inverse(xp, temperature, high)
        head, tail = _halves(xp, high)
        low = head * second + (tail + low) * (first + second)
        back = head * first  # exact: half the bits each
        high = back + low
        low = low - (high - back)
    value = xp.exp(high)
    return value + value * low


def _inverse(xp: Namespace, temperature: Temperature, like: Array) -> tuple[Array | float, ...]:
    """Return 1/T as a number of half the bits, and the rest of it."""
    if isinstance(temperature, int | float):
        exact = 1 / Fraction(temperature)
        bits = 25 if like.dtype == xp.float64 else 11
        mantissa, exponent = math.frexp(float(exact))
        head = math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)
        return head, float(exact - Fraction(head))
    inverse = 1.0 / temperature
    head, tail = _halves(xp, inverse)
    t_head, t_tail = _halves(xp, temperature)
    error = (((1.0 - head * t_head) - head * t_tail) - tail * t_head) - tail * t_tail
    return head, tail + error * inverse


def _halves(xp: Namespace, a: Array) -> tuple[Array, Array]:
    """Split ``a`` into two numbers of half the bits (Veltkamp)."""
    bits = 27 if a.dtype == xp.float64 else 12
    a = xp.clip(a, float(xp.finfo(a.dtype).min) * 2.0 ** -(bits + 2), xp.inf)
    large = a * (2.0**bits + 1.0)
    head = large - (large - a)
    return head, a - head


def finite(xp: Namespace, logits: Array) -> Array:
    """Return ``logits`` with the lowest finite number for −∞: its exponential is 0, times x too."""
    return xp.clip(logits, float(xp.finfo(logits.dtype).min), xp.inf)


def weights_of(xp: Namespace, logits: Array, top: Array, temperature: Temperature) -> Array:
    """Return exp((logits − top)/T)."""
    return exp_over(xp, *two_difference(logits, top), temperature)


def total(xp: Namespace, array: Array, axis: int) -> Array:
    """Return the sum along ``axis``, kept, with an error that hardly grows with its length."""
    return xp.sum(array, axis=axis, keepdims=True)


def _origin(xp: Namespace, top: Array) -> Array:
    """Return the maximum to subtract: 0 where every class is masked."""
    return xp.where(top == -xp.inf, 0.0, top)


def _rescale(xp: Namespace, old: Array, new: Array, temperature: Temperature) -> Array:
    return xp.where(old == new, 1.0, weights_of(xp, finite(xp, old), finite(xp, new), temperature))


def _exp_sum(
    xp: Namespace, a: Array, b: Array, c: DoubleWord, temperature: Temperature
) -> Array:
    """Return exp((a − b + c)/T)."""
    high, low = two_difference(a, b)
    back, more = two_sum(high, c[0])
    low = low + (more + c[1])
    high = back + low
    return exp_over(xp, high, low - (high - back), temperature)


def _ratio_of_sums(
    xp: Namespace,
    t_top: Array,
    t_sum: Array,
    s_top: Array,
    s_sum: Array,
    temperature: Temperature,
) -> tuple[Array, DoubleWord]:
    """Return whether both sums are there, and then T·log(Σe^{t/T}/Σe^{s/T})."""
    both = (t_sum > 0) & (s_sum > 0)
    log = xp.log(xp.where(both, t_sum / s_sum, 1.0))
    return both, add(*two_difference(t_top, s_top), temperature * log)


def _choose(
    xp: Namespace, condition: Array, yes: DoubleWord, no: DoubleWord
) -> DoubleWord:
    return xp.where(condition, yes[0], no[0]), xp.where(condition, yes[1], no[1])


def _pick(
    xp: Namespace, where: Array, high: Array, low: Array, axis: int
) -> DoubleWord:
    """Return the largest double word along ``axis`` among those picked."""
    high_picked = xp.max(xp.where(where, high, -xp.inf), axis=axis, keepdims=True)
    where = where & (high == high_picked)
    return high_picked, xp.max(xp.where(where, low, -xp.inf), axis=axis, keepdims=True)
