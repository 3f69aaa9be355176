"""Rényi's divergences of probabilities, of any order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kldiv.formulas.measures import Measure, both, edge_terms
from kldiv.formulas.numbers import NEAR
from kldiv.formulas.special import (
    expm1,
    largest,
    log1p,
    log_ratio,
    merged_ties,
    polynomial,
    total,
    unit_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace

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
    def symmetric(self) -> bool:  # type: ignore[override]
        return self.alpha == 0.5

    def sums(self, xp: Namespace, *ps: Array) -> list[Array]:
        unit = unit_of(xp, largest(xp, xp.maximum(*ps)))
        ps = tuple(each / unit for each in ps)
        p, q = ps[::-1] if self._swapped else ps
        order, less = self._order
        alive, safe_p, safe_q = both(xp, p, q)
        r = log_ratio(xp, safe_p, safe_q)
        # Too large or small a sum is counted in units of its largest power, e to a shift.
        top = largest(xp, xp.where(alive, xp.log(safe_p) + less * r, -math.inf))
        shift = xp.where(abs(top) < _WIDE, 0.0, top)
        powers = xp.where(alive, self._powers(xp, safe_p, r, shift), 0.0)
        plain = powers * xp.exp(xp.clip(shift, -math.inf, _WIDE))
        terms = self._terms(xp, safe_p, safe_q, r, plain)
        lost = p * (order if self._swapped else order / -less) if less < 0 else math.inf
        edge = edge_terms(xp, p, q, -less * q if self._swapped else q, lost)
        outside = xp.where((p > 0) & (q == 0), p, 0.0)
        added = (xp.where(alive, terms, edge), *ps, ps[0] - ps[1], outside, powers)
        *sums, power = (total(xp, one) for one in added)
        return [*sums, shift, power, unit]

    def _powers(self, xp: Namespace, p: Array, r: Array, shift: Array) -> Array:
        """Return the powers p^α q^(1−α) over e to the shift, of the roles of the order computed.

        Slopes take the same: of a large order they are right only beside their sum.
        """
        _, less = self._order
        half = xp.exp(0.5 * (less * r - _finite(xp, shift)))
        return (p * half) * half  # half a power does not overflow

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        *sums, shifts, powers, units = (list(same) for same in zip(*parts, strict=True))
        # A part without mass has no say.
        units = [xp.where(p + q > 0, u, 0.0) for p, q, u in zip(*sums[1:3], units, strict=True)]
        unit = largest(xp, xp.concat(units, axis=-1))
        unit = xp.where(unit > 0, unit, 1.0)
        sizes = [one / unit for one in units]
        added = [[x * size for x, size in zip(same, sizes, strict=True)] for same in sums]
        # The powers of a part that is all 0 have a shift of −∞.
        shifts = [one + xp.log(size) for one, size in zip(shifts, sizes, strict=True)]
        shift = largest(xp, xp.concat(shifts, axis=-1))
        scaled = [
            power * xp.exp(one - _finite(xp, shift))
            for one, power in zip(shifts, powers, strict=True)
        ]
        return [
            *(sum(same[1:], same[0]) for same in added), shift, sum(scaled[1:], scaled[0]), unit
        ]  # fmt: skip

    def whole(self, xp: Namespace, sums: Sequence[Array]) -> Array:
        terms, p, q, excess, outside, shift, power, _ = sums
        order, less = self._order
        mass, log_mass, usual = self._mass(xp, p, q, excess)
        share = terms / mass
        factor, per = (-1.0, -1.0 / order) if self._swapped else (less, 1.0 / less)
        y = factor * share
        none, shift = power == 0, _finite(xp, shift)
        log_power = xp.where(none, -math.inf, xp.log(xp.where(none, 1.0, power)))
        far = ((y < -0.5) | (shift != 0) | ~usual) & ~xp.isnan(terms)
        if less > 0:
            far = far & ~(outside > 0)
        y = xp.where(far, 0.0, y)
        # An order so near to 1 that y is too small a number leaves the divergence itself.
        near = xp.where(abs(y) < 1e-30, factor * per * share, log1p(xp, y) * per)
        value = xp.where(far, (log_power + shift - log_mass) * per, near)
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
        power, partial, found = 1.0 / larger, 0.0, []
        shrunk = order / larger
        for k in range(2, 27 if double else 16):
            # partial = Σ_{j ≤ k−2} αʲ / largerᵏ⁻¹
            partial = partial / larger + power
            power *= shrunk
            found.append(shrunk * partial / math.factorial(k))
        return found

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        outside, shift, power, unit = sums[4:]
        p, q = (each / unit for each in ps)
        value, (mass, _, usual) = self.whole(xp, sums), self._mass(xp, *sums[1:4])
        mass = xp.where(usual, mass, sums[1 + index])
        less = self.alpha - 1.0
        alive, safe_p, safe_q = both(xp, p, q)
        # As the sums have it, to the last digit: a large order magnifies those.
        own = (safe_q, safe_p) if self._swapped else (safe_p, safe_q)
        of_own = log_ratio(xp, *own)
        r = -of_own if self._swapped else of_own
        apart = r - xp.where(usual, 0.0, log_ratio(xp, *sums[1:4]))
        if less > 0:
            power = xp.where(outside > 0, math.inf, power)
        share = mass / xp.where(power == 0, 1.0, power)
        weight = self._powers(xp, own[0], of_own, shift) * share
        large = weight > _LITTLE
        far = less * r - _finite(xp, shift)
        if index == 0:
            close = abs(less * apart) < 1
            slopes = expm1(xp, xp.where(close, less * (apart - value), 0.0))
            grown = xp.where(large, weight / safe_p, _product(xp, far, share))
            slopes = xp.where(close, slopes, grown - 1.0) * (self.alpha / less)
            lowest = -self.alpha / less  # where p/q is 0 or ∞ and its power is 0
            edge = edge_terms(
                xp, p, q, lowest if less > 0 else 0.0, math.inf if less > 0 else lowest
            )
        else:
            close = abs(self.alpha * apart) < 1
            slopes = -expm1(xp, xp.where(close, self.alpha * apart - less * value, 0.0))
            grown = xp.where(large, weight / safe_q, _product(xp, far + r, share))
            slopes = xp.where(close, slopes, 1.0 - grown)
            edge = edge_terms(xp, p, q, 1.0, -math.inf)
        return xp.where(alive, slopes, edge) / mass / unit


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
        return [total(xp, one) for one in (q, lost, kept)]

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
        top = largest(xp, logs)
        return [top, total(xp, xp.where(logs == top, 1.0, xp.zeros_like(logs)))]

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        return merged_ties(xp, parts)

    def _logs(self, xp: Namespace, p: Array, q: Array) -> Array:
        alive, safe_p, safe_q = both(xp, p, q)
        edge = edge_terms(xp, p, q, xp.where(xp.isnan(q), q, -math.inf), math.inf)
        return xp.where(alive, log_ratio(xp, safe_p, safe_q), edge)

    def slope(self, xp: Namespace, index: int, *ps: Array, sums: Sequence[Array] = ()) -> Array:
        p, q = ps
        value, ties = sums
        top = self._logs(xp, p, q) == value
        share = xp.where(top, 1.0, xp.zeros_like(p)) / ties  # ties share the slope
        own = (p, q)[index]
        slopes = xp.where(top, share / xp.where(top, own, 1.0), 0.0)
        return slopes if index == 0 else -slopes
