"""The work of a comparison, step by step; where each step runs is `kldiv.cli.runners`' affair."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import kldiv
from kldiv.cli.arithmetic import Linear, Logits
from kldiv.cli.blocks import Piece, Plan, Sizes
from kldiv.cli.forms import scale_of
from kldiv.cli.inputs import read_pair
from kldiv.cli.sums import Best, Columns, Seen
from kldiv.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kldiv.cli.arithmetic import Floats
    from kldiv.cli.blocks import Block, Index
    from kldiv.cli.inputs import Pair
    from kldiv.cli.request import Request

ONE: Final = 1e-6  # how far from 1 the sum of printed probabilities may be, at least


@dataclass(frozen=True, slots=True)
class Job:
    """All that another process needs to know."""

    request: Request
    normalized: tuple[bool, bool]
    sizes: Sizes
    arrays: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and dtype of P and Q."""
    version: str = kldiv.__version__


@dataclass(slots=True)
class Part:
    """What a step adds to the result."""

    rows: list[tuple[Index, Floats, Floats | None]] = field(default_factory=list)
    """The divergences, and the totals of P and Q unless these were known, of some rows."""
    columns: Columns | None = None
    best: Best | None = None
    """In place of columns where these are complete."""
    seen: tuple[Seen, Seen] = field(default_factory=lambda: (Seen(), Seen()))


class Work:
    """Two files, how they are gone through, and what is done with each step."""

    def __init__(
        self, request: Request, pair: Pair, normalized: tuple[bool, bool], sizes: Sizes
    ) -> None:
        self.pair = pair
        self.scale = scale_of(request)
        self.arrays = pair.p.array, pair.q.array
        self.plan = Plan(*self.arrays, pair.axis, sizes)
        declared = tuple((array.shape, str(array.dtype)) for array in self.arrays)
        self.job = Job(request, normalized, sizes, declared)
        self.two_reads = not self.plan.whole and (any(normalized) or isinstance(self.scale, Logits))

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
        """Return what the rows of a step must tell of some classes before `second`."""
        (block,) = self.plan.steps[number]
        shape = tuple(part.stop - part.start for part in block.rows)
        found = self.scale.nothing(block.count).reshape(*shape, -1)
        for each, pieces in self._blocks(number, (0, 1), check):
            at, width = _within(each.rows, block.rows), self.scale.width
            told = self.scale.first(*(each.read(piece) for piece in pieces))
            before = found[at].reshape(-1, width)
            found[at] = self.scale.join(before, told).reshape(found[at].shape)
        return found

    def second(self, number: int, known: Floats | None, check: Callable[[], None]) -> Part:
        """Return what a step adds up to; ``known`` is what the rows have told, if they had to."""
        part, pieces = Part(), self.plan.steps[number]
        start, rows = pieces[0].classes, pieces[0].rows
        columns = Columns(start)
        for block, both in self._blocks(number, (0, 1), check):
            told = None
            if known is not None:
                told = known[_within(block.rows, rows)].reshape(-1, known.shape[-1])
            self._measure(block, [block.read(piece) for piece in both], told, part, columns)
        if not self.plan.whole and pieces[0].count == self.pair.count:
            part.best = Best(self.job.request.top)
            part.best.add(columns)
        else:
            part.columns = columns
        return part

    def _measure(
        self, block: Block, raw: list[Floats], told: Floats | None, part: Part, columns: Columns
    ) -> None:
        scale, linear = self.scale, isinstance(self.scale, Linear)
        for seen, values in zip(part.seen, raw, strict=True):
            seen.add_elements(values, block, linear=linear)
        smooth = [scale.smooth(values) for values in raw]
        totals = told
        if totals is None:
            totals = np.stack([scale.total(values) for values in smooth], axis=1)
        p, q = (
            scale.normalize(values, totals[:, side]) if self.job.normalized[side] else values
            for side, values in enumerate(smooth)
        )
        parts = scale.divergences(p, q)
        if told is None:
            rows = scale.of_rows(raw[0], raw[1], parts)
        else:
            rows = scale.of_parts(raw[0], raw[1], parts, told)
        part.rows.append((block.rows, np.stack(rows), None if told is not None else totals))
        chances = scale.probabilities(p), scale.probabilities(q)
        columns.add_elements(block.classes, *chances, parts)

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
    """Do one step under the settings of the request, whatever thread this is."""
    with np.errstate(all="ignore"), kldiv.config_context(**work.job.request.settings):
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
    work = Work(job.request, read_pair(job.request), job.normalized, job.sizes)
    if work.job != job:
        raise InputError(
            f"a worker finds other arrays in {job.request.p} and {job.request.q}:"
            f" {work.job.arrays}, here they are {job.arrays}. All machines must see the same files"
        )
    return work
