"""The work of a comparison, a step at a time; `kldiv.streaming.runners` chooses where it runs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv
from kldiv.errors import InputError, OptionError
from kldiv.streaming import tokens
from kldiv.streaming.blocks import Piece, Plan, Sizes
from kldiv.streaming.columns import Best, Columns
from kldiv.streaming.inputs import open_pair
from kldiv.streaming.logits import Logits, completed
from kldiv.streaming.scales import Rows
from kldiv.streaming.seen import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kldiv.streaming._types import Floats, Index
    from kldiv.streaming.blocks import Block
    from kldiv.streaming.inputs import Pair
    from kldiv.streaming.options import Options


@dataclass(frozen=True, slots=True)
class Job:
    """All that another process needs to know."""

    options: Options
    settings: tuple[tuple[str, str], ...]
    sizes: Sizes
    paths: tuple[str, str, str | None]
    """Of P, Q and next tokens, as another process finds them; empty for arrays."""
    declared: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and dtype of P and Q."""
    normalized: tuple[bool, bool] = (False, False)
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    """Of this run alone: a worker must not take the small files of an earlier one for these."""
    version: str = kldiv.__version__


@dataclass(slots=True)
class Part:
    """A step's part of the result."""

    rows: list[tuple[Index, Floats, Floats | None]] = field(default_factory=list)
    """The divergences, and the totals of P and Q unless these were known, of some rows."""
    columns: Columns | None = None
    best: Best | None = None
    """In place of columns where these are complete."""
    seen: tuple[Seen, Seen] = field(default_factory=lambda: (Seen(), Seen()))


class Work:
    """P and Q, the order in which they are read, and the arithmetic of each step.

    Parameters
    ----------
    job : Job
        The options and sizes.
    pair : Pair
        The arrays.
    """

    def __init__(self, job: Job, pair: Pair) -> None:
        self.job = job
        self.pair = pair
        self.scale = job.options.scale
        p, q = pair.tables
        self.arrays = p.array, q.array
        self.plan = Plan(*self.arrays, pair.places.axis, job.sizes)
        constants = any(job.normalized) or isinstance(self.scale, Logits)
        self.two_reads = constants and not self.plan.whole
        if any(pair.limited) and not self.plan.whole:
            raise OptionError(
                f"`memory` is too little for base files, whose rows are read whole: allow"
                f" {job.sizes.memory * pair.places.size // job.sizes.block:,} bytes"
            )

    def peek(self, number: int, side: int, check: Callable[[], None]) -> list[Any] | None:
        """Return the totals of rows of P (0) or Q (1), or None where numbers are not whole."""
        found = []
        for block, piece in self._blocks(number, (side,), check):
            values = block.read(piece[0])
            # A NaN is no argument: counts with a hole are counts.
            if np.any(np.abs(values - np.rint(values)) > 0):
                return None
            found.append((block.rows, values.sum(axis=-1)))
        return found

    def first(self, number: int, check: Callable[[], None]) -> Floats:
        """Read the classes of a step for the constants of their rows."""
        (block,) = self.plan.steps[number]
        shape = tuple(part.stop - part.start for part in block.rows)
        found = self.scale.nothing(block.count).reshape(*shape, -1)
        for each, pieces in self._blocks(number, (0, 1), check):
            at, width = _within(each.rows, block.rows), self.scale.width
            more = self.scale.first(*self._read(each, pieces))
            before = found[at].reshape(-1, width)
            found[at] = self.scale.join(before, more).reshape(found[at].shape)
        return found

    def second(self, number: int, known: Floats | None, check: Callable[[], None]) -> Part:
        """Return a step's part of the result, given the constants of its rows if they need any."""
        part, pieces = Part(), self.plan.steps[number]
        start, rows = pieces[0].classes, pieces[0].rows
        columns = Columns(start)
        for block, both in self._blocks(number, (0, 1), check):
            own = None
            if known is not None:
                own = known[_within(block.rows, rows)].reshape(-1, known.shape[-1])
            self._measure(block, self._read(block, both), own, part, columns)
        if not self.plan.whole and pieces[0].count == self.pair.places.count:
            part.best = Best(self.job.options.top)
            part.best.add(columns)
        else:
            part.columns = columns
        return part

    def _read(self, block: Block, pieces: list[Piece]) -> list[Floats]:
        """Return a block of P and of Q."""
        p, q = (block.read(piece) for piece in pieces)
        return completed(p, q, self.pair.limited) if any(self.pair.limited) else [p, q]

    def _measure(
        self, block: Block, raw: list[Floats], known: Floats | None, part: Part, columns: Columns
    ) -> None:
        scale = self.scale
        for seen, values in zip(part.seen, raw, strict=True):
            seen.add_elements(values, block, linear=scale.linear)
        smooth = [scale.smooth(values) for values in raw]
        totals = known
        if totals is None:
            totals = np.stack([scale.total(values) for values in smooth], axis=1)
        p, q = (
            scale.normalize(values, totals[:, side]) if self.job.normalized[side] else values
            for side, values in enumerate(smooth)
        )
        parts = scale.divergences(p, q)
        chances = scale.probabilities(p), scale.probabilities(q)
        whole = Rows((smooth[0], smooth[1]), p, q, chances)
        normalize = all(self.job.normalized)
        rows = np.stack(scale.rows(whole, parts, known, normalize=normalize))
        if self.job.options.quantization:
            following = self.pair.next_tokens
            if following is not None:
                following = following[block.rows].reshape(-1).astype(np.int64)
            more = tokens.of_rows(smooth, (p, q), chances, block.classes.start, following)
            rows = np.vstack([rows, more])
        part.rows.append((block.rows, rows, totals if known is None else None))
        columns.add_elements(block.classes, *chances, parts)

    def pairs(self, number: int) -> Iterator[tuple[Index, Floats, Floats]]:
        """Yield the rows of a step, and P and Q there."""
        for block, pieces in self._blocks(number, (0, 1), lambda: None):
            p, q = (block.read(piece) for piece in pieces)
            yield block.rows, p, q

    def _blocks(
        self, number: int, sides: tuple[int, ...], check: Callable[[], None]
    ) -> Iterator[tuple[Block, list[Piece]]]:
        for piece in self.plan.steps[number]:
            read = [Piece(self.arrays[side][piece.index], piece) for side in sides]
            for block in self.plan.blocks(piece):
                check()
                yield block, read


def _within(rows: Index, outer: Index) -> Index:
    """Return the place of rows within others."""
    return tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(rows, outer, strict=True)
    )


def do(work: Work, kind: str, arguments: tuple[Any, ...], check: Callable[[], None]) -> Any:
    """Do one step under the settings of the job, whatever thread this is."""
    with np.errstate(all="ignore"), kldiv.config_context(**dict(work.job.settings)):
        return getattr(work, kind)(*arguments, check)


def do_elsewhere(job: Job, kind: str, arguments: tuple[Any, ...]) -> Any:
    """Do one step in another process, which opens the files itself."""
    if job.version != kldiv.__version__:
        raise InputError(
            f"a worker has kldiv {kldiv.__version__}, but this is {job.version}; install one"
            " version on all machines"
        )
    return do(_opened(job), kind, arguments, lambda: None)


@lru_cache(maxsize=4)
def _opened(job: Job) -> Work:
    p, q, next_tokens = job.paths
    pair = open_pair(p, q, job.options, next_tokens)
    if pair.declared != job.declared:
        raise InputError(
            f"a worker finds other arrays in {job.paths[0]} and {job.paths[1]}: {pair.declared},"
            f" here they are {job.declared}. All machines must see the same files"
        )
    return Work(job, pair)
