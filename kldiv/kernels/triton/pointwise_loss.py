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
    give,
    on,
    placed,
    power_of_two,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Work


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
            results = [elements, outputs.get(0), outputs.get(1)]
            _map([x, arrays[1], kept, factor], results, settings)
    return value, gradients


def _tile(sizes: Sequence[int], *, wide: bool) -> tuple[int, int, int]:
    """Return rows and columns of a tile, and how many tiles there are."""
    outer, middle, inner = sizes
    width = min(TILE[wide], max(16, power_of_two(inner)))
    height = min(TILE[wide] // width, power_of_two(outer * middle))
    return height, width, -(-outer * middle // height) * -(-inner // width)


def _sum(xp: Any, tensors: Sequence[Array | None], settings: dict[str, bool]) -> Array:
    """Return the sum of all elements in float64."""
    inputs, _, sizes, strides = placed(tensors, most=3)
    height, width, tiles = _tile(sizes, wide=settings["wide"])
    programs = min(PROGRAMS, tiles)
    partial = inputs[0].new_empty((programs,), dtype=xp.float64)
    kernels.sums[programs,](
        *inputs, partial, sizes[0] * sizes[1], *sizes[1:], *strides, **settings,
        height=height, width=width, **OPTIONS,
    )  # fmt: skip
    return xp.sum(partial)


def _map(
    tensors: Sequence[Array | None], results: Sequence[Array | None], settings: dict[str, bool]
) -> None:
    """Fill elements and gradients."""
    inputs, outputs, sizes, strides = placed(tensors, results, most=3)
    height, width, tiles = _tile(sizes, wide=settings["wide"])
    kernels.maps[tiles,](
        *inputs, *outputs, sizes[0] * sizes[1], *sizes[1:], *strides, **settings,
        height=height, width=width, **OPTIONS,
    )  # fmt: skip
    give(results, outputs)
