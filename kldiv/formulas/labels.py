r"""One label's log-probability, and the entropy, of rows of logits, from one read.

With m = max s, d = (s − m)/T ≤ 0 and r = Σ e^d over all classes but one of the largest

    log p(label) = d_label − log1p(r)        H = log1p(r) + Σ p |d|

so that all terms of H have one sign, and nothing cancels on peaked rows, where log Z − Σ p s/T
would be left with the rounding of log Z.  Their gradients are

    ∂ log p(label)/∂s = (1[label] − p)/T        ∂H/∂s = −p (d + Σ p |d|)/T
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from kldiv.formulas.reductions import cast, weighed
from kldiv.formulas.row_options import Tempered
from kldiv.formulas.special import counted, log1p, total
from kldiv.formulas.state import depth_of, finite, over, tempered, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run, Tangents
    from kldiv.formulas.state import Temperature


class Peak(NamedTuple):
    """Rows of logits about their largest; arrays have the classes' axis."""

    top: Array
    depth: Array
    """|d|, finite where a class is masked."""
    p: Array
    rest: Array
    """r."""
    mean: Array
    """Σ p |d|."""
    lack: Array
    """p − 1."""


def peak_of(xp: Namespace, s: Array, temperature: Temperature, known: Array | None = None) -> Peak:
    """Return the parts of the rows' log-probabilities and entropy; NaN where a row is.

    ``known`` are the largest logit, r, the mean and the label's depth of rows whose other classes
    are elsewhere.
    """
    top = xp.max(s, axis=-1, keepdims=True) if known is None else known[..., :1]
    top = xp.where(top == -xp.inf, xp.nan, top)
    largest = s == top
    weights = weights_of(xp, s, top, temperature)
    depth = depth_of(xp, s, top, temperature)
    if known is None:
        # 1 less 1 is nothing but a derivative, for the library's own differentiation.
        ties = total(xp, xp.where(largest, weights, 0.0)) - 1.0
        rest = total(xp, xp.where(largest, 0.0, weights)) + ties
    else:
        rest = known[..., 1:2]
    p = weights / (1.0 + rest)
    mean = total(xp, p * depth) if known is None else known[..., 2:3]
    lack = xp.where(largest, ((weights - 1.0) - rest) / (1.0 + rest), p - 1.0)
    return Peak(top, depth, p, rest, mean, lack)


def falls_of(xp: Namespace, s: Array, peak: Peak, temperature: Temperature) -> Array:
    """Return |d| − Σ p |d|, about a logit in the bulk of p: nothing cancels where |d| is alike."""
    steps = tempered(xp, finite(xp, s) - (peak.top - temperature * peak.mean), temperature)
    return total(xp, peak.p * steps) - steps


def peak_values(
    xp: Namespace, rest: Array, mean: Array, chosen: Array | None, *, entropic: bool
) -> Array:
    """Return −log p(label), the entropy, or both side by side, given the label's depth."""
    log_sum, found = log1p(xp, rest), []
    if chosen is not None:
        found.append(chosen + log_sum)
    if entropic:
        found.append(log_sum + mean)
    return xp.concat(found, axis=-1) if len(found) > 1 else found[0][..., 0]


@dataclass(frozen=True)
class OfRows(Tempered):
    """The common part of operations on logits and labels.

    Arrays: s, those that a class names, the temperature where it is an array, the labels where
    there are any, the mask.
    """

    temperature: float | None = 1.0
    labelled: bool = True
    entropic: bool = False
    given: bool = field(default=False, kw_only=True)
    """Whether constants of whole rows come along, packed, before the temperature."""

    weights: ClassVar[int] = 0
    common: ClassVar[tuple[str, ...]] = ("temperature", "labelled", "entropic")

    @property
    def differentiable(self) -> int:
        return 1 + self.weights + self.given + (self.temperature is None)

    @property
    def leading(self) -> int:
        return self.differentiable + self.labelled

    @property
    def both(self) -> bool:
        """Whether there are two numbers per row: of the label, and the entropy."""
        return self.labelled and self.entropic

    def gradient_with(self, weight: Array, **extra: Any) -> tuple[LabelGradient, list[Array]]:
        """Return the gradient's operation and the arrays of weights that it takes."""
        if self.both:
            return self.settings(BothGradient, **extra), [weight[..., 0], weight[..., 1]]
        return self.settings(LabelGradient, **extra), [weight]

    def prepared(
        self, xp: Namespace, arrays: Sequence[Array]
    ) -> tuple[Array, Temperature, Array | None]:
        """Return the logits, 0 where masked, the temperature, and whether a class is the label."""
        s, keep = cast(xp, arrays[0], self.compute), self.keep(arrays)
        temperature = self.temperature_of(xp, arrays[self.differentiable - 1 :])
        if keep is not None:
            s = xp.where(keep[..., None], s, 0.0)
        if not self.labelled:
            return s, temperature, None
        labels = arrays[self.differentiable][..., None]
        if keep is not None:
            labels = xp.where(keep[..., None], labels, xp.zeros_like(labels))
        return s, temperature, counted(xp, s) == labels


@dataclass(frozen=True)
class LabelLoss(OfRows):
    """−log p(label), or the entropy; both side by side, of the other sign each, if both are asked.

    Arrays: s.
    """

    name: ClassVar[str] = "cross_entropy_with_logits"
    with_classes: ClassVar[int] = 1

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        shape: tuple[int, ...] = arrays[0].shape[:-1]
        return (*shape, 2) if self.both else shape

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        s, temperature, is_label = self.prepared(xp, arrays)
        peak, keep, chosen = peak_of(xp, s, temperature), self.keep(arrays), None
        if is_label is not None:
            chosen = total(xp, xp.where(is_label, peak.depth, 0.0))
            masked = xp.any(is_label & (s == -xp.inf), axis=-1, keepdims=True)
            chosen = xp.where(masked, xp.inf, chosen)
            # A label that is no class has no probability.
            chosen = xp.where(xp.any(is_label, axis=-1, keepdims=True), chosen, xp.nan)
        values = peak_values(xp, peak.rest, peak.mean, chosen, entropic=self.entropic)
        if keep is None:
            return values
        return xp.where(keep[..., None] if self.both else keep, values, 0.0)

    def ones(self, xp: Namespace, arrays: Sequence[Array]) -> Array:
        ones = super().ones(xp, arrays)
        return ones[..., None] if self.both else ones

    def moved(
        self, xp: Namespace, run: Run, tangents: Tangents, weight: Array | None, *arrays: Array
    ) -> Array:
        moved = super().moved
        if not self.both:
            return moved(xp, run, tangents, weight, *arrays)
        one = super().ones(xp, arrays) if weight is None else weight
        pairs = (one, xp.zeros_like(one)), (xp.zeros_like(one), one)
        found = [moved(xp, run, tangents, xp.stack(pair, axis=-1), *arrays) for pair in pairs]
        return xp.stack(found, axis=-1)

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        s, *others = arrays
        operation, weights = self.gradient_with(weight)
        gradient = run(operation, s, *weights, *others)
        if index == 0:
            return gradient
        # Of s/T, and both are as they were where all logits change alike.
        apart = cast(xp, s, self.compute)
        apart = apart - xp.max(apart, axis=-1, keepdims=True)
        apart = xp.where((apart == -xp.inf) | (gradient == 0), 0.0, apart)
        temperature: Any = self.temperature_of(xp, arrays[1:])
        return -xp.sum(gradient * apart, axis=-1) / temperature[..., 0]


@dataclass(frozen=True)
class LabelGradient(OfRows):
    """A number per row times the row's gradient, NaN of a label that is no class.

    Arrays: s, that number.
    """

    weights: ClassVar[int] = 1
    index: ClassVar[int] = 0
    keeps_classes: ClassVar[bool] = True
    native: ClassVar[bool] = True  # second order is the library's own

    @property
    def loss(self) -> LabelLoss:
        """The loss whose gradient it is, row by row."""
        return self.settings(LabelLoss)

    def of_loss(self, xp: Namespace, arrays: Sequence[Array]) -> tuple[list[Array], Array]:
        """Return the arrays of the loss, and the cotangent of its rows."""
        end = 1 + self.weights
        weights = [cast(xp, each, self.compute) for each in arrays[1:end]]
        cotangent = weights[0] if end == 2 else xp.stack(weights, axis=-1)
        return [arrays[0], *arrays[end:]], cotangent

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        s, temperature, is_label = self.prepared(xp, arrays)
        known = arrays[1 + self.weights] if self.given else None
        peak, weights = peak_of(xp, s, temperature, known), iter(arrays[1 : 1 + self.weights])
        parts = []
        if is_label is not None:
            if known is None:
                there = xp.any(is_label, axis=-1, keepdims=True)
            else:  # other parts may have the label, whose depth is NaN where none has
                there = ~xp.isnan(known[..., 3:4])
            part = xp.where(is_label, peak.lack, peak.p)
            parts.append(xp.where(there, part, xp.nan))
        if self.entropic:
            whole = known is None
            falls = falls_of(xp, s, peak, temperature) if whole else peak.depth - peak.mean
            parts.append(peak.p * falls)
        gradient = [
            weighed(xp, cast(xp, next(weights), self.compute)[..., None], part) for part in parts
        ]
        found = over(sum(gradient[1:], gradient[0]), temperature)
        keep = self.keep(arrays)
        return cast(
            xp, found if keep is None else xp.where(keep[..., None], found, 0.0), self.result
        )


@dataclass(frozen=True)
class BothGradient(LabelGradient):
    """The gradients of −log p(label) and of the entropy, each times a number per row, added up."""

    weights: ClassVar[int] = 2
