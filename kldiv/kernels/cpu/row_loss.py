"""From an operation on rows of logits and arrays to its kernel, and back to arrays."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.formulas import divergences as formulas
from kldiv.formulas import powers
from kldiv.formulas.interpolation import Interpolated
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.policy import PolicyLoss
from kldiv.formulas.rows import RowGradient, RowLoss
from kldiv.kernels import threads
from kldiv.kernels.cpu import row, team
from kldiv.kernels.cpu.code import REALS
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.divergences import DIVERGENCES
from kldiv.kernels.cpu.memory import mover
from kldiv.kernels.cpu.rows import Rows
from kldiv.kernels.layout import arrays_of, dtype_name, step_of, words_of
from kldiv.kernels.results import RowResults, host
from kldiv.kernels.results import numbers as numbers_of

if TYPE_CHECKING:
    from kldiv.kernels.work import Found, Work

UNIT: Final = 1 << 16
"""Elements that make a unit of work, at least one row."""

_ENOUGH: Final = 2
"""Rows for each thread with which all of them have work."""

_LONG: Final = 8
"""Segments with which threads that share rows save more than it costs to start them."""


class Spelled(NamedTuple):
    """A divergence as a kernel takes it."""

    name: str
    numbers: tuple[float, ...] = ()


def spelled(divergence: Any) -> Spelled:
    """Return a divergence as a kernel takes it."""
    if isinstance(divergence, formulas.OfMixture):
        numbers = tuple(map(float, divergence.mix))
        even = "even " * (numbers[0] == 0.5)
        name = "skew" if 0.0 in numbers[2:] else "mixture"
        return Spelled(f"{even}JS" if numbers[:2] == numbers[2:] else name, numbers)
    if isinstance(divergence, formulas.Jeffreys):
        return Spelled("Jeffreys", (float(divergence.w), float(divergence.r)))
    if isinstance(divergence, powers.Alpha):
        numbers = divergence.alpha, divergence.kappa, divergence.scale
        name = {0.5: "Hellinger", 2.0: "chi2"}.get(divergence.alpha, "alpha")
        return Spelled(name, tuple(map(float, numbers)))
    if isinstance(divergence, powers.Renyi):
        of_renyi = divergence.alpha, divergence.kappa, 1.0, divergence.scale
        return Spelled("Renyi", tuple(map(float, of_renyi)))
    if isinstance(divergence, formulas.TotalVariation):
        return Spelled("total variation")
    return Spelled("KL")


@cache
def kernel(name: str, dtype: str, gradients: bool, *, wide: bool = False) -> Any:
    """Return the compiled function for a divergence, a dtype, and gradients or none."""
    divergence = DIVERGENCES[name]()
    writer = partial(Rows, real=REALS[dtype], divergence=divergence, gradients=gradients, wide=wide)
    more = "-wide" * wide + "-gradients" * gradients
    return compiled(f"{name}-{dtype}{more}", 6, writer)


def compile_for(work: Work) -> Any:
    """Return the compiled kernel: float32 unless an array or the dtype to compute in is wider."""
    operation = work.operation
    wide = operation.compute, *map(dtype_name, work.arrays[: operation.with_classes])
    dtype = "float64" if "float64" in wide else "float32"
    names: tuple[str, ...] = ("labels",)
    if isinstance(operation, PolicyLoss):
        names = ("policy",)
    elif not isinstance(operation, LabelLoss):
        divergence = operation.divergence
        between = isinstance(divergence, Interpolated)
        names = ("KL", "JS") if between else (spelled(divergence).name,)
    return dtype, *(kernel(name, dtype, bool(work.gradients)) for name in names)


def run(work: Work, kernel: Any) -> Found:
    """Return the value, if it is wanted, and the gradients that are."""
    arrays, results, operation = work.arrays, RowResults(work), work.operation
    *shape, classes = arrays[0].shape
    outputs, values, number = results.outputs, results.values, math.prod(shape)
    factors, temperatures = results.factors, results.temperatures
    factors = factors.reshape(number, -1) if factors.size > 1 else factors
    chosen, labelled = slice(None), isinstance(operation, PolicyLoss)
    if isinstance(operation, LabelLoss):
        # The kernel has both; of rows without labels only the second counts.
        labelled, chosen = operation.labelled, slice(not operation.labelled, 1 + operation.entropic)
        of_chosen = factors
        factors, values = (np.zeros((number, 2)) for _ in range(2))
        factors[:, chosen] = of_chosen
    frame = {
        "classes": classes,
        "temperatures": temperatures,
        "temperature_step": step_of(temperatures),
        "keep": results.keep,
        "factors": factors,
        "factor_step": step_of(factors),
        "values": values,
        "labels": host(arrays[operation.differentiable], "int64") if labelled else None,
    }
    for part in _parts(work, number):
        places = (0, 1) if part.exchanged else (1, 0)
        logits = [arrays[place] if place < operation.with_classes else None for place in places]
        slopes = [outputs.get(place) for place in places]
        own = {
            **arrays_of(row.ARRAYS, logits, slopes, kernel[0], mover, whole_rows=True),
            "wants_t": slopes[0] is not None,
            "wants_s": slopes[1] is not None,
            "numbers": part.numbers,
            "number_step": step_of(part.numbers),
            "order": part.order,
        }
        rows = number if part.order is None else part.order.size
        _share(work, (kernel[0], kernel[part.kernel]), frame | own, rows)
    if isinstance(operation, LabelLoss):
        results.values[:] = values[:, chosen].reshape(-1)
    elif isinstance(operation.divergence, powers.Renyi):
        _leave_to_formulas(work, results)
    return results.of_values()


def _leave_to_formulas(work: Work, results: RowResults) -> None:
    """Compute by the formulas the rows whose value is NaN."""
    operation, xp, shape = work.operation, work.xp, results.shape
    left = np.isnan(results.values.reshape(shape))
    if results.keep is not None:
        left &= np.broadcast_to(results.keep, shape)
    if not left.any():
        return
    some = xp.asarray(left)
    arrays = [array[some] for array in work.arrays[: operation.differentiable]]
    factors = np.broadcast_to(results.factors, left.size)[left.reshape(-1)]
    weight = xp.asarray(factors, dtype=getattr(xp, operation.compute))
    with np.errstate(all="ignore"):
        values = operation.settings(RowLoss).elements(xp, *arrays)
        results.values[left.reshape(-1)] = numbers_of(values)
        for index, gradient in results.outputs.items():
            slope = operation.settings(RowGradient, index=index)
            found = slope.elements(xp, *arrays[:2], weight, *arrays[2:])
            gradient[some] = xp.astype(found, gradient.dtype)


class _Part(NamedTuple):
    """Rows that one kernel computes."""

    kernel: int
    """Its place behind the dtype."""
    numbers: np.ndarray[Any, Any]
    """Of the divergence, of all rows or of each."""
    exchanged: bool = False
    order: np.ndarray[Any, Any] | None = None
    """The rows; None: all."""


def _parts(work: Work, size: int) -> list[_Part]:
    """Return the rows that a kernel computes; those between the directions of KL by three."""
    operation = work.operation
    if isinstance(operation, LabelLoss | PolicyLoss):
        return [_Part(1, np.zeros((1, 1)), exchanged=True)]  # whose own logits come first
    if not isinstance(operation.divergence, Interpolated):
        return [_Part(1, np.array([[*spelled(operation.divergence).numbers, 0.0]]))]
    beta = np.broadcast_to(numbers_of(work.arrays[operation.differentiable]), (size,))
    inside = np.where((beta >= formulas.LEAST) & (beta < 1), beta, np.nan)
    numbers = np.stack([inside, 1.0 - inside] * 2, axis=-1)
    kinds = (1, False, beta == 0), (1, True, beta == 1), (2, False, (beta != 0) & (beta != 1))
    return [
        _Part(kernel, numbers, exchanged, np.flatnonzero(chosen))
        for kernel, exchanged, chosen in kinds
        if chosen.any()
    ]


def _share(work: Work, kernel: tuple[str, Any], frame: dict[str, Any], rows: int) -> None:
    """Share rows among threads: whole ones, or segments where rows are few."""
    (dtype, function), classes, workers = kernel, frame["classes"], threads.number(work.threads)
    segments = -(-classes // row.SEGMENT)
    shared = rows < workers * _ENOUGH and workers > 1 < segments and rows * segments >= _LONG
    real, size = REALS[dtype], rows * segments if shared else 0
    width = min(row.SEGMENT, -(-classes // real.lanes) * real.lanes)
    own = {
        "segments": segments,
        "shared": shared,
        "width": width,
        "parts": np.empty((size, row.PART)),
        "kept": np.empty((size, row.KEPT * width), dtype),
    }
    words = words_of(row.FRAME, frame | own)
    copies = any(frame[f"move_{name}"] for name in row.ARRAYS)
    room = row.scratch_size(segments, width, real, buffers=copies)
    last = row.GRADIENTS if work.gradients else row.TEACHER
    if shared:
        for stage in range(last + 1):
            team.launch(function, words, room, size, work.threads, stage, stage)
    else:
        step = max(1, UNIT // classes)
        team.launch(function, words, room, rows, work.threads, 0, last, step=step)
