"""From an operation on rows of logits and arrays to its kernel, and back to arrays."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.formulas import divergences as formulas
from kldiv.formulas.numbers import LN2, LN2_LOW, LOG2_E
from kldiv.formulas.reductions import count, divide
from kldiv.kernels.cpu import rows, threads
from kldiv.kernels.cpu.code import REALS
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.divergences import DIVERGENCES
from kldiv.kernels.cpu.memory import Layout
from kldiv.kernels.layout import dtype_name, empty_like

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.kernels.work import Work

_UNIT: Final = 1 << 16
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
        shannon = isinstance(divergence, formulas.JensenShannon)
        return Spelled("JS" if shannon else "mixture", tuple(map(float, divergence.mix)))
    if isinstance(divergence, formulas.Jeffreys):
        return Spelled("Jeffreys", (float(divergence.w), float(divergence.r)))
    return Spelled("KL")


@cache
def kernel(name: str, dtype: str, gradients: bool) -> Any:
    """Return the compiled function for a divergence, a dtype, and gradients or none."""
    writer = partial(
        rows.Rows, real=REALS[dtype], divergence=DIVERGENCES[name](), gradients=gradients
    )
    more = "-gradients" if gradients else ""
    return compiled(f"{name}-{dtype}{more}", 6, writer)


def compile_for(work: Work) -> Any:
    """Return the compiled kernel: float32 unless an array or the dtype to compute in is wider."""
    wide = work.operation.compute, *map(dtype_name, work.arrays[:2])
    dtype = "float64" if "float64" in wide else "float32"
    name = spelled(work.operation.divergence).name
    return dtype, kernel(name, dtype, bool(work.gradients))


def run(work: Work, kernel: Any) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    keep, shape = operation.keep(arrays), tuple(arrays[0].shape)
    number = count(xp, operation.reduction, shape[:-1], keep, "float64")
    reduced = operation.reduction != "none"
    upstream = np.ones(1) if work.cotangent is None else _numbers(work.cotangent)
    factors = divide(np, upstream, None if number is None else float(number), 0.0)
    factors = np.ascontiguousarray(factors, np.float64).reshape(-1)
    temperature = operation.temperature
    temperatures = np.array([temperature]) if temperature else _numbers(arrays[2])
    kept = None if keep is None else np.ascontiguousarray(keep, dtype=np.uint8)

    gradients = work.into or [empty_like(xp, arrays[index]) for index in work.gradients]
    outputs = dict(zip(work.gradients, gradients, strict=True))
    dtype = kernel[0]
    layout = Layout(arrays[:2], [outputs.get(0), outputs.get(1)], dtype, whole_rows=True)
    values, heats = np.empty(math.prod(shape[:-1])), heats_of(temperatures, dtype)
    numbers = np.array([*spelled(operation.divergence).numbers, 0.0])
    frame = {
        **dict(zip(rows.ARRAYS, layout.addresses, strict=True)),
        **dict(zip([f"move_{name}" for name in rows.ARRAYS], layout.movers, strict=True)),
        "classes": shape[-1],
        "wants_s": 0 in outputs,
        "wants_t": 1 in outputs,
        "table": layout.table.ctypes.data,
        "heats": heats.ctypes.data,
        "heat_step": heats.strides[0] if len(heats) > 1 else 0,
        "keep": 0 if kept is None else kept.ctypes.data,
        "factors": factors.ctypes.data,
        "factor_step": 8 if factors.size > 1 else 0,
        "numbers": numbers.ctypes.data,
        "values": values.ctypes.data,
    }
    _share(kernel, layout, frame, values.size, bool(gradients), threads.number(work.threads))
    if not work.value:
        return None, list(gradients)
    result, device = getattr(xp, operation.result), arrays[0].device
    if not reduced:
        shaped = values.reshape(shape[:-1])
        return xp.astype(xp.asarray(shaped, device=device), result)[()], list(gradients)
    total = divide(np, values.sum(), number if number is None else float(number), math.nan)
    return xp.asarray(float(total), dtype=result, device=device)[()], list(gradients)


def _share(
    kernel: tuple[str, Any],
    layout: Layout,
    frame: dict[str, Any],
    rows_in_all: int,
    gradients: bool,
    number: int,
) -> None:
    """Share rows among threads: whole ones, or segments where rows are few."""
    dtype, function = kernel
    classes = frame["classes"]
    segments = -(-classes // rows.SEGMENT)
    shared = rows_in_all < number * _ENOUGH and number > 1
    shared = shared and segments > 1 and rows_in_all * segments >= _LONG
    parts = np.empty((rows_in_all * segments if shared else 0, rows.PART))
    real = REALS[dtype]
    width = min(rows.SEGMENT, -(-classes // real.lanes) * real.lanes)
    kept = np.empty((len(parts), 4 * width), dtype)
    own = {
        "segments": segments,
        "shared": shared,
        "parts": parts.ctypes.data,
        "width": width,
        "weights": kept.ctypes.data,
    }
    words = np.array([int((frame | own)[name]) for name in rows.FRAME])
    buffers = any(layout.movers)
    room = rows.scratch_size(segments, width, real, buffers=buffers)

    def stage(first_stage: int, last_stage: int, units: int, step: int) -> None:
        def work(first: int, last: int) -> None:
            scratch = np.empty(room + 64, np.uint8)
            aligned = -(-scratch.ctypes.data // 64) * 64
            ends = first * step, min(last * step, units)
            function(words.ctypes.data, aligned, *ends, first_stage, last_stage)

        threads.share(work, -(-units // step), number)

    last = rows.GRADIENTS if gradients else rows.TEACHER
    if shared:
        for each in range(last + 1):
            stage(each, each, rows_in_all * segments, 1)
    else:
        stage(0, last, rows_in_all, max(1, _UNIT // classes))


def heats_of(temperatures: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Return what kernels take of temperatures, a row each."""
    high = temperatures * LN2
    low = _product_rest(temperatures, LN2, high) + temperatures * LN2_LOW
    heads = {"float64": high - 0.0, "float32": high - 0.0}
    for name, bits in (("float64", 12), ("float32", 38)):  # leaves 41 and 15 bits
        split = high * (2.0**bits + 1.0)
        heads[name] = split - (split - high)
    own, wide = heads[dtype], heads["float64"]
    columns = [
        temperatures,
        1.0 / temperatures,
        LOG2_E / temperatures,
        own,
        (high - own) + low,
        wide,
        (high - wide) + low,
    ]
    return np.ascontiguousarray(np.stack(columns, axis=-1))


def _product_rest(a: np.ndarray[Any, Any], b: float, product: Any) -> np.ndarray[Any, Any]:
    """Return a·b less its rounding."""
    halves = []
    for each in (a, np.float64(b)):
        split = each * (2.0**27 + 1.0)
        head = split - (split - each)
        halves.append((head, each - head))
    (a_high, a_low), (b_high, b_low) = halves
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _numbers(array: Array) -> np.ndarray[Any, Any]:
    """Return one float64 number for each row."""
    if hasattr(array, "numpy"):
        array = array.double().numpy()
    return np.ascontiguousarray(array, dtype=np.float64).reshape(-1)
