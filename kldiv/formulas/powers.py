r"""α-divergences and Rényi's of two rows of logits: sums of p^α q^(1−α).

With κ = 1 − α, ℓ = log(p/q), m = p^α q^κ = p e^(−κℓ), M = Σ m and φ(x) = e^(−x) − 1 + x

    D = (M − 1)/(α(α − 1)) = Σ p g(ℓ)          g = (φ(ℓ) − φ(κℓ)/κ)/α
    u = (1 − e^(−κℓ))/κ                        v = (1 − e^(αℓ))/α

and p u′ = m.  For α < ½ the two sides are exchanged: D of order α is that of order 1 − α then, and
nothing cancels.  Rényi's divergence is log(M)/(α − 1), with the gradients

    (α/κ)(p − w)/T  in t          (q − w)/T  in s          w = m/M

M is 1 − ακD where that is near 1; elsewhere m is summed, in units of its largest where that would
overflow or underflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from kldiv.formulas import logits
from kldiv.formulas.divergences import (
    STUDENT,
    TEACHER,
    VALUE,
    Block,
    Divergence,
    Known,
    KullbackLeibler,
    Summed,
    Wanted,
    bend_by_tangents,
    states_of,
)
from kldiv.formulas.logits import Slopes
from kldiv.formulas.numbers import EIGHTH, bounded
from kldiv.formulas.special import (
    alpha_terms,
    exp_change,
    expm1,
    largest,
    log1p,
    merged_ties,
    phi_ratio,
    total,
)
from kldiv.formulas.state import first_word, over, steps_from, tempered, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace

_SHIFT: Final = 16
"""The sum, which is a maximum, in whose unit powers are counted: its logarithm, in `Alpha.unit`."""
_TOTAL: Final = 17
"""The sum of powers, in that unit."""
_PEAK: Final = (18, 19, 20, 21, 22, 23)
"""The fields of a `Peak`."""
_BESIDE: Final = 24
"""Added to a side: its probability of all classes but the likeliest."""
_WIDE: Final = 50.0
"""Between e to the power of minus this and of this, powers are added up as they are."""


class Peak(NamedTuple):
    """The powers of some classes beside the largest of these."""

    steps: Array
    """The steps of the largest, as `Alpha.steps` counts them."""
    t: Array
    """The teacher's logit of its class: of several, the largest of theirs."""
    s: Array
    """The student's, likewise."""
    ties: Array
    """The sum of the powers that are the largest, over the power of a class with these logits."""
    others: Array
    """The sum of all others, over the same."""
    heat: Array
    """T."""


@dataclass(frozen=True)
class Alpha(Summed):
    """scale·(Σ p^α q^κ − 1)/(α(α − 1)), α ≥ ½."""

    alpha: float
    kappa: float
    """1 − α ≤ ½, not 0: given apart, as a difference from 1 loses last digits."""
    scale: float = 1.0

    @staticmethod
    def of(alpha: float) -> tuple[Divergence, bool]:
        """Return the divergence of any order, and whether it takes (t, s)."""
        if alpha in {0, 1}:
            return KullbackLeibler(), alpha == 0
        alpha = bounded(alpha)
        if alpha < 0.5:
            return Alpha(1.0 - alpha, alpha), True
        return Alpha(alpha, 1.0 - alpha), False

    def elements(self, block: Block) -> Array:
        xp = block.xp
        p, q, ell = block.pair()
        nothing = block.nothing
        if self.alpha == 0.5:
            terms = 2.0 * xp.maximum(p, q) * expm1(xp, -0.5 * abs(ell)) ** 2
            return self.scale * xp.where(xp.maximum(p, q) == 0, nothing, terms)
        terms = alpha_terms(xp, self.kappa, p, q, ell, self.mass(block))
        # Not where p and q are 0: their power need not be.
        masked = (block.s == -math.inf) & (block.t == -math.inf)
        terms = xp.where(masked, nothing, terms)
        if self.kappa < 0:
            lost = (block.s == -math.inf) & (block.t > -math.inf)
            terms = xp.where(lost, math.inf + nothing, terms)
        return (self.scale / self.alpha) * terms

    def mass(self, block: Block) -> Array:
        """Return m = p^α q^κ."""
        xp, kappa = block.xp, self.kappa
        if self.alpha == 0.5:
            return _roots(STUDENT, block) * _roots(TEACHER, block)
        p, q, ell = block.pair()
        if kappa > 0:  # of an order next to 1, alpha is that
            return xp.maximum(p, q) * xp.exp(xp.where(ell < 0, self.alpha * ell, -kappa * ell))
        normal = p > 8.0 * float(xp.finfo(p.dtype).smallest_normal)
        half = xp.where(normal, -kappa * ell, self.unit * self.exponent(block))
        half = xp.exp(0.5 * half)
        found = (xp.where(normal, p, 1.0) * half) * half
        if self.alpha != 2.0:
            return found
        # The ratio of probabilities is right to a few u, e^ℓ only to u·|ℓ|.
        info = xp.finfo(q.dtype)
        known = normal & (q > 8.0 * float(info.smallest_normal))
        known = known & (p < q * (0.25 * float(info.max)))
        return xp.where(known, p * (p / xp.where(known, q, 1.0)), found)

    @property
    def unit(self) -> float:
        """The unit of exponents, a power of two: no order makes a finite one infinite."""
        return 2.0 ** math.frexp(max(1.0, self.alpha))[1]

    def exponent(self, block: Block, steps: Array | None = None) -> Array:
        """Return log m in units, to a few u of its terms: −∞, or +∞, where m is 0 or ∞.

        ``steps`` are those from the largest logits.
        """
        xp = block.xp
        (top_t, scale_t), (top_s, scale_s) = block.top(TEACHER), block.top(STUDENT)
        steps = self.steps(block, top_t, top_s) if steps is None else steps
        of_t, of_s = self.alpha / self.unit, self.kappa / self.unit
        rest = of_t * xp.log(scale_t) + of_s * xp.log(scale_s)
        found = tempered(xp, steps, EIGHTH * block.temperature) + rest
        return xp.where(abs(steps) == math.inf, steps, found)

    def steps(self, block: Block, of_t: Array, of_s: Array) -> Array:
        """Return α(t − a logit) + κ(s − a logit) in units and eighths, −∞ or ∞ as m is 0 or ∞."""
        xp = block.xp
        a, b = (
            (order / self.unit) * steps_from(xp, block.logits(index), origin)
            for index, order, origin in ((TEACHER, self.alpha, of_t), (STUDENT, self.kappa, of_s))
        )
        none = -math.inf if self.kappa > 0 else math.inf
        found = xp.where(block.s == -math.inf, none, a + b)
        return xp.where(block.t == -math.inf, -math.inf, found)

    def share(self, part: int, block: Block) -> Array:
        if part == VALUE:
            return super().share(part, block)
        return total(block.xp, self._moved(part, block))

    def _moved(self, index: int, block: Block) -> Array:
        """Return own·(u less its value at the anchor), v for the student."""
        xp, side, own = block.xp, block.side(index), block.own(index)
        rate = self.kappa if index == TEACHER else self.alpha
        _, step = logits.from_anchor(side)
        power = logits.anchor_power(xp, side.rows, rate, block.temperature)
        close = abs(rate * step) < 1.0
        step = xp.where(close, step, 0.0)  # others may be as large as numbers are
        z = rate * step
        near = (own * power) * (step * (1.0 - z * phi_ratio(xp, z)))
        far = (own * power - self.mass(block)) / rate
        return self.scale * xp.where(close, near, far)

    def unit_gradient(self, index: int, block: Block) -> Array:
        xp, mean = block.xp, block.known.sums[index]
        # Gradients of an infinite divergence are NaN, but for classes that take no part.
        mean = xp.where(xp.isfinite(mean), mean, math.nan)
        found = self._moved(index, block) - block.own(index) * mean
        masked = block.t == -math.inf
        if index == STUDENT:
            masked = masked & (block.s == -math.inf)
        return xp.where(masked, 0.0 * block.known.rows[index].offset, found)

    def level(self, block: Block) -> Array:
        at = logits.anchor_log(block.xp, block.known.rows[TEACHER], block.temperature)
        return self.scale * exp_change(block.xp, self.kappa, at)

    def curvature(self, block: Block) -> Array:
        return self.scale * self.mass(block)


class Blend(Divergence):
    """A divergence whose gradients are differences of p, q and a third distribution w."""

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        return states_of(wanted), (_SHIFT, _TOTAL)

    def slopes(self, block: Block) -> Slopes:
        teacher, student = (self.unit_gradient(index, block) for index in (TEACHER, STUDENT))
        return Slopes(teacher, student, teacher + student)

    def temperature_bend(self, block: Block) -> Array:
        return bend_by_tangents(self, block)


@dataclass(frozen=True)
class Renyi(Blend):
    """scale·log(Σ p^α q^κ)/(α − 1), α ≥ ½."""

    alpha: float
    kappa: float
    """1 − α ≤ ½, not 0."""
    scale: float = 1.0
    adds: ClassVar[bool] = False

    @staticmethod
    def of(alpha: float) -> tuple[Divergence, bool]:
        """Return the divergence of any order from 0 to ∞, and whether it takes (t, s)."""
        if alpha == 0:
            return RenyiZero(), False
        if alpha == 1:
            return KullbackLeibler(), False
        if alpha < 0.5:
            return Renyi(1.0 - alpha, alpha, alpha / (1.0 - alpha)), True
        # Beyond that order the two differ by less than rounding.
        return (Renyi(alpha, 1.0 - alpha) if alpha < 1e20 else RenyiInfinity()), False

    @property
    def is_moderate(self) -> bool:
        """Whether the power's sum is moderate, unless P and Q have little in common."""
        return self.alpha <= 2.0

    @property
    def power(self) -> Alpha:
        """The α-divergence."""
        return Alpha(self.alpha, self.kappa)

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        states, sums = self.power.needs(wanted)
        rest = () if VALUE in sums else (VALUE,)
        beside = tuple(_BESIDE + index for index in wanted if index != VALUE)
        return states, (*sums, *rest, *beside, _SHIFT, _TOTAL, *(_PEAK if beside else ()))

    def own_shares(self, sums: Wanted, block: Block) -> list[Array]:
        xp = block.xp
        steps = self.power.steps(block, block.top(TEACHER)[0], block.top(STUDENT)[0])
        exponent = self.power.exponent(block, steps)
        top = largest(xp, exponent)
        shift = self._shift(xp, top)
        scaled = xp.exp(self.power.unit * (exponent - shift))
        scaled = xp.where(shift == 0, self.power.mass(block), scaled)
        found = {_SHIFT: shift, _TOTAL: total(xp, scaled)}
        if _PEAK[0] in sums:
            found |= zip(_PEAK, self._peak(block, steps), strict=True)
        if VALUE in sums:
            found[VALUE] = self.power.share(VALUE, block)
        sides = [part for part in sums if part in {TEACHER, STUDENT}]
        for part in sides:
            found[part] = total(xp, self._moved(part, block))
            found[_BESIDE + part] = total(xp, self._besides(part, block))
        return [found[part] for part in sums]

    def _besides(self, index: int, block: Block) -> Array:
        """Return a side's probabilities, 0 of the likeliest class."""
        likeliest = first_word(block.logits(index)) == block.top(index)[0]
        return block.xp.where(likeliest, 0.0, block.own(index))

    def _shift(self, xp: Namespace, top: Array) -> Array:
        lowest = float(xp.finfo(top.dtype).min)
        plain = (abs(self.power.unit * top) < _WIDE) | (top == math.inf)
        return xp.where(plain, 0.0, xp.clip(top, lowest, math.inf))

    def _peak(self, block: Block, steps: Array) -> Peak:
        """Return the powers beside the largest, given the steps that tell which that is."""
        xp, top = block.xp, largest(block.xp, steps)
        at = steps == top
        t, s = (_largest_of(xp, at, first_word(logits_of)) for logits_of in (block.t, block.s))
        weights = self._over_peak(block, t, s)
        ties, others = xp.where(at, weights, 0.0), xp.where(at, 0.0, weights)
        heat = block.temperature + xp.zeros_like(top)
        return Peak(top, t, s, total(xp, ties), total(xp, others), heat)

    def _over_peak(self, block: Block, t: Array, s: Array) -> Array:
        """Return the powers over that of a class with these logits.

        The logarithms of p and q would be rounded by u·|log|, which an order multiplies; these
        differences of logits are as good as the logits.
        """
        steps = self.power.steps(block, t, s)
        return block.xp.exp(self.power.unit * over(steps, EIGHTH * block.temperature))

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        has_peak = len(parts[0]) > len(_PEAK)
        own = [part[: -len(_PEAK)] for part in parts] if has_peak else parts
        found = _added_in_units(xp, own, self.power.unit)
        if not has_peak:
            return found
        return [*found, *self._merged_peak(xp, [Peak(*part[-len(_PEAK) :]) for part in parts])]

    def _merged_peak(self, xp: Namespace, parts: Sequence[Peak]) -> Peak:
        """Merge the peaks of parts: all powers are counted over the largest of all from now on."""
        each = Peak(*(xp.concat(same, axis=-1) for same in zip(*parts, strict=True)))
        top = largest(xp, each.steps)
        at = each.steps == top
        t, s = _largest_of(xp, at, each.t), _largest_of(xp, at, each.s)
        # The unit of a part over the new one; a part without powers has none.
        whole = self.power.unit
        fall = (self.alpha / whole) * (EIGHTH * each.t - EIGHTH * t)
        fall = fall + (self.kappa / whole) * (EIGHTH * each.s - EIGHTH * s)
        fall = xp.where(each.ties == 0, 0.0, over(fall, EIGHTH * each.heat))
        unit = xp.exp(whole * fall)
        own_ties = unit * each.ties
        ties = xp.where(at, own_ties, 0.0)
        others = unit * each.others + xp.where(at, 0.0, own_ties)
        return Peak(top, t, s, total(xp, ties), total(xp, others), each.heat[..., :1])

    def _whole(self, xp: Namespace, known: Known) -> tuple[Array, Array]:
        """Return M − 1 where that is small, and where it is not."""
        y = -(self.alpha * self.kappa) * known.sums[VALUE]
        far = (abs(y) > 0.5) | (known.sums[_SHIFT] != 0)
        return xp.where(far, 0.0, y), far & ~xp.isnan(y)

    def _log(self, xp: Namespace, known: Known, factor: float = 1.0) -> Array:
        """Return log M times a factor: together they may be a number where log M is none."""
        y, far = self._whole(xp, known)
        nothing = known.sums[_TOTAL] == 0
        log = factor * xp.log(xp.where(nothing, 1.0, known.sums[_TOTAL]))
        log = log + (factor * self.power.unit) * known.sums[_SHIFT]
        return xp.where(far, xp.where(nothing, -math.inf * factor, log), factor * log1p(xp, y))

    def value(self, xp: Namespace, known: Known) -> Array:
        y, far = self._whole(xp, known)
        # An order so near to 1 that y is too small a number leaves the divergence itself.
        tiny = (abs(y) < 1e-30) & ~far
        near = self.alpha * known.sums[VALUE]
        return xp.where(tiny, self.scale * near, self._log(xp, known, -self.scale / self.kappa))

    def _rate(self, index: int) -> float:
        return self.kappa if index == TEACHER else self.alpha

    def _moved(self, index: int, block: Block) -> Array:
        """Return own·(u less its value at the anchor) over the power there."""
        xp, rate, own = block.xp, self._rate(index), block.own(index)
        known, step = logits.from_anchor(block.side(index))
        z = rate * step
        normal = own > 8.0 * float(xp.finfo(own.dtype).smallest_normal)
        unit = self.power.unit
        half = xp.where(normal, -z, unit * (self.power.exponent(block) + (rate / unit) * known))
        half = xp.exp(0.5 * half)
        apart = own - (xp.where(normal, own, 1.0) * half) * half
        return xp.where(abs(z) < 1.0, own * exp_change(xp, rate, step), apart / rate)

    def unit_gradient(self, index: int, block: Block) -> Array:
        """Return T times the gradient.

        With C the power at an anchor in the bulk of own it is α C/M (moved − own Σ moved), where
        nothing cancels if w is nearly own there; else α (own − w)/rate.
        """
        xp, rate, own = block.xp, self._rate(index), block.own(index)
        at = logits.anchor_log(xp, block.known.rows[index], block.temperature)
        # M/C is Σ (own − rate moved); an exponent would be rounded by u·|rate·at|.
        whole = 1.0 - rate * block.known.sums[index]
        mass, log = block.known.sums[_TOTAL], self._log(xp, block.known)
        known = (whole > 0.25) & (mass < math.inf)
        ratio = xp.exp(xp.where(known, 0.0, -rate * at - log))
        ratio = xp.where(known, 1.0 / xp.where(known, whole, 1.0), ratio)
        # Where logits are so far apart that log M is no number, w is nowhere nearly own.
        ratio = xp.where((log == -math.inf) & (mass > 0), 0.0, ratio)
        alike = (self.alpha * ratio) * (self._moved(index, block) - own * block.known.sums[index])
        apart = (self.alpha / rate) * self._less_blend(index, block, own)
        return self.scale * xp.where(ratio > 1e-3, alike, apart)

    def _less_blend(self, index: int, block: Block, own: Array) -> Array:
        """Return own − w; where both are nearly 1, by the masses of all other classes."""
        w, peak, beside = self._blend(block), _peak_of(block), block.known.sums[_BESIDE + index]
        others = peak.others / (peak.ties + peak.others)
        return block.xp.where((own > 0.5) & (w > 0.5), others - beside, own - w)

    def _blend(self, block: Block) -> Array:
        """Return w; NaN where the divergence is infinite."""
        mass, peak = block.known.sums[_TOTAL], _peak_of(block)
        nothing = block.xp.where(mass == math.inf, math.nan, 0.0 * mass)
        weights = self._over_peak(block, peak.t, peak.s)
        return weights / ((peak.ties + peak.others) + nothing)

    def slopes(self, block: Block) -> Slopes:
        xp, sums, power = block.xp, block.known.sums, self.power
        y, far = self._whole(xp, block.known)
        found = super().slopes(block)
        factor = self.scale * self.alpha / (1.0 + y)
        at = logits.anchor_log(xp, block.known.rows[TEACHER], block.temperature)
        mean = xp.exp(-self.kappa * at) * sums[TEACHER] + power.level(block)
        near = logits.slopes_of(
            block.side(TEACHER), *found[:2], power.elements(block), sums[VALUE], mean
        )
        return found._replace(both=xp.where(far, found.both, factor * near.both))

    def curvature(self, block: Block) -> Array:
        return (self.scale * self.alpha) * self._weights(block)

    def temperature_bend(self, block: Block) -> Array:
        """Return the bend of the power's sum and the square of its slope; far apart variances."""
        xp, (side, slopes) = block.xp, self._along(block)
        bend = logits.temperature_bend(side, slopes, self.curvature(block))
        near = bend + (self.kappa / self.scale) * logits.temperature_share(side, slopes) ** 2
        a, b = block.relative(TEACHER), block.relative(STUDENT)
        w, p, q = self._weights(block), block.own(TEACHER), block.own(STUDENT)

        def variance(mass: Array, steps: Array) -> Array:
            steps = _about_mean(xp, xp.where(mass == 0, 0.0, steps), mass)
            return total(xp, (mass * steps) * steps)

        rest = self.alpha * variance(p, a) + self.kappa * variance(q, b)
        apart = (variance(w, self.alpha * a + self.kappa * b) - rest) * (self.scale / -self.kappa)
        return xp.where(self._whole(xp, block.known)[1], apart, near)

    def _weights(self, block: Block) -> Array:
        """Return w."""
        y, far = self._whole(block.xp, block.known)
        near = self.power.mass(block) / (1.0 + y)
        return block.xp.where(far, self._blend(block), near)

    def tangent(self, index: int, block: Block, direction: tuple[Array, Array]) -> Array:
        """Return the derivative of a gradient in a direction of (s, t), of whole rows.

        With δ = α dt + κ ds, ‾ for less the mean under w, and G the gradients at T = 1

            dG_t = α p (dt − ds)‾ − p Σ G_t dt + G_t δ‾
            dG_s = −α q (dt − ds)‾ − q Σ G_s ds + G_s δ‾
        """
        xp, alpha = block.xp, self.alpha
        ds, dt = direction
        w = self._weights(block)

        own, slope = block.own(index), self.unit_gradient(index, block) / self.scale
        sign, step = (alpha, dt) if index == TEACHER else (-alpha, ds)
        change = sign * own * _about_mean(xp, dt - ds, w) - own * total(xp, slope * step)
        change = change + slope * _about_mean(xp, alpha * dt + self.kappa * ds, w)
        return over(over(self.scale * change, block.temperature), block.temperature)


@dataclass(frozen=True)
class RenyiZero(Blend):
    """−log of the share of Q on the support of P: Rényi's divergence of order 0.

    The share may be too small a number: it is counted in units of its largest part.
    """

    adds: ClassVar[bool] = False

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        return states_of(wanted), (VALUE, _SHIFT, _TOTAL)

    def own_shares(self, sums: Wanted, block: Block) -> list[Array]:
        xp, logs = block.xp, self._logs(block)
        outside = xp.where(block.t == -math.inf, block.own(STUDENT), block.nothing)
        shift = xp.clip(largest(xp, logs), float(xp.finfo(logs.dtype).min), math.inf)
        kept = xp.exp(logs - shift) + block.nothing
        return [total(xp, outside), shift, total(xp, kept)]

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        return _added_in_units(xp, parts)

    def value(self, xp: Namespace, known: Known) -> Array:
        lost, shift, kept = (known.sums[part] for part in (VALUE, _SHIFT, _TOTAL))
        little = lost <= 0.5
        none = kept == 0
        far = xp.where(none, math.inf, -xp.log(xp.where(none, 1.0, kept)) - shift)
        return xp.where(little, -log1p(xp, -xp.where(little, lost, 0.0)), far)

    def unit_gradient(self, index: int, block: Block) -> Array:
        xp, sums, q = block.xp, block.known.sums, block.own(STUDENT)
        if index == TEACHER:
            return 0.0 * (q + sums[_TOTAL])
        lost = sums[VALUE]
        little = xp.where(block.t == -math.inf, q, -q * (lost / (1.0 - lost)))
        return xp.where(lost <= 0.5, little, q - self._weights(block))

    def _logs(self, block: Block) -> Array:
        """Return log q on the support of P, −∞ elsewhere."""
        masked = (block.t == -math.inf) | (block.s == -math.inf)
        logs = block.relative(STUDENT) + block.xp.log(block.top(STUDENT)[1])
        return block.xp.where(masked, -math.inf, logs)

    def _weights(self, block: Block) -> Array:
        """Return Q given the support of P."""
        sums = block.known.sums
        return block.xp.exp(self._logs(block) - sums[_SHIFT]) / sums[_TOTAL]

    def tangent(self, index: int, block: Block, direction: tuple[Array, Array]) -> Array:
        xp, ds, q = block.xp, direction[0], block.own(STUDENT)
        w = self._weights(block)
        change = q * _about_mean(xp, ds, q) - w * _about_mean(xp, ds, w)
        change = change if index == STUDENT else 0.0 * change
        return over(over(change, block.temperature), block.temperature)


@dataclass(frozen=True)
class RenyiInfinity(Blend):
    """The largest log(p/q): Rényi's divergence of order ∞; of ties each has a share of w."""

    adds: ClassVar[bool] = False

    def share(self, part: int, block: Block) -> Array:
        xp, ell = block.xp, self._logs(block)
        top = largest(xp, ell)
        return top if part == _SHIFT else total(xp, xp.where(ell == top, 1.0, xp.zeros_like(ell)))

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        return merged_ties(xp, parts)

    def value(self, xp: Namespace, known: Known) -> Array:
        top = known.sums[_SHIFT]
        return xp.where(top < 0, 0.0, top)

    def unit_gradient(self, index: int, block: Block) -> Array:
        xp, sums = block.xp, block.known.sums
        own = block.own(index)
        w = xp.where(self._logs(block) == sums[_SHIFT], 1.0, xp.zeros_like(own)) / sums[_TOTAL]
        w = xp.where(xp.isfinite(sums[_SHIFT]), w, math.nan)
        return w - own if index == TEACHER else own - w

    def tangent(self, index: int, block: Block, direction: tuple[Array, Array]) -> Array:
        xp, own, step = block.xp, block.own(index), direction[index]
        change = own * _about_mean(xp, step, own)
        change = -change if index == TEACHER else change
        return over(over(change, block.temperature), block.temperature)

    def _logs(self, block: Block) -> Array:
        xp = block.xp
        _, _, ell = block.pair()
        ell = xp.where(block.s == -math.inf, math.inf, ell)
        return xp.where(block.t == -math.inf, -math.inf, ell)


def _added_in_units(
    xp: Namespace, parts: Sequence[Sequence[Array]], unit: float = 1.0
) -> list[Array]:
    """Add sums up, the last of which are in units of e to the power of those before them."""
    *added, shifts, totals = zip(*parts, strict=True)
    shift = largest(xp, xp.concat(shifts, axis=-1))
    scaled = [
        one * xp.exp(unit * xp.clip(own - shift, -math.inf, 0.0))
        for own, one in zip(shifts, totals, strict=True)
    ]
    return [*(sum(same[1:], same[0]) for same in added), shift, sum(scaled[1:], scaled[0])]


def _peak_of(block: Block) -> Peak:
    return Peak(*(block.known.sums[part] for part in _PEAK))


def _largest_of(xp: Namespace, mask: Array, logits_of: Array) -> Array:
    """Return the largest logit of the classes in a mask, finite."""
    lowest = float(xp.finfo(logits_of.dtype).min)
    return xp.clip(largest(xp, xp.where(mask, logits_of, -math.inf)), lowest, math.inf)


def _roots(index: int, block: Block) -> Array:
    """Return the roots of a side's probabilities, also where these underflow."""
    top, scale = block.top(index)
    weights = weights_of(block.xp, block.logits(index), top, 2.0 * block.temperature)
    return weights * block.xp.sqrt(scale)


def _about_mean(xp: Namespace, step: Array, w: Array) -> Array:
    """Return a step less its mean under w, of whole rows.

    It is taken from that of the likeliest class on, which may be nearly all of the mean.
    """
    top = w == largest(xp, w)
    share = xp.where(top, 1.0 + 0.0 * w, 0.0)
    moved = step - total(xp, share * step) / total(xp, share)
    return moved - total(xp, w * moved)
