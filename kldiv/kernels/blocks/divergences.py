"""Divergences of rows of logits in float64, as they are usually written, and how exact they are.

Each takes the logits of a block, less their maximum and over the temperature. Terms add up to
something small where p and q are close: their rounding, about 10 units of float64, is known beside
the sum, so that each row's value and gradients come with a mark of whether they have all digits of
float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.formulas import divergences as formulas

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv.kernels.blocks.arrays import Buffer

    Emit = Callable[[int, Buffer], None]

ENOUGH: Final = 2.0**-24
"""Size, beside that of the terms, from which a sum of them in float64 is right to float32."""

BUFFERS: Final = 5


class Found(NamedTuple):
    """Values of rows, and for each result of which rows it is certain."""

    values: Buffer
    certain: dict[int, Buffer]


def _sum(a: Buffer, b: Buffer) -> Buffer:
    """Return Σ a·b of each row. Not by a library for matrices, whose threads change results."""
    return np.einsum("ij,ij->i", a, b)[:, None]


def _size(values: Buffer, room: Buffer) -> Buffer:
    return np.abs(values, out=room).sum(axis=-1, keepdims=True)


class Jeffreys:
    """w·KL(P‖Q) + r·KL(Q‖P), KL(P‖Q) = Σ p x − log(Zt/Zs), x being the difference of logits."""

    def __init__(self, w: float, r: float) -> None:
        self.w, self.r = w, r
        self.unbounded = w != 0, r != 0

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
        """Return the values of rows; hand out gradients over the temperature."""
        w, r = self.w, self.r
        q, p, x, gradient, more = room
        np.subtract(p, q, out=x)
        t_sum, s_sum = (np.exp(a, out=a).sum(axis=-1, keepdims=True) for a in (p, q))
        log = np.log(t_sum / s_sum)
        of_p, of_q = _sum(p, x) / t_sum, _sum(q, x) / s_sum if r else 0.0
        values = w * (of_p - log) + r * (log - of_q)
        scale = ENOUGH * (w * (1.0 + abs(of_p)) + r * (1.0 + abs(of_q)))
        certain = {formulas.VALUE: values >= scale}
        if wanted:
            p /= t_sum
            q /= s_sum
        for index in wanted:
            near, far = (w, r) if index else (r, w)
            np.subtract(p, q, out=gradient)
            gradient *= far if index else -far
            if near:
                np.subtract(x, of_p if index else of_q, out=more)
                more *= p if index else q
                more *= near if index else -near
                gradient += more
            certain[index] = _size(gradient, more) >= scale
            emit(index, gradient)
        return Found(values, certain)


class Mixture:
    """a·D(P‖M) + b·D(Q‖M), M = mP + (1 − m)Q, by log p, log q and log M."""

    unbounded = False, False

    def __init__(self, m: float, rest: float, a: float, b: float) -> None:
        self.m, self.rest, self.a, self.b = m, rest, a, b
        self.shannon = (a, b) == (m, rest)

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
        """Return the values of rows; hand out gradients over the temperature."""
        log_q, log_p, p, q, mixed = room
        for log, own in ((log_p, p), (log_q, q)):
            total = np.exp(log, out=own).sum(axis=-1, keepdims=True)
            np.divide(own, total, out=own)
            np.subtract(log, np.log(total), out=log)
        np.multiply(q, self.rest / self.m, out=mixed)
        mixed += p
        mixed *= self.m
        share = None if self.shannon or not wanted else self._share(p, q, mixed)
        np.log(np.maximum(mixed, np.finfo(np.float64).tiny, out=mixed), out=mixed)
        log_p -= mixed
        log_q -= mixed
        means = _sum(q, log_q), _sum(p, log_p)
        values = self.a * means[1] + self.b * means[0]
        enough = ENOUGH * (self.a + self.b)
        certain = {formulas.VALUE: values >= enough}
        for index in wanted:
            own, rise, weight, part = (
                (p, log_p, self.a, self.m) if index else (q, log_q, self.b, self.rest)
            )
            mean = means[index]
            if share is not None:
                rise *= weight
                np.multiply(share, part, out=mixed)
                rise -= mixed
                weight, mean = 1.0, _sum(own, rise)
            rise -= mean
            rise *= own
            rise *= weight
            certain[index] = _size(rise, mixed) >= enough
            emit(index, rise)
        return Found(values, certain)

    def _share(self, p: Buffer, q: Buffer, mixed: Buffer) -> Buffer:
        """Return (a p + b q)/M, of which u and v have a multiple."""
        found = self.a * p
        found += self.b * q
        found /= np.maximum(mixed, np.finfo(np.float64).tiny)
        return found


def of(divergence: Any) -> Jeffreys | Mixture:
    """Return the divergence of a formula."""
    if isinstance(divergence, formulas.OfMixture):
        return Mixture(*map(float, divergence.mix))
    if isinstance(divergence, formulas.Jeffreys):
        return Jeffreys(float(divergence.w), float(divergence.r))
    if isinstance(divergence, formulas.KullbackLeibler):
        return Jeffreys(1.0, 0.0)
    raise TypeError(type(divergence).__name__)
