from __future__ import annotations
from kldiv.formulas.special import *
from kldiv.formulas.special import two_difference
from kldiv.formulas.state import *
from kldiv.formulas.state import over, difference, total, tempered, finite, weights, exp_over
import math

def _p(xp, t, rows, T):
    return weights(xp, finite(xp, t), rows.t_max, T) * rows.t_scale
def _q(xp, s, rows, T):
    return weights(xp, finite(xp, s), rows.s_max, T) * rows.s_scale
def _d(xp, s, t):
    return two_difference(finite(xp, t), finite(xp, s))
def _r(xp, s, t, rows, T):
    return tempered(xp, difference(rows.pivot, rows.pivot_low, *_d(xp, s, t)), T) - rows.offset

R0 = 2.0
def grad_input(xp, s, t, rows, temperature=1.0):
    p, q, r = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature), _r(xp, s, t, rows, temperature)
    return over(xp.where(abs(r) < R0, p * xp.expm1(r), q - p), temperature)

def grad_target(xp, s, t, rows, temperature=1.0):
    x = tempered(xp, difference(*_d(xp, s, t), rows.anchor, rows.anchor_low), temperature) - rows.mean
    g = _p(xp, t, rows, temperature) * (x + xp.where(rows.kl == xp.inf, xp.nan, 0.*rows.offset))
    return over(xp.where(t == -xp.inf, 0.0 * rows.offset, g), temperature)

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
    h, hl = two_difference(rows.anchor, rows.pivot)
    hl = hl + (rows.anchor_low - rows.pivot_low)
    k = own / oth
    pos = h > 0
    e = exp_over(xp, -abs(h), xp.where(pos, -hl, hl), T) * xp.exp(xp.where(pos, -rows.offset, rows.offset))
    theta = xp.where(pos, e / (e + k), 1 / (1 + k * e))
    rest = xp.where(pos, k / (e + k), k * e / (1 + k * e))
    full = xp.where(pos, 1 / (e + k), e / (1 + k * e)) 
    return theta, rest, full

def _ell(xp, s, t, rows, own, oth, T):
    theta, rest, full = _theta(xp, rows, own, oth, T)
    d, low = _d(xp, s, t)
    p, q = _p(xp, t, rows, T), _q(xp, s, rows, T)
    u = tempered(xp, difference(rows.anchor, rows.anchor_low, d, low), T)
    r = tempered(xp, difference(rows.pivot, rows.pivot_low, d, low), T) - rows.offset
    top = xp.maximum(p, q)
    top = xp.where(top > 0, top, 1.0)
    rest_ = rest * (p / top) + full * (q / top)
    eta = xp.where(abs(u) < 2, theta * xp.expm1(u), full * (q / xp.where(p>0,p,1.)) - theta)
    near = (eta > -.5) & (eta < 1)
    return -xp.where(near, log1p(xp, eta), xp.clip(r, min=0.) + xp.log(xp.where(rest_ > 0, rest_, 1.)))

def js_shift(xp, s, t, rows, own, oth, temperature=1.0, axis=-1):
    return total(xp, _p(xp, t, rows, temperature) * _ell(xp, s, t, rows, own, oth, temperature), axis)

def js_grad_target(xp, s, t, rows, shift, own, oth, temperature=1.0):
    p = _p(xp, t, rows, temperature)
    return over(own * p * (_ell(xp, s, t, rows, own, oth, temperature) - shift), temperature)
