"""From a measure of all pairs of rows to its kernel, and back to an array."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.kernels import threads
from kldiv.kernels.cpu import pairs
from kldiv.kernels.cpu.code import REALS
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.layout import words_of
from kldiv.kernels.results import host

if TYPE_CHECKING:
    from kldiv.kernels.work import Found, Work

    Rows = np.ndarray[Any, Any]

_UNITS: Final = {"float32": (2.0**40, 2.0**60), "float64": (2.0**80, 2.0**900)}
"""What probabilities are multiplied by, so that none is subnormal, and the largest that are."""


def refusal(work: Work) -> str | None:
    """Return why there is no kernel for such work, or None where there is."""
    operation, arrays = work.operation, work.arrays
    if work.gradients or operation.name not in pairs.TERMS:
        return f"there is no kernel of pairs for {operation.name}, or none of its gradient"
    return "there are no pairs" if 0 in operation.shape(arrays) else None


@cache
def kernel(name: str, dtype: str) -> Any:
    """Return the compiled function of a measure, for a dtype."""
    writer = partial(pairs.write, real=REALS[dtype], measure=name)
    return compiled(f"pairs-{name}-{dtype}", 3, writer)


def compile_for(work: Work) -> Any:
    """Return the compiled kernel."""
    return kernel(work.operation.name, work.operation.compute)


def run(work: Work, kernel: Any) -> Found:
    """Return the measure of all pairs."""
    operation, xp = work.operation, work.xp
    dtype = operation.compute
    given = [host(array, dtype) for array in work.arrays]
    unit, largest = _UNITS[dtype] if operation.name in pairs.BY_BITS else (1.0, _UNITS[dtype][1])
    usable = [np.all((rows >= 0) & (rows <= largest), axis=-1) for rows in given]
    first, second = (
        _padded(rows, own, unit, REALS[dtype].lanes)
        for rows, own in zip(given, usable, strict=True)
    )
    values = np.empty((len(first), len(second)))
    weights = getattr(operation.measure, "weights", None)
    alpha = getattr(operation.measure, "alpha", 0.0)
    numbers = np.array(weights or (alpha, 1.0 - alpha), np.float64)
    frame = {
        "classes": first.shape[-1],
        "others": len(second),
        "symmetric": operation.symmetric,
        "first": first,
        "second": second,
        "numbers": numbers,
        "values": values,
    }
    words = words_of(pairs.FRAME, frame)

    def units(start: int, stop: int) -> None:
        ends = start * pairs.TOGETHER, min(stop * pairs.TOGETHER, len(first))
        kernel(words.ctypes.data, *ends)

    threads.share(units, -(-len(first) // pairs.TOGETHER), threads.number(work.threads))
    values /= unit * operation.unit
    found = operation.mirrored(np, values) if operation.symmetric else values
    with np.errstate(all="ignore"):
        _others(work, given, usable, found)
    result = xp.asarray(found, device=work.arrays[0].device)
    return xp.astype(result, getattr(xp, operation.result)), []


def _others(work: Work, given: list[Rows], usable: list[Rows], found: Rows) -> None:
    """Compute by the formulas the pairs of rows that the kernel does not take."""
    rows, columns = (np.flatnonzero(~own) for own in usable)
    for row in rows:
        found[row] = work.operation.elements(np, given[0][row : row + 1], given[1])[0]
    for column in columns:
        own = given[1][column : column + 1]
        found[:, column] = work.operation.elements(np, given[0], own)[:, 0]


def _padded(rows: Rows, usable: Rows, unit: float, lanes: int) -> Rows:
    """Return rows in a small unit, with zeros up to whole vectors; rows not usable are zeros."""
    size = -(-rows.shape[-1] // lanes) * lanes
    found = np.zeros((len(rows), size), rows.dtype)
    found[:, : rows.shape[-1]] = rows * rows.dtype.type(unit)
    found[~usable] = 0.0
    return found
