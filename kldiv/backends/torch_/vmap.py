"""The CPU kernels under ``vmap``: the mapped axis becomes one more axis of rows, or of elements.

So one call computes all entries. Where a loss has a sum it is computed without it, and the formulas
sum each entry; only the sums of many elements are one call each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from kldiv.backends.torch_ import namespace as xp
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.reductions import RowWise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array

    Axes = Sequence[int | None]
    Run = Callable[[Any, Sequence[Array], Array | None], list[Array]]

MANY: Final = 1 << 18
"""Elements that are summed in less time than it takes to write them and read them again."""


def is_one_call(operation: Any, arrays: Sequence[Array], axes: Axes) -> bool:
    """Return whether one call computes all entries faster than one call each."""
    if operation.reduction == "none" or isinstance(operation, RowWise):
        return True
    return entry(arrays[0], axes[0]).numel() < MANY


def together(
    run: Run,
    operation: Any,
    size: int,
    arrays: Sequence[Array],
    axes: Axes,
    upstream: tuple[Array | None, int | None],
    *,
    value: bool,
) -> list[Array]:
    """Compute all entries by ``run(operation, arrays, cotangent)``, of an operation without sums.

    ``upstream`` is the cotangent with its axis. Results are mapped on their first axis; where
    there is a value it comes first.
    """
    by_rows, logits = isinstance(operation, RowWise), 1 if isinstance(operation, LabelLoss) else 2
    shape = tuple(entry(arrays[0], axes[0]).shape)
    elements = operation.shape([entry(arrays[0], axes[0])])
    rows = shape[:-1] if by_rows else shape
    all_arrays = [
        _aligned(array, axis, shape if index < logits else rows, size)
        for index, (array, axis) in enumerate(zip(arrays, axes, strict=True))
    ]
    cotangent, axis = upstream
    if operation.reduction == "none":
        if cotangent is not None:
            cotangent = _aligned(cotangent, axis, elements, size)
        return run(operation, all_arrays, cotangent)

    keep = operation.keep(all_arrays)
    # The kernels divide in float64, and sum rows that they have not rounded.
    wide = replace(operation, compute="float64")
    if cotangent is not None:
        cotangent = _aligned(cotangent, axis, (), size)
        weights = wide.weight(xp, cotangent, (size, *elements), keep, lead=1)
        cotangent = _aligned(weights, 0, elements, size)
    result = "float64" if by_rows else operation.compute
    found = run(replace(operation, reduction="none", result=result), all_arrays, cotangent)
    if value:
        found[0] = operation.finish(xp, found[0], keep, lead=1)
    return found


def entry(array: Array, axis: int | None, index: int = 0) -> Array:
    """Return an entry; of an array that is not mapped the whole."""
    return array if axis is None else array.select(axis, index)


def _aligned(array: Array, axis: int | None, shape: tuple[int, ...], size: int) -> Array:
    """Return an array with its mapped axis first, its entries broadcast to a shape; no copy."""
    array = array[None] if axis is None else array.movedim(axis, 0)
    while array.ndim <= len(shape):
        array = array[:, None]
    return array.expand(size, *shape)
