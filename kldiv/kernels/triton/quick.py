"""The quick way through rows of float32 elements: sums a thread keeps, x nowhere large.

The state of a tile, as `kldiv.kernels.triton.state` finds it, takes a dozen sums over all threads,
and a merge in float64 that each of them repeats.  Here a glance at the first tile tells about where
the maximum, the pivot and the anchor lie, and all tiles are added up about these: a thread adds up
its own elements, and threads meet every 32 tiles.  At the end it is seen how good the guess was: if
it was not good enough, the row is read again, about what the sums themselves tell; if that is no
good either, it is left to `block_state`, which takes any logits.

The origin of the exponents is a power of 2, so that no maximum is subtracted, and x is so small
that w·e⁻ˣ neither underflows nor loses digits: the student needs no exponential of its own.  The
pivot is d's mean where P and Q are close, and else the ratio of their sums, as in a `State`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kldiv.formulas import numbers
from kldiv.kernels.triton.elementary import (
    LN2,
    bounded,
    divide,
    exp_less,
    less,
    like,
    power_from,
    two_difference,
)
from kldiv.kernels.triton.places import columns_from, load_pair
from kldiv.kernels.triton.state import State, log1p_gap, log1p_of, origin

_TRIES = tl.constexpr(2)

_CLOSE = tl.constexpr(numbers.CLOSE)

_FARTHEST = tl.constexpr(64.0)
"""An |x| from which w·e⁻ˣ may lose digits, or overflow."""

_FAR = tl.constexpr(0x42800000)
"""The bits of `_FARTHEST`."""

_WEIGHTLESS = tl.constexpr(40.0)
"""By how much smaller |x| must be where w is too small to be a number, for w·e⁻ˣ to be nothing."""

_RISE = tl.constexpr(32)
"""By how many powers of 2 a weight may exceed 1."""

_HIGHEST = tl.constexpr(150.0)
"""The largest exponent of 2 at the origin: its multiples of log 2 stay exact."""

_LARGE = tl.constexpr(1e6)
"""|pivot| over T up to which float64 tells the student's maximum from it: beyond, by the logits."""

_LEAST = tl.constexpr(1e-20)
"""Σ w φ(x), and Σ w, that weights too small to be told from 0 do not touch."""

_AMPLIFIED = tl.constexpr(2.0)
"""How much larger roundings may become by a pivot that is not the mean."""

TOGETHER = tl.constexpr(32)
"""Tiles of which a thread adds up its elements in float32, before the threads meet."""

STAGES = tl.constexpr(3)
"""Tiles that are under way from memory."""

_ASIDE = tl.constexpr(0.8)
"""The largest |Σ w x|, of Σ w |x|, where the mean is near the bulk of the weights."""

_FALLEN = tl.constexpr(2.5)
"""The largest Σ w |e⁻ˣ − 1| of one sign, of that of the other."""


class Guess(NamedTuple):
    """The origin, pivot and anchor about which rows are added up, tensors [rows, 1]."""

    exponent: Any
    """The exponent of 2 at the origin, float64."""
    pivot: Any
    """The pivot, float32."""
    apart: Any
    """Pivot less anchor, over T, float32."""


class Sums(NamedTuple):
    """Sums over the classes of rows, float64 tensors [rows, 1]: w and x are as in a `State`."""

    weights: Any
    """Σ w."""
    y: Any
    """Σ w (e⁻ˣ − 1)."""
    fell: Any
    """Σ w |e⁻ˣ − 1|."""
    phi: Any
    """Σ w φ(x)."""
    drift: Any
    """Σ w x, x about the anchor."""
    spread: Any
    """Σ w |x|, likewise."""
    s_drift: Any
    """Σ w e⁻ˣ x, where it is wanted."""
    s_spread: Any
    """Σ w e⁻ˣ |x|."""


_SUMS = tl.constexpr(len(Sums._fields))


@triton.jit
def _balanced(y, fell):
    """Return whether q − p loses no digits: it is p (e⁻ˣ − 1 − y)/(1 + y), maybe far smaller.

    ``y`` and ``fell`` are the means of e⁻ˣ − 1 and of its magnitude.
    """
    smaller = 0.5 * (fell - tl.abs(y))
    return smaller + tl.abs(y) <= _FALLEN * smaller * tl.where(y > 0, 1.0 + y, 1.0)


@triton.jit
def _better(guess, mean, y, fell, temperature, shannon: tl.constexpr):
    """Return a guess from means about one: of x about its anchor, of e⁻ˣ − 1, and |e⁻ˣ − 1|."""
    log = log1p_of(tl.where(y > -1.0, y, 0.0))
    pivot, apart = guess.pivot.to(tl.float64), guess.apart.to(tl.float64)
    anchor = pivot + temperature * (mean - apart)
    far = (mean - apart + log > _CLOSE) | ~_balanced(y, fell)  # the first is KL
    pivot = tl.where(far, pivot - temperature * log, anchor).to(tl.float32)
    if shannon:
        apart = tl.zeros_like(apart)
    else:
        apart = tl.where(far, (pivot.to(tl.float64) - anchor) / temperature, 0.0)
    return Guess(guess.exponent, pivot, apart.to(tl.float32))


@triton.jit
def _glance(own, other, temperature, hot, shannon: tl.constexpr):
    """Return a guess from a tile."""
    top = tl.max(own, axis=1, keep_dims=True).to(tl.float64)
    exponent = tl.floor(tl.where(tl.abs(top) < float("inf"), top, 0.0) / (temperature * LN2) + 0.5)
    w, _ = power_from(own, exponent.to(tl.float32), hot.inverse, hot.per, hot.ln2, hot.ln2_low)
    d = own - other
    some = (w > 0.0) & (tl.abs(d) < float("inf"))
    w = tl.where(some, w, 0.0)
    mass = tl.sum(w, axis=1, keep_dims=True)
    mass = tl.where(mass > 0.0, mass, 1.0)
    mean = divide(tl.sum(tl.where(some, w * d, 0.0), axis=1, keep_dims=True), mass)
    x = bounded(tl.where(some, (d - mean) * hot.inverse, 0.0), like(d, _FARTHEST))
    _, fall, _ = exp_less(x, like(d, 0.0))
    fall = w * fall
    y = divide(tl.sum(fall, axis=1, keep_dims=True), mass).to(tl.float64)
    fell = divide(tl.sum(tl.abs(fall), axis=1, keep_dims=True), mass).to(tl.float64)
    guess = Guess(exponent, mean, tl.zeros_like(mean))
    return _better(guess, tl.zeros_like(temperature), y, fell, temperature, shannon)


@triton.jit
def elements(own, other, origin, center, hot):
    """Return w, its exponent of 2, and x as a double word."""
    w, power = power_from(own, origin, hot.inverse, hot.per, hot.ln2, hot.ln2_low)
    d, d_low = two_difference(own, other)
    high, low = two_difference(d, center)
    low = low + d_low
    step = high + low
    low = (high - step) + low
    x = step * hot.inverse
    x_low = tl.fma(step, hot.inverse, -x) + tl.fma(low, hot.inverse, step * hot.inverse_low)
    none = (own == -float("inf")) & (other == -float("inf"))
    return w, power, tl.where(none, 0.0, x), tl.where(none, 0.0, x_low)


@triton.jit
def all_lanes(x):
    """Return the sums of rows in float64."""
    return tl.sum(x.to(tl.float64), axis=1, keep_dims=True)


@triton.jit
def _sums_about(
    guess,  # Guess [height, 1]
    pair,  # Pair, the logits
    first,  # int, the first class
    end,  # int, the class after the last; may be beyond the row
    there,  # [height, 1] of bool, rows that count
    hot,  # Heat [height, 1], constants of the temperature
    shannon: tl.constexpr,  # bool, whether sums for Jensen-Shannon are wanted
    height: tl.constexpr,  # int, rows of a tile
    width: tl.constexpr,  # int, classes of a tile, a power of 2
):
    """Return the sums of rows about a guess, the bits of the largest |x|, and the exponents."""
    last = tl.minimum(end, pair.classes)
    start_exponent = guess.exponent.to(tl.float32)
    zero = tl.zeros([height, 1], tl.float64)
    weights, y, fell, phi, drift, spread, s_drift, s_spread = (
        zero, zero, zero, zero, zero, zero, zero, zero,
    )  # fmt: skip
    far = tl.zeros([height, width], tl.int32)
    rise = far
    for group in range(first, last, TOGETHER * width):
        lanes = tl.zeros([height, width], tl.float32)
        w_lanes, y_lanes, fell_lanes, phi_lanes = lanes, lanes, lanes, lanes
        x_lanes, size_lanes, s_lanes, s_size_lanes = lanes, lanes, lanes, lanes
        stop = tl.minimum(group + TOGETHER * width, last)
        for start in tl.range(group, stop, width, num_stages=STAGES):
            columns = columns_from(start, width)
            mask = there & (columns < end) & (columns < pair.classes)
            own, other = load_pair(pair, columns, mask, wide=False)
            w, power, x, x_low = elements(own, other, start_exponent, guess.pivot, hot)
            _, fall, bregman = exp_less(x, x_low)
            w_lanes += w
            y_lanes = tl.fma(w, fall, y_lanes)
            fell_lanes = tl.fma(w, tl.abs(fall), fell_lanes)
            phi_lanes = tl.fma(w, bregman, phi_lanes)
            size = tl.abs(x)
            size = tl.where((w == 0.0) & (x != 0.0), size + _WEIGHTLESS, size)
            # NaN is the largest, by its bits.
            far = tl.maximum(far, size.to(tl.int32, bitcast=True))
            rise = tl.maximum(rise, power)
            moment = w * (x if shannon else (x + guess.apart) + x_low)
            x_lanes += moment
            size_lanes += tl.abs(moment)
            if shannon:
                s_moment = tl.fma(moment, fall, moment)
                s_lanes += s_moment
                s_size_lanes += tl.abs(s_moment)
        weights += all_lanes(w_lanes)
        y += all_lanes(y_lanes)
        fell += all_lanes(fell_lanes)
        phi += all_lanes(phi_lanes)
        drift += all_lanes(x_lanes)
        spread += all_lanes(size_lanes)
        if shannon:
            s_drift += all_lanes(s_lanes)
            s_spread += all_lanes(s_size_lanes)
    sums = Sums(weights, y, fell, phi, drift, spread, s_drift, s_spread)
    return sums, tl.max(far, axis=1, keep_dims=True), tl.max(rise, axis=1, keep_dims=True)


@triton.jit
def _is_good(sums, far, rise, guess, temperature):
    """Return whether sums about a guess are as accurate as a block's own."""
    # A pivot near to the mean or to the ratio of sums: there roundings grow but little.
    weights = tl.where(sums.weights > 0, sums.weights, 1.0)
    y = sums.y / weights
    kl = sums.phi - weights * log1p_gap(tl.where(y > -1.0, y, 0.0))
    central = sums.phi <= _AMPLIFIED * kl * (1.0 + y)
    central &= tl.abs(sums.drift) <= _ASIDE * sums.spread
    central &= (sums.phi >= _LEAST) & (sums.weights >= _LEAST) & (sums.weights < float("inf"))
    central &= _balanced(y, sums.fell / weights)
    # All are masked, or all are alike.
    nothing = (sums.weights == 0) | ((sums.phi == 0) & (sums.weights >= _LEAST))
    sound = (far < _FAR) & (rise <= _RISE) & (tl.abs(guess.exponent) <= _HIGHEST)
    sound &= tl.abs(guess.pivot.to(tl.float64)) <= _LARGE * temperature
    return sound & (central | ((far == 0) & nothing))


@triton.jit
def _state_of(sums, guess, temperature, good):
    """Return the state that sums make; where they are no good that of no classes, but NaN first."""
    zero = tl.zeros_like(temperature)
    none = zero - float("inf")
    exponent = guess.exponent
    top = (exponent * temperature * LN2).to(tl.float32).to(tl.float64)
    scale = tl.exp(exponent * LN2 - top / temperature)
    c = guess.pivot.to(tl.float64)
    # Σ w e⁻ˣ = Σ exp((s − (origin − c))/T)
    apart = top - c
    s_max = apart.to(tl.float32).to(tl.float64)
    student = sums.weights + sums.y
    s_sum = scale * student * tl.exp((apart - s_max) / temperature)
    # An anchor in the bulk of q: the pivot, unless q lies aside of it.
    mean = c + temperature * (sums.s_drift / tl.where(student > 0, student, 1.0))
    s_anchor = tl.where(tl.abs(sums.s_drift) <= _ASIDE * sums.s_spread, c, mean)
    some = good & (sums.weights > 0)
    pivot = tl.where(some, c, zero)
    anchor = tl.where(some, c - temperature * guess.apart.to(tl.float64), zero)
    return State(
        tl.where(good, tl.where(some, top, none), float("nan")),
        tl.where(some, scale * sums.weights, zero),
        *(tl.where(some, s_max, none), tl.where(some, s_sum, zero)),
        *(pivot, zero, tl.where(some, scale * sums.y, zero)),
        *(tl.where(some, scale * sums.phi, zero), anchor, zero),
        *(tl.where(some, scale * sums.drift, zero), zero, tl.where(some, s_anchor, zero), zero),
    )


@triton.jit
def _chosen(first, sums, others):
    """Return the first sums where the mask is true, the others elsewhere."""
    found = ()
    for k in tl.static_range(_SUMS):
        found = found + (tl.where(first, sums[k], others[k]),)  # noqa: RUF005 - Triton's
    return Sums(*found)


@triton.jit
def quick_state(
    pair,  # Pair, the logits
    first,  # int, the first class
    end,  # int, the class after the last; may be beyond the row
    there,  # [height, 1] of bool, rows that count
    temperature,  # [height, 1] of float64
    hot,  # Heat [height, 1], constants of the temperature
    shannon: tl.constexpr,  # bool, whether sums for Jensen-Shannon are wanted
    height: tl.constexpr,  # int, rows of a tile
    width: tl.constexpr,  # int, classes of a tile, a power of 2
):
    """Return states of the classes from ``first`` to ``end``, and a mask of the rows that are done.

    The others have the state of no classes, but for NaN as its first number.
    """
    columns = columns_from(first, width)
    mask = there & (columns < end) & (columns < pair.classes)
    own, other = load_pair(pair, columns, mask, wide=False)
    guess = _glance(own, other, temperature, hot, shannon)
    zero = tl.zeros([height, 1], tl.float64)
    sums = Sums(zero, zero, zero, zero, zero, zero, zero, zero)
    good = zero > 0
    begin = first
    for _ in range(_TRIES):
        # Rows whose guess was good are not read again, and their sums stay.
        new, far, rise = _sums_about(
            guess, pair, begin, end, there & ~good, hot, shannon, height, width
        )
        sums = _chosen(good, sums, new)
        good |= _is_good(sums, far, rise, guess, temperature)
        begin = tl.where(tl.min(good.to(tl.int32)) > 0, end, first)
        weights = tl.where(sums.weights > 0, sums.weights, 1.0)
        mean, y, fell = sums.drift / weights, sums.y / weights, sums.fell / weights
        better = _better(guess, mean, y, fell, temperature, shannon)
        exponent = guess.exponent + tl.where(rise > _RISE, rise, 0)
        guess = Guess(
            tl.where(good, guess.exponent, exponent),
            tl.where(good, guess.pivot, better.pivot),
            tl.where(good, guess.apart, better.apart),
        )
    return _state_of(sums, guess, temperature, good), good


# --- gradients ------------------------------------------------------------------------------------


class Slopes(NamedTuple):
    """The constants of a row for its gradients, from the state of `quick_state`, in float32."""

    exponent: Any
    center: Any
    apart: Any
    """Pivot less anchor, over T."""
    by: Any
    """p/w."""
    mean: Any
    """Σ p x, x about the anchor."""
    student: Any
    student_low: Any
    """(q − p)/w is the one times (e⁻ˣ − 1), plus the other."""
    factor: Any
    """The factor of the gradients: it comes last, as it may be of any size."""


@triton.jit
def scale_of(a, temperature):
    """Return the exponent of 2 at the origin, Σ w or 1, and p/w, from a state of `quick_state`."""
    top = origin(a.t_max)
    exponent = tl.floor(top / (temperature * LN2) + 0.5)
    mass = tl.where(a.t_sum > 0, a.t_sum, 1.0)
    by = tl.exp(exponent * LN2 - top / temperature) / mass
    return exponent, mass, by


@triton.jit
def slopes_of(a, offset, factor, temperature):
    """Return the constants of rows for their gradients, given their state and log(p/q) less x."""
    exponent, mass, by = scale_of(a, temperature)
    # q − p = p (e^(−x−δ) − 1)
    shift = less(offset)
    nan = offset - offset  # of a row that is no distribution
    return Slopes(
        exponent.to(tl.float32),
        a.pivot.to(tl.float32),
        ((a.pivot - a.anchor) / temperature).to(tl.float32),
        by.to(tl.float32),
        (a.drift / mass + nan).to(tl.float32),
        (by * (1.0 + shift)).to(tl.float32),
        (by * shift).to(tl.float32),
        factor.to(tl.float32),
    )


@triton.jit
def quick_slope(t, s, slopes, hot, student: tl.constexpr):
    """Return p (x − Σ p x) times the factor, or for the student (q − p) times it."""
    w, _, x, x_low = elements(t, s, slopes.exponent, slopes.center, hot)
    if student:
        _, fall, _ = exp_less(x, x_low)
        slope = w * tl.fma(slopes.student, fall, slopes.student_low)
    else:
        slope = w * slopes.by * (((x + slopes.apart) + x_low) - slopes.mean)
    return slope * slopes.factor
