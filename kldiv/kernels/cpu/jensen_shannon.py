"""Kernels of Jensen-Shannon from rows of logits: one read of memory, the rest from the cache.

The formulas are those of `kldiv.formulas.logits`: the state of a row first, then a term of each
class, and for a gradient the mean of log(p/m) before the gradient itself.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from kldiv.kernels.cpu.compiling import inline, kernel
from kldiv.kernels.cpu.elementary import exp, log
from kldiv.kernels.cpu.general import clipped, split, sum_of
from kldiv.kernels.cpu.instructions import like, select
from kldiv.kernels.cpu.memory import address_of, flush, load, sink, source, store
from kldiv.kernels.cpu.rows import (
    GRADIENT_S,
    GRADIENT_T,
    LEVELS,
    S,
    T,
    room_for,
    row_state,
    zeros,
)
from kldiv.kernels.cpu.state import (
    ANCHOR,
    ANCHOR_LOW,
    FIELDS,
    NEAR,
    PIVOT,
    PIVOT_LOW,
    S_MAX,
    S_SUM,
    T_MAX,
    T_SUM,
    difference,
    finish,
    finite,
    heat,
    limits,
    log1p_near,
    phi_near,
    top,
    two_difference,
    weight,
)
from kldiv.kernels.layout import ADDRESS, Buffer

_DEEP: Final = 69.0
"""r beyond which e^(−r), for p/q, would soon underflow in float32."""


@inline
def _less(x: Any) -> Any:
    """Return e⁻ˣ − 1."""
    limit = like(x, NEAR)
    near = select(x < -limit, -limit, select(x > limit, limit, x))
    return select(abs(x) < limit, phi_near(near) - near, exp(-x) - like(x, 1.0))


@inline
def _probabilities(own: Any, other: Any, a: Buffer, hot: Any) -> tuple[Any, Any]:
    """Return p and q of a class."""
    high, low = two_difference(own, like(own, top(a[T_MAX])))
    p = weight(high, low, hot) * like(own, 1.0 / a[T_SUM])
    high, low = two_difference(other, like(own, top(a[S_MAX])))
    return p, weight(high, low, hot) * like(own, 1.0 / a[S_SUM])


@inline
def _elements(
    t: int, s: int, n: int, a: Buffer, shift: float, beta: float, hot: Any, buffers: Buffer
) -> float:
    """Return the sum of the classes' terms, each of them ≥ 0."""
    kind, out = buffers[0], buffers[2]
    zero, one, half = like(kind[0], 0.0), like(kind[0], 1.0), like(kind[0], -0.5)
    c, c_low, left = split(a[PIVOT], a[PIVOT_LOW], zero)
    offset, inverse = like(zero, shift - left * np.float64(hot[0])), hot[0]
    lowest, most = like(zero, limits(kind)[0]), like(zero, 100.0)
    first, second = like(zero, beta), like(zero, 1.0 - beta)
    for k in range(n):
        own, other = finite(load(t, k, kind), lowest), finite(load(s, k, kind), lowest)
        p, q = _probabilities(own, other, a, hot)
        d, d_low = two_difference(own, other)
        rho = abs(clipped(difference(d, d_low, c, c_low) * inverse, lowest) + offset)
        # Beyond 100 the smaller one counts for nothing: so a masked class needs no case of its own.
        rho = select(rho > most, most, rho)
        gamma = select(q > p, second, first)
        rest = select(q > p, first, second)
        less, smaller = _less(rho), exp(-rho)
        g = rest * less
        m = gamma + rest * smaller  # 1 + g, right even where g is close to −1
        log_m = log(m)
        near = g > half
        gap = select(near, log1p_near(select(near, g, zero))[1], g - log_m)
        w = gamma * less / m
        log_ratio = select(near, gap - g, -log_m) - rho
        close = w > half
        w_near = select(close, w, zero)
        # (1+w) log(1+w) − w = w² − (1+w)(w − log(1+w))
        bregman = select(
            close,
            w * w - (one + w) * log1p_near(w_near)[1],
            (smaller / m) * log_ratio - w,
        )
        out[k] = select(q > p, q, p) * (gamma * gap + rest * m * bregman)
    return sum_of(out, n)


@inline
def _anchored(a: Buffer, shift: float, k: float, temperature: float) -> tuple[float, float, float]:
    """Return θ = 1/(1 + k e^z), 1 − θ and κ = θ e^z: z = log(p/q) at the anchor, k = β/(1−β)."""
    z = difference(a[ANCHOR], a[ANCHOR_LOW], a[PIVOT], a[PIVOT_LOW]) / temperature + shift
    small = math.exp(-abs(z))
    above, below = small + k, 1.0 + k * small
    if z > 0:
        return small / above, k / above, 1.0 / above
    return 1.0 / below, k * small / below, small / below


@inline
def _logs(
    t: int,
    s: int,
    n: int,
    p_at: int,
    out: int,
    a: Buffer,
    shift: float,
    anchored: Any,
    hot: Any,
    kind: Buffer,
) -> None:
    """Write p, and log(p/m) less its value where d is at the anchor."""
    zero, one = like(kind[0], 0.0), like(kind[0], 1.0)
    theta, rest, kappa = (
        like(zero, anchored[0]),
        like(zero, anchored[1]),
        like(zero, anchored[2]),
    )
    b, b_low, left = split(a[ANCHOR], a[ANCHOR_LOW], zero)
    behind = like(zero, left * np.float64(hot[0]))
    c, c_low, left = split(a[PIVOT], a[PIVOT_LOW], zero)
    offset, inverse = like(zero, shift - left * np.float64(hot[0])), hot[0]
    lowest, limit, deep = like(zero, limits(kind)[0]), like(zero, NEAR), like(zero, _DEEP)
    least = like(zero, math.exp(-_DEEP))
    for k in range(n):
        own, other = finite(load(t, k, kind), lowest), finite(load(s, k, kind), lowest)
        p, q = _probabilities(own, other, a, hot)
        d, d_low = two_difference(own, other)
        u = clipped(difference(b, b_low, d, d_low) * inverse, lowest) + behind
        r = clipped(difference(c, c_low, d, d_low) * inverse, lowest) - offset
        # The ratio of probabilities is right to a few u, e^r only to u·|r|.
        y = select(
            abs(u) < limit,
            theta * _less(-u),
            kappa * (q / select(p > zero, p, one)) - theta,
        )
        # log(1 + y) = log((1 − θ) + κ q/p), without overflow.
        larger = select(q > p, q, p)
        larger = select(larger > zero, larger, one)
        share = p / larger
        m = rest * share + kappa * (q / larger)
        m = select(m > zero, m, one) / select(share < least, least, share)
        far = log(m) + select(r > deep, r - deep, zero)
        near = (y > like(y, -0.5)) & (y < one)
        ell = -select(near, log1p_near(select(near, y, zero))[0], far)
        nan = select(p == p, zero, p)  # noqa: PLR0124 - of a row that is NaN
        store(p_at, k, p)
        store(out, k, ell + nan)


@inline
def _gradient(
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    own: int,  # row of the table: logits to differentiate in
    other: int,  # row of the table: the other logits
    which: int,  # row of the table: the gradient
    row: int,  # number of the row of logits
    classes: int,  # classes of a row
    weights: tuple[float, float],  # weights in the mixture, of own and of other
    factor: float,  # gradient in the row's divergence, over T
    temperature: float,  # of the row
    hot: Any,  # 5 numbers, `heat` of the temperature
    buffers: Buffer,  # [8, size], room, in the dtype to compute in
    a: Buffer,  # [FIELDS], state of the row, own as the teacher
    shift: float,  # log(p/q) less x, own as the teacher
) -> None:
    """Write the gradient in ``own`` of a row, given the state of (other, own)."""
    kind, size = buffers[0], buffers.shape[1]
    p, ell, out = buffers[3], buffers[4], buffers[5]
    anchored = _anchored(a, shift, weights[0] / weights[1], temperature)
    mean = 0.0 * shift  # NaN in a row that is
    for second in range(2):
        for start in range(0, classes, size):
            n, at = min(size, classes - start), row * classes + start
            t = source(table, own, at, n, buffers[0])
            s = source(table, other, at, n, buffers[1])
            _logs(t, s, n, address_of(p), address_of(ell), a, shift, anchored, hot, kind)
            if second == 0:
                for k in range(n):
                    out[k] = p[k] * ell[k]
                mean += sum_of(out, n)
            else:
                scale, middle = like(kind[0], weights[0] * factor), like(kind[0], mean)
                target = sink(table, which, at, out)
                for k in range(n):
                    store(target, k, scale * (p[k] * (ell[k] - middle)))
                flush(table, which, at, n, out)


@inline
def _run(
    table: Buffer,
    classes: int,
    beta: float,
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
    room = room_for(classes, False, kind)
    for row in range(first, last):
        if temperatures.size > 1:
            temperature = temperatures[row]
            hot = heat(temperature, kind)
        values[row] = 0.0
        if keep.size != 0 and keep[row] == 0:
            zeros(table, row * classes, classes, buffers)
            continue
        row_state(table, T, S, row, classes, temperature, hot, buffers, stack, room)
        kl, shift = finish(stack[0], False)
        total = 0.0 * kl if math.isnan(kl) else 0.0
        for start in range(0, classes, size):
            n, at = min(size, classes - start), row * classes + start
            t = source(table, T, at, n, buffers[0])
            s = source(table, S, at, n, buffers[1])
            total += _elements(t, s, n, stack[0], shift, beta, hot, buffers)
        values[row] = total
        factor = factors[row if factors.size > 1 else 0] / temperature
        if table[GRADIENT_T, ADDRESS] != 0:
            _gradient(
                table,
                T,
                S,
                GRADIENT_T,
                row,
                classes,
                (beta, 1.0 - beta),
                factor,
                temperature,
                hot,
                buffers,
                stack[0],
                shift,
            )
        if table[GRADIENT_S, ADDRESS] != 0:
            row_state(table, S, T, row, classes, temperature, hot, buffers, stack, room)
            kl, shift = finish(stack[0], False)
            _gradient(
                table,
                S,
                T,
                GRADIENT_S,
                row,
                classes,
                (1.0 - beta, beta),
                factor,
                temperature,
                hot,
                buffers,
                stack[0],
                shift,
            )


_SIGNATURE = "void(i8[:,::1], i8, f8, f8[::1], u1[::1], f8[::1], i8, i8, f8[::1])"


@kernel(_SIGNATURE)
def float32(
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    classes: int,  # classes of a row
    beta: float,  # β, the teacher's weight in the mixture
    temperatures: Buffer,  # [rows] or [1] of float64
    keep: Buffer,  # [rows] of uint8, 0 where a row is left out; or [0], for none
    factors: Buffer,  # [rows] or [1] of float64, gradient in each row's divergence
    first: int,  # the first row
    last: int,  # the row after the last
    values: Buffer,  # [rows] of float64, output: each row's divergence
) -> None:
    """Compute rows ``first`` to ``last`` in float32."""
    buffers = np.empty((8, 2048), np.float32)
    _run(table, classes, beta, temperatures, keep, factors, first, last, values, buffers)


@kernel(_SIGNATURE)
def float64(
    table: Buffer,  # [1 + arrays, STRIDES + axes] of int64, see `kldiv.kernels.layout`
    classes: int,  # classes of a row
    beta: float,  # β, the teacher's weight in the mixture
    temperatures: Buffer,  # [rows] or [1] of float64
    keep: Buffer,  # [rows] of uint8, 0 where a row is left out; or [0], for none
    factors: Buffer,  # [rows] or [1] of float64, gradient in each row's divergence
    first: int,  # the first row
    last: int,  # the row after the last
    values: Buffer,  # [rows] of float64, output: each row's divergence
) -> None:
    """Compute rows ``first`` to ``last`` in float64."""
    buffers = np.empty((8, 1024), np.float64)
    _run(table, classes, beta, temperatures, keep, factors, first, last, values, buffers)
