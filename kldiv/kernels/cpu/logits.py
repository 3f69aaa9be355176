"""Kernels of KL from rows of logits: the value from one read, gradients while a row is in a cache.

They compute what `kldiv.formulas.logits` says. A row is read in blocks, whose states are merged in
pairs, so that the number of blocks hardly adds to the rounding.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from kldiv.kernels.cpu import quick
from kldiv.kernels.cpu.compiling import inline, kernel
from kldiv.kernels.cpu.instructions import accumulate, larger, like, select
from kldiv.kernels.cpu.layout import ADDRESS, Buffer
from kldiv.kernels.cpu.memory import address_of, flush, load, sink, source, store
from kldiv.kernels.cpu.passes import SIZE
from kldiv.kernels.cpu.state import (
    ANCHOR,
    ANCHOR_LOW,
    DRIFT,
    FIELDS,
    NEAR,
    PHI,
    PIVOT,
    PIVOT_LOW,
    S_MAX,
    S_SUM,
    T_MAX,
    T_SUM,
    Y,
    difference,
    finish,
    finite,
    heat,
    limits,
    maximum,
    merge,
    moved_pivot,
    phi_near,
    ratio_of_sums,
    student_scale,
    top,
    total,
    two_difference,
    weight,
)

S: Final = 1
T: Final = 2
GRADIENT_S: Final = 3
GRADIENT_T: Final = 4

LEVELS: Final = 64
"""Enough to merge any number of blocks in pairs."""


# --- the state of a row ---------------------------------------------------------------------------


@inline
def clipped(x: Any, lowest: Any) -> Any:
    """Return ``x``, finite: a masked class has weight 0, and 0·∞ would be NaN."""
    x = select(x < lowest, lowest, x)
    return select(x > -lowest, -lowest, x)


@inline
def sum_of(values: Buffer, n: int) -> float:
    """Return the sum of ``n`` numbers in float64."""
    result = 0.0
    for k in range(n):
        result = accumulate(result, np.float64(values[k]))
    return result


@inline
def split(c: float, c_low: float, like_what: Any) -> Any:
    """Return a float64 double word as one of another dtype, and what is left."""
    high = like(like_what, c)
    low = like(like_what, (c - high) + c_low)
    return high, low, ((c - high) - low) + c_low


@inline
def _survey(t: int, s: int, n: int, t_max: Any, kind: Buffer) -> tuple[Any, bool]:
    """Return the largest s where t is at its maximum, and whether a class has p > 0 = q."""
    nothing, zero, one = like(t_max, -np.inf), like(t_max, 0.0), like(t_max, 1.0)
    lowest = like(t_max, limits(kind)[0])
    # From the lowest number, not −∞: LLVM would see that it is neutral, and keep the loop scalar.
    beside, lost = lowest, zero
    for k in range(n):
        a, b = load(t, k, kind), load(s, k, kind)
        beside = larger(beside, select(a == t_max, b, lowest))
        lost = accumulate(lost, select((b == nothing) & (a > nothing), one, zero))
    return beside, lost > zero


@inline
def _weights(t: int, s: int, n: int, t_top: Any, s_top: Any, hot: Any, buffers: Buffer) -> None:
    """Fill w, v, and d as a double word."""
    kind = buffers[0]
    w, v, d, d_low = buffers[2], buffers[3], buffers[4], buffers[5]
    lowest = like(kind[0], limits(kind)[0])
    for k in range(n):
        a, b = finite(load(t, k, kind), lowest), finite(load(s, k, kind), lowest)
        high, low = two_difference(a, t_top)
        w[k] = weight(high, low, hot)
        high, low = two_difference(b, s_top)
        v[k] = weight(high, low, hot)
        high, low = two_difference(a, b)
        d[k] = high
        d_low[k] = low


@inline
def _drift(n: int, c: Any, c_low: Any, inverse: Any, buffers: Buffer) -> tuple[float, float]:
    """Return Σ w x and Σ w |x|, x = (d − c)/T."""
    w, d, d_low, out, size = buffers[2], buffers[4], buffers[5], buffers[6], buffers[7]
    lowest = like(c, limits(buffers[0])[0])
    for k in range(n):
        drift = w[k] * clipped(difference(d[k], d_low[k], c, c_low) * inverse, lowest)
        out[k] = drift
        size[k] = abs(drift)
    return sum_of(out, n), sum_of(size, n)


@inline
def _moments(n: int, c: Any, c_low: Any, inverse: Any, scale: Any, buffers: Buffer) -> Any:
    """Return Σ w (e⁻ˣ − 1) and Σ w φ(x)."""
    w, v, d, d_low, fall, phi = (
        buffers[2],
        buffers[3],
        buffers[4],
        buffers[5],
        buffers[6],
        buffers[7],
    )
    lowest, limit = like(c, limits(buffers[0])[0]), like(c, NEAR)
    for k in range(n):
        x = clipped(difference(d[k], d_low[k], c, c_low) * inverse, lowest)
        near = select(x < -limit, -limit, select(x > limit, limit, x))
        mass = w[k]
        w_near = mass * near
        # w·φ(x) within NEAR; less w·near it is w·(e⁻ˣ − 1) everywhere.
        term = select(abs(x) < limit, mass * phi_near(near), (v[k] * scale - mass) + w_near)
        fall[k] = term - w_near
        phi[k] = term + mass * (x - near)
    return sum_of(fall, n), sum_of(phi, n)


@inline
def _block(
    t: int, s: int, n: int, temperature: float, hot: Any, buffers: Buffer, a: Buffer
) -> bool:
    """Fill the state of a block; return whether a class has p > 0 = q."""
    kind = buffers[0]
    inverse = hot[0]
    t_max, s_max = maximum(t, n, kind), maximum(s, n, kind)
    t_top, s_top = like(t_max, top(t_max)), like(s_max, top(s_max))
    beside, lost = _survey(t, s, n, t_max, kind)
    _weights(t, s, n, t_top, s_top, hot, buffers)
    t_sum, s_sum = total(buffers[2], n), total(buffers[3], n)
    a[:] = 0.0
    a[T_MAX], a[S_MAX], a[T_SUM], a[S_SUM] = t_max, s_max, t_sum, s_sum
    if t_sum == 0:
        return lost
    # About d at the teacher's maximum x is exactly zero where d is constant.
    first, first_low = two_difference(t_top, beside)
    drift, _ = _drift(n, first, first_low, inverse, buffers)
    middle, middle_low = moved_pivot(
        np.float64(first), np.float64(first_low), temperature * (drift / t_sum)
    )
    mean, mean_low, _ = split(middle, middle_low, t_max)
    residual, spread = _drift(n, mean, mean_low, inverse, buffers)
    if abs(drift) > spread:  # not in the bulk of p
        a[ANCHOR], a[ANCHOR_LOW], a[DRIFT] = mean, mean_low, residual
    else:
        a[ANCHOR], a[ANCHOR_LOW], a[DRIFT] = first, first_low, drift
    if s_sum == 0:
        a[Y] = -t_sum  # e⁻ˣ is 0 everywhere
        return lost
    ratio, ratio_low = ratio_of_sums(t_max, t_sum, s_max, s_sum, temperature)
    kl = difference(middle, middle_low, ratio, ratio_low) / temperature
    c, c_low = mean, mean_low
    if not abs(kl) < 0.5:
        c, c_low, _ = split(ratio, ratio_low, t_max)
    elif abs(drift) <= 0.55 * spread:
        # A far class of little weight may carry the mean away: all others still have x = 0 here.
        c, c_low = first, first_low
    a[PIVOT], a[PIVOT_LOW] = c, c_low
    scale = student_scale(s_max, t_max, a[PIVOT], a[PIVOT_LOW], temperature)
    a[Y], a[PHI] = _moments(n, c, c_low, inverse, like(c, scale), buffers)
    return lost


@inline
def room_for(classes: int, gradients: bool, kind: Buffer) -> tuple[Buffer, Buffer]:
    """Return room to keep what the gradients of a row need of each block, or of one block."""
    blocks = 1
    if kind.itemsize == 4 and gradients and classes <= quick.LONGEST:
        blocks = (classes + SIZE - 1) // SIZE
    return np.empty((blocks, 3 * SIZE), np.float32), np.empty((blocks, quick.GUESSES))


@inline
def row_state(
    table: Buffer,
    own: int,
    other: int,
    row: int,
    classes: int,
    temperature: float,
    hot: Any,
    buffers: Buffer,
    stack: Any,
    room: tuple[Buffer, Buffer],
) -> tuple[bool, bool]:
    """Leave the state of a row in the first place of the stack; return `lost` and `fast`."""
    size = buffers.shape[1]
    kept, guesses = room
    guess = np.empty(quick.GUESSES)
    lost, fast, depth = False, True, 0
    for number, start in enumerate(range(0, classes, size)):
        n = min(size, classes - start)
        t = source(table, own, row * classes + start, n, buffers[0])
        s = source(table, other, row * classes + start, n, buffers[1])
        place = number if number < guesses.shape[0] else 0
        if fast:
            fast = quick.state(
                t,
                s,
                n,
                number == 0,
                address_of(kept[place]),
                temperature,
                hot,
                guess,
                stack[depth],
            )
        if fast:
            guesses[place] = guess
        else:
            lost |= _block(t, s, n, temperature, hot, buffers, stack[depth])
        depth += 1
        pairs = number + 1
        while pairs % 2 == 0:
            depth -= 1
            merge(stack[depth - 1], stack[depth], temperature)
            pairs //= 2
    while depth > 1:
        depth -= 1
        merge(stack[depth - 1], stack[depth], temperature)
    return lost, fast


# --- gradients ------------------------------------------------------------------------------------


@inline
def _gradient_s(
    t: int, s: int, n: int, out: int, a: Buffer, shift: float, by: float, hot: Any, kind: Buffer
) -> None:
    zero = like(kind[0], 0.0)
    t_top, s_top = like(zero, top(a[T_MAX])), like(zero, top(a[S_MAX]))
    t_scale, s_scale = like(zero, 1.0 / a[T_SUM]), like(zero, 1.0 / a[S_SUM])
    c, c_low, rest = split(a[PIVOT], a[PIVOT_LOW], zero)
    offset, inverse = like(zero, shift - rest * np.float64(hot[0])), hot[0]
    lowest, limit, scale = like(zero, limits(kind)[0]), like(zero, NEAR), like(zero, by)
    for k in range(n):
        a_low, b_low = finite(load(t, k, kind), lowest), finite(load(s, k, kind), lowest)
        high, low = two_difference(a_low, t_top)
        p = weight(high, low, hot) * t_scale
        high, low = two_difference(b_low, s_top)
        q = weight(high, low, hot) * s_scale
        d, d_low = two_difference(a_low, b_low)
        x = clipped(difference(d, d_low, c, c_low) * inverse, lowest) + offset
        excess = select(abs(x) < limit, p * (phi_near(x) - x), q - p)
        store(out, k, scale * excess)


@inline
def _gradient_t(
    t: int, s: int, n: int, out: int, a: Buffer, kl: float, factor: float, hot: Any, kind: Buffer
) -> None:
    zero = like(kind[0], 0.0)
    nothing = like(zero, -np.inf)
    t_top, t_scale = like(zero, top(a[T_MAX])), like(zero, 1.0 / a[T_SUM])
    c, c_low, rest = split(a[ANCHOR], a[ANCHOR_LOW], zero)
    mean = like(zero, rest * np.float64(hot[0]) + a[DRIFT] / a[T_SUM])
    masked = like(zero, np.nan if math.isnan(kl) else 0.0)
    gap = like(zero, np.nan if math.isnan(kl) or kl == np.inf else 0.0)
    lowest, inverse, scale = like(zero, limits(kind)[0]), hot[0], like(zero, factor)
    for k in range(n):
        raw = load(t, k, kind)
        a_low, b_low = finite(raw, lowest), finite(load(s, k, kind), lowest)
        high, low = two_difference(a_low, t_top)
        p = weight(high, low, hot) * t_scale
        d, d_low = two_difference(a_low, b_low)
        x = clipped(difference(d, d_low, c, c_low) * inverse, lowest) - mean
        store(out, k, select(raw == nothing, masked, scale * (p * (x + gap))))


@inline
def zeros(table: Buffer, which: int, start: int, n: int, buffer: Buffer) -> None:
    """Write zeros: the gradient of a row that a mask drops."""
    out = sink(table, which, start, buffer)
    for k in range(n):
        store(out, k, like(buffer[0], 0.0))
    flush(table, which, start, n, buffer)


# --- all ------------------------------------------------------------------------------------------


@inline
def _run(
    table: Buffer,
    classes: int,
    temperatures: Buffer,
    keep: Buffer,
    factors: Buffer,
    first: int,
    last: int,
    values: Buffer,
    buffers: Buffer,
) -> None:
    kind, size = buffers[0], buffers.shape[1]
    stack = np.empty((LEVELS, FIELDS))
    temperature = temperatures[0]
    hot = heat(temperature, kind)
    gradients = table[GRADIENT_S, ADDRESS] != 0 or table[GRADIENT_T, ADDRESS] != 0
    room = room_for(classes, gradients, kind)
    for row in range(first, last):
        if temperatures.size > 1:
            temperature = temperatures[row]
            hot = heat(temperature, kind)
        kept = keep.size == 0 or keep[row] != 0
        kl, offset, fast = 0.0, 0.0, False
        if kept:
            lost, fast = row_state(
                table, T, S, row, classes, temperature, hot, buffers, stack, room
            )
            kl, offset = finish(stack[0], lost)
        values[row] = kl
        if not gradients:
            continue
        fast = fast and classes <= quick.LONGEST
        factor = factors[row if factors.size > 1 else 0] / temperature
        for number, start in enumerate(range(0, classes, size)):
            n, at = min(size, classes - start), row * classes + start
            if fast:
                place, guess = address_of(room[0][number]), room[1][number]
                for which in (GRADIENT_S, GRADIENT_T):
                    if table[which, ADDRESS] != 0:
                        out = sink(table, which, at, buffers[2])
                        quick.gradient(
                            which == GRADIENT_T,
                            place,
                            n,
                            out,
                            guess,
                            stack[0],
                            offset,
                            factor,
                            temperature,
                            kind,
                        )
                        flush(table, which, at, n, buffers[2])
                continue
            if not kept:
                for which in (GRADIENT_S, GRADIENT_T):
                    if table[which, ADDRESS] != 0:
                        zeros(table, which, at, n, buffers[2])
                continue
            t = source(table, T, at, n, buffers[0])
            s = source(table, S, at, n, buffers[1])
            if table[GRADIENT_S, ADDRESS] != 0:
                out = sink(table, GRADIENT_S, at, buffers[2])
                _gradient_s(t, s, n, out, stack[0], offset, factor, hot, kind)
                flush(table, GRADIENT_S, at, n, buffers[2])
            if table[GRADIENT_T, ADDRESS] != 0:
                out = sink(table, GRADIENT_T, at, buffers[2])
                _gradient_t(t, s, n, out, stack[0], kl, factor, hot, kind)
                flush(table, GRADIENT_T, at, n, buffers[2])


_SIGNATURE = "void(i8[:,::1], i8, f8[::1], u1[::1], f8[::1], i8, i8, f8[::1])"


@kernel(_SIGNATURE)
def float32(
    table: Buffer,
    classes: int,
    temperatures: Buffer,
    keep: Buffer,
    factors: Buffer,
    first: int,
    last: int,
    values: Buffer,
) -> None:
    """Compute rows ``first`` to ``last`` in float32."""
    buffers = np.empty((8, SIZE), np.float32)
    _run(table, classes, temperatures, keep, factors, first, last, values, buffers)


@kernel(_SIGNATURE)
def float64(
    table: Buffer,
    classes: int,
    temperatures: Buffer,
    keep: Buffer,
    factors: Buffer,
    first: int,
    last: int,
    values: Buffer,
) -> None:
    """Compute rows ``first`` to ``last`` in float64."""
    buffers = np.empty((8, 1024), np.float64)
    _run(table, classes, temperatures, keep, factors, first, last, values, buffers)
