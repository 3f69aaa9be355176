"""From an operation on rows of logits and arrays to its kernel, and back to arrays."""

from __future__ import annotations

import math
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.formulas.reductions import count, divide
from kldiv.formulas.rows import JensenShannon
from kldiv.kernels.cpu import logits, quick, threads
from kldiv.kernels.cpu.passes import SIZE
from kldiv.kernels.cpu.rows import PART, PART_FIELDS
from kldiv.kernels.layout import Buffer, dtype_name, empty_like, memory, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Work

_UNIT = 1 << 16
"""Elements that make a unit of work, at least one row."""

_ENOUGH: Final = 2
"""Rows for each thread with which all of them have work."""

_LONG: Final = 8
"""Parts of rows with which threads that share them save more than it costs to start them."""


def compile_for(work: Work) -> Any:
    """Return the compiled kernel: float32 unless an array or the dtype to compute in is wider."""
    wide = work.operation.compute, *map(dtype_name, work.arrays[:2])
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
    divergence = operation.divergence
    beta = [divergence.beta] if isinstance(divergence, JensenShannon) else []
    given = layout, classes, *beta, temperatures, kept.reshape(-1), factors
    _share(kernel, given, values, bool(gradients), bool(beta), threads.number(work.threads))
    if not work.value:
        return None, list(gradients)
    result, device = getattr(xp, operation.result), arrays[0].device
    if not reduced:
        shaped = values.reshape(shape[:-1])
        return xp.astype(xp.asarray(shaped, device=device), result)[()], list(gradients)
    total = divide(np, values.sum(), number if number is None else float(number), math.nan)
    return xp.asarray(float(total), dtype=result, device=device)[()], list(gradients)


def _share(
    kernel: Any, given: Sequence[Any], values: Buffer, gradients: bool, shannon: bool, number: int
) -> None:
    """Share rows among threads: whole ones, or parts where rows are few."""
    rows, classes = values.size, given[1]
    parts = -(-classes // PART)
    # Parts whose terms are not kept are read again for gradients.
    keeps = gradients and rows * classes <= quick.LONGEST
    few = rows < number * (1 if gradients and not keeps else _ENOUGH)
    split = few and number > 1 and parts > 1 and rows * parts >= _LONG and not shannon
    blocks = rows * parts * (PART // SIZE) if split and keeps else 0
    states = np.empty((rows * parts if split else 0, PART_FIELDS))
    kept, guesses = np.empty((blocks, 3 * SIZE), np.float32), np.empty((blocks, quick.GUESSES))

    def stage(which: int, units: int, step: int = 1) -> None:
        def work(first: int, last: int) -> None:
            ranges = first * step, min(last * step, units)
            if shannon:
                kernel(*given, *ranges, values)
            else:
                kernel(which, *given, *ranges, values, states, kept, guesses)

        threads.share(work, -(-units // step), number)

    if split:
        stage(logits.STATES, rows * parts)
        stage(logits.MERGED, rows)
        if gradients:
            stage(logits.GRADIENTS, rows * parts)
    else:
        stage(logits.WHOLE, rows, max(1, _UNIT // classes))


def _numbers(array: Array) -> np.ndarray[Any, Any]:
    """Return one float64 number for each row."""
    if hasattr(array, "numpy"):
        array = array.double().numpy()
    return np.ascontiguousarray(array, dtype=np.float64).reshape(-1)
