"""From an operation on sparse teachers and arrays to its kernel, and back to arrays."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.formulas.divergences import STUDENT, TEACHER, VALUE
from kldiv.formulas.rows import RowLoss
from kldiv.formulas.sparse import BUCKET, entries_of, left_mass
from kldiv.formulas.state import Wide
from kldiv.kernels import threads
from kldiv.kernels.cpu import row_loss, rows, topk
from kldiv.kernels.cpu.code import FLOAT64
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.memory import mover
from kldiv.kernels.layout import Layout, dtype_name, memory
from kldiv.kernels.results import RowResults
from kldiv.kernels.spelling import form_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Found, Work

Floats = np.ndarray[Any, Any]

_BLOCK = 1 << 24
"""Elements read before the formulas turn to their rows, whose fixed cost is that of 10⁵."""

_ONE = np.ones(1)
_UNHEATED = row_loss.heats_of(_ONE, "float64")


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
    return compiled("topk-float32", 6, topk.TopKRows)


def compile_for(work: Work) -> Any:
    """Return the compiled kernel, and that of rows of the divergence, if there is one."""
    operation = work.operation
    names = (operation.compute,) * 3
    fused = form_of(RowLoss("none", *names, operation.divergence, 1.0))
    if fused is None or operation.divergence.parameters:
        return kernel(), None
    name = row_loss.spelled(operation.divergence).name
    return kernel(), row_loss.kernel(name, "float64", bool(work.gradients), True)


def run(work: Work, kernel: tuple[Any, Any]) -> Found:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, arrays, results = work.operation, work.arrays, RowResults(work)
    student, number, width = arrays[0], len(results.values), arrays[1].shape[-1]
    classes, (function, of_rows) = student.shape[-1], kernel
    per_row = _of_rows(operation, arrays, number)
    valid_mass = per_row.get("mass")
    entries = entries_of(np, per_row["a"], per_row["indices"], classes)
    with np.errstate(all="ignore"):
        mass = left_mass(np, entries, valid_mass, classes)
        t = np.concatenate([entries.a, np.log(mass)], axis=-1)
    inside = (per_row["indices"] >= 0) & (per_row["indices"] < classes)
    places = np.where(inside, per_row["indices"], classes + topk.FOREIGN)
    places = np.where(entries.valid, places, classes + topk.NOTHING)
    factors = np.zeros(number)
    factors[:] = results.factors
    buffer = _float32_of(results.outputs[0], number, classes) if 0 in work.gradients else None
    heats = row_loss.heats_of(results.temperatures, "float32")
    layout = Layout([student], [], "float32", mover, whole_rows=True)
    s, *slopes = (np.zeros((number, width + 1)) for _ in range(3))
    weights = np.empty(number)
    keep = 0 if results.keep is None else results.keep.ctypes.data
    in_teacher = sorted(set(work.gradients) - {0})
    numbers = np.array([*row_loss.spelled(operation.divergence).numbers, 0.0])
    segments = -(-(width + 1) // rows.SEGMENT)
    padded = -(-(width + 1) // FLOAT64.lanes) * FLOAT64.lanes
    longest = min(rows.SEGMENT, padded)
    low = np.zeros((number, padded))
    rows_words = _words(
        rows.FRAME,
        classes=width + 1,
        segments=segments,
        student=s.ctypes.data,
        teacher=t.ctypes.data,
        low=low.ctypes.data,
        gradient_s=slopes[0].ctypes.data,
        gradient_t=slopes[1].ctypes.data,
        wants_s=buffer is not None,
        wants_t=bool(in_teacher),
        heats=_UNHEATED.ctypes.data,
        keep=keep,
        factors=_ONE.ctypes.data,
        numbers=numbers.ctypes.data,
        values=results.values.ctypes.data,
        width=longest,
    )
    words = _words(
        topk.FRAME,
        classes=classes,
        entries=width,
        student=layout.addresses[0],
        move_student=layout.movers[0],
        table=layout.table.ctypes.data,
        places=places.ctypes.data,
        heats=heats.ctypes.data,
        heat_step=heats.strides[0] if len(heats) > 1 else 0,
        keep=keep,
        factors=factors.ctypes.data,
        logits=s.ctypes.data,
        low=low.ctypes.data,
        weights=weights.ctypes.data,
        slopes=slopes[0].ctypes.data,
        out=0 if buffer is None else buffer.ctypes.data,
        rows=getattr(of_rows, "address", 0),
        rows_frame=rows_words.ctypes.data,
    )
    size = topk.scratch_size(classes)
    size += rows.scratch_size(segments, longest, FLOAT64, buffers=False)
    workers = threads.number(work.threads)
    step = row_loss.UNIT // classes
    if of_rows is None:
        step = min(_BLOCK // classes, -(-number // workers))
    step = max(1, step)

    def share(first: int, last: int) -> None:
        block = slice(first * step, min(last * step, number))
        room = np.empty(size + 64, np.uint8)
        where = words.ctypes.data, -(-room.ctypes.data // 64) * 64, block.start, block.stop
        if of_rows is not None:
            function(*where, topk.WEIGHTS, topk.PRODUCT)
            return
        function(*where, topk.WEIGHTS, topk.WEIGHTS)
        divergence = operation.divergence
        if "beta" in per_row:
            divergence = divergence.bound(np, per_row["beta"][block])
        wanted = [VALUE] * work.value + [STUDENT] * (buffer is not None)
        wanted += [TEACHER] * bool(in_teacher)
        with np.errstate(all="ignore"):
            own = Wide(s[block], -low[block, : width + 1]), Wide(t[block], np.zeros_like(t[block]))
            known = divergence.whole(np, *own, 1.0, tuple(wanted))
            if work.value:
                results.values[block] = divergence.value(np, known.known)[:, 0]
            for side in set(wanted) - {VALUE}:
                slopes[side][block] = divergence.gradient(side, known)
        function(*where, topk.PRODUCT, topk.PRODUCT)

    threads.share(share, -(-number // step), workers)
    kept = np.ones(number, np.bool_) if results.keep is None else results.keep.reshape(-1)
    results.values[~kept] = 0.0
    if in_teacher:
        scale = np.where(kept, factors, 0.0)[:, None]
        with np.errstate(all="ignore"):
            found = operation.to_teacher(np, entries, mass, slopes[1][:, :-1], slopes[1][:, -1:])
            for index in in_teacher:
                each = np.where(scale == 0, 0.0, scale * found[index - 1])
                _deliver(work.xp, results.outputs[index], each)
    if buffer is not None:
        _deliver(work.xp, results.outputs[0], buffer)
    return results.of_values()


def _words(names: Sequence[str], **numbers: int) -> np.ndarray[Any, Any]:
    """Return a frame; what is not said is 0."""
    return np.array([int(numbers.get(name, 0)) for name in names])


def _of_rows(operation: Any, arrays: Sequence[Array], number: int) -> dict[str, Floats]:
    """Return all but the student as arrays of NumPy, by name, a row each."""
    names = ["a"]
    names += ["mass"] * operation.has_rest + ["temperature"] * (operation.temperature is None)
    names += ["beta"] * operation.divergence.parameters + ["indices"]
    return {
        name: _host(array, np.int64 if name == "indices" else np.float64).reshape(number, -1)
        for name, array in zip(names, arrays[1:], strict=False)
    }


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
