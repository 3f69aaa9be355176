"""Kernels of rows of logits: their states, merged, finished, and what Jensen-Shannon adds.

A program has one row, or a chunk of one, which it reads a tile at a time; where a row is shorter
than a tile, it has several.  Where a row is shared, every program leaves its state, and `join`
merges these.  Each row's constants are kept for its gradients: float64 numbers, `SAVED` a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kldiv.kernels.triton import KEPT
from kldiv.kernels.triton.jensen_shannon import js_elements, js_shift, student_view
from kldiv.kernels.triton.state import State, block_state, empty_state, finish, heated, merge

FIELDS = tl.constexpr(14)
"""Numbers of a `State`."""

SAVED = tl.constexpr(KEPT)
"""Those of a row: its state, KL, its offset, and two sums for the gradients of Jensen-Shannon."""

_KL = tl.constexpr(14)
_OFFSET = tl.constexpr(15)
_T_SHIFT = tl.constexpr(16)
_S_SHIFT = tl.constexpr(17)

SUMS = tl.constexpr(3)
"""What `look` adds up: Jensen-Shannon itself, and the sums for its gradients."""


UNSPECIALISED = ["temperature_bits", "beta_bits", "rows", "inner"]
"""Arguments whose values are no reason to compile a kernel again."""


# --- where things are -----------------------------------------------------------------------------


@triton.jit
def row_offsets(rows, inner, outer_stride, inner_stride):
    """Return where rows begin that lie in two axes, ``inner`` the length of the second."""
    return (rows // inner) * outer_stride + (rows % inner) * inner_stride


@triton.jit
def load_tile(pointer, offsets, columns, stride, mask, wide: tl.constexpr):
    """Return a tile of logits; what is not there is −∞."""
    kind = tl.float64 if wide else tl.float32
    return tl.load(pointer + offsets + columns * stride, mask=mask, other=-float("inf")).to(kind)


@triton.jit
def temperature_of(pointer, bits, rows, there):
    """Return the temperature of rows: an array's, or the number with these bits."""
    if pointer is None:
        temperature = tl.zeros(rows.shape, tl.float64) + bits.to(tl.float64, bitcast=True)
    else:
        temperature = tl.load(pointer + rows, mask=there, other=1.0)
    return temperature


@triton.jit
def read_state(pointer, offsets, there):
    """Return a state that `write_state` has written."""
    return State(
        tl.load(pointer + offsets, mask=there, other=-float("inf")),
        tl.load(pointer + offsets + 1, mask=there, other=0.0),
        tl.load(pointer + offsets + 2, mask=there, other=-float("inf")),
        tl.load(pointer + offsets + 3, mask=there, other=0.0),
        tl.load(pointer + offsets + 4, mask=there, other=0.0),
        tl.load(pointer + offsets + 5, mask=there, other=0.0),
        tl.load(pointer + offsets + 6, mask=there, other=0.0),
        tl.load(pointer + offsets + 7, mask=there, other=0.0),
        tl.load(pointer + offsets + 8, mask=there, other=0.0),
        tl.load(pointer + offsets + 9, mask=there, other=0.0),
        tl.load(pointer + offsets + 10, mask=there, other=0.0),
        tl.load(pointer + offsets + 11, mask=there, other=0.0),
        tl.load(pointer + offsets + 12, mask=there, other=0.0),
        tl.load(pointer + offsets + 13, mask=there, other=0.0),
    )


@triton.jit
def write_state(pointer, offsets, a, there):
    """Write a state."""
    tl.store(pointer + offsets, a.t_max, mask=there)
    tl.store(pointer + offsets + 1, a.t_sum, mask=there)
    tl.store(pointer + offsets + 2, a.s_max, mask=there)
    tl.store(pointer + offsets + 3, a.s_sum, mask=there)
    tl.store(pointer + offsets + 4, a.pivot, mask=there)
    tl.store(pointer + offsets + 5, a.pivot_low, mask=there)
    tl.store(pointer + offsets + 6, a.y, mask=there)
    tl.store(pointer + offsets + 7, a.phi, mask=there)
    tl.store(pointer + offsets + 8, a.anchor, mask=there)
    tl.store(pointer + offsets + 9, a.anchor_low, mask=there)
    tl.store(pointer + offsets + 10, a.drift, mask=there)
    tl.store(pointer + offsets + 11, a.lost, mask=there)
    tl.store(pointer + offsets + 12, a.s_anchor, mask=there)
    tl.store(pointer + offsets + 13, a.s_anchor_low, mask=there)


# --- sums over classes ----------------------------------------------------------------------------


@triton.jit
def _scan(
    s, t, s_offsets, t_offsets, s_step, t_step, first, last, there, temperature, hot,
    wide: tl.constexpr, shannon: tl.constexpr, single: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Return the state of the classes from ``first`` to ``last``: of a ``single`` tile, or more."""
    if single:
        columns = tl.arange(0, width)[None, :] + first
        mask = there & (columns < last)
        t_tile = load_tile(t, t_offsets, columns, t_step, mask, wide)
        s_tile = load_tile(s, s_offsets, columns, s_step, mask, wide)
        state = block_state(t_tile, s_tile, temperature, hot, wide, shannon)
    else:
        state = empty_state(temperature)
        for start in range(first, last, width):
            columns = tl.arange(0, width)[None, :] + start
            mask = there & (columns < last)
            t_tile = load_tile(t, t_offsets, columns, t_step, mask, wide)
            s_tile = load_tile(s, s_offsets, columns, s_step, mask, wide)
            block = block_state(t_tile, s_tile, temperature, hot, wide, shannon)
            state = merge(state, block, temperature)
    return state


@triton.jit
def _look(
    s, t, s_offsets, t_offsets, s_step, t_step, first, last, there, a, offset, beta, temperature,
    hot, wide: tl.constexpr, t_shift: tl.constexpr, s_shift: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Return the sums of Jensen-Shannon over the classes from ``first`` to ``last``."""
    value = tl.zeros_like(temperature)
    of_t, of_s = value, value
    other = 1.0 - beta
    for start in range(first, last, width):
        columns = tl.arange(0, width)[None, :] + start
        mask = there & (columns < last)
        t_tile = load_tile(t, t_offsets, columns, t_step, mask, wide)
        s_tile = load_tile(s, s_offsets, columns, s_step, mask, wide)
        value += js_elements(t_tile, s_tile, a, offset, beta, hot, wide)
        if t_shift:
            of_t += js_shift(t_tile, s_tile, a, offset, beta, other, temperature, hot, wide)
        if s_shift:
            view = student_view(a)
            of_s += js_shift(s_tile, t_tile, view, -offset, other, beta, temperature, hot, wide)
    return value, of_t, of_s


# --- kernels --------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=UNSPECIALISED)
def states(
    s, t, values, saved, partial, keep, temperatures,
    temperature_bits, beta_bits, rows, inner, classes, chunk,
    s_outer, s_inner, s_step, t_outer, t_inner, t_step,
    wide: tl.constexpr, shannon: tl.constexpr, t_shift: tl.constexpr, s_shift: tl.constexpr,
    single: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Compute rows, or the states of their parts where ``partial`` takes these."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    there = row < rows
    kept = there
    if keep is not None:
        kept = there & (tl.load(keep + row, mask=there, other=0) != 0)
    temperature = temperature_of(temperatures, temperature_bits, row, there)
    hot = heated(temperature, wide)
    s_offsets = row_offsets(row, inner, s_outer, s_inner)
    t_offsets = row_offsets(row, inner, t_outer, t_inner)
    first = tl.program_id(1).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, classes)
    state = _scan(
        s, t, s_offsets, t_offsets, s_step, t_step, first, last, kept, temperature, hot,
        wide, shannon, single, width,
    )  # fmt: skip
    if partial is not None:
        part = row * tl.num_programs(1) + tl.program_id(1)
        write_state(partial, part * FIELDS, state, there)
    else:
        kl, offset = finish(state)
        value = kl
        of_t, of_s = tl.zeros_like(kl), tl.zeros_like(kl)
        write_state(saved, row * SAVED, state, there)
        if shannon:
            beta = beta_bits.to(tl.float64, bitcast=True)
            value, of_t, of_s = _look(
                s, t, s_offsets, t_offsets, s_step, t_step, first, last, kept, state, offset,
                beta, temperature, hot, wide, t_shift, s_shift, width,
            )  # fmt: skip
            value = tl.where(kl == kl, value, float("nan"))
        tl.store(saved + row * SAVED + _T_SHIFT, of_t, mask=there)
        tl.store(saved + row * SAVED + _S_SHIFT, of_s, mask=there)
        tl.store(saved + row * SAVED + _KL, kl, mask=there)
        tl.store(saved + row * SAVED + _OFFSET, offset, mask=there)
        tl.store(values + row, tl.where(kept, value, 0.0), mask=there)


@triton.jit(do_not_specialize=["temperature_bits", "rows", "parts"])
def join(
    partial, values, saved, keep, temperatures, temperature_bits, rows, parts,
    height: tl.constexpr,
):  # fmt: skip
    """Merge the states of the parts of rows, and finish these."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)[:, None]
    there = row < rows
    temperature = temperature_of(temperatures, temperature_bits, row, there)
    state = read_state(partial, row * parts * FIELDS, there)
    for part in range(1, parts):
        state = merge(state, read_state(partial, (row * parts + part) * FIELDS, there), temperature)
    kl, offset = finish(state)
    write_state(saved, row * SAVED, state, there)
    tl.store(saved + row * SAVED + _KL, kl, mask=there)
    tl.store(saved + row * SAVED + _OFFSET, offset, mask=there)
    tl.store(saved + row * SAVED + _T_SHIFT, tl.zeros_like(kl), mask=there)
    tl.store(saved + row * SAVED + _S_SHIFT, tl.zeros_like(kl), mask=there)
    if keep is not None:
        kl = tl.where(tl.load(keep + row, mask=there, other=0) != 0, kl, 0.0)
    tl.store(values + row, kl, mask=there)


@triton.jit(do_not_specialize=UNSPECIALISED)
def look(
    s, t, sums, saved, keep, temperatures,
    temperature_bits, beta_bits, rows, inner, classes, chunk,
    s_outer, s_inner, s_step, t_outer, t_inner, t_step,
    wide: tl.constexpr, t_shift: tl.constexpr, s_shift: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Add up what Jensen-Shannon needs of parts of rows whose states are known."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)[:, None]
    there = row < rows
    if keep is not None:
        there = there & (tl.load(keep + row, mask=there, other=0) != 0)
    temperature = temperature_of(temperatures, temperature_bits, row, there)
    hot = heated(temperature, wide)
    first = tl.program_id(1).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, classes)
    state = read_state(saved, row * SAVED, there)
    offset = tl.load(saved + row * SAVED + _OFFSET, mask=there, other=0.0)
    beta = beta_bits.to(tl.float64, bitcast=True)
    value, of_t, of_s = _look(
        s, t, row_offsets(row, inner, s_outer, s_inner), row_offsets(row, inner, t_outer, t_inner),
        s_step, t_step, first, last, there, state, offset, beta, temperature, hot,
        wide, t_shift, s_shift, width,
    )  # fmt: skip
    part = (row * tl.num_programs(1) + tl.program_id(1)) * SUMS
    tl.store(sums + part, value, mask=row < rows)
    tl.store(sums + part + 1, of_t, mask=row < rows)
    tl.store(sums + part + 2, of_s, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "parts"])
def join_sums(sums, values, saved, keep, rows, parts, height: tl.constexpr):
    """Add up what `look` has left, part after part."""
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)
    there = row < rows
    value = tl.zeros([height], tl.float64)
    of_t, of_s = value, value
    for part in range(parts):
        at = sums + (row * parts + part) * SUMS
        value += tl.load(at, mask=there, other=0.0)
        of_t += tl.load(at + 1, mask=there, other=0.0)
        of_s += tl.load(at + 2, mask=there, other=0.0)
    kl = tl.load(saved + row * SAVED + _KL, mask=there, other=0.0)
    value = tl.where(kl == kl, value, float("nan"))
    if keep is not None:
        value = tl.where(tl.load(keep + row, mask=there, other=0) != 0, value, 0.0)
    tl.store(saved + row * SAVED + _T_SHIFT, of_t, mask=there)
    tl.store(saved + row * SAVED + _S_SHIFT, of_s, mask=there)
    tl.store(values + row, value, mask=there)
