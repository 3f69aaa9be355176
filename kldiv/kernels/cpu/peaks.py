"""Rows seen from their largest logit: scales of weights, numbers of labels and entropies.

A kernel that reads a row in blocks keeps of each the largest logit, how many have it, the weights
of all below it, and these times their depths. Formulas and words are those of
`kldiv.formulas.labels`, but for the gradient of the entropy, whose mean is taken a second time
about a logit in the bulk of p: so nothing cancels where depths are alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from kldiv.kernels.cpu.code import DOUBLE, at_least, at_most, select
from kldiv.kernels.cpu.elementary import format_of, log1p, power, shift_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv.kernels.cpu.code import Real, Value
    from kldiv.kernels.cpu.elementary import Format, Heat


class Scale:
    """The scale of weights whose largest logit is known; numbers are in float64."""

    def __init__(self, own: Format, heat: Heat, top: Value) -> None:
        self.own, self.heat, self.top = own, heat, top
        far = (abs(top) > heat.temperature * own.deep) & (top > -float("inf"))
        self.origin = select(far, top, 0.0)
        rounding = 1.5 * 2.0**52
        exponent = ((top - self.origin) * heat.per + rounding) - rounding
        self.exponent = select(top > -float("inf"), exponent, 0.0)
        """Of 2."""

    @property
    def least(self) -> Value:
        """The lowest difference from the origin whose weight counts in the elements' dtype."""
        lowest = (self.top - self.origin) - self.heat.temperature * self.own.gone
        return select(self.top > -float("inf"), lowest, 0.0)

    def weigher(self, vector: Callable[[Value], Value], heat: Heat) -> Callable[[Value], Value]:
        """Return a function of the weights of a vector, given the elements' constants of T."""
        start, lowest = vector(self.origin), vector(self.least)
        shift = shift_of(vector(self.exponent))
        return lambda logits: power(logits - start, lowest, shift, heat)

    def weight(self, logit: Value) -> Value:
        """Return the weight of one logit."""
        wide = format_of(self.top)
        least = (self.top - self.origin) - self.heat.temperature * wide.gone
        found = power(logit - self.origin, least, shift_of(self.exponent), self.heat)
        return select(logit > -float("inf"), found * 2.0**-wide.lift, 0.0)

    def of(self, block: Scale, nothing: Value) -> Value:
        """Return the factor that takes a block's weights to this scale; 0 where it has none."""
        away, powers = block.origin - self.origin, self.exponent - block.exponent
        gone = nothing | (away * self.heat.per - powers < -1000.0)
        away, powers = (select(gone, 0.0, each) for each in (away, powers))
        # A power of 2 where both have one origin.
        scale = power(away, away.of(-float("inf")), shift_of(powers), self.heat)
        return select(gone, 0.0, scale * 2.0 ** -format_of(scale).lift)


class Peak(NamedTuple):
    """A row seen from its largest logit; numbers are in float64."""

    scale: Scale
    rest: Value
    """r."""
    mean: Value
    """Σ p |d|."""

    @property
    def per(self) -> Value:
        """The factor that takes weights of the scale to probabilities."""
        return 1.0 / (self.scale.weight(self.scale.top) * (self.rest + 1.0))

    @property
    def entropy(self) -> Value:
        """The entropy."""
        return log1p(self.rest) + self.mean

    def cost(self, logit: Value, inside: Value) -> Value:
        """Return −log p of a label's logit; NaN where the label is no class."""
        found = (self.scale.top - logit) / self.scale.heat.temperature + log1p(self.rest)
        return select(inside, found, float("nan"))

    def anchor(self, real: Real) -> Value:
        """Return a logit in the bulk of p, in the elements' dtype."""
        temperature = self.scale.heat.temperature
        return (self.scale.top - temperature * self.mean).to(real.scalar)

    def slope_of_label(
        self, logit: Value, anchor: Value, lean: Value, factors: Sequence[Value]
    ) -> Value:
        """Return T times the gradient in a label's logit."""
        p, (of_label, of_entropy) = self.scale.weight(logit) * self.per, factors
        lack = select(logit == self.scale.top, -(self.rest / (self.rest + 1.0)), p - 1.0)
        step = (logit - anchor.to(DOUBLE)) / self.scale.heat.temperature
        return of_label * lack + of_entropy * (p * (lean - select(p > 0.0, step, 0.0)))


def counter(
    top: Value, bound: Value, inverse: Value, vector: Callable[[Value], Value]
) -> Callable[[Value, Value], list[Value]]:
    """Return a function of logits and weights: the ties, the weights below, and their moments."""
    peak = vector(top)
    from_peak = vector(select(top > -float("inf"), top, 0.0))
    most, per = vector(bound), vector(inverse)

    def of(logits: Value, weight: Value) -> list[Value]:
        is_top = logits == peak
        below = select(is_top, 0.0, weight)
        depth = at_most(from_peak - logits, most) * per
        return [select(is_top, weight.of(1.0), 0.0), below, below * depth]

    return of


class Slopes:
    """The gradients of −log p and of the entropy, of vectors of classes that are no label."""

    def __init__(self, anchor: Value, bound: Value, inverse: Value, vector: Any) -> None:
        self.anchor, self.bound, self.inverse = map(vector, (anchor, bound, inverse))

    def step(self, logits: Value) -> Value:
        """Return (s − anchor)/T."""
        return at_least(logits - self.anchor, -self.bound) * self.inverse

    def slope(self, p: Value, logits: Value, lean: Value, factors: Sequence[Value]) -> Value:
        """Return both gradients times a factor each, given vectors of these and of Σ p·step."""
        of_label, of_entropy = factors
        return p * ((lean - self.step(logits)) * of_entropy + of_label)
