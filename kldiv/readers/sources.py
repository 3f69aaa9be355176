"""A file that nobody vouches for, its declared layout, and the bytes that are really there."""

from __future__ import annotations

import base64
import math
import os
import stat
import struct
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal

import numpy as np

from kldiv.errors import InputError, KLDivError, OptionError
from kldiv.readers.reading import PLAIN
from kldiv.readers.stored import StoredFile, widened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from kldiv.readers.reading import Reading
    from kldiv.readers.stored import Layout

FLOOR: Final = 256 << 20  # bytes that any file may take, however well it is compressed
RATIO: Final = 100  # above the floor, bytes for each byte on disk; deflate can reach 1032
_MAPPED: Final = 16 << 20  # arrays below this are read: a mapping costs more than it saves
_CHUNK: Final = 256 << 10
_MAX_DIMENSIONS: Final = 64
STORED: Final = 16 << 20  # arrays below this are read at once, even where they may stay on disk
SHOWN: Final = 20  # names that an error lists


@dataclass(frozen=True, slots=True)
class Source:
    """An open file and the caller's request."""

    file: IO[bytes]
    path: Path
    key: str | None
    size: int
    max_bytes: int | None = None
    mmap: bool | Literal["auto"] = "auto"
    lazy: bool = False
    """Whether an array of `STORED` bytes or more stays on disk."""
    reading: Reading = PLAIN
    suffix: str | None = None
    """Of the format, where the path does not have it."""

    samples: bool = False
    """Whether every column is wanted by itself, as a sample."""

    @property
    def kind(self) -> str:
        """The suffix of the format, in lower case."""
        return self.path.suffix.lower() if self.suffix is None else self.suffix

    def error(self, text: str, member: str | None = None) -> InputError:
        """Return an error that names the file, and the member where there is one."""
        return InputError(f"{self.path}{'' if member is None else f', {member!r}'}: {text}.")


def check_options(*, max_bytes: int | None, mmap: bool | str) -> None:
    """Refuse values that the options do not take."""
    whole = isinstance(max_bytes, int) and not isinstance(max_bytes, bool) and max_bytes > 0
    if not (whole or max_bytes is None):
        raise OptionError(f"max_bytes={max_bytes!r}: expected a positive number of bytes, or None.")
    if not (isinstance(mmap, bool) or mmap == "auto"):
        raise OptionError(f"mmap={mmap!r}: expected True, False or 'auto'.")


def split(spec: str | os.PathLike[str], key: str | None) -> tuple[Path, str | None]:
    """Split ``path::member``, unless it is a path as it stands."""
    path = Path(spec)
    # os.path.exists, unlike Path.exists, takes names that no file can have.
    if key is not None or not isinstance(spec, str) or os.path.exists(path):  # noqa: PTH110
        return path, key
    name, found, member = spec.partition("::")
    return Path(name), member if found else None


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file; whatever the system refuses, now or while reading, is an InputError."""
    with readable(path):
        _check_regular(path)
        with path.open("rb") as file:
            yield file


def is_stream(path: Path) -> bool:
    """Return whether a path is ``-``, or that of a pipe, as ``<(…)`` makes one."""
    if str(path) == "-":
        return not path.exists()
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except (OSError, ValueError):  # as opening will say
        return False


def drained(path: Path, max_bytes: int | None) -> bytes:
    """Return all that comes from standard input or a pipe, within the budget."""
    limit = max_bytes or FLOOR
    with readable(path):
        if str(path) == "-":
            found = sys.stdin.buffer.read(limit + 1)
        else:
            # A pipe that nobody writes to would never end; opened like this, it ends at once.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                os.set_blocking(file.fileno(), True)
                found = file.read(limit + 1)
            if not found:
                raise InputError(f"{path}: no regular file, but a pipe that nobody writes to.")
    if len(found) > limit:
        raise InputError(
            f"{path}: more than {limit:,} bytes come from a pipe. Write them to a file, or pass"
            " max_bytes=N (--max-bytes N)."
        )
    return found


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors of the system into an InputError."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: no such file. Check the path; a member is written as path::member."
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}). Check its permissions."
        ) from error


def is_several(path: Path) -> bool:
    """Return whether a path is a folder, or no file's own as the pattern ``part-*.npy``."""
    name = str(path)
    pattern = any(c in name for c in "*?[") and "\0" not in name  # which no file has in its name
    # os.path: see split.
    return os.path.isdir(name) or (pattern and not os.path.exists(name))  # noqa: PTH110, PTH112


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except ValueError as error:
        raise InputError(
            f"{str(path)!r}: no file can have this name ({error}). Check the path."
        ) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise InputError(f"{path}: {kind}. Give the path of a file or of a pipe.")


def size_of(file: IO[bytes]) -> int:
    """Return how many bytes a file has."""
    return file.seek(0, os.SEEK_END) - file.seek(0)


@contextmanager
def parsing(source: Source, kind: str, member: str | None = None) -> Iterator[None]:
    """Turn whatever somebody else's parser raises on hostile bytes into an InputError."""
    try:
        yield
    except KLDivError:
        raise
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        text = f"not a {kind} that can be read ({why}). It may be damaged: write it again"
        raise source.error(text, member) from error


def needed(source: Source, package: str, extra: str = "files") -> ModuleType:
    """Import a package; the lack of it is an InputError that says how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        text = f'needs the {package} package: pip install "kldiv[{extra}]"'
        raise source.error(text) from error


def check_alone(source: Source, holder: str) -> None:
    """Refuse the name of a member where there is one array without a name."""
    if source.key is not None:
        raise source.error(f"{holder} holds one array; leave out ::{source.key}")


def check_text_size(source: Source) -> None:
    """Refuse a text that is longer than the budget."""
    limit = source.max_bytes or FLOOR
    if source.size > limit:
        raise source.error(
            f"{source.size:,} bytes of text; at most {limit:,} are accepted. Save it as .npy, or"
            f" pass max_bytes={source.size} (--max-bytes {source.size})"
        )


def check_layout(source: Source, layout: Layout, member: str | None = None) -> None:
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


def check_attributes(
    source: Source, attributes: Any, dtype: np.dtype[Any], member: str | None = None
) -> None:
    """Refuse numbers that netCDF's conventions pack, which stand for others."""
    plain = {"scale_factor": 1, "add_offset": 0}
    odd = [name for name, x in plain.items() if np.any(np.asarray(attributes.get(name, x)) != x)]
    unsigned = np.ravel(np.asarray(attributes.get("_Unsigned", "")).astype(str)).tolist()
    if {"i": "true", "u": "false"}.get(dtype.kind, "-") in map(str.lower, unsigned):
        odd.append("_Unsigned")
    if odd:
        text = f"its numbers are packed, by the attributes {' and '.join(odd)}"
        raise source.error(f"{text}. Unpack them, say by xarray, and write them as floats", member)


def missing_marks(attributes: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the numbers that stand for missing ones by netCDF's conventions, but for NaN.

    Where attributes hold JSON alone xarray writes a float as base64 of its eight bytes.
    """
    marks = []
    for name in ("_FillValue", "missing_value"):
        for mark in np.ravel(np.asarray(attributes.get(name, ()))).tolist():
            if isinstance(mark, str):
                with suppress(ValueError, struct.error):
                    marks.append(struct.unpack("<d", base64.b64decode(mark, validate=True))[0])
            elif isinstance(mark, int | float):
                marks.append(mark)
    with np.errstate(over="ignore"):
        held = [np.asarray(x).astype(dtype) for x in marks if math.isfinite(x) and _holds(dtype, x)]
    return np.asarray(held, dtype)


def _holds(dtype: np.dtype[Any], number: float) -> bool:
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype) if dtype.kind in "iu" else np.iinfo(np.uint8)
    return number == int(number) and limits.min <= number <= limits.max


def unwritten(
    source: Source, there: int, shape: Sequence[int], chunks: Sequence[int]
) -> tuple[str, ...]:
    """Say how many chunks of an array are not there, if any."""
    whole = math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
    text = f"{whole - there:,} of {whole:,} chunks of {source.path} are not stored: the array's"
    return () if there >= whole else (f"{text} fill value is read there",)


def check_budget(source: Source, nbytes: int, stored: int, member: str | None = None) -> None:
    """Refuse content that would take more memory than allowed, given its bytes on disk."""
    limit = source.max_bytes or min(max(FLOOR, RATIO * stored), memory() // 2)
    if nbytes > limit:
        text = (
            f"{nbytes:,} bytes from {stored:,} on disk; at most {limit:,} are accepted. If you"
            f" trust the file, pass max_bytes={nbytes} (--max-bytes {nbytes})"
        )
        raise source.error(text, member)


def memory() -> int:
    """Return the bytes of physical memory, or more than any file has where nobody tells."""
    sysconf = getattr(os, "sysconf", None)  # not on Windows
    try:
        pages = sysconf("SC_PHYS_PAGES") if sysconf else -1
        return int(pages * sysconf("SC_PAGE_SIZE")) if sysconf and pages > 0 else 2**63
    except (OSError, ValueError):
        return 2**63


def _is_mapped(source: Source, layout: Layout) -> bool:
    native = layout.dtype.isnative
    aligned = layout.offset % layout.dtype.itemsize == 0
    if not (native and aligned and layout.nbytes):  # an empty mapping does not exist
        return False
    return layout.nbytes >= _MAPPED if source.mmap == "auto" else source.mmap


def stays(source: Source, nbytes: int) -> bool:
    """Return whether an array of so many bytes stays on disk; one from a pipe is not there."""
    return source.lazy and nbytes >= STORED and source.suffix is None


def load(
    source: Source, layout: Layout, member: str | None = None, *, bfloat16: bool = False
) -> Any:
    """Map or read an array whose layout fits the file, or leave it there to be read in parts."""
    stored, nbytes = stays(source, layout.nbytes), layout.nbytes * (2 if bfloat16 else 1)
    mapped = not stored and _is_mapped(source, layout)
    free = stored or (mapped and not bfloat16)  # of memory of its own
    if source.max_bytes is not None or not free:
        check_budget(source, nbytes, layout.nbytes, member)
    if stored:
        return StoredFile(source.path, layout, bfloat16=bfloat16)
    if mapped:
        place = layout.offset, layout.shape, layout.order
        with parsing(source, "array that can be mapped", member):
            array = np.asarray(np.memmap(source.file, layout.dtype, "r", *place))
    else:
        source.file.seek(layout.offset)
        array = filled(source, layout, source.file, member)
    return widened(array) if bfloat16 else array


def filled(
    source: Source, layout: Layout, stream: IO[bytes], member: str | None = None
) -> NDArray[Any]:
    """Read exactly the bytes of an array from a stream that stands at its first."""
    with parsing(source, f"array ({layout})", member):
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
    if layout.dtype.isnative:
        return array
    return array.byteswap(inplace=True).view(array.dtype.newbyteorder("="))


def choose(source: Source, names: Iterable[str], what: str, suffix: str = "") -> str:
    """Return the member that was asked for, or the only one."""
    known = list(names)
    shown = ", ".join(repr(name) for name in known[:SHOWN]) or "none"
    if len(known) > SHOWN:
        shown += f" and {len(known) - SHOWN:,} more"
    if source.key is None:
        if len(known) == 1:
            return known[0]
        text = f"holds {len(known):,} {what}: {shown}. Name one: {source.path}::name"
        raise source.error(text if known else f"holds no {what}. Save one to it")
    for name in (source.key, source.key.removesuffix(suffix)):
        if name in known:
            return name
    raise source.error(f"no such name among its {what}: {shown}. Name one of these", source.key)
