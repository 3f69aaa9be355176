"""Reading arrays from files that nobody vouches for.

Nothing is unpickled.  Every size that a file declares is checked against the bytes that are there,
and against a budget, before anything is allocated or mapped.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from functools import partial
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from kldiv.errors import InputError
from kldiv.readers.arrays import doubles
from kldiv.readers.linear_logits import logits_of
from kldiv.readers.llama_files import MAGIC, read_base
from kldiv.readers.reading import PLAIN, Reading
from kldiv.readers.shards import read_shards
from kldiv.readers.sources import (
    Source,
    check_options,
    drained,
    is_several,
    is_stream,
    memory,
    needed,
    opened,
    readable,
    size_of,
    split,
)
from kldiv.readers.stored import Stored
from kldiv.readers.table import Sample, Table
from kldiv.readers.tensor_files import INDEX, index_in, read_index
from kldiv.readers.unnamed import PACKED, TEXT, check_text, format_of, packing_of, unpacked
from kldiv.readers.zarr_store import is_zarr, read_zarr

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "Reading",
    "Sample",
    "Stored",
    "Table",
    "linear_logits",
    "open_samples",
    "open_table",
    "read",
    "read_samples",
]

_FORMATS: Final = {
    ".npy": "numpy_files.read_npy",
    ".npz": "numpy_files.read_npz",
    ".csv": "text_files.read_text",
    ".tsv": "text_files.read_text",
    ".txt": "text_files.read_text",
    ".dat": "text_files.read_text",
    ".json": "json_files.read_json",
    ".jsonl": "json_files.read_json_lines",
    ".ndjson": "json_files.read_json_lines",
    ".parquet": "arrow_files.read_parquet",
    ".arrow": "arrow_files.read_arrow",
    ".feather": "arrow_files.read_arrow",
    ".xlsx": "excel_files.read_excel",
    ".h5": "hdf5_files.read_hdf5",
    ".hdf5": "hdf5_files.read_hdf5",
    ".safetensors": "tensor_files.read_safetensors",
    ".pt": "torch_files.read_torch",
    ".pth": "torch_files.read_torch",
}
"""The reader of each suffix, imported when it is used; behind one of `PACKED` too, if text."""

_PACKAGES: Final = {"arrow_files": "pyarrow", "excel_files": "openpyxl", "hdf5_files": "h5py"}
"""The packages that modules of readers import."""


def read(
    spec: str | os.PathLike[str],
    *,
    key: str | None = None,
    max_bytes: int | None = None,
    mmap: bool | Literal["auto"] = "auto",
    reading: Reading = PLAIN,
) -> Table:
    r"""Read an array from a file, without trusting the file.

    Parameters
    ----------
    spec : str or path-like
        A path, or ``path::member``.  A path object, a string with `key`, and a string that is the
        name of an existing file are taken as they stand.
    key : str, optional
        The member: an array of a ``.npz``, a tensor of a ``.safetensors``, a column of a ``.csv``
        or ``.tsv``.  Needed where there are several arrays or tensors.
    max_bytes : int, optional
        The largest array, once uncompressed, or text file to accept.  By default a text file may
        have 256 MiB, and an array that is not mapped 256 MiB or 100 times its bytes on disk,
        whichever is more, but never more than half of the machine's memory.  An archive of more
        zeros than that looks like a zip bomb; pass its size if you know that it is none.
    mmap : bool or "auto", default "auto"
        Whether to map a ``.npy`` or ``.safetensors`` read-only instead of reading it; "auto" does
        from 16 MiB.  Other formats, foreign byte order, misaligned data and empty arrays are read.
    reading : Reading, optional
        The things that a file leaves open: labels, separator, decimal mark, encoding and others.

    Returns
    -------
    Table
        The array, its labels, and where it came from.

    Raises
    ------
    InputError
        The file is missing, unreadable, damaged, larger than allowed, or holds no such array.
    OptionError
        `max_bytes` or `mmap` has a value that it does not take.

    Notes
    -----
    ``.npy``, ``.npz``
        Booleans, integers and real floating-point numbers keep their type.  Python objects are
        refused, as only unpickling could read them.
    ``.safetensors``
        Needs the safetensors package.  bfloat16 becomes float32, exactly.  Of several files with
        an index (``model.safetensors.index.json``) the index or the folder is named:
        ``folder::lm_head.weight``.
    ``.csv``, ``.tsv``, ``.txt``, ``.dat``
        A table.  UTF-8, or as a byte order mark says, with a header, and cells between commas,
        semicolons, tabs, bars, or in ``.txt`` blanks: whichever makes a table, if one alone does.
        Decimal commas, thousands and % signs are read where all numbers of the file allow one
        reading only.  ``#`` lines that are no records are left out.
    ``.json``, ``.jsonl``, ``.ndjson``
        A list of numbers or rows, an object of numbers by label, records, or columns: a table.
    ``.parquet``, ``.arrow``, ``.feather``, ``.xlsx``
        A table, by pyarrow or openpyxl (extra ``files``); ``path::sheet::column``.
    ``.h5``, ``.hdf5``
        A dataset, by h5py (extra ``files``); none that lies in other files or needs a plugin.
    ``.pt``, ``.pth``
        Tensors, by torch's loader of weights, which runs no code of the file.
    ``.gz``, ``.bz2``, ``.xz``, ``.zst``
        Packed text (``table.csv.gz``), within the budget; ``.zst`` by zstandard (extra ``files``).
    base files of llama.cpp
        The file of ``llama-perplexity --kl-divergence-base``, under any name: log-probabilities of
        16 bits, with the tokens that follow. Classes below a row's 16 nats become −∞.
    ``-`` and pipes
        Standard input, and paths of pipes, in any of these formats, known by their first bytes.
    tables
        A column is text where most of its first cells (at most a thousand) are not numbers, or
        where it is the first and has no name; text columns are the labels.  One column of numbers
        is a vector with a class a row.  Several are a matrix with a class a column, named by the
        header, and ``path::column`` takes one of them.  Columns low and high are the edges of bins.
        Where a first column of numbers may hold labels, the choice is the caller's: ``reading``,
        or ``path::*`` for the matrix.  Numbers become float64, of which each must be in range.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from kldiv.readers import read
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "letters.csv")
    ...     size = path.write_text("letter,count\na,82\nb,15\n", encoding="utf-8")
    ...     table = read(path)
    >>> table.array
    array([82., 15.])
    >>> table.classes
    ('a', 'b')
    """
    check_options(max_bytes=max_bytes, mmap=mmap)
    path, member = split(spec, key)
    if not is_several(path):
        return _read_file(path, member, max_bytes=max_bytes, mmap=mmap, reading=reading)
    table = open_table(spec, key=key, max_bytes=max_bytes, reading=reading)
    if not isinstance(table.array, Stored):
        return table
    limit = max_bytes or memory() // 2
    if table.array.nbytes > limit:
        raise InputError(
            f"{path}: {table.array.nbytes:,} bytes in all; at most {limit:,} are read at once. If"
            f" you have as much memory, pass max_bytes={table.array.nbytes} (--max-bytes)"
        )
    return replace(table, array=table.array[table.array.whole])


def read_samples(
    spec: str | os.PathLike[str],
    *,
    key: str | None = None,
    max_bytes: int | None = None,
    reading: Reading = PLAIN,
) -> tuple[Sample, ...]:
    r"""Read the columns of a table as samples: each cell is an observation.

    Parameters
    ----------
    spec : str or path-like
        As in `read`.
    key : str, optional
        One column.
    max_bytes : int, optional
        As in `read`.
    reading : Reading, optional
        As in `read`; ``values`` chooses columns, and ``labels`` leaves some out.

    Returns
    -------
    tuple of Sample
        Columns of numbers, and of categories. An array without names is one sample, or one for each
        column of a matrix, named by its number from 0.

    Raises
    ------
    InputError
        As for `read`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from kldiv.readers import read_samples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "visits.csv")
    ...     size = path.write_text("age,city\n31,Rome\n45,Oslo\n", encoding="utf-8")
    ...     age, city = read_samples(path)
    >>> age.values, city.values
    (array([31., 45.]), ('Rome', 'Oslo'))
    """
    check_options(max_bytes=max_bytes, mmap="auto")
    path, member = split(spec, key)
    if is_several(path):
        table = read(spec, key=key, max_bytes=max_bytes)
    else:
        table = _read_file(path, member, max_bytes=max_bytes, reading=reading, samples=True)
    if table.samples:
        return table.samples
    array = doubles(str(path), table.array)
    if array.ndim > 2:
        raise InputError(f"{path}: shape {array.shape}; samples are a list, or columns of a matrix")
    columns = [array.ravel()] if array.ndim < 2 else list(array.T)
    names = [table.member or path.stem] if array.ndim < 2 else map(str, range(len(columns)))
    return tuple(
        Sample(name, column[~np.isnan(column)], int(np.isnan(column).sum()))
        for name, column in zip(names, columns, strict=True)
    )


def open_samples(
    spec: str | os.PathLike[str],
    *,
    key: str | None = None,
    max_bytes: int | None = None,
    reading: Reading = PLAIN,
) -> dict[str, Callable[[], Sample]]:
    r"""Return functions that read the columns of a table as samples, one at a time.

    Parameters
    ----------
    spec : str or path-like
        As in `read`.
    key : str, optional
        One column.
    max_bytes : int, optional
        As in `read`, of Parquet for each column.
    reading : Reading, optional
        As in `read_samples`.

    Returns
    -------
    dict of str to callable
        By the names of the columns: each call returns a `Sample`. A column of Parquet is read when
        it is asked for, so that no two need be in memory; other formats are read at once.

    Raises
    ------
    InputError
        As for `read`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from kldiv.readers import open_samples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "visits.csv")
    ...     size = path.write_text("age,city\n31,Rome\n45,Oslo\n", encoding="utf-8")
    ...     columns = open_samples(path)
    >>> {name: read_column().values for name, read_column in columns.items()}
    {'age': array([31., 45.]), 'city': ('Rome', 'Oslo')}
    """
    path, member = split(spec, key)
    if member is None and path.suffix.lower() == ".parquet" and path.is_file():
        with opened(path) as file:
            source = Source(file, path, None, size_of(file), max_bytes)
            names = _function(source, "arrow_files.parquet_columns")(source)
        chosen, beside = reading.names("values"), reading.names("labels") or ()
        if names is not None and {*(chosen or ()), *beside} <= set(names):
            own = replace(reading, values=None, labels=None)
            return {
                name: partial(_column, path, name, max_bytes, own)
                for name in chosen or names
                if name not in beside
            }
    found = read_samples(spec, key=key, max_bytes=max_bytes, reading=reading)
    return {each.name: partial(copy, each) for each in found}


# Not inside: other processes get this function.
def _column(path: Path, name: str, max_bytes: int | None, reading: Reading) -> Sample:
    (found,) = read_samples(path, key=name, max_bytes=max_bytes, reading=reading)
    return found


def open_table(
    spec: str | os.PathLike[str],
    *,
    key: str | None = None,
    max_bytes: int | None = None,
    shard_axis: int = 0,
    reading: Reading = PLAIN,
) -> Table:
    """Open an array in a file, a folder of shards or a Zarr store; read it only if it is small.

    Parameters
    ----------
    spec : str or path-like
        As in `read`.  A folder of ``.npy`` or ``.safetensors`` files is one array, its parts in
        the natural order of their names, and so is a pattern like ``run/part-*.npy``; one with an
        index of ``.safetensors`` files holds the tensors that the index names; a folder with
        Zarr's metadata, or named ``.zarr``, is a store, ``store.zarr::name`` an array of it.
    key : str, optional
        The member, as in `read`; of every shard where there are several.
    max_bytes : int, optional
        The largest array to accept; by default any that stays on disk.
    shard_axis : int, default 0
        The axis along which shards follow one another.
    reading : Reading, optional
        As in `read`.

    Returns
    -------
    Table
        The array: a NumPy array below 16 MiB and for formats that cannot be read in parts, else a
        `Stored`, of which each index by slices reads just that part.

    Raises
    ------
    InputError
        As for `read`; or shards that do not fit together, or a store whose codecs could run code.
    """
    check_options(max_bytes=max_bytes, mmap="auto")
    path, member = split(spec, key)
    if not is_several(path):
        return _read_file(path, member, max_bytes=max_bytes, lazy=True, reading=reading)

    with readable(path):
        index = index_in(path)
    if index is not None:
        return _read_file(index, member, max_bytes=max_bytes, lazy=True, reading=reading)

    with readable(path):
        if is_zarr(path):
            table = read_zarr(Source(BytesIO(), path, member, 0))
        else:
            read_shard = partial(_read_file, max_bytes=max_bytes, lazy=True)
            table = read_shards(path, member, shard_axis, read_shard)
    if max_bytes is not None and table.array.nbytes > max_bytes:
        raise InputError(
            f"{path}: {table.array.nbytes:,} bytes; at most {max_bytes:,} are accepted. Pass"
            f" max_bytes={table.array.nbytes} (--max-bytes {table.array.nbytes})"
        )
    return table


def linear_logits(hidden: Any, weight: Any) -> Table:
    """Return the logits of a linear layer, which are computed a part at a time and never kept.

    Parameters
    ----------
    hidden : array, path or Table
        Hidden states along the last axis: NumPy's, or a file of them that `open_table` opens.
    weight : array, path or Table
        The layer's weight, a row for each class as in PyTorch's ``Linear``. A large one is mapped.

    Returns
    -------
    Table
        For `kldiv.streaming.compare`; its array is a `Stored` of float32, or of float64 where
        float32 does not hold the numbers of either.

    Raises
    ------
    ShapeError
        The hidden states are no longer or shorter than the rows of the weight.
    DTypeError, LibraryError
        Either is not of real numbers, or is a masked array.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv import readers, streaming
    >>> hidden, weight = np.ones((5, 8)), np.eye(8)[:3]
    >>> logits = readers.linear_logits(hidden, weight)
    >>> logits.array.shape
    (5, 3)
    >>> streaming.compare(logits, np.zeros((5, 3)), form="logits").mean
    0.0
    """

    def opened(given: Any, opening: Callable[[Any], Table]) -> Table:
        given = Table(given) if isinstance(given, np.ndarray | Stored) else given
        return given if isinstance(given, Table) else opening(given)

    return logits_of(opened(hidden, open_table), opened(weight, read))


def _read_file(path: Path, member: str | None, **options: Any) -> Table:
    if is_stream(path):
        raw = drained(path, options.get("max_bytes"))
        source = Source(BytesIO(raw), path, member, len(raw), **options)
        packing = packing_of(source)  # there is no name: the first bytes show the format
        source = source if packing is None else unpacked(replace(source, suffix=packing))
        return _read(replace(source, suffix=format_of(source)))
    with opened(path) as file:
        source = Source(file, path, member, size_of(file), **options)
        packed = source.kind in PACKED and source.size
        if packed or (source.kind in TEXT and packing_of(source)):
            source = unpacked(source)
            if source.suffix is None:
                source = replace(source, suffix=format_of(source))
        return _read(source)


def _read(source: Source) -> Table:
    if not source.size:
        raise source.error("the file is empty. Write an array to it")
    head = source.file.read(len(MAGIC))
    source.file.seek(0)
    if head == MAGIC:  # whatever the name: llama.cpp gives it none
        return read_base(source)
    if source.path.name.endswith(INDEX):
        return read_index(source)
    found = _FORMATS.get(source.kind)
    if found is None:
        if source.kind == ".zip":
            raise source.error("an archive. Unpack it first, and name a file of it")
        text = f"no reader for {source.kind!r}; there is one for {', '.join(_FORMATS)}, and for"
        raise source.error(
            f"{text} text packed as {', '.join(PACKED)}. Save a table as .csv or .xlsx, an array as"
            " .npy (a pickle, such as .pkl, is never read)"
        )
    if source.kind in TEXT:
        check_text(source)
    reader: Callable[[Source], Table] = _function(source, found)
    return reader(source)


def _function(source: Source, place: str) -> Any:
    """Return a function of a module of readers, whose package must be there."""
    module, _, name = place.partition(".")
    if module in _PACKAGES:
        needed(source, _PACKAGES[module])
    return getattr(import_module(f"{__name__}.{module}"), name)
