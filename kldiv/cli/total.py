"""What the steps done so far add up to."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.cli.rows import room
from kldiv.cli.sums import Best, Columns, Holes, Oddity, Seen
from kldiv.cli.work import ONE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from kldiv.cli.arithmetic import Floats
    from kldiv.cli.blocks import Block
    from kldiv.cli.work import Part, Work


class Total:
    """The sums over the steps done so far, and how far that is.

    Parameters
    ----------
    work : Work
        What is done.
    beside : Path or None
        Where divergences of more rows than memory should hold lie; None is a temporary file.
    """

    def __init__(self, work: Work, beside: Path | None = None) -> None:
        shape, plan, scale = work.pair.shape, work.plan, work.scale
        self._work = work
        self.phase = 0 if work.two_reads else 1
        self.done = 0
        """Steps of the phase: 0, where rows tell what must be known first, or 1."""
        self.rows = room(shape, beside)
        self.best = Best(work.job.request.top)
        self.columns = Columns(slice(0, work.pair.size)) if plan.whole else None
        self.seen = Seen(), Seen()
        # Rows that come in parts have told all only in the end.
        self._first: Floats | None = None
        if not plan.whole:
            width = scale.width if work.two_reads else 2
            self._first = scale.nothing(work.pair.count)[:, :width].reshape(*shape, width)

    def add_first(self, block: Block, told: Floats) -> None:
        """Add what the rows of a block tell of its classes."""
        if self._first is None:  # rows are whole, and there is nothing to tell first
            return
        before = self._first[block.rows]
        width = told.shape[-1]
        joined = self._work.scale.join(before.reshape(-1, width), told.reshape(-1, width))
        before[...] = joined.reshape(before.shape)
        self.done += 1

    def known(self, block: Block) -> Floats | None:
        """Return what a step needs to know of its rows."""
        if not self._work.two_reads or self._first is None:
            return None
        first = self._first[block.rows]
        known = self._work.scale.known(first.reshape(-1, first.shape[-1]))
        return known.reshape(*first.shape[:-1], -1)

    def add(self, part: Part) -> None:
        """Add a step."""
        for rows, values, totals in part.rows:
            self._add_rows(rows, values, totals)
        if part.best is not None:
            self.best.join(part.best)
        if part.columns is not None:
            self._add_columns(part.columns)
        for seen, more in zip(self.seen, part.seen, strict=True):
            seen.join(more)
        self.done += 1

    def _add_rows(self, rows: Any, values: Floats, totals: Floats | None) -> None:
        at = (slice(None), *rows)
        if self._first is None:
            self.rows[at] = values.reshape(self.rows[at].shape)
            self._see(totals)
            return
        self.rows[at] += values.reshape(self.rows[at].shape)
        if totals is not None:
            before = self._first[rows]
            before[...] = self._work.scale.join(before.reshape(-1, 2), totals).reshape(before.shape)

    def _add_columns(self, columns: Columns) -> None:
        if self.columns is None or (
            not self._work.plan.whole and self.columns.start != columns.start
        ):
            self._flush()
            self.columns = columns
        else:
            self.columns.add(columns)

    def _flush(self) -> None:
        """Take the classes whose rows have all been added."""
        if self.columns is not None:
            self.best.add(self.columns)
            self.columns = None

    def _see(self, totals: Any) -> None:
        scale = self._work.scale
        for side, seen in enumerate(self.seen):
            dtype = self._work.arrays[side].dtype
            rounding = math.sqrt(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
            mine = totals[:, side]
            seen.add_totals(mine, scale.probabilities(mine), scale.empty, max(ONE, rounding))

    def finish(self) -> None:
        """Finish the rows that came in parts, and the last classes."""
        self._flush()
        if self._first is None:
            return
        first = self._first.reshape(-1, self._first.shape[-1])
        self._see(first[:, :2])
        flat = self.rows.reshape(3, -1)
        flat[...] = self._work.scale.finish(flat, first)

    # ---- for a checkpoint ------------------------------------------------------------------------

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return all that must be kept, as arrays and as what JSON can hold."""
        arrays: dict[str, NDArray[Any]] = {"best": self.best.best, "masses": self.best.masses}
        if isinstance(self.rows, np.memmap):
            self.rows.flush()
        else:
            arrays["rows"] = self.rows
        if self._first is not None:
            arrays["first"] = self._first
        facts: dict[str, Any] = {"phase": self.phase, "done": self.done}
        facts["seen"] = [asdict(seen) for seen in self.seen]
        facts["holes"] = [asdict(holes) for holes in (self.best.zeros_q, self.best.zeros_p)]
        if self.columns is not None:
            for name in ("sums", "lost", "holes"):
                arrays[name] = getattr(self.columns, name)
            facts["start"] = self.columns.start
        return arrays, facts

    def restore(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """Take what `save` returned."""
        self.phase, self.done = int(facts["phase"]), int(facts["done"])
        self.best.best, self.best.masses = arrays["best"], arrays["masses"]
        self.best.zeros_q, self.best.zeros_p = (
            Holes(each["count"], each["mass"], [(mass, int(i)) for mass, i in each["largest"]])
            for each in facts["holes"]
        )
        if "rows" in arrays:
            self.rows[...] = arrays["rows"]
        if self._first is not None:
            self._first[...] = arrays["first"]
        first, second = (_seen(each) for each in facts["seen"])
        self.seen = first, second
        self.columns = None
        if "start" in facts:
            start = int(facts["start"])
            self.columns = Columns(slice(start, start + arrays["sums"].shape[1]))
            for name in ("sums", "lost", "holes"):
                getattr(self.columns, name)[...] = arrays[name]


def _seen(facts: dict[str, Any]) -> Seen:
    odd = {
        name: Oddity(facts[name]["count"], tuple(facts[name]["first"]))
        for name in ("undefined", "negative")
    }
    return Seen(**{**facts, **odd})
