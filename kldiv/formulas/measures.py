r"""Divergences of probabilities: KL, Jensen-Shannon, Rényi and others; entropy and cross entropy.

A measure sums over the last axis of one or more arrays of probabilities.  Where two probabilities
are close, log(p/q) comes from their difference, and every term is written so that it is ≥ 0:
terms that cancel in the usual form are gone before they are rounded.

The edges: p = 0 adds the limit of the term; p > 0 = q is +∞ where the measure is.  A slope at p = 0
is 0 where its limit is infinite but the value is not: a softmax before it multiplies it by p, and
p·log p → 0.  A negative probability is NaN.  Every formula takes logarithms of safe numbers only,
so that a library's own differentiation of the slopes is right as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

from kldiv.formulas.numbers import NEAR
from kldiv.formulas.packing import split
from kldiv.formulas.reductions import RowWise, cast
from kldiv.formulas.special import (
    alpha_terms,
    exp_change,
    expm1,
    log1p,
    log_ratio,
    polynomial,
    relative,
    unit_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run


class Measure:
    """A function of rows of probabilities, the last axis of each array."""

    name: ClassVar[str]

    number_of_sums: ClassVar[int] = 1
    slope_takes_sums: ClassVar[bool] = False
    """Whether a slope depends on the sums of the whole row."""

    @property
    def symmetric(self) -> bool:
        """Whether two arrays may be exchanged."""
        return False

    def value(self, xp: Namespace, *ps: Array) -> Array:
        """Return the measure of each row."""
        return self.whole(xp, self.sums(xp, *ps))[..., 0]

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        """Return the measure's sums over some classes, each with a last axis of length one.

        A few are no sums, but maxima and the like: `merged` has the rule for parts.
        """
        raise NotImplementedError

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        """Merge the parts' sums to those of all classes."""
        return [sum(same[1:], same[0]) for same in zip(*parts, strict=True)]

    def whole(self, xp: Namespace, sums: Sequence[Array]) -> Array:
        """Return the measure of each row, given the sums over all its classes."""
        return sums[0]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        """Return its derivative in each probability of the array of that index."""
        raise NotImplementedError

    def slope_about(
        self, xp: Namespace, index: int, top: Array, *ps: Array, sums: Sequence[Array] = ()
    ) -> Array:
        """Return derivatives less a number of the row: as exact less that of the class ``top``."""
        del top  # only a slope that has a bound loses digits by the difference
        return self.slope(xp, index, *ps, sums=sums)


# --- pieces ---------------------------------------------------------------------------------------


def _both(xp: Namespace, p: Array, q: Array) -> tuple[Array, Array, Array]:
    """Return the mask where p, q > 0, then p and q with 1 elsewhere."""
    alive = (p > 0) & (q > 0)
    return alive, xp.where(alive, p, 1.0), xp.where(alive, q, 1.0)


def _edge(xp: Namespace, p: Array, q: Array, p_zero: Array | float, q_zero: Array | float) -> Array:
    """Return ``p_zero`` where p = 0 ≤ q, ``q_zero`` where q = 0 < p, and NaN elsewhere."""
    nan = xp.full_like(p + q, math.nan)
    return xp.where((p == 0) & (q >= 0), p_zero, xp.where((q == 0) & (p > 0), q_zero, nan))


def relative_entropy(xp: Namespace, p: Array, q: Array, difference: Array | None = None) -> Array:
    """Return p·log(p/q) + q − p of each p and q ≥ 0; ``difference`` is p − q, if known better."""
    alive, safe_p, safe_q = _both(xp, p, q)
    if difference is not None:
        difference = xp.where(alive, difference, 0.0)
    terms = relative(xp, safe_p, safe_q, difference)
    return xp.where(alive, terms, _edge(xp, p, q, q, math.inf))


def _lifted(xp: Namespace, ps: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array | float]:
    """Return probabilities, where small in so small a unit that weights make none subnormal.

    Rows with large numbers keep their unit, 1, as they would overflow.
    """
    if any(p.shape[-1] == 0 for p in ps):  # a part of no classes
        return ps, 1.0
    unit = 2.0**-80 if ps[0].dtype == xp.float64 else 2.0**-40
    top = reduce(xp.maximum, [xp.max(p, axis=-1, keepdims=True) for p in ps])
    units = xp.where(top > 1.0 / unit, xp.ones_like(top), unit)
    return tuple([p / units for p in ps]), units


def _sum(xp: Namespace, terms: Array) -> Array:
    return xp.sum(terms, axis=-1, keepdims=True)


# --- the measures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KullbackLeibler(Measure):
    """Σ p·log(p/q) + q − p."""

    name = "kl_divergence"

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        return [_sum(xp, relative_entropy(xp, *ps))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        alive, safe_p, safe_q = _both(xp, p, q)
        if index == 0:
            slopes, edge = log_ratio(xp, safe_p, safe_q), _edge(xp, p, q, 0.0, math.inf)
        else:
            slopes, edge = (safe_q - safe_p) / safe_q, _edge(xp, p, q, 1.0, -math.inf)
        return xp.where(alive, slopes, edge)


@dataclass(frozen=True)
class Jeffreys(Measure):
    """Σ (p − q)·log(p/q)."""

    name = "jeffreys_divergence"

    @property
    def symmetric(self) -> bool:
        return True

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps
        alive, safe_p, safe_q = _both(xp, p, q)
        terms = (safe_p - safe_q) * log_ratio(xp, safe_p, safe_q)
        return [_sum(xp, xp.where(alive, terms, self._edge(xp, p, q, math.inf, math.inf)))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps if index == 0 else ps[::-1]
        alive, safe_p, safe_q = _both(xp, p, q)
        slopes = log_ratio(xp, safe_p, safe_q) + (safe_p - safe_q) / safe_p
        return xp.where(alive, slopes, self._edge(xp, p, q, -math.inf, math.inf))

    def _edge(self, xp: Namespace, p: Array, q: Array, p_zero: float, q_zero: float) -> Array:
        p_only = xp.where(q == 0, 0.0, xp.full_like(q, p_zero))
        return _edge(xp, p, q, p_only, q_zero)


@dataclass(frozen=True)
class Skew(Measure):
    """Σ p·log(p/m) + m − p, m = αp + (1 − α)q, 0 < α < 1."""

    alpha: float

    name = "skew_divergence"

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        (p, q), unit = _lifted(xp, ps)
        alive, safe_p, m, above = self._mixture(xp, p, q)
        edge = _edge(xp, p, q, (1.0 - self.alpha) * q, math.nan)
        terms = xp.where(alive, relative(xp, safe_p, m, above), edge)
        return [unit * _sum(xp, terms)]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        (p, q), _ = _lifted(xp, ps)
        alive, safe_p, m, above = self._mixture(xp, p, q)
        if index == 0:
            slopes, edge = log_ratio(xp, safe_p, m, above) - self.alpha * (above / m), 0.0
        else:
            slopes, edge = -(1.0 - self.alpha) * (above / m), 1.0 - self.alpha
        return xp.where(alive, slopes, _edge(xp, p, q, edge, math.nan))

    def _mixture(self, xp: Namespace, p: Array, q: Array) -> tuple[Array, Array, Array, Array]:
        """Return where p > 0, and there p, m and p − m."""
        alive = (p > 0) & (q >= 0)
        p, q = xp.where(alive, p, 1.0), xp.where(alive, q, 1.0)
        rest = 1.0 - self.alpha
        return alive, p, self.alpha * p + rest * q, rest * (p - q)


@dataclass(frozen=True)
class TotalVariation(Measure):
    """½ Σ |p − q|."""

    name = "tv_divergence"

    @property
    def symmetric(self) -> bool:
        return True

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps
        return [_sum(xp, xp.where((p >= 0) & (q >= 0), 0.5 * abs(p - q), math.nan))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps[index], ps[1 - index]
        return xp.where((p >= 0) & (q >= 0), 0.5 * xp.sign(p - q), math.nan)


@dataclass(frozen=True)
class Hellinger(Measure):
    """½ Σ (√p − √q)²."""

    name = "hellinger_divergence"

    @property
    def symmetric(self) -> bool:
        return True

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        valid, roots, apart = self._roots(xp, *ps)
        terms = 0.5 * (apart / xp.where(roots > 0, roots, 1.0)) ** 2
        return [_sum(xp, xp.where(valid, terms, math.nan))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps[index], ps[1 - index]
        valid, roots, apart = self._roots(xp, p, q)
        root = xp.sqrt(xp.where(p > 0, p, 1.0))
        slopes = 0.5 * (apart / xp.where(roots > 0, roots, 1.0)) / root
        return xp.where(valid, xp.where(p > 0, slopes, 0.0), math.nan)

    def _roots(self, xp: Namespace, p: Array, q: Array) -> tuple[Array, Array, Array]:
        """Return where both are ≥ 0, and there √p + √q and p − q."""
        valid = (p >= 0) & (q >= 0)
        p, q = xp.where(valid, p, 1.0), xp.where(valid, q, 1.0)
        some = (p > 0) | (q > 0)
        # The root's slope at 0 is infinite, for a library's own differentiation.
        roots = [xp.where(each > 0, xp.sqrt(xp.where(each > 0, each, 1.0)), 0.0) for each in (p, q)]
        return valid, xp.where(some, roots[0] + roots[1], 0.0), p - q


@dataclass(frozen=True)
class ChiSquared(Measure):
    """Σ (p − q)²/q."""

    name = "chi2_divergence"

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps
        alive, safe_p, safe_q = _both(xp, p, q)
        apart = safe_p - safe_q
        terms = xp.where(alive, apart * (apart / safe_q), _edge(xp, p, q, q, math.inf))
        return [_sum(xp, terms)]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        alive, safe_p, safe_q = _both(xp, p, q)
        apart = (safe_p - safe_q) / safe_q
        if index == 0:
            slopes, edge = 2.0 * apart, _edge(xp, p, q, -2.0, math.inf)
        else:
            slopes, edge = -apart * (apart + 2.0), _edge(xp, p, q, 1.0, -math.inf)
        return xp.where(alive, slopes, edge)


@dataclass(frozen=True)
class Alpha(Measure):
    """Σ (α p + κ q − p^α q^κ)/(ακ), κ = 1 − α, α ≥ ½; of (q, p) where ``exchanged``."""

    alpha: float
    kappa: float
    exchanged: bool = False

    name = "alpha_divergence"

    @property
    def symmetric(self) -> bool:
        return self.alpha == self.kappa

    @classmethod
    def of(cls, alpha: float) -> Alpha:
        """Return the divergence of any order but 0 and 1."""
        swapped = alpha < 0.5
        return cls(1.0 - alpha, alpha, swapped) if swapped else cls(alpha, 1.0 - alpha)

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps[::-1] if self.exchanged else ps
        alive, safe_p, safe_q = _both(xp, p, q)
        ell = log_ratio(xp, safe_p, safe_q)
        half = xp.exp(-0.5 * self.kappa * ell)  # half a power does not overflow
        power = (safe_p * half) * half
        terms = alpha_terms(xp, (self.alpha, self.kappa), safe_p, safe_q, ell, power) / self.alpha
        lost = p / self.kappa if self.kappa > 0 else math.inf
        return [_sum(xp, xp.where(alive, terms, _edge(xp, p, q, q / self.alpha, lost)))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps[::-1] if self.exchanged else ps
        alive, safe_p, safe_q = _both(xp, p, q)
        ell, finite = log_ratio(xp, safe_p, safe_q), self.kappa > 0
        if index == self.exchanged:
            slopes = exp_change(xp, self.kappa, ell)
            limits = 0.0 if finite else 1.0 / self.kappa, 1.0 / self.kappa if finite else math.inf
        else:
            slopes = exp_change(xp, self.alpha, -ell)
            limits = 1.0 / self.alpha, 0.0 if finite else -math.inf
        return xp.where(alive, slopes, _edge(xp, p, q, *limits))


@dataclass(frozen=True)
class Entropy(Measure):
    """−Σ p·log p."""

    name = "entropy"

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        (p,) = ps
        return [_sum(xp, 0.0 - p * xp.log(xp.where(p == 0, 1.0, p)))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        (p,) = ps
        zero = p == 0
        return xp.where(zero, 0.0, -(xp.log(xp.where(zero, 1.0, p)) + 1.0))


@dataclass(frozen=True)
class CrossEntropy(Measure):
    """−Σ p·log q."""

    name = "cross_entropy"

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps
        alive, safe_p, safe_q = _both(xp, p, q)
        nothing = xp.where(xp.isnan(q), q, 0.0)
        terms = xp.where(alive, -safe_p * xp.log(safe_q), _edge(xp, p, q, nothing, math.inf))
        return [_sum(xp, terms)]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        if index == 0:  # linear in p, but where neither has mass the class takes no part
            usable = q > 0
            slopes = -xp.log(xp.where(usable, q, 1.0))
            return xp.where(usable, slopes, _edge(xp, p, q, 0.0, math.inf))
        alive, safe_p, safe_q = _both(xp, p, q)
        return xp.where(alive, -safe_p / safe_q, _edge(xp, p, q, 0.0, -math.inf))


class OfNormalized(Measure):
    """A measure −Σ p·log q of rows that sum to 1 but for their rounding.

    The −log q of a class with more than half of q is computed from the sum of the others, since its
    own has lost the digits.
    """

    number_of_sums = 3

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps[0], ps[-1]
        heavy = q > 0.5
        top = xp.where(heavy, xp.where(p >= 0, p, math.nan), 0.0)
        (rest,) = super().sums(xp, xp.where(heavy, 0.0, p), *ps[1:])
        return [rest, _sum(xp, top), _sum(xp, xp.where(heavy, 0.0, q))]

    def whole(self, xp: Namespace, sums: Sequence[Array]) -> Array:
        rest, top, others = sums
        return rest - top * log1p(xp, -xp.where(others < 0.5, others, 0.5))


class EntropyOfNormalized(OfNormalized, Entropy):
    """The entropy of normalised rows."""


class CrossEntropyOfNormalized(OfNormalized, CrossEntropy):
    """The cross entropy of normalised rows."""


@dataclass(frozen=True)
class JensenShannon(Measure):
    """Σᵢ wᵢ D(pᵢ‖m), m = Σ wᵢ pᵢ: its terms wᵢ (pᵢ log(pᵢ/m) + m − pᵢ) are all ≥ 0."""

    weights: tuple[float, ...]
    """They sum to 1."""

    name = "js_divergence"

    @property
    def symmetric(self) -> bool:
        return len({*self.weights}) == 1

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        ps, unit = _lifted(xp, ps)
        m = self._mixture(ps)
        terms = [
            weight * self._term(xp, p, m, self._from_mixture(index, ps))
            for index, (weight, p) in enumerate(zip(self.weights, ps, strict=True))
            if weight
        ]
        return [unit * _sum(xp, sum(terms[1:], terms[0]))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        weight = self.weights[index]
        if not weight:
            return xp.zeros_like(ps[index])
        ps, _ = _lifted(xp, ps)
        p, m = ps[index], self._mixture(ps)
        alive, safe_p, safe_m = _both(xp, p, m)
        above = xp.where(alive, self._from_mixture(index, ps), 0.0)
        slopes = weight * log_ratio(xp, safe_p, safe_m, above)
        return xp.where(alive, slopes, _edge(xp, p, m, 0.0, -weight * math.log(weight)))

    def slope_about(
        self, xp: Namespace, index: int, top: Array, *ps: Array, sums: Sequence[Array] = ()
    ) -> Array:
        """Return slopes, less their bound −w log w in a row whose class ``top`` is near it."""
        weight, slopes = self.weights[index], self.slope(xp, index, *ps, sums=sums)
        if not weight:
            return slopes
        own = weight * ps[index]
        parts = [each * p for each, p in zip(self.weights, ps, strict=True)]
        others = sum(parts[:index] + parts[index + 1 :], xp.zeros_like(own))
        near = (others < own) & (own > 0)
        share = xp.where(near, others, 0.0) / xp.where(near, own, 1.0)
        below = xp.where(near, -weight * log1p(xp, share), slopes + weight * math.log(weight))
        bounded = _sum(xp, xp.where(top & (8.0 * others < own), 1.0, xp.zeros_like(own))) > 0
        return xp.where(bounded, below, slopes)

    def _term(self, xp: Namespace, p: Array, m: Array, above: Array) -> Array:
        alive, safe_p, safe_m = _both(xp, p, m)
        terms = relative(xp, safe_p, safe_m, xp.where(alive, above, 0.0))
        return xp.where(alive, terms, _edge(xp, p, m, m, 0.0))  # m = 0 < p: w p has underflowed

    def _mixture(self, ps: Sequence[Array]) -> Array:
        parts = [weight * p for weight, p in zip(self.weights, ps, strict=True) if weight]
        return sum(parts[1:], parts[0])

    def _from_mixture(self, index: int, ps: Sequence[Array]) -> Array:
        """Return pᵢ − m, from differences of the pⱼ, which are exact where these are close."""
        parts = [
            weight * (ps[index] - p)
            for other, (weight, p) in enumerate(zip(self.weights, ps, strict=True))
            if weight and other != index
        ]
        return sum(parts[1:], parts[0]) if parts else ps[index] - ps[index]


# --- Rényi ----------------------------------------------------------------------------------------

_WIDE = 20.0
"""Between e to the power of minus this and of this, powers are added up as they are: second
derivatives square their sum."""

_LITTLE = 1e-30
"""A smaller power may have lost digits, and its slope is made from its exponent."""

_LONGEST = 1500.0
"""No log(p/q) of two float64 numbers is larger."""


@dataclass(frozen=True)
class Renyi(Measure):
    r"""1/(α−1) · log(Σ p^α q^(1−α) / S), S = α Σp + (1−α) Σq, for 0 < α < ∞, α ≠ 1.

    S is 1 for normalised rows; dividing by it takes their rounding out.  With r = log(p/q) the sum
    is S + (α−1) Σ g, where every g is ≥ 0 and loses nothing near p = q or near α = 1:

        g = q Σₖ α (1 + α + … + α^(k−2)) rᵏ/k!     (k ≥ 2; near)
        g = (p^α q^(1−α) − p)/(α−1) − (p − q)      (far)

    Far apart that would cancel at small orders.  So for α < ½ the same is computed of order 1 − α
    and with the roles exchanged: (1−α) D_α(p‖q) = α D_(1−α)(q‖p).  Rows of any scale are counted
    in a unit near their largest number.
    """

    alpha: float

    name = "renyi_divergence"

    number_of_sums = 8
    slope_takes_sums = True

    @property
    def _swapped(self) -> bool:
        return self.alpha < 0.5

    @property
    def _order(self) -> tuple[float, float]:
        """Return the order that is computed, ≥ ½, and this less 1, both exact."""
        return (1.0 - self.alpha, -self.alpha) if self._swapped else (self.alpha, self.alpha - 1.0)

    @property
    def symmetric(self) -> bool:
        return self.alpha == 0.5

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        unit = unit_of(xp, _largest(xp, xp.maximum(*ps)))
        ps = tuple(each / unit for each in ps)
        p, q = ps[::-1] if self._swapped else ps
        order, less = self._order
        alive, safe_p, safe_q = _both(xp, p, q)
        r = log_ratio(xp, safe_p, safe_q)
        # Too large or small a sum is counted in units of its largest power, e to a shift.
        top = _largest(xp, xp.where(alive, xp.log(safe_p) + less * r, -math.inf))
        shift = xp.where(abs(top) < _WIDE, 0.0, top)
        powers = xp.where(alive, self._powers(xp, safe_p, r, shift), 0.0)
        plain = powers * xp.exp(xp.clip(shift, -math.inf, _WIDE))
        terms = self._terms(xp, safe_p, safe_q, r, plain)
        lost = p * (order if self._swapped else order / -less) if less < 0 else math.inf
        edge = _edge(xp, p, q, -less * q if self._swapped else q, lost)
        outside = xp.where((p > 0) & (q == 0), p, 0.0)
        added = (xp.where(alive, terms, edge), *ps, ps[0] - ps[1], outside, powers)
        *sums, total = (_sum(xp, one) for one in added)
        return [*sums, shift, total, unit]

    def _powers(self, xp: Namespace, p: Array, r: Array, shift: Array) -> Array:
        """Return the powers p^α q^(1−α) over e to the shift, of the roles of the order computed.

        Slopes take the same: of a large order they are right only beside their sum.
        """
        _, less = self._order
        half = xp.exp(0.5 * (less * r - _finite(xp, shift)))
        return (p * half) * half  # half a power does not overflow

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        *sums, shifts, totals, units = (list(same) for same in zip(*parts, strict=True))
        # A part without mass has no say.
        units = [xp.where(p + q > 0, u, 0.0) for p, q, u in zip(*sums[1:3], units, strict=True)]
        unit = xp.max(xp.concat(units, axis=-1), axis=-1, keepdims=True)
        unit = xp.where(unit > 0, unit, 1.0)
        sizes = [one / unit for one in units]
        added = [[x * size for x, size in zip(same, sizes, strict=True)] for same in sums]
        # The powers of a part that is all 0 have a shift of −∞.
        shifts = [one + xp.log(size) for one, size in zip(shifts, sizes, strict=True)]
        shift = xp.max(xp.concat(shifts, axis=-1), axis=-1, keepdims=True)
        scaled = [
            total * xp.exp(one - _finite(xp, shift))
            for one, total in zip(shifts, totals, strict=True)
        ]
        return [
            *(sum(same[1:], same[0]) for same in added), shift, sum(scaled[1:], scaled[0]), unit
        ]  # fmt: skip

    def whole(self, xp: Namespace, sums: Sequence[Array]) -> Array:
        terms, p, q, excess, outside, shift, total, _ = sums
        order, less = self._order
        mass, log_mass, usual = self._mass(xp, p, q, excess)
        share = terms / mass
        factor, per = (-1.0, -1.0 / order) if self._swapped else (less, 1.0 / less)
        y = factor * share
        none, shift = total == 0, _finite(xp, shift)
        log_total = xp.where(none, -math.inf, xp.log(xp.where(none, 1.0, total)))
        far = ((y < -0.5) | (shift != 0) | ~usual) & ~xp.isnan(terms)
        if less > 0:
            far = far & ~(outside > 0)
        y = xp.where(far, 0.0, y)
        # An order so near to 1 that y is too small a number leaves the divergence itself.
        near = xp.where(abs(y) < 1e-30, factor * per * share, log1p(xp, y) * per)
        value = xp.where(far, (log_total + shift - log_mass) * per, near)
        return xp.where(value < 0, 0.0, value)

    def _mass(self, xp: Namespace, p: Array, q: Array, excess: Array) -> tuple[Array, Array, Array]:
        """Return S, its logarithm and where S is used, given the sums of p, q and p − q.

        A large order magnifies the rounding error of Σ(p − q), until S may be negative.  There
        it gives way to (Σp)^α (Σq)^(1−α): that is never smaller, and 1 as well if both sums are.
        """
        near = abs(excess) < 0.5 * q
        mass = xp.where(near, q + self.alpha * excess, self.alpha * p - (self.alpha - 1.0) * q)
        if self.alpha < 1:
            return mass, xp.log(mass), xp.ones_like(mass) > 0
        power = self.alpha * log_ratio(xp, p, q, excess)
        usual = mass > 0.5 * q * xp.exp(power)
        mass = xp.where(usual, mass, q)
        return mass, xp.where(usual, xp.log(mass), power + xp.log(q)), usual

    def _terms(self, xp: Namespace, p: Array, q: Array, r: Array, power: Array) -> Array:
        order, less = self._order
        larger = max(1.0, order)
        x = xp.clip(larger * r, -NEAR, NEAR)
        series = q * x * x * polynomial(x, self._series(x.dtype == xp.float64))
        exponent = xp.clip(less * r, -1.0, 1.0)
        rest = p * (r * _ratio(xp, exponent))
        if abs(less) * _LONGEST > 1:
            rest = xp.where(abs(less * r) < 1, rest, (power - p) / less)
        terms = xp.where(abs(larger * r) < NEAR, series, rest - (p - q))
        return -less * terms if self._swapped else terms

    def _series(self, double: bool) -> list[float]:  # noqa: FBT001 - whether there are more terms
        """Return α (1 + α + … + α^(k−2)) / (k! max(1, α)ᵏ) for k from 2, α the order computed."""
        order, _ = self._order
        larger = max(1.0, order)
        power, total, found = 1.0 / larger, 0.0, []
        shrunk = order / larger
        for k in range(2, 27 if double else 16):
            # total = Σ_{j ≤ k−2} αʲ / largerᵏ⁻¹
            total = total / larger + power
            power *= shrunk
            found.append(shrunk * total / math.factorial(k))
        return found

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        outside, shift, total, unit = sums[4:]
        p, q = (each / unit for each in ps)
        value, (mass, _, usual) = self.whole(xp, sums), self._mass(xp, *sums[1:4])
        mass = xp.where(usual, mass, sums[1 + index])
        less = self.alpha - 1.0
        alive, safe_p, safe_q = _both(xp, p, q)
        # As the sums have it, to the last digit: a large order magnifies those.
        own = (safe_q, safe_p) if self._swapped else (safe_p, safe_q)
        of_own = log_ratio(xp, *own)
        r = -of_own if self._swapped else of_own
        apart = r - xp.where(usual, 0.0, log_ratio(xp, *sums[1:4]))
        if less > 0:
            total = xp.where(outside > 0, math.inf, total)
        share = mass / xp.where(total == 0, 1.0, total)
        weight = self._powers(xp, own[0], of_own, shift) * share
        large = weight > _LITTLE
        far = less * r - _finite(xp, shift)
        if index == 0:
            close = abs(less * apart) < 1
            slopes = expm1(xp, xp.where(close, less * (apart - value), 0.0))
            grown = xp.where(large, weight / safe_p, _product(xp, far, share))
            slopes = xp.where(close, slopes, grown - 1.0) * (self.alpha / less)
            lowest = -self.alpha / less  # where p/q is 0 or ∞ and its power is 0
            edge = _edge(xp, p, q, lowest if less > 0 else 0.0, math.inf if less > 0 else lowest)
        else:
            close = abs(self.alpha * apart) < 1
            slopes = -expm1(xp, xp.where(close, self.alpha * apart - less * value, 0.0))
            grown = xp.where(large, weight / safe_q, _product(xp, far + r, share))
            slopes = xp.where(close, slopes, 1.0 - grown)
            edge = _edge(xp, p, q, 1.0, -math.inf)
        return xp.where(alive, slopes, edge) / mass / unit


def known(xp: Namespace, total: Array) -> Array:
    """Return a row's sum: NaN where it is beyond the largest number, by which all would be 0."""
    return xp.where(total == math.inf, math.nan, total)


def _largest(xp: Namespace, a: Array) -> Array:
    """Return the maximum of the classes: −∞ of a part of a row that has none."""
    return xp.max(a, axis=-1, keepdims=True) if a.shape[-1] else _sum(xp, a) - math.inf


def _product(xp: Namespace, exponent: Array, factor: Array) -> Array:
    """Return e to an exponent, times a factor, where the power alone may overflow."""
    half = xp.exp(0.5 * exponent)
    return (half * factor) * half


def _finite(xp: Namespace, top: Array) -> Array:
    """Return a maximum to subtract: 0 where it is −∞."""
    return xp.where(top == -math.inf, 0.0, top)


def _ratio(xp: Namespace, x: Array) -> Array:
    """Return expm1(x)/x, which is 1 at 0."""
    small = abs(x) < 1e-4
    near = 1.0 + x * (0.5 + x * (1 / 6 + x * (1 / 24)))
    return xp.where(small, near, expm1(xp, x) / xp.where(small, 1.0, x))


@dataclass(frozen=True)
class RenyiZero(Measure):
    """−log of the share of Q on the support of P: Rényi's divergence of order 0."""

    name = "renyi_divergence"
    number_of_sums = 3
    slope_takes_sums = True

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps
        q = xp.where(p >= 0, q, math.nan)
        lost, kept = xp.where(p == 0, q, 0.0), xp.where(p == 0, 0.0, q)
        return [_sum(xp, one) for one in (q, lost, kept)]

    def whole(self, xp: Namespace, sums: Sequence[Array]) -> Array:
        whole, lost, kept = sums
        little = lost <= 0.5 * whole
        share = xp.where(little, lost / xp.where(little, whole, 1.0), 0.0)
        return xp.where(little, -log1p(xp, -share), -xp.log(kept / whole))

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        if index == 0:
            return xp.zeros_like(p)
        whole, _, kept = sums
        return 1.0 / whole - xp.where(p == 0, 0.0, xp.ones_like(q)) / kept


@dataclass(frozen=True)
class RenyiInfinity(Measure):
    """The largest log(p/q): Rényi's divergence of order ∞."""

    name = "renyi_divergence"
    number_of_sums = 2
    slope_takes_sums = True

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        logs = self._logs(xp, *ps)
        top = _largest(xp, logs)
        return [top, _sum(xp, xp.where(logs == top, 1.0, xp.zeros_like(logs)))]

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        tops, ties = (xp.concat(same, axis=-1) for same in zip(*parts, strict=True))
        top = xp.max(tops, axis=-1, keepdims=True)
        return [top, _sum(xp, xp.where(tops == top, ties, 0.0))]

    def _logs(self, xp: Namespace, p: Array, q: Array) -> Array:
        alive, safe_p, safe_q = _both(xp, p, q)
        edge = _edge(xp, p, q, xp.where(xp.isnan(q), q, -math.inf), math.inf)
        return xp.where(alive, log_ratio(xp, safe_p, safe_q), edge)

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        value, ties = sums
        top = self._logs(xp, p, q) == value
        share = xp.where(top, 1.0, xp.zeros_like(p)) / ties  # ties share the slope
        own = (p, q)[index]
        slopes = xp.where(top, share / xp.where(top, own, 1.0), 0.0)
        return slopes if index == 0 else -slopes


# --- as operations --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowMeasure(RowWise):
    """A measure of each row, in units of ``unit`` nats."""

    measure: Measure = KullbackLeibler()
    normalize: bool = False
    unit: float = 1.0
    number: int = 2
    """How many arrays of probabilities there are."""
    given: bool = field(default=False, kw_only=True)
    """Whether the sums of whole rows come along, packed: after a slope's arrays, in a value's
    place."""

    @property
    def name(self) -> str:  # type: ignore[override]
        """The measure's name."""
        return self.measure.name

    @property
    def differentiable(self) -> int:
        return self.number

    @property
    def with_classes(self) -> int:  # type: ignore[override]
        return self.number

    def probabilities(
        self, xp: Namespace, arrays: Sequence[Array], totals: Sequence[Array] | None = None
    ) -> tuple[list[Array], list[Array]]:
        """Return the probabilities in the compute dtype, normalised if asked, and the row sums."""
        ps = [cast(xp, array, self.compute) for array in arrays[: self.number]]
        if not self.normalize:
            return ps, []
        sums = [_sum(xp, p) for p in ps] if totals is None else totals
        sums = [known(xp, total) for total in sums]
        return [p / total for p, total in zip(ps, sums, strict=True)], sums

    def unpacked(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Unpack the sums of probabilities, if there are any, and the others."""
        numbers = split(arrays[0]) if arrays else []
        count = self.number if self.normalize else 0
        return numbers[:count], numbers[count:]

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        if self.given:
            return self.in_units(self.measure.whole(xp, self.unpacked(arrays)[1])[..., 0])
        ps, _ = self.probabilities(xp, arrays)
        return self.in_units(self.measure.value(xp, *ps))

    def in_units(self, nats: Array) -> Array:
        """Convert nats to the requested unit."""
        return nats if self.unit == 1.0 else nats / self.unit

    def settings(self, kind: type[RowMeasure], *more: int, given: bool = False) -> RowMeasure:
        """Return an operation of another kind on the same rows, elementwise and not rounded."""
        names = ("none", self.compute, self.compute, self.compute)
        own = self.measure, self.normalize, self.unit, self.number
        return kind(*names, *own, *more, given=given)  # type: ignore[arg-type]

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        del xp  # all arithmetic is the operation's
        return run(self.settings(RowSlope, index), *arrays, weight)

    def keep(self, arrays: Sequence[Array]) -> Array | None:
        return None


@dataclass(frozen=True)
class RowSlope(RowMeasure):
    """A number per row times the measure's derivative. Arrays: the probabilities, that number."""

    index: int = 0
    keeps_classes: ClassVar[bool] = True

    @property
    def native(self) -> bool:
        return True

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        weight, known = arrays[self.number], arrays[self.number + 1 :]
        if self.given:
            totals, sums = self.unpacked(known)
            mean = sums.pop() if self.normalize else None
            ps, _ = self.probabilities(xp, arrays, totals)
        else:
            ps, totals = self.probabilities(xp, arrays)
            sums, mean = self.measure.sums(xp, *ps) if self.measure.slope_takes_sums else [], None
        if self.normalize and mean is None:
            slopes = self._from_likeliest(xp, ps, sums)
            mean = _sum(xp, self.mean_terms(xp, ps, slopes))
        else:
            slopes = self.slopes(xp, ps, sums)
        if self.normalize:
            slopes = (slopes - mean) / totals[self.index]
        return cast(xp, weight, self.compute)[..., None] * slopes

    def _from_likeliest(self, xp: Namespace, ps: Sequence[Array], sums: Sequence[Array]) -> Array:
        """Return slopes less that of the likeliest class, which is 0 itself; if it is finite.

        That may be nearly all of their mean.
        """
        p = ps[self.index]
        top = p == _largest(xp, p)
        top = top & (xp.cumulative_sum(xp.astype(top, p.dtype), axis=-1) == 1)
        slopes = self.in_units(self.measure.slope_about(xp, self.index, top, *ps, sums=sums))
        own = _sum(xp, xp.where(top, slopes, 0.0))
        known = abs(own) < math.inf
        # Not left to the difference: a compiler computes both sides, and rounds them differently.
        return xp.where(top & known, 0.0, slopes - xp.where(known, own, 0.0))

    def slopes(self, xp: Namespace, ps: Sequence[Array], sums: Sequence[Array]) -> Array:
        """Return the measure's derivative in its probabilities, in the requested unit."""
        return self.in_units(self.measure.slope(xp, self.index, *ps, sums=sums))

    def mean_terms(self, xp: Namespace, ps: Sequence[Array], slopes: Array) -> Array:
        """Return the terms of the mean slope under p."""
        p = ps[self.index]
        return xp.where(p == 0, 0.0, p * xp.where(p == 0, 0.0, slopes))
