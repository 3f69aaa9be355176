"""Rows whose classes lie in chunks: shares of chunks, their merging, and the result from these.

A plan has stages.  In each every chunk has a share, a few numbers per row; shares merge in any
order to constants of whole rows, which the next stage may use.  The last operation gives the value
of each row from the constants, or a chunk's part of a gradient from the chunk as well.

Shares are operations on the arrays of classes, the constants, and the others, which have a number
per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from kldiv.formulas import measure_shards, shards
from kldiv.formulas.divergences import ALL, VALUE
from kldiv.formulas.packing import split, width
from kldiv.formulas.row_measures import RowMeasure, RowSlope
from kldiv.formulas.rows import RowGradient, RowLoss
from kldiv.formulas.state import Rows, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.reductions import RowWise

    Merge = Callable[[Namespace, Sequence[Array]], Array]


class Stage(NamedTuple):
    """The share of a chunk, and the merging of shares."""

    share: RowWise
    merge: Merge
    """Merges some shares."""
    known: int
    """How many constants a row has when all have merged."""
    own_finish: Merge | None = None

    @property
    def finish(self) -> Merge:
        """Merges shares that are all there are, or mergers of these, to the constants."""
        return self.own_finish or self.merge


@dataclass(frozen=True)
class Plan:
    """How an operation on rows is computed from chunks of their classes."""

    stages: tuple[Stage, ...]
    last: RowWise | None
    """None: the merged shares are the result."""
    classed: int = 2
    """How many arrays have the classes; they come first."""
    weighted: bool = False
    """Whether the last operation takes a number per row after these."""
    compute: str = "float32"


def plan_of(operation: Any, *, differentiated: bool = False) -> Plan | None:
    """Return the plan of an operation on chunks of classes; None where there is none.

    If a loss is to be differentiated too, its plan shares the stages of its gradients' plans.
    """
    if isinstance(operation, shards.ShardState):
        return _of_state(operation)
    if isinstance(operation, RowLoss | RowGradient):
        return _of_logits(operation, differentiated=differentiated)
    if isinstance(operation, RowMeasure):
        return _of_measure(operation)
    return None


def _of_state(operation: shards.ShardState) -> Plan:
    """Return the plan of the state itself: one stage, whose merged states are not finished."""
    number = width(State, len(operation.sides))
    stage = Stage(operation, partial(shards.joined, operation), number)
    return Plan((stage,), None, compute=operation.compute)


def _of_logits(operation: RowLoss | RowGradient, *, differentiated: bool) -> Plan:
    index = operation.index if isinstance(operation, RowGradient) else None
    loss = operation.settings(RowLoss)
    wanted = ALL if differentiated or index is not None else (VALUE,)
    sides, sums = loss.divergence.needs(wanted)
    state = loss.settings(shards.ShardState, sides=sides, carries=True)
    join, finish = partial(shards.joined, loss), partial(shards.finished, loss)
    stages = [Stage(state, join, width(Rows, len(sides)), finish)]
    if sums:
        share = loss.settings(shards.ShardSums, given=wanted)
        stages.append(Stage(share, partial(shards.summed, loss), len(sums)))
    if index is None:
        return Plan(tuple(stages), loss.settings(RowLoss, given=wanted), compute=loss.compute)
    gradient = loss.settings(RowGradient, index=index, given=wanted)
    return Plan(tuple(stages), gradient, weighted=True, compute=loss.compute)


def _of_measure(operation: RowMeasure) -> Plan:
    number, stages = operation.number, []
    slope = operation if isinstance(operation, RowSlope) else None
    if operation.normalize:
        stages.append(Stage(operation.settings(measure_shards.ShardTotals), _added, number))
    if slope is None or operation.measure.slope_takes_sums:
        merge = partial(_merged, operation)
        share = operation.settings(measure_shards.ShardSums)
        stages.append(Stage(share, merge, operation.measure.number_of_sums))
    if slope is None:
        last = operation.settings(RowMeasure, given=True)
        return Plan(tuple(stages), last, number, compute=operation.compute)
    if operation.normalize:
        mean = operation.settings(measure_shards.ShardMean, index=slope.index)
        stages.append(Stage(mean, _added, 1))
    last = operation.settings(RowSlope, index=slope.index, given=True)
    return Plan(tuple(stages), last, number, weighted=True, compute=operation.compute)


def _added(xp: Namespace, parts: Sequence[Array]) -> Array:  # noqa: ARG001 - as all mergers
    return sum(parts[1:], parts[0])


def _merged(operation: RowMeasure, xp: Namespace, parts: Sequence[Array]) -> Array:
    own = [split(part) for part in parts]
    return xp.concat(operation.measure.merged(xp, own), axis=-1)
