"""From a pointwise operation and tensors to its kernels, and back to tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kldiv.formulas.pointwise import KLLogTarget
from kldiv.formulas.reductions import cast, count, divide
from kldiv.kernels.triton import pointwise as kernels
from kldiv.kernels.triton.launch import (
    OPTIONS,
    PROGRAMS,
    TILE,
    axes,
    on,
    power_of_two,
    strides_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Work

_NOWHERE = (0, 0, 0)


def run(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    x, shape = arrays[0], tuple(arrays[0].shape)
    keep = operation.keep(arrays)
    kept = None if keep is None else keep.view(xp.uint8)
    fold = work.value and operation.reduction != "none"
    settings = {
        "wide": operation.compute == "float64",
        "log_target": isinstance(operation.function, KLLogTarget),
    }
    value, factor = None, None
    gradients = [xp.empty_like(arrays[index]) for index in work.gradients]
    with on(x):
        if fold:
            total = _sum(xp, [x, arrays[1], kept], settings)
            number = count(xp, operation.reduction, shape, keep, "float64")
            value = cast(xp, divide(xp, total, number, math.nan), operation.result)
        elif work.value:
            value = xp.empty_like(x, dtype=getattr(xp, operation.result))
        if gradients:
            upstream = x.new_ones(()) if work.cotangent is None else work.cotangent
            exact = replace(operation, compute="float64")
            factor = upstream
            if operation.reduction != "none":
                factor = exact.weight(xp, upstream, shape, keep)
        if gradients or not fold:
            outputs = dict(zip(work.gradients, gradients, strict=True))
            elements = None if fold else value
            tensors = [x, arrays[1], kept, elements, outputs.get(0), outputs.get(1), factor]
            _map(xp, tensors, settings)
    return value, gradients


def _layout(
    tensors: Sequence[Array | None],
) -> tuple[tuple[int, int, int], list[tuple[int, ...]]] | None:
    """Return three axes that all tensors have, the first one's shortest step last."""
    first = tensors[0]
    assert first is not None  # noqa: S101 - of the caller's own making
    shape = tuple(first.shape)
    there = [tensor for tensor in tensors if tensor is not None]
    order = sorted(range(first.ndim), key=lambda axis: -first.stride(axis))
    strides = [strides_of(tensor, shape) for tensor in there]
    found = axes(
        [shape[axis] for axis in order],
        [[steps[axis] for axis in order] for steps in strides],
        3,
    )
    if found is None:
        return None
    (outer, middle, inner), placed = found
    given = iter(placed)
    return (outer, middle, inner), [
        _NOWHERE if tensor is None else next(given) for tensor in tensors
    ]


def _contiguous(tensors: Sequence[Array | None], shape: Sequence[int]) -> list[Array | None]:
    """Return tensors that fill a shape, copied where they are not contiguous."""
    return [None if each is None else each.expand(tuple(shape)).contiguous() for each in tensors]


def _tile(shape: tuple[int, int, int], *, wide: bool) -> tuple[int, int]:
    """Return rows and columns of a tile."""
    outer, middle, inner = shape
    tile = TILE[wide]
    width = min(tile, max(16, power_of_two(inner)))
    return min(tile // width, power_of_two(outer * middle)), width


def _sum(xp: Any, tensors: Sequence[Array | None], settings: dict[str, bool]) -> Array:
    """Return the sum of all elements in float64."""
    first = tensors[0]
    assert first is not None  # noqa: S101 - see `_layout`
    layout = _layout(tensors)
    if layout is None:
        tensors = _contiguous(tensors, first.shape)
        layout = _layout(tensors)
        assert layout is not None  # noqa: S101 - contiguous tensors have one axis
    (outer, middle, inner), strides = layout
    height, width = _tile((outer, middle, inner), wide=settings["wide"])
    tiles = -(-outer * middle // height) * -(-inner // width)
    programs = min(PROGRAMS, tiles)
    partial = first.new_empty((programs,), dtype=xp.float64)
    kernels.sums[programs,](
        *tensors, partial, outer * middle, middle, inner, *strides, **settings,
        height=height, width=width, **OPTIONS,
    )  # fmt: skip
    return xp.sum(partial)


def _map(xp: Any, tensors: Sequence[Array | None], settings: dict[str, bool]) -> None:
    """Fill elements and gradients."""
    first = tensors[0]
    assert first is not None  # noqa: S101 - see `_layout`
    inputs, results = [*tensors[:3], tensors[6]], list(tensors[3:6])
    layout = _layout(tensors)
    outputs = results
    if layout is None:
        inputs = _contiguous(inputs, first.shape)
        outputs = [None if each is None else xp.empty_like(each.contiguous()) for each in results]
        layout = _layout([*inputs[:3], *outputs, inputs[3]])
        assert layout is not None  # noqa: S101 - contiguous tensors have one axis
    (outer, middle, inner), strides = layout
    height, width = _tile((outer, middle, inner), wide=settings["wide"])
    tiles = -(-outer * middle // height) * -(-inner // width)
    kernels.maps[tiles,](
        *inputs[:3], *outputs, inputs[3], outer * middle, middle, inner, *strides, **settings,
        height=height, width=width, **OPTIONS,
    )  # fmt: skip
    if outputs is not results:
        for result, output in zip(results, outputs, strict=True):
            if result is not None:
                result.copy_(output)
