"""Between the two directions of KL, each row at its own place: β of Jensen-Shannon as an array."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from kldiv.formulas.divergences import (
    LEAST,
    STUDENT,
    TEACHER,
    VALUE,
    Block,
    Known,
    OfMixture,
    Wanted,
    from_last_class,
    kl_gradient,
    kl_slopes,
)
from kldiv.formulas.logits import Mix, Slopes

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace


@dataclass(frozen=True)
class Interpolated(OfMixture):
    """D(P‖Q) where β = 0, D(Q‖P) where β = 1, βD(P‖M) + (1−β)D(Q‖M) between, else NaN.

    M = βP + (1−β)Q, and β is a number per row; above 0 it is no less than `LEAST`.
    """

    ends: Any = None
    """Where β is 0, and where it is 1."""
    beta: Any = None
    """β, and ½ at the ends."""
    parameters: ClassVar[int] = 1

    def bound(self, xp: Namespace, beta: Array) -> Interpolated:
        inside = (beta >= LEAST) & (beta < 1)
        ends = beta == 0, beta == 1
        outside = xp.where(ends[0] | ends[1], 0.5, xp.full_like(beta, xp.nan))
        return replace(self, ends=ends, beta=xp.where(inside, beta, outside))

    @property
    def mix(self) -> Mix:
        return Mix(self.beta, 1.0 - self.beta, self.beta, 1.0 - self.beta)

    def needs(self, wanted: Wanted) -> tuple[Wanted, Wanted]:
        return (TEACHER, STUDENT), wanted

    def value(self, xp: Namespace, known: Known) -> Array:
        return self._chosen(xp, lambda side: known.rows[side].kl, known.sums[VALUE])

    def gradient(self, index: int, block: Block) -> Array:
        def of_side(side: int) -> Array:
            return kl_gradient(side, index, block)

        return self._chosen(block.xp, of_side, super().gradient(index, block))

    def curvature(self, block: Block) -> Array:
        return self._chosen(block.xp, block.own, super().curvature(block))

    def slopes(self, block: Block) -> Slopes:
        each = {side: kl_slopes(side, block) for side in (TEACHER, STUDENT)}
        parts = (
            self._chosen(block.xp, lambda side: each[side][part], between)  # noqa: B023
            for part, between in enumerate(super().slopes(block))
        )
        return Slopes(*parts)

    def from_last(self, index: int, block: Block) -> Block:
        for side in (TEACHER, STUDENT):
            block = from_last_class(index, side, block)
        return block

    def _chosen(self, xp: Namespace, of_side: Callable[[int], Array], between: Array) -> Array:
        """Return a function of the direction at the ends, and else another array."""
        forward, reverse = self.ends
        return xp.where(forward, of_side(TEACHER), xp.where(reverse, of_side(STUDENT), between))
