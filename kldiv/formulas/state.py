r"""The state of a block of classes: all that KL from logits needs of it, mergeable in any order.

With teacher logits t, student logits s, temperature T, d = t − s, weights w = exp((t − max t)/T)
and x = (d − c)/T for a pivot c, and with sums over classes, for *any* pivot

    p = w/Σ w,   Φ = Σ p φ(x),   y = Σ p (e⁻ˣ − 1),   φ(x) = e⁻ˣ − 1 + x ≥ 0
    KL(p‖q) = Φ − (y − log(1 + y)),   log(p/q) = x + log(1 + y)

At the pivot T·log(Σe^{t/T}/Σe^{s/T}) y is 0, x is log(p/q) itself and KL is Σ p φ(log p/q).
Near it y is small and nothing large is subtracted: KL and log(p/q) are right to a few roundings u,
however close or far apart p and q are.  Six details keep that so in finite precision:

* d and c are double words: x is right relative to itself even for d ≈ 100 and x ≈ 1e-8, and exactly
  zero where t − s is constant.
* T divides differences, never logits: a rounded logit would be taken for a divergence.
* The two sums tell the pivot only to a few u.  Where KL is not far above that, the pivot is the
  mean of d, or d at the teacher's maximum: exact where d is constant, and y absorbs the rest.
* ∂KL/∂t is p·(x − Σ p x), and where peaks disagree x is large and nearly equal wherever p is.  So
  the mean is taken about another pivot, the *anchor*, in the bulk of p.
* Exponents are double words too: at −60 the rounding of t − max t alone would cost 32 u.
* Weights are summed in two parts, for the sake of many equal ones.
* d, pivots and anchors are counted in eighths of the logits' unit, which is exact: so no difference
  overflows, and none of two differences.

Kernels that merge a tile at a time (``cpu``, ``triton``) choose pivots by fewer operations: the
mean of d wherever KL < ½, and the heavier state's pivot as long as |y| < ½.  A pivot that is off by
δ makes Φ larger than KL by about δ²/2, which is no more than KL itself: the mean is off by KL, and
the masses of parts whose pivots differ by δ have a divergence of δ²/2 (Pinsker).  So half a digit
is lost at most, in float64.  Formulas, ``pallas`` and ``cuda`` merge many states at once, where an
exact pivot costs nothing, and keep the spread by which `merge` finds an anchor astray.

No branch looks at data.  A masked class (−∞) is a finite number, of weight 0.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from kldiv.formulas.numbers import CLOSE, EIGHTH, FAR, FEW, INSIDE, NEAR, REACH
from kldiv.formulas.special import (
    add,
    difference,
    largest,
    log1p,
    log1p_gap,
    phi_near,
    total,
    two_difference,
    two_sum,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace

    DoubleWord: TypeAlias = tuple[Array, Array]

Temperature: TypeAlias = "Array | float"
"""A number, or an array with one number per row (the axis of the classes has length one)."""


def number(temperature: float) -> Temperature:
    """Return a temperature that is the same for all rows, as a number.

    An adapter may replace this for its compiler, which cannot follow one that changes from call to
    call through fractions and bits: by `as_array`.
    """
    return temperature


def as_array(zero: Array, temperature: float) -> Array:
    """Return such a temperature as an array, given a float64 zero."""
    return zero + temperature


class Wide:
    """Logits of two words, high + low; the low one is 0 where the high one is infinite.

    They stand where logits do, so that products, quotients and logarithms are not rounded.
    """

    __slots__ = ("high", "low")

    def __init__(self, high: Array, low: Array) -> None:
        self.high, self.low = high, low

    @property
    def dtype(self) -> Any:
        return self.high.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.high.shape
        return shape

    def __getitem__(self, place: Any) -> Wide:
        return Wide(self.high[place], self.low[place])

    def __eq__(self, other: object) -> Array:
        return self.high == other

    def __gt__(self, other: object) -> Array:
        return self.high > other

    __hash__ = None  # type: ignore[assignment]


Logits: TypeAlias = "Array | Wide"


class State(NamedTuple):
    """Summary of a block: each array has length one along the axis of the classes."""

    t_max: Array
    t_sum: Array
    """Σ w, w = exp((t − t_max)/T)."""
    s_max: Array
    s_sum: Array
    """Σ exp((s − s_max)/T)."""
    pivot: Array
    """In eighths, as `anchor` is."""
    pivot_low: Array
    y: Array
    """Σ p (e⁻ˣ − 1), x about the pivot: a small residual.

    Here p is w/Σ w of the block's own classes: with w itself sums would overflow where KL does not.
    """
    phi: Array
    """Σ p φ(x)."""
    anchor: Array
    anchor_low: Array
    drift: Array
    """Σ p (d − anchor), in eighths."""
    spread: Array
    """About Σ p |d − mean|, in eighths; an anchor farther from the mean is not in the bulk."""
    gap: Array
    """∞ where a class has p > 0 = q, else 0: KL is ∞, but gradients still need all the rest."""


class Rows(NamedTuple):
    """KL of whole rows, and their constants for the second reading of the logits."""

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
    """Σ p (d − anchor), in eighths; NaN where a class has p > 0 = q, so that KL is ∞."""


def empty_state(xp: Namespace, rows: Array) -> State:
    """Return the state of no classes, for rows like ``rows``: merging it changes nothing."""
    zero = xp.zeros_like(rows)
    return State(zero - xp.inf, zero, zero - xp.inf, *(zero for _ in State._fields[3:]))


def block_state(
    xp: Namespace,
    s: Logits,
    t: Logits,
    temperature: Temperature = 1.0,
    *,
    anchored: bool = True,
) -> State:
    """Return the state of a block of student logits ``s`` and teacher logits ``t``.

    They are float32 or float64; −∞ masks a class, NaN or +∞ makes KL of the row NaN.  KL itself
    takes no anchor: a state that is not ``anchored`` has the mean in its place.
    """
    t_max, s_max = (largest(xp, first_word(a)) for a in (t, s))
    t_top, s_top = _origin(xp, t_max), _origin(xp, s_max)
    a, b, unit = _in_eighths(xp, s), _in_eighths(xp, t), EIGHTH * temperature
    w = weights_of(xp, t, t_top, temperature, first_word(b))
    v = weights_of(xp, s, s_top, temperature, first_word(a))
    t_sum, s_sum = sum_of_weights(xp, w, t_top), sum_of_weights(xp, v, s_top)
    d = _apart(b, a)

    # About d at the teacher's maximum x is exactly zero where d is constant.
    if isinstance(a, Wide):
        first = _choose(xp, t_max > -xp.inf, _pick(xp, first_word(t) == t_max, d), (0.0, 0.0))
    else:
        there = largest(xp, xp.where(t == t_max, a, -xp.inf))
        first = two_difference(EIGHTH * t_top, there)
    first = _constant(xp, first)
    divisor = xp.where(t_sum > 0, t_sum, 1.0)
    steps, p = _quickly(d, first), w / divisor
    del a, b, w  # the cache has room for others then
    drift = total(xp, p * steps)
    # In the bulk, from where no far class carries it away.
    middle = total(xp, p * xp.clip(over(steps, unit), -REACH, REACH)) if anchored else drift
    mean = _constant(xp, add(*first, drift))
    p_x = p * _quickly(d, mean)
    residual, spread = total(xp, p_x), total(xp, abs(p_x))

    both, ratio = _ratio_of_sums(xp, (t_top, t_sum), (s_top, s_sum), unit)
    kl = over(difference(*mean, *ratio), unit)  # to a few u
    pivot = _choose(xp, abs(kl) < FEW * float(xp.finfo(t.dtype).eps), mean, ratio)
    # Where a far class of little weight carries the mean away, all others still have x = 0 here.
    inside = (abs(drift) <= INSIDE * spread) & (abs(kl) < CLOSE)
    pivot = _choose(xp, both, _choose(xp, inside, first, pivot), (0.0, 0.0))
    pivot = _constant(xp, pivot)
    steps = difference(*d, *pivot)
    # p·e⁻ˣ by the student's own exponential: it stays where the teacher's underflows or is zero.
    mass = v * (xp.where(both, _exp_sum(xp, s_top, t_top, pivot, unit), 0.0) / divisor)
    y, phi = _sums(xp, steps, p, mass, unit)

    anchor, drift = mean, residual
    if anchored:
        near = _constant(xp, add(*first, unit * middle))
        from_near = total(xp, p * difference(*d, *near))
        astray = abs(from_near) > spread
        anchor, drift = _choose(xp, astray, mean, near), xp.where(astray, residual, from_near)
    anchor = _choose(xp, t_sum > 0, anchor, (0.0, 0.0))
    lost = xp.any((s == -xp.inf) & (t > -xp.inf), axis=-1, keepdims=True)
    gap = xp.where(lost, xp.inf, xp.zeros_like(t_max))
    return State(t_max, t_sum, s_max, s_sum, *pivot, y, phi, *anchor, drift, spread, gap)


def merge(xp: Namespace, states: Sequence[State], temperature: Temperature = 1.0) -> State:
    """Return the state of the classes of all ``states`` together, of however many, in any order."""
    parts = State(*(xp.concat(arrays, axis=-1) for arrays in zip(*states, strict=True)))
    t_max, s_max = (largest(xp, a) for a in (parts.t_max, parts.s_max))
    t_top, s_top = _origin(xp, t_max), _origin(xp, s_max)
    t_scale = _rescale(xp, parts.t_max, t_max, temperature)
    s_scale = _rescale(xp, parts.s_max, s_max, temperature)
    t_sums = t_scale * parts.t_sum
    t_sum, s_sum = total(xp, t_sums), total(xp, s_scale * parts.s_sum)
    divisor = xp.where(t_sum > 0, t_sum, 1.0)
    shares = t_sums / divisor

    # The heaviest part's anchor and pivot are near the bulk of p, whichever part comes first.
    unit = EIGHTH * temperature
    heaviest = t_sums == largest(xp, t_sums)
    anchor = _pick(xp, heaviest, (parts.anchor, parts.anchor_low))
    drift = total(xp, shares * _drifts(parts, anchor))
    mean = add(*anchor, drift)
    h = difference(parts.anchor, parts.anchor_low, *mean)
    residual = total(xp, shares * (parts.drift + h))
    spread = total(xp, shares * (parts.spread + abs(h)))
    astray = abs(drift) > spread
    anchor, drift = _choose(xp, astray, mean, anchor), xp.where(astray, residual, drift)

    pivot = _pick(xp, heaviest, (parts.pivot, parts.pivot_low))
    y = total(xp, _moved(xp, parts, shares, (t_top, divisor), pivot, unit)[0])
    both, ratio = _ratio_of_sums(xp, (t_top, t_sum), (s_top, s_sum), unit)
    close = abs(y) < CLOSE
    step = log1p(xp, xp.where(close, y, 0.0))
    pivot = _choose(xp, close, add(*pivot, -(unit * step)), ratio)
    pivot = _choose(xp, both, pivot, (0.0, 0.0))
    y, phi = (total(xp, a) for a in _moved(xp, parts, shares, (t_top, divisor), pivot, unit))
    gap = largest(xp, parts.gap)
    return State(t_max, t_sum, s_max, s_sum, *pivot, y, phi, *anchor, drift, spread, gap)


def finish(xp: Namespace, state: State) -> Rows:
    """Return KL of whole rows, and the constants of `kldiv.formulas.logits`."""
    t_sum, s_sum = state.t_sum, state.s_sum
    kl = state.phi - log1p_gap(xp, state.y)
    kl = xp.where(kl < 0, 0.0, kl)
    kl = xp.where(state.gap > 0, state.gap, kl)
    # NaN where a side has no class left, or holds NaN or +∞.
    nan = xp.where((t_sum > 0) & (s_sum > 0), xp.zeros_like(t_sum), xp.nan)
    return Rows(
        kl + nan,
        state.t_max,
        1.0 / t_sum,
        state.s_max,
        1.0 / s_sum,
        state.pivot,
        state.pivot_low,
        log1p(xp, state.y) + nan,
        state.anchor,
        state.anchor_low,
        xp.where(state.gap > 0, xp.nan, state.drift) + nan,
    )


# In the pieces of `block_state` and `merge`, d and c are in eighths, and ``unit`` is T in eighths.


def _quickly(d: DoubleWord, c: DoubleWord) -> Array:
    """Return d − c, right to u² of d: enough to find a pivot."""
    return (d[0] - c[0]) + (d[1] - c[1])


def _sums(
    xp: Namespace, steps: Array, p: Array, mass: Array, unit: Temperature
) -> tuple[Array, Array]:
    """Return Σ p (e⁻ˣ − 1) and Σ p φ(x), where ``steps`` are d − c and ``mass`` p·e⁻ˣ."""
    x = over(steps, unit)
    near = xp.clip(x, -NEAR, NEAR)
    inside, apart = abs(x) < NEAR, mass - p
    p_phi, p_x = p * phi_near(xp, near), over(p * steps, unit)  # finite where x is not
    y = total(xp, xp.where(inside, p_phi - p * near, apart))
    return y, total(xp, xp.where(inside, p_phi, apart + p_x))


def sum_of_weights(xp: Namespace, w: Array, top: Array) -> Array:
    """Return Σ w, w ≤ 1.

    Equal small numbers added to a 1, as label smoothing brings, are all rounded alike: 15 u.  So
    the first half of the bits is added apart, which is exact.
    """
    # Not a constant: a compiler would cancel it.
    large = 0.0 * top + (2.0**26 if w.dtype == xp.float64 else 2.0**11)
    coarse = (w + large) - large
    return total(xp, coarse) + total(xp, w - coarse)


def _drifts(parts: State, c: DoubleWord) -> Array:
    """Return Σ p (d − c) of every part, in eighths."""
    return parts.drift + difference(parts.anchor, parts.anchor_low, *c)


def _moved(
    xp: Namespace,
    parts: State,
    shares: Array,
    whole: DoubleWord,
    pivot: DoubleWord,
    unit: Temperature,
) -> DoubleWord:
    """Return every part's share of y and Φ about another pivot.

    ``whole`` are the maximum and Σ w of all the teacher's classes.
    """
    h = tempered(xp, difference(parts.pivot, parts.pivot_low, *pivot), unit)
    near = (abs(h) < NEAR) & (parts.t_sum > 0)
    h = xp.where(near, h, 0.0)
    # φ(x + h) = φ(x) + φ(h) + (e⁻ˣ − 1)(e⁻ʰ − 1)
    step = phi_near(xp, h)
    fall = step - h
    y = shares * (parts.y + (1.0 + parts.y) * fall)
    phi = shares * (parts.phi + step + parts.y * fall)
    # Far away Σ w e⁻ˣ is the student's mass: the teacher's weights may underflow or be zero.
    scale = _exp_sum(xp, _origin(xp, parts.s_max), whole[0], pivot, unit) / whole[1]
    mass = xp.where(parts.s_sum > 0, parts.s_sum * scale, 0.0)
    y_far = mass - shares
    phi_far = y_far + over(shares * _drifts(parts, pivot), unit)
    return xp.where(near, y, y_far), xp.where(near, phi, phi_far)


def _ratio_of_sums(
    xp: Namespace, t: DoubleWord, s: DoubleWord, unit: Temperature
) -> tuple[Array, DoubleWord]:
    """Return where both sides have a class, and there T·log(Σe^{t/T}/Σe^{s/T}) in eighths."""
    (t_top, t_sum), (s_top, s_sum) = t, s
    both = (t_sum > 0) & (s_sum > 0)
    log = xp.log(xp.where(both, t_sum / s_sum, 1.0))
    return both, add(*two_difference(EIGHTH * t_top, EIGHTH * s_top), unit * log)


def _rescale(xp: Namespace, old: Array, new: Array, temperature: Temperature) -> Array:
    """Return the factor of sums whose maximum changes."""
    return xp.where(old == new, 1.0, weights_of(xp, old, _origin(xp, new), temperature))


def _origin(xp: Namespace, top: Array) -> Array:
    """Return the maximum to subtract: 0 where every class is masked."""
    return xp.where(top == -xp.inf, 0.0, top)


def _choose(
    xp: Namespace, condition: Array, yes: DoubleWord, no: DoubleWord | tuple[float, float]
) -> DoubleWord:
    return xp.where(condition, yes[0], no[0]), xp.where(condition, yes[1], no[1])


def _constant(xp: Namespace, c: DoubleWord) -> DoubleWord:
    """Return a place to count from, which derivatives hold still: no result depends on it.

    Where a far class carries the mean away, the derivative of that would be infinite.
    """
    return held(xp, c[0]), held(xp, c[1])


def held(xp: Namespace, array: Array) -> Array:
    """Return an array that derivatives take for constant, where the library has any."""
    constant = getattr(xp, "constant", None)
    return array if constant is None else constant(array)


def _pick(xp: Namespace, mask: Array, c: DoubleWord) -> DoubleWord:
    """Return the largest of the double words that ``mask`` leaves."""
    high = largest(xp, xp.where(mask, c[0], -xp.inf))
    low = xp.where(mask & (c[0] == high), c[1], -xp.inf)
    return high, largest(xp, low)


# --- shared with kldiv.formulas.logits ------------------------------------------------------------


def finite(xp: Namespace, logits: Array) -> Array:
    """Return ``logits`` with the lowest finite number for −∞."""
    return xp.clip(logits, float(xp.finfo(logits.dtype).min), xp.inf)


def first_word(logits: Logits) -> Array:
    """Return logits rounded to one word."""
    return logits.high if isinstance(logits, Wide) else logits


def differences(xp: Namespace, s: Logits, t: Logits) -> DoubleWord:
    """Return t − s in eighths."""
    return _apart(_in_eighths(xp, t), _in_eighths(xp, s))


def _apart(t: Logits, s: Logits) -> DoubleWord:
    """Return t − s of logits in eighths."""
    high, low = two_difference(first_word(t), first_word(s))
    low = low + t.low if isinstance(t, Wide) else low
    return high, low - s.low if isinstance(s, Wide) else low


def _in_eighths(xp: Namespace, logits: Logits) -> Logits:
    """Return logits in eighths, of two words where these are."""
    if isinstance(logits, Wide):
        return Wide(eighths(xp, logits.high), EIGHTH * logits.low)
    return eighths(xp, logits)


def eighths(xp: Namespace, logits: Array) -> Array:
    """Return logits in eighths, of which no difference overflows; −∞ is twice the lowest number."""
    return xp.clip(EIGHTH * logits, 2 * EIGHTH * float(xp.finfo(logits.dtype).min), xp.inf)


def steps_from(xp: Namespace, logits: Logits, origin: Array) -> Array:
    """Return logits − origin in eighths, finite."""
    logits = _in_eighths(xp, logits)
    found = first_word(logits) - EIGHTH * origin
    return found + logits.low if isinstance(logits, Wide) else found


def depth_of(xp: Namespace, logits: Array, top: Array, temperature: Temperature) -> Array:
    """Return (top − logits)/T, finite."""
    return tempered(xp, EIGHTH * top - eighths(xp, logits), EIGHTH * temperature)


def weights_of(
    xp: Namespace,
    logits: Logits,
    top: Array,
    temperature: Temperature,
    in_eighths: Array | None = None,
) -> Array:
    """Return exp((logits − top)/T) ≤ 1 to a few u; 0 where a logit is −∞.

    The first words ``in_eighths`` may be given, where they are known.
    """
    if isinstance(logits, Wide):
        weights = weights_of(xp, logits.high, top, temperature, in_eighths)
        return weights + weights * over(logits.low, temperature)
    limits = xp.finfo(logits.dtype)
    if _is_power_of_two(temperature) and 2.0**-20 <= temperature <= 2.0**20:
        # Exponents overflow to −∞ alone, and the low words not at all.
        known = eighths(xp, logits) if in_eighths is None else in_eighths
        high, low = two_difference(known, EIGHTH * top)
        return exp_over(xp, 8.0 * high, 8.0 * low, temperature)
    # Below the lowest number there is none for −∞; halved, such logits differ as much: by 0.
    half = xp.where(top == float(limits.min), 0.5, xp.ones_like(top))
    unit, temperature = _cooled(xp, temperature, limits)
    half = half * unit
    logits, top = logits * half, top * half
    # So far below the maximum a weight is 0 anyway; farther below the difference could overflow.
    depth = xp.clip(FAR * temperature + 2.0**-16 * abs(top), 0.0, 2.0**-15 * float(limits.max))
    lowest = xp.clip(top - depth, float(limits.min), xp.inf)
    return exp_over(xp, *two_difference(xp.maximum(logits, lowest), top), temperature)


def over(array: Array, temperature: Temperature) -> Array:
    """Return ``array / temperature``; the number 1 costs nothing."""
    if isinstance(temperature, int | float) and temperature == 1:
        return array
    return array / temperature


def at_least(xp: Namespace, x: Array, lowest: Temperature) -> Array:
    """Return the larger of x and a bound."""
    if isinstance(lowest, int | float):
        return xp.clip(x, lowest, xp.inf)
    return xp.where(x < lowest, lowest, x)


def tempered(xp: Namespace, x: Array, temperature: Temperature) -> Array:
    """Return ``x / temperature``, finite: a masked class has weight 0, and 0·∞ would be NaN."""
    limits = xp.finfo(x.dtype)
    return xp.clip(over(x, temperature), float(limits.min), float(limits.max))


def exp_over(xp: Namespace, high: Array, low: Array, temperature: Temperature) -> Array:
    """Return exp((high + low)/T) to a few u: rounding the exponent would cost u·|exponent|.

    The low word is 0 or small beside the temperature.
    """
    if not _is_power_of_two(temperature):
        high = at_least(xp, high, -FAR * temperature)  # e^−FAR is 0 anyway
    high, low = quotient(xp, high, low, temperature)
    value = xp.exp(high)
    return value + value * low


def quotient(xp: Namespace, high: Array, low: Array, temperature: Temperature) -> DoubleWord:
    """Return (high + low)/T as a double word; the high word is far from overflow."""
    if _is_power_of_two(temperature):
        return over(high, temperature), over(low, temperature)  # exact
    return product(xp, high, low, _inverse(xp, temperature, high))


def product(
    xp: Namespace, high: Array, low: Array, factor: tuple[Array | float, ...]
) -> DoubleWord:
    """Return (high + low)·factor as a double word; the factor's first part has half the bits."""
    first, second = factor
    head, tail = _halves(xp, high)
    low = head * second + (tail + low) * (first + second)
    back = head * first  # exact, of half the bits each
    high = back + low
    return high, low - (high - back)


def _is_power_of_two(temperature: Temperature) -> bool:
    return isinstance(temperature, int | float) and math.frexp(temperature)[0] == 0.5


def _exp_sum(xp: Namespace, a: Array, b: Array, c: DoubleWord, unit: Temperature) -> Array:
    """Return exp((a − b + c)/T) to a few u, c in eighths."""
    high, low = two_difference(EIGHTH * a, EIGHTH * b)
    back, more = two_sum(high, c[0])
    low = low + (more + c[1])
    high = back + low
    return exp_of_rows(xp, high, low - (high - back), unit)


def exp_of_rows(xp: Namespace, high: Array, low: Array, temperature: Temperature) -> Array:
    """Return `exp_over` of exponents of any size, also where the result is 0."""
    unit, temperature = _cooled(xp, temperature, xp.finfo(high.dtype))
    high, low = high * unit, low * unit
    far = high < -FAR * temperature
    high = xp.where(far, -FAR * temperature, high)
    return exp_over(xp, high, xp.where(far, 0.0, low), temperature)


def _cooled(xp: Namespace, temperature: Temperature, limits: Any) -> tuple[Array | float, Any]:
    """Return a factor of logits and the temperature times that: beside it nothing overflows."""
    most, factor = 2.0**-36 * float(limits.max), 2.0**-32
    if isinstance(temperature, int | float):
        factor = factor if temperature > most else 1.0
        return factor, temperature * factor
    unit = xp.where(temperature > most, factor, xp.ones_like(temperature))
    return unit, temperature * unit


def _inverse(xp: Namespace, temperature: Temperature, like: Array) -> tuple[Array | float, ...]:
    """Return 1/T as a number of half the bits of ``like``, and the rest."""
    bits = _half_of(xp, like)
    if isinstance(temperature, int | float):
        return _inverse_of_number(temperature, bits - 1)
    # In a unit in which no product of halves overflows.
    unit = xp.where(temperature > 2.0**64, 2.0**-64, xp.ones_like(temperature))
    unit = xp.where(temperature < 2.0**-64, 2.0**64, unit)
    temperature = temperature * unit
    inverse = 1.0 / temperature
    (high, low), (t_high, t_low) = _halves(xp, inverse), _halves(xp, temperature)
    error = (((1.0 - high * t_high) - high * t_low) - low * t_high) - low * t_low
    head, tail = _halves(xp, inverse, bits)
    return unit * head, unit * (tail + error * inverse)


def factor_of(xp: Namespace, temperature: Temperature, like: Array) -> tuple[Array | float, ...]:
    """Return T as a number of half the bits of ``like``, and the rest."""
    bits = _half_of(xp, like)
    if isinstance(temperature, int | float):
        return _in_two(Fraction(temperature), bits - 1)
    return _halves(xp, temperature, bits)


def _half_of(xp: Namespace, like: Array) -> int:
    return 26 if like.dtype == xp.float64 else 12


@lru_cache(64)
def _inverse_of_number(temperature: float, bits: int) -> tuple[float, float]:
    """Return 1/T as a number of so many bits, and the rest."""
    return _in_two(1 / Fraction(temperature), bits)


def _in_two(exact: Fraction, bits: int) -> tuple[float, float]:
    """Return a fraction as a number of so many bits, and the rest."""
    mantissa, exponent = math.frexp(exact)
    head = math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)
    return head, float(exact - Fraction(head))


def _halves(xp: Namespace, a: Array, bits: int | None = None) -> DoubleWord:
    """Return ``a`` as a sum of a number of half the bits, or so many, and the rest (Veltkamp)."""
    all_bits = 53 if a.dtype == xp.float64 else 24
    large = a * (2.0 ** (all_bits - (bits or all_bits // 2)) + 1.0)
    head = large - (large - a)
    return head, a - head
