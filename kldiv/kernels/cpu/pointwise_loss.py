"""From a pointwise operation and arrays to its kernel, and back to arrays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.pointwise import KLLogTarget
from kldiv.formulas.reductions import count, divide
from kldiv.kernels.cpu import pointwise, threads
from kldiv.kernels.layout import dtype_name, empty_like, memory, table

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.kernels.work import Work


def compile_for(work: Work) -> Any:
    """Return the compiled kernel: float32 unless an array or the result is wider."""
    wide = work.operation.result, *map(dtype_name, work.arrays)
    return pointwise.float64() if "float64" in wide else pointwise.float32()


def run(work: Work, kernel: Any) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    keep, shape = operation.keep(arrays), arrays[0].shape
    number = count(xp, operation.reduction, shape, keep, "float64")
    reduced = operation.reduction != "none"

    result = getattr(xp, operation.result)
    elements = xp.empty_like(arrays[0], dtype=result) if work.value and not reduced else None
    gradients = work.into or [empty_like(xp, arrays[index]) for index in work.gradients]
    weight, cotangent = 1.0, None
    if reduced:
        upstream = 1.0 if work.cotangent is None else float(work.cotangent)
        weight = float(divide(np, np.float64(upstream), number, 0.0))
    else:
        cotangent = work.cotangent

    outputs = dict(zip(work.gradients, gradients, strict=True))
    rows = [*arrays[:2], keep, cotangent, elements, outputs.get(0), outputs.get(1)]
    layout = table([None if array is None else memory(array) for array in rows])
    size = math.prod(shape)
    units = -(-size // pointwise.UNIT)
    totals = np.empty(units)
    log_target = isinstance(operation.function, KLLogTarget)
    fold = reduced and work.value

    def part(first: int, last: int) -> None:
        kernel(layout, log_target, fold, weight, size, first, last, totals)

    threads.share(part, units, threads.number(work.threads))
    value = elements
    if fold:
        total = divide(np, np.float64(_sum(totals)), number, math.nan)
        value = xp.asarray(float(total), dtype=result, device=arrays[0].device)[()]
    return value, list(gradients)


def _sum(totals: np.ndarray[Any, Any]) -> float:
    """Return the sum, rounded once: whatever the order, it is the same."""
    if np.isfinite(totals).all():
        return math.fsum(totals)
    return float(totals.sum())
