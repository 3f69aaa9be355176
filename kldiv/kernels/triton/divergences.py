"""The divergences of rows that take sums over classes: terms, means, and gradients.

Each is known by a number, a constant of the compiled kernel. ``own`` are the logits of p, ``other``
those of q, and x is log(p/q); formulas are those of `kldiv.formulas`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kldiv.kernels.spelling import DIVERGENCES
from kldiv.kernels.triton.elementary import NEAR, bounded, difference, less, phi_near
from kldiv.kernels.triton.jensen_shannon import js_elements, js_shift, probability
from kldiv.kernels.triton.state import apart, finite, origin, split, total, weight

KL = tl.constexpr(DIVERGENCES.index("KL"))
JS = tl.constexpr(DIVERGENCES.index("JS"))
TOTAL_VARIATION = tl.constexpr(DIVERGENCES.index("total variation"))
HELLINGER = tl.constexpr(DIVERGENCES.index("Hellinger"))


@triton.jit
def log_ratio(own, other, a, offset, hot, wide: tl.constexpr):
    """Return x, NaN in a row that is."""
    kind = tl.float64 if wide else tl.float32
    c, c_low, left = split(a.pivot, a.pivot_low, wide)
    behind = (offset - left * hot.inverse.to(tl.float64)).to(kind)
    return apart(finite(own), finite(other), c, c_low, hot) + behind


@triton.jit
def _root(logits, top, mass, half, wide: tl.constexpr):
    """Return the root of probabilities, also where these underflow; ``half`` is of 2T."""
    kind = tl.float64 if wide else tl.float32
    return weight(logits, origin(top).to(kind), half) * tl.sqrt(1.0 / mass).to(kind)


@triton.jit
def elements(
    t,  # [height, width], teacher's logits
    s,  # [height, width], student's logits
    a,  # State [height, 1]
    offset,  # [height, 1] of float64, log(p/q) less x
    number,  # float64, the divergence's number: β
    hot,  # Heat [height, 1], constants of the temperature
    half,  # Heat [height, 1], constants of twice the temperature
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    divergence: tl.constexpr,  # int, the divergence
):
    """Return the sum of the classes' terms, each of them ≥ 0."""
    if divergence == JS:
        found = js_elements(t, s, a, offset, number, hot, wide)
    else:
        x = log_ratio(t, s, a, offset, hot, wide)
        if divergence == TOTAL_VARIATION:
            p = probability(t, a.t_max, a.t_sum, hot, wide)
            q = probability(s, a.s_max, a.s_sum, hot, wide)
            near = bounded(x, NEAR)
            close = tl.abs(x) < NEAR
            found = 0.5 * total(tl.abs(tl.where(close, p * (phi_near(near) - near), q - p)))
        else:
            p, q = (
                _root(t, a.t_max, a.t_sum, half, wide),
                _root(s, a.s_max, a.s_sum, half, wide),
            )
            base = tl.where(x < 0, q, p)
            apart_by = base * less(tl.where(tl.abs(x) > 200.0, 100.0, 0.5 * tl.abs(x)))
            found = total(apart_by * apart_by)
    return found


@triton.jit
def _rise(own, other, a, offset, temperature, hot, half, wide: tl.constexpr):
    """Return p, and p·(√(q/p) at the anchor less √(q/p)) of Hellinger's distance."""
    kind = tl.float64 if wide else tl.float32
    p = _root(own, a.t_max, a.t_sum, half, wide)
    q = _root(other, a.s_max, a.s_sum, half, wide)
    at = difference(a.anchor, a.anchor_low, a.pivot, a.pivot_low) / temperature + offset
    power = tl.exp(-0.5 * tl.where(at < -170.0, -170.0, at)).to(kind)
    b, b_low, left = split(a.anchor, a.anchor_low, wide)
    step = apart(finite(own), finite(other), b, b_low, hot)
    step = 0.5 * (step - (left * hot.inverse.to(tl.float64)).to(kind))
    scaled = p * power
    rise = tl.where(tl.abs(step) < NEAR, -scaled * less(step), scaled - q)
    return p * p, p * rise


@triton.jit
def means(
    own,  # [height, width], logits of p
    other,  # [height, width], logits of q
    a,  # State [height, 1], of (own, other)
    offset,  # [height, 1] of float64, log(p/q) less x
    number,  # float64, β of p
    rest,  # float64, β of q
    temperature,  # [height, 1] of float64
    hot,  # Heat [height, 1], constants of the temperature
    half,  # Heat [height, 1], constants of twice the temperature
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    divergence: tl.constexpr,  # int, the divergence
):
    """Return the sums over classes that the gradient in ``own`` takes.

    Total variation's are the masses of p where x is below 0, and above; half of that at 0 is in
    each. Of others the first is the mean of p's slopes, less that at the anchor.
    """
    second = tl.zeros_like(temperature)
    if divergence == JS:
        first = js_shift(own, other, a, offset, number, rest, temperature, hot, wide)
    elif divergence == TOTAL_VARIATION:
        p = probability(own, a.t_max, a.t_sum, hot, wide)
        x = log_ratio(own, other, a, offset, hot, wide)
        at = tl.where(x == 0, 0.5 * p, 0.0)
        first, second = total(tl.where(x < 0, p, at)), total(tl.where(x > 0, p, at))
    else:
        _, rise = _rise(own, other, a, offset, temperature, hot, half, wide)
        first = total(rise)
    return first, second


@triton.jit
def slopes(
    own,  # [height, width], logits of p
    other,  # [height, width], logits of q
    a,  # State [height, 1], of (own, other)
    offset,  # [height, 1] of float64, log(p/q) less x
    first,  # [height, 1], the sums of `means`
    second,  # [height, 1]
    temperature,  # [height, 1] of float64
    hot,  # Heat [height, 1], constants of the temperature
    half,  # Heat [height, 1], constants of twice the temperature
    wide: tl.constexpr,  # bool, whether to compute in float64 rather than float32
    divergence: tl.constexpr,  # int, total variation or Hellinger's
):
    """Return T times the gradient in ``own``."""
    nan = tl.where(offset == offset, 0.0, offset).to(first.dtype)  # of a row that is NaN
    if divergence == TOTAL_VARIATION:
        p = probability(own, a.t_max, a.t_sum, hot, wide)
        x = log_ratio(own, other, a, offset, hot, wide)
        level = tl.where(x > 0, first, tl.where(x < 0, -second, 0.5 * (first - second)))
        found = p * (level + nan)
    else:
        p, rise = _rise(own, other, a, offset, temperature, hot, half, wide)
        found = (rise - p * first) + nan
    return found
