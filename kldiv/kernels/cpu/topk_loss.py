"""From an operation on sparse teachers and arrays to its kernel, and back to arrays."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kldiv.formulas.divergences import STUDENT, TEACHER, VALUE
from kldiv.formulas.rows import RowLoss
from kldiv.formulas.sparse import BUCKET, Entries, entries_of, left_mass
from kldiv.formulas.state import Wide
from kldiv.kernels import threads
from kldiv.kernels.cpu import row, row_loss, team, topk
from kldiv.kernels.cpu.code import FLOAT64
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.memory import mover
from kldiv.kernels.layout import arrays_of, dtype_name, step_of, words_of
from kldiv.kernels.results import RowResults, host
from kldiv.kernels.spelling import form_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Found, Work

_BLOCK = 1 << 24
"""Elements whose rows the formulas compute in one call, whose fixed cost is that of 10⁵."""

_copier = partial(mover, "float32", "float32", packed=True, writing=False)

_ONE = np.ones(1)


class Kernels(NamedTuple):
    """The kernel of sparse teachers, and that of rows."""

    function: Any
    rows: Any = None
    """None: the divergence is computed by the formulas."""
    numbers: Any = None
    """Of the divergence, for the latter."""


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
    return None


@cache
def kernel() -> Any:
    """Return the compiled function, once that which copies rows is there."""
    _copier()
    return compiled("topk-float32", 6, topk.TopKRows)


def compile_for(work: Work) -> Kernels:
    """Return the compiled kernels."""
    divergence, names = work.operation.divergence, (work.operation.compute,) * 3
    if form_of(RowLoss("none", *names, divergence)) is None or divergence.parameters:
        return Kernels(kernel())
    name, numbers = row_loss.spelled(divergence)
    of_rows = row_loss.kernel(name, "float64", bool(work.gradients), wide=True)
    return Kernels(kernel(), of_rows, np.array([*numbers, 0.0]))


def run(work: Work, kernel: Kernels) -> Found:
    """Return the value, if it is wanted, and the gradients that are."""
    operation, student, results = work.operation, work.arrays[0], RowResults(work)
    number, classes, fused = len(results.values), student.shape[-1], kernel.rows is not None
    entries, places, mass, t, beta = _teacher(operation, work.arrays, number)
    kept = np.ones(number, np.bool_) if results.keep is None else results.keep.reshape(-1)
    factors = np.where(kept, results.factors, 0.0)
    gradient, in_teacher = results.outputs.get(0), sorted({*work.gradients} - {0})
    wanted = [STUDENT] * (gradient is not None) + [TEACHER] * bool(in_teacher)
    names = "student", "gradient"
    given = arrays_of(names, [student], [gradient], "float32", mover, whole_rows=True)
    given["move_student"] = given["move_student"] or _copier()
    buffer = None
    if given["move_gradient"] and not fused:
        # Weights wait for the formulas where the gradient is to be.
        buffer = np.empty((number, classes), np.float32)
        given |= {"gradient": buffer, "move_gradient": 0}
    s, *slopes = (np.zeros(t.shape) for _ in range(3))
    width = -(-t.shape[-1] // FLOAT64.lanes) * FLOAT64.lanes
    low = np.zeros((number, row.low_width(t.shape[-1], FLOAT64.lanes)))
    peaks, weights = np.argmax(t, axis=-1), np.empty(number)
    segments, width = -(-width // row.SEGMENT), min(row.SEGMENT, width)
    temperatures = results.temperatures
    of_rows = {
        "classes": t.shape[-1],
        "segments": segments,
        "student": s,
        "teacher": t,
        "low": low,
        "gradient_s": slopes[0],
        "gradient_t": slopes[1],
        "wants_s": STUDENT in wanted,
        "wants_t": TEACHER in wanted,
        "temperatures": _ONE,
        "keep": results.keep,
        "factors": _ONE,
        "numbers": kernel.numbers,
        "values": results.values,
        "width": width,
    }
    frame = {
        "classes": classes,
        "entries": places.shape[-1],
        **given,
        "places": places,
        "temperatures": temperatures,
        "temperature_step": step_of(temperatures),
        "keep": results.keep,
        "factors": factors,
        "logits": s,
        "low": low,
        "peaks": peaks,
        "weights": weights,
        "slopes": slopes[0],
        "rows": kernel.rows.address if fused else 0,
        "rows_frame": words_of(row.FRAME, of_rows),
    }
    words = words_of(topk.FRAME, frame)
    size = topk.scratch_size(classes)
    size += row.scratch_size(segments, width, FLOAT64, buffers=False)
    workers = threads.number(work.threads)
    rows = max(1, min(_BLOCK // classes, -(-number // workers)))  # of a call of the formulas

    def launch(*stages: int) -> None:
        step = max(1, row_loss.UNIT // classes)
        team.launch(kernel.function, words, size, number, work.threads, *stages, step=step)

    def by_formulas(first: int, last: int) -> None:
        block, divergence = slice(first * rows, min(last * rows, number)), operation.divergence
        if beta is not None:
            divergence = divergence.bound(np, beta[block])
        s_low, t_low = -low[block][:, : t.shape[-1]], np.zeros(t[block].shape)
        wide = Wide(s[block], s_low), Wide(t[block], t_low)
        with np.errstate(all="ignore"):
            known = divergence.whole(np, *wide, 1.0, (*[VALUE] * work.value, *wanted))
            if work.value:
                results.values[block] = divergence.value(np, known.known)[:, 0]
            for side in wanted:
                slopes[side][block] = divergence.gradient(side, known)

    if fused:
        launch(topk.WEIGHTS, topk.PRODUCT)
    else:
        launch(topk.WEIGHTS, topk.WEIGHTS)
        threads.share(by_formulas, -(-number // rows), workers)
        launch(topk.PRODUCT, topk.PRODUCT)
    results.values[~kept] = 0.0
    found = {} if buffer is None else {0: buffer}
    if in_teacher:
        ends = slopes[TEACHER][:, :-1], slopes[TEACHER][:, -1:]
        with np.errstate(all="ignore"):
            both = operation.to_teacher(np, entries, mass, *ends)
            scaled = [np.where(factors == 0, 0.0, factors * each.T).T for each in both]
        found |= {index: scaled[index - 1] for index in in_teacher}
    for index, each in found.items():
        output = results.outputs[index]
        output[...] = work.xp.astype(work.xp.asarray(each.reshape(output.shape)), output.dtype)
    return results.of_values()


def _teacher(
    operation: Any, arrays: Sequence[Array], number: int
) -> tuple[Entries, Array, Array, Array, Array | None]:
    """Return the given classes, their places, the mass and logits of all, and β, of each row."""
    names = ["a"]
    names += ["mass"] * operation.has_rest + ["temperature"] * (operation.temperature is None)
    names += ["beta"] * operation.divergence.parameters + ["indices"]
    own = {
        name: host(array, "int64" if name == "indices" else "float64").reshape(number, -1)
        for name, array in zip(names, arrays[1:], strict=False)
    }
    a, indices, classes = own["a"], own["indices"], arrays[0].shape[-1]
    entries = entries_of(np, a, indices, classes)
    places = np.where((indices >= 0) & (indices < classes), indices, classes + topk.FOREIGN)
    places = np.where(entries.valid, places, classes + topk.NOTHING)
    with np.errstate(all="ignore"):
        mass = left_mass(np, entries, own.get("mass"), classes)
        logits = np.concatenate([a, np.log(mass)], axis=-1)
    return entries, places, mass, logits, own.get("beta")
