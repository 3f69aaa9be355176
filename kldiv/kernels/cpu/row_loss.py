"""From an operation on rows of logits and arrays to its kernel, and back to arrays."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.reductions import count, divide
from kldiv.formulas.rows import JensenShannon
from kldiv.kernels.cpu import threads
from kldiv.kernels.cpu.layout import dtype_name, empty_like, memory, table

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.kernels import Work

_UNIT = 1 << 16
"""Elements that make a unit of work, at least one row."""


def compile_for(work: Work) -> Any:
    """Return the compiled kernel: float32 unless an array or the result is wider."""
    wide = work.operation.result, *map(dtype_name, work.arrays[:2])
    shannon = isinstance(work.operation.divergence, JensenShannon)
    module = import_module(f"kldiv.kernels.cpu.{'jensen_shannon' if shannon else 'logits'}")
    return module.float64() if "float64" in wide else module.float32()


def run(work: Work, kernel: Any) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    keep, shape = operation.keep(arrays), tuple(arrays[0].shape)
    rows, classes = math.prod(shape[:-1]), shape[-1]
    number = count(xp, operation.reduction, shape[:-1], keep, "float64")
    reduced = operation.reduction != "none"

    upstream = np.ones(1) if work.cotangent is None else _numbers(work.cotangent)
    factors = divide(np, upstream, None if number is None else float(number), 0.0)
    temperature = operation.temperature
    temperatures = np.array([temperature]) if temperature else _numbers(arrays[2])
    kept = np.empty(0, np.uint8) if keep is None else np.ascontiguousarray(keep, dtype=np.uint8)

    gradients = work.into or [empty_like(xp, arrays[index]) for index in work.gradients]
    outputs = dict(zip(work.gradients, gradients, strict=True))
    places = [*arrays[:2], outputs.get(0), outputs.get(1)]
    layout = table([None if a is None else memory(a) for a in places], whole_rows=True)
    values = np.empty(rows)
    step = max(1, _UNIT // classes)

    divergence = operation.divergence
    beta = [divergence.beta] if isinstance(divergence, JensenShannon) else []
    constants = layout, classes, *beta, temperatures, kept.reshape(-1), factors

    def part(first: int, last: int) -> None:
        kernel(*constants, first * step, min(last * step, rows), values)

    threads.share(part, -(-rows // step), work.threads)
    if not work.value:
        return None, list(gradients)
    result, device = getattr(xp, operation.result), arrays[0].device
    if not reduced:
        shaped = values.reshape(shape[:-1])
        return xp.astype(xp.asarray(shaped, device=device), result)[()], list(gradients)
    total = divide(np, values.sum(), number if number is None else float(number), math.nan)
    return xp.asarray(float(total), dtype=result, device=device)[()], list(gradients)


def _numbers(array: Array) -> np.ndarray[Any, Any]:
    """Return one float64 number for each row."""
    if hasattr(array, "numpy"):
        array = array.double().numpy()
    return np.ascontiguousarray(array, dtype=np.float64).reshape(-1)
