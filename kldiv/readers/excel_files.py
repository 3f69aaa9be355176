"""``.xlsx``, by openpyxl: a sheet whose first row names the columns."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import openpyxl

from kldiv.readers.cells import tabulate
from kldiv.readers.records import of_values
from kldiv.readers.sources import Source, check_budget, choose, parsing

if TYPE_CHECKING:
    from kldiv.readers.table import Table

_LOOK: Final = 1 << 16  # bytes of a part in which a document type would be declared
_DECLARED: Final = ("<!DOCTYPE", "<!ENTITY")


def read_excel(source: Source) -> Table:
    """Return the numbers of a sheet; ``::sheet`` picks it, ``::sheet::column`` a column of it."""
    with parsing(source, "Excel workbook (.xlsx)"):
        _check_archive(source)
        source.file.seek(0)
        book = openpyxl.load_workbook(source.file, read_only=True, data_only=True, keep_links=False)
        sheet, key = _choose(source, book)
        rows = [list(row) for row in book[sheet].iter_rows(values_only=True)]
        if any(None in row for row in rows):
            _check_formulas(source, sheet, rows)
    full = [i for i, row in enumerate(rows) if any(value is not None for value in row)]
    rows = [rows[i] for i in full]
    if len(rows) < 2:
        raise source.error("no rows follow the header. Write one record a row", sheet)
    width = max(max(i for i, x in enumerate(row) if x is not None) for row in rows) + 1
    rows = [(row + [None] * width)[:width] for row in rows]
    names = ["" if name is None else str(name).strip() for name in rows[0]]
    _check_header(source, rows[0], sheet)
    records = of_values(names, rows[1:], place="row", places=[i + 1 for i in full[1:]])
    return tabulate(replace(source, key=key), records)


def _check_formulas(source: Source, sheet: str, rows: list[list[Any]]) -> None:
    """Refuse cells whose formula was never computed: they would be missing numbers."""
    source.file.seek(0)
    book = openpyxl.load_workbook(source.file, read_only=True, keep_links=False)
    written = book[sheet].iter_rows()
    for row, cells in zip(rows, written, strict=False):
        for value, cell in zip(row, cells, strict=False):
            if value is None and cell.data_type == "f":
                raise source.error(
                    f"cell {cell.coordinate} has a formula, {str(cell.value)[:40]!r}, that was"
                    " never computed. Open and save the file with Excel or LibreOffice",
                    sheet,
                )


def _check_archive(source: Source) -> None:
    """Refuse archives that inflate beyond the budget, and parts that declare a document type."""
    if not zipfile.is_zipfile(source.file):
        raise source.error("is no workbook. If it holds text, name it .csv")
    with zipfile.ZipFile(source.file) as archive:
        parts = archive.infolist()
        if any(part.compress_type not in {0, 8} or part.flag_bits & 1 for part in parts):
            raise source.error("is encrypted, or packed in a way that Excel never uses. Save again")
        if any(part.compress_size > source.size for part in parts):
            raise source.error("declares more bytes than it has. Copy it again")
        check_budget(source, sum(part.file_size for part in parts), source.size)
        for part in parts:
            if part.filename.endswith((".xml", ".rels")):
                with archive.open(part) as stream:
                    start = stream.read(_LOOK).replace(b"\0", b"").upper()
                if any(word.encode() in start for word in _DECLARED):
                    text = "declares a document type, as no workbook does. Save it again"
                    raise source.error(text, part.filename)


def _choose(source: Source, book: Any) -> tuple[str, str | None]:
    """Return the sheet, and the column where one was asked for."""
    names, key = book.sheetnames, source.key
    sheet, found, column = (key or "").partition("::")
    if sheet in names:
        return sheet, column if found else None
    if len(names) == 1:
        return names[0], key
    return choose(source, names, "sheets"), None


def _check_header(source: Source, first: list[Any], sheet: str) -> None:
    if source.reading.header is False:
        raise source.error(
            "a sheet is read with a row of names. Write one above the numbers", sheet
        )
    numbers = [value for value in first if isinstance(value, int | float)]
    all_numbers = numbers and len(numbers) == sum(value is not None for value in first)
    if all_numbers and source.reading.header is None:
        text = f"the first row should name the columns, but has the numbers {numbers[:9]}"
        raise source.error(f"{text}. header=True says that these are names", sheet)
