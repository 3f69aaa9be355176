"""From an operation on sparse teachers and arrays to its kernel, and back to arrays.

The kernel reads the student; what follows are rows of K + 1 classes, by the formulas in float64.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.reductions import count, divide
from kldiv.formulas.sparse import BUCKET, Read, entries_of
from kldiv.kernels.cpu import others, threads
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.memory import Layout
from kldiv.kernels.cpu.row_loss import heats_of
from kldiv.kernels.layout import dtype_name, empty_like

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.kernels.work import Work

Floats = np.ndarray[Any, Any]


def refusal(work: Work) -> str | None:
    """Return why there is no kernel for such work, or None where there is."""
    operation, arrays = work.operation, work.arrays
    if any(index >= 2 + operation.has_rest for index in work.gradients):
        return "there is no fused gradient in a temperature"
    if operation.tail != BUCKET:
        return "rows of K classes are read by the formulas"
    if operation.compute != "float32":
        return "there is a fused form in float32 only"
    if 0 in arrays[0].shape:
        return "there are no elements"
    if not all(isinstance(a, np.ndarray) or hasattr(a, "data_ptr") for a in arrays):
        return "there is a fused form for arrays of NumPy and PyTorch only"
    return None


@cache
def kernel() -> Any:
    """Return the compiled function."""
    return compiled("others-float32", 4, others.write)


def compile_for(work: Work) -> Any:  # noqa: ARG001 - as of other kernels
    """Return the compiled kernel."""
    return kernel()


def run(work: Work, kernel: Any) -> tuple[Array | None, list[Array]]:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    shape, classes = tuple(arrays[0].shape[:-1]), arrays[0].shape[-1]
    rows, number_of_threads = math.prod(shape), threads.number(work.threads)
    a = _host(arrays[1], np.float64).reshape(rows, -1)
    place = 2
    mass = temperatures = None
    if operation.has_rest:
        mass, place = _host(arrays[2], np.float64).reshape(rows, 1), 3
    if operation.temperature is None:
        temperatures = _host(arrays[place], np.float64).reshape(rows, 1)
    indices = _host(arrays[operation.differentiable], np.int64).reshape(rows, -1)
    keep = operation.keep(arrays)
    kept = None if keep is None else _host(keep, np.bool_).reshape(rows)
    entries = entries_of(np, a, indices, classes)
    temperature: Any = operation.temperature if temperatures is None else temperatures

    wants = 0 in work.gradients
    gradient = buffer = None
    if wants:
        gradient = work.into[work.gradients.index(0)] if work.into else empty_like(xp, arrays[0])
        buffer = _float32_of(gradient, rows, classes)
    read = _read(kernel, arrays[0], entries, temperature, buffer, number_of_threads)
    number = count(xp, operation.reduction, shape, keep, "float64")
    number = None if number is None else float(number)
    results: dict[int, Array] = {}
    with np.errstate(all="ignore"):
        small = operation.rows(np, classes, mass, temperature, entries, read)
        if work.gradients:
            upstream = np.ones(1) if work.cotangent is None else _host(work.cotangent, np.float64)
            factors = np.broadcast_to(divide(np, upstream.reshape(-1, 1), number, 0.0), (rows, 1))
            if kept is not None:
                factors = np.where(kept[:, None], factors, 0.0)
        if wants:
            own, last = operation.in_given(np, entries, small, temperature)
            rate = _times(factors, last / np.where(read.weight > 0, read.weight, 1.0))
            _finish(buffer, entries, _times(factors, own), rate, number_of_threads)
            results[0] = _delivered(xp, gradient, buffer)
        if set(work.gradients) - {0}:
            found = operation.in_teacher(np, entries, small)
            for index in set(work.gradients) - {0}:
                each = _times(factors, found[index - 1]).reshape(arrays[index].shape)
                dtype, device = arrays[index].dtype, arrays[index].device
                results[index] = xp.astype(xp.asarray(each, device=device), dtype)
        gradients = [results[index] for index in work.gradients]
        if not work.value:
            return None, gradients
        values = operation.divergence.of_rows(np, small.s, small.t, small.heat)[:, 0]
        if kept is not None:
            values = np.where(kept, values, 0.0)
    dtype, device = getattr(xp, operation.result), arrays[0].device
    if operation.reduction == "none":
        return xp.astype(xp.asarray(values.reshape(shape), device=device), dtype)[()], gradients
    total = divide(np, values.sum(), number, math.nan)
    return xp.asarray(float(total), dtype=dtype, device=device)[()], gradients


def _read(
    kernel: Any,
    student: Array,
    entries: Any,
    temperature: Any,
    buffer: Floats | None,
    number_of_threads: int,
) -> Read:
    """Read the rows of the student."""
    rows, width = entries.places.shape
    classes = student.shape[-1]
    places = np.ascontiguousarray(np.where(entries.some, entries.places, classes))
    heats = heats_of(np.asarray(temperature, np.float64).reshape(-1), "float32")
    layout = Layout([student], [], "float32", whole_rows=True)
    own, highest, weights = np.empty((rows, width)), np.empty((rows, 1)), np.empty((rows, 1))
    frame = {
        "classes": classes,
        "entries": width,
        "student": layout.addresses[0],
        "move_student": layout.movers[0],
        "table": layout.table.ctypes.data,
        "places": places.ctypes.data,
        "heats": heats.ctypes.data,
        "heat_step": heats.strides[0] if len(heats) > 1 else 0,
        "own": own.ctypes.data,
        "highest": highest.ctypes.data,
        "weights": weights.ctypes.data,
        "out": 0 if buffer is None else buffer.ctypes.data,
    }
    words = np.array([int(frame[name]) for name in others.FRAME])

    def part(first: int, last: int) -> None:
        room = np.empty(others.scratch_size(classes) + 64, np.uint8)
        kernel(words.ctypes.data, -(-room.ctypes.data // 64) * 64, first, last)

    threads.share(part, rows, number_of_threads)
    return Read(own, highest, weights)


def _finish(
    buffer: Floats, entries: Any, own: Floats, rate: Floats, number_of_threads: int
) -> None:
    """Make gradients of the weights: times a number per row, and the given classes' own."""
    own = np.where(entries.some, own, np.take_along_axis(buffer, entries.places, -1) * rate)
    rate, own = (each.astype(np.float32) for each in (rate, own))

    def part(first: int, last: int) -> None:
        with np.errstate(all="ignore"):
            own_rows = buffer[first:last]
            np.multiply(own_rows, rate[first:last], out=own_rows)
            np.put_along_axis(own_rows, entries.places[first:last], own[first:last], axis=-1)

    threads.share(part, len(buffer), number_of_threads)


def _times(factors: Floats, values: Floats) -> Floats:
    return np.where(factors == 0, 0.0, factors * values)


def _float32_of(gradient: Array, rows: int, classes: int) -> Floats:
    """Return the gradient's memory, or a buffer where that is another dtype's or order's."""
    if dtype_name(gradient) == "float32":
        own = gradient.numpy() if hasattr(gradient, "numpy") else gradient
        if own.flags.c_contiguous:
            found: Floats = own.reshape(rows, classes)
            return found
    return np.empty((rows, classes), np.float32)


def _delivered(xp: Any, gradient: Array, buffer: Floats) -> Array:
    own = gradient.data_ptr() if hasattr(gradient, "data_ptr") else gradient.ctypes.data
    if own != buffer.ctypes.data:
        gradient[...] = xp.astype(xp.asarray(buffer.reshape(gradient.shape)), gradient.dtype)
    return gradient


def _host(array: Array, dtype: Any) -> Floats:
    """Return an array as one of NumPy."""
    if hasattr(array, "data_ptr"):
        array = array.detach()
        array = (array.double() if dtype is np.float64 else array).numpy()
    return np.ascontiguousarray(array, dtype=dtype)
