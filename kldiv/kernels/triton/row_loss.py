"""From an operation on rows of logits and tensors to its kernels, and back to tensors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from kldiv.formulas.reductions import cast
from kldiv.kernels.spelling import DIVERGENCES, numbered
from kldiv.kernels.triton import gradients as gradient_kernels
from kldiv.kernels.triton import launch
from kldiv.kernels.triton import rows as kernels
from kldiv.kernels.triton.launch import (
    OPTIONS,
    SPAN,
    STATE_TILE,
    TILE,
    bits,
    give,
    on,
    placed,
    tiling,
)
from kldiv.kernels.triton.places import FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Work

_KL, _TOTAL_VARIATION = DIVERGENCES.index("KL"), DIVERGENCES.index("total variation")

_JOINED = 32
"""Rows of a program that merges parts."""

_JOINING = {**OPTIONS, "num_warps": 1}


class _Rows(NamedTuple):
    """Rows, their mask and their temperature, as the kernels take them."""

    number: int
    classes: int
    wide: bool
    divergence: int
    """Its place in `kldiv.kernels.spelling.DIVERGENCES`, of which KL is the first."""
    keep: Array | None
    temperatures: Array | None
    bits: tuple[int, ...]
    """Of the temperature of all rows, and of the divergence's numbers."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """Mask, temperatures and numbers."""
        return self.keep, self.temperatures, *self.bits


def run(work: Work) -> tuple[Array | None, list[Array]]:
    """Return the value, the gradients and the rows' constants, those of them that are wanted."""
    operation, xp, arrays = work.operation, work.xp, work.arrays
    shape = tuple(arrays[0].shape)
    keep = operation.keep(arrays)
    own = operation.temperature
    divergence, own_numbers, factor = numbered(operation.divergence)
    rows = _Rows(
        math.prod(shape[:-1]),
        shape[-1],
        operation.compute == "float64",
        divergence,
        None if keep is None else keep.contiguous().view(xp.uint8),
        cast(xp, arrays[2], "float64").contiguous() if own is None else None,
        tuple(map(bits, (1.0 if own is None else own, *own_numbers))),
    )
    exact = replace(operation, compute="float64", total="float64")
    results: list[Array] = []
    with on(arrays[0]):
        s, t = arrays[:2]
        saved: Any = work.kept
        values: Any = None
        if saved is None:
            saved, values = _forward(xp, rows, s, t, wanted=work.gradients or (0, 1) * work.keep)
        if work.gradients:
            upstream = s.new_ones(()) if work.cotangent is None else work.cotangent
            factors = factor * exact.weight(xp, upstream, shape[:-1], keep)
            results = _gradients(xp, rows, s, t, saved, factors, work.gradients)
        if work.keep:
            results.append(saved)
        if not work.value:
            return None, results
        values = values if factor == 1 else factor * values
        return exact.finish(xp, values.reshape(shape[:-1]), keep), results


def _forward(
    xp: Any, rows: _Rows, s: Array, t: Array, *, wanted: Sequence[int]
) -> tuple[Array, Array]:
    """Return the constants that are kept of each row, and the values."""
    (s, t), _, (_, inner), strides = placed([s, t], most=2, whole_rows=True)
    number = rows.number
    plan = tiling(number, rows.classes, STATE_TILE[rows.wide])
    tiles = -(-number // plan.height)
    shared = plan.parts > 1
    values = s.new_empty((number,), dtype=xp.float64)
    saved = s.new_empty((number, kernels.SAVED.value), dtype=xp.float64)
    partial, sums = None, None
    if shared:
        partial = s.new_empty((number, plan.parts, FIELDS.value), dtype=xp.float64)
    place = (number, inner, rows.classes, plan.chunk)
    shape = {"wide": rows.wide, "height": plan.height, "width": plan.width}
    summed = rows.divergence != _KL
    anchors = summed and rows.divergence != _TOTAL_VARIATION
    hurried = not rows.wide and number * rows.classes > launch.SMALL
    for way in (kernels.QUICK, kernels.REST) if hurried else (kernels.ALL,):
        span = max(1, tiles // launch.PROGRAMS) if way is kernels.REST else 1
        options = launch.QUICK_OPTIONS if way is kernels.QUICK else OPTIONS
        kernels.states[-(-tiles // span), plan.parts](
            s, t, None if summed else values, saved, partial, *rows.settings[:3], *place, span,
            *strides, **shape, anchors=anchors, way=way.value, **options,
        )  # fmt: skip
    joined = (-(-number // _JOINED),)
    if shared:
        kernels.join[joined](
            partial, values, saved, *rows.settings[:3], number, plan.parts, height=_JOINED,
            **_JOINING,
        )  # fmt: skip
    if summed:
        if shared:
            sums = s.new_empty((number, plan.parts, kernels.SUMS.value), dtype=xp.float64)
        kernels.look[tiles, plan.parts](
            s, t, sums, values, saved, *rows.settings, *place, *strides, **shape,
            divergence=rows.divergence, t_means=1 in wanted, s_means=0 in wanted, **OPTIONS,
        )  # fmt: skip
        if shared:
            kernels.join_sums[joined](
                sums, values, saved, rows.keep, number, plan.parts, height=_JOINED, **_JOINING
            )
    return saved, values


def _gradients(
    xp: Any, rows: _Rows, s: Array, t: Array, saved: Array, factors: Array, wanted: Sequence[int]
) -> list[Array]:
    """Return the gradients that are wanted, given one factor, or one of each row."""
    results = [xp.empty_like((s, t)[index]) if index in wanted else None for index in (0, 1)]
    inputs, outputs, (_, inner), strides = placed([s, t], results, most=2, whole_rows=True)
    plan = tiling(rows.number, rows.classes, TILE[rows.wide])
    span = SPAN if rows.classes > plan.width else 1
    grid = -(-rows.number // plan.height), -(-rows.classes // (plan.width * span))
    gradient_kernels.gradients[grid](
        *inputs, *outputs, saved, factors.contiguous(), *rows.settings, rows.number, inner,
        rows.classes, 0 if factors.ndim == 0 else 1, *strides,
        wide=rows.wide, divergence=rows.divergence, height=plan.height, width=plan.width,
        span=span, **OPTIONS,
    )  # fmt: skip
    give(results, outputs)
    return [results[index] for index in wanted]
