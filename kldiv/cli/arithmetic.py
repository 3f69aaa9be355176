"""The little mathematics of the command line beyond kldiv's losses, in this one place.

It prepares what `kldiv.kl_div` takes: sums to divide by, logarithms, the mixture of two
distributions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import numpy as np

import kldiv
from kldiv.cli import split_logits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Triple: TypeAlias = tuple[Floats, Floats, Floats]

_LOG_2: Final = float(np.log1p(1.0))  # cancels the log1p of equal arguments exactly


class Scale(Protocol):
    """How numbers stand for probabilities: `Linear` or `Logarithmic`; on matrices of float64."""

    operation: str
    """The loss that gives the divergences of a row."""
    width: int
    """Numbers that `first` gives a row."""
    empty: float
    """The number of a class that does not occur, and the total of no classes."""

    def smooth(self, values: Floats) -> Floats:
        """Return the values with every class smoothed."""

    def total(self, values: Floats) -> Floats:
        """Return what each row is normalised by."""

    def merge(self, first: Floats, second: Floats) -> Floats:
        """Return the total of two blocks of classes from theirs."""

    def normalize(self, values: Floats, total: Floats) -> Floats:
        """Return the values of distributions that sum to 1."""

    def probabilities(self, values: Floats) -> Floats:
        """Return the probabilities that the values stand for."""

    def divergences(self, p: Floats, q: Floats) -> Triple:
        """Return each element's part of D(P‖Q), D(Q‖P) and the Jensen-Shannon divergence."""

    # ---- of rows, whose classes may come in parts ------------------------------------------------

    def nothing(self, rows: int) -> Floats:
        """Return what `first` gives for no classes."""

    def first(self, p: Floats, q: Floats) -> Floats:
        """Return what rows must tell of some classes before more can be said: totals first."""

    def join(self, one: Floats, other: Floats) -> Floats:
        """Return the same of the classes of both."""

    def of_rows(self, p: Floats, q: Floats, parts: Triple) -> Triple:
        """Return the divergences of whole rows, given those of their elements."""

    def of_parts(self, p: Floats, q: Floats, parts: Triple, known: Floats) -> Triple:
        """Return the share of some classes in the divergences of their rows, given `first`."""

    def known(self, first: Floats) -> Floats:
        """Return what `of_parts` needs of what `first` gave for whole rows."""

    def finish(self, sums: Floats, first: Floats) -> Floats:
        """Return the divergences of rows, given the sums of shares; a row of the array each."""


class _Sums:
    """Rows that are the sums of their elements."""

    width = 2
    empty: float

    def total(self, values: Floats) -> Floats:
        """Return what each row is normalised by."""
        raise NotImplementedError

    def smooth(self, values: Floats) -> Floats:
        """Return the values with every class smoothed."""
        raise NotImplementedError

    def merge(self, first: Floats, second: Floats) -> Floats:
        """Return the total of two blocks of classes from theirs."""
        raise NotImplementedError

    def nothing(self, rows: int) -> Floats:
        """Return the totals of no classes."""
        return np.full((rows, 2), self.empty)

    def first(self, p: Floats, q: Floats) -> Floats:
        """Return the totals of both."""
        return np.stack([self.total(self.smooth(values)) for values in (p, q)], axis=1)

    def join(self, one: Floats, other: Floats) -> Floats:
        """Return the totals of the classes of both."""
        return self.merge(one, other)

    def of_rows(self, p: Floats, q: Floats, parts: Triple) -> Triple:  # noqa: ARG002
        """Return the sums of each row."""
        first, second, third = (np.asarray(part.sum(axis=-1)) for part in parts)
        return first, second, third

    def of_parts(self, p: Floats, q: Floats, parts: Triple, known: Floats) -> Triple:  # noqa: ARG002
        """Return the sums of each row."""
        return self.of_rows(p, q, parts)

    def known(self, first: Floats) -> Floats:
        """Return nothing but the totals."""
        return first

    def finish(self, sums: Floats, first: Floats) -> Floats:  # noqa: ARG002
        """Return the sums."""
        return sums


class Linear(_Sums):
    """Probabilities or counts."""

    operation = "kl_div"
    empty = 0.0

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def smooth(self, values: Floats) -> Floats:
        """Add the same to every class."""
        return values + self.smoothing if self.smoothing else values

    def total(self, values: Floats) -> Floats:
        """Return the sums."""
        return np.asarray(np.sum(values, axis=-1))

    def merge(self, first: Floats, second: Floats) -> Floats:
        """Return the sum of two sums."""
        return first + second

    def normalize(self, values: Floats, total: Floats) -> Floats:
        """Divide by the sums."""
        return values / total[:, None]

    def probabilities(self, values: Floats) -> Floats:
        """Return the values, which are the probabilities."""
        return values

    def divergences(self, p: Floats, q: Floats) -> Triple:
        """Return each element's part of D(P‖Q), D(Q‖P) and the Jensen-Shannon divergence."""
        mixture = np.log(0.5 * (p + q))
        pm, qm = _elements(mixture, p), _elements(mixture, q)
        return _elements(np.log(q), p), _elements(np.log(p), q), 0.5 * (pm + qm)


class Logarithmic(_Sums):
    """Log-probabilities."""

    operation = "kl_div"
    empty = -np.inf

    def smooth(self, values: Floats) -> Floats:
        """Return the values: there is no smoothing of logarithms."""
        return values

    def total(self, values: Floats) -> Floats:
        """Return log(sum(exp)), shifted so that nothing overflows."""
        top = np.max(values, axis=-1)
        shift = np.where(np.isfinite(top), top, 0.0)
        return np.asarray(shift + np.log(np.sum(np.exp(values - shift[:, None]), axis=-1)))

    def merge(self, first: Floats, second: Floats) -> Floats:
        """Return the log(sum(exp)) of two of them."""
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


class Logits(Logarithmic):
    """Logits: their rows as a whole have divergences that no sum of elements is as exact as."""

    operation = "kl_div_with_logits"

    width = 2 + split_logits.WIDTH

    def nothing(self, rows: int) -> Floats:
        """Return totals and states of no classes."""
        return np.hstack([super().nothing(rows), split_logits.empty(rows)])

    def first(self, p: Floats, q: Floats) -> Floats:
        """Return totals and states of both directions."""
        return np.hstack([super().first(p, q), split_logits.states(p, q)])

    def join(self, one: Floats, other: Floats) -> Floats:
        """Return totals and states of the classes of both."""
        totals = self.merge(one[:, :2], other[:, :2])
        return np.hstack([totals, split_logits.merged([one[:, 2:], other[:, 2:]])])

    def of_rows(self, p: Floats, q: Floats, parts: Triple) -> Triple:  # noqa: ARG002
        """Return what the losses give: exact at any distance."""
        return (
            np.asarray(kldiv.kl_div_with_logits(q, p, reduction="none")),
            np.asarray(kldiv.kl_div_with_logits(p, q, reduction="none")),
            np.asarray(kldiv.js_div_with_logits(q, p, reduction="none")),
        )

    def of_parts(self, p: Floats, q: Floats, parts: Triple, known: Floats) -> Triple:  # noqa: ARG002
        """Return the share in JS; the states have told the rest."""
        nothing = np.zeros(len(p))
        return nothing, nothing, split_logits.js(p, q, known[:, 2:])

    def known(self, first: Floats) -> Floats:
        """Return the totals, and the constants of the state."""
        return np.hstack([first[:, :2], split_logits.constants(first[:, 2:])])

    def finish(self, sums: Floats, first: Floats) -> Floats:
        """Return what the states and the shares give."""
        return np.stack([*split_logits.kl(first[:, 2:]), sums[2]])


def _elements(log_q: Floats, p: Floats, *, log: bool = False) -> Floats:
    return np.asarray(kldiv.kl_div(log_q, p, reduction="none", log_target=log))
