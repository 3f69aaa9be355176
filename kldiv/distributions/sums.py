"""D(P‖Q) of two discrete distributions of whole numbers, summed until a bound of the rest is small.

Terms near the mass, or near the ends of the support, are added up. The rest of a slow tail, as
Zipf's, or of a wide middle is integrated instead, by Euler and Maclaurin's formula: there
log-densities hardly change from one number to the next, and are interpolated linearly.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kldiv.distributions.lines import line
from kldiv.distributions.quadrature import Pair, Sums, integrals, terms, verdict

if TYPE_CHECKING:
    from kldiv.distributions.host import Density

_DENSE = 1 << 17
"""How many terms are added up beside an end, and how far from it sums are taken as smooth."""
_WIDE = 1 << 20
_NOTHING = -75.0  # log of the mass that a tail may leave out
_EXACT = float(1 << 53)
_EPS = float(np.finfo(np.float64).eps)


def add_up(p: Density, q: Density) -> tuple[float, float]:
    """Return D(P‖Q) and a bound of its error."""
    low, high = p.bounds
    if q.bounds[0] > low or q.bounds[1] < high:
        inside = (max(low, q.bounds[0]), min(high, q.bounds[1]))
        if not (q.bounds[0] <= high and q.bounds[1] >= low) or _outside(p, inside):
            return math.inf, 0.0
    marks = _marks(p)
    if not len(marks):
        return math.nan, math.nan
    first, last = float(marks[0]), float(marks[-1])
    if last - first <= _WIDE:
        blocks, rest = _around(p, q, first, last)
    else:
        blocks, rest = _at_ends(p)
    pair = Pair(p, q, line(p.bounds, marks))
    total = Sums(np.zeros(5), np.zeros(5))
    for start, stop in blocks:
        total = total.plus(_sum(p, q, start, stop))
    if not np.isfinite(total.values).all():
        return (math.nan, math.nan) if np.isnan(total.values).any() else (math.inf, 0.0)
    for start, stop in rest:
        found = _smooth(p, q, start, stop, marks)
        if not isinstance(found, Sums):
            return found, math.nan if math.isnan(found) else 0.0
        total = total.plus(found)
    cuts = np.unique(np.concatenate([marks, marks + 1]))
    return verdict(_Whole(p, q, pair.line), total, cuts, same_support=p.bounds == q.bounds)


class _Whole(Pair):
    """Both mass functions, asked for whole numbers."""

    step: ClassVar[float] = 1.0

    def rough(self) -> Any:
        """Return no places: whole numbers do not lie side by side."""
        return ()

    def logs(self, y: Any) -> tuple[Any, Any]:
        """Return the logarithms of P's and Q's probabilities at whole numbers y."""
        return _logs(self.p, self.q, np.rint(y))


def _logs(p: Density, q: Density, k: Any) -> tuple[Any, Any]:
    with np.errstate(all="ignore"):
        found = []
        for density in (p, q):
            inside = (k >= density.bounds[0]) & (k <= density.bounds[1])
            found.append(np.where(inside, np.asarray(density.log_prob(k), dtype=float), -np.inf))
        return found[0], found[1]


def _outside(p: Density, inside: tuple[float, float]) -> bool:
    """Return whether P has mass just outside of an interval."""
    beside = np.array([k for k in (inside[0] - 1, inside[1] + 1) if math.isfinite(k)])
    return bool((_logs(p, p, beside)[0] > -np.inf).any())


def _marks(p: Density) -> Any:
    """Return whole numbers among which P has its mass."""
    low, high = p.bounds
    steps = np.concatenate([np.arange(65.0), np.rint(np.geomspace(65, 2**53, 400))])
    looked = [p.landmarks()]
    if math.isfinite(low):
        looked.append(low + steps)
    if math.isfinite(high):
        looked.append(high - steps)
    if not (math.isfinite(low) or math.isfinite(high)):
        looked += [steps, -steps]
    k = np.unique(np.rint(np.concatenate(looked)))
    k = k[(k >= low) & (k <= high)]
    log_p, _ = _logs(p, p, k)
    # Mass of a stretch: the number beside a wide step stands for it.
    with np.errstate(all="ignore"):
        mass = log_p + np.log(np.maximum(np.gradient(k), 1.0)) if len(k) > 1 else log_p
    mass = np.where(np.isnan(mass), -np.inf, mass)
    if not np.isfinite(mass).any():
        return k[:0]
    quantiles = np.isin(k, np.rint(looked[0]))
    return k[(mass > np.max(mass) - 3) | (quantiles & (log_p > np.max(log_p) - 40))]


def _around(p: Density, q: Density, first: float, last: float) -> tuple[Any, Any]:
    """Return the block of terms about the marks, and the tails that are left beyond."""
    low, high = p.bounds
    span = last - first
    blocks, rest, edges = [], [], []
    for side, mark, bound in ((-1, first, low), (1, last, high)):
        reach = max(64.0, span)
        # Ever wider until nothing is left of P, and of its product with the logarithms.
        while True:
            end = mark + side * reach
            if side * end >= side * bound:
                edges.append(bound)
                break
            if _negligible(p, q, end, side, bound):
                edges.append(end)
                break
            if reach > _DENSE:
                edges.append(end)
                rest.append((bound, end) if side < 0 else (end, bound))
                break
            reach *= 2
    blocks.append((edges[0], edges[1]))
    return blocks, rest


def _negligible(p: Density, q: Density, end: float, side: int, bound: float) -> bool:
    """Return whether nothing is left beyond a number, as far as numbers go."""
    steps = np.concatenate([[0.0, 1.0, 2.0, 4.0], np.rint(np.geomspace(8, _EXACT, 200))])
    k = end + side * steps
    k = k[side * k <= side * bound]
    log_p, log_q = _logs(p, q, k)
    with np.errstate(all="ignore"):
        size = log_p + np.log1p(np.abs(np.where(np.isneginf(log_p), 0.0, log_p - log_q)))
        size = size + np.log(np.abs(k - end) + 1)
    return bool((size < _NOTHING).all())


def _at_ends(p: Density) -> tuple[Any, Any]:
    """Return blocks of terms at the ends of the support, and the range between them."""
    low, high = p.bounds
    blocks = []
    start, stop = low, high
    if math.isfinite(low):
        start = low + _DENSE
        blocks.append((low, start))
    if math.isfinite(high):
        stop = high - _DENSE
        blocks.append((stop, high))
    return blocks, [(start, stop)]


def _sum(p: Density, q: Density, start: float, stop: float) -> Sums:
    """Add up the terms from one number to another, both included."""
    total, size = np.zeros(5), np.zeros(5)
    for first in np.arange(start, stop + 1, 1 << 16):
        k = np.arange(first, min(first + (1 << 16), stop + 1))
        found = np.ascontiguousarray(terms(*_logs(p, q, k)).T)  # its rows are added in pairs
        total = total + np.sum(found, axis=1)
        size = size + np.sum(np.abs(found), axis=1)
    return Sums(total, 8 * _EPS * size)


def _smooth(p: Density, q: Density, start: float, stop: float, marks: Any) -> Sums | float:
    """Sum strictly between two numbers, which have been added already where they are finite."""
    along = line((start - _DENSE, stop + _DENSE), marks)
    pair = Pair(_interpolated(p), _interpolated(q), along)
    with np.errstate(all="ignore"):
        cuts = along.of(marks)
        begin, end = sorted(float(along.of(x)) for x in (start, stop))
    found = integrals(pair, np.unique(cuts[np.isfinite(cuts)]), begin, end)
    if not isinstance(found, Sums):
        return found
    values, errors = found
    # The trapezoidal rule, ∫ = ½ f(start) + Σ + ½ f(stop), but for what neighbours differ by from
    # the line between them: a second derivative, of order 1/k² beside the function itself.
    for place in (start, stop):
        if math.isfinite(place):
            values = values - terms(*_logs(p, q, np.array([place])))[0] / 2
    return Sums(values, errors + 8 * np.abs(values) / _DENSE**2)


def _interpolated(d: Density) -> Density:
    """Return a density whose logarithm runs straight from one whole number to the next."""
    low, high = d.bounds

    def log_prob(x: Any, log_x: Any = None, log_rest: Any = None) -> Any:  # noqa: ARG001
        k = np.clip(np.floor(x), low, high)
        share = np.clip(x - k, 0.0, 1.0)
        here, beyond = d.log_prob(k), d.log_prob(np.minimum(k + 1, high))
        return np.where(share > 0, (1 - share) * here + share * beyond, here)

    return replace(d, log_prob=log_prob, by_logarithms=False)
