"""The numbers in columns of cells: which decimal mark they have, per cents, missing ones."""

from __future__ import annotations

from array import array as packed
from itertools import compress
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kldiv.readers.numerals import BEYOND, LACKING, decimals, is_lost, is_missing, number, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from kldiv.readers.records import Block, Records, Row
    from kldiv.readers.sources import Source

    Numbers: TypeAlias = NDArray[np.float64]


class CellNumbers:
    """The numbers of a table of cells.

    Parameters
    ----------
    source : Source
        The file and how to read it.
    records : Records
        The rows.
    head : list of Row
        The first of them.
    text : list of int
        The columns of text.
    """

    def __init__(self, source: Source, records: Records, head: list[Row], text: list[int]) -> None:
        self._source = source
        self._records = records
        self._names = records.names
        self._head = head
        self._text = text
        self.percents = set[int]()
        """Columns of per cents, once they are parsed."""

    def parse(
        self, columns: list[int], strict: int, words: dict[int, list[str]] | None = None
    ) -> Numbers:
        """Return the numbers of columns; all but the first ``strict`` may hold something else.

        The cells of the columns in ``words`` are kept there, where that costs no further pass.
        """
        words = {} if words is None else words
        decimal, plainly = self._source.reading.decimal, self._records.plain
        doubtful = decimal == "," or (decimal is None and self._records.doubtful)
        if not doubtful or plainly.issuperset(columns):
            holes = self._source.samples
            found = _plain_numbers(self._records.blocks(), columns, strict, words, holes=holes)
            if found is not None and (holes or not np.isnan(found[:, :strict]).any()):
                return found
            words.clear()
        rows = self._records.rows()
        marks = decimal or self._decimal([i for i in columns[:strict] if i not in plainly])
        zero = self._source.reading.na == "zero"
        missing = 0.0 if zero else np.nan
        numbers, percents = packed("d"), [0] * len(columns)
        filled = [0] * len(columns)
        for line, row in rows:
            for n, i in enumerate(columns):
                cell = row[i]
                value = number(cell, "." if i in plainly else marks)
                if value is None or value != value:  # noqa: PLR0124 - NaN
                    value = missing
                    if n < strict:
                        self._check_missing(line, i, cell)
                elif n < strict and is_lost(cell, value):
                    raise self._lost(line, i, cell, name=n == 0 and strict > 1)
                else:
                    filled[n] += 1
                    percents[n] += cell.rstrip().endswith("%")
                numbers.append(value)
        for n, i in enumerate(columns[:strict]):
            if percents[n] not in {0, filled[n]}:
                raise self._source.error(
                    f"column {self._names[i]!r} has % in {percents[n]:,} of {filled[n]:,} cells."
                    " Write all in the same way"
                )
        self.percents = {i for i, count in zip(columns, percents, strict=True) if count}
        return np.frombuffer(numbers).reshape(-1, len(columns))

    def _place(self, line: int, column: int, cell: str) -> str:
        return f"{self._records.place} {line}, column {self._names[column]!r}: {cell[:60]!r}"

    def _lost(self, line: int, column: int, cell: str, *, name: bool) -> Exception:
        """Return the error on a number out of range; 12e4567 may be a name."""
        text = f"{self._place(line, column, cell)} {BEYOND}"
        mend = f"; labels={self._names[column]!r} takes the column for labels" if name else ""
        return self._source.error(text + mend)

    def _check_missing(self, line: int, column: int, cell: str) -> None:
        """Refuse a cell that is no number, unless it is missing and that is answered for."""
        place = self._place(line, column, cell)
        if is_missing(cell):
            if self._source.reading.na is None and not self._source.samples:
                raise self._source.error(f"{place} {LACKING}")
            return
        mend = f"Mend the cell, or name the column of values: {self._source.path}::column"
        first, row = self._head[0]
        if self._records.place == "line" and len(cell) > 2 and not cell.strip(":-=+ "):
            mend = "A ruled line is no record: take it out, or give its start as `comment`"
        if column in self._text:
            mend = "A list of categories is --from samples"
        elif self._records.named and line == first and all(each[:1].isalpha() for each in row):
            titles = list(filter(None, self._names))
            mend = f"If this {self._records.place} names the columns, take out all above it"
            if self._records.place == "line" and len(titles) == 1:
                mend += f": comment={titles[0]!r} does"
        if not self._records.named and line <= self._head[0][0]:
            mend = "If the first line names the columns, say header=True"
        raise self._source.error(f"{place} is no number. {mend}")

    def _decimal(self, columns: list[int]) -> str:
        """Return the decimal mark that all numbers agree with."""
        left, seen, witnesses = ".,", "", dict[str, str]()
        for line, row in self._records.rows():
            for i in columns:
                cell = row[i]
                if not ("," in cell or "." in cell):
                    continue
                marks = decimals(cell)
                if not marks:  # no number at all, which is said when it is read
                    continue
                seen += "," if "," in cell and "," not in seen else ""
                place = f"{cell.strip()[:60]!r} in {self._records.place} {line}"
                witnesses.setdefault(marks, place)
                left = "".join(mark for mark in left if mark in marks)
        if not left:
            raise self._source.error(
                f"{witnesses['.']} has a decimal point, {witnesses[',']} a decimal comma. Write all"
                " numbers in the same way"
            )
        if len(left) == 1:
            return left
        if not (seen or self._records.doubtful) or not witnesses:
            return "."
        cell = next(iter(witnesses.values()))
        raise self._source.error(
            f"{cell} may be a fraction or thousands: decimal='.' or decimal=',' says which mark is"
            " the decimal one"
        )


def _plain_numbers(
    blocks: Iterator[Block],
    columns: Sequence[int],
    strict: int,
    words: dict[int, list[str]],
    *,
    holes: bool,
) -> Numbers | None:
    """Return numbers as programs write them, or None where a strict column has another cell.

    With ``holes`` cells without a number are NaN there too.
    """
    parts = list[Any]()
    for places, block in blocks:
        found = np.empty((len(places), len(columns)))
        for n, i in enumerate(columns):
            cells = block[i]
            text = "".join(cells)
            try:
                if "_" in text or not text.isascii():
                    raise ValueError  # noqa: TRY301 - as for cells that are no numbers
                found[:, n] = list(map(float, cells))
            except ValueError:
                for m, cell in enumerate(cells):
                    value = plain(cell)
                    lacking = value is None and not (holes and is_missing(cell))
                    if lacking and (n < strict or decimals(cell)):
                        return None
                    found[m, n] = np.nan if value is None else value
            edge = (found[:, n] == 0) | np.isinf(found[:, n])
            if n < strict and any(is_lost(cell, 0.0) for cell in {*compress(cells, edge)}):
                return None
        for i in words:
            words[i] += block[i]
        parts.append(found)
    return np.concatenate(parts)
