"""Zarr stores in a folder, of format 2 and 3, by the zarr package.

A compressed chunk that holds more than it declares is refused only once the package has inflated
all of it, which it does without a bound: of stores alone, the sizes are not checked beforehand.
"""

from __future__ import annotations

import json
import math
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.readers.sources import (
    check_alone,
    check_attributes,
    check_layout,
    choose,
    memory,
    missing_marks,
    needed,
    parsing,
    unwritten,
)
from kldiv.readers.stored import Layout, Stored, without_marks
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from kldiv.readers.sources import Source
    from kldiv.readers.stored import Index

# Only these are run: some of numcodecs' unpickle the store's bytes.
_CODECS: Final = {
    *("bytes", "transpose", "sharding_indexed"),
    *("blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"),
    *("adler32", "crc32", "crc32c", "fletcher32"),
    *("bitround", "delta", "fixedscaleoffset", "shuffle"),
}
_METADATA: Final = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_MOST_METADATA: Final = 16 << 20  # bytes of a file, which the package reads whole
_KIND: Final = "Zarr store"
_AT_ONCE: Final = 2  # chunks in memory while they are decompressed
_one_reader = threading.Lock()


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a Zarr store, or means to be one."""
    names = ("zarr.json", ".zarray", ".zgroup")
    return path.suffix.lower() == ".zarr" or any((path / name).exists() for name in names)


def read_zarr(source: Source) -> Table:
    """Return an array of a store; its chunks are read when they are asked for."""
    zarr = needed(source, "zarr", "zarr")
    path, key = source.path, None
    with parsing(source, _KIND):
        _check_metadata(path)
        found = zarr.open(store=str(path), mode="r")
        if isinstance(found, zarr.Array):
            check_alone(source, "the store")
        else:
            key = choose(source, _arrays(path, set()), "arrays")
            found = zarr.open_array(store=str(path / key), mode="r")
        array = _ZarrArray(source, found)
        check_attributes(source, found.attrs, array.dtype, key)
        there = found.nchunks_initialized
        notes = unwritten(source, there, found.shape, found.chunks) if array.size else ()
        marks = missing_marks(found.attrs, array.dtype)
        return Table(without_marks(array, marks), path, key, notes=notes)


def _arrays(group: Path, seen: set[Path], name: str = "") -> Iterator[str]:
    """Yield the names of the arrays in a group and the groups in it.

    Not by the package, which opens all members at once: where one is damaged, its tasks for the
    others are left behind, and asyncio reports each some time later.
    """
    seen.add(group.resolve())  # a link may lead back
    for folder in sorted(group.iterdir()):
        member = f"{name}{folder.name}"
        _check_metadata(folder)
        if (folder / ".zarray").is_file() or _node_type(folder) == "array":
            yield member
        elif folder.resolve() not in seen and _is_group(folder):
            yield from _arrays(folder, seen, f"{member}/")


def _is_group(folder: Path) -> bool:
    return (folder / ".zgroup").is_file() or _node_type(folder) == "group"


def _check_metadata(folder: Path) -> None:
    """Refuse metadata that would fill the memory when it is parsed."""
    for name in _METADATA:
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size > _MOST_METADATA:
            message = f"{name} has {size:,} bytes; at most {_MOST_METADATA:,} are accepted"
            raise ValueError(message)


def _node_type(folder: Path) -> Any:
    file = folder / "zarr.json"
    return json.loads(file.read_bytes())["node_type"] if file.is_file() else None


class _ZarrArray(Stored):
    """A Zarr array; each part is read chunk by chunk."""

    def __init__(self, source: Source, array: Any) -> None:
        self._source = source
        self._array = array
        dtype, chunks = np.dtype(array.dtype), array.shards or array.chunks
        check_layout(source, Layout(dtype, array.shape, 0))
        unknown = sorted(set(_codecs(array.metadata.to_dict())) - _CODECS)
        if unknown:
            raise source.error(
                f"encoded by {', '.join(unknown)}, which is not run on data that nobody vouches"
                " for. Write the store again with zstd, or another common compressor"
            )
        nbytes = math.prod(chunks) * dtype.itemsize
        if nbytes > memory() // 8:
            raise source.error(
                f"one chunk of shape {chunks} is {nbytes:,} bytes; at most an eighth of the"
                f" memory, {memory() // 8:,}, is accepted. Write the store again in smaller chunks"
            )
        super().__init__(array.shape, dtype, chunks=chunks)

    def __getitem__(self, index: Index) -> NDArray[Any]:
        import zarr  # noqa: PLC0415 - is loaded already

        # By the package's own settings ten chunks would be in memory at a time.
        few = {"async.concurrency": _AT_ONCE}
        with parsing(self._source, _KIND), _one_reader, zarr.config.set(few):
            return np.asarray(self._array[index], dtype=self.dtype)


def _codecs(metadata: dict[str, Any]) -> Iterator[str]:
    """Yield the names of all that decodes a chunk, those within shards too."""
    for each in (metadata.get("compressor"), *(metadata.get("filters") or ())):
        if each is not None:
            yield str(each["id"])
    for each in metadata.get("codecs") or ():
        yield str(each["name"]).removeprefix("numcodecs.")
        inside = each.get("configuration") or {}
        yield from _codecs({"codecs": (*inside.get("codecs", ()), *inside.get("index_codecs", ()))})
