"""Logits: divergences of whole rows, which no sum of elements is as exact as.

Where the classes come in parts, a first read merges the states of both directions, which give
D(P‖Q) and D(Q‖P), and a second read adds up the Jensen-Shannon divergence.  Base files keep each
row's largest logits only, of which `completed` makes whole rows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

import kldiv
from kldiv.formulas import shards
from kldiv.formulas.divergences import VALUE, JensenShannon, KullbackLeibler
from kldiv.formulas.packing import packed
from kldiv.formulas.rows import RowLoss
from kldiv.formulas.state import State, empty_state
from kldiv.readers.llama_files import RANGE
from kldiv.streaming.scales import Logarithmic

if TYPE_CHECKING:
    from kldiv.streaming._types import Floats, Triple
    from kldiv.streaming.scales import Rows

_Loss: Final = partial(RowLoss, "none", "float64", "float64", "float64")
_KL: Final = _Loss(KullbackLeibler(), 1.0)
_JS: Final = _Loss(JensenShannon(), 1.0)
_SIZE: Final = len(State._fields)
_SIDES: Final = slice(2, 2 + _SIZE), slice(2 + _SIZE, 2 + 2 * _SIZE)
"""Where the states of D(P‖Q) and D(Q‖P) lie, behind the totals."""


class Logits(Logarithmic):
    """Scores, whose softmax are the probabilities."""

    operation = "kl_div_with_logits"
    width = 2 + 2 * _SIZE

    def nothing(self, rows: int) -> Floats:
        """Return totals and states of no classes."""
        state = empty_state(np, np.zeros((rows, 1)))
        return np.hstack([super().nothing(rows), packed(np, [state, state])])

    def first(self, p: Floats, q: Floats) -> Floats:
        """Read some classes for the first time: return totals and the states of both directions."""
        state = _KL.settings(shards.ShardState).elements
        return np.hstack([super().first(p, q), state(np, q, p), state(np, p, q)])

    def join(self, one: Floats, other: Floats) -> Floats:
        """Join totals and states of two parts of the classes."""
        pairs = [[one[:, side], other[:, side]] for side in _SIDES]
        states = [shards.joined(_KL, np, pair) for pair in pairs]
        return np.hstack([self.merge(one[:, :2], other[:, :2]), *states])

    def known(self, first: Floats) -> Floats:
        """Return the totals and the constants of the state."""
        return np.hstack([first[:, :2], shards.merged(np, _KL, [first[:, _SIDES[0]]])])

    def rows(self, block: Rows, parts: Triple, known: Floats | None, *, normalize: bool) -> Triple:
        """Return the losses of whole rows, or some classes' share in the Jensen-Shannon one."""
        p, q = block.read  # not their softmax, which has lost the smallest classes
        if known is not None:
            nothing = np.zeros(len(p))  # the states give the rest in the end
            shares = _JS.settings(shards.ShardSums, given=(VALUE,)).elements(np, q, p, known[:, 2:])
            return nothing, nothing, np.asarray(shares[:, 0])
        return (
            np.asarray(kldiv.kl_div_with_logits(q, p, reduction="none")),
            np.asarray(kldiv.kl_div_with_logits(p, q, reduction="none")),
            np.asarray(kldiv.js_div_with_logits(q, p, reduction="none")),
        )

    def finish(self, sums: Floats, first: Floats) -> Floats:
        """Return the divergences by the states, and the summed shares."""
        value = _KL.settings(RowLoss, given=(VALUE,)).elements
        states = [shards.merged(np, _KL, [first[:, side]]) for side in _SIDES]
        return np.stack([*(np.asarray(value(np, state)) for state in states), sums[2]])


def completed(p: Floats, q: Floats, limited: tuple[bool, bool]) -> list[Floats]:
    """Return whole rows of P and Q with their unknown classes, −∞ where ``limited``, filled in.

    A class is given the other side's logit, both counted from their row's largest, or the end of
    the range if that is less: the divergence is then the least that the file allows, up to the
    probability of such classes, and 0 of rows alike. Classes of neither side stay −∞ in both.
    """
    values = [p, q]
    peaks = [each.max(axis=-1, keepdims=True) for each in values]
    gaps = [each - peak for each, peak in zip(values, peaks, strict=True)]
    for side in (0, 1):
        if limited[side]:
            unknown = values[side] == -np.inf
            filled = peaks[side] + np.minimum(gaps[1 - side], -RANGE)
            values[side] = np.where(unknown, filled, values[side])
    return values
