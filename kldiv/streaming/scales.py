"""Probabilities and logarithms: sums to divide by, and each element's part of the divergences.

This is the little mathematics of streaming beyond kldiv's losses; that of logits is in
`kldiv.streaming.logits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import kldiv
from kldiv.formulas.remainders import times_phi

if TYPE_CHECKING:
    from typing import TypeAlias

    from kldiv.streaming._types import Floats, Triple

    Pair: TypeAlias = tuple[Floats, Floats]

_NEAR: Final = 1e-2  # nats below which a sum of elements loses digits that terms ≥ 0 keep
_LOG_2: Final = float(np.log1p(1.0))  # cancels the log1p of equal arguments exactly


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of P and Q in their several states."""

    read: Pair
    """As they were read and smoothed."""
    p: Floats
    q: Floats
    """Divided by their totals, where that is wanted."""
    chances: Pair
    """The probabilities that these stand for."""

    def take(self, where: Any) -> Rows:
        """Return some of the rows."""
        if where.all():
            return self
        read, chances = ((one[where], other[where]) for one, other in (self.read, self.chances))
        return Rows(read, self.p[where], self.q[where], chances)


class Scale:
    """How numbers stand for probabilities, on matrices of float64 with a row per distribution.

    Here they are these, or counts; subclasses have logarithms.  A row's divergences are the sums of
    its elements' unless a subclass says otherwise.
    """

    operation = "kl_div"
    """The loss that gives the divergences."""
    width = 2
    """Numbers of a row in the result of `first`."""
    empty = 0.0
    """The number of a class that does not occur, and the total of no classes."""
    linear = True
    """Whether numbers below 0 are none."""

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def smooth(self, values: Floats) -> Floats:
        """Smooth every class: add the same to it."""
        return values + self.smoothing if self.smoothing else values

    def total(self, values: Floats) -> Floats:
        """Return the divisor that normalises each row, its sum."""
        return np.asarray(np.sum(values, axis=-1))

    def merge(self, first: Floats, second: Floats) -> Floats:
        """Merge the totals of two blocks of classes."""
        return first + second

    def normalize(self, values: Floats, total: Floats) -> Floats:
        """Normalise rows by their totals."""
        return values / total[:, None]

    def probabilities(self, values: Floats) -> Floats:
        """Return the probabilities that the values stand for."""
        return values

    def divergences(self, p: Floats, q: Floats) -> Triple:
        """Return each element's part of D(P‖Q), D(Q‖P) and the Jensen-Shannon divergence."""
        mixture = np.log(0.5 * (p + q))
        pm, qm = _elements(mixture, p), _elements(mixture, q)
        return _elements(np.log(q), p), _elements(np.log(p), q), 0.5 * (pm + qm)

    # ---- rows whose classes come in parts: `first` of each part, `join`, `known`, then `rows` ----

    def nothing(self, rows: int) -> Floats:
        """Return the result of `first` for no classes."""
        return np.full((rows, 2), self.empty)

    def first(self, p: Floats, q: Floats) -> Floats:
        """Read some classes for the first time: return their totals, side by side."""
        return np.stack([self.total(self.smooth(values)) for values in (p, q)], axis=1)

    def join(self, one: Floats, other: Floats) -> Floats:
        """Join the results of `first` for two parts of the classes."""
        return self.merge(one, other)

    def known(self, first: Floats) -> Floats:
        """Return the constants that `rows` needs, totals first, given those of whole rows."""
        return first

    def rows(self, block: Rows, parts: Triple, known: Floats | None, *, normalize: bool) -> Triple:
        """Return the divergences of whole rows, or the share of some classes if some are `known`.

        ``parts`` are the divergences of the elements, and `normalize` says whether both P and Q
        were divided by their totals.  Sums of elements cancel where P and Q are close: there each
        term of Σ p·log(p/q) + q − p, which is never negative, is found as exactly as it can be.
        """
        excess = np.asarray(block.chances[1].sum(axis=-1) - block.chances[0].sum(axis=-1))
        first, second, third = (np.asarray(part.sum(axis=-1)) for part in parts)
        rows = np.stack([first + excess, second - excess, third])
        near = ~(rows > _NEAR).all(axis=0)
        if near.any():
            whole = normalize and known is None
            rows[:, near] = np.stack(self.exact(block.take(near), normalize=whole))
        return rows[0], rows[1], rows[2]

    def exact(self, block: Rows, *, normalize: bool) -> Triple:
        """Return the divergences of rows that may be close, or the share of some classes."""
        p, q = block.read if normalize else (block.p, block.q)
        return (
            np.asarray(kldiv.kl_divergence(p, q, normalize=normalize)),
            np.asarray(kldiv.kl_divergence(q, p, normalize=normalize)),
            np.asarray(kldiv.js_divergence(p, q, normalize=normalize)),
        )

    def finish(self, sums: Floats, first: Floats) -> Floats:
        """Return the divergences of rows, given the sums of their shares; a measure a row."""
        return sums


class Logarithmic(Scale):
    """Log-probabilities."""

    empty = -np.inf
    linear = False

    def total(self, values: Floats) -> Floats:
        """Return log(sum(exp)), shifted so that nothing overflows."""
        top = np.max(values, axis=-1)
        shift = np.where(np.isfinite(top), top, 0.0)
        return np.asarray(shift + np.log(np.sum(np.exp(values - shift[:, None]), axis=-1)))

    def merge(self, first: Floats, second: Floats) -> Floats:
        """Merge two values of log(sum(exp))."""
        return np.asarray(np.logaddexp(first, second))

    def normalize(self, values: Floats, total: Floats) -> Floats:
        """Subtract log(sum(exp)): with `total`, the log-softmax."""
        return values - total[:, None]

    def probabilities(self, values: Floats) -> Floats:
        """Exponentiate."""
        return np.asarray(np.exp(values))

    def divergences(self, p: Floats, q: Floats) -> Triple:
        """Return each element's part of D(P‖Q), D(Q‖P) and the Jensen-Shannon divergence."""
        top = np.maximum(p, q)
        mixture = top + (np.log1p(np.exp(np.minimum(p, q) - top)) - _LOG_2)
        mixture = np.where(top == -np.inf, top, mixture)
        pm, qm = _elements(mixture, p, log=True), _elements(mixture, q, log=True)
        return _elements(q, p, log=True), _elements(p, q, log=True), 0.5 * (pm + qm)

    def exact(self, block: Rows, *, normalize: bool) -> Triple:
        """Return sums of terms that come from the differences of the logarithms."""
        p, q, (one, other) = block.p, block.q, block.chances
        both = np.maximum(p, q) > -np.inf
        gap = np.where(both, q - p, 0.0)
        middle = 0.5 * (one + other)
        shares = 0.5 * (
            _remainder(p, one, _to_middle(gap), middle)
            + _remainder(q, other, _to_middle(-gap), middle)
        )
        return (
            np.asarray(_remainder(p, one, gap, other).sum(axis=-1)),
            np.asarray(_remainder(q, other, -gap, one).sum(axis=-1)),
            np.asarray(shares.sum(axis=-1)),
        )


def _remainder(p: Floats, one: Floats, gap: Floats, other: Floats) -> Floats:
    """Return p·log(p/q) + q − p, given log p, p, log(q/p) and q."""
    terms = np.where(gap == -np.inf, np.inf, times_phi(np, one, gap, other))
    return np.where(p == -np.inf, other, terms)


def _to_middle(gap: Floats) -> Floats:
    """Return log((p + q)/2p), given log(q/p)."""
    return np.maximum(gap, 0.0) + np.log1p(0.5 * np.expm1(-abs(gap)))


def _elements(log_q: Floats, p: Floats, *, log: bool = False) -> Floats:
    return np.asarray(kldiv.kl_div(log_q, p, reduction="none", log_target=log))
