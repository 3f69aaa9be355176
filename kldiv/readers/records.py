"""Rows of cells, as every reader of tables hands them on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kldiv.readers.numerals import decimals, is_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kldiv.readers.sources import Source

    Row: TypeAlias = tuple[int, Sequence[str]]
    Block: TypeAlias = tuple[Sequence[int], Sequence[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Records:
    """Rows of cells, which can be gone through more than once."""

    names: list[str]
    """Of the columns; their numbers where the file has none."""
    blocks: Callable[[], Iterator[Block]]
    """Rows, some at a time: their places, and the cells of each column."""
    place: str = "line"
    """The word for a place."""
    named: bool = True
    typed: frozenset[int] = frozenset()
    """Columns whose type is text."""
    plain: frozenset[int] = frozenset()
    """Columns of typed numbers, whose decimal mark is a point."""
    doubtful: bool = False
    """Whether 1.234 may be a thousand and more."""
    notes: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        """Yield the rows, each with its place."""
        for places, columns in self.blocks():
            yield from zip(places, zip(*columns, strict=True), strict=True)


def of_values(
    names: list[str], rows: list[Any], *, place: str, places: Sequence[int] = ()
) -> Records:
    """Return rows of values of any type as cells; columns of words alone hold labels."""
    text = [
        i
        for i in range(len(names))
        if all(isinstance(row[i], str | bool | None) for row in rows)
        and any(row[i] is not None for row in rows)
    ]
    block = (
        places or range(1, len(rows) + 1),
        [_cells([row[i] for row in rows]) for i in range(len(names))],
    )
    # A table of text alone has its numbers in it.
    typed = frozenset(text) if len(text) < len(names) - (names[:1] == [""]) else frozenset()
    plain = (i for i in range(len(names)) if not any(isinstance(row[i], str) for row in rows))
    return Records(names, lambda: iter([block]), place=place, typed=typed, plain=frozenset(plain))


def _cells(column: list[Any]) -> list[str]:
    """Return cells; beside numbers written as text 1.234 becomes 1.2340, which is no thousand."""
    cells = [*map(cell_of, column)]
    texts = [each for each in column if isinstance(each, str) and not is_missing(each)]
    if not texts or not all(map(decimals, texts)):
        return cells
    return [
        re.sub(r"(\.\d{3})(?!\d)", r"\g<1>0", cell) if isinstance(value, float) else cell
        for value, cell in zip(column, cells, strict=True)
    ]


def check_nested(source: Source, name: str, *, lists: bool) -> None:
    """Refuse a column of lists, or of records, unless another one was asked for."""
    if source.key is None and source.reading.values is None:
        if not lists:
            raise source.error(
                f"column {name!r} holds a record in every cell. Write its fields as columns, or"
                " name the column of values: values='column'"
            )
        raise source.error(
            f"column {name!r} holds a list in every cell: {source.path}::{name} takes these as"
            " rows, values='column' another column"
        )


def cell_of(value: Any) -> str:
    """Return a value as a cell of text; that of a truth value is a word, as text has it."""
    if value is None:
        return ""
    if isinstance(value, datetime) and value.time() == time():
        return str(value.date())  # as text has it
    # Half floats of pyarrow before 21 are NumPy's, which print the digits of their dtype alone.
    return str(float(value) if isinstance(value, np.floating) else value)
