"""Dask, two linear layers' loss: lazy, a task for each chunk of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dask.array as da
from dask.delayed import delayed

from kldiv.backends import chunks
from kldiv.formulas.linear import Pass, summed

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace
    from kldiv.backends.routing import Route
    from kldiv.formulas.linear import LinearLoss

    OfBlock = Callable[[Array], Route]
    """Makes the settings of a task from one of its blocks."""


def in_chunks(xp: Namespace, of_block: OfBlock, given: Pass) -> chunks.Found:
    """Compute as `Backend.in_chunks` does; a task has all classes of its rows."""
    operation, arrays, wanted, weight = given
    rows, dtype = arrays[0].shape[:-1], operation.compute
    if 0 in rows:  # which Dask cannot reshape
        return da.zeros(operation.shape(arrays), dtype), [
            da.zeros(arrays[index].shape, dtype) for index in wanted
        ]
    flat = [*operation.flattened(xp, arrays), *([] if weight is None else [weight])]
    of_rows = [operation.is_of_rows(index) or index >= len(arrays) for index in range(len(flat))]
    sizes = flat[0].chunks[0]
    blocks = [
        _row_blocks(array, sizes) if each else [_whole(array) for _ in sizes]
        for array, each in zip(flat, of_rows, strict=True)
    ]
    places = [0, *wanted]  # the values are in the first place
    task = delayed(_of_block, pure=True, nout=len(places))
    found = [
        task(of_block, operation.elementwise(), tuple(wanted), weight is not None, *own)
        for own in zip(*blocks, strict=True)
    ]
    meta = arrays[0]._meta  # noqa: SLF001
    results, totals = [], []
    for place, index in enumerate(places):
        by_rows = operation.is_of_rows(index)
        shape = operation.shape(flat) if place == 0 else flat[index].shape
        parts = []
        for each, size in zip(found, sizes, strict=True):
            own = (size, *shape[1:]) if by_rows else shape
            kind = da.utils.meta_from_array(meta, len(own), operation.compute)
            parts.append(da.from_delayed(each[place], own, dtype=operation.compute, meta=kind))
        if by_rows:
            results.append(da.concatenate(parts))
        else:
            totals.append(summed(xp, parts))
    return operation.collected(xp, arrays, wanted, results, totals)


def _row_blocks(array: Array, sizes: tuple[int, ...]) -> list[Array]:
    """Return an array in chunks of these many rows, each whole otherwise."""
    return list(array.rechunk((sizes, *array.shape[1:])).to_delayed().reshape(-1))


def _whole(array: Array) -> Array:
    return array.rechunk(array.shape).to_delayed().item()


def _of_block(
    of_block: OfBlock,
    operation: LinearLoss,
    wanted: tuple[int, ...],
    weighted: bool,  # noqa: FBT001 - a task's arguments have their order
    *blocks: Array,
) -> tuple[Array, ...]:
    arrays = list(blocks)
    weight = arrays.pop() if weighted else None
    given = Pass(operation, arrays, wanted, weight)
    values, gradients = chunks.evaluate(of_block(arrays[0]), given)
    return values, *gradients
