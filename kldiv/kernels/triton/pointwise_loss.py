"""From a pointwise operation and tensors to its kernels, and back to tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kldiv.formulas.pointwise import KLLogTarget
from kldiv.formulas.reductions import cast, count, divide
from kldiv.kernels.triton.launch import OPTIONS, PROGRAMS, TILE, give, on, placed, power_of_two
from kldiv.kernels.triton.pointwise import pointwise

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.kernels.work import Work


def run(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    x, shape = arrays[0], tuple(arrays[0].shape)
    keep, reduced = operation.keep(arrays), operation.reduction != "none"
    kept = None if keep is None else keep.view(xp.uint8)
    wide = operation.compute == "float64"
    gradients = [xp.empty_like(arrays[index]) for index in work.gradients]
    outputs: dict[int, Any] = dict(zip(work.gradients, gradients, strict=True))
    value, factor, partial = None, None, None
    with on(x):
        if work.value and not reduced:
            value = xp.empty_like(x, dtype=getattr(xp, operation.result))
        if gradients:
            factor = x.new_ones(()) if work.cotangent is None else work.cotangent
            if reduced:
                factor = replace(operation, compute="float64").weight(xp, factor, shape, keep)
        results = [value, outputs.get(0), outputs.get(1)]
        given = [x, arrays[1], kept, factor]
        inputs, written, (outer, middle, inner), strides = placed(given, results, most=3)
        width = min(TILE[wide], max(16, power_of_two(inner)))
        height = min(TILE[wide] // width, power_of_two(outer * middle))
        programs = -(-outer * middle // height) * -(-inner // width)
        if work.value and reduced:
            programs = min(PROGRAMS, programs)
            partial = x.new_empty((programs,), dtype=xp.float64)
        pointwise[programs,](
            *inputs, partial, *written, outer * middle, middle, inner, *strides,
            wide=wide, log_target=isinstance(operation.function, KLLogTarget),
            flat=outer * middle == 1, one_factor=factor is not None and factor.ndim == 0,
            height=height, width=width, **OPTIONS,
        )  # fmt: skip
        give(results, written)
        if partial is not None:
            number = count(xp, operation.reduction, shape, keep, "float64")
            value = cast(xp, divide(xp, xp.sum(partial), number, math.nan), operation.result)
    return value, gradients
