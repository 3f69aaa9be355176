"""From a pointwise operation and arrays to its kernel, and back to arrays."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.pointwise import KLLogTarget
from kldiv.kernels.cpu import pointwise, team
from kldiv.kernels.cpu.code import REALS
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.memory import mover
from kldiv.kernels.layout import arrays_of, dtype_name, words_of
from kldiv.kernels.results import ElementResults

if TYPE_CHECKING:
    from kldiv.kernels.work import Found, Work


@cache
def kernel(dtype: str, log_target: bool, outputs: bool) -> Any:
    """Return the compiled function for a dtype and a kind of target, and its bytes of scratch.

    With ``outputs`` it has other results than the sum.
    """
    writer = partial(pointwise.Elements, real=REALS[dtype], log_target=log_target, outputs=outputs)
    name = f"kl_div{'-log_target' * log_target}-{dtype}{'-elements' * outputs}"
    return compiled(name, 4, writer), pointwise.scratch_size(REALS[dtype])


def compile_for(work: Work) -> Any:
    """Return the compiled kernel: float32 unless an array or the result is wider."""
    wide = work.operation.result, *map(dtype_name, work.arrays)
    dtype = "float64" if "float64" in wide else "float32"
    log_target = isinstance(work.operation.function, KLLogTarget)
    outputs = bool(work.gradients) or work.operation.reduction == "none"
    return dtype, *kernel(dtype, log_target, outputs)


def run(work: Work, kernel: Any) -> Found:
    """Return the value, if it is wanted, and the gradients that are."""
    arrays, results = work.arrays, ElementResults(work)
    outputs, weight = results.outputs, results.weight
    dtype, function, scratch_size = kernel
    inputs = [*arrays[:2], results.keep, results.cotangent]
    written = [results.elements, outputs.get(0), outputs.get(1)]
    size = math.prod(results.shape)
    units = -(-size // pointwise.UNIT)
    totals, weights = np.zeros(units), np.array([weight])
    frame = {
        "size": size,
        "reduce": results.reduced and work.value,
        "weight": weights,
        "totals": totals,
        **arrays_of(pointwise.ARRAYS, inputs, written, dtype, mover, whole_rows=False),
    }
    words = words_of(pointwise.FRAME, frame)
    team.launch(function, words, scratch_size, units, work.threads)
    return results.of_totals(totals)
