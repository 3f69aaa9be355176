"""From an operation on logits and labels to its kernel, and back to arrays."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.kernels import threads
from kldiv.kernels.cpu import labels
from kldiv.kernels.cpu.code import REALS
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.memory import mover
from kldiv.kernels.cpu.row_loss import UNIT, heats_of, labels_of
from kldiv.kernels.layout import Layout, arrays_of, dtype_name, words_of
from kldiv.kernels.results import RowResults

if TYPE_CHECKING:
    from kldiv.kernels.work import Found, Work


@cache
def kernel(dtype: str, gradients: bool) -> Any:
    """Return the compiled function for a dtype, and a gradient or none."""
    writer = partial(labels.LabelRows, real=REALS[dtype], gradients=gradients)
    return compiled(f"labels-{dtype}{'-gradients' * gradients}", 4, writer)


def compile_for(work: Work) -> Any:
    """Return the compiled kernel: float32 unless an array or the dtype to compute in is wider."""
    wide = work.operation.compute, dtype_name(work.arrays[0])
    dtype = "float64" if "float64" in wide else "float32"
    return dtype, kernel(dtype, bool(work.gradients))


def run(work: Work, kernel: tuple[str, Any]) -> Found:
    """Return the value, if it is wanted, and the gradient in the logits, if that is."""
    operation, (logits, *_), results = work.operation, work.arrays, RowResults(work)
    (dtype, function), keep, classes = kernel, results.keep, logits.shape[-1]
    which = [k for k, asked in enumerate((operation.labelled, operation.entropic)) if asked]
    rows = results.values.size // len(which)
    factors = np.zeros((rows, 2))
    factors[:, which] = results.factors.reshape(-1, len(which) if results.factors.size > 1 else 1)
    values, heats = np.zeros((rows, 2)), heats_of(results.temperatures, dtype)
    layout = Layout([logits], [results.outputs.get(0)], dtype, mover, whole_rows=True)
    own = labels_of(work) if operation.labelled else None
    frame = {
        "classes": classes,
        **arrays_of(labels.ARRAYS, layout),
        "labels": 0 if own is None else own.ctypes.data,
        "heats": heats.ctypes.data,
        "heat_step": heats.strides[0] if len(heats) > 1 else 0,
        "keep": 0 if keep is None else keep.ctypes.data,
        "factors": factors.ctypes.data,
        "values": values.ctypes.data,
    }
    words, number = words_of(labels.FRAME, frame), threads.number(work.threads)
    size = labels.scratch_size(classes, REALS[dtype], buffers=any(layout.movers))
    threads.launch(function, words, size, rows, number, step=max(1, UNIT // classes))
    results.values[:] = values[:, which].reshape(-1)
    return results.of_values()
