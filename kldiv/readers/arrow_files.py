"""``.parquet``, ``.arrow`` and ``.feather``, by pyarrow, a batch at a time.

Declared sizes are checked before anything is decoded, and the decoded ones after each batch;
a page or buffer that inflates to more than it declares is refused only once pyarrow has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.readers.cells import Records, cell_of, check_nested, tabulate
from kldiv.readers.sources import Source, check_budget, needs, parsing
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROWS = 1 << 14  # of a batch


def read_parquet(source: Source) -> Table:
    """Return the numbers of a Parquet file."""
    with needs(source, "pyarrow"):
        from pyarrow import parquet  # noqa: PLC0415 - optional, and only where one is read
    with parsing(source, "Parquet file"):
        file = parquet.ParquetFile(source.file)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        cells = 8 * file.metadata.num_rows * len(file.schema_arrow.names)
        check_budget(source, max(cells, sum(each.total_byte_size for each in groups)), source.size)
        return _table(source, file.schema_arrow, file.iter_batches(batch_size=_ROWS))


def read_arrow(source: Source) -> Table:
    """Return the numbers of an Arrow or Feather file, or of a stream of record batches."""
    with needs(source, "pyarrow"):
        import pyarrow as pa  # noqa: PLC0415 - see above
        from pyarrow import feather  # noqa: PLC0415
    with parsing(source, "Arrow file"):
        check_budget(source, source.size, source.size)
        start = source.file.read(6)
        source.file.seek(0)
        if start.startswith(b"FEA1"):
            table = feather.read_table(source.file, memory_map=False)
            return _table(source, table.schema, iter(table.to_batches()))
        if start == b"ARROW1":
            reader = pa.ipc.open_file(source.file)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            return _table(source, reader.schema, batches)
        stream = pa.ipc.open_stream(source.file)
        return _table(source, stream.schema, iter(stream))


def _lists(source: Source, name: str, columns: list[Any]) -> Table:
    """Return a column of lists, each of them a row."""
    rows = [row for column in columns for row in column.to_pylist()]
    check_budget(source, 8 * sum(map(len, rows)), source.size, name)
    if len({len(row) for row in rows}) != 1:
        raise source.error("lists of different lengths. Give all as many numbers", name)
    return Table(np.asarray(rows, np.float64), source.path, name)


def _table(source: Source, schema: Any, batches: Iterator[Any]) -> Table:
    import pyarrow as pa  # noqa: PLC0415 - is loaded already

    names = ["" if name.startswith("__index_level_") else name for name in schema.names]
    order = sorted(range(len(names)), key=lambda i: names[i] != "")  # pandas' index comes first
    kinds = [schema.field(i).type for i in order]
    for i in order:
        if pa.types.is_nested(schema.field(i).type):
            if source.key == names[i]:
                return _lists(source, names[i], [batch.column(i) for batch in batches])
            check_nested(source, names[i])
    numeric = [
        pa.types.is_integer(t)
        or pa.types.is_floating(t)
        or pa.types.is_boolean(t)
        or pa.types.is_decimal(t)
        for t in kinds
    ]
    held, size = list[Any](), 0
    for batch in batches:
        size += batch.nbytes
        check_budget(source, size, source.size)
        held.append(batch)

    def rows() -> Iterator[tuple[int, list[str]]]:
        number = 0
        for batch in held:
            columns = [batch.column(i).to_pylist() for i in order]
            for row in zip(*columns, strict=True):
                number += 1
                yield number, [cell_of(value) for value in row]

    typed = frozenset(i for i, yes in enumerate(numeric) if not yes)
    found = [names[i] for i in order]
    return tabulate(source, Records(found, rows, place="row", typed=typed, decimal="."))
