"""``.json`` and ``.jsonl``: lists of numbers or rows, records, columns, or numbers by label.

By the standard library: a text has the budget of a text file, so nothing need be parsed in parts.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.readers.cells import tabulate
from kldiv.readers.numerals import BEYOND, LACKING, is_lost
from kldiv.readers.records import check_nested, of_values
from kldiv.readers.sources import SHOWN, Source, check_text_size, choose, parsing
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

_KIND: Final = "JSON file of numbers, rows or records"


def read_json(source: Source) -> Table:
    """Return the numbers of a JSON file."""
    with parsing(source, _KIND):
        return _table(source, _parsed(source, _text(source)))


def read_json_lines(source: Source) -> Table:
    """Return the numbers of a file with one JSON value a line."""
    with parsing(source, _KIND):
        lines = [
            _parsed(source, line)
            for line in re.split(r"[\r\n]+", _text(source))  # a label may have other line ends
            if line.strip()
        ]
        return _table(source, lines)


def _parsed(source: Source, text: str) -> Any:
    """Return a value of JSON; refuse an object with a name that is there twice."""

    def paired(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = Counter(name for name, _ in pairs)
            twice = next(name for name, count in names.items() if count > 1)
            raise source.error("stands twice in one object. Add its numbers, or rename one", twice)
        return found

    return json.loads(text, object_pairs_hook=paired, parse_float=_number)


def _number(text: str) -> float | Decimal:
    """Return a number; as it is written where float64 does not hold it."""
    value = float(text)
    return Decimal(text) if is_lost(text, value) else value


def _text(source: Source) -> str:
    check_text_size(source)
    source.file.seek(0)
    raw = source.file.read()
    return raw.decode(source.reading.encoding or json.detect_encoding(raw))


def _table(source: Source, found: Any) -> Table:
    if isinstance(found, list) and len(found) == 1 and _are_records(found[0]):
        found = found[0]
    found = _split(found) or found
    if isinstance(found, dict) and found:
        first, below, rest = (source.key or "").partition("::")
        if below and isinstance(found.get(first), dict):
            return _table(replace(source, key=rest), found[first])
        return _object(source, found)
    if _are_records(found):
        names = list(dict.fromkeys(name for each in found for name in each))
        return _records(source, names, [[each.get(name) for name in names] for each in found])
    return _array(source, found, None)


def _are_records(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(x, dict) for x in found)


def _object(source: Source, found: dict[str, Any]) -> Table:
    """Return columns by name, whatever form these have, or numbers by label."""
    values = list(found.values())
    if all(isinstance(each, dict) for each in values):
        _check_depth(source, found)
        rows = source.key is None and _are_rows(values)
        return (_of_rows if rows else _of_columns)(source, found)
    if not any(isinstance(each, dict | list) for each in values):
        return _of_columns(source, {"value": found})
    alike = all(isinstance(each, list) for each in values) and len(set(map(len, values))) == 1
    flat = alike and not any(isinstance(x, list | dict) for each in values for x in each)
    if flat and source.key is None:
        return _records(source, list(found), list(zip(*values, strict=True)))
    name = choose(source, found, "members")
    if isinstance(found[name], dict):
        return _of_columns(source, {name: found[name]})
    if _are_records(found[name]):
        return _table(replace(source, key=None), found[name])
    return _array(source, found[name], name)


def _are_rows(objects: list[dict[str, Any]]) -> bool:
    """Whether objects are rows of a table, of which some columns are text and others numbers."""
    if len({tuple(each) for each in objects}) > 1:
        return False
    columns = list(zip(*(each.values() for each in objects), strict=True))
    text = [all(isinstance(x, str) for x in column) for column in columns]
    return any(text) and not all(text)


def _of_rows(source: Source, rows: dict[str, dict[str, Any]]) -> Table:
    """Return rows by name, each with all columns."""
    names = ["", *next(iter(rows.values()))]
    return _records(source, names, [[name, *each.values()] for name, each in rows.items()])


def _split(found: Any) -> list[dict[str, Any]] | None:
    """Return the rows of a frame or series as pandas' orient="split" writes it, or None."""
    if not (isinstance(found, dict) and len(found) == 3 and {"index", "data"} <= found.keys()):
        return None
    index, rows = found["index"], found["data"]
    names = found.get("columns", [found.get("name")])
    if not all(isinstance(part, list) for part in (names, index, rows)) or len(index) != len(rows):
        return None
    rows = rows if "columns" in found else [[each] for each in rows]
    names = ["", *("value" if name is None else str(name) for name in names)]
    if len({*names}) < len(names) or any(isinstance(each, list | dict) for each in index):
        return None
    if any(not isinstance(row, list) or len(row) != len(names) - 1 for row in rows):
        return None
    return [dict(zip(names, (at, *row), strict=True)) for at, row in zip(index, rows, strict=True)]


def _check_depth(source: Source, found: dict[str, dict[str, Any]]) -> None:
    """Refuse objects whose numbers lie a level further down, and name where."""
    below = [
        f"{name}::{inner}"
        for name, each in found.items()
        for inner, value in each.items()
        if isinstance(value, dict) or _are_records(value)
    ]
    if below:
        raise source.error(
            f"holds objects in objects. Name the one with the numbers: {source.path}::{below[0]}"
        )


def _of_columns(source: Source, columns: dict[str, dict[str, Any]]) -> Table:
    """Return columns of numbers by label, as data frames write them."""
    labels = list(dict.fromkeys(label for each in columns.values() for label in each))
    if source.key is not None:
        name = choose(source, columns, "members")
        columns = {name: columns[name]}
    rows = [[label, *(each.get(label) for each in columns.values())] for label in labels]
    numbered = [str(i) for i in range(len(labels))] == labels  # as pandas writes a data frame
    notes = []
    if len(columns) > 1 and not numbered:
        shown = ", ".join(map(repr, labels[:SHOWN]))
        notes.append(
            f"the members of {source.path} are columns, and each of {shown} a row; axis=0 compares"
            " member with member"
        )
    return _records(source, ["", *columns], rows, notes)


def _array(source: Source, found: Any, name: str | None) -> Table:
    """Return nested lists of numbers; null is a missing one."""
    flat, na = _flat(found), source.reading.na
    for i, each in enumerate(flat, 1):
        lacks = each is None or each != each  # noqa: PLR0124 - NaN
        large = isinstance(each, int) and abs(each) > sys.float_info.max
        if isinstance(each, int | float | None) and not (large or (lacks and na is None)):
            continue
        beyond = large or isinstance(each, Decimal)
        why = BEYOND if beyond else "is no number. Write a list of numbers"
        shown = "null" if each is None else str(each)[:60]
        raise source.error(
            f"value {i} of {len(flat):,}: {shown!r} {LACKING if lacks else why}", name
        )
    try:
        array = np.asarray(found, np.float64)  # None becomes NaN
    except ValueError:
        raise source.error("rows of different lengths. Give all as many numbers", name) from None
    if na == "zero":
        array = np.where(np.isnan(array), 0.0, array)
    return Table(array, source.path, name)


def _flat(found: Any) -> list[Any]:
    level = [found]
    while any(isinstance(each, list) for each in level):
        level = [x for each in level for x in (each if isinstance(each, list) else [each])]
    return level


def _records(source: Source, names: list[str], rows: list[Any], notes: Sequence[str] = ()) -> Table:
    if not names:
        raise source.error("its records are empty. Write a member for each column")
    for i, name in enumerate(names):
        column = [row[i] for row in rows]
        if any(isinstance(each, list | dict) for each in column):
            if source.key == name:
                return _array(source, column, name)
            check_nested(source, name, lists=not any(isinstance(each, dict) for each in column))
    records = of_values(names, rows, place="record")
    return tabulate(source, replace(records, notes=[*notes]))
