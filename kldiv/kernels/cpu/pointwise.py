"""Kernels of y·(log y − x) and its derivatives, one pass over the data.

The formulas are those of `kldiv.formulas.pointwise`, in the buffers' dtype; sums of a few hundred
elements are collected in float64, together with the rounding errors of that.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from kldiv.kernels.cpu.compiling import inline, kernel
from kldiv.kernels.cpu.elementary import exp, is_normal, log, log_normal
from kldiv.kernels.cpu.instructions import accumulate, like, select
from kldiv.kernels.cpu.memory import (
    dropped,
    flush,
    load,
    read,
    sink,
    source,
    store,
)
from kldiv.kernels.layout import ADDRESS, Buffer

X: Final = 1
Y: Final = 2
KEEP: Final = 3
COTANGENT: Final = 4
ELEMENTS: Final = 5
GRADIENT_X: Final = 6
GRADIENT_Y: Final = 7

UNIT: Final = 1 << 18
"""Elements of a unit of work, each of which has its own sum."""

_BLOCK: Final = 2048
_GROUP: Final = 512
"""Elements whose sum is taken in their own dtype, in 32 or more lanes."""


# --- one element ----------------------------------------------------------------------------------


@inline
def _kl(x: float, y: float) -> float:
    return select(y == 0, select(x != x, x, y), y * (log(y) - x))  # noqa: PLR0124 - asks for NaN


@inline
def _kl_normal(x: float, y: float) -> float:
    return y * (log_normal(y) - x)


@inline
def _kl_slope(x: float, y: float) -> float:
    return select(y == 0, y, log(y) + like(y, 1.0) - x)


@inline
def _kl_log_target(x: float, y: float, order: float) -> float:
    weight = exp(y)
    difference = y - x + like(y, order)
    infinite = (difference == like(y, np.inf)) | (difference == like(y, -np.inf))
    value = select(infinite, difference, weight * difference)
    edge = select(x != x, x, weight)  # noqa: PLR0124
    return select(y == like(y, -np.inf), edge, value)


# --- one block ------------------------------------------------------------------------------------


@inline
def _sum_normal(x: int, y: int, n: int, kind: Buffer) -> float:
    """Return the sum, or NaN where a y is not a positive normal number."""
    total, normal = 0.0, True
    for group in range(0, n, _GROUP):
        part = like(kind[0], 0.0)
        for k in range(group, min(group + _GROUP, n)):
            value = load(y, k, kind)
            normal &= is_normal(value)
            part = accumulate(part, _kl_normal(load(x, k, kind), value))
        total += np.float64(part)
    return total if normal else np.nan


@inline
def _sum(x: int, y: int, n: int, kind: Buffer) -> float:
    total = 0.0
    for group in range(0, n, _GROUP):
        part = like(kind[0], 0.0)
        for k in range(group, min(group + _GROUP, n)):
            part = accumulate(part, _kl(load(x, k, kind), load(y, k, kind)))
        total += np.float64(part)
    return total


@inline
def _sum_log_target(x: int, y: int, n: int, kind: Buffer) -> float:
    total = 0.0
    for group in range(0, n, _GROUP):
        part = like(kind[0], 0.0)
        for k in range(group, min(group + _GROUP, n)):
            part = accumulate(part, _kl_log_target(load(x, k, kind), load(y, k, kind), 0.0))
        total += np.float64(part)
    return total


@inline
def _elements(x: int, y: int, n: int, out: int, log_target: bool, kind: Buffer) -> None:
    if log_target:
        for k in range(n):
            store(out, k, _kl_log_target(load(x, k, kind), load(y, k, kind), 0.0))
    else:
        for k in range(n):
            store(out, k, _kl(load(x, k, kind), load(y, k, kind)))


@inline
def _gradient_x(y: int, n: int, out: int, weight: float, log_target: bool, kind: Buffer) -> None:
    factor = like(kind[0], -weight)
    if log_target:
        for k in range(n):
            store(out, k, factor * exp(load(y, k, kind)))
    else:
        for k in range(n):
            store(out, k, factor * load(y, k, kind))


@inline
def _gradient_y(
    x: int,
    y: int,
    n: int,
    out: int,
    weight: float,
    log_target: bool,
    kind: Buffer,
) -> None:
    factor = like(kind[0], weight)
    if log_target:
        for k in range(n):
            store(out, k, factor * _kl_log_target(load(x, k, kind), load(y, k, kind), 1.0))
    else:
        for k in range(n):
            store(out, k, factor * _kl_slope(load(x, k, kind), load(y, k, kind)))


@inline
def _times(out: int, n: int, by: Buffer) -> None:
    for k in range(n):
        store(out, k, load(out, k, by) * by[k])


# --- all ------------------------------------------------------------------------------------------


@inline
def _run(
    table: Buffer,
    log_target: bool,
    reduce: bool,
    weight: float,
    size: int,
    first: int,
    last: int,
    totals: Buffer,
    buffers: Buffer,
) -> None:
    kind, mask = buffers[0], np.empty(_BLOCK, np.uint8)
    nothing = -np.inf if log_target else 0.0
    careful = False
    for unit in range(first, last):
        total, lost = 0.0, 0.0
        for start in range(unit * UNIT, min((unit + 1) * UNIT, size), _BLOCK):
            n = min(_BLOCK, size - start)
            x = source(table, X, start, n, buffers[0])
            y = source(table, Y, start, n, buffers[1])
            if table[KEEP, ADDRESS] != 0:
                read(table, KEEP, start, n, mask)
                x = dropped(mask, n, x, buffers[0], 0.0)
                y = dropped(mask, n, y, buffers[1], nothing)
            if reduce:
                if log_target:
                    part = _sum_log_target(x, y, n, kind)
                else:
                    part = np.nan if careful else _sum_normal(x, y, n, kind)
                    if part != part:  # noqa: PLR0124
                        # Where there is one zero there are more.
                        careful = True
                        part = _sum(x, y, n, kind)
                higher = total + part
                back = higher - total
                lost += (total - (higher - back)) + (part - back)
                total = higher
            if table[ELEMENTS, ADDRESS] != 0:
                out = sink(table, ELEMENTS, start, buffers[2])
                _elements(x, y, n, out, log_target, kind)
                flush(table, ELEMENTS, start, n, buffers[2])
            if table[COTANGENT, ADDRESS] != 0:
                read(table, COTANGENT, start, n, buffers[3])
            if table[GRADIENT_X, ADDRESS] != 0:
                out = sink(table, GRADIENT_X, start, buffers[2])
                _gradient_x(y, n, out, weight, log_target, kind)
                if table[COTANGENT, ADDRESS] != 0:
                    _times(out, n, buffers[3])
                flush(table, GRADIENT_X, start, n, buffers[2])
            if table[GRADIENT_Y, ADDRESS] != 0:
                out = sink(table, GRADIENT_Y, start, buffers[2])
                _gradient_y(x, y, n, out, weight, log_target, kind)
                if table[COTANGENT, ADDRESS] != 0:
                    _times(out, n, buffers[3])
                flush(table, GRADIENT_Y, start, n, buffers[2])
        finite = np.isfinite(total)
        totals[unit] = total + lost if finite else total


_SIGNATURE = "void(i8[:,::1], b1, b1, f8, i8, i8, i8, f8[::1])"


@kernel(_SIGNATURE)
def float32(
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    log_target: bool,  # whether the target is logarithms of probabilities
    reduce: bool,  # whether the sum of all elements is wanted
    weight: float,  # gradient in each element's divergence; 1 where the table has COTANGENT
    size: int,  # number of elements
    first: int,  # the first unit, of `UNIT` elements
    last: int,  # the unit after the last
    totals: Buffer,  # [units] of float64, output: each unit's sum
) -> None:
    """Compute units ``first`` to ``last`` in float32."""
    buffers = np.empty((4, _BLOCK), np.float32)
    _run(table, log_target, reduce, weight, size, first, last, totals, buffers)


@kernel(_SIGNATURE)
def float64(
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    log_target: bool,  # whether the target is logarithms of probabilities
    reduce: bool,  # whether the sum of all elements is wanted
    weight: float,  # gradient in each element's divergence; 1 where the table has COTANGENT
    size: int,  # number of elements
    first: int,  # the first unit, of `UNIT` elements
    last: int,  # the unit after the last
    totals: Buffer,  # [units] of float64, output: each unit's sum
) -> None:
    """Compute units ``first`` to ``last`` in float64."""
    buffers = np.empty((4, _BLOCK), np.float64)
    _run(table, log_target, reduce, weight, size, first, last, totals, buffers)
