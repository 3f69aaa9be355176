"""Tables of cells: the columns of numbers, those of labels, and the kind of numbers.

Nothing that a file leaves open is guessed: an error asks, and names the options that answer.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import OptionError
from kldiv.readers.cell_numbers import CellNumbers
from kldiv.readers.numerals import decimals, is_blank, is_missing, plain
from kldiv.readers.sources import SHOWN, Source, choose
from kldiv.readers.table import Sample, Table

if TYPE_CHECKING:
    from kldiv.readers.cell_numbers import Numbers
    from kldiv.readers.records import Records

_SAMPLE_ROWS: Final = 1000  # that decide which columns are text,
_SAMPLE_CELLS: Final = 1 << 20  # but fewer rows where they are long
_EXACT: Final = 2.0**53  # beyond it float64 does not tell whole numbers apart
_LARGEST_KEY: Final = 2.0**64  # beyond it are marks and fill values of floats
_DECIMALS: Final = 1000  # prices have two, computed numbers have more than these three
_INDEX: Final = frozenset({"", "index", "level_0", "unnamed: 0", "id", "idx", "row", "nr", "no"})
_KEYS: Final = _INDEX | {"key", "code", "number", "num", "rank", "year", "age", "zip", "plz"}
_EDGES: Final = (
    *(("low", "high"), ("lower", "upper"), ("left", "right"), ("from", "to")),
    *(("min", "max"), ("start", "end"), ("start", "stop"), ("begin", "end")),
)
_INTERVAL: Final = re.compile(
    r"[\[(]?\s*([+-]?\d+(?:\.\d*)?)\s*(?:,|-|–|to|\.\.|;)\s*([+-]?\d+(?:\.\d*)?)\s*[\])]?"
)


def tabulate(source: Source, records: Records) -> Table:
    """Return the numbers and labels of a table of cells; or its columns, where these are wanted."""
    found = _Tabulation(source, records)
    return found.columns() if source.samples else found.table()


class _Tabulation:
    def __init__(self, source: Source, records: Records) -> None:
        self.source = source
        self.records = records
        self.names = records.names
        width = len(self.names) or 1
        sample = min(_SAMPLE_ROWS, _SAMPLE_CELLS // width + 1)
        self.head = list(islice(records.rows(), sample))
        if not self.head:
            what = "Write one record a line"
            if records.place == "line" and self.names[0].startswith(("[", "{")):
                what = "It looks like a list: name it .json, or write one number a line"
            raise source.error(f"no rows follow the header. {what}")
        self.empty = {
            i
            for i, name in enumerate(self.names)
            if i and not (name and records.named) and not any(row[i] for _, row in self.head)
        }
        """Columns of neither a name nor cells, as separators at the end of lines make them."""
        if self.empty and len(self.head) == sample:
            for _, columns in records.blocks():  # further down there may be cells
                self.empty -= {i for i in self.empty if any(columns[i])}
        unnamed = [i for i, name in enumerate(self.names) if i and not name]
        if unnamed := [i for i in unnamed if i not in self.empty]:
            mend, first = "", self.names[0]
            if records.place == "line" and first and "'" not in first:
                mend = f": comment={first!r} does"
            raise source.error(
                f"column {unnamed[0] + 1} has no name. Name it; or if the first {records.place} is"
                f" a title, or a second one has names too, take the first out{mend}"
            )
        twice = [name for name, count in Counter(filter(None, self.names)).items() if count > 1]
        if twice:
            mend = "Rename one"
            if records.place == "line":
                mend += ", say header=False if the first line is data, or leave it out by"
                mend += " `comment` if a second one has names"
            raise source.error(f"two columns are named {twice[0]!r}. {mend}")
        self.text = [i for i in range(len(self.names)) if i not in self.empty and self._is_text(i)]
        self.numbers = CellNumbers(source, records, self.head, self.text)
        self.notes = list(records.notes)

    def table(self) -> Table:
        columns = self._asked()
        whole = columns is None
        if columns is None:
            columns = self._numbers()
        labels = self._labels(columns)
        others = self._others(columns, labels)
        words = {i: list[str]() for i in labels or () if i in self.text}
        values = self.numbers.parse([*columns, *others], strict=len(columns), words=words)
        own, beside = values[:, : len(columns)], values[:, len(columns) :]
        labels, edges, drop = self._decide(columns, labels, own, others, beside, whole=whole)
        keep = [i for i, column in enumerate(columns) if column not in drop]
        columns, own = [columns[i] for i in keep], np.ascontiguousarray(own[:, keep])
        self._check_percents(columns)
        joint = " / " if edges is None else "–"
        found = self._text_of(labels, joint, words) if labels else None
        if edges is None and found is not None:
            edges = _intervals(found)
        notes, path = tuple(self.notes), self.source.path
        if len(columns) == 1:
            member = self.names[columns[0]] if self.records.named else None
            return Table(own[:, 0], path, member, found, edges=edges, notes=notes)
        classes = tuple(self.names[i] for i in columns) if self.records.named else None
        return Table(own, path, None, classes, found, notes=notes)

    def _check_percents(self, columns: list[int]) -> None:
        """Refuse rows of which some numbers are per cents and others are not."""
        names = {i in self.numbers.percents: self.names[i] for i in columns}
        if len(names) > 1:
            raise self.source.error(
                f"column {names[True]!r} has %, column {names[False]!r} has none: they make no row."
                f" {self.source.path}::{names[False]} takes one column"
            )

    def columns(self) -> Table:
        """Return every column by itself: a sample of numbers or of categories."""
        wanted = self._asked()
        if wanted is None:
            beside = {self._index(name) for name in self.source.reading.names("labels") or ()}
            if len(self.names) > 1 and not self.names[0] and self._is_row_number(0):
                beside.add(0)  # the index of a data frame
            wanted = [i for i in range(len(self.names)) if i not in beside | self.empty]
        text = [i for i in wanted if i in self.text]
        self._check_names(wanted)
        numbers = [i for i in wanted if i not in self.text]
        values = self.numbers.parse(numbers, strict=len(numbers)) if numbers else np.empty((0, 0))
        words = {i: list[str]() for i in text}
        for _, columns in self.records.blocks() if text else ():
            for i in text:
                words[i] += columns[i]
        found = []
        for i in wanted:
            if i in words:
                missing = set(filter(is_missing, {*words[i]}))
                there: Any = tuple(cell for cell in words[i] if cell not in missing)
                size = len(words[i])
            else:
                own = values[:, numbers.index(i)]
                there, size = own[~np.isnan(own)], len(own)
            found.append(Sample(self.names[i], there, size - len(there)))
        path, notes = self.source.path, tuple(self.notes)
        return Table(np.empty(0), path, None, notes=notes, samples=tuple(found))

    # ---- columns ---------------------------------------------------------------------------------

    def _is_text(self, column: int) -> bool:
        """Whether a column holds labels: few of its cells are numbers, or it has no name."""
        if column in self.records.typed:
            return True
        if column == 0 and not self.names[0] and len(self.names) > 1:
            return True
        cells = [cell for _, row in self.head if not is_blank(cell := row[column])]
        return 2 * sum(bool(decimals(cell)) for cell in cells) < len(cells) or not cells

    def _check_names(self, wanted: list[int]) -> None:
        """Refuse to guess whether the first line of a list of categories is one of them."""
        if not self.records.named or self.source.reading.header is not None:
            return
        for i in wanted:
            again = any(row[i] == self.names[i] for _, row in self.head)
            if i in self.text and self.names[i] and (again or self.source.kind in {".txt", ".dat"}):
                raise self.source.error(
                    f"the first line has {self.names[i]!r}: header=True says that it is the name of"
                    " the column, header=False that it is one of the values"
                )

    def _index(self, name: str) -> int:
        if name not in self.names:
            shown = ", ".join(map(repr, self.names[:SHOWN]))
            raise self.source.error(f"no such name among its columns: {shown}. Name one", name)
        return self.names.index(name)

    def _asked(self) -> list[int] | None:
        """Return the columns of values that were asked for, or None."""
        key, values = self.source.key, self.source.reading.names("values")
        if key is not None and values:
            raise OptionError(f"::{key} and `values` both choose columns. Leave out one")
        if values:
            return [self._index(name) for name in values]
        if key is not None and (key in self.names or key != "*"):
            return [self._index(choose(self.source, self.names, "columns"))]
        return None

    def _numbers(self) -> list[int]:
        """Return the columns of numbers."""
        named = self.source.reading.names("labels") or ()
        labels = {self._index(name) for name in named}
        labels |= self.empty
        columns = [i for i in range(len(self.names)) if i not in labels and i not in self.text]
        if not columns:
            line, row = self.head[0]
            place, name = self.records.place, self.names[-1]
            found = f"no column holds numbers: {place} {line}, column {name!r}: {row[-1][:60]!r}"
            mend = "Numbers are written 1.5, without a currency"
            if decimals(row[-1]):
                mend = f"The column is of text: {self.source.path}::{name} reads it as numbers"
            if len(self.names) == 1:
                mend = "Separate cells by commas in .csv, tabs in .tsv, or say sep=';'"
            raise self.source.error(f"{found}. {mend}. A list of categories is --from samples")
        return columns

    def _labels(self, columns: list[int]) -> list[int] | None:
        """Return the columns of labels, or None where numbers may be some."""
        named = self.source.reading.names("labels")
        if named is not None:
            return [self._index(name) for name in named]
        text = [i for i in self.text if i not in columns]
        if len(text) > 1 and text[0] == 0 and not self.names[0] and self._is_row_number(0):
            text = text[1:]  # the index of a data frame, beside labels of its own
        if text and self.source.key != "*":
            self._check_told_apart(text)
        return text or None

    def _check_told_apart(self, text: list[int]) -> None:
        """Ask where rows have one label, and another column of numbers may tell them apart."""
        numbers = [i for i in range(len(self.names)) if i not in {*self.text, *self.empty}]
        if len(numbers) < 2 or self.source.reading.values is not None:
            return
        rows = [tuple(row[i] for i in text) for _, row in self.head]
        twice = next((row for row, count in Counter(rows).items() if count > 1), None)
        if twice is not None:
            names = *(self.names[i] for i in text), self.names[numbers[0]]
            path, label = self.source.path, " / ".join(twice)
            raise self.source.error(
                f"several rows are {label!r}: column {names[-1]!r} may be a label too, or values."
                f" {', '.join(f'labels={name!r}' for name in names)} says labels, '{path}::*' takes"
                " all columns of numbers as a matrix"
            )

    def _is_row_number(self, column: int) -> bool:
        numbers = [plain(row[column]) for _, row in self.head]
        return len(set(numbers)) == len(numbers) and all(
            each is not None and each == int(each) for each in numbers if each != np.inf
        )

    def _others(self, columns: list[int], labels: list[int] | None) -> list[int]:
        """Return further columns of numbers to look at."""
        possible = range(len(self.names)) if labels is None else labels
        known = {*columns, *self.text, *self.empty}
        found = [i for i in possible if i not in known]
        if labels is not None and self.source.reading.labels is None:
            found += [i for i in self._edge_names() or () if i not in columns]
        return found

    def _edge_names(self) -> tuple[int, int] | None:
        """Return the columns that are named as the edges of bins are, or None."""
        plain_names = [re.sub(r"\W|_|bin|edge", "", name.lower()) for name in self.names]
        for low, high in _EDGES:
            if low in plain_names and high in plain_names:
                return plain_names.index(low), plain_names.index(high)
        return None

    def _decide(
        self,
        columns: list[int],
        labels: list[int] | None,
        own: Numbers,
        others: list[int],
        beside: Numbers,
        *,
        whole: bool,
    ) -> tuple[list[int], Numbers | None, set[int]]:
        """Return the columns of labels, the edges of bins, and columns that hold no values."""
        at = {
            **{i: own[:, n] for n, i in enumerate(columns)},
            **{i: beside[:, n] for n, i in enumerate(others)},
        }
        if self.source.reading.labels is not None:
            return labels or [], self._bins_of(labels, at), set()
        star = whole and self.source.key == "*"
        named = self._edge_names()
        if named and set(named) <= at.keys() and not star and len(columns) - whole * 2 == 1:
            edges = _bins(at[named[0]], at[named[1]])
            if edges is not None:
                return labels or [*named], edges, set(named)
        if labels is not None:
            dropped = self._row_numbers(columns, labels, own) if whole else set[int]()
            if whole and not star:
                self._check_keys([i for i in columns if i not in dropped], at)
            return labels, None, dropped
        if not star and len(self.names) > 1 and len(own) > 1:
            if whole:
                self._check_first(columns, own)
            elif 0 not in columns and 0 in at and _like_labels(at[0]):
                return [0], None, set()
        return [], None, set()

    def _check_first(self, columns: list[int], own: Numbers) -> None:
        """Ask where all columns are numbers, and the first, or one of two, may be labels."""
        if _sums_alike(own):
            return
        for n in (0, 1) if len(columns) == 2 else (0,):
            key = n == 0 and self.names[columns[0]].strip().lower() in _KEYS
            if _like_labels(own[:, n]) or (key and _are_whole(own[:, 0])):
                self._ask(columns, n)

    @staticmethod
    def _bins_of(labels: list[int] | None, at: dict[int, Numbers]) -> Numbers | None:
        """Return the edges of bins where two columns of labels are numbers, or None."""
        if labels is None or len(labels) != 2 or not set(labels) <= at.keys():
            return None
        return _bins(at[labels[0]], at[labels[1]])

    def _check_keys(self, columns: list[int], at: dict[int, Numbers]) -> None:
        """Ask where a column beside the labels looks like numbers of the rows, not of a class."""
        for n, i in enumerate(columns):
            if len(columns) > 1 and _is_key(self.names[i], at[i]):
                self._ask(columns, n)

    def _ask(self, columns: list[int], n: int) -> None:
        label, other = self.names[columns[n]], self.names[columns[1 - n if n else 1]]
        numbers = [plain(row[columns[n]]) for _, row in self.head]
        doubt, path = "counts the rows" if _count(numbers) else "may be labels", self.source.path
        raise self.source.error(
            f"column {label!r} {doubt}: labels or"
            f" values? labels={label!r} says labels, '{path}::*' takes all columns as a matrix, and"
            f" {path}::{other} one column"
        )

    def _row_numbers(self, columns: list[int], labels: list[int], own: Numbers) -> set[int]:
        """Return a column that merely numbers the rows, before the labels; or ask."""
        first = columns[0]
        if len(columns) < 2 or len(own) < 2 or first > min(labels) or self.source.key == "*":
            return set()
        if not _count(own[:, 0].tolist()):
            return set()
        name, path = self.names[first], self.source.path
        if name.strip().lower() in _INDEX:
            self.notes.append(
                f"column {name!r} of {path} numbers the rows and is left out; '{path}::*' keeps it"
            )
            return {first}
        raise self.source.error(
            f"column {name!r} counts the rows: a number of the row, or values? "
            f"{path}::{self.names[columns[1]]} takes one column, '{path}::*' all as a matrix"
        )

    def _text_of(
        self, columns: list[int], joint: str, words: dict[int, list[str]]
    ) -> tuple[str, ...]:
        if len(columns) == 1 and words.get(columns[0]):
            return tuple(words[columns[0]])
        numbers = {i for i in columns if i not in self.text}
        return tuple(
            joint.join([row[i].strip() if i in numbers else row[i] for i in columns])
            for _, row in self.records.rows()
        )


def _like_labels(numbers: Numbers) -> bool:
    """Return whether numbers could be labels: all different, of few decimals."""
    sizes = np.abs(numbers)
    known = numbers[(sizes < _EXACT) | (sizes > _LARGEST_KEY)]
    if not np.isfinite(numbers).all() or len(np.unique(known)) < len(known):
        return False
    with np.errstate(all="ignore"):  # a number that overflows is no label
        scaled = numbers * _DECIMALS
        off = np.abs(scaled - np.rint(scaled))
        return bool(np.all(off <= 1e-6 * np.maximum(np.abs(scaled), 1)))


def _is_key(name: str, numbers: Numbers) -> bool:
    """Return whether whole numbers, all different, have a key's name or grow by equal steps."""
    if not (_like_labels(numbers) and _are_whole(numbers)):
        return False
    steps = np.diff(numbers)
    even = len(steps) > 2 and steps[0] > 0 and bool(np.all(steps == steps[0]))
    return even or (len(numbers) > 1 and name.strip().lower() in _KEYS)


def _are_whole(numbers: Numbers) -> bool:
    return np.array_equal(numbers, np.rint(numbers))


def _count(numbers: list[Any]) -> bool:
    """Return whether numbers are those of the rows, from 0 or 1 on."""
    return any(numbers == list(range(start, len(numbers) + start)) for start in (0, 1))


def _sums_alike(values: Numbers) -> bool:
    """Return whether rows sum to 1 or 100, as those of a matrix of distributions do."""
    sums = values.sum(axis=1)
    return any(bool(np.all(np.abs(sums - one) <= 1e-3 * one)) for one in (1.0, 100.0))


def _bins(low: Any, high: Any) -> Numbers | None:
    """Return the edges of bins, a row each, or None where they are none."""
    edges = np.stack([low, high], axis=1)
    if not (np.isfinite(edges).all() and np.all(low < high)):
        return None
    order = np.argsort(low)
    return edges if np.all(high[order][:-1] <= low[order][1:]) else None


def _intervals(labels: tuple[str, ...]) -> Numbers | None:
    """Return the edges of bins that labels like ``(10, 20]`` are, or None."""
    if len(labels) < 2 or not all(map(_INTERVAL.fullmatch, labels)):
        return None
    found = map(_INTERVAL.fullmatch, labels)
    numbers = np.array([[float(each[1]), float(each[2])] for each in found if each])
    return _bins(numbers[:, 0], numbers[:, 1])
