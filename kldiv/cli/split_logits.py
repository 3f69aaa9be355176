"""Divergences of rows of logits whose classes come in parts: states, then one more read for JS."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from kldiv.formulas import shards
from kldiv.formulas.divergences import VALUE
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss
from kldiv.formulas.state import State, empty_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv.cli.arithmetic import Floats

_Loss: Final = partial(RowLoss, "none", "float64", "float64", "float64")
_KL: Final = _Loss(KullbackLeibler(), 1.0)
_JS: Final = _Loss(JensenShannon(), 1.0)
_SIZE: Final = len(State._fields)
WIDTH: Final = 2 * _SIZE
"""Numbers a row: the states of both directions."""


def empty(rows: int) -> Floats:
    """Return the states of no classes."""
    one = empty_state(np, np.zeros((rows, 1)))
    return np.asarray(shards.packed(np, [one, one]))


def states(p: Floats, q: Floats) -> Floats:
    """Return the states of D(P‖Q) and D(Q‖P) over some classes, side by side."""
    operation = _KL.settings(shards.ShardState)
    return np.hstack([operation.elements(np, q, p), operation.elements(np, p, q)])


def merged(parts: Sequence[Floats]) -> Floats:
    """Return the states of the classes of all parts together."""
    both = ([part[:, :_SIZE] for part in parts], [part[:, _SIZE:] for part in parts])
    return np.hstack([shards.combined(np, _KL, side, done=False) for side in both])


def constants(state: Floats) -> Floats:
    """Return what `js` needs to know of whole rows."""
    return np.asarray(shards.merged(np, _KL, [state[:, :_SIZE]]))


def js(p: Floats, q: Floats, known: Floats) -> Floats:
    """Return the share that some classes have in the Jensen-Shannon divergence of each row."""
    operation = _JS.settings(shards.ShardSums, wanted=(VALUE,))
    return np.asarray(operation.elements(np, q, p, known)[:, 0])


def kl(state: Floats) -> tuple[Floats, Floats]:
    """Return D(P‖Q) and D(Q‖P) of each row, given the states of all its classes."""
    sides = state[:, :_SIZE], state[:, _SIZE:]
    whole = [shards.merged(np, _KL, [side]) for side in sides]
    operation = _KL.settings(shards.ShardValues)
    first, second = (operation.elements(np, each) for each in whole)
    return np.asarray(first), np.asarray(second)
