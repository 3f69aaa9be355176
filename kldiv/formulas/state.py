from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kldiv.formulas.special import NEAR, log1p, log1p_gap, phi_near, two_difference, two_sum


class State(NamedTuple):
    m: object; S: object; n: object; Q: object
    c: object; c_low: object; Y: object; P: object
    a: object; a_low: object; M: object; gap: object


def over(array, temperature):
    if isinstance(temperature, (int, float)) and temperature == 1:
        return array
    return array / temperature

def scaled(xp, x, T):
    if isinstance(T, (int, float)) and T == 1:
        return x
    return xp.clip(x / T, -1e30, 1e30)

def total(xp, array, axis):
    return xp.sum(array, axis=axis, keepdims=True)

def apart(xp, a, a_low, b, b_low):
    high, low = two_difference(a_low, b_low)
    return ((a - b) + high) + low

def moved(c, c_low, by):
    high, low = two_sum(c, by)
    low = low + c_low
    c = high + low
    return c, low - (c - high)

def floor(xp, a):
    return xp.clip(a, min=float(xp.finfo(a.dtype).min))

def weights(xp, t, m, T):
    a, low = two_difference(t, m)
    w = xp.exp(over(a, T))
    return w + w * over(low, T)

def exp_of(xp, n, m, c, c_low, T):
    a, a_low = two_difference(n, m)
    b, b_low = two_sum(a, c)
    low = b_low + (a_low + c_low)
    high = b + low
    low = low - (high - b)
    return xp.exp(over(high, T)) * (1.0 + over(low, T))

def base(xp, m):
    return xp.where(m == -xp.inf, 0.0, floor(xp, m))

def ratio_of_sums(xp, m, S, n, Q, T):
    """T·log(Zt/Zs) dw"""
    some = (S > 0) & (Q > 0)
    d, d_low = two_difference(base(xp, m), base(xp, n))
    r = xp.log(xp.where(some, S / Q, 1.0))
    c, low = moved(d, d_low, r * T)
    return c, low, some

def block_state(xp, s, t, axis=-1, temperature=1.0):
    T = temperature
    m, n = xp.max(t, axis=axis, keepdims=True), xp.max(s, axis=axis, keepdims=True)
    m0, n0 = base(xp, m), base(xp, n)
    t1, s1 = floor(xp, t), floor(xp, s)
    w, v = weights(xp, t1, m0, T), weights(xp, s1, n0, T)
    S, Q = total(xp, w, axis), total(xp, v, axis)
    d, d_low = two_difference(t1, s1)

    beside = xp.max(xp.where(t == m, s1, -xp.inf), axis=axis, keepdims=True)
    a, a_low = two_difference(m0, beside)
    x = scaled(xp, (d - a) + (d_low - a_low), T)
    M = total(xp, w * x, axis)
    mean, mean_low = moved(a, a_low, T * (M / xp.where(S > 0, S, 1.0)))
    far, far_low, some = ratio_of_sums(xp, m, S, n, Q, T)
    close = abs(over(apart(xp, mean, mean_low, far, far_low), T)) < 16 * float(xp.finfo(m.dtype).eps)
    c, c_low = xp.where(close, mean, far), xp.where(close, mean_low, far_low)
    c, c_low = xp.where(some, c, 0.0), xp.where(some, c_low, 0.0)

    x = scaled(xp, apart(xp, d, d_low, c, c_low), T)
    k = exp_of(xp, n0, m0, c, c_low, T)
    near = xp.clip(x, -NEAR, NEAR)
    wn, wx = w * near, w * x
    term = xp.where(abs(x) < NEAR, w * phi_near(xp, near), (k * v - w) + wn)
    Y = total(xp, term - wn, axis)
    P = total(xp, term + (wx - wn), axis)
    Mc = total(xp, wx, axis)
    use = abs(Mc) < abs(M)
    a, a_low, M = xp.where(use, c, a), xp.where(use, c_low, a_low), xp.where(use, Mc, M)
    gap = xp.where(xp.any((s == -xp.inf) & (t > -xp.inf), axis=axis, keepdims=True), xp.inf, xp.zeros_like(m))
    zero = lambda b: xp.where(m == -xp.inf, 0.0, b)
    return State(m, S, n, Q, zero(c), zero(c_low), zero(Y), zero(P), zero(a), zero(a_low), zero(M), gap)

def scale(xp, a, m, T):
    return xp.where(a == m, 1.0, weights(xp, floor(xp, a), floor(xp, m), T))

def merge(xp, a, b, temperature=1.0):
    T = temperature
    m, n = xp.maximum(a.m, b.m), xp.maximum(a.n, b.n)
    fa, fb = scale(xp, a.m, m, T), scale(xp, b.m, m, T)
    Sa, Sb = fa * a.S, fb * b.S
    S = Sa + Sb
    Q = scale(xp, a.n, n, T) * a.Q + scale(xp, b.n, n, T) * b.Q
    heavy = Sa >= Sb
    pick = lambda x, y: xp.where(heavy, x, y)
    an, anl = pick(a.a, b.a), pick(a.a_low, b.a_low)
    M = sum(f * x.M + s * over(apart(xp, x.a, x.a_low, an, anl), T) for f, s, x in ((fa, Sa, a), (fb, Sb, b)))

    # pivot
    c, cl = pick(a.c, b.c), pick(a.c_low, b.c_low)
    k = over(apart(xp, pick(b.c, a.c), pick(b.c_low, a.c_low), c, cl), T)
    Yh, Yl, Sl = pick(fa * a.Y, fb * b.Y), pick(fb * b.Y, fa * a.Y), pick(Sb, Sa)
    y = (Yh + Yl + (Sl + Yl) * (phi_near(xp, k) - k)) / xp.where(S > 0, S, 1.0)
    far, far_low, some = ratio_of_sums(xp, m, S, n, Q, T)
    close = (abs(k) < NEAR) & (abs(y) < .5)
    new, new_low = moved(c, cl, -T * log1p(xp, xp.where(close, y, 0.0)))
    c = xp.where(some, xp.where(close, new, far), c)
    cl = xp.where(some, xp.where(close, new_low, far_low), cl)
    Mc = M + S * over(apart(xp, an, anl, c, cl), T)

    def part(f, s, x):
        h = over(apart(xp, x.c, x.c_low, c, cl), T)
        near = (abs(h) < NEAR) & (x.S > 0)
        h = xp.where(near, h, 0.0)
        p = phi_near(xp, h)
        e = p - h
        kk = exp_of(xp, base(xp, x.n), base(xp, m), c, cl, T)
        Yf = xp.where(x.Q > 0, x.Q * kk, 0.0) - s
        Mx = f * x.M + s * over(apart(xp, x.a, x.a_low, c, cl), T)
        Y = xp.where(near, f * (x.Y + (x.S + x.Y) * e), Yf)
        P = xp.where(near, f * (x.P + x.S * p + x.Y * e), Yf + Mx)
        return Y, P
    Ya, Pa = part(fa, Sa, a)
    Yb, Pb = part(fb, Sb, b)
    return State(m, S, n, Q, c, cl, Ya + Yb, Pa + Pb, an, anl, M, a.gap + b.gap)


class Rows(NamedTuple):
    kl: object; m: object; n: object; p: object; q: object
    c: object; c_low: object; lam: object
    a: object; a_low: object; mu: object

def finish(xp, state, temperature=1.0):
    S, Q = state.S, state.Q
    y = state.Y / S
    kl = state.P / S - log1p_gap(xp, y)
    kl = xp.where(kl < 0, 0.0, kl) + state.gap
    bad = (Q == 0) | (S == 0)
    nan = xp.where(bad, xp.nan, 0.0 * S)
    return Rows(kl + nan, state.m, state.n, 1 / S, 1 / Q, state.c, state.c_low, log1p(xp, y) + nan, state.a, state.a_low, state.M / S + nan)
