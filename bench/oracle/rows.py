"""Divergences of rows of logits and both their gradients in double-double arithmetic.

Nothing cancels: divergences are sums of terms ≥ 0, and a gradient is measured from a likely class,
so that it stays right where all the probability lies on that class.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .doubles import Double, Floats, difference, double, exp, expm1, gap, log, log1p, where

_FAR = 0.5  # how far log(q/p) is from 0 where p and q are taken apart
_NEVER = 2000.0  # log(q/p), or its negative, of a class that one side does not have
_MOST = 600.0  # log(q/p) beyond which p is as good as 0


class Truth(NamedTuple):
    """Divergences of rows and their gradients in the logits that were given, in float64."""

    value: Any
    grad_input: Any
    grad_target: Any


def truth(s: Any, t: Any, *, temperature: Any = 1.0, beta: float | None = None) -> Truth:
    """Return KL (or JS, given ``beta``) of softmax(t/T) from softmax(s/T), classes last.

    Where a class is masked (−∞) for both it takes no part. A row without any class, or with NaN or
    +∞, has no divergence: NaN.
    """
    s, t = (np.asarray(a, dtype=np.float64) for a in (s, t))
    with np.errstate(all="ignore"):
        pair = _Pair(s, t, np.asarray(temperature, np.float64)[..., None])
        found = pair.kl() if beta is None else pair.js(beta)
    wrong = np.isnan(s) | np.isnan(t) | (s == np.inf) | (t == np.inf)
    wrong = wrong.any(-1) | (s == -np.inf).all(-1) | (t == -np.inf).all(-1)
    return Truth(
        np.where(wrong, np.nan, found[0]),
        *(np.where(wrong[..., None], np.nan, part) for part in found[1:]),
    )


class _Pair:
    """Probabilities p and q of rows, r = log(q/p), and differences from the likeliest class."""

    def __init__(self, s: Floats, t: Floats, temperature: Floats) -> None:
        self.temperature = temperature
        self.of_s, self.of_t = s > -np.inf, t > -np.inf
        s, t = (np.where(np.isfinite(a), a, 0.0) for a in (s, t))
        self.p, log_p, self.top = self._softmax(t, self.of_t)
        self.q, log_q, _ = self._softmax(s, self.of_s)
        top = self.top

        # Where q is like p in the likeliest class, log(q/p) follows from the exact differences
        # of the logits and S = Σ p (e^−D − 1), which is as small as they are.
        both = self.of_s & self.of_t
        delta = difference(t, s)
        self.shift = where(both, (delta - delta.at(top)) / double(temperature), 0.0)  # D
        close = np.abs((log_q - log_p).at(top).high) < 1
        close &= np.take_along_axis(self.of_s, top[..., None], axis=-1)
        near = both & (np.abs(self.shift.high) < _FAR)
        student = difference(s, np.take_along_axis(s, top[..., None], axis=-1))
        apart = exp(log_p.at(top) + student / double(temperature))
        apart = where(self.of_s, apart, 0.0) - self.p
        part = where(near, self.p * expm1(-where(near, self.shift, 0.0)), apart)
        total = where(close, where(close, part, 0.0).sum(), 0.0)
        self.minus = where(close, (part - self.p * total) / (total + 1.0), self.q - self.p)
        self.r = where(close, -self.shift - log1p(total), log_q - log_p)
        alone = np.where(self.of_s, _NEVER, -_NEVER)
        self.r = where(both, self.r, np.where(self.of_s | self.of_t, alone, 0.0))

    def _softmax(self, logits: Floats, here: Any) -> tuple[Double, Double, Any]:
        """Return probabilities, their logarithms and the likeliest class."""
        top = np.argmax(np.where(here, logits, -np.inf), axis=-1)
        shifted = difference(logits, np.take_along_axis(logits, top[..., None], axis=-1))
        shifted /= double(self.temperature)
        weights = where(here, exp(shifted), 0.0)
        total = weights.sum()
        return weights / total, shifted - log(total), top

    def kl(self) -> tuple[Floats, Floats, Floats]:
        # p φ(−r) = p (q/p − 1 − log(q/p)), of which q − p sums to 0.
        near = np.abs(self.r.high) < _FAR
        terms = where(near, self.p * gap(expm1(where(near, self.r, 0.0))), self._apart())
        value = terms.sum().high[..., 0]
        lost = self.of_t & ~self.of_s
        value = np.where(lost.any(-1), np.inf, value)
        mean = (self.p * self.shift).sum()
        in_target = (self.p * (self.shift - mean) / double(self.temperature)).high
        in_target = np.where(lost.any(-1, keepdims=True) & self.of_t, np.nan, in_target)
        return value, (self.minus / double(self.temperature)).high, in_target

    def _apart(self) -> Double:
        return self.minus - where(self.of_t, self.p * self.r, 0.0)

    def js(self, beta: float) -> tuple[Floats, Floats, Floats]:
        b, c = double(beta), double(1.0) - beta
        # Near: with δ = q/p − 1, g = m/p − 1 and w = q/m − 1,
        # β p (g − log1p g) + (1 − β) m ((1 + w) log1p w − w).
        near = np.abs(self.r.high) < _FAR
        delta = expm1(where(near, self.r, 0.0))
        g = c * delta
        w = b * delta / (g + 1.0)
        terms = b * self.p * gap(g) + c * self.p * (g + 1.0) * (w * w - (w + 1.0) * gap(w))
        # Far: β p log(p/m) + (1 − β) q log(q/m) with e^−|r|, which cannot overflow.
        low = self.r.high <= 0
        small = exp(where(low, self.r, -self.r))
        mixed = log(where(low, b, c) + where(low, c, b) * small)
        of_p = -mixed - where(low, 0.0, self.r)
        of_q = -mixed + where(low, self.r, 0.0)
        terms = where(near, terms, b * self.p * of_p + c * self.q * of_q)
        value = terms.sum().high[..., 0]
        in_target = _half(self.p, self.r, -self.shift, b, c) / double(self.temperature)
        in_input = _half(self.q, -self.r, self.shift, c, b) / double(self.temperature)
        return value, in_input.high, in_target.high


def _half(p: Double, r: Double, shift: Double, b: Double, c: Double) -> Double:
    """Return β p (v − v̄) with v = log(p/m), the differences of r given exactly."""
    top = np.argmax(p.high, axis=-1)
    shift = where(np.abs(r.high) < _NEVER, shift - shift.at(top), r)  # Δ
    # v − v₀ = −log(1 + κ (e^r − e^r₀)/(1 + κ e^r₀)), κ = (1 − β)/β: where Δ is small, or so is e^r,
    # e^r₀ (e^Δ − 1) does not cancel.
    first = exp(r.at(top))
    apart = exp(where(r.high < _MOST, r, _MOST)) - first
    near = (shift.high < _FAR) & (first.high > 0)
    moved = where(near, first * expm1(shift), apart)
    v = -log1p(moved * c / (first * c + b))
    return b * p * (v - (p * v).sum())
