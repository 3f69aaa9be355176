r"""KL and Jensen–Shannon from logits: what reading them again gives, once the rows are known.

Every function takes a block of classes (all of them, or any part) and the constants of its rows
that `kldiv.formulas.state.finish` returns; those that sum return the block's share.  p and q are
softmax(t/T) and softmax(s/T); gradients are those in the given logits, 1/T included.

KL needs one state, that of (s, t).  With r = log(q/p) and x = (t − s)/T,

    ∂KL/∂s = (q − p)/T = p·expm1(r)/T         ∂KL/∂t = p·(x − Σ p x)/T

JS is symmetric: JS(s, t, β) = JS(t, s, 1 − β).  So both its gradients are one function, of the side
that moves (``own``) and the ``other``, with the state of (other, own): for the teacher (s, t) with
``weights`` (β, 1 − β), for the student (t, s) with (1 − β, β).  Both weights are given, because
neither is right to its last digits as the difference of the other from 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kldiv.formulas.special import (
    NEAR,
    difference,
    expm1,
    expm1_near,
    log1p,
    log1p_gap,
    phi_near,
    two_difference,
    two_sum,
)
from kldiv.formulas.state import (
    EIGHTH,
    eighths,
    exp_of_rows,
    finite,
    over,
    tempered,
    total,
    weights_of,
)

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace
    from kldiv.formulas.state import Rows, Temperature

_DEEP = 69.0
"""Beyond it e^(−r) for p/q would soon underflow in float32."""

_GONE = -150.0
"""Logit less the maximum where q is as good as 0, and so is its share of a derivative in T."""

# --- Kullback–Leibler -----------------------------------------------------------------------------


def grad_input(
    xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature = 1.0
) -> Array:
    """Return ∂KL/∂s of a block; where KL is ∞ it is finite all the same."""
    return over(_excess(xp, s, t, rows, temperature), temperature)


def grad_target(
    xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature = 1.0
) -> Array:
    """Return ∂KL/∂t of a block: 0 where t = −∞, and NaN elsewhere in a row whose KL is ∞."""
    return over(_slope(xp, s, t, rows, temperature), temperature)


def temperature_terms(
    xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature, axis: int = -1
) -> Array:
    r"""Return a block's share of ∂KL/∂T.

    With a = (t − max t)/T and b = (s − max s)/T that is −Σ (∂KL/∂a·a + ∂KL/∂b·b)/T.  Both gradients
    are as large as q − p, but their sum is as small as KL, and so is the rest, with a − b for a:

        ∂KL/∂T = −Σ [p (x − μ)² + (p φ(−r) − p KL)·b]/T
    """
    p, q = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature)
    r = _log_ratio(xp, s, t, rows, temperature)
    x = _deviation(xp, s, t, rows, temperature)
    both = xp.where(
        abs(r) < NEAR, p * (phi_near(xp, xp.clip(-r, -NEAR, NEAR)) - rows.kl), (q - p) + p * x
    )
    a, b = _relative(xp, s, t, rows, temperature)
    terms = xp.where(b < _GONE, (p * x) * a, (p * x) * x + both * b)
    return -over(total(xp, terms, axis), temperature)


def tangents(
    xp: Namespace,
    s: Array,
    t: Array,
    rows: Rows,
    ds: Array,
    dt: Array,
    temperature: Temperature = 1.0,
    axis: int = -1,
) -> tuple[Array, Array]:
    r"""Return the derivatives of ∂KL/∂s and ∂KL/∂t in the direction (ds, dt), of whole rows.

    This is the Hessian times a vector; as the Hessian is symmetric, it serves double backward too.
    With u = ds − Σ q ds, v = dt − Σ p dt and G the gradients at T = 1:

        dG_s = q u − p v = G_s u + p (u − v)        dG_t = z − p Σ z,  z = G_t v + p (v − u)
    """
    p, q = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature)
    u, v = ds - total(xp, q * ds, axis), dt - total(xp, p * dt, axis)
    apart = p * (u - v)
    z = _slope(xp, s, t, rows, temperature) * v - apart
    d_input = _excess(xp, s, t, rows, temperature) * u + apart
    d_target = z - p * total(xp, z, axis)
    return over(over(d_input, temperature), temperature), over(
        over(d_target, temperature), temperature
    )


def _excess(xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature) -> Array:
    """Return q − p: by p·(eʳ − 1) where they are close."""
    p, q = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature)
    r = _log_ratio(xp, s, t, rows, temperature)
    return xp.where(abs(r) < NEAR, p * expm1_near(xp, xp.clip(r, -NEAR, NEAR)), q - p)


def _slope(xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature) -> Array:
    """Return p·(x − Σ p x)."""
    # 0·x would be NaN where a gap makes the row NaN; a row that is NaN as a whole stays so.
    zero = 0.0 * rows.offset
    nan = xp.where(rows.kl == xp.inf, xp.nan, zero)
    slope = _p(xp, t, rows, temperature) * (_deviation(xp, s, t, rows, temperature) + nan)
    return xp.where(t == -xp.inf, zero, slope)


# --- Jensen–Shannon -------------------------------------------------------------------------------


def js_terms(
    xp: Namespace,
    s: Array,
    t: Array,
    rows: Rows,
    beta: float,
    temperature: Temperature = 1.0,
    axis: int = -1,
) -> Array:
    """Return a block's share of JS = βD(P‖M) + (1−β)D(Q‖M), M = βP + (1−β)Q."""
    return total(xp, _js_elements(xp, s, t, rows, beta, temperature), axis)


def js_shift(
    xp: Namespace,
    other: Array,
    own: Array,
    rows: Rows,
    weights: tuple[float, float],
    temperature: Temperature = 1.0,
    axis: int = -1,
) -> Array:
    """Return a block's share of ``shift`` in `js_grad`: Σ p log(p/m), but for a constant."""
    p = _p(xp, own, rows, temperature)
    return total(xp, p * _js_log(xp, other, own, rows, weights, temperature), axis)


def js_grad(
    xp: Namespace,
    other: Array,
    own: Array,
    rows: Rows,
    shift: Array,
    weights: tuple[float, float],
    temperature: Temperature = 1.0,
) -> Array:
    """Return ∂JS/∂own of a block, β p (log(p/m) − Σ p log(p/m))/T; finite wherever JS is."""
    ell = _js_log(xp, other, own, rows, weights, temperature)
    slope = (weights[0] * _p(xp, own, rows, temperature)) * (ell - shift)
    return over(slope, temperature)


def js_temperature_terms(
    xp: Namespace,
    s: Array,
    t: Array,
    rows: Rows,
    shift: Array,
    value: Array,
    beta: float,
    temperature: Temperature,
    axis: int = -1,
) -> Array:
    r"""Return a block's share of ∂JS/∂T; ``rows`` and ``shift`` are the teacher's, ``value`` is JS.

    As for KL all terms are of the size of JS itself.  With j its elements and B = D(P‖M),

        ∂JS/∂T = −Σ [G_t·(a − b) + (j − q JS − β (p − q) B)·b]/T
    """
    weights = (beta, 1.0 - beta)
    p, q = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature)
    z = _anchor_log(xp, rows, temperature)
    kl_p = shift - log1p(xp, weights[1] * expm1(xp, xp.clip(-z, -80.0, 80.0)))
    j = _js_elements(xp, s, t, rows, beta, temperature)
    excess = _excess(xp, s, t, rows, temperature)
    slope = (beta * p) * (_js_log(xp, s, t, rows, weights, temperature) - shift)
    a, b = _relative(xp, s, t, rows, temperature)
    tops = two_difference(EIGHTH * rows.t_max, EIGHTH * rows.s_max)
    apart = tempered(xp, difference(*_differences(xp, s, t), *tops), EIGHTH * temperature)
    both = (j - q * value) + beta * excess * kl_p
    terms = xp.where(b < _GONE, slope * a, slope * apart + both * b)
    return -over(total(xp, terms, axis), temperature)


def js_tangents(
    xp: Namespace,
    s: Array,
    t: Array,
    rows: Rows,
    gradients: tuple[Array, Array],
    ds: Array,
    dt: Array,
    beta: float,
    temperature: Temperature = 1.0,
    axis: int = -1,
) -> tuple[Array, Array]:
    r"""Return the derivatives of both gradients of JS in the direction (ds, dt), of whole rows.

    ``rows`` are of the state of (s, t), ``gradients`` are ∂JS/∂s and ∂JS/∂t.  With u and v as in
    `tangents`, h = β(1−β) p q/m and G the gradients at T = 1:

        dG_t = z − p Σ z,  z = G_t v + h (v − u)        dG_s = z − q Σ z,  z = G_s u + h (u − v)
    """
    p, q = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature)
    u, v = ds - total(xp, q * ds, axis), dt - total(xp, p * dt, axis)
    m = beta * p + (1.0 - beta) * q
    h = (beta * (1.0 - beta)) * (p * (q / xp.where(m > 0, m, 1.0))) * (u - v)
    z_input = temperature * gradients[0] * u + h
    z_target = temperature * gradients[1] * v - h
    d_input = z_input - q * total(xp, z_input, axis)
    d_target = z_target - p * total(xp, z_target, axis)
    return over(over(d_input, temperature), temperature), over(
        over(d_target, temperature), temperature
    )


def _js_elements(
    xp: Namespace, s: Array, t: Array, rows: Rows, beta: float, temperature: Temperature
) -> Array:
    r"""Return elements that are all ≥ 0 and sum to JS.

    Of p and q take the larger as the base b, γ its weight, and write the other as b·e^(−ρ), ρ ≥ 0.
    With a = e^(−ρ) − 1, g = (1−γ)a and w = γa/(1+g), which are m/b − 1 and the other/m − 1,

        γ b (g − log(1+g)) + (1−γ) b (1+g) ((1+w) log(1+w) − w)

    This is γ b log(b/m) + (1−γ) b e^(−ρ) log(1+w): what is linear in g and w cancels.
    """
    p, q = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature)
    # Beyond 100 the smaller one counts for nothing: so a masked class needs no case of its own.
    rho = xp.clip(abs(_log_ratio(xp, s, t, rows, temperature)), 0.0, 100.0)
    gamma: Array | float = beta
    rest: Array | float = 1.0 - beta
    if beta != rest:
        student = q > p
        gamma, rest = (
            xp.where(student, other, xp.full_like(p, one))
            for one, other in ((beta, 1.0 - beta), (1.0 - beta, beta))
        )
    smaller = xp.exp(-rho)
    a = xp.where(rho < NEAR, expm1_near(xp, -xp.clip(rho, 0.0, NEAR)), smaller - 1.0)
    g = rest * a
    m = gamma + rest * smaller  # 1 + g, right even where g is close to −1
    log_m = xp.log(m)
    near = g > -0.5
    gap = xp.where(near, log1p_gap(xp, g), g - log_m)
    w = gamma * a / m
    ratio = smaller / m  # 1 + w
    log_ratio = xp.where(near, gap - g, -log_m) - rho
    # (1+w) log(1+w) − w = w² − (1+w)(w − log(1+w))
    bregman = xp.where(w > -0.5, w * w - (1.0 + w) * log1p_gap(xp, w), ratio * log_ratio - w)
    return xp.maximum(p, q) * (gamma * gap + rest * m * bregman)


def _js_log(
    xp: Namespace,
    other: Array,
    own: Array,
    rows: Rows,
    weights: tuple[float, float],
    temperature: Temperature,
) -> Array:
    r"""Return log(p/m) less its value where d is at the anchor.

    A gradient is p·(log(p/m) − its mean), and where p and q have little in common log(p/m) is
    nearly the constant −log β.  About an anchor in the bulk of p that constant is gone.  With
    θ = (1−β) q/m and κ = θ p/q at the anchor and u = (anchor − d)/T, the result is −log(1 + y),
    y = θ expm1(u) = κ q/p − θ.
    """
    theta, rest, kappa = _js_anchor(xp, rows, weights, temperature)
    p, q = _p(xp, own, rows, temperature), _q(xp, other, rows, temperature)
    d, unit = _differences(xp, other, own), EIGHTH * temperature
    u = tempered(xp, difference(rows.anchor, rows.anchor_low, *d), unit)
    r = tempered(xp, difference(rows.pivot, rows.pivot_low, *d), unit) - rows.offset
    # The ratio of probabilities is right to a few u, e^r only to u·|r|.
    near = theta * expm1_near(xp, xp.clip(u, -NEAR, NEAR))
    y = xp.where(abs(u) < NEAR, near, kappa * (q / xp.where(p > 0, p, 1.0)) - theta)
    # log(1 + y) = log((1 − θ) + κ q/p), without overflow: below e^(−_DEEP) p/q gives way to r.
    larger = xp.maximum(p, q)
    larger = xp.where(larger > 0, larger, 1.0)
    share = p / larger
    m = rest * share + kappa * (q / larger)
    m = xp.where(m > 0, m, 1.0) / xp.clip(share, math.exp(-_DEEP), 1.0)
    far = xp.log(m) + xp.clip(r - _DEEP, 0.0, xp.inf)
    return -xp.where((y > -0.5) & (y < 1.0), log1p(xp, y), far)


def _js_anchor(
    xp: Namespace, rows: Rows, weights: tuple[float, float], temperature: Temperature
) -> tuple[Array, Array, Array]:
    """Return θ = 1/(1 + k e^z), 1 − θ and κ = θ e^z: z = log(p/q) at the anchor, k = β/(1−β)."""
    k = weights[0] / weights[1]
    high, low = two_difference(rows.anchor, rows.pivot)
    low = low + (rows.anchor_low - rows.pivot_low)
    z, z_low = two_sum(high, low)  # where pivot and anchor are large, low is not small beside z
    positive = z > 0
    z_low = xp.where(positive, -z_low, z_low)
    small = exp_of_rows(xp, -abs(z), z_low, EIGHTH * temperature)
    small = small * xp.exp(xp.where(positive, -rows.offset, rows.offset))  # e^(−|z|)
    above, below = small + k, 1.0 + k * small
    theta = xp.where(positive, small / above, 1.0 / below)
    rest = xp.where(positive, k / above, k * small / below)
    kappa = xp.where(positive, 1.0 / above, small / below)
    return theta, rest, kappa


def _anchor_log(xp: Namespace, rows: Rows, temperature: Temperature) -> Array:
    """Return log(p/q) at the anchor."""
    z = difference(rows.anchor, rows.anchor_low, rows.pivot, rows.pivot_low)
    return tempered(xp, z, EIGHTH * temperature) + rows.offset


# --- pieces ---------------------------------------------------------------------------------------


def _p(xp: Namespace, t: Array, rows: Rows, temperature: Temperature) -> Array:
    return weights_of(xp, t, rows.t_max, temperature) * rows.t_scale


def _q(xp: Namespace, s: Array, rows: Rows, temperature: Temperature) -> Array:
    return weights_of(xp, s, rows.s_max, temperature) * rows.s_scale


def _relative(
    xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature
) -> tuple[Array, Array]:
    """Return (t − max t)/T and (s − max s)/T."""
    a, b = finite(xp, t) - rows.t_max, finite(xp, s) - rows.s_max
    return tempered(xp, a, temperature), tempered(xp, b, temperature)


def _differences(xp: Namespace, s: Array, t: Array) -> tuple[Array, Array]:
    """Return t − s in eighths, as pivot and anchor are."""
    return two_difference(eighths(xp, t), eighths(xp, s))


def _log_ratio(xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature) -> Array:
    """Return r = log(q/p); huge, but finite, where one of them is 0."""
    apart = difference(rows.pivot, rows.pivot_low, *_differences(xp, s, t))
    return tempered(xp, apart, EIGHTH * temperature) - rows.offset


def _deviation(xp: Namespace, s: Array, t: Array, rows: Rows, temperature: Temperature) -> Array:
    """Return x − Σ p x, x = (t − s)/T."""
    apart = difference(*_differences(xp, s, t), rows.anchor, rows.anchor_low)
    return tempered(xp, apart, EIGHTH * temperature) - rows.mean
