"""Dask, classes in several chunks: a few numbers a row of each, and a tree that merges them, lazy.

A `Plan` has the shares of chunks and their merging; this file builds its graph.  Few tasks count
more than small ones, since a cluster takes a millisecond for each:

* The arrays of a chunk are one task, into which Dask fuses those that load or make them.  They are
  there for two or three readings, on one worker.
* Blocks that a row is contracted over come as lists (``concatenate=None``): only blockwise layers
  that agree in this are fused.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da

from kldiv.backends.registry import find
from kldiv.formulas.plans import Plan, plan_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array
    from kldiv.formulas.reductions import RowWise

    Evaluate = Callable[..., Array]
    Names = tuple[Any, ...]

_EVERY = 8
"""How many parts are merged at a time."""

_CLASSES, _KNOWN = "classes", "known"
"""Names of the last axis: of arrays with the classes, and of the rows' packed constants."""


def plan_for(
    operation: Any, arrays: Sequence[Array], *, differentiated: bool = False
) -> Plan | None:
    """Return the plan of an operation on chunks of classes; None where rows are whole."""
    plan = plan_of(operation, differentiated=differentiated)
    if plan is None or all(array.numblocks[-1] == 1 for array in arrays[: plan.classed]):
        return None
    return plan


def elements(
    plan: Plan, arrays: Sequence[Array], evaluator: Callable[[RowWise], Evaluate]
) -> Array:
    """Return the elements of a plan; ``evaluator`` makes a function of blocks from an operation."""
    rows = tuple(f"row {axis}" for axis in range(arrays[0].ndim)[:-1])
    full = (*rows, _CLASSES)
    aligned = _aligned(arrays, rows, full)
    classed, more = aligned[: plan.classed], [(array, rows) for array in aligned[plan.classed :]]
    weight, others = more[: plan.weighted], more[plan.weighted :]
    make = partial(_blockwise, dtype=plan.compute)
    named = [*((array, full) for array in classed), *others]
    chunks = make(_together, full, *named)
    known: list[tuple[Array, Names]] = []
    for stage in plan.stages:
        share = partial(_share, evaluator(stage.share), plan.classed)
        parts = make(share, full, (chunks, full), *known) if known else chunks
        merged = da.reduction(
            parts,
            _same if known else partial(_first_share, share),
            partial(_merged, stage.finish),
            axis=-1,
            keepdims=True,
            dtype=plan.compute,
            combine=partial(_merged, stage.merge),
            concatenate=False,
            split_every=_EVERY,
            output_size=stage.known,
            meta=classed[0]._meta.astype(plan.compute),  # noqa: SLF001
        )
        known.append((merged, (*rows, _KNOWN)))
    if plan.last is None:
        return known[0][0]
    if not plan.last.keeps_classes:
        return make(partial(_values, evaluator(plan.last), len(known)), rows, *known, *others)
    function = partial(_share, evaluator(plan.last), plan.classed, weighted=plan.weighted)
    return make(function, full, (chunks, full), *weight, *known)


def _aligned(arrays: Sequence[Array], rows: Names, full: Names) -> Sequence[Array]:
    """Return the arrays in the same chunks."""
    named = (full if array.ndim == len(full) else rows for array in arrays)
    pairs = [part for pair in zip(arrays, named, strict=True) for part in pair]
    _, aligned = da.core.unify_chunks(*pairs)
    return aligned


def _blockwise(
    function: Callable[..., Array], out: Names, *pairs: tuple[Array, Names], dtype: str
) -> Array:
    first = pairs[0][0]
    return da.blockwise(
        function,
        out,
        *(part for pair in pairs for part in pair),
        dtype=dtype,
        meta=da.utils.meta_from_array(first._meta, len(out), dtype),  # noqa: SLF001
        align_arrays=False,
    )


# ---- the functions of the tasks ------------------------------------------------------------------
# Each enters its own context: the threads of a scheduler do not have the caller's.


def _together(*blocks: Array) -> tuple[Array, ...]:
    return blocks


def _same(part: Array, axis: Any, keepdims: Any) -> Array:  # noqa: ARG001
    return part


def _first_share(share: Evaluate, chunk: tuple[Array, ...], axis: Any, keepdims: Any) -> Array:  # noqa: ARG001
    return share(chunk)


def _listed(parts: Any) -> list[Array]:
    """Return the blocks that a reduction hands over, in lists of lists, or alone."""
    return [one for part in parts for one in _listed(part)] if isinstance(parts, list) else [parts]


def _joined(known: Sequence[Any]) -> list[Array]:
    """Join the rows' packed constants to one array, in a list; empty where there are none."""
    arrays = _listed([*known])
    if len(arrays) < 2:
        return arrays
    backend = find(arrays[0])
    with backend.context(arrays[0]):
        return [backend.namespace(arrays[0]).concat(arrays, axis=-1)]


def _share(
    evaluate: Evaluate, classed: int, chunk: tuple[Array, ...], *more: Array, weighted: bool = False
) -> Array:
    """Evaluate an operation on the arrays of classes, a weight, the constants, and the others."""
    known = _joined(more[weighted:])
    return evaluate(*chunk[:classed], *more[:weighted], *known, *chunk[classed:])


def _merged(
    merge: Callable[..., Array],
    parts: Any,
    axis: Any,  # noqa: ARG001
    keepdims: Any,  # noqa: ARG001
) -> Array:
    arrays = _listed(parts)
    backend = find(arrays[0])
    with backend.context(arrays[0]):
        return merge(backend.namespace(arrays[0]), arrays)


def _values(evaluate: Evaluate, number: int, *arrays: Array) -> Array:
    return evaluate(*_joined(arrays[:number]), *arrays[number:])
