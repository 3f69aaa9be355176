"""The state of rows of logits in the making: `kldiv.formulas.state` for one tile after another.

Tiles are tensors [rows, classes] of float32 or float64, ``t`` and ``s`` the teacher's and the
student's; the numbers of rows are float64 tensors [rows, 1].  Elements stay in their own dtype;
float64 adds up groups of four of them, and merges: a few operations a thread and tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kldiv.formulas import numbers
from kldiv.kernels.triton.elementary import (
    LN2,
    LOG2_E,
    NEAR,
    add,
    bounded,
    difference,
    exp_reduced,
    like,
    log1p_near,
    phi_near,
    total,
    two_difference,
    two_sum,
)

_LN2_LOW = tl.constexpr(numbers.LN2_LOW)
_INSIDE = tl.constexpr(numbers.INSIDE)
_CLOSE = tl.constexpr(numbers.CLOSE)
FARTHEST = tl.constexpr(numbers.FARTHEST)
_LOWEST_32 = tl.constexpr(-3.4028234663852886e38)
_LOWEST_64 = tl.constexpr(-1.7976931348623157e308)


class Heat(NamedTuple):
    """The constants of a temperature that `weight` takes, in the dtype of the elements."""

    inverse: Any
    inverse_low: Any
    """What 1/T has beyond ``inverse``; 0 in float64."""
    per: Any
    ln2: Any
    ln2_low: Any
    gone: Any


class State(NamedTuple):
    """The state of a row: as `kldiv.formulas.state`, but y, phi and drift are sums of w and x."""

    t_max: Any
    t_sum: Any
    s_max: Any
    s_sum: Any
    pivot: Any
    pivot_low: Any
    y: Any
    phi: Any
    anchor: Any
    anchor_low: Any
    drift: Any
    lost: Any
    """1 where a class has p > 0 = q."""
    s_anchor: Any
    s_anchor_low: Any
    """An anchor in the bulk of q, where it is wanted."""


class View(NamedTuple):
    """The constants of rows as seen from the side of p, tensors [rows, 1]; ``own`` are p's logits.

    Another side's is `turned`.
    """

    state: Any
    """The `State` of (own, other)."""
    offset: Any
    """log(p/q) less x."""
    numbers: Any
    """The divergence's `Numbers`."""
    temperature: Any
    hot: Any
    """The `Heat` of the temperature."""
    half: Any
    """The `Heat` of twice the temperature."""


class Numbers(NamedTuple):
    """The numbers of a divergence: `kldiv.kernels.spelling.Numbered`."""

    first: Any
    second: Any
    third: Any
    fourth: Any


# --- elements -------------------------------------------------------------------------------------


@triton.jit
def lowest(x):
    """Return the lowest finite number of the dtype of ``x``."""
    return like(x, _LOWEST_64 if x.dtype == tl.float64 else _LOWEST_32)


@triton.jit
def finite(x):
    """Return ``x``, −∞ replaced by the lowest finite number, NaN kept."""
    return tl.where(x < lowest(x), lowest(x), x)


@triton.jit
def clipped(x):
    """Return ``x``, finite: a masked class has weight 0, and 0·∞ would be NaN."""
    return bounded(x, -lowest(x))


@triton.jit
def heated(temperature, wide: tl.constexpr):
    """Return the constants of a float64 temperature that `weight` takes."""
    kind = tl.float64 if wide else tl.float32
    high = temperature * LN2
    low = tl.fma(temperature, like(temperature, LN2), -high) + temperature * _LN2_LOW
    # A head with so few bits, 41 or 15, that its product with an exponent of 2 is exact.
    bits = high.to(tl.int64, bitcast=True)
    if wide:
        head = ((bits >> 12) << 12).to(tl.float64, bitcast=True)
        gone = -760.0
    else:
        head = ((bits >> 38) << 38).to(tl.float64, bitcast=True)
        gone = -110.0
    inverse = 1.0 / temperature
    return Heat(
        inverse.to(kind),
        (inverse - inverse.to(kind).to(tl.float64)).to(kind),
        (like(temperature, LOG2_E) / temperature).to(kind),
        head.to(kind),
        ((high - head) + low).to(kind),
        (gone * temperature).to(kind),
    )


@triton.jit
def weight(logits, top, hot):
    """Return exp((logits − top)/T) for logits ≤ top, −∞ too, NaN kept."""
    high, low = two_difference(logits, top)
    under = high < hot.gone
    high = tl.where(under, hot.gone, high)
    low = tl.where(under, 0.0, low)
    return exp_reduced(high, low, hot.inverse, hot.per, hot.ln2, hot.ln2_low)


@triton.jit
def _total_of_weights(w):
    """Return Σ w, w ≤ 1: equal numbers of float64 would all be rounded alike."""
    if w.dtype == tl.float64:
        coarse = (w + 67108864.0) - 67108864.0
        result = total(coarse) + total(w - coarse)
    else:
        result = total(w)
    return result


@triton.jit
def steps(t, s, c, c_low):
    """Return d − c, d = t − s, with a small relative error: finite where that over T is not."""
    d, d_low = two_difference(t, s)
    return clipped(difference(d, d_low, c, c_low))


@triton.jit
def apart(t, s, c, c_low, hot):
    """Return x = (d − c)/T."""
    return clipped(steps(t, s, c, c_low) * hot.inverse)


@triton.jit
def origin(top):
    """Return the maximum to subtract: 0 where every class is masked."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def split(c, c_low, wide: tl.constexpr):
    """Return a float64 double word as one of the elements' dtype, and the remainder."""
    kind = tl.float64 if wide else tl.float32
    high = c.to(kind)
    rest = c - high.to(tl.float64)
    low = (rest + c_low).to(kind)
    return high, low, (rest - low.to(tl.float64)) + c_low


# --- rows, in float64 -----------------------------------------------------------------------------


@triton.jit
def log1p_of(y):
    """Return log(1 + y)."""
    close = (y > -0.5) & (y < 1.0)
    near, _ = log1p_near(tl.where(close, y, 0.0))
    return tl.where(close, near, tl.log(1.0 + y))


@triton.jit
def log1p_gap(y):
    """Return y − log(1 + y)."""
    close = (y > -0.5) & (y < 1.0)
    _, near = log1p_near(tl.where(close, y, 0.0))
    return tl.where(close, near, y - tl.log(1.0 + y))


@triton.jit
def _exp_over(high, low, temperature):
    """Return exp((high + low)/T)."""
    high, low = two_sum(high, low)
    quotient = high / temperature
    rest = (tl.fma(-quotient, temperature, high) + low) / temperature
    value = tl.exp(quotient)
    return tl.where(tl.abs(quotient) < 1000.0, value * (1.0 + rest), value)


@triton.jit
def student_scale(s_max, t_max, c, c_low, temperature):
    """Return exp((max s − max t + c)/T)."""
    high, low = two_difference(origin(s_max), origin(t_max))
    high, more = two_sum(high, c)
    return _exp_over(high, low + (more + c_low), temperature)


@triton.jit
def _rescale(old, new, temperature):
    """Return the factor of sums whose maximum changes."""
    high, low = two_difference(origin(old), origin(new))
    factor = tl.where(old > -float("inf"), _exp_over(high, low, temperature), 0.0)
    return tl.where(old == new, 1.0, factor)


@triton.jit
def _ratio_of_sums(t_max, t_sum, s_max, s_sum, temperature):
    """Return T·log(Σe^{t/T}/Σe^{s/T}), about which x is log(p/q), as a double word; else 0."""
    both = (t_sum > 0) & (s_sum > 0)
    high, low = two_difference(origin(t_max), origin(s_max))
    log = tl.log(tl.where(both, t_sum, 1.0) / tl.where(both, s_sum, 1.0))
    return add(high, low, temperature * log)


@triton.jit
def _drift_of(a, scale, c, c_low, temperature):
    """Return Σ w (d − c)/T of a state."""
    h = clipped(difference(a.anchor, a.anchor_low, c, c_low))
    drift = scale * a.drift + scale * a.t_sum * h / temperature
    return tl.where(a.t_sum == 0, 0.0, drift)


@triton.jit
def _moved(a, scale, t_max, c, c_low, temperature):
    """Return Σ w (e⁻ˣ − 1) and Σ w φ(x) of a state about another pivot, of another maximum."""
    h = difference(a.pivot, a.pivot_low, c, c_low) / temperature
    near = (a.t_sum != 0) & (tl.abs(h) < NEAR)
    h = tl.where(near, h, 0.0)
    # φ(x + h) = φ(x) + φ(h) + (e⁻ˣ − 1)(e⁻ʰ − 1)
    step = phi_near(h)
    fall = step - h
    y = scale * (a.y + (a.t_sum + a.y) * fall)
    phi = scale * (a.phi + a.t_sum * step + a.y * fall)
    # Far away Σ w e⁻ˣ is the student's mass: the teacher's weights may underflow or be zero.
    mass = a.s_sum * student_scale(a.s_max, t_max, c, c_low, temperature)
    y_far = tl.where(a.s_sum != 0, mass, 0.0) - scale * a.t_sum
    phi_far = y_far + _drift_of(a, scale, c, c_low, temperature)
    return tl.where(near, y, y_far), tl.where(near, phi, phi_far)


@triton.jit
def merge(a, b, temperature):
    """Return the state of the classes of both."""
    t_max, s_max = tl.maximum(a.t_max, b.t_max), tl.maximum(a.s_max, b.s_max)
    scale_a = _rescale(a.t_max, t_max, temperature)
    scale_b = _rescale(b.t_max, t_max, temperature)
    t_sum = scale_a * a.t_sum + scale_b * b.t_sum
    s_sum_a = a.s_sum * _rescale(a.s_max, s_max, temperature)
    s_sum_b = b.s_sum * _rescale(b.s_max, s_max, temperature)
    s_sum = s_sum_a + s_sum_b

    # The heavier one is nearer to the bulk of all.
    second = scale_b * b.t_sum > scale_a * a.t_sum
    c = tl.where(second, b.pivot, a.pivot)
    c_low = tl.where(second, b.pivot_low, a.pivot_low)
    y_a, phi_a = _moved(a, scale_a, t_max, c, c_low, temperature)
    y_b, phi_b = _moved(b, scale_b, t_max, c, c_low, temperature)
    far = (tl.abs(y_a + y_b) > _CLOSE * t_sum) & (s_sum > 0) & (t_sum > 0)
    ratio, ratio_low = _ratio_of_sums(t_max, t_sum, s_max, s_sum, temperature)
    c, c_low = tl.where(far, ratio, c), tl.where(far, ratio_low, c_low)
    y_far_a, phi_far_a = _moved(a, scale_a, t_max, c, c_low, temperature)
    y_far_b, phi_far_b = _moved(b, scale_b, t_max, c, c_low, temperature)
    y = tl.where(far, y_far_a + y_far_b, y_a + y_b)
    phi = tl.where(far, phi_far_a + phi_far_b, phi_a + phi_b)

    anchor = tl.where(second, b.anchor, a.anchor)
    anchor_low = tl.where(second, b.anchor_low, a.anchor_low)
    drift = _drift_of(a, scale_a, anchor, anchor_low, temperature)
    drift += _drift_of(b, scale_b, anchor, anchor_low, temperature)
    s_second = s_sum_b > s_sum_a
    s_anchor = tl.where(s_second, b.s_anchor, a.s_anchor)
    s_anchor_low = tl.where(s_second, b.s_anchor_low, a.s_anchor_low)
    return State(
        *(t_max, t_sum, s_max, s_sum),
        *(c, c_low, y, phi),
        *(anchor, anchor_low, drift),
        *(tl.maximum(a.lost, b.lost), s_anchor, s_anchor_low),
    )


@triton.jit
def empty_state(rows):
    """Return the state of no classes, for rows like ``rows``: merging it changes nothing."""
    zero = tl.zeros_like(rows)
    none = zero - float("inf")
    return State(none, zero, none, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)


@triton.jit
def finish(a):
    """Return KL of a row, and its offset: log(p/q) = x + offset, x about the pivot."""
    both = (a.t_sum > 0) & (a.s_sum > 0)
    y = a.y / a.t_sum
    kl = a.phi / a.t_sum - log1p_gap(y)
    kl = tl.where(kl < 0, 0.0, kl)
    kl = tl.where(a.lost > 0, float("inf"), kl)
    return tl.where(both, kl, float("nan")), tl.where(both, log1p_of(y), float("nan"))


# --- a tile ---------------------------------------------------------------------------------------


@triton.jit
def _anchor(t, s, w, w_sum, first, first_low, temperature, hot, wide: tl.constexpr):
    """Return an anchor in the bulk of the weights ``w``, as a double word, and Σ w x about it.

    Then d's mean, as a double word, and whether ``first`` is close to that.
    """
    drift = total(w * steps(t, s, first, first_low) * hot.inverse)
    divisor = tl.where(w_sum > 0, w_sum, 1.0)
    start, start_low = first.to(tl.float64), first_low.to(tl.float64)
    middle, middle_low = add(start, start_low, temperature * (drift / divisor))
    mean, mean_low, _ = split(middle, middle_low, wide)
    moment = w * steps(t, s, mean, mean_low) * hot.inverse
    residual, spread = total(moment), total(tl.abs(moment))
    astray = tl.abs(drift) > spread
    anchor = tl.where(astray, mean, first).to(tl.float64)
    anchor_low = tl.where(astray, mean_low, first_low).to(tl.float64)
    inside = tl.abs(drift) <= _INSIDE * spread
    drift = tl.where(astray, residual, drift)
    return anchor, anchor_low, drift, middle, middle_low, inside


@triton.jit
def block_state(t, s, temperature, hot, wide: tl.constexpr, both_anchors: tl.constexpr):
    """Return the state of a tile."""
    t_max = tl.max(t, axis=1, keep_dims=True)
    s_max = tl.max(s, axis=1, keep_dims=True)
    lost = tl.max(((s == -float("inf")) & (t > -float("inf"))).to(tl.int32), axis=1, keep_dims=True)
    beside = finite(tl.max(tl.where(t == t_max, s, -float("inf")), axis=1, keep_dims=True))
    s_beside = finite(tl.max(tl.where(s == s_max, t, -float("inf")), axis=1, keep_dims=True))
    t_top, s_top = origin(t_max), origin(s_max)
    # Not weights of −∞ itself: both logits alive twice spill registers.
    t_none, s_none = t == -float("inf"), s == -float("inf")
    t, s = finite(t), finite(s)
    w = tl.where(t_none, 0.0, weight(t, t_top, hot))
    v = tl.where(s_none, 0.0, weight(s, s_top, hot))
    t_sum, s_sum = _total_of_weights(w), _total_of_weights(v)

    # About d at the teacher's maximum x is exactly zero where d is constant.
    first, first_low = two_difference(t_top, beside)
    anchor, anchor_low, drift, middle, middle_low, inside = _anchor(
        t, s, w, t_sum, first, first_low, temperature, hot, wide
    )
    t_max, s_max = t_max.to(tl.float64), s_max.to(tl.float64)
    some, both = t_sum > 0, (t_sum > 0) & (s_sum > 0)
    ratio, ratio_low = _ratio_of_sums(t_max, t_sum, s_max, s_sum, temperature)
    kl = difference(middle, middle_low, ratio, ratio_low) / temperature
    close = tl.abs(kl) < _CLOSE
    c, c_low, _ = split(
        tl.where(close, middle, ratio), tl.where(close, middle_low, ratio_low), wide
    )
    # A far class of little weight may carry the mean away: all others still have x = 0 here.
    inside = inside & close
    c, c_low = tl.where(inside, first, c), tl.where(inside, first_low, c_low)
    c, c_low = tl.where(both, c, 0.0), tl.where(both, c_low, 0.0)
    pivot, pivot_low = c.to(tl.float64), c_low.to(tl.float64)

    step = steps(t, s, c, c_low)
    x = clipped(step * hot.inverse)
    near = bounded(x, like(x, NEAR))
    # Beside the lowest finite logit x does not tell which class is −∞: its weight does.
    w_near, inside = w * near, (tl.abs(x) < NEAR) & (w > 0.0) & (v > 0.0)
    # w·e⁻ˣ by the student's own exponential: it stays where the teacher's underflows or is zero.
    scale = student_scale(s_max, t_max, pivot, pivot_low, temperature)
    mass = v * tl.where(both, scale, 0.0).to(x.dtype)
    # w·φ(x) within NEAR; less w·near it is w·(e⁻ˣ − 1) everywhere.
    term = tl.where(inside, w * phi_near(near), (mass - w) + w_near)
    # Divided by T at last: x may overflow where w times it does not.
    y = total(term - w_near)
    phi = total(tl.where(inside, term, (mass - w) + w * step * hot.inverse))

    zero = tl.zeros_like(t_sum)
    # Where the student has lost all, e⁻ˣ is 0.
    y = tl.where(both, y, tl.where(some, -t_sum, zero))
    s_anchor, s_anchor_low = zero, zero
    if both_anchors:
        s_first, s_first_low = two_difference(s_beside, s_top)
        s_anchor, s_anchor_low, _, _, _, _ = _anchor(
            t, s, v, s_sum, s_first, s_first_low, temperature, hot, wide
        )
    anchor, anchor_low = tl.where(some, anchor, zero), tl.where(some, anchor_low, zero)
    s_anchor = tl.where(s_sum > 0, s_anchor, zero)
    s_anchor_low = tl.where(s_sum > 0, s_anchor_low, zero)
    return State(
        *(t_max, t_sum, s_max, s_sum),
        *(pivot, pivot_low, y, tl.where(both, phi, zero)),
        *(anchor, anchor_low, tl.where(some, drift, zero)),
        *(lost.to(tl.float64), s_anchor, s_anchor_low),
    )


# --- classes read again ---------------------------------------------------------------------------


@triton.jit
def _student_state(a):
    """Return the state of (t, s), given that of (s, t): d, its pivot and its anchor turn round."""
    return State(
        *(a.s_max, a.s_sum, a.t_max, a.t_sum),
        *(-a.pivot, -a.pivot_low, a.y, a.phi),
        *(-a.s_anchor, -a.s_anchor_low, a.drift),
        *(a.lost, a.anchor, a.anchor_low),
    )


@triton.jit
def turned(view):
    """Return the view from the other side."""
    own = view.numbers
    numbers = Numbers(own.second, own.first, own.fourth, own.third)
    state = _student_state(view.state)
    return View(state, -view.offset, numbers, view.temperature, view.hot, view.half)


@triton.jit
def probability(logits, top, mass, hot, wide: tl.constexpr):
    """Return the probabilities of classes."""
    kind = tl.float64 if wide else tl.float32
    return weight(logits, origin(top).to(kind), hot) * (1.0 / mass).to(kind)


@triton.jit
def _apart(own, other, c, c_low, hot):
    """Return (d − c)/T, as far as can be where one of the two is −∞."""
    x = apart(finite(own), finite(other), c, c_low, hot)
    none = tl.where(other == -float("inf"), tl.zeros_like(x), like(x, -FARTHEST))
    x = tl.where(other == -float("inf"), like(x, FARTHEST), x)
    return tl.where(own == -float("inf"), none, x)


@triton.jit
def both_probabilities(own, other, view, wide: tl.constexpr):
    """Return p and q."""
    a = view.state
    p = probability(own, a.t_max, a.t_sum, view.hot, wide)
    return p, probability(other, a.s_max, a.s_sum, view.hot, wide)


@triton.jit
def log_ratio(own, other, view, wide: tl.constexpr):
    """Return log(p/q), NaN in a row that is."""
    kind = tl.float64 if wide else tl.float32
    c, c_low, left = split(view.state.pivot, view.state.pivot_low, wide)
    behind = (view.offset - left * view.hot.inverse.to(tl.float64)).to(kind)
    return _apart(own, other, c, c_low, view.hot) + behind


@triton.jit
def falling(own, other, view, wide: tl.constexpr):
    """Return q − p: by p·(e⁻ˣ − 1) where they are close."""
    p, q = both_probabilities(own, other, view, wide)
    x = log_ratio(own, other, view, wide)
    near = bounded(x, like(x, NEAR))
    return tl.where(tl.abs(x) < NEAR, p * (phi_near(near) - near), q - p)


@triton.jit
def from_anchor(own, other, view, wide: tl.constexpr):
    """Return log(p/q) less its value at the anchor."""
    kind = tl.float64 if wide else tl.float32
    b, b_low, left = split(view.state.anchor, view.state.anchor_low, wide)
    step = _apart(own, other, b, b_low, view.hot)
    return step - (left * view.hot.inverse.to(tl.float64)).to(kind)


@triton.jit
def anchor_power(view, rate):
    """Return (q/p)^rate at the anchor: the product of rate and log(p/q) is a double word."""
    a = view.state
    high, low = two_difference(a.anchor, a.pivot)
    high, low = two_sum(high, low + (a.anchor_low - a.pivot_low))
    factor = tl.zeros_like(high) - rate
    power = factor * high
    rest = tl.fma(factor, high, -power) + factor * low
    # An anchor at a class that q masks is so far away that the product may overflow.
    far = tl.abs(power) > 1e300
    power = _exp_over(
        bounded(power, like(power, 1e300)), tl.where(far, 0.0, rest), view.temperature
    )
    return power * tl.exp(factor * view.offset)
