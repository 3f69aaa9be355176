"""From an operation on sparse teachers and arrays to its kernel, and back to arrays.

The kernel reads the student; rows of K + 1 classes follow, by the formulas in float64.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.blocks import slices
from kldiv.formulas.divergences import STUDENT, TEACHER, VALUE
from kldiv.formulas.sparse import BUCKET, Entries, Read, entries_of
from kldiv.kernels import threads
from kldiv.kernels.cpu import others
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.memory import mover
from kldiv.kernels.cpu.row_loss import heats_of
from kldiv.kernels.layout import Layout, dtype_name, memory
from kldiv.kernels.results import RowResults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Found, Work

Floats = np.ndarray[Any, Any]

_BLOCK = 1 << 24
"""Elements read before the formulas turn to their rows, whose fixed cost is that of 10⁵."""


def refusal(work: Work) -> str | None:
    """Return why there is no kernel for such work, or None where there is."""
    operation, arrays = work.operation, work.arrays
    if any(index >= 2 + operation.has_rest for index in work.gradients):
        return "there is no fused gradient in a temperature"
    if operation.tail != BUCKET:
        return "rows of K classes are read by the formulas"
    if "float64" in {operation.compute, *map(dtype_name, arrays[:2])}:
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


def compile_for(work: Work) -> Any:
    """Return the compiled kernel."""
    return kernel()


def run(work: Work, kernel: Any) -> Found:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, arrays, results = work.operation, work.arrays, RowResults(work)
    classes, number, workers = (
        arrays[0].shape[-1],
        len(results.values),
        threads.number(work.threads),
    )
    per_row = _of_rows(operation, arrays, number)
    entries = entries_of(np, per_row.pop("a"), per_row.pop("indices"), classes)
    keep = per_row.pop("keep", np.ones((number, 1), np.bool_))
    factors = np.where(keep, results.factors[:, None], 0.0)
    buffer = _float32_of(results.outputs[0], number, classes) if 0 in work.gradients else None
    heats = per_row["temperature"] if operation.temperature is None else operation.temperature
    reader = _Reader(kernel, arrays[0], entries, np.asarray(heats, np.float64), buffer)
    values = np.empty((number, 1))
    teacher = {
        index: np.empty((number, arrays[index].shape[-1] if index == 1 else 1))
        for index in set(work.gradients) - {0}
    }
    wanted = [VALUE] * work.value + [STUDENT] * (buffer is not None) + [TEACHER] * bool(teacher)
    blocks = slices(number, max(1, min(_BLOCK // classes, -(-number // workers))))

    def compute(first: int, last: int) -> None:
        with np.errstate(all="ignore"):
            for block in blocks[first:last]:
                read = reader.read(block)
                some = Entries(*(each[block] for each in entries))
                own_rows = {name: each[block] for name, each in per_row.items()}
                heat = own_rows.get("temperature", operation.temperature)
                rows = operation.rows(np, classes, own_rows.get("mass"), heat, some, read)
                bound = operation
                if "beta" in own_rows:
                    record = operation.divergence.bound(np, own_rows["beta"])
                    bound = replace(operation, divergence=record)
                known = bound.block(np, rows, *wanted)
                if work.value:
                    values[block] = bound.divergence.value(np, known.known)
                if buffer is not None:
                    own, others_slope = bound.in_given(np, some, rows, heat, known)
                    rate = others_slope / np.where(read.weight > 0, read.weight, 1.0)
                    own, rate = (_times(factors[block], each) for each in (own, rate))
                    _finish(buffer[block], some, own, rate)
                if teacher:
                    found = bound.in_teacher(np, some, rows, known)
                    for index, each in teacher.items():
                        each[block] = _times(factors[block], found[index - 1])

    threads.share(compute, len(blocks), workers)
    results.values[:] = np.where(keep, values, 0.0)[:, 0]
    for index, each in teacher.items():
        _deliver(work.xp, results.outputs[index], each)
    if buffer is not None:
        buffer[~keep[:, 0]] = 0.0  # a row that is dropped may hold NaN
        _deliver(work.xp, results.outputs[0], buffer)
    return results.of_values()


def _of_rows(operation: Any, arrays: Sequence[Array], number: int) -> dict[str, Floats]:
    """Return all but the student as arrays of NumPy, by name, a row each."""
    names = ["a"]
    names += ["mass"] * operation.has_rest + ["temperature"] * (operation.temperature is None)
    names += ["beta"] * operation.divergence.parameters + ["indices", "keep"]
    dtypes = {"indices": np.int64, "keep": np.bool_}
    return {
        name: _host(array, dtypes.get(name, np.float64)).reshape(number, -1)
        for name, array in zip(names, arrays[1:], strict=False)
    }


class _Reader:
    """The kernel on the rows of a student."""

    def __init__(
        self, kernel: Any, student: Array, entries: Entries, heat: Floats, out: Floats | None
    ) -> None:
        rows, width = entries.places.shape
        self.kernel, self.classes = kernel, student.shape[-1]
        places = np.where(entries.some, entries.places, self.classes)
        heats = heats_of(heat.reshape(-1), "float32")
        layout = Layout([student], [], "float32", mover, whole_rows=True)
        self.found = Read(np.empty((rows, width)), np.empty((rows, 1)), np.empty((rows, 1)))
        self.owned = places, heats, layout, out
        own, highest, weights = (each.ctypes.data for each in self.found)
        frame = {
            "classes": self.classes,
            "entries": width,
            "student": layout.addresses[0],
            "move_student": layout.movers[0],
            "table": layout.table.ctypes.data,
            "places": places.ctypes.data,
            "heats": heats.ctypes.data,
            "heat_step": heats.strides[0] if len(heats) > 1 else 0,
            "own": own,
            "highest": highest,
            "weights": weights,
            "out": 0 if out is None else out.ctypes.data,
        }
        self.words = np.array([int(frame[name]) for name in others.FRAME])

    def read(self, block: slice) -> Read:
        """Read some rows."""
        room = np.empty(others.scratch_size(self.classes) + 64, np.uint8)
        aligned = -(-room.ctypes.data // 64) * 64
        self.kernel(self.words.ctypes.data, aligned, block.start, block.stop)
        return Read(*(each[block] for each in self.found))


def _finish(buffer: Floats, entries: Entries, own: Floats, rate: Floats) -> None:
    """Make gradients of the weights: times a number per row, and the given classes' own."""
    own = np.where(entries.some, own, np.take_along_axis(buffer, entries.places, -1) * rate)
    np.multiply(buffer, rate.astype(np.float32), out=buffer)
    np.put_along_axis(buffer, entries.places, own.astype(np.float32), axis=-1)


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


def _deliver(xp: Any, gradient: Array, buffer: Floats) -> None:
    """Write a buffer into a gradient, unless it is the gradient's own memory."""
    if memory(gradient).address != buffer.ctypes.data:
        gradient[...] = xp.astype(xp.asarray(buffer.reshape(gradient.shape)), gradient.dtype)


def _host(array: Array, dtype: Any) -> Floats:
    """Return an array as one of NumPy."""
    if hasattr(array, "data_ptr"):
        array = array.detach()
        array = (array.double() if dtype is np.float64 else array).numpy()
    return np.ascontiguousarray(array, dtype=dtype)
