r"""The state of a block of logits: what KL needs to know about it, mergeable in any order.

With teacher logits t, student logits s and temperature T, write d = t − s, x = (d − c)/T for a pivot c,
p = softmax(t/T), q = softmax(s/T) and φ(x) = e⁻ˣ − 1 + x ≥ 0.  Then, for *any* pivot,

    Φ = Σ p φ(x),   μ = Σ p x,   y = Φ − μ = Σ p·e⁻ˣ − 1
    KL(p‖q) = Φ − (y − log1p y) = μ + log1p y

and where c is near the mean of d under p, no large numbers are subtracted: KL comes out to a few
roundings however close p and q are.  Two details keep that true of logits in finite precision.  d and c
are double words, so that x is right relative to itself even for d ≈ 100 and x ≈ 1e-8, and exactly 0 where
t − s is constant.  And T divides differences, never logits, whose rounding would be taken for a divergence.

Arrays in a state have length one along the axis of the classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kldiv.formulas.special import NEAR, log1p, log1p_gap, phi_near, two_difference, two_sum

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace

_FAR = 100.0
"""Differences beyond it no longer move the pivot: a finite mask of −1e9 would carry it away."""


class State(NamedTuple):
    """Summary of a block of classes."""

    m: Array
    """max t."""
    S: Array
    """Σ w, w = exp((t − m)/T)."""
    c: Array
    """Pivot: about the mean of d under w."""
    c_low: Array
    """What rounding the pivot lost."""
    M: Array
    """Σ w·x: what the pivot differs from the mean."""
    P: Array
    """Σ w·φ(x)."""
    n: Array
    """max s."""
    Q: Array
    """Σ exp((s − n)/T)."""
    gap: Array
    """∞ where a class has p > 0 = q, else 0.  KL is ∞ then, but gradients still need the rest."""


def over(array: Array, temperature: Array | float) -> Array:
    """Return ``array / temperature``; dividing by the number 1 costs nothing."""
    if isinstance(temperature, (int, float)) and temperature == 1:
        return array
    return array / temperature


def total(xp: Namespace, array: Array, axis: int) -> Array:
    return xp.sum(array, axis=axis, keepdims=True)


def apart(xp: Namespace, a: Array, a_low: Array, b: Array, b_low: Array) -> Array:
    """Return the difference of two double words, right to a few roundings of itself."""
    high, low = two_difference(a_low, b_low)
    return ((a - b) + high) + low


def moved(c: Array, c_low: Array, by: Array) -> tuple[Array, Array]:
    """Return a double word plus a number."""
    high, low = two_sum(c, by)
    low = low + c_low
    c = high + low
    return c, low - (c - high)


def _exp_of(xp, n, m, c, c_low, temperature):
    """exp((n + c − m)/T)."""
    a, a_low = two_difference(n, m)
    b, b_low = two_sum(a, c)
    low = b_low + (a_low + c_low)
    high = b + low
    low = low - (high - b)
    return xp.exp(over(high, temperature)) * (1.0 + over(low, temperature))


def finite_or_zero(xp, m):
    return xp.where(m == -xp.inf, 0.0, m)


def block_state(xp, s, t, axis=-1, temperature=1.0):
    m, n = xp.max(t, axis=axis, keepdims=True), xp.max(s, axis=axis, keepdims=True)
    m0, n0 = finite_or_zero(xp, m), finite_or_zero(xp, n)
    w, v = xp.exp(over(t - m0, temperature)), xp.exp(over(s - n0, temperature))
    S, Q = total(xp, w, axis), total(xp, v, axis)
    d, d_low = two_difference(t, s)
    no_p, no_q = t == -xp.inf, s == -xp.inf
    dead = no_p | no_q

    # pivot
    beside = xp.max(xp.where(t == m, s, -xp.inf), axis=axis, keepdims=True)
    ref, ref_low = two_difference(m0, xp.where(beside == -xp.inf, n0, beside))
    ref0, ref_low0 = two_difference(m0, n0)
    x = (d - ref) + (d_low - ref_low)
    x = xp.where(dead, 0.0, x)
    x = xp.minimum(xp.maximum(x, -_FAR*xp.ones_like(m)), _FAR*xp.ones_like(m))
    mean = total(xp, w * x, axis) / xp.where(S > 0, S, 1.0)
    c, c_low = moved(ref, ref_low, mean)

    x = xp.where(dead, NEAR, over(apart(xp, d, d_low, c, c_low), temperature))
    k = xp.where(n == -xp.inf, 0.0, _exp_of(xp, n0, m0, c, c_low, temperature))
    far = k * v + w * (x - 1.0)
    P = total(xp, xp.where(abs(x) < NEAR, w * phi_near(xp, x), far), axis)
    M = total(xp, w * x, axis)
    gap = xp.where(xp.any(no_q & ~no_p, axis=axis, keepdims=True), xp.inf, xp.zeros_like(m))
    empty = m == -xp.inf
    zero = lambda a: xp.where(empty, 0.0, a)
    return State(m, S, zero(c), zero(c_low), M, zero(P), n, Q, gap)


def _moved_sums(xp, a, m, c, c_low, temperature):
    """S, M, P of a state about another maximum and pivot."""
    scale = xp.where(a.m == m, 1.0, xp.exp(over(a.m - m, temperature)))
    h = over(apart(xp, a.c, a.c_low, c, c_low), temperature)
    S = scale * a.S
    M = scale * a.M + S * h
    p = phi_near(xp, h)
    near = a.P + a.S * p + (a.P - a.M) * (p - h)
    k = _exp_of(xp, a.n, finite_or_zero(xp, m), c, c_low, temperature)
    far = xp.where(a.Q > 0, a.Q * k, 0.0) + M - S
    ok = (abs(h) < NEAR) & (a.S > 0) & xp.isfinite(a.P)
    return S, M, xp.where(ok, scale * near, far)


def merge(xp, a, b, temperature=1.0):
    m, n = xp.maximum(a.m, b.m), xp.maximum(a.n, b.n)
    wa = xp.where(a.m == m, 1.0, xp.exp(over(a.m - m, temperature))) * a.S
    wb = xp.where(b.m == m, 1.0, xp.exp(over(b.m - m, temperature))) * b.S
    heavy = wa >= wb
    hc, hl = xp.where(heavy, a.c, b.c), xp.where(heavy, a.c_low, b.c_low)
    lc, ll = xp.where(heavy, b.c, a.c), xp.where(heavy, b.c_low, a.c_low)
    wl = xp.where(heavy, wb, wa)
    wt = wa + wb
    k = apart(xp, lc, ll, hc, hl)
    k = xp.where(k > -_FAR, k, -_FAR); k = xp.where(k < _FAR, k, _FAR)
    c, cl = moved(hc, hl, wl / xp.where(wt > 0, wt, 1.0) * k)
    Sa, Ma, Pa = _moved_sums(xp, a, m, c, cl, temperature)
    Sb, Mb, Pb = _moved_sums(xp, b, m, c, cl, temperature)
    qa = xp.where(a.n == n, 1.0, xp.exp(over(a.n - n, temperature))) * a.Q
    qb = xp.where(b.n == n, 1.0, xp.exp(over(b.n - n, temperature))) * b.Q
    return State(m, Sa + Sb, c, cl, Ma + Mb, Pa + Pb, n, qa + qb, a.gap + b.gap)


class Rows(NamedTuple):
    kl: Array
    m: Array
    n: Array
    p: Array
    q: Array
    c: Array
    c_low: Array
    mean: Array
    mean_low: Array
    ratio: Array
    ratio_low: Array
    lam: Array


def finish(xp, state, temperature=1.0):
    m, S, c, c_low, M, P, n, Q, gap = state
    mu, big = M / S, P / S
    y = (P - M) / S
    d, d_low = two_difference(m, n)
    far, far_low = moved(d, d_low, temperature * xp.log(S / Q))
    lam_far = over(apart(xp, c, c_low, far, far_low), temperature)
    trust = (big < 8.0) & (y > -0.25)
    y = xp.where(trust, y, 0.0)
    lam = xp.where(trust, log1p(xp, y), lam_far)
    kl = xp.where(trust & (y < 1.0), big - log1p_gap(xp, y), mu + lam)
    kl = xp.where(kl < 0, 0.0, kl) + gap
    bad = (Q == 0)|(S==0)
    kl = xp.where(bad, xp.nan, kl)
    lam = xp.where(bad, xp.nan, lam)
    r, r_low = moved(c, c_low, -temperature * lam)
    r, r_low = xp.where(trust, r, far), xp.where(trust, r_low, far_low)
    mean, mean_low = moved(c, c_low, temperature * mu)
    return Rows(kl, m, n, 1 / S, 1 / Q, c, c_low, mean, mean_low, r, r_low, lam)
