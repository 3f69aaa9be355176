r"""The cross entropy of a row of logits with a teacher's, −Σ p log q.

It is the teacher's entropy and D(P‖Q) together, both exact, and its gradient in the student is that
of D(P‖Q).  But in the teacher it is

    −p (s − Σ p s)/T²

where the slopes of these two, which are of the size of p log p, would cancel: so it is computed by
itself, about a logit of the student in the bulk of p.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kldiv.formulas import logits
from kldiv.formulas.divergences import (
    STUDENT,
    TEACHER,
    VALUE,
    Block,
    Divergence,
    KullbackLeibler,
    Wanted,
    bend_by_tangents,
)
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.numbers import EIGHTH
from kldiv.formulas.operation import Composite
from kldiv.formulas.reductions import cast
from kldiv.formulas.rows import RowLoss, RowOperation
from kldiv.formulas.special import log1p, total
from kldiv.formulas.state import depth_of, eighths, over, tempered, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.divergences import Known
    from kldiv.formulas.operation import Run

_DEPTH, _OTHERS, _TIES, _MASS, _CENTRE, _DRIFT = _SUMS = (32, 33, 34, 35, 36, 37)
"""With m = max s: Σ p (m − s)/T; Σ e^((s − m)/T) but for the largest logits, and over these; Σ p;
Σ p s, rounded, and Σ p (s − that), both in eighths."""


@dataclass(frozen=True)
class CrossEntropy(Divergence):
    """−Σ p log q, P = softmax(t/T), Q = softmax(s/T); no divergence, as P = Q does not give 0.

    With m = max s, d = (s − m)/T and r = Σ e^d over all classes but one of the largest it is
    log1p(r) + Σ p |d|, whose terms have one sign.
    """

    adds: ClassVar[bool] = False

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        return (TEACHER,), _SUMS if VALUE in wanted or TEACHER in wanted else ()

    def own_shares(self, sums: Wanted, block: Block) -> list[Array]:
        xp, s, _, rows, _ = block.side(TEACHER)
        p, known, largest = block.own(TEACHER), eighths(xp, s), s == rows.s_max
        depth = tempered(xp, EIGHTH * rows.s_max - known, EIGHTH * block.temperature)
        weights = weights_of(xp, s, rows.s_max, block.temperature)
        added = [p * depth, xp.where(largest, 0.0, weights), xp.where(largest, weights, 0.0), p]
        found = [total(xp, each) for each in added]
        centre = total(xp, p * known) / xp.where(found[-1] > 0, found[-1], 1.0)
        return [*found, centre, total(xp, p * (known - centre))]

    def merged(self, xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
        *added, centres, drifts = (xp.concat(same, axis=-1) for same in zip(*parts, strict=True))
        masses = added[-1]
        found = [total(xp, each) for each in added]
        centre = total(xp, masses * centres) / xp.where(found[-1] > 0, found[-1], 1.0)
        return [*found, centre, total(xp, drifts + masses * (centres - centre))]

    def value(self, xp: Namespace, known: Known) -> Array:
        rows, sums = known.rows[TEACHER], known.sums
        found = log1p(xp, sums[_OTHERS] + (sums[_TIES] - 1.0)) + sums[_DEPTH]
        return xp.where(rows.kl == math.inf, rows.kl, found + 0.0 * rows.offset)

    def gradient(self, index: int, block: Block) -> Array:
        if index == STUDENT:
            return logits.grad_input(block.side(TEACHER))
        return over(self._slope(block), block.temperature)

    def tangent(self, index: int, block: Block, direction: tuple[Array, Array]) -> Array:
        xp, temperature, (ds, dt) = block.xp, block.temperature, direction
        q, p = block.own(STUDENT), block.own(TEACHER)
        of_t = dt - total(xp, p * dt)
        if index == STUDENT:
            of_s = q * (ds - total(xp, q * ds))
            change = _balanced(xp, q, of_s) - _balanced(xp, p, p * of_t)
        else:
            of_s = p * (ds - total(xp, p * ds))
            change = _balanced(xp, p, self._slope(block) * of_t - of_s)
        return over(over(change, temperature), temperature)

    def temperature_share(self, block: Block) -> Array:
        xp, s, t, rows, temperature = block.side(TEACHER)
        q, p = block.own(STUDENT), block.own(TEACHER)
        a = depth_of(xp, t, rows.t_max, temperature)
        b = depth_of(xp, s, rows.s_max, temperature)
        terms = (q - p) * b + self._slope(block) * xp.where(p == 0, 0.0, a)
        return -total(xp, terms)

    def temperature_bend(self, block: Block) -> Array:
        return bend_by_tangents(self, block)

    def _slope(self, block: Block) -> Array:
        """Return T times the gradient in t: 0 where t = −∞, and NaN elsewhere if it is infinite."""
        xp, s, t, rows, _ = block.side(TEACHER)
        sums = block.known.sums
        steps = (eighths(xp, s) - sums[_CENTRE]) - sums[_DRIFT]
        # NaN where a class has p > 0 = q.
        slope = over(block.own(TEACHER) * (0.0 * rows.mean - steps), EIGHTH * block.temperature)
        return xp.where(t == -math.inf, 0.0 * rows.offset, slope)


def _balanced(xp: Namespace, p: Array, z: Array) -> Array:
    """Return z − p Σ z: where p is nearly 1, 1 − p is as the other classes say."""
    return z - p * total(xp, z)


_KL: Final = KullbackLeibler()


@dataclass(frozen=True)
class CrossEntropyLoss(Composite, RowOperation):
    """The cross entropy of each row, reduced, whose parts kernels have. Arrays: s, t."""

    divergence: Divergence = field(default_factory=CrossEntropy)
    name: ClassVar[str] = "cross_entropy_with_logits"

    def composed(self, xp: Namespace, run: Run, *arrays: Array) -> Array:
        divergence, entropy = self._parts()
        return cast(xp, run(divergence, *arrays) + run(entropy, *arrays[1:]), self.result)

    def fused(
        self, xp: Namespace, fused: Callable[..., Any], arrays: Sequence[Array], **wanted: Any
    ) -> tuple[Array | None, list[Array]] | None:
        if wanted.get("gradients", ()) != (STUDENT,):
            return None
        divergence, entropy = self._parts()
        own = None
        if wanted.get("value", True):
            own = fused(entropy, arrays[1:])
            if own is None:
                return None
        value, gradients = fused(divergence, arrays, **wanted) or (None, None)
        if gradients is None:
            return None
        return None if own is None else cast(xp, value + own[0], self.result), gradients

    def slope(
        self, xp: Namespace, run: Run, index: int, weight: Array, arrays: Sequence[Array]
    ) -> Array:
        return self._loss(index).slope(xp, run, index, weight, arrays)

    def _loss(self, index: int) -> RowLoss:
        """Return the loss whose gradient in the array of that index is this one's."""
        names = self.reduction, self.compute, self.total, self.result
        return RowLoss(*names, _KL if index == STUDENT else self.divergence, self.temperature)

    def _parts(self) -> tuple[RowLoss, LabelLoss]:
        """Return the divergence and the entropy, in the dtype of sums."""
        names = self.reduction, self.compute, self.total, self.total
        entropy = LabelLoss(*names, self.temperature, labelled=False, entropic=True)
        return RowLoss(*names, _KL, self.temperature), entropy
