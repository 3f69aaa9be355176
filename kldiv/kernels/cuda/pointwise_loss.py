"""From a pointwise operation and arrays to its kernel, and back to arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from kldiv.formulas.pointwise import KLLogTarget
from kldiv.formulas.reductions import cast, count, divide
from kldiv.kernels.cuda.arguments import address, layout, numbers, structure, wide
from kldiv.kernels.cuda.compiling import kernel, types
from kldiv.kernels.layout import memory

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.kernels.work import Work

_THREADS: Final = 256
_PER: Final = 8
"""Elements of a thread at a time."""
_MOST: Final = 2048
"""Blocks, beyond which one takes several chunks, one after another; the same on every GPU."""


def run(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    keep, shape = operation.keep(arrays), tuple(arrays[0].shape)
    size = math.prod(shape)
    dtypes = [memory(array).dtype for array in arrays[:2]]
    real = wide([operation.result, *dtypes])
    reduced = operation.reduction != "none"

    elements = None
    if work.value and not reduced:
        elements = xp.empty(shape, dtype=getattr(xp, operation.result))
    gradients = [xp.empty(shape, dtype=arrays[index].dtype) for index in work.gradients]
    outputs = dict(zip(work.gradients, gradients, strict=True))
    number = count(xp, operation.reduction, shape, keep, "float64")
    factor, cotangent = xp.ones((1,), dtype=xp.float64), work.cotangent
    if reduced:
        factor = factor if cotangent is None else numbers(xp, cotangent)
        factor, cotangent = divide(xp, factor, number, 0.0), None

    places = [*arrays[:2], keep, cotangent, elements, outputs.get(0), outputs.get(1)]
    table, alive = layout(xp, places)
    blocks = min(math.ceil(size / (_THREADS * _PER)), _MOST)
    fold = reduced and work.value
    totals = xp.empty((blocks,), dtype=xp.float64) if fold else None
    of_cotangent = real if cotangent is None else memory(cotangent).dtype
    own = types(X=dtypes[0], Y=dtypes[1], E=operation.result, C=of_cotangent)
    log_target = int(isinstance(operation.function, KLLogTarget))
    launch = kernel("pointwise", real, PER=_PER, LOG_TARGET=log_target, **own)
    job = structure(table=table, size=size, factor=address(factor), totals=address(totals))
    launch((blocks,), (_THREADS,), (job,))
    del alive  # until here
    if not fold:
        return elements, gradients
    return cast(xp, divide(xp, xp.sum(totals), number, math.nan), operation.result), gradients
