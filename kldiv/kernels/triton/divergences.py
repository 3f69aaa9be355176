"""The divergences of rows that take sums over classes: terms, means, and gradients.

Each is known by a number, a constant of the compiled kernel. ``own`` are the logits of p, ``other``
those of q, and x is log(p/q); formulas are those of `kldiv.formulas`. To add one, give it a branch
in `elements` and one in `rise`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kldiv.kernels.spelling import DIVERGENCES
from kldiv.kernels.triton.elementary import NEAR, bounded, less, like, phi_near, total
from kldiv.kernels.triton.mixtures import mixture_elements, mixture_rise
from kldiv.kernels.triton.powers import alpha_elements, alpha_rise
from kldiv.kernels.triton.state import (
    Numbers,
    anchor_power,
    both_probabilities,
    clipped,
    falling,
    finite,
    from_anchor,
    log_ratio,
    origin,
    probability,
    split,
    steps,
    weight,
)

KL = tl.constexpr(DIVERGENCES.index("KL"))
JS = tl.constexpr(DIVERGENCES.index("JS"))
TOTAL_VARIATION = tl.constexpr(DIVERGENCES.index("total variation"))
HELLINGER = tl.constexpr(DIVERGENCES.index("Hellinger"))
MIXTURE = tl.constexpr(DIVERGENCES.index("mixture"))
JEFFREYS = tl.constexpr(DIVERGENCES.index("Jeffreys"))


@triton.jit
def numbers_of(first, second, third, fourth):
    """Return the numbers with these bits. Those of 0 come as a shorter integer."""
    return Numbers(
        first.to(tl.int64).to(tl.float64, bitcast=True),
        second.to(tl.int64).to(tl.float64, bitcast=True),
        third.to(tl.int64).to(tl.float64, bitcast=True),
        fourth.to(tl.int64).to(tl.float64, bitcast=True),
    )


# --- terms ----------------------------------------------------------------------------------------


@triton.jit
def elements(t, s, view, wide: tl.constexpr, divergence: tl.constexpr):
    """Return the sum of the classes' terms, each of them ≥ 0, of the teacher's view."""
    if divergence == JS or divergence == MIXTURE:  # noqa: PLR1714, SIM109 - Triton's
        found = mixture_elements(t, s, view, wide)
    elif divergence == TOTAL_VARIATION:
        found = 0.5 * total(tl.abs(falling(t, s, view, wide)))
    elif divergence == HELLINGER:
        x = log_ratio(t, s, view, wide)
        p, q = _roots(t, s, view, wide)
        base = tl.where(x < 0, q, p)
        apart_by = base * less(tl.where(tl.abs(x) > 200.0, 100.0, 0.5 * tl.abs(x)))
        found = total(apart_by * apart_by)
    elif divergence == JEFFREYS:
        found = _jeffreys_elements(t, s, view, wide)
    else:
        found = alpha_elements(t, s, view, wide)
    return found


@triton.jit
def _root(logits, top, mass, half, wide: tl.constexpr):
    """Return the root of probabilities, also where these underflow; ``half`` is of 2T."""
    kind = tl.float64 if wide else tl.float32
    return weight(logits, origin(top).to(kind), half) * tl.sqrt(1.0 / mass).to(kind)


@triton.jit
def _roots(own, other, view, wide: tl.constexpr):
    """Return the roots of p and q."""
    a = view.state
    p = _root(own, a.t_max, a.t_sum, view.half, wide)
    return p, _root(other, a.s_max, a.s_sum, view.half, wide)


@triton.jit
def _jeffreys_elements(t, s, view, wide: tl.constexpr):
    """Return the sum of the terms of w·D(P‖Q) + r·D(Q‖P), +∞ where a weight that counts has one."""
    kind = tl.float64 if wide else tl.float32
    hot, w, r = view.hot, view.numbers.first.to(kind), view.numbers.second.to(kind)
    p, q = both_probabilities(t, s, view, wide)
    x = log_ratio(t, s, view, wide)
    c, c_low, _ = split(view.state.pivot, view.state.pivot_low, wide)
    # x may be cut where its products are not.
    step = steps(finite(t), finite(s), c, c_low)
    behind = x - clipped(step * hot.inverse)
    p_x, q_x = p * step * hot.inverse + p * behind, q * step * hot.inverse + q * behind
    near, close = bounded(x, like(x, NEAR)), tl.abs(x) < NEAR
    forward = tl.where(close, p * phi_near(near), (q - p) + p_x)
    back = tl.where(close, q * phi_near(-near), (p - q) - q_x)
    t_none, s_none = t == -float("inf"), s == -float("inf")
    forward = tl.where(s_none & (t > -float("inf")), float("inf"), forward)
    back = tl.where(t_none & (s > -float("inf")), float("inf"), back)
    return total(tl.where(w > 0.0, w * forward, 0.0) + tl.where(r > 0.0, r * back, 0.0))


# --- gradients ------------------------------------------------------------------------------------


@triton.jit
def rise(own, other, view, wide: tl.constexpr, divergence: tl.constexpr):
    """Return p, and p·(u less its value at the anchor); of Jensen-Shannon that without its weight.

    Of Jeffreys' u it is the part that is x, without its weight: NaN where that is infinite.
    """
    a = view.state
    if divergence == JS or divergence == MIXTURE:  # noqa: PLR1714, SIM109 - Triton's
        p, u = mixture_rise(own, other, view, wide, divergence == JS)
        found = p * u
    elif divergence == HELLINGER:
        root, other_root = _roots(own, other, view, wide)
        scaled = root * anchor_power(view, 0.5).to(root.dtype)
        step = 0.5 * from_anchor(own, other, view, wide)
        far = scaled - other_root
        p = root * root
        found = root * tl.where(tl.abs(step) < NEAR, -scaled * less(step), far)
    elif divergence == JEFFREYS:
        p = probability(own, a.t_max, a.t_sum, view.hot, wide)
        c, c_low, _ = split(a.anchor, a.anchor_low, wide)
        found = p * steps(finite(own), finite(other), c, c_low) * view.hot.inverse
        lost = (other == -float("inf")) & (own > -float("inf"))
        found = tl.where(lost, float("nan"), found)
    else:
        p, found = alpha_rise(own, other, view, wide)
    return p, found


@triton.jit
def means(own, other, view, wide: tl.constexpr, divergence: tl.constexpr):
    """Return the sums over classes that the gradient in ``own`` takes.

    Total variation's are the masses of p where x is below 0, and above; half of that at 0 is in
    each. Of others the first is the mean of `rise`.
    """
    second = tl.zeros_like(view.temperature)
    if divergence == TOTAL_VARIATION:
        p = probability(own, view.state.t_max, view.state.t_sum, view.hot, wide)
        x = log_ratio(own, other, view, wide)
        at = tl.where(x == 0, 0.5 * p, 0.0)
        first, second = total(tl.where(x < 0, p, at)), total(tl.where(x > 0, p, at))
    else:
        _, found = rise(own, other, view, wide, divergence)
        first = total(found)
    return first, second


@triton.jit
def slopes(own, other, view, first, second, wide: tl.constexpr, divergence: tl.constexpr):
    """Return T times the gradient in ``own``, given the sums of `means`; not of KL and JS."""
    offset, numbers = view.offset, view.numbers
    nan = tl.where(offset == offset, 0.0, offset).to(first.dtype)  # of a row that is NaN
    none = own == -float("inf")
    if divergence == TOTAL_VARIATION:
        p = probability(own, view.state.t_max, view.state.t_sum, view.hot, wide)
        x = log_ratio(own, other, view, wide)
        level = tl.where(x > 0, first, tl.where(x < 0, -second, 0.5 * (first - second)))
        found = p * level
    elif divergence == JEFFREYS:
        p, found = rise(own, other, view, wide, divergence)
        straight = tl.where(none, 0.0, found - p * first)
        mine, theirs = numbers.first.to(first.dtype), numbers.second.to(first.dtype)
        found = tl.where(mine > 0.0, mine * straight, 0.0)
        found -= theirs * falling(own, other, view, wide)
    else:
        p, found = rise(own, other, view, wide, divergence)
        # The infinite part of an infinite divergence's gradient is 0 where p is.
        found = tl.where(none & (found == 0.0), 0.0, found - p * first)
    return found + nan
