"""The format of packed text, and of a pipe's bytes, which have no name."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kldiv.readers.sources import FLOOR, Source, needed, parsing

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKED: Final = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zX"}
"""Suffixes of packed text, and the first bytes of such a file."""

TEXT: Final = {".csv", ".tsv", ".txt", ".dat", ".json", ".jsonl", ".ndjson"}
_STARTS: Final = (
    (b"\x93NUMPY", ".npy"),
    (b"PAR1", ".parquet"),
    (b"ARROW1", ".arrow"),
    (b"FEA1", ".feather"),
    (b"\xff\xff\xff\xff", ".arrow"),
    (b"\x89HDF", ".h5"),
)
_ALIEN: Final = (
    *((mark, suffix) for mark, suffix in _STARTS if len(mark) > 4),
    (b"PAR1", ".parquet"),
    (b"PK\x03\x04", ".xlsx or .npz"),
    (b"\xd0\xcf\x11\xe0", "Excel before 2007: save it as .xlsx"),
    (b"%PDF", "a PDF"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"sqlite format 3", "an SQLite database"),
    (b"version https://git-lfs", "a pointer of Git LFS: git lfs pull fetches the file"),
)
"""How files that are no text start (words in lower case), and their kind."""
_PART: Final = 1 << 20  # bytes of text
_XZ_MEMORY: Final = 130 << 20
_FEW: Final = 1 << 10  # bytes of a .zst, each of which may stand for many thousand


def packing_of(source: Source) -> str | None:
    """Return the suffix of the packing, or None."""
    start = _start(source, 4)
    return next((suffix for suffix, mark in PACKED.items() if start.startswith(mark)), None)


def unpacked(source: Source) -> Source:
    """Return a packed text as it was, within the budget."""
    packing = packing_of(source) or source.kind
    inner = Path(source.path.stem).suffix.lower() if source.kind in PACKED else source.kind
    inner = inner if source.suffix is None else ""
    if inner and inner not in TEXT:
        raise source.error(
            f"only text is read from {packing} ({', '.join(sorted(TEXT))}). Unpack it first"
        )
    limit = source.max_bytes or FLOOR
    found = io.BytesIO()
    source.file.seek(0)
    with parsing(source, f"{packing} file"):
        for part in _PARTS[packing](source):
            found.write(part)
            if found.tell() > limit:
                text = f"unpacks to more than {limit:,} bytes. If you trust the file, pass"
                raise source.error(f"{text} max_bytes=N (--max-bytes N)")
    size = found.tell()
    found.seek(0)
    return replace(source, file=found, size=size, suffix=inner or None)


def _gzip(source: Source) -> Iterator[bytes]:
    import gzip  # noqa: PLC0415 - only where one is read

    return iter(partial(gzip.GzipFile(fileobj=source.file).read, _PART), b"")


def _zstd(source: Source) -> Iterator[bytes]:
    zstandard = needed(source, "zstandard")
    # A window beyond 128 MiB would be memory that the file asks for.
    packer = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame = packer.decompressobj()
    while part := source.file.read(_FEW):
        while part:
            if frame.eof:
                frame = packer.decompressobj()
            yield frame.decompress(part)
            part = frame.unused_data if frame.eof else b""
    if not frame.eof:
        raise source.error("ends in the middle. Copy it again")


def _bzip2(source: Source) -> Iterator[bytes]:
    import bz2  # noqa: PLC0415 - only where one is read

    return iter(partial(bz2.BZ2File(source.file).read, _PART), b"")


def _xz(source: Source) -> Iterator[bytes]:
    import lzma  # noqa: PLC0415 - only where one is read

    # A dictionary beyond 128 MiB would be memory that the file asks for.
    packer = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
    while True:
        part = source.file.read(_PART) if packer.needs_input else b""
        if packer.needs_input and not part:
            raise source.error("ends in the middle. Copy it again")
        yield packer.decompress(part, _PART)
        if packer.eof:  # there may be another stream behind this one
            source.file.seek(-len(packer.unused_data), 1)
            if not source.file.read(1):
                return
            source.file.seek(-1, 1)
            packer = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


_PARTS: Final = {".gz": _gzip, ".zst": _zstd, ".bz2": _bzip2, ".xz": _xz}


def check_text(source: Source) -> None:
    """Refuse a file that is named as text, but is something else."""
    start = _start(source, 64)
    for mark, what in _ALIEN:
        if mark in {start[: len(mark)], start.lstrip()[: len(mark)].lower()}:
            mend = f"Name it {what}" if what.startswith(".") else f"It is {what}"
            raise source.error(f"holds no text, though its name says {source.kind}. {mend}")


def format_of(source: Source) -> str:
    """Return the suffix that content without a name would have."""
    start = _start(source, 1 << 12)
    for mark, suffix in _STARTS:
        if start.startswith(mark):
            return suffix
    if start.startswith(b"PK\x03\x04"):
        return _archive(start)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"{", b"[")):
        first, _, rest = text.partition(b"\n")
        lines = rest.lstrip().startswith((b"{", b"[")) and first.rstrip().endswith((b"}", b"]"))
        return ".jsonl" if lines else ".json"
    return ".txt" if b"," not in start.partition(b"\n")[0] and b"\t" not in start else ".csv"


def _archive(start: bytes) -> str:
    if b"[Content_Types].xml" in start or b"xl/" in start or b"_rels/" in start:
        return ".xlsx"
    return ".pt" if b"data.pkl" in start else ".npz"


def _start(source: Source, size: int) -> bytes:
    source.file.seek(0)
    start = source.file.read(size)
    source.file.seek(0)
    return start
