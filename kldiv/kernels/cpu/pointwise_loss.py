"""From a pointwise operation and arrays to its kernel, and back to arrays."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.pointwise import KLLogTarget
from kldiv.formulas.reductions import count, divide
from kldiv.kernels.cpu import pointwise, threads
from kldiv.kernels.cpu.code import REALS
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.memory import Layout
from kldiv.kernels.layout import dtype_name, empty_like

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.kernels.work import Work


@cache
def kernel(dtype: str, log_target: bool, outputs: bool) -> Any:
    """Return the compiled function for a dtype, a kind of target, and other results or none."""
    writer = partial(pointwise.Elements, real=REALS[dtype], log_target=log_target, outputs=outputs)
    name = f"kl_div{'-log_target' * log_target}-{dtype}{'-elements' * outputs}"
    return compiled(name, 4, writer)


def compile_for(work: Work) -> Any:
    """Return the compiled kernel: float32 unless an array or the result is wider."""
    wide = work.operation.result, *map(dtype_name, work.arrays)
    dtype = "float64" if "float64" in wide else "float32"
    log_target = isinstance(work.operation.function, KLLogTarget)
    outputs = bool(work.gradients) or work.operation.reduction == "none"
    return dtype, kernel(dtype, log_target, outputs)


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
    dtype, function = kernel
    inputs = [*arrays[:2], keep, cotangent]
    layout = Layout(inputs, [elements, outputs.get(0), outputs.get(1)], dtype, whole_rows=False)
    size = math.prod(shape)
    units = -(-size // pointwise.UNIT)
    totals, weights = np.zeros(units), np.array([weight])
    fold = reduced and work.value
    names = (*pointwise.INPUTS, *pointwise.OUTPUTS)
    frame = {
        "size": size,
        "reduce": fold,
        "weight": weights.ctypes.data,
        "table": layout.table.ctypes.data,
        "totals": totals.ctypes.data,
        **dict(zip(names, layout.addresses, strict=True)),
        **dict(zip([f"move_{name}" for name in names], layout.movers, strict=True)),
    }
    words = np.array([int(frame[name]) for name in pointwise.FRAME])
    room = pointwise.scratch_size(REALS[dtype])

    def part(first: int, last: int) -> None:
        scratch = np.empty(room, np.uint8)
        function(words.ctypes.data, scratch.ctypes.data, first, last)

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
