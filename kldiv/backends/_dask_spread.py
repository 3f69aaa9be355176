"""Dask, classes in several chunks: a state of each, and a tree that merges them, all lazy."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da

from kldiv.backends.registry import find
from kldiv.formulas import shards
from kldiv.formulas.rows import RowGradient, RowLoss
from kldiv.formulas.state import Rows, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array
    from kldiv.formulas.rows import RowOperation

_EVERY = 8
"""How many states are merged at a time."""

_CLASSES, _KNOWN, _SUMS = "classes", "known", "sums"
"""Names of the last axis of logits, of constants of rows, and of sums."""


def in_class_chunks(operation: Any, arrays: Sequence[Array]) -> bool:
    """Return whether an operation is to be computed from states."""
    spread = isinstance(operation, RowLoss | RowGradient)
    return spread and any(array.numblocks[-1] > 1 for array in arrays[:2])


def elements(
    operation: RowLoss | RowGradient,
    arrays: Sequence[Array],
    evaluator: Callable[[RowOperation], Callable[..., Array]],
) -> Array:
    """Return the elements, given what makes a function of blocks from an operation."""
    rows = tuple(f"row {axis}" for axis in range(arrays[0].ndim)[:-1])
    full = (*rows, _CLASSES)
    arrays = _aligned(arrays, rows, full)
    s, t, *others = arrays
    index = operation.index if isinstance(operation, RowGradient) else None
    weight = None if index is None else others.pop(0)
    loss = operation.settings(RowLoss)
    gradients = index is not None and loss.divergence.sums(1) > 0
    pairs = len(loss.divergence.pairs(s, t, gradients=gradients))
    state = loss.settings(shards.ShardState, gradients=gradients)
    make = partial(_blockwise, dtype=loss.compute)
    sides = [(s, full), (t, full)]
    per_row = [(array, rows) for array in others]

    states = make(
        partial(_state, evaluator(state), loss),
        full,
        *sides,
        *per_row,
        width=shards.width(State, pairs),
    )
    merge = partial(_merged, loss)
    constants = _reduced(
        states, partial(merge, done=False), partial(merge, done=True), shards.width(Rows, pairs)
    )
    known = [(constants, (*rows, _KNOWN))]
    number = loss.divergence.sums(pairs)
    if number:
        share = evaluator(loss.settings(shards.ShardSums))
        shares = make(share, full, *sides, *known, *per_row, width=number)
        known.append((_reduced(shares, _added, _added, number), (*rows, _SUMS)))
    if index is None:
        return make(partial(_values, loss, bool(number)), rows, *known, *per_row)
    slope = loss.settings(shards.ShardGradient, index=index)
    function = partial(_gradient, evaluator(slope), bool(number))
    return make(function, full, *sides, (weight, rows), *known, *per_row)


def _aligned(
    arrays: Sequence[Array], rows: tuple[Any, ...], full: tuple[Any, ...]
) -> Sequence[Array]:
    """Return the arrays in the same chunks."""
    named = (full if array.ndim == len(full) else rows for array in arrays)
    pairs = [part for pair in zip(arrays, named, strict=True) for part in pair]
    _, aligned = da.core.unify_chunks(*pairs)
    return aligned


def _blockwise(
    function: Callable[..., Array],
    out: tuple[Any, ...],
    *pairs: tuple[Array, tuple[Any, ...]],
    dtype: str,
    width: int | None = None,
) -> Array:
    """Apply ``function`` to each block; its result has that many numbers on the last axis."""
    first = pairs[0][0]
    return da.blockwise(
        function,
        out,
        *(part for pair in pairs for part in pair),
        dtype=dtype,
        meta=da.utils.meta_from_array(first._meta, len(out), dtype),  # noqa: SLF001
        concatenate=True,
        adjust_chunks=None if width is None else {_CLASSES: width},
    )


def _reduced(
    parts: Array, combine: Callable[..., Array], aggregate: Callable[..., Array], width: int
) -> Array:
    """Merge what the chunks of classes gave, a few at a time."""
    return da.reduction(
        parts,
        _same,
        aggregate,
        axis=-1,
        keepdims=True,
        dtype=parts.dtype,
        combine=combine,
        concatenate=False,
        split_every=_EVERY,
        output_size=width,
        meta=parts._meta,  # noqa: SLF001
    )


# ---- what the tasks do ---------------------------------------------------------------------------
# In its own context each: the threads of a scheduler know nothing of the caller's.


def _same(part: Array, axis: Any, keepdims: Any) -> Array:  # noqa: ARG001
    return part


def _listed(parts: Any) -> list[Array]:
    """Return the blocks that a reduction hands over, in lists of lists, or alone."""
    return [one for part in parts for one in _listed(part)] if isinstance(parts, list) else [parts]


def _state(evaluate: Callable[..., Array], loss: RowOperation, *blocks: Array) -> Array:
    states = evaluate(*blocks)
    backend = find(states)
    with backend.context(states):
        return shards.carrying(backend.namespace(states), loss, states, blocks[2:])


def _merged(loss: RowOperation, parts: Any, *, done: bool, axis: Any, keepdims: Any) -> Array:  # noqa: ARG001
    states = _listed(parts)
    backend = find(states[0])
    with backend.context(states[0]):
        return shards.combined(backend.namespace(states[0]), loss, states, done=done)


def _added(parts: Any, axis: Any, keepdims: Any) -> Array:  # noqa: ARG001
    shares = _listed(parts)
    with find(shares[0]).context(shares[0]):
        return shards.added(shares)


def _values(loss: RowOperation, summed: bool, constants: Array, *others: Array) -> Array:  # noqa: FBT001
    backend = find(constants)
    sums, others = (others[0], others[1:]) if summed else (constants[..., :0], others)
    with backend.context(constants):
        return shards.values_of(backend.namespace(constants), loss, constants, sums, others)


def _gradient(
    evaluate: Callable[..., Array],
    summed: bool,  # noqa: FBT001
    s: Array,
    t: Array,
    weight: Array,
    constants: Array,
    *others: Array,
) -> Array:
    sums = () if summed else (constants[..., :0],)
    return evaluate(s, t, weight, constants, *sums, *others)
