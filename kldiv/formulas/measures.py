r"""Divergences of probabilities: KL, Jensen-Shannon and others; entropy and cross entropy.

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
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

from kldiv.formulas.numbers import bounded
from kldiv.formulas.special import (
    alpha_terms,
    exp_change,
    largest,
    log1p,
    log_ratio,
    relative,
    total,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace


class Measure:
    """A function of rows of probabilities, the last axis of each array."""

    name: ClassVar[str]

    number_of_sums: ClassVar[int] = 1
    slope_takes_sums: ClassVar[bool] = False
    """Whether a slope depends on the sums of the whole row."""
    symmetric: bool = False
    """Whether two arrays may be exchanged."""

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


def both(xp: Namespace, p: Array, q: Array) -> tuple[Array, Array, Array]:
    """Return the mask where p, q > 0, then p and q with 1 elsewhere."""
    alive = (p > 0) & (q > 0)
    return alive, xp.where(alive, p, 1.0), xp.where(alive, q, 1.0)


def edge_terms(
    xp: Namespace, p: Array, q: Array, p_zero: Array | float, q_zero: Array | float
) -> Array:
    """Return ``p_zero`` where p = 0 ≤ q, ``q_zero`` where q = 0 < p, and NaN elsewhere."""
    nan = xp.full_like(p + q, math.nan)
    return xp.where((p == 0) & (q >= 0), p_zero, xp.where((q == 0) & (p > 0), q_zero, nan))


def relative_entropy(xp: Namespace, p: Array, q: Array, difference: Array | None = None) -> Array:
    """Return p·log(p/q) + q − p of each p and q ≥ 0; ``difference`` is p − q, if known better."""
    alive, safe_p, safe_q = both(xp, p, q)
    if difference is not None:
        difference = xp.where(alive, difference, 0.0)
    terms = relative(xp, safe_p, safe_q, difference)
    return xp.where(alive, terms, edge_terms(xp, p, q, q, math.inf))


def _lifted(xp: Namespace, ps: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array | float]:
    """Return probabilities, where small in so small a unit that weights make none subnormal.

    Rows with large numbers keep their unit, 1, as they would overflow; those with huge ones get a
    large unit, in which p + q is a number too: XLA computes ½p + ½q as ½(p + q).
    """
    if any(p.shape[-1] == 0 for p in ps):  # a part of no classes
        return ps, 1.0
    unit = 2.0**-80 if ps[0].dtype == xp.float64 else 2.0**-40
    top = reduce(xp.maximum, [largest(xp, p) for p in ps])
    own = xp.where(top > unit**-2, 1.0 / unit, xp.ones_like(top))
    units = xp.where(top > 1.0 / unit, own, unit)
    return tuple([p / units for p in ps]), units


# --- the measures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KullbackLeibler(Measure):
    """Σ p·log(p/q) + q − p."""

    name = "kl_divergence"

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        return [total(xp, relative_entropy(xp, *ps))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        alive, safe_p, safe_q = both(xp, p, q)
        if index == 0:
            slopes, edge = log_ratio(xp, safe_p, safe_q), edge_terms(xp, p, q, 0.0, math.inf)
        else:
            slopes, edge = (safe_q - safe_p) / safe_q, edge_terms(xp, p, q, 1.0, -math.inf)
        return xp.where(alive, slopes, edge)


@dataclass(frozen=True)
class Jeffreys(Measure):
    """Σ (p − q)·log(p/q)."""

    name = "jeffreys_divergence"
    symmetric = True

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps
        alive, safe_p, safe_q = both(xp, p, q)
        terms = (safe_p - safe_q) * log_ratio(xp, safe_p, safe_q)
        return [total(xp, xp.where(alive, terms, self._edge(xp, p, q, math.inf, math.inf)))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps if index == 0 else ps[::-1]
        alive, safe_p, safe_q = both(xp, p, q)
        slopes = log_ratio(xp, safe_p, safe_q) + (safe_p - safe_q) / safe_p
        return xp.where(alive, slopes, self._edge(xp, p, q, -math.inf, math.inf))

    def _edge(self, xp: Namespace, p: Array, q: Array, p_zero: float, q_zero: float) -> Array:
        p_only = xp.where(q == 0, 0.0, xp.full_like(q, p_zero))
        return edge_terms(xp, p, q, p_only, q_zero)


@dataclass(frozen=True)
class Skew(Measure):
    """Σ p·log(p/m) + m − p, m = αp + (1 − α)q, 0 < α < 1."""

    alpha: float

    name = "skew_divergence"

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        (p, q), unit = _lifted(xp, ps)
        alive, safe_p, m, above = self._mixture(xp, p, q)
        edge = edge_terms(xp, p, q, (1.0 - self.alpha) * q, math.nan)
        terms = xp.where(alive, relative(xp, safe_p, m, above), edge)
        return [unit * total(xp, terms)]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        (p, q), _ = _lifted(xp, ps)
        alive, safe_p, m, above = self._mixture(xp, p, q)
        if index == 0:
            slopes, edge = log_ratio(xp, safe_p, m, above) - self.alpha * (above / m), 0.0
        else:
            slopes, edge = -(1.0 - self.alpha) * (above / m), 1.0 - self.alpha
        return xp.where(alive, slopes, edge_terms(xp, p, q, edge, math.nan))

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
    symmetric = True

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps
        return [total(xp, xp.where((p >= 0) & (q >= 0), 0.5 * abs(p - q), math.nan))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps[index], ps[1 - index]
        return xp.where((p >= 0) & (q >= 0), 0.5 * xp.sign(p - q), math.nan)


@dataclass(frozen=True)
class Hellinger(Measure):
    """½ Σ (√p − √q)²."""

    name = "hellinger_divergence"
    symmetric = True

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        valid, roots, apart = self._roots(xp, *ps)
        terms = 0.5 * (apart / xp.where(roots > 0, roots, 1.0)) ** 2
        return [total(xp, xp.where(valid, terms, math.nan))]

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
        alive, safe_p, safe_q = both(xp, p, q)
        apart = safe_p - safe_q
        size = apart / xp.sqrt(safe_q)  # over q itself it may overflow where the term does not
        terms = xp.where(alive, size * size, edge_terms(xp, p, q, q, math.inf))
        return [total(xp, terms)]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        alive, safe_p, safe_q = both(xp, p, q)
        apart = (safe_p - safe_q) / safe_q
        if index == 0:
            slopes, edge = 2.0 * apart, edge_terms(xp, p, q, -2.0, math.inf)
        else:
            slopes, edge = -apart * (apart + 2.0), edge_terms(xp, p, q, 1.0, -math.inf)
        return xp.where(alive, slopes, edge)


@dataclass(frozen=True)
class Alpha(Measure):
    """Σ (α p + κ q − p^α q^κ)/(ακ), κ = 1 − α, α ≥ ½; of (q, p) where ``exchanged``."""

    alpha: float
    kappa: float
    exchanged: bool = False

    name = "alpha_divergence"

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.alpha == self.kappa

    @classmethod
    def of(cls, alpha: float) -> Alpha:
        """Return the divergence of any order but 0 and 1."""
        alpha = bounded(alpha)
        swapped = alpha < 0.5
        return cls(1.0 - alpha, alpha, swapped) if swapped else cls(alpha, 1.0 - alpha)

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        p, q = ps[::-1] if self.exchanged else ps
        alive, safe_p, safe_q = both(xp, p, q)
        ell = log_ratio(xp, safe_p, safe_q)
        half = xp.exp(-0.5 * self.kappa * ell)  # half a power does not overflow
        power = (safe_p * half) * half
        terms = alpha_terms(xp, self.kappa, safe_p, safe_q, ell, power) / self.alpha
        lost = p / self.kappa if self.kappa > 0 else math.inf
        return [total(xp, xp.where(alive, terms, edge_terms(xp, p, q, q / self.alpha, lost)))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps[::-1] if self.exchanged else ps
        alive, safe_p, safe_q = both(xp, p, q)
        ell, finite = log_ratio(xp, safe_p, safe_q), self.kappa > 0
        if index == self.exchanged:
            slopes = exp_change(xp, self.kappa, ell)
            limits = 0.0 if finite else 1.0 / self.kappa, 1.0 / self.kappa if finite else math.inf
        else:
            slopes = exp_change(xp, self.alpha, -ell)
            limits = 1.0 / self.alpha, 0.0 if finite else -math.inf
        return xp.where(alive, slopes, edge_terms(xp, p, q, *limits))


@dataclass(frozen=True)
class Entropy(Measure):
    """−Σ p·log p."""

    name = "entropy"

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        (p,) = ps
        return [total(xp, 0.0 - p * xp.log(xp.where(p == 0, 1.0, p)))]

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
        alive, safe_p, safe_q = both(xp, p, q)
        nothing = xp.where(xp.isnan(q), q, 0.0)
        terms = xp.where(alive, -safe_p * xp.log(safe_q), edge_terms(xp, p, q, nothing, math.inf))
        return [total(xp, terms)]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        if index == 0:  # linear in p, but where neither has mass the class takes no part
            usable = q > 0
            slopes = -xp.log(xp.where(usable, q, 1.0))
            return xp.where(usable, slopes, edge_terms(xp, p, q, 0.0, math.inf))
        alive, safe_p, safe_q = both(xp, p, q)
        return xp.where(alive, -safe_p / safe_q, edge_terms(xp, p, q, 0.0, -math.inf))


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
        return [rest, total(xp, top), total(xp, xp.where(heavy, 0.0, q))]

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
    def symmetric(self) -> bool:  # type: ignore[override]
        return len({*self.weights}) == 1

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        ps, unit = _lifted(xp, ps)
        m = self._mixture(ps)
        terms = [
            weight * self._term(xp, p, m, self._from_mixture(index, ps))
            for index, (weight, p) in enumerate(zip(self.weights, ps, strict=True))
            if weight
        ]
        return [unit * total(xp, sum(terms[1:], terms[0]))]

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        weight = self.weights[index]
        if not weight:
            return xp.zeros_like(ps[index])
        ps, _ = _lifted(xp, ps)
        p, m = ps[index], self._mixture(ps)
        alive, safe_p, safe_m = both(xp, p, m)
        above = xp.where(alive, self._from_mixture(index, ps), 0.0)
        slopes = weight * log_ratio(xp, safe_p, safe_m, above)
        return xp.where(alive, slopes, edge_terms(xp, p, m, 0.0, -weight * math.log(weight)))

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
        bounded = total(xp, xp.where(top & (8.0 * others < own), 1.0, xp.zeros_like(own))) > 0
        return xp.where(bounded, below, slopes)

    def _term(self, xp: Namespace, p: Array, m: Array, above: Array) -> Array:
        alive, safe_p, safe_m = both(xp, p, m)
        terms = relative(xp, safe_p, safe_m, xp.where(alive, above, 0.0))
        return xp.where(
            alive, terms, edge_terms(xp, p, m, m, 0.0)
        )  # m = 0 < p: w p has underflowed

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
