"""Reading arrays from files that nobody vouches for.

Nothing is unpickled.  Every size that a file declares is checked against the bytes that are there,
and against a budget, before anything is allocated or mapped.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
from array import array as packed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.lib import format as npy

from kldiv.errors import InputError, KLDivError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from zipfile import ZipFile, ZipInfo

    from numpy.typing import NDArray

    Row: TypeAlias = tuple[int, list[str]]

__all__ = ["Table", "read"]

_FLOOR: Final = 256 << 20  # bytes that any file may take, however well it is compressed
_RATIO: Final = 100  # above the floor, bytes for each byte on disk; deflate can reach 1032
_MAPPED: Final = 16 << 20  # arrays below this are read: a mapping costs more than it saves
_CHUNK: Final = 256 << 10
_NPY_HEADER: Final = 10_000  # what NumPy itself takes for safe to parse
_JSON_HEADER: Final = 16 << 20  # names of some 100 000 tensors
_MAX_DIMENSIONS: Final = 64
_SAMPLE_ROWS: Final = 1000  # that decide which columns are text,
_SAMPLE_CELLS: Final = 1 << 20  # but fewer rows where they are long
_SHOWN: Final = 20  # names that an error lists

_SAFETENSORS: Final = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",  # NumPy has no bfloat16: its bits are read, then widened
    "F32": "<f4",
    "F64": "<f8",
}

# Absolute, with a backslash or a control character, or climbing out of its folder.
_TRICK: Final = re.compile(r"^/|^[A-Za-z]:/|\\|[\x00-\x1f\x7f]|(^|/)\.\.(/|$)|^$")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """An array from a file, with the names that the file gives to its classes and rows.

    Attributes
    ----------
    array : numpy.ndarray
        The numbers, in the machine's byte order; read-only where the file is memory-mapped.
    path : pathlib.Path
        The file.
    member : str or None
        The array, tensor or column that was taken, for a file that can hold several.
    classes : tuple of str or None
        Labels along the last axis: the text column of one column of values, or the header of a
        matrix.
    rows : tuple of str or None
        Labels along the first axis of a matrix: its text column.
    """

    array: NDArray[Any]
    path: Path
    member: str | None = None
    classes: tuple[str, ...] | None = None
    rows: tuple[str, ...] | None = None


def read(
    spec: str | os.PathLike[str],
    *,
    key: str | None = None,
    max_bytes: int | None = None,
    mmap: bool | Literal["auto"] = "auto",
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
        Needs the safetensors package.  bfloat16 becomes float32, exactly.
    ``.csv``, ``.tsv``
        UTF-8, with a header.  A column is text where most of its first cells (at most a thousand)
        are not numbers, or where it is the first and has no name; text columns are the labels.
        One column of numbers is a vector with a class a row.  Several are a matrix with a class a
        column, named by the header, and ``path::column`` takes one of them.  Where the first of
        them merely counts the rows and there is no text, the choice is the caller's:
        ``path::column``, or ``path::*`` for the matrix.  Numbers become float64.

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
    _check_options(max_bytes=max_bytes, mmap=mmap)
    path, member = _split(spec, key)
    with _opened(path) as file:
        source = _Source(file, path, member, _size(file), max_bytes, mmap)
        if not source.size:
            raise source.error("the file is empty. Write an array to it")
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            text = (
                f"no reader for {path.suffix!r}; there is one for {', '.join(_READERS)}. Save the"
            )
            raise source.error(
                f"{text} array as .npy (a pickle, such as .pkl or .pt, is never read)"
            )
        return reader(source)


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """An open file and what the caller wants from it."""

    file: IO[bytes]
    path: Path
    key: str | None
    size: int
    max_bytes: int | None
    mmap: bool | Literal["auto"]

    def error(self, text: str, member: str | None = None) -> InputError:
        """Return an error that names the file, and the member where there is one."""
        return InputError(f"{self.path}{'' if member is None else f', {member!r}'}: {text}.")


@dataclass(frozen=True, slots=True)
class _Layout:
    """An array as its header declares it."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    order: Literal["C", "F"] = "C"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"shape {self.shape} of {self.dtype.name}, {self.nbytes:,} bytes"


def _check_options(*, max_bytes: int | None, mmap: bool | str) -> None:
    whole = isinstance(max_bytes, int) and not isinstance(max_bytes, bool) and max_bytes > 0
    if not (whole or max_bytes is None):
        message = f"max_bytes={max_bytes!r}: expected a positive number of bytes, or None."
        raise OptionError(message)
    if not (isinstance(mmap, bool) or mmap == "auto"):
        message = f"mmap={mmap!r}: expected True, False or 'auto'."
        raise OptionError(message)


def _split(spec: str | os.PathLike[str], key: str | None) -> tuple[Path, str | None]:
    """Split ``path::member``, unless it is a path as it stands."""
    path = Path(spec)
    # os.path.exists, unlike Path.exists, takes names that no file can have.
    if key is not None or not isinstance(spec, str) or os.path.exists(path):  # noqa: PTH110
        return path, key
    name, found, member = spec.partition("::")
    return Path(name), member if found else None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file; whatever the system refuses, now or while reading, is an InputError."""
    try:
        _check_regular(path)  # before opening, which would wait on a pipe
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        message = f"{path}: no such file. Check the path; a member is written as path::member."
        raise InputError(message) from error
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or error}). Check its permissions."
        raise InputError(message) from error


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except ValueError as error:
        message = f"{str(path)!r}: no file can have this name ({error}). Check the path."
        raise InputError(message) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        message = f"{path}: {kind}. Give the path of a file; copy a pipe into one first."
        raise InputError(message)


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


@contextmanager
def _parsing(source: _Source, kind: str, member: str | None = None) -> Iterator[None]:
    """Turn whatever somebody else's parser raises on hostile bytes into an InputError."""
    try:
        yield
    except KLDivError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        text = f"not a {kind} that can be read ({why}). It may be damaged: write it again"
        raise source.error(text, member) from error


# --- arrays ---------------------------------------------------------------------------------------


def _check_layout(source: _Source, layout: _Layout, member: str | None = None) -> None:
    """Refuse types that are not real numbers, and shapes that no array has."""
    if layout.dtype.hasobject:
        text = (
            f"holds Python objects (dtype {layout.dtype}), which only unpickling could read, and"
            " that runs whatever code the file holds. Save an array of numbers instead"
        )
        raise source.error(text, member)
    if layout.dtype.kind not in "biuf":
        text = (
            f"dtype {layout.dtype} holds no real numbers; expected booleans, integers or floats."
            " Convert it, say by .astype('float32') (bfloat16 loses its name in a .npy file)"
        )
        raise source.error(text, member)
    possible = len(layout.shape) <= _MAX_DIMENSIONS and all(0 <= n < 2**63 for n in layout.shape)
    if not possible:
        raise source.error("declares a shape that no array can have. Write it again", member)


def _check_budget(source: _Source, nbytes: int, stored: int, member: str | None = None) -> None:
    """Refuse what would take more memory than allowed, given its bytes on disk."""
    limit = source.max_bytes or min(max(_FLOOR, _RATIO * stored), _memory() // 2)
    if nbytes > limit:
        text = (
            f"{nbytes:,} bytes from {stored:,} on disk; at most {limit:,} are accepted. If you"
            f" trust the file, pass max_bytes={nbytes} (--max-bytes {nbytes})"
        )
        raise source.error(text, member)


def _memory() -> int:
    """Return the bytes of physical memory, or more than any file has where nobody tells."""
    sysconf = getattr(os, "sysconf", None)  # not on Windows
    try:
        pages = sysconf("SC_PHYS_PAGES") if sysconf else -1
        return int(pages * sysconf("SC_PAGE_SIZE")) if sysconf and pages > 0 else 2**63
    except (OSError, ValueError):
        return 2**63


def _is_mapped(source: _Source, layout: _Layout) -> bool:
    native = layout.dtype.isnative
    aligned = layout.offset % layout.dtype.itemsize == 0
    if not (native and aligned and layout.nbytes):  # an empty mapping does not exist
        return False
    return layout.nbytes >= _MAPPED if source.mmap == "auto" else source.mmap


def _load(source: _Source, layout: _Layout, member: str | None = None) -> NDArray[Any]:
    """Map or read an array whose layout fits the file."""
    mapped = _is_mapped(source, layout)
    if source.max_bytes is not None or not mapped:
        _check_budget(source, layout.nbytes, layout.nbytes, member)
    if mapped:
        with _parsing(source, "array that can be mapped", member):
            return np.asarray(
                np.memmap(source.file, layout.dtype, "r", layout.offset, layout.shape, layout.order)
            )
    source.file.seek(layout.offset)
    return _filled(source, layout, source.file, member)


def _filled(
    source: _Source, layout: _Layout, stream: IO[bytes], member: str | None = None
) -> NDArray[Any]:
    """Read exactly the bytes of an array from a stream that stands at its first."""
    with _parsing(source, f"array ({layout})", member):
        raw = np.empty(layout.nbytes, np.uint8)
        room, done = raw.data, 0
        while done < layout.nbytes:
            part = stream.read(min(_CHUNK, layout.nbytes - done))
            if not part:
                text = f"ends after {done:,} bytes of data; expected {layout}. Copy it again"
                raise source.error(text, member)
            room[done : done + len(part)] = part
            done += len(part)
        array = raw.view(layout.dtype).reshape(layout.shape, order=layout.order)
    return array if layout.dtype.isnative else _native(array)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Swap the bytes of an array of our own, in place."""
    return array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))


# --- .npy and .npz --------------------------------------------------------------------------------


def _npy(source: _Source) -> Table:
    if source.key is not None:
        raise source.error(f"a .npy file holds one array; leave out ::{source.key}")
    layout = _npy_layout(source, source.file, source.size)
    return Table(_load(source, layout), source.path)


def _npy_layout(
    source: _Source, stream: IO[bytes], size: int, member: str | None = None
) -> _Layout:
    """Parse the header at the start of a stream, and check it against the bytes that follow."""
    # A header may claim 4 GiB for itself, and NumPy would read them: it gets no more than these.
    head = io.BytesIO(stream.read(_NPY_HEADER + npy.MAGIC_LEN + 4))
    with _parsing(source, ".npy", member):
        version = npy.read_magic(head)
        parse = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if parse is None:
            text = f"version {version} of .npy is for records; expected (1, 0) or (2, 0). Save"
            raise source.error(f"{text} an array of numbers instead", member)
        shape, fortran, dtype = parse(head, max_header_size=_NPY_HEADER)
    shape = tuple(int(n) for n in shape)
    layout = _Layout(dtype, shape, head.tell(), "F" if fortran else "C")
    _check_layout(source, layout, member)
    there = size - layout.offset
    if there != layout.nbytes:
        text = f"the header declares {layout}, but {there:,} bytes of data follow it"
        raise source.error(f"{text}. Copy or save it again", member)
    return layout


def _npz(source: _Source) -> Table:
    import zipfile  # noqa: PLC0415 - only where one is read

    with _parsing(source, ".npz"), zipfile.ZipFile(source.file) as archive:
        members = _npz_members(source, archive.infolist())
        name = _choose(source, members, "arrays", ".npy")
        return Table(_npz_array(source, archive, members[name], name), source.path, name)


def _npz_members(source: _Source, infos: Sequence[ZipInfo]) -> dict[str, ZipInfo]:
    """Return the arrays of an archive by name; refuse directories made to deceive."""
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        if _TRICK.search(name):
            raise source.error("a member's name is no plain relative path. Save it again", name)
        if name in seen:
            raise source.error("two members have this name. Save it again", name)
        seen.add(name)
    return {
        info.filename.removesuffix(".npy"): info for info in infos if info.filename.endswith(".npy")
    }


def _choose(source: _Source, names: Iterable[str], what: str, suffix: str = "") -> str:
    """Return the member that was asked for, or the only one."""
    known = list(names)
    shown = ", ".join(repr(name) for name in known[:_SHOWN]) or "none"
    if len(known) > _SHOWN:
        shown += f" and {len(known) - _SHOWN:,} more"
    if source.key is None:
        if len(known) == 1:
            return known[0]
        text = f"holds {len(known):,} {what}: {shown}. Name one: {source.path}::name"
        raise source.error(text if known else f"holds no {what}. Save one to it")
    for name in (source.key, source.key.removesuffix(suffix)):
        if name in known:
            return name
    raise source.error(f"no such name among its {what}: {shown}. Name one of these", source.key)


def _npz_array(source: _Source, archive: ZipFile, info: ZipInfo, member: str) -> NDArray[Any]:
    """Decompress one member: never more than its entry declares and the budget allows."""
    if info.flag_bits & 0x1:
        raise source.error("is encrypted. Decrypt the archive first", member)
    if info.compress_type not in (0, 8):  # others inflate without bound at a single read
        text = f"compression {info.compress_type}; expected stored or deflated, as np.savez writes"
        raise source.error(f"{text}. Save it again", member)
    # The entry may lie about its compressed size too; the file's own size cannot.
    _check_budget(source, info.file_size, min(info.compress_size, source.size), member)
    with _parsing(source, "zip member", member):
        with archive.open(info) as stream:
            layout = _npy_layout(source, stream, info.file_size, member)
        with archive.open(info) as stream:
            stream.read(layout.offset)
            array = _filled(source, layout, stream, member)
            stream.read(1)  # reaches the end, where the checksum is compared
    return array


# --- .safetensors ---------------------------------------------------------------------------------


def _safetensors(source: _Source) -> Table:
    import json  # noqa: PLC0415 - only where one is read

    length = int.from_bytes(source.file.read(8), "little")
    there = max(source.size - 8, 0)
    if not 0 < length <= min(there, _JSON_HEADER):
        text = f"the header declares {length:,} bytes for itself; {there:,} follow, and at most"
        raise source.error(f"{text} {_JSON_HEADER:,} are accepted. Copy or save it again")
    _validate(source)
    with _parsing(source, ".safetensors"):
        header = json.loads(source.file.read(length))
        header.pop("__metadata__", None)
        member = _choose(source, header, "tensors")
        entry = header[member]
        kind, (start, end) = str(entry["dtype"]), map(int, entry["data_offsets"])
        shape = tuple(int(n) for n in entry["shape"])
    if kind not in _SAFETENSORS:
        text = f"dtype {kind} is none of {', '.join(_SAFETENSORS)}. Save it as F32 or BF16"
        raise source.error(text, member)
    layout = _Layout(np.dtype(_SAFETENSORS[kind]), shape, 8 + length + start)
    _check_layout(source, layout, member)
    if not (0 <= start <= end <= there - length and layout.nbytes == end - start):
        text = f"the header places {layout} at bytes {start:,} to {end:,} of {there - length:,}"
        raise source.error(f"{text}. Copy or save it again", member)
    if kind != "BF16":
        return Table(_load(source, layout, member), source.path, member)
    _check_budget(source, 2 * layout.nbytes, layout.nbytes, member)
    return Table(_widened(_load(source, layout, member)), source.path, member)


def _validate(source: _Source) -> None:
    """Have the format's own package check the header: names, types, and offsets without holes."""
    try:
        from safetensors import safe_open  # noqa: PLC0415 - optional
    except ImportError as error:
        text = 'needs the safetensors package: pip install "kldiv[cli]"'
        raise source.error(text) from error
    with _parsing(source, ".safetensors"), safe_open(source.path, framework="np"):
        pass


def _widened(bits: NDArray[Any]) -> NDArray[Any]:
    """Return bfloat16 bits as float32: they are its upper half."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


# --- .csv and .tsv --------------------------------------------------------------------------------


def _csv(source: _Source) -> Table:
    import csv  # noqa: PLC0415 - only where one is read

    limit = source.max_bytes or _FLOOR
    if source.size > limit:
        text = f"{source.size:,} bytes of text; at most {limit:,} are accepted. Save it as .npy, or"
        raise source.error(f"{text} pass max_bytes={source.size} (--max-bytes {source.size})")
    delimiter = "\t" if source.path.suffix.lower() == ".tsv" else ","
    kind = "text file in UTF-8 with a header and one record a line"
    stream = io.TextIOWrapper(source.file, encoding="utf-8-sig", newline="")
    with stream, _parsing(source, kind):
        lines = csv.reader(stream, delimiter=delimiter, strict=True)
        rows = ((lines.line_num, row) for row in lines if row)
        return _table(source, rows)


def _table(source: _Source, rows: Iterator[Row]) -> Table:
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


def _check_unique(source: _Source, header: list[str]) -> None:
    seen: set[str] = set()
    for name in header:
        if name in seen:
            text = f"two columns are named {name!r}. Rename one"
            raise source.error(f"{text}, or write a header if the first line is data")
        seen.add(name)


def _equally_long(source: _Source, header: list[str], rows: Iterable[Row]) -> Iterator[Row]:
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


def _columns(source: _Source, header: list[str], head: list[Row], text: set[int]) -> list[int]:
    """Return the columns of values: the one that was asked for, or all that are not text."""
    if source.key is not None and (source.key in header or source.key != "*"):
        return [header.index(_choose(source, header, "columns"))]
    columns = [i for i in range(len(header)) if i not in text]
    if not columns:
        line, row = head[0]
        found = f"no column holds numbers: line {line}, column {header[-1]!r}: {row[-1][:60]!r}"
        mend = "Separate cells by commas in .csv, tabs in .tsv, and write numbers as 1.5"
        raise source.error(f"{found}. {mend}")
    _check_names(source, [header[i] for i in columns])
    return columns


def _check_names(source: _Source, names: list[str]) -> None:
    """Refuse a first line that seems to be data: numbers, but not 0, 1, 2, … or 1, 2, 3, …."""
    counts = ([str(i + start) for i in range(len(names))] for start in (0, 1))
    if names not in counts and all(_number(name) is not None for name in names):
        found = f"the first line should name the columns, but has the numbers {names[:_SHOWN]}"
        raise source.error(f"{found}. Write a header above them")


def _values(
    source: _Source,
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
    source: _Source, header: list[str], values: NDArray[np.float64], labels: object
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


_READERS: Final[dict[str, Callable[[_Source], Table]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".tsv": _csv,
    ".safetensors": _safetensors,
}
