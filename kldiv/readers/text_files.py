"""``.csv``, ``.tsv`` and ``.txt``: which encoding, separator, comments and header a text has."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, compress, islice, starmap
from typing import TYPE_CHECKING, Final

import numpy as np

from kldiv.readers.cells import tabulate
from kldiv.readers.numerals import decimals, is_blank, plain
from kldiv.readers.records import Records
from kldiv.readers.sources import SHOWN, Source, check_text_size, parsing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kldiv.readers.records import Block, Row

    Lines = tuple[Sequence[int], Sequence[list[str]]]
    from kldiv.readers.table import Table

_HEAD: Final = 1 << 20  # bytes that decide
_HEAD_ROWS: Final = 1000
_BLOCK: Final = 1000  # rows
_PIECE: Final = 1 << 18  # characters
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_SEPARATORS: Final = (",", ";", "\t", "|", " ")
_USUAL: Final = {".csv": ",", ".tsv": "\t"}
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark its own begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(source: Source) -> Table:
    """Return the numbers of a text file, with the labels that it gives them."""
    check_text_size(source)
    with parsing(source, "text file with one record a line"):
        return tabulate(source, _Text(source).records())


@dataclass(frozen=True)
class _Look:
    """The first rows of a text, cut by one separator."""

    sep: str
    rows: list[Row]

    @cached_property
    def width(self) -> int:
        """How many cells most rows have."""
        return Counter(len(row) for _, row in self.rows).most_common(1)[0][0]

    @property
    def consistent(self) -> bool:
        """Whether all rows have several cells, and as many; the first may lack that of an index."""
        widths = {len(row) for _, row in self.rows[1:]} or {self.width}
        first = len(self.rows[0][1])
        return len(widths) == 1 and self.width > 1 and first in {self.width, self.width - 1}

    def numbers(self, column: int) -> bool:
        """Whether a column holds numbers, below the first row if there are more."""
        rows = self.rows[1:] or self.rows
        cells = [row[column] for _, row in rows if len(row) == self.width]
        full = [cell for cell in cells if not is_blank(cell)]
        return bool(full) and 2 * sum(bool(decimals(cell)) for cell in full) >= len(full)

    def any_numbers(self) -> bool:
        """Whether some column holds numbers."""
        return any(map(self.numbers, range(self.width)))

    def cuts(self, other: str) -> bool:
        """Whether a cell that is no number holds another separator."""
        return any(other in cell and not decimals(cell) for _, row in self.rows for cell in row)


class _Text:
    """A text file, which can be gone through more than once."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._reading = source.reading
        self._notes: list[str] = []
        self._encoding = self._find_encoding()
        self._declared = self._find_declared()
        self._quoted = True
        self._sep = _USUAL.get(source.kind, " " if source.kind in {".txt", ".dat"} else ",")
        looks = self._looks()
        if not looks:
            self._quoted = False
            looks = self._looks()
        if not looks:
            raise source.error("no rows. Write a header and one record a line")
        self._chosen = self._choose(looks)
        self._sep = self._chosen.sep
        self._width = self._chosen.width
        self._settle_quotes()

    def records(self) -> Records:
        """Return the rows below the header."""
        first, notes = self._header(), self._notes
        self._named, self._after = first is not None, 0 if first is None else first[0]
        if first is None:
            names = [str(i + 1) for i in range(self._width)]
        else:
            names = [name.strip() for name in first[1]]
            if len(names) == self._width - 1:  # as R writes an index, or separators at the end
                ends = any(row[-1] for _, row in self._chosen.rows[1:] if len(row) == self._width)
                names.insert(0 if ends else len(names), "")
            if self._reading.header is None and _are_odd(names):
                notes.append(
                    f"the first line of {self._source.path}, {', '.join(names[:SHOWN])}, is taken"
                    " for names of columns; header=False takes it for numbers"
                )
        self._names = names
        doubtful = self._sep == ";"
        return Records(names, self._data, named=self._named, doubtful=doubtful, notes=notes)

    # ---- bytes and lines -------------------------------------------------------------------------

    def _find_encoding(self) -> str:
        """Return the encoding: as asked, that of a byte order mark, or UTF-8; none is guessed."""
        asked = self._reading.encoding
        if asked is None or codecs.lookup(asked).name == "utf-8":  # whose mark is no letter
            return self._own_encoding()
        # Both files of a comparison are read with the options that one of them needs: no text of
        # single bytes is UTF-8 by chance, and any other that is UTF-8 is in the encoding asked for.
        single = len("é".encode(asked, "replace")) == 1
        if self._is("ascii") or not ((single or not self._is(asked)) and self._is("utf-8")):
            return asked
        self._notes.append(f"{self._source.path} is UTF-8 and read as such, not as {asked}")
        return "utf-8-sig"

    def _is(self, encoding: str) -> bool:
        """Whether all bytes are text in an encoding."""
        self._source.file.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            while part := self._source.file.read(_HEAD):
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeError:
            return False
        return True

    def _find_declared(self) -> str | None:
        """Return the separator of a first line ``sep=;``, as Excel writes and reads it."""
        line = self._stream().readline(9).rstrip("\r\n")
        return line[4] if len(line) == 5 and line.startswith("sep=") else None

    def _stream(self) -> io.TextIOWrapper:
        self._source.file.seek(0)
        return _Lines(self._source.file, self._encoding, newline="")

    def _own_encoding(self) -> str:
        self._source.file.seek(0)
        start = self._source.file.read(4)
        for mark, name in _MARKS:
            if start.startswith(mark):
                return name
        if b"\0" in start:
            for name in ("utf-16-le", "utf-16-be"):
                if start[name.endswith("le") :: 2].count(0) == len(start) // 2 > 0:
                    raise self._source.error(
                        f"looks like UTF-16 without its mark: encoding={name!r} reads it"
                    )
        if not self._is("utf-8"):
            self._source.file.seek(0)
            try:
                self._source.file.read().decode()
            except UnicodeDecodeError as error:
                line = 1 + error.object.count(b"\n", 0, error.start)
                byte = error.object[error.start]
                raise self._source.error(
                    f"line {line}: byte 0x{byte:02x} is not UTF-8. Say which encoding it is:"
                    " encoding='cp1252' (Windows in Western Europe), encoding='latin-1',"
                    " encoding='cp1250', encoding='mac_roman' …"
                ) from error
        return "utf-8"

    def _lines(self, sep: str) -> Iterator[Row]:
        """Yield all rows that are no comments of a declared kind, with the number of their line."""
        return chain.from_iterable(starmap(zip, self._blocks(sep)))

    def _blocks(self, sep: str) -> Iterator[Lines]:
        """Yield the rows of `_lines`, many at a time."""
        stream = self._stream()
        comment = self._reading.comment
        lines: Iterable[str] = stream
        if self._declared:
            stream.readline()
            lines = chain("\n", stream)
        if sep == " ":
            lines = (line.strip().replace("\t", " ") for line in lines)
        if comment:
            # An empty line keeps the count.
            starts = comment, f'"{comment}'
            lines = ("\n" if line.startswith(starts) else line for line in lines)
        yield from self._rows(lines, sep)

    def _rows(self, lines: Iterable[str], sep: str, line: int = 1) -> Iterator[Lines]:
        """Yield the rows of lines, the first of which has that number."""
        found = csv.reader(
            lines,
            delimiter=sep,
            strict=True,
            skipinitialspace=sep == " ",
            quoting=csv.QUOTE_MINIMAL if self._quoted else csv.QUOTE_NONE,
        )
        before = line - 1
        while rows := list(islice(found, _BLOCK)):
            after = line - 1 + found.line_num
            alone = after - before == len(rows)  # no row takes several lines
            numbers = range(before + 1, after + 1) if alone else _line_numbers(rows, before)
            # A row whose cells are all empty is the end of a sheet.
            full = list(map(any, rows))
            if all(full):
                yield numbers, rows
            else:
                yield list(compress(numbers, full)), list(compress(rows, full))
            before = after

    def _settle_quotes(self) -> None:
        """Take quotation marks for letters where they quote nothing; ask where they might."""
        lone = self._lone_quote() if self._quoted else 0
        if lone is None:
            return
        self._quoted = False
        alike = all(len(row) == self._width for _, row in self._lines(self._sep))
        if lone and alike:
            raise self._source.error(
                f"the quotation mark in line {lone} may begin a cell of several lines, or be a"
                ' letter. Write the letter as """" and it is one'
            )
        if lone:
            self._quoted = True
        elif self._sep not in "\t " or not alike:  # commas come from programs that do quote
            raise self._source.error(
                "a quotation mark begins a cell that does not end. Close it, or write it as"
                ' """" where it is a letter'
            )
        else:
            self._notes.append(f"quotation marks of {self._source.path} are taken for letters")

    @cached_property
    def _has_quotes(self) -> bool:
        stream = self._stream()  # not every encoding has the mark's byte of ASCII
        return any('"' in part for part in iter(lambda: stream.read(_HEAD), ""))

    @cached_property
    def _plainly_quoted(self) -> bool:
        """Whether quotation marks are pairs around whole cells that need none."""
        return all(_is_plainly_quoted(text, self._sep) for text in self._pieces())

    def _pieces(self, after: int = 0) -> Iterator[str]:
        """Yield whole lines, many at a time, without the first ones."""
        stream = self._stream()
        for _ in range(after):
            stream.readline()
        while text := stream.read(_PIECE):
            text = (text + stream.readline()).replace("\r\n", "\n").replace("\r", "\n")
            yield text.removesuffix("\n") + "\n"

    def _lone_quote(self) -> int | None:
        """Return the line of a mark that makes one cell of several lines; 0 if it has no end."""
        if not self._has_quotes or self._plainly_quoted:
            return None
        try:
            for places, rows in self._blocks(self._sep):
                if isinstance(places, range):  # each row takes a line
                    continue
                for line, row in zip(places, rows, strict=True):
                    if any("\n" in cell and self._sep in cell for cell in row):
                        return line - sum(cell.count("\n") for cell in row)
        except csv.Error:
            return 0
        return None

    # ---- separator -------------------------------------------------------------------------------

    def _separators(self) -> tuple[str, ...]:
        if self._reading.sep or self._declared:
            return (self._reading.sep or self._declared or "",)
        # In .csv and .tsv a blank is part of a cell.
        found = _SEPARATORS[:-1] if self._source.kind in _USUAL else _SEPARATORS
        return tuple(sep for sep in found if sep != self._reading.decimal)

    def _looks(self) -> list[_Look]:
        """Return the cuts that can be made; none where a quotation mark stops the usual one."""
        looks = [self._look(sep) for sep in self._separators()]
        usual = next((look for look in looks if look.sep == self._sep), looks[0])
        made = [look for look in looks if look.rows]
        return made if usual.rows or any(look.consistent for look in made) else []

    def _look(self, sep: str) -> _Look:
        try:
            rows = list(islice(self._lines(sep), _HEAD_ROWS))
        except csv.Error:
            if not self._quoted:
                raise
            return _Look(sep, [])
        if self._reading.comment is None:
            kept = [row for row in rows if not row[1][0].startswith("#")]
            rows = kept if len(kept) > 1 else rows
        return _Look(sep, rows)

    def _choose(self, looks: list[_Look]) -> _Look:
        """Return the cut that makes a table, and ask where there are several."""
        good = [look for look in looks if look.consistent and look.any_numbers()]
        if len(good) > 1:
            good = [look for look in good if look.sep != " "]
        if len(good) > 1:
            seps = {look.sep for look in good}
            good = [
                look for look in good if not any(look.cuts(other) for other in seps - {look.sep})
            ] or good
        if len(good) == 1:
            self._check_commas(good[0])
            return good[0]
        if good:
            said = " or ".join(f"sep={look.sep!r}" for look in good)
            raise self._source.error(f"cells may be separated in {len(good)} ways: say {said}")
        usual = next((look for look in looks if look.sep == self._sep), looks[0])
        if len(usual.rows[0][1]) > 1 or usual.width == 1 == len({len(r) for _, r in usual.rows}):
            return usual
        # No separator at all, as in a list of decimal commas; or the one that cuts the header.
        alone = [look for look in looks if {len(row) for _, row in look.rows} == {1}]
        if alone and alone[0].any_numbers():
            return alone[0]
        return max(looks, key=lambda look: len(look.rows[0][1]))

    def _check_commas(self, look: _Look) -> None:
        """Refuse to guess whether 0,5 is one number or two cells, unless a header has two."""
        if self._reading.sep or look.sep not in {",", " "}:
            return
        names, rows = look.rows[0][1], look.rows[1:]
        if look.width == 2 == len(names) and self._is_headless(names):
            rows = look.rows
        elif not rows or len(names) != look.width - 1 or (look.width > 2 and self._has_quotes):
            return  # R writes an index without a name, and quotes the names
        if look.width > 2 and not any(row[-1].strip() for _, row in rows):
            return  # lines end with the separator
        line, first = rows[0]
        decimal = self._reading.decimal or ","
        for i in range(look.width - 1):
            if all(decimal in decimals(look.sep.join(row[i : i + 2])) for _, row in rows):
                one = "decimal=',' says that it is one"
                if look.width > 2 or look.sep == " " or decimal == ".":
                    one = "a number with it is written in quotes"
                raise self._source.error(
                    f"line {line}: {look.sep.join(first[i : i + 2])!r} may be one number or two"
                    f" cells: {one}, sep={look.sep!r} says that they are two"
                )

    def _is_headless(self, names: Sequence[str]) -> bool:
        """Whether the first line of a text that need not have commas is numbers and no header."""
        if self._reading.header or self._source.kind in _USUAL or _counting(names):
            return False
        return all(map(decimals, names)) and not self._has_quotes

    # ---- header and comments ---------------------------------------------------------------------

    def _header(self) -> Row | None:
        """Return the first line if it names the columns, or None."""
        wanted = self._reading.header
        first, names = self._chosen.rows[0], self._chosen.rows[0][1]
        if wanted is False:
            return None
        if self._reading.comment is None and not self._names_columns(names):
            # A header behind a comment sign, over lines of data.
            for line, row in self._lines(self._sep):
                if line >= first[0]:
                    break
                if len(row) == self._width and row[0].startswith("#"):
                    named = [row[0].removeprefix("#"), *row[1:]]
                    if self._names_columns(named):
                        return line, named
        if wanted or self._names_columns(names) or _counting(names):
            return first
        if not names[0] and not self._chosen.numbers(0):  # an index has no name; a label is one
            return first
        if self._source.kind in {".txt", ".dat"} and None not in map(plain, names):
            return None
        numbers = [name for name in names if decimals(name)] or names
        raise self._source.error(
            f"the first line should name the columns, but has the numbers {numbers[:SHOWN]}."
            " header=False says that it has none, header=True that these are names"
        )

    def _names_columns(self, names: Sequence[str]) -> bool:
        """Whether a row has words above the columns of numbers."""
        if len(names) == self._width - 1:
            return True
        look = self._chosen
        columns = [i for i in range(min(len(names), look.width)) if look.numbers(i)]
        numbers = [names[i] for i in columns]
        return not numbers or any(not decimals(name) and name.strip() for name in numbers)

    def _data(self) -> Iterator[Block]:
        """Yield records, all of one length, without comments: lines that are no records."""
        sep, width = self._sep, len(self._names)
        quoted = self._quoted and self._has_quotes
        by_rows = sep == " " or not sep.isascii() or self._reading.comment
        if by_rows or (quoted and not self._plainly_quoted):
            yield from self._sifted_all(self._blocks(sep))
            return
        line = 1 + max(self._after, self._declared is not None)
        for text in self._pieces(line - 1):
            bare = text.replace('"', "") if quoted else text
            columns = _cut(bare, sep, width, comments=self._reading.comment is None)
            if columns is None:
                yield from self._sifted_all(self._rows(io.StringIO(text), sep, line))
            else:
                yield range(line, line + len(columns[0])), columns
            line += text.count("\n")

    def _sifted_all(self, blocks: Iterator[Lines]) -> Iterator[Block]:
        width, comments = len(self._names), self._reading.comment is None
        for places, rows in blocks:
            alike = bool(rows) and places[0] > self._after and {*map(len, rows)} == {width}
            if alike and not (comments and any(row[0].startswith("#") for row in rows)):
                yield places, list(zip(*rows, strict=True))
            elif sifted := list(self._sifted(places, rows)):
                lines, kept = zip(*sifted, strict=True)
                yield lines, list(zip(*kept, strict=True))

    def _sifted(self, places: Sequence[int], rows: Sequence[list[str]]) -> Iterator[Row]:
        width, check = len(self._names), self._reading.comment is None
        for line, row in zip(places, rows, strict=True):
            if line <= self._after:
                continue
            if check and row[0].startswith("#") and self._is_comment(line, row, width):
                continue
            if len(row) != width:
                self._refuse_length(line, row)
            yield line, row

    def _is_comment(self, line: int, row: list[str], width: int) -> bool:
        """Whether a line that starts with # is no record; or ask."""
        if len(row) != width:
            return True
        if any(decimals(row[i]) for i in range(width) if self._chosen.numbers(i)):
            return False
        if line < self._chosen.rows[0][0]:
            return True
        raise self._source.error(f"line {line} starts with #: comment='#' leaves such lines out")

    def _refuse_length(self, line: int, row: list[str]) -> None:
        names, named = self._names, self._named
        whose = "the header" if named else "the first"
        noun = "cell" if len(row) == 1 else "cells"
        text = f"line {line} has {len(row):,} {noun}, {whose} {len(names):,}"
        sep = {"\t": "a tab", " ": "a blank"}.get(self._sep, repr(self._sep))
        mend = f"Give every line as many, in quotes where one has {sep}"
        words = row[0].split() if len(row) == 1 and self._sep != " " else []
        if len(words) == len(names) and any(map(decimals, words)):
            mend = "Blanks separate its cells: write it as the others; or sep=' ' takes all so"
            raise self._source.error(f"{text}. {mend}")
        alone = names if named and len(names) == 1 else list(filter(None, row))
        if len(alone) == 1 and "'" not in alone[0]:
            mend = f"A title or a footnote? comment={alone[0]!r} leaves such a line out"
        raise self._source.error(f"{text}. {mend}; sep=';' and the like name the separator")


def _is_plainly_quoted(text: str, sep: str) -> bool:
    """Return whether each quotation mark of some lines is a border of a whole cell."""
    if '"' not in text:
        return True
    raw = np.frombuffer(f"\n{text}".encode("utf-8", "surrogatepass"), np.uint8)
    borders = (raw == ord("\n")) | (raw == ord(sep))
    marks = np.flatnonzero(raw == ord('"'))
    first, last = marks[::2], marks[1::2]
    if len(first) != len(last) or not (borders[first - 1].all() and borders[last + 1].all()):
        return False
    before = np.cumsum(borders)
    return bool((before[first] == before[last]).all())


def _cut(text: str, sep: str, width: int, *, comments: bool) -> list[list[str]] | None:
    """Return the columns of lines without quotation marks; None where one may be no record."""
    raw = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    ends = raw == ord("\n")
    marks = ends[ends | (raw == ord(sep))]
    regular = len(marks) % width == 0 and not marks.reshape(-1, width)[:, :-1].any()
    before = "\n" + text
    odd = f"\n{sep * (width - 1)}\n" in before or (comments and "\n#" in before)
    if odd or not regular or marks.sum() * width != len(marks):
        return None
    cells = text.removesuffix("\n").replace("\n", sep).split(sep)
    return [cells[i::width] for i in range(width)]


def _line_numbers(rows: list[list[str]], before: int) -> list[int]:
    """Return the last line of each row, of which some have cells of several lines."""
    ends = (1 + sum(len(_LINE_END.findall(cell)) for cell in row) for row in rows)
    return list(accumulate(ends, initial=before))[1:]


class _Lines(io.TextIOWrapper):
    """A text whose file stays open when its reader is gone."""

    def close(self) -> None:
        self.detach()


def _are_odd(names: Sequence[str]) -> bool:
    """Whether names may be numbers of a first row: fractions, or no words and no count."""
    numbers = [name for name in names if decimals(name)]
    words = [name for name in names if name and not decimals(name)]
    counted = words or (len(numbers) < len(names) and _counting(names))
    return bool(numbers) and not (counted and all(map(str.isdecimal, numbers)))


def _counting(names: Sequence[str]) -> bool:
    """Whether names are 0, 1, 2, … or 1, 2, 3, …; beside one without a name, 0 alone is."""
    numbers = [name for name in names if name.strip()]
    if numbers == ["0"] and len(names) == 2:
        return True
    return len(numbers) > 1 and any(
        numbers == [str(i + start) for i in range(len(numbers))] for start in (0, 1)
    )
