"""``.csv`` and ``.tsv``."""

from __future__ import annotations

import io
from array import array as packed
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from kldiv.readers.sources import FLOOR, SHOWN, Source, choose, parsing
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Row: TypeAlias = tuple[int, list[str]]

_SAMPLE_ROWS: Final = 1000  # that decide which columns are text,
_SAMPLE_CELLS: Final = 1 << 20  # but fewer rows where they are long


def read_text(source: Source) -> Table:
    """Return the numbers of a text file, with the labels that it gives them."""
    import csv  # noqa: PLC0415 - only where one is read

    limit = source.max_bytes or FLOOR
    if source.size > limit:
        text = f"{source.size:,} bytes of text; at most {limit:,} are accepted. Save it as .npy, or"
        raise source.error(f"{text} pass max_bytes={source.size} (--max-bytes {source.size})")
    delimiter = "\t" if source.path.suffix.lower() == ".tsv" else ","
    kind = "text file in UTF-8 with a header and one record a line"
    stream = io.TextIOWrapper(source.file, encoding="utf-8-sig", newline="")
    with stream, parsing(source, kind):
        lines = csv.reader(stream, delimiter=delimiter, strict=True)
        rows = ((lines.line_num, row) for row in lines if row)
        return _table(source, rows)


def _table(source: Source, rows: Iterator[Row]) -> Table:
    header = [name.strip() for name in next(rows, (0, []))[1]]
    _check_unique(source, header)
    rows = _equally_long(source, header, rows)
    head = list(islice(rows, min(_SAMPLE_ROWS, _SAMPLE_CELLS // (len(header) or 1) + 1)))
    if not head:
        raise source.error("no rows follow the header. Write one record a line")
    text = {i for i in range(len(header)) if _is_text(header, head, i)}
    columns = _columns(source, header, head, text)
    labelling = sorted(text.difference(columns))
    values, labels = _values(source, header, chain(head, rows), columns, labelling)
    if len(columns) == 1:
        return Table(values[:, 0], source.path, header[columns[0]], classes=labels)
    _check_first(source, header, values, labels)
    return Table(values, source.path, None, tuple(header[i] for i in columns), labels)


def _check_unique(source: Source, header: list[str]) -> None:
    seen: set[str] = set()
    for name in header:
        if name in seen:
            text = f"two columns are named {name!r}. Rename one"
            raise source.error(f"{text}, or write a header if the first line is data")
        seen.add(name)


def _equally_long(source: Source, header: list[str], rows: Iterable[Row]) -> Iterator[Row]:
    for line, row in rows:
        if len(row) != len(header):
            text = f"line {line} has {len(row):,} cells, the header {len(header):,}"
            raise source.error(f"{text}. Give every line as many, in quotes where one has a comma")
        yield line, row


def _number(cell: str) -> float | None:
    # float() alone would take "1_000" and the digits of every script.
    if "_" in cell or not cell.isascii():
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _is_text(header: list[str], head: list[Row], column: int) -> bool:
    """Whether a column holds labels: few of its cells are numbers, or it is an unnamed index."""
    if column == 0 and not header[0] and len(header) > 1:
        return True
    cells = [row[column] for _, row in head if row[column].strip()]
    return 2 * sum(_number(cell) is not None for cell in cells) < len(cells) or not cells


def _columns(source: Source, header: list[str], head: list[Row], text: set[int]) -> list[int]:
    """Return the columns of values: the one that was asked for, or all that are not text."""
    if source.key is not None and (source.key in header or source.key != "*"):
        return [header.index(choose(source, header, "columns"))]
    columns = [i for i in range(len(header)) if i not in text]
    if not columns:
        line, row = head[0]
        found = f"no column holds numbers: line {line}, column {header[-1]!r}: {row[-1][:60]!r}"
        mend = "Separate cells by commas in .csv, tabs in .tsv, and write numbers as 1.5"
        raise source.error(f"{found}. {mend}")
    _check_names(source, [header[i] for i in columns])
    return columns


def _check_names(source: Source, names: list[str]) -> None:
    """Refuse a first line that seems to be data: numbers, but not 0, 1, 2, … or 1, 2, 3, …."""
    counts = ([str(i + start) for i in range(len(names))] for start in (0, 1))
    if names not in counts and all(_number(name) is not None for name in names):
        found = f"the first line should name the columns, but has the numbers {names[:SHOWN]}"
        raise source.error(f"{found}. Write a header above them")


def _values(
    source: Source,
    header: list[str],
    rows: Iterable[Row],
    columns: list[int],
    text: list[int],
) -> tuple[NDArray[np.float64], tuple[str, ...] | None]:
    """Return the numbers of some columns, and the labels that others make."""
    numbers, labels = packed("d"), list[str]()
    for line, row in rows:
        for i in columns:
            number = _number(row[i])
            if number is None:
                found = f"line {line}, column {header[i]!r}: {row[i][:60]!r} is no number"
                mend = f"Mend the cell, or name the column of values: {source.path}::column"
                raise source.error(f"{found}. {mend}")
            numbers.append(number)
        if text:
            labels.append(" / ".join([row[i] for i in text]))
    values = np.frombuffer(numbers).reshape(-1, len(columns))
    return values, tuple(labels) if text else None


def _check_first(
    source: Source, header: list[str], values: NDArray[np.float64], labels: object
) -> None:
    """Refuse to guess whether a first column 0, 1, 2, … holds labels or values."""
    if source.key is not None or labels is not None or len(values) < 2:
        return
    count = np.arange(len(values))
    if any(np.array_equal(values[:, 0], count + start) for start in (0, 1)):
        text = (
            f"column {header[0]!r} counts the rows: labels or values? {source.path}::{header[1]}"
            f" takes one column, '{source.path}::*' takes all as a matrix; an empty name makes the"
            " first column the labels"
        )
        raise source.error(text)
