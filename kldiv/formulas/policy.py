"""One label's log-probability and the entropy of a policy, and its divergence from a reference.

They are a loss of labels and D(P‖Q) of the same rows, with P the policy's and Q the reference's
softmax.  A technology may compute all three from one read, and ranks exchange the sums of both
parts at once; elsewhere each part is computed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from kldiv.formulas.divergences import KullbackLeibler
from kldiv.formulas.labels import LabelLoss, OfRows
from kldiv.formulas.reductions import cast, like
from kldiv.formulas.rows import RowLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run, Tangents

_LABELS: Final = slice(0, 2)
_KL: Final = 2
"""The places of results."""


@dataclass(frozen=True)
class PolicyLoss(OfRows):
    """−log p(label), the entropy and D(P‖Q), side by side. Arrays: P's logits, Q's logits."""

    name: ClassVar[str] = "log_prob_and_entropy_with_logits"
    weights: ClassVar[int] = 1
    divergence: ClassVar[KullbackLeibler] = KullbackLeibler()

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        return (*arrays[0].shape[:-1], 3)

    @property
    def labels(self) -> LabelLoss:
        """The part that labels and entropy are."""
        return self.settings(LabelLoss, labelled=True, entropic=True)

    @property
    def kl(self) -> RowLoss:
        """The part that the divergence is."""
        own = self.compute, self.compute, self.compute
        return RowLoss("none", *own, self.divergence, self.temperature)

    def of_labels(self, arrays: Sequence[Any]) -> list[Any]:
        """Return the items of the first part, given one for each array."""
        return [arrays[0], *arrays[2:]]

    def of_kl(self, arrays: Sequence[Any]) -> list[Any]:
        """Return the items of the second part, given one for each array."""
        own, others = arrays[: self.differentiable], arrays[self.leading :]
        return [own[1], own[0], *own[2:], *others]

    def composed(self, xp: Namespace, run: Callable[..., Array], *arrays: Array) -> Array:
        """Return the values, given a function that computes the parts."""
        found = run(self.labels, *self.of_labels(arrays))
        divergence = run(self.kl, *self.of_kl(arrays))
        return cast(xp, xp.concat([found, divergence[..., None]], axis=-1), self.result)

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        return self.composed(xp, lambda part, *some: part.elements(xp, *some), *arrays)

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        wide = [cast(xp, array, self.compute) for array in arrays[: self.differentiable]]
        wide.extend(arrays[self.differentiable :])
        places = range(self.differentiable)
        shares = []
        for part, own, some, upstream in (
            (self.labels, self.of_labels(places), self.of_labels(wide), cotangent[..., _LABELS]),
            (self.kl, self.of_kl(places), self.of_kl(wide), cotangent[..., _KL]),
        ):
            if index in own:
                shares.append(part.pullback(xp, run, own.index(index), upstream, *some))
        return like(xp, sum(shares[1:], shares[0]), arrays[index])

    def moved(
        self, xp: Namespace, run: Run, tangents: Tangents, weight: Array | None, *arrays: Array
    ) -> Array:
        given = [*tangents, *[None] * (self.differentiable - len(tangents))]
        of_labels, of_kl = self.of_labels(given), self.of_kl(given)
        own = [step for step in of_labels if step is not None]
        if own:
            found = self.labels.moved(xp, run, of_labels, weight, *self.of_labels(arrays))
        divergence = self.kl.moved(xp, run, of_kl, weight, *self.of_kl(arrays))
        if not own:
            found = xp.stack([xp.zeros_like(divergence)] * 2, axis=-1)
        return xp.concat([found, divergence[..., None]], axis=-1)
