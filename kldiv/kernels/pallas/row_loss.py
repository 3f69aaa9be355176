"""Losses of rows of logits: their states by a kernel, what follows from these by XLA."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from kldiv.formulas import shards
from kldiv.formulas.rows import RowLoss
from kldiv.kernels.pallas import states

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace
    from kldiv.formulas.rows import RowOperation
    from kldiv.kernels import Work


def run(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    alone = shards.Alone()
    evaluate = partial(_evaluate, xp)
    if not isinstance(operation, RowLoss):
        return shards.part(xp, evaluate, alone, operation, arrays), []
    rows, keep = arrays[0].shape[:-1], operation.keep(arrays)
    loss = operation.settings(RowLoss)
    wanted = bool(work.gradients)
    values, known = shards.forward(xp, evaluate, alone, loss, arrays, gradients=wanted)
    gradients = []
    if wanted:
        upstream = xp.ones(()) if work.cotangent is None else work.cotangent
        weight = xp.broadcast_to(operation.weight(xp, upstream, rows, keep), rows)
        gradients = [
            shards.backward(xp, evaluate, alone, loss, index, weight, arrays, known)
            for index in work.gradients
        ]
    return (operation.finish(xp, values, keep) if work.value else None), gradients


def _evaluate(xp: Namespace, operation: RowOperation, *arrays: Array) -> Array:
    if isinstance(operation, shards.ShardState):
        return states.run(operation, arrays)
    return operation.elements(xp, *arrays)
