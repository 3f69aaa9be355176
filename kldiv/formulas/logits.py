from __future__ import annotations
from kldiv.formulas.special import *
from kldiv.formulas.special import two_difference
from kldiv.formulas.state import *
from kldiv.formulas.state import over, apart, total
import math

def _p(xp, t, rows, T):
    return xp.exp(over(t - rows.m, T)) * rows.p
def _q(xp, s, rows, T):
    return xp.exp(over(s - rows.n, T)) * rows.q
def _r(xp, s, t, rows, T):
    d, low = two_difference(t, s)
    return over(apart(xp, rows.ratio, rows.ratio_low, d, low), T)

R0 = 2.0
def grad_input(xp, s, t, rows, temperature=1.0):
    p, q, r = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature), _r(xp, s, t, rows, temperature)
    return over(xp.where(abs(r) < R0, p * xp.expm1(r), q - p), temperature)

def grad_target(xp, s, t, rows, temperature=1.0):
    d, low = two_difference(t, s)
    x = over(apart(xp, d, low, rows.mean, rows.mean_low), temperature)
    g = _p(xp, t, rows, temperature) * (x + xp.where(rows.kl == xp.inf, xp.nan, 0.*rows.lam))
    return over(xp.where(t == -xp.inf, 0.0 * rows.lam, g), temperature)

def js_terms(xp, s, t, rows, beta, temperature=1.0, axis=-1):
    p, q, r = _p(xp, t, rows, temperature), _q(xp, s, rows, temperature), _r(xp, s, t, rows, temperature)
    base = xp.maximum(p, q)
    rho = abs(r)
    rho = xp.where(rho < 100., rho, 100.)
    own = xp.where(q > p, 1 - beta, beta*xp.ones_like(p))
    a, e = xp.expm1(-rho), xp.exp(-rho)
    g = (1 - own) * a
    rest = own + (1 - own) * e        # 1 + g
    w = own * a / rest
    lg = xp.where(g > -0.5, 0.0, xp.log(rest))
    L = xp.where(g > -.5, log1p_gap(xp, g), g - xp.log(rest))
    log1pg = g - L
    omega = e / rest
    psi = xp.where(w > -.5, w * w - (1 + w) * log1p_gap(xp, w), omega * (-rho - xp.where(g > -.5, log1pg, xp.log(rest))) - w)
    return total(xp, base * (own * L + (1 - own) * rest * psi), axis)

def _theta(xp, lam, beta):
    z = lam + math.log(beta / (1 - beta))
    soft = log1p(xp, xp.exp(-abs(z)))
    lt = -(xp.where(z > 0, z, 0.) + soft)
    ltc = -(xp.where(z < 0, -z, 0.) + soft)
    return lt, xp.exp(lt), xp.exp(ltc)

def _ell(xp, s, t, rows, beta, T):
    lt, theta, rest = _theta(xp, rows.lam, beta)
    d, low = two_difference(t, s)
    u = over(apart(xp, rows.c, rows.c_low, d, low), T)
    u = xp.where(u > -200., u, -200.)
    e = xp.exp(xp.minimum(u + lt, xp.asarray(80., dtype=u.dtype)))
    eta = xp.where(u < 40, theta * xp.expm1(u), e)
    near = (eta > -.5) & (eta < 1)
    return -xp.where(near, log1p(xp, eta), xp.log(rest + e))

def js_shift(xp, s, t, rows, beta, temperature=1.0, axis=-1):
    return total(xp, _p(xp, t, rows, temperature) * _ell(xp, s, t, rows, beta, temperature), axis)

def js_grad_target(xp, s, t, rows, shift, beta, temperature=1.0):
    p = _p(xp, t, rows, temperature)
    return over(beta * p * (_ell(xp, s, t, rows, beta, temperature) - shift), temperature)
