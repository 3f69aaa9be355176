from __future__ import annotations
from kldiv.formulas.special import *
from kldiv.formulas.special import two_difference
from kldiv.formulas.state import *
from kldiv.formulas.state import over, apart, total, scaled, floor, weights
import math

def _p(xp, t, rows, T):
    return weights(xp, floor(xp, t), rows.m, T) * rows.p
def _q(xp, s, rows, T):
    return weights(xp, floor(xp, s), rows.n, T) * rows.q
def _d(xp, s, t):
    return two_difference(floor(xp, t), floor(xp, s))
def _r(xp, s, t, rows, T):
    return scaled(xp, apart(xp, rows.c, rows.c_low, *_d(xp, s, t)), T) - rows.lam

R0 = 2.0
def grad_input(xp, s, t, rows, temperature=1.0):
    p, q, r = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature), _r(xp, s, t, rows, temperature)
    return over(xp.where(abs(r) < R0, p * xp.expm1(r), q - p), temperature)

def grad_target(xp, s, t, rows, temperature=1.0):
    x = scaled(xp, apart(xp, *_d(xp, s, t), rows.a, rows.a_low), temperature) - rows.mu
    g = _p(xp, t, rows, temperature) * (x + xp.where(rows.kl == xp.inf, xp.nan, 0.*rows.lam))
    return over(xp.where(t == -xp.inf, 0.0 * rows.lam, g), temperature)

def js_terms(xp, s, t, rows, beta, temperature=1.0, axis=-1):
    p, q, r = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature), _r(xp, s, t, rows, temperature)
    base = xp.maximum(p, q)
    rho = xp.clip(abs(r), max=100.)
    up = q > p
    own = xp.where(up, 1 - beta, beta*xp.ones_like(p))
    oth = xp.where(up, beta, (1-beta)*xp.ones_like(p))
    a, e = xp.expm1(-rho), xp.exp(-rho)
    g = oth * a
    rest = own + oth * e        # 1 + g
    w = own * a / rest
    near = g > -.5
    lr = xp.log(rest)
    L = xp.where(near, log1p_gap(xp, g), g - lr)
    lg = xp.where(near, g - L, lr)
    omega = e / rest
    psi = xp.where(w > -.5, w * w - (1 + w) * log1p_gap(xp, w), omega * (-rho - lg) - w)
    return total(xp, base * (own * L + oth * rest * psi), axis)

def _theta(xp, rows, own, oth, T):
    # e^-lam_a odds
    h, hl = two_difference(rows.a, rows.c)
    hl = hl + (rows.a_low - rows.c_low)
    z = over(h, T); zl = over(hl, T) + rows.lam
    z, zl = two_sum(z, zl)
    k = own / oth
    e = xp.exp(-abs(z)) * (1 - xp.where(z > 0, zl, -zl))
    pos = z > 0
    theta = xp.where(pos, e / (e + k), 1 / (1 + k * e))
    rest = xp.where(pos, k / (e + k), k * e / (1 + k * e))
    full = xp.where(pos, 1 / (e + k), e / (1 + k * e)) 
    return theta, rest, full

def _ell(xp, s, t, rows, own, oth, T):
    theta, rest, full = _theta(xp, rows, own, oth, T)
    d, low = _d(xp, s, t)
    u = scaled(xp, apart(xp, rows.a, rows.a_low, d, low), T)
    r = scaled(xp, apart(xp, rows.c, rows.c_low, d, low), T) - rows.lam
    rp = xp.clip(r, min=0.)
    fall, rise = xp.exp(-rp), xp.exp(r - rp)
    eta = xp.where(u < 40, theta * xp.expm1(u), full * rise / fall)
    near = (eta > -.5) & (eta < 1)
    return -xp.where(near, log1p(xp, eta), rp + xp.log(rest * fall + full * rise))

def js_shift(xp, s, t, rows, own, oth, temperature=1.0, axis=-1):
    return total(xp, _p(xp, t, rows, temperature) * _ell(xp, s, t, rows, own, oth, temperature), axis)

def js_grad_target(xp, s, t, rows, shift, own, oth, temperature=1.0):
    p = _p(xp, t, rows, temperature)
    return over(own * p * (_ell(xp, s, t, rows, own, oth, temperature) - shift), temperature)
