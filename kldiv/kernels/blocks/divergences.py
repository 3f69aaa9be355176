"""Losses of rows of logits in float64, as they are usually written, and how exact they are.

Each takes the logits of a block, less their maximum and over the temperature. Terms add up to
something small where p and q are close: their rounding, about 10 units of float64, is known beside
the sum, so that each row's value and gradients come with a mark of whether they have all digits of
float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from kldiv.formulas import divergences as formulas
from kldiv.formulas import powers
from kldiv.formulas.interpolation import Interpolated
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.policy import PolicyLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv.kernels.blocks.arrays import Buffer

    Emit = Callable[[int, Buffer, Any], None]
    """Takes a side, a gradient, and a number or one of each row that it is to be multiplied by."""

ENOUGH: Final = 2.0**-24
"""Size, beside that of the terms, from which a sum of them in float64 is right to float32."""

BUFFERS: Final = 5

LOWEST: Final = -1e300
"""Instead of the logarithm of 0: finite times a probability."""

_LARGEST: Final = 2.0**120
"""A sum of powers, beyond which results may be no numbers of float32."""

_LEAST: Final = 1e-300
"""Above it e to the power of a number has all digits."""

_TIES: Final = 2.0**-44
"""Distance from the largest of some numbers, beside them, that is of rounding alone."""


class Found(NamedTuple):
    """Values of rows, and for each result of which rows it is certain."""

    values: Buffer
    certain: dict[int, Buffer]


def _sum(a: Buffer, b: Buffer) -> Buffer:
    """Return Σ a·b of each row. Not by a library for matrices, whose threads change results."""
    return np.einsum("ij,ij->i", a, b)[:, None]


def _size(values: Buffer, room: Buffer) -> Buffer:
    return np.abs(values, out=room).sum(axis=-1, keepdims=True)


class Plain:
    """A loss of rows, as it is usually written."""

    unbounded = False, False
    """Whether it is +∞ where the first logits alone, or the second alone, mask a class."""
    weighs = False
    """Whether gradients are handed out times the factors of rows."""

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
        """Return the values of rows; hand out gradients over the temperature.

        The first buffers have the logits: q's, then p's, of labels and policies p's, then q's.
        """
        raise NotImplementedError


class Jeffreys(Plain):
    """w·KL(P‖Q) + r·KL(Q‖P), KL(P‖Q) = Σ p x − log(Zt/Zs), x being the difference of logits."""

    def __init__(self, w: float, r: float) -> None:
        self.w, self.r = w, r
        self.unbounded = w != 0, r != 0

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
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
            emit(index, gradient, 1.0)
        return Found(values, certain)


class Mixture(Plain):
    """a·D(P‖M) + b·D(Q‖M), M = mP + (1 − m)Q, by log p, log q and log M; numbers of all rows.

    Or of each row: then it is Jensen-Shannon.
    """

    def __init__(self, m: Any, rest: Any, a: Any, b: Any) -> None:
        self.m, self.rest, self.a, self.b = m, rest, a, b
        self.shannon = a is m or (a, b) == (m, rest)

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
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
            certain[index] = weight * _size(rise, mixed) >= enough
            emit(index, rise, weight)
        return Found(values, certain)

    def _share(self, p: Buffer, q: Buffer, mixed: Buffer) -> Buffer:
        """Return (a p + b q)/M, of which u and v have a multiple."""
        found = self.a * p
        found += self.b * q
        found /= np.maximum(mixed, np.finfo(np.float64).tiny)
        return found


class TotalVariation(Plain):
    """½ Σ |p − q|."""

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
        q, p, apart, gradient, more = room
        t_sum, s_sum = (np.exp(a, out=a).sum(axis=-1, keepdims=True) for a in (p, q))
        np.multiply(q, t_sum / s_sum, out=apart)
        np.subtract(p, apart, out=apart)
        values = 0.5 * _size(apart, gradient) / t_sum
        certain = {formulas.VALUE: values >= ENOUGH}
        if wanted:
            # A difference that is next to rounding has no sign.
            np.multiply(p, _TIES, out=more)
            signed = np.greater_equal(gradient, more).all(axis=-1, keepdims=True)
            np.sign(apart, out=apart)
        for index in wanted:
            own, total, rate = (p, t_sum, 0.5) if index else (q, s_sum, -0.5)
            mean = _sum(own, apart) / total
            np.subtract(apart, mean, out=gradient)
            gradient *= own
            certain[index] = signed & (1.0 - mean * mean >= ENOUGH)  # the gradient's size
            emit(index, gradient, rate / total)
        return Found(values, certain)


class Powers(Plain):
    """scale·(1 − M)/(ακ), or −scale·log(M)/κ, of M = Σ p e^(−κℓ), ℓ = log p/q, by M − 1."""

    def __init__(self, divergence: powers.Alpha | powers.Renyi) -> None:
        numbers = divergence.alpha, divergence.kappa, divergence.scale
        self.alpha, self.kappa, self.scale = map(float, numbers)
        self.logarithmic = isinstance(divergence, powers.Renyi)
        self.unbounded = self.kappa < 0, False

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
        q, p, excess, gradient, more = room
        np.subtract(p, q, out=excess)
        t_sum, s_sum = (np.exp(a, out=a).sum(axis=-1, keepdims=True) for a in (p, q))
        rise, least = self._excess(p, q, excess, t_sum / s_sum, gradient)
        rise /= t_sum
        mass = 1.0 + rise
        enough = least * np.maximum(mass, 1.0)
        # Of a mass next to 0 the logarithm, or a share in it, has lost digits.
        usable = (mass < _LARGEST) & (mass > (ENOUGH if self.logarithmic else -1.0))
        certain = {formulas.VALUE: usable & (abs(rise) >= enough)}
        values = self.alpha * np.log1p(rise) if self.logarithmic else rise
        rate = (self.alpha / mass if self.logarithmic else 1.0) * (self.scale / t_sum)
        for index in wanted:
            if index:
                np.multiply(p, rise, out=gradient)
            else:
                np.multiply(q, mass * (t_sum / s_sum), out=gradient)
                gradient -= p
            gradient -= excess
            certain[index] = usable & (_size(gradient, more) >= enough * t_sum)
            emit(index, gradient, rate / (self.kappa if index else self.alpha))
        return Found(values * (-self.scale / (self.alpha * self.kappa)), certain)

    def _excess(
        self, p: Buffer, q: Buffer, steps: Buffer, ratio: Buffer, more: Buffer
    ) -> tuple[Buffer, float]:
        """Turn steps of log p/q into p (e^(−κℓ) − 1); return its sum, and from where it is certain.

        The ratio is that of p's sum to q's.
        """
        size = max(abs(self.kappa), 0.25)
        if self.alpha == 0.5:
            np.multiply(q, ratio, out=steps)
            np.sqrt(steps, out=steps)
            steps -= np.sqrt(p, out=more)
            rise = -0.5 * _sum(steps, steps)
            steps *= more
            return rise, ENOUGH * size
        if self.kappa == -1.0 and q.min() > _LEAST:
            np.divide(p, q, out=steps)
            steps /= ratio
            steps -= 1.0
        else:
            steps -= np.log(ratio)
            steps *= -self.kappa
            if np.abs(steps, out=more).max() < 0.5:
                np.expm1(steps, out=steps)
                size = abs(self.kappa)
            else:
                if self.kappa > 0:
                    np.minimum(steps, 700.0, out=steps)  # of classes that p masks
                np.exp(steps, out=steps)
                steps -= 1.0
        steps *= p
        return steps.sum(axis=-1, keepdims=True), ENOUGH * size


class RenyiZero(Plain):
    """−log(1 − L), L being the mass of Q where P has none."""

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
        q, p, outside, gradient, _ = room
        np.equal(p, LOWEST, out=outside)
        np.exp(q, out=q)
        q /= q.sum(axis=-1, keepdims=True)
        lost = _sum(q, outside) + 0.0 * p.sum(axis=-1, keepdims=True)
        for index in wanted:
            np.subtract(outside, lost, out=gradient)
            gradient *= q
            emit(index, gradient, 0.0 if index else 1.0 / (1.0 - lost))
        return Found(-np.log1p(-lost), dict.fromkeys((formulas.VALUE, *wanted), lost <= 0.5))


class RenyiInfinity(Plain):
    """The largest log(p/q)."""

    unbounded = True, False

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
        q, p, x, gradient, more = room
        np.subtract(p, q, out=x)
        if p.min() == LOWEST:
            np.copyto(x, -np.inf, where=p == LOWEST)
        if wanted:
            # Logits over T have roundings of their own size; between ties the formulas decide.
            np.abs(p, out=gradient)
            gradient += np.abs(q, out=more)
            gradient *= _TIES
            gradient += x
        t_sum, s_sum = (np.exp(a, out=a).sum(axis=-1, keepdims=True) for a in (p, q))
        top = x.max(axis=-1, keepdims=True)
        values, size = top - np.log(t_sum / s_sum), 1.0 + abs(top)
        certain = {formulas.VALUE: values >= ENOUGH * size}
        if wanted:
            np.greater_equal(gradient, top - _TIES * size, out=x)
            alone = x.sum(axis=-1, keepdims=True) == 1.0
        for index in wanted:
            np.divide(p if index else q, t_sum if index else s_sum, out=gradient)
            np.subtract(x, gradient, out=gradient)
            certain[index] = alone & (_size(gradient, more) >= ENOUGH)
            emit(index, gradient, 1.0 if index else -1.0)
        return Found(values, certain)


class Labels(Plain):
    """−log p(label) = log Z − b and the entropy log Z − Σ p b, b the logits less their maximum.

    With a reference, whose softmax is q, KL(P‖Q) besides.
    """

    unbounded = False, True
    weighs = True

    def __init__(
        self, loss: LabelLoss | PolicyLoss, labels: Buffer | None, factors: Buffer
    ) -> None:
        self.labels, self.entropic = labels, loss.entropic
        self.policy = isinstance(loss, PolicyLoss)
        self.factors = factors.reshape(len(factors), -1, 1)

    def of(self, room: list[Buffer], wanted: tuple[int, ...], emit: Emit) -> Found:
        b, c, p, gradient, more = room
        total = np.exp(b, out=p).sum(axis=-1, keepdims=True)
        log, known = np.log(total), np.ones(1, np.bool_)
        factors = [*self.factors.swapaxes(0, 1)]
        values, sizes = [], []
        # The gradient is p·(level + slope·b − weight·c), less a factor at the label.
        level, slope, weight = 0.0, 0.0, 0.0
        if self.labels is not None:
            known = (self.labels >= 0) & (self.labels < b.shape[-1])
            at = np.arange(len(b)), np.where(known, self.labels, 0)
            depth = b[at][:, None]
            known = known[:, None] & (depth > LOWEST)
            values.append(log - depth)
            sizes.append(1.0 + 0.0 * log)
            level = factors[0]
        if self.entropic:
            mean = _sum(p, b) / total
            values.append(log - mean)
            sizes.append(1.0 - mean)
            slope = -factors[len(values) - 1]
            level = level - slope * mean
        if self.policy:
            moved, weight = mean - _sum(p, c) / total, factors[-1]
            s_total = np.exp(c, out=more).sum(axis=-1, keepdims=True)
            values.append(moved - np.log(total / s_total))
            sizes.append(1.0 + abs(moved))
            slope, level = slope + weight, level - weight * moved
        value, size = np.hstack(values), np.hstack(sizes)
        certain = {formulas.VALUE: known & (value >= ENOUGH * size).all(axis=-1, keepdims=True)}
        enough = ENOUGH * (abs(self.factors[..., 0]) * size).sum(axis=-1, keepdims=True)
        for index in wanted:
            if index:
                np.exp(c, out=gradient)
                gradient *= total / s_total
                gradient -= p
                certain[index] = _size(gradient, more) >= ENOUGH * total
                emit(index, gradient, weight / total)
                continue
            if self.entropic:
                np.multiply(b, slope, out=gradient)
                if self.policy:
                    gradient -= np.multiply(c, weight, out=more)
                gradient += level
                gradient *= p
            else:
                np.multiply(p, level, out=gradient)
            if self.labels is not None:
                gradient[at] -= (factors[0] * total)[:, 0]
            certain[index] = known & (_size(gradient, more) >= enough * total)
            emit(index, gradient, 1.0 / total)
        return Found(value, certain)


def of(loss: Any, numbers: Sequence[Buffer] = (), factors: Any = None) -> Plain:
    """Return a loss as it is usually written, given numbers of each row and gradients' factors."""
    if isinstance(loss, LabelLoss | PolicyLoss):
        return Labels(loss, numbers[-1] if loss.labelled else None, factors)
    divergence = loss.divergence
    if isinstance(divergence, Interpolated):
        beta = numbers[-1].astype(np.float64)[:, None]
        return Mixture(beta, 1.0 - beta, beta, 1.0 - beta)
    if isinstance(divergence, formulas.OfMixture):
        return Mixture(*map(float, divergence.mix))
    if isinstance(divergence, formulas.Jeffreys):
        return Jeffreys(float(divergence.w), float(divergence.r))
    if isinstance(divergence, powers.Alpha | powers.Renyi):
        return Powers(divergence)
    others = {
        formulas.KullbackLeibler: Jeffreys(1.0, 0.0),
        formulas.TotalVariation: TotalVariation(),
        powers.RenyiZero: RenyiZero(),
        powers.RenyiInfinity: RenyiInfinity(),
    }
    return next(plain for kind, plain in others.items() if isinstance(divergence, kind))
