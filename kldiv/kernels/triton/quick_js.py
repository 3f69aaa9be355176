"""Jensen-Shannon of rows that went the quick way: every class about the pivot, |x| nowhere large.

With log(p/q) = x + δ, β' = 1 − β and θ = β' e^(−δ)/(β + β' e^(−δ)), log(p/m) and log(q/m) differ
from their values at x = 0 by −log(1 + θ(e⁻ˣ − 1)) and −log(1 + (1 − θ)(eˣ − 1)).  Both sides are
KL(·‖m) about that pivot, as KL(p‖q) is in `kldiv.formulas.state`: with g(z) = z − log(1 + z) ≥ 0

    KL(p‖m) = Σ p g(θ(e⁻ˣ − 1)) − g(θ y),   y = Σ p (e⁻ˣ − 1)
    KL(q‖m) = Σ q g((1 − θ)(eˣ − 1)) − g(−(1 − θ) y/(1 + y))

One exponential serves both.  The side with the larger share of m comes first: nothing cancels then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from kldiv.kernels.triton.elementary import divide, exp_less, log1p_near, log_less
from kldiv.kernels.triton.places import columns_from, load_pair
from kldiv.kernels.triton.quick import STAGES, TOGETHER, all_lanes, elements, scale_of
from kldiv.kernels.triton.state import log1p_gap


class Looks(NamedTuple):
    """The constants of rows for a second look, in float32 but for the masses."""

    exponent: Any
    center: Any
    theta: Any
    rest: Any
    """1 − θ."""
    for_p: Any
    """β."""
    for_q: Any
    """β' e^(−δ)."""
    by_p: Any
    """p/w."""
    by_q: Any
    """q/(w e⁻ˣ)."""
    y: Any
    """Σ p (e⁻ˣ − 1)."""


@triton.jit
def looks_of(view):
    """Return the constants of rows for a second look."""
    a, offset, beta = view.state, view.offset, view.numbers.first
    exponent, mass, by = scale_of(a, view.temperature)
    ratio = tl.exp(-offset)
    for_q = (1.0 - beta) * ratio
    theta = for_q / (beta + for_q)
    return Looks(
        exponent.to(tl.float32),
        a.pivot.to(tl.float32),
        theta.to(tl.float32),
        (beta / (beta + for_q)).to(tl.float32),
        (tl.zeros_like(ratio) + beta).to(tl.float32),
        for_q.to(tl.float32),
        by + (offset - offset),  # NaN of a row that is no distribution
        by * ratio,
        a.y / mass,
    )


@triton.jit
def _parts(w, x, x_low, looks):
    """Return the classes' terms of both sides, times their weights."""
    turned = looks.theta > 0.5  # then q comes first
    theta = tl.where(turned, looks.rest, looks.theta)
    rest = tl.where(turned, looks.theta, looks.rest)
    x, x_low = tl.where(turned, -x, x), tl.where(turned, -x_low, x_low)
    other, fall, _ = exp_less(x, x_low)
    log_m, gap = log_less(theta * fall, tl.fma(theta, other, rest))
    # e⁻ˣ g((1 − θ)(eˣ − 1))
    rise = divide(-rest * fall, other)
    near = (rise > -0.5) & (rise < 1.0)
    _, near_gap = log1p_near(tl.where(near, rise, 0.0))
    second = tl.where(near, other * near_gap, -rest * fall - other * (log_m + x))
    parts = tl.where(turned, looks.for_q, looks.for_p) * gap
    parts += tl.where(turned, looks.for_p, looks.for_q) * second
    return tl.where(turned, divide(w, other), w) * parts


@triton.jit
def _log_p(w, x, x_low, looks):
    """Return w and log(p/m), less its value at x = 0."""
    small, fall, _ = exp_less(x, x_low)
    log_m, _ = log_less(looks.theta * fall, tl.fma(looks.theta, small, looks.rest))
    return w, -log_m


@triton.jit
def _log_q(w, x, x_low, looks):
    """Return w e⁻ˣ and log(q/m), less its value at x = 0."""
    large, rise, _ = exp_less(-x, -x_low)
    log_m, _ = log_less(looks.rest * rise, tl.fma(looks.rest, large, looks.theta))
    return divide(w, large), -log_m


@triton.jit
def quick_look(
    pair,  # Pair, the logits
    first,  # int, the first class
    last,  # int, the class after the last
    there,  # [height, 1] of bool, rows that count
    looks,  # Looks [height, 1], constants of rows
    beta,  # float64, β
    hot,  # Heat [height, 1], constants of the temperature
    t_shift: tl.constexpr,  # bool, whether to find Σ p log(p/m), for the gradient in t
    s_shift: tl.constexpr,  # bool, whether to find Σ q log(q/m), for the gradient in s
    height: tl.constexpr,  # int, rows of a tile
    width: tl.constexpr,  # int, classes of a tile, a power of 2
):
    """Return Jensen-Shannon, Σ p log(p/m) and Σ q log(q/m), of classes up to ``last``."""
    zero = tl.zeros([height, 1], tl.float64)
    value, of_t, of_s = zero, zero, zero
    for group in range(first, last, TOGETHER * width):
        lanes = tl.zeros([height, width], tl.float32)
        lanes_t, lanes_s = lanes, lanes
        stop = tl.minimum(group + TOGETHER * width, last)
        for start in tl.range(group, stop, width, num_stages=STAGES):
            columns = columns_from(start, width)
            mask = there & (columns < pair.classes)
            own, other = load_pair(pair, columns, mask, wide=False)
            w, _, x, x_low = elements(own, other, looks.exponent, looks.center, hot)
            lanes += _parts(w, x, x_low, looks)
            if t_shift:
                p, ell = _log_p(w, x, x_low, looks)
                lanes_t = tl.fma(p, ell, lanes_t)
            if s_shift:
                q, ell = _log_q(w, x, x_low, looks)
                lanes_s = tl.fma(q, ell, lanes_s)
        value += all_lanes(lanes)
        if t_shift:
            of_t += all_lanes(lanes_t)
        if s_shift:
            of_s += all_lanes(lanes_s)
    theta = looks.theta.to(tl.float64)
    y = looks.y
    far = beta * log1p_gap(theta * y) + (1.0 - beta) * log1p_gap((theta - 1.0) * y / (1.0 + y))
    value = looks.by_p * value - far
    return tl.where(value < 0, 0.0, value), looks.by_p * of_t, looks.by_q * of_s


@triton.jit
def quick_js_slope(t, s, looks, mean, factor, hot, student: tl.constexpr):
    """Return p (log(p/m) − Σ p log(p/m)) times a factor, or for the student that of q."""
    w, _, x, x_low = elements(t, s, looks.exponent, looks.center, hot)
    own, ell = _log_q(w, x, x_low, looks) if student else _log_p(w, x, x_low, looks)
    by = looks.by_q if student else looks.by_p
    return own * by.to(tl.float32) * (ell - mean) * factor.to(tl.float32)
