"""Between the two directions of KL, each row at its own place: β of Jensen-Shannon as an array."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from kldiv.formulas.divergences import LEAST, KullbackLeibler, OfMixture
from kldiv.formulas.logits import Mix
from kldiv.formulas.operation import Composite
from kldiv.formulas.reductions import Loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Run
    from kldiv.formulas.rows import RowLoss


@dataclass(frozen=True)
class JensenShannonOfRows(OfMixture):
    """βD(P‖M) + (1−β)D(Q‖M), M = βP + (1−β)Q, 0 < β < 1 a number per row; NaN elsewhere."""

    beta: Any = None
    parameters: ClassVar[int] = 1

    def bound(self, xp: Namespace, beta: Array) -> JensenShannonOfRows:
        inside = (beta > 0) & (beta < 1)
        return replace(self, beta=xp.where(inside, xp.clip(beta, LEAST, 1.0), xp.nan))

    @property
    def mix(self) -> Mix:
        return Mix(self.beta, 1.0 - self.beta, self.beta, 1.0 - self.beta)


@dataclass(frozen=True)
class Interpolated(Composite, Loss):
    """D(P‖Q) where β = 0, D(Q‖P) where β = 1, the Jensen-Shannon divergence between them.

    Arrays: s, t, the temperature where it is an array, β, the mask.
    """

    loss: Any = None
    """D(P‖Q) of each row, its elements in the dtype of sums."""

    @classmethod
    def of(cls, loss: RowLoss) -> Interpolated:
        """Return a loss with a β for each row, its reduction and dtypes as they are."""
        each = replace(loss, reduction="none", result=loss.total, divergence=KullbackLeibler())
        return cls(loss.reduction, loss.compute, loss.total, loss.result, each)

    @property
    def differentiable(self) -> int:
        number: int = self.loss.differentiable
        return number

    @property
    def leading(self) -> int:
        return self.differentiable + 1

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.loss.shape(arrays)
        return shape

    def composed(self, xp: Namespace, run: Run, *arrays: Array) -> Array:
        values = [run(loss, *some) for loss, _, some in self._parts(arrays)]
        return self.finish(xp, sum(values[1:], values[0]), self.keep(arrays))

    def fused(self, *_: Any, **__: Any) -> None:
        return None

    def pullback(
        self, xp: Namespace, run: Run, index: int, cotangent: Array, *arrays: Array
    ) -> Array:
        rows = self.shape(arrays)
        weight = xp.broadcast_to(self.weight(xp, cotangent, rows, self.keep(arrays)), rows)
        gradients = [
            loss.pullback(xp, run, order[index], weight, *some)
            for loss, order, some in self._parts(arrays)
        ]
        return sum(gradients[1:], gradients[0])

    def moved(
        self,
        xp: Namespace,
        run: Run,
        tangents: Sequence[Array | None],
        weight: Array | None,
        *arrays: Array,
    ) -> Array:
        moved = []
        for loss, order, some in self._parts(arrays):
            own = [tangents[place] if place < len(tangents) else None for place in order]
            step = loss.moved(xp, run, own, weight, *some)
            moved.append(xp.where(some[-1], step, 0.0))
        return sum(moved[1:], moved[0])

    def _parts(
        self, arrays: Sequence[Array]
    ) -> Iterator[tuple[RowLoss, tuple[int, ...], list[Array]]]:
        """Yield a loss of rows, where it has each of the arrays, and its arrays with the mask."""
        *own, beta = arrays[: self.leading]
        keep = self.keep(arrays)
        zero, one = beta == 0, beta == 1
        between = replace(self.loss, divergence=JensenShannonOfRows())
        for loss, places, mask, more in (
            (self.loss, (0, 1, 2), zero, []),
            (self.loss, (1, 0, 2), one, []),
            (between, (0, 1, 2), ~(zero | one), [beta]),
        ):
            order = places[: len(own)]
            some = [own[place] for place in order]
            yield loss, order, [*some, *more, mask if keep is None else keep & mask]
