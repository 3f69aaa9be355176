"""Whether P and Q are distributions of the same kind of thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kldiv.distributions import families as f
from kldiv.distributions.wrappers import VECTORS, event_rank
from kldiv.errors import ShapeError

if TYPE_CHECKING:
    from kldiv.distributions.base import Distribution


def check_outcomes(p: Distribution, q: Distribution) -> None:
    """Raise where an outcome of one has other axes, or another length, than one of the other."""
    ranks = event_rank(p), event_rank(q)
    if None not in ranks and ranks[0] != ranks[1]:
        words = [_words(d, rank or 0) for d, rank in zip((p, q), ranks, strict=True)]
        raise ShapeError(
            f"an outcome of {words[0]}, one of {words[1]}: a divergence is between distributions "
            "of the same thing; distributions.Independent(…, 1) makes the last axis of a batch one "
            "outcome"
        )
    sizes = _length(p), _length(q)
    if None not in sizes and sizes[0] != sizes[1]:
        raise ShapeError(
            f"an outcome of {p.label()} has length {sizes[0]}, one of {q.label()} {sizes[1]}: a "
            "divergence is between distributions of the same thing; give both the same length"
        )


def _words(d: Distribution, rank: int) -> str:
    kind = {0: "a number", 1: "a vector"}.get(rank, f"an array of {rank} axes")
    return f"{d.label()} is {kind}"


def _length(d: Distribution) -> int | None:
    """Return the length of a family's vectors, or its number of classes."""
    if d.support not in VECTORS and not isinstance(d, f.Categorical):
        return None
    lengths = {
        value.shape[-1] for name, value in d.parameters() if d.event_axes.get(name) and value.shape
    }
    return max(lengths, default=None)
