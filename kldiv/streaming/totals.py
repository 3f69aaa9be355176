"""The sums over the steps done so far."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.streaming import tokens
from kldiv.streaming.columns import Best, Columns, Holes
from kldiv.streaming.rows import room
from kldiv.streaming.seen import Oddity, Seen

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from kldiv.streaming._types import Floats
    from kldiv.streaming.blocks import Block
    from kldiv.streaming.work import Part, Work

ONE: Final = 1e-6  # how far from 1 the sum of printed probabilities may be, at least


_quiet: Final = np.errstate(all="ignore")  # infinities are results, and NaN is answered for


class Total:
    """The sums over the steps done so far, and their number.

    Parameters
    ----------
    work : Work
        The comparison.
    beside : Path or None
        The file for the divergences of more rows than memory should hold; None is a temporary one.
    """

    def __init__(self, work: Work, beside: Path | None = None) -> None:
        places, plan, scale = work.pair.places, work.plan, work.scale
        self._work = work
        self.phase = 0 if work.two_reads else 1
        self.done = 0
        """Steps of the phase: 0, which reads the constants of rows, or 1."""
        self.best = Best(work.job.options.top)
        self.columns = Columns(slice(0, places.size)) if plan.whole else None
        self.seen = Seen(), Seen()
        self._first: Floats | None = None
        more = tokens.WIDTH if work.job.options.quantization else 0
        if plan.whole:
            self.rows = room((3 + more, *places.shape), beside)
        else:  # complete only after their last block
            # Sums in a file would outlive a crash, and the steps since the last save count twice.
            self.rows = np.zeros((3 + more, *places.shape))
            if more:
                self.rows[3:] = tokens.nothing(places.shape)
            width = scale.width if work.two_reads else 2
            first = scale.nothing(places.count)[:, :width]
            self._first = first.reshape(*places.shape, width)

    @_quiet
    def add_first(self, block: Block, more: Floats) -> None:
        """Add the constants that a first read of a block gives."""
        if self._first is None:  # rows are whole, and need no first read
            return
        before = self._first[block.rows]
        width = more.shape[-1]
        joined = self._work.scale.join(before.reshape(-1, width), more.reshape(-1, width))
        before[...] = joined.reshape(before.shape)
        self.done += 1

    @_quiet
    def known(self, block: Block) -> Floats | None:
        """Return the constants of a step's rows, if it needs any."""
        if not self._work.two_reads or self._first is None:
            return None
        first = self._first[block.rows]
        known = self._work.scale.known(first.reshape(-1, first.shape[-1]))
        return known.reshape(*first.shape[:-1], -1)

    @_quiet
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
        sums = self.rows[at]
        values = values.reshape(sums.shape)
        sums[:3] += values[:3]
        if len(sums) > 3:
            tokens.join(sums[3:], values[3:])
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
        """Keep the best of the classes whose rows have all been added."""
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

    @_quiet
    def finish(self) -> None:
        """Finish the rows that came in parts, and the last classes."""
        self._flush()
        if self._first is None:
            return
        first = self._first.reshape(-1, self._first.shape[-1])
        self._see(first[:, :2])
        flat = self.rows[:3].reshape(3, -1)
        flat[...] = self._work.scale.finish(flat, first)

    # ---- for a checkpoint ------------------------------------------------------------------------

    def save(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the state, as arrays and as facts that JSON can hold."""
        arrays: dict[str, NDArray[Any]] = {"best": self.best.best, "masses": self.best.masses}
        if isinstance(self.rows, np.memmap):
            self.rows.flush()
        else:
            arrays["rows"] = self.rows
        if self._first is not None:
            arrays["first"] = self._first
        facts: dict[str, Any] = {"phase": self.phase, "done": self.done}
        facts["beside"] = 0 if "rows" in arrays else self.rows.nbytes
        facts["seen"] = [asdict(seen) for seen in self.seen]
        facts["holes"] = [asdict(holes) for holes in (self.best.zeros_q, self.best.zeros_p)]
        if self.columns is not None:
            for name in ("sums", "lost", "holes"):
                arrays[name] = getattr(self.columns, name)
            facts["start"] = self.columns.start
        return arrays, facts

    def restore(self, arrays: dict[str, NDArray[Any]], facts: dict[str, Any]) -> None:
        """Continue from a state that `save` returned."""
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
        for name in ("undefined", "infinite", "negative")
    }
    return Seen(**{**facts, **odd})
