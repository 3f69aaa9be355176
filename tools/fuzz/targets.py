"""What is fuzzed: each reader, files to start from, and a maker of files that are nearly right."""

from __future__ import annotations

import gzip
import io
import json
import math
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import KLDivError
from kldiv.readers import Stored, open_table, read, read_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

BUDGET: Final = 1 << 20
"""The `max_bytes` that readers are given."""

ALLOWED: Final = 8 << 20
"""Bytes that a call may take in all, and 100 more for each of the file's: its cells as objects."""


class OverBudgetError(Exception):
    """A reader took more memory than it may."""


@dataclass(frozen=True)
class Target:
    """A reader and its files."""

    seeds: Callable[[], Sequence[bytes]]
    make: Callable[[Random], bytes]
    """Writes a file that is nearly right, which changes of bytes alone would take long to find."""
    suffix: str = ""
    names: tuple[str, ...] = ()
    """Of the files of a folder, into which an input is unpacked."""
    ways: tuple[Callable[[Path], object], ...] = ()
    """Further functions that read the file."""
    unpacking: int = 0
    """Bytes that unpacking may take besides, such as the dictionary that an .xz file names."""

    def place(self, data: bytes, folder: Path) -> Path:
        """Write an input where a reader finds it."""
        if not self.names:
            path = folder / f"x{self.suffix}"
            path.write_bytes(data)
            return path
        for name, content in unpacked(data, self.names).items():
            with suppress(OSError):  # c/0 may be a file or a folder, the first comes first
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        return folder

    def check(self, data: bytes, scratch: Path) -> None:
        """Read an input in every way; raise what no reader may raise."""
        with TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as folder:
            path = self.place(data, Path(folder))
            for way in (_read, _read_mapped, _read_member, _read_samples, _open, *self.ways):
                _within_budget(way, path, ALLOWED + self.unpacking + 100 * len(data))


def _read(path: Path) -> None:
    read(path, max_bytes=BUDGET, mmap=False)


def _read_mapped(path: Path) -> None:
    if path.is_file():
        np.array(read(path, max_bytes=BUDGET, mmap=True).array)


def _read_member(path: Path) -> None:
    read(path, key="a", max_bytes=BUDGET)


def _read_samples(path: Path) -> None:
    read_samples(path, max_bytes=BUDGET)


def _open(path: Path) -> None:
    array = open_table(path, max_bytes=BUDGET).array
    if isinstance(array, Stored):
        for index in (array.whole, tuple(slice(n // 3, (n + 1) // 2) for n in array.shape)):
            array[index]


def _within_budget(way: Callable[[Path], object], path: Path, allowed: int) -> None:
    tracemalloc.start()
    try:
        with suppress(KLDivError):
            way(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak > allowed:
        raise OverBudgetError(
            f"{getattr(way, '__name__', way)}: {peak:,} bytes; expected at most {allowed:,}"
        )


# ---- files of a folder, as one input -------------------------------------------------------------

_HEAD: Final = struct.Struct("<BH")


def packed(files: dict[str, bytes], names: Sequence[str]) -> bytes:
    """Return an input that `unpacked` makes these files of."""
    return b"".join(
        _HEAD.pack(names.index(name), len(content)) + content for name, content in files.items()
    )


def unpacked(data: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """Return the files that an input stands for; every input stands for some."""
    files = {}
    while len(data) >= _HEAD.size:
        number, length = _HEAD.unpack_from(data)
        files[names[number % len(names)]] = data[_HEAD.size : _HEAD.size + length]
        data = data[_HEAD.size + length :]
    return files


# ---- numbers and words that are likely to break something ----------------------------------------

_SIZES: Final = (0, 1, 1, 2, 2, 3, 3, 7, 64, 1 << 17, 1 << 31, 1 << 40, 2**63 - 1, 2**63, -1)
_DTYPES: Final = (
    *("<f8", "<f4", ">f8", ">i4", "<f2", "|b1", "|u1", "<i8", "<u2"),
    *("<f16", "<c8", "<U3", "|S2", "|O", "|V2", "<M8[s]"),
)
ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, -0.0, 0.5, 1e308, float("inf")),
    *(float("nan"), "", "a", "c", "NaN", "0x10", "\x00", "\ud800", "é", "\N{ZERO WIDTH SPACE}"),
    *([], [0], [[]], [2, 3], [-1], [1 << 62, 4], {}, {"name": "bytes"}, {"id": "zlib"}),
)


def _shape(random: Random) -> tuple[int, ...]:
    sizes = _SIZES if random.random() < 0.4 else _SIZES[:9]
    return tuple(random.choice(sizes) for _ in range(random.choice((0, 1, 1, 2, 2, 2, 3, 5, 65))))


def body(random: Random, nbytes: int) -> bytes:
    """Return about as many bytes as are declared, but never very many."""
    wrong = random.choice((0, 0, 0, 0, 1, -1, 9))
    return random.randbytes(max(0, min(nbytes, 1 << 12) + wrong))


def dented(random: Random, data: bytes, chance: float) -> bytes:
    """Return some bytes with one of them changed, now and then."""
    if not data or random.random() > chance:
        return data
    place = random.randrange(len(data))
    return data[:place] + random.randbytes(random.choice((0, 1, 2))) + data[place + 1 :]


def altered(random: Random, value: Any) -> Any:
    """Return JSON with one value, somewhere in it, replaced, removed or added."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        key = random.choice(list(value))
        action = random.random()
        if action < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.2:
            return {**value, random.choice(("a", "", "codecs", "filters")): random.choice(ODD)}
        return {**value, key: altered(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.85:
        place = random.randrange(len(value))
        return [*value[:place], altered(random, value[place]), *value[place + 1 :]]
    return random.choice(ODD)


# ---- formats -------------------------------------------------------------------------------------


def _npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array))
    return file.getvalue()


def _make_npy(random: Random) -> bytes:
    shape, dtype = _shape(random), random.choice(_DTYPES)
    header: dict[str, Any] = {"descr": dtype, "fortran_order": random.random() < 0.5}
    header["shape"] = shape
    if random.random() < 0.15:
        header[random.choice(list(header))] = random.choice(ODD)
    text = dented(random, repr(header).encode("utf-8", "replace"), 0.1)
    version = random.choice((1, 1, 1, 2, 3))
    length = len(text) + random.choice((0, 0, 0, 0, 1, -1, 1 << 12))
    packing = "<H" if version == 1 else "<I"
    head = b"\x93NUMPY" + bytes((version, 0)) + struct.pack(packing, max(0, length) % (1 << 16))
    nbytes = math.prod(abs(n) for n in shape) * np.dtype(dtype).itemsize
    return head + text + body(random, nbytes)


def _make_base(random: Random) -> bytes:
    """Return nearly a base file of llama.cpp."""
    context, classes, chunks = (random.choice((1, 2, 3, 4, 5, 8, *_SIZES)) for _ in range(3))
    rows = chunks * (context - 1 - context // 2)
    nbytes = 4 * context * chunks + rows * 2 * (4 + 2 * ((classes + 1) // 2))
    head = b"_logits_" + struct.pack("<III", *(n % (1 << 32) for n in (context, classes, chunks)))
    return dented(random, head + body(random, nbytes), 0.2)


def zipped(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return an archive with these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def _make_npz(random: Random) -> bytes:
    names = ("a.npy", "b.npy", "a", "a/b.npy", "../a.npy", "/a.npy", "é.npy", "a.npy/", ".npy")
    chosen = random.sample(names, random.choice((0, 1, 1, 1, 2, 3)))
    method = random.choice((0, 8, 8, 8, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    members = [
        (name, b"\0" * (3 << 20) if random.random() < 0.05 else _make_npy(random))
        for name in chosen
    ]
    data = bytearray(zipped(members, method))
    central = data.find(b"PK\x01\x02")
    if central >= 0 and random.random() < 0.4:  # the directory, in which sizes and flags stand
        data[random.randrange(central, len(data))] = random.randrange(256)
    return bytes(data)


_CELLS: Final = (
    *(
        "0",
        "1",
        "2",
        "1.5",
        "-1",
        "+1",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "1_0",
        "0x1",
        "1e",
        ".",
        "-",
    ),
    *("", "a", "b", "é", "\x00", "\ud800", "\N{FULLWIDTH DIGIT ONE}", "1,5", "\t", "'", '"'),
)


def make_text(random: Random, separator: str) -> bytes:
    """Return nearly a table of cells."""
    width = random.choice((1, 1, 2, 2, 3, 9))
    lines = [
        separator.join(_cell(random) for _ in range(width + (random.random() < 0.01)))
        for _ in range(random.choice((0, 1, 2, 3, 20)))
    ]
    end = random.choice(("\n", "\n", "\r\n", "\r"))
    text = end.join(lines) + random.choice((end, "", "\x00"))
    start = random.choice((b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"))
    return start + text.encode("utf-8", "surrogatepass")


def _cell(random: Random) -> str:
    cell = random.choice(_CELLS)
    action = random.random()
    if action < 0.05:
        return f'"{cell}"'
    if action < 0.07:
        return f'"{cell}'
    if action < 0.09:
        return cell * random.choice((100, 5000))
    return f" {cell} " if action < 0.12 else cell


def tensors(header: dict[str, Any], data: bytes, off: int = 0) -> bytes:
    """Return a ``.safetensors`` file, whose header declares a length that may be off."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", max(0, len(text) + off)) + text + data


def make_tensors(random: Random) -> bytes:
    """Return nearly a ``.safetensors`` file."""
    header: dict[str, Any] = {"__metadata__": {"format": "np"}} if random.random() < 0.5 else {}
    place = 0
    for name in random.sample(("a", "b", "", "é", "__metadata__"), random.choice((1, 1, 2, 3))):
        kind = random.choice(("F32", "F64", "BF16", "F16", "I8", "BOOL", "U64", "F8_E4M3", "F4"))
        shape = [n for n in _shape(random) if 0 <= n < 64] if random.random() < 0.8 else [-1, 2]
        size = {"F64": 8, "U64": 8, "F32": 4, "BF16": 2, "F16": 2}.get(kind, 1)
        stop = place + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, stop]}
        place = stop
    if random.random() < 0.3:
        header = altered(random, header)
    return tensors(header, body(random, place), random.choice((0, 0, 0, 0, 0, 1, -1)))


_SHARDS: Final = (
    *("1.npy", "2.npy", "x-00001-of-00002.npy", "x-00002-of-00002.npy", "²٣.npy", ".x.npy"),
    *("1.safetensors", "2.safetensors", "readme.txt", f"{'9' * 200}.npy"),
)


def _make_shards(random: Random) -> bytes:
    files = {}
    one = _make_npy(random)
    for name in random.sample(_SHARDS, random.choice((1, 2, 2, 3))):
        make = make_tensors if name.endswith(".safetensors") else _make_npy
        files[name] = one if random.random() < 0.5 else make(random)
    return packed(files, _SHARDS)


_ZARR: Final = (
    *("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata", "a/zarr.json", "a/.zarray"),
    *("c/0", "c/0/0", "c/1/0", "0", "0.0", "1.0", "a/c/0", "a/0", "c"),
)
_ZARR_3: Final[dict[str, Any]] = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [3, 2],
    "data_type": "float64",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0.0,
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    "attributes": {},
    "storage_transformers": [],
}
_ZARR_2: Final[dict[str, Any]] = {
    "zarr_format": 2,
    "shape": [3, 2],
    "chunks": [2, 2],
    "dtype": "<f8",
    "compressor": {"id": "zlib", "level": 1},
    "fill_value": 0.0,
    "order": "C",
    "filters": None,
}
_GROUP: Final = {"zarr_format": 3, "node_type": "group", "attributes": {}}
_SHARDING: Final = {
    "name": "sharding_indexed",
    "configuration": {
        "chunk_shape": [1, 2],
        "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 0}}],
        "index_codecs": [{"name": "bytes"}, {"name": "crc32c"}],
        "index_location": "end",
    },
}
_CODECS: Final = (
    *({"name": "gzip", "configuration": {"level": 1}}, {"name": "crc32c"}, _SHARDING),
    {"name": "blosc", "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "noshuffle"}},
    {"name": "transpose", "configuration": {"order": [1, 0]}},
    {"name": "numcodecs.delta", "configuration": {"dtype": "<f8"}},
)


def _make_zarr(random: Random) -> bytes:
    third = random.random() < 0.6
    meta = dict(_ZARR_3 if third else _ZARR_2)
    if third and random.random() < 0.4:
        meta["codecs"] = [*meta["codecs"], random.choice(_CODECS)]
    for _ in range(random.choice((0, 1, 1, 2))):
        changed = altered(random, meta)
        meta = changed if isinstance(changed, dict) else meta
    text = dented(random, json.dumps(meta).encode(), 0.1)
    chunk = random.randbytes(random.choice((0, 31, 32, 33)))
    inside = random.random() < 0.3
    name = ("a/" if inside else "") + ("zarr.json" if third else ".zarray")
    files = {name: text}
    if inside:
        files["zarr.json" if third else ".zgroup"] = json.dumps(
            _GROUP if third else {"zarr_format": 2}
        ).encode()
    for place in random.sample(_ZARR[7:], 3):
        if place != "c":
            files[place] = chunk
    return packed(files, _ZARR)


def _text_seeds(separator: str) -> list[bytes]:
    rows = (["letter", "count"], ["a", "8"], ["b", "1.5"]), (["x", "y", "z"], ["1", "2", "nan"])
    return ["\n".join(map(separator.join, each)).encode() for each in rows]


_JSON: Final[tuple[Any, ...]] = (
    *([1, 2.5], [[1, 2], [3, 4]], {"x": 1, "y": 2.5}, {"a": [1, 2], "b": [3, 4]}),
    *([{"l": "x", "n": 1}, {"l": "y", "n": 2}], {"a": {"x": 1, "y": 2}}),
)


def _make_json(random: Random) -> bytes:
    value = random.choice(_JSON)
    for _ in range(random.choice((0, 1, 2))):
        value = altered(random, value)
    return dented(random, json.dumps(value).encode(), 0.1)


_FLOATS: Final = np.arange(6.0).reshape(3, 2)
_ENTRY: Final = {"dtype": "F64", "shape": [3, 2], "data_offsets": [0, 48]}

TARGETS: Final[dict[str, Target]] = {
    "npy": Target(
        lambda: [_npy(_FLOATS), _npy(np.asfortranarray(_FLOATS, ">i2")), _npy(3.0)],
        _make_npy,
        suffix=".npy",
    ),
    "base": Target(
        lambda: [b"_logits_" + struct.pack("<iii", 4, 3, 2) + bytes(32 + 2 * 16)],
        _make_base,
        suffix=".kld",
    ),
    "npz": Target(
        lambda: [zipped([("a.npy", _npy(_FLOATS))]), zipped([("a.npy", _npy(1)), ("b", b"")], 0)],
        _make_npz,
        suffix=".npz",
    ),
    "csv": Target(lambda: _text_seeds(","), lambda r: make_text(r, ","), suffix=".csv"),
    "tsv": Target(lambda: _text_seeds("\t"), lambda r: make_text(r, "\t"), suffix=".tsv"),
    "txt": Target(lambda: _text_seeds(" "), lambda r: make_text(r, " "), suffix=".txt"),
    "json": Target(
        lambda: [json.dumps(each).encode() for each in _JSON], _make_json, suffix=".json"
    ),
    "jsonl": Target(
        lambda: [b'{"l": "x", "n": 1}\n{"l": "y", "n": 2.5}', b"1\n2", b"[1, 2]\n[3, 4]"],
        lambda r: b"\n".join(_make_json(r) for _ in range(r.choice((1, 2, 3)))),
        suffix=".jsonl",
    ),
    "gz": Target(
        lambda: [gzip.compress(each) for each in _text_seeds(",")],
        lambda r: dented(r, gzip.compress(make_text(r, ",")), 0.3),
        suffix=".csv.gz",
    ),
    "safetensors": Target(
        lambda: [
            tensors({"a": _ENTRY}, _FLOATS.tobytes()),
            tensors({"a": _ENTRY | {"dtype": "BF16", "data_offsets": [0, 12]}}, bytes(12)),
        ],
        make_tensors,
        suffix=".safetensors",
    ),
    "shards": Target(
        lambda: [packed({"1.npy": _npy(_FLOATS), "2.npy": _npy(_FLOATS[:1])}, _SHARDS)],
        _make_shards,
        names=_SHARDS,
    ),
    "zarr": Target(
        lambda: [
            packed({"zarr.json": json.dumps(_ZARR_3).encode(), "c/0/0": bytes(32)}, _ZARR),
            packed({".zarray": json.dumps(_ZARR_2).encode()}, _ZARR),
        ],
        _make_zarr,
        names=_ZARR,
    ),
}
"""The readers that need no package but zarr and safetensors, by name."""
