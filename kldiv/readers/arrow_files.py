"""``.parquet``, ``.arrow`` and ``.feather``, by pyarrow, a batch at a time.

Declared sizes are checked before anything is decoded, and the decoded ones after each batch;
a page or buffer that inflates to more than it declares is refused only once pyarrow has it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from kldiv.readers.cells import tabulate
from kldiv.readers.numerals import BEYOND, is_lost, is_missing
from kldiv.readers.records import Records, cell_of, check_nested
from kldiv.readers.sources import Source, check_budget, parsing
from kldiv.readers.table import Sample, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kldiv.readers.records import Block

_ROWS = 1 << 14  # of a batch
_BLOCK = 1 << 18  # of a batch of one column


def read_parquet(source: Source) -> Table:
    """Return the numbers of a Parquet file."""
    with parsing(source, "Parquet file"):
        file = parquet.ParquetFile(_Bounded(source))
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        sizes = [each.num_rows for each in groups]
        if sum(sizes) != file.metadata.num_rows or min(sizes, default=0) < 0:
            text = f"declares {file.metadata.num_rows:,} rows, and parts of {sum(sizes):,} in all"
            raise source.error(f"{text}. Write it again")
        if source.samples and source.key in _plain_columns(file.schema_arrow):
            return Table(np.empty(0), source.path, samples=(_sample(source, file),))
        cells = 8 * file.metadata.num_rows * len(file.schema_arrow.names)
        check_budget(source, max(cells, sum(each.total_byte_size for each in groups)), source.size)
        return _table(source, file.schema_arrow, file.iter_batches(batch_size=_ROWS))


def parquet_columns(source: Source) -> list[str] | None:
    """Return the columns that can be read as samples one at a time; None where some cannot."""
    with parsing(source, "Parquet file"):
        schema = parquet.ParquetFile(_Bounded(source)).schema_arrow
        found = _plain_columns(schema)
        return found if len(found) == len(schema.names) else None


def _plain_columns(schema: Any) -> list[str]:
    """Return the columns of numbers or text that are neither an index nor named twice."""
    tests = (pa.types.is_integer, pa.types.is_floating, _is_words)
    kinds = {field.name: field.type for field in schema}
    return [
        name
        for name, kind in kinds.items()
        if name
        and not name.startswith("__index_level_")
        and schema.names.count(name) == 1
        and any(test(kind) for test in tests)
    ]


def _is_words(kind: Any) -> bool:
    """Return whether a column holds labels or categories: text, or truth values."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean
    return any(test(kind) for test in tests)


def _sample(source: Source, file: Any) -> Sample:
    """Return one column as a sample, without a look at the others."""
    name, rows = str(source.key), file.metadata.num_rows
    check_budget(source, 8 * rows, source.size, name)
    columns = (batch.column(0) for batch in file.iter_batches(_BLOCK, columns=[name]))
    if not _is_words(file.schema_arrow.field(name).type):
        numbers, done = np.empty(rows), 0
        for column in columns:
            part = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            numbers[done : done + len(part)] = part
            done += len(part)
        gone = np.isnan(numbers)
        missing = int(gone.sum())
        return Sample(name, numbers[~gone] if missing else numbers, missing)
    words, missing = list[str](), 0
    known: dict[str, str] = {}  # a word that comes again is kept once
    for column in map(_validated, columns):
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        cells = [cell_of(value) for value in encoded.dictionary.to_pylist()]
        cells = [known.setdefault(cell, cell) for cell in cells]
        there = [None if is_missing(cell) else cell for cell in cells]
        found = [None if code is None else there[code] for code in encoded.indices.to_pylist()]
        words += filter(None, found)
        missing += found.count(None)
        check_budget(source, sum(map(len, known)) + 8 * len(words), source.size, name)
    return Sample(name, tuple(words), missing)


def read_arrow(source: Source) -> Table:
    """Return the numbers of an Arrow or Feather file of version 2, or of a stream of batches."""
    with parsing(source, "Arrow file"):
        check_budget(source, source.size, source.size)
        start = source.file.read(6)
        source.file.seek(0)
        if start.startswith(b"FEA1"):
            # pyarrow's reader of these follows offsets that lead out of the file.
            text = "is of Feather's first version, from before 2020, which is not read"
            raise source.error(f"{text}. Save it again, with version=2, or as .parquet")
        # In memory and on this thread: pyarrow's threads may outlive a damaged file.
        content = pa.py_buffer(source.file.read())
        options = pa.ipc.IpcReadOptions(use_threads=False)
        if start == b"ARROW1":
            reader = pa.ipc.open_file(content, options=options)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            return _table(source, reader.schema, batches)
        stream = pa.ipc.open_stream(content, options=options)
        return _table(source, stream.schema, iter(stream))


class _Bounded:
    """A file of which no more is asked than there is, for which memory would be taken first."""

    def __init__(self, source: Source) -> None:
        self._file = source.file
        self._size = source.size

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        return self._file.read(left if size < 0 else min(size, left))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _lists(source: Source, name: str, columns: list[Any]) -> Table:
    """Return a column of lists, each of them a row."""
    rows = [row for column in columns for row in column.to_pylist()]
    check_budget(source, 8 * sum(map(len, rows)), source.size, name)
    if len({len(row) for row in rows}) != 1:
        raise source.error("lists of different lengths. Give all as many numbers", name)
    found = np.asarray(rows, np.float64)
    kind = columns[0].type
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):  # but decimals or text
        edge = np.asarray(rows, object)[(found == 0) | np.isinf(found)]
        lost = next((each for each in map(str, edge) if is_lost(each, 0.0)), None)
        if lost is not None:
            raise source.error(f"{lost[:60]!r} {BEYOND}", name)
    return Table(found, source.path, name)


def _validated(batch: Any) -> Any:
    """Return a batch whose offsets lie within its buffers; pyarrow follows them unchecked."""
    batch.validate(full=True)
    return batch


def _index_of(schema: Any) -> list[str]:
    """Return the columns that are a named index of pandas."""
    noted = (schema.metadata or {}).get(b"pandas", b"{}")
    with suppress(ValueError):
        found = json.loads(noted)
        columns = found.get("index_columns") if isinstance(found, dict) else None
        if isinstance(columns, list):
            return [name for name in columns if isinstance(name, str)]
    return []


def _table(source: Source, schema: Any, batches: Iterator[Any]) -> Table:
    batches = map(_validated, batches)
    names = ["" if name.startswith("__index_level_") else name for name in schema.names]
    index = [] if source.samples else _index_of(schema)
    # pandas' index comes first.
    order = sorted(range(len(names)), key=lambda i: (names[i] != "", names[i] not in index))
    kinds = [schema.field(i).type for i in order]
    for i in order:
        if pa.types.is_nested(schema.field(i).type):
            if source.key == names[i]:
                return _lists(source, names[i], [batch.column(i) for batch in batches])
            kind = schema.field(i).type
            check_nested(source, names[i], lists=not pa.types.is_struct(kind))
    numeric = [
        pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t) for t in kinds
    ]
    held, size = list[Any](), 0
    for batch in batches:
        size += batch.nbytes
        check_budget(source, size, source.size)
        held.append(batch)

    def blocks() -> Iterator[Block]:
        number = 1
        for batch in held:
            columns = [list(map(cell_of, batch.column(i).to_pylist())) for i in order]
            yield range(number, number + batch.num_rows), columns
            number += batch.num_rows

    found = [names[i] for i in order]
    typed = frozenset(i for i, yes in enumerate(numeric) if not yes or found[i] in index)
    plain = frozenset(i for i, yes in enumerate(numeric) if yes)
    return tabulate(source, Records(found, blocks, place="row", typed=typed, plain=plain))
