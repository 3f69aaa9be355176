"""Losses of rows of logits: their states by a kernel, the rest by XLA."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp

from kldiv.formulas import shards
from kldiv.formulas.divergences import ALL
from kldiv.formulas.rows import RowGradient, RowLoss
from kldiv.kernels.pallas import states

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace
    from kldiv.formulas.rows import RowOperation
    from kldiv.kernels.pallas import Spread
    from kldiv.kernels.work import Work


def check(work: Work) -> None:
    """Compile the kernel for such work: in a whole program a failure comes too late."""
    operation = work.operation
    if operation.given:
        return
    s, t, *others = work.arrays
    others = others[isinstance(operation, RowGradient) :]  # without the rows' factors
    sides, _ = operation.divergence.needs(ALL if work.gradients else operation.wanted)
    states.check(operation.settings(shards.ShardState, sides=sides), (s, t, *others))


def run(work: Work, spread: Spread | None = None) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    if not work.gradients:
        if spread is None:
            elements = evaluate(operation, *arrays, xp=xp)
        else:
            elements = spread(operation, xp, arrays, evaluate)
        return operation.gather(xp, elements, arrays), []

    rows, keep = arrays[0].shape[:-1], operation.keep(arrays)
    own = shards.of_rank(
        xp, partial(evaluate, xp=xp), shards.Alone(), operation.settings(RowLoss), arrays
    )
    values, known = own.forward()
    upstream = xp.ones(()) if work.cotangent is None else work.cotangent
    weight = xp.broadcast_to(operation.weight(xp, upstream, rows, keep), rows)
    gradients = [own.backward(index, weight, known) for index in work.gradients]
    return (operation.finish(xp, values, keep) if work.value else None), gradients


def evaluate(operation: RowOperation, *arrays: Array, xp: Namespace = jnp) -> Array:
    """Return the elements of an operation on rows."""
    if isinstance(operation, shards.ShardState):
        return states.run(operation, arrays)
    if operation.given:
        return operation.elements(xp, *arrays)
    return shards.part(xp, partial(evaluate, xp=xp), shards.Alone(), operation, arrays)
