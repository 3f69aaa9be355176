"""Numbers of each row for the report on a quantised model, beside its divergences.

Of rows that come in parts, each part gives its own, and `join` puts them together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.metrics import Histogram, Quantization, QuantizationReport
from kldiv.metrics.quantization import PERCENTILES
from kldiv.streaming.rows import chunks, percentiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kldiv.streaming._types import Floats

ACCEPTED: Final = 0
"""Σ min(p, q)."""
TOP_P, FIRST_P, TOP_Q, FIRST_Q = 1, 2, 3, 4
"""The largest number of P and its place, and those of Q."""
LOG_P, LOG_Q = 5, 6
"""Log-probabilities of the next token."""
WIDTH: Final = 7
"""Numbers of a row."""

_EDGES: Final = np.logspace(-16, 3, 191)


def nothing(shape: tuple[int, ...]) -> Floats:
    """Return the numbers of rows of no classes."""
    found = np.zeros((WIDTH, *shape))
    found[[TOP_P, TOP_Q]] = -np.inf
    return found


def of_rows(
    read: Sequence[Floats],
    logs: Sequence[Floats],
    chances: Sequence[Floats],
    start: int,
    next_tokens: NDArray[Any] | None,
) -> Floats:
    """Return the numbers of some classes, from ``start`` on, of rows of P and Q.

    They are given as they were read, as log-probabilities and as probabilities.
    """
    found = nothing((len(read[0]),))
    rows = np.arange(len(read[0]))
    found[ACCEPTED] = np.minimum(*chances).sum(axis=-1)
    for values, top, first in zip(read, (TOP_P, TOP_Q), (FIRST_P, FIRST_Q), strict=True):
        place = values.argmax(axis=-1)
        found[top], found[first] = values[rows, place], place + start
    if next_tokens is not None:
        place = next_tokens - start
        here = (place >= 0) & (place < read[0].shape[-1]) & (next_tokens >= 0)
        for values, log in zip(logs, (LOG_P, LOG_Q), strict=True):
            found[log, here] = values[rows[here], place[here]]
    return found


def join(before: Floats, more: Floats) -> None:
    """Add the numbers of further classes, which come in any order, to those of some."""
    for i in (ACCEPTED, LOG_P, LOG_Q):
        before[i] += more[i]
    for top, first in ((TOP_P, FIRST_P), (TOP_Q, FIRST_Q)):
        larger = (more[top] > before[top]) | (
            (more[top] == before[top]) & (more[first] < before[first])
        )
        for i in (top, first):
            before[i] = np.where(larger, more[i], before[i])


def report(
    kl: Floats, rows: Floats, next_tokens: NDArray[Any] | None, *, limited: bool
) -> QuantizationReport:
    """Return the report of all rows, looking at a part of them at a time.

    Where the range of P or Q is limited, a next token may be unknown to both.
    """
    kl, rows = kl.reshape(-1), rows.reshape(WIDTH, -1)
    tokens = None if next_tokens is None else next_tokens.reshape(-1)
    metric, counts, below = Quantization(), np.zeros(len(_EDGES) - 1, np.int64), 0
    for part in chunks(len(kl)):
        some = rows[:, part]
        same = np.where(np.isnan(some[ACCEPTED]), np.nan, some[FIRST_P] == some[FIRST_Q])
        logs = () if tokens is None else (some[LOG_P], some[LOG_Q])
        known = None if tokens is None else np.asarray(tokens[part] >= 0)
        if known is not None and limited:
            known &= np.isfinite(some[LOG_P] + some[LOG_Q])
        metric.update_rows(kl[part], some[ACCEPTED], same, *logs, known=known)
        counts += np.histogram(np.clip(kl[part], None, _EDGES[-1]), _EDGES)[0]
        below += int(np.count_nonzero(kl[part] < _EDGES[0]))
    return replace(
        metric.compute(),
        kl_percentiles=dict(zip(PERCENTILES, percentiles(kl, PERCENTILES), strict=True)),
        histogram=Histogram(_EDGES, counts, below),
    )
