"""What is fuzzed of the files that other packages write, and of those with several arrays."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import math
import zipfile
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.readers import Reading, read
from tools.fuzz.targets import (
    BUDGET,
    ODD,
    TARGETS,
    Target,
    altered,
    body,
    dented,
    make_text,
    packed,
    tensors,
    zipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from random import Random

_WORDS: Final = ("x", "y", "", "é", "NA", "1", "1,5", "x" * 300)
_NAMES: Final = ("a", "b", "label", "", "__index_level_0__", "low", "high", "é", "1")


def _cut(random: Random, data: bytes) -> bytes:
    """Return bytes with some changed, doubled, left out, or the end cut off, now and then."""
    for _ in range(random.choice((0, 0, 0, 1, 1, 2, 4))):
        start, size = random.randrange(len(data) + 1), random.choice((1, 1, 1, 2, 4, 8, 64))
        part = data[start : start + size]
        new = random.choice((random.randbytes(len(part)), part * 2, b"", b"\xff" * len(part)))
        data = data[:start] + new + data[start + size :]
    return data[: random.randrange(len(data) + 1)] if random.random() < 0.05 else data


# ---- pyarrow -------------------------------------------------------------------------------------


def _columns(random: Random) -> Any:
    """Return a table of columns of various types, with nulls."""
    import pyarrow as pa  # noqa: PLC0415 - a process fuzzes one reader

    rows = random.choice((0, 1, 2, 3, 7, 40))
    makers: tuple[tuple[Any, Callable[[], Any]], ...] = (
        (pa.float64(), lambda: random.choice((0.0, 0.5, -1.0, 1e308, math.nan, math.inf))),
        (pa.float32(), lambda: 0.25),
        (pa.float16(), lambda: np.float16(0.5)),
        (pa.int64(), lambda: random.choice((0, 1, 5, -1, 2**63 - 1))),
        (pa.uint8(), lambda: random.randrange(256)),
        (pa.bool_(), lambda: random.random() < 0.5),
        (pa.string(), lambda: random.choice(_WORDS)),
        (pa.large_string(), lambda: random.choice(_WORDS)),
        (pa.binary(), lambda: random.randbytes(3)),
        (pa.dictionary(pa.int8(), pa.string()), lambda: random.choice(_WORDS)),
        (pa.decimal128(9, 2), lambda: random.choice((1, 2))),
        (pa.timestamp("us"), lambda: random.randrange(10**15)),
        (pa.date32(), lambda: random.randrange(10**4)),
        (pa.null(), lambda: None),
        (pa.list_(pa.float64()), lambda: [0.5] * random.choice((2, 2, 2, 3))),
        (pa.list_(pa.float64(), 2), lambda: [0.5, 0.5]),
        (pa.struct([("x", pa.float64())]), lambda: {"x": 1.0}),
        (pa.map_(pa.string(), pa.int8()), lambda: [("x", 1)]),
    )
    names = random.sample(_NAMES, random.choice((0, 1, 1, 2, 2, 3, 4)))
    if random.random() < 0.03:
        names *= 2
    common, gaps = makers[:8], random.random() < 0.3
    arrays = []
    for _ in names:
        kind, make = random.choice(common if random.random() < 0.7 else makers)
        values = [None if gaps and random.random() < 0.2 else make() for _ in range(rows)]
        arrays.append(pa.array(values, kind))
    return pa.Table.from_arrays(arrays, names=names)


def _make_parquet(random: Random) -> bytes:
    from pyarrow import parquet  # noqa: PLC0415 - see above

    file = io.BytesIO()
    parquet.write_table(
        _columns(random),
        file,
        compression=random.choice(("none", "none", "snappy", "gzip", "zstd", "lz4", "brotli")),
        use_dictionary=random.random() < 0.5,
        data_page_version=random.choice(("1.0", "2.0")),
        row_group_size=random.choice((1, 3, 100)),
    )
    return _cut(random, file.getvalue())


def _make_arrow(random: Random) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - see above

    table, file = _columns(random), io.BytesIO()
    packing = random.choice((None, None, "lz4", "zstd"))
    options = pa.ipc.IpcWriteOptions(compression=packing)
    new = random.choice((pa.ipc.new_file, pa.ipc.new_stream))
    with new(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=random.choice((1, 3, 100)))
    return _cut(random, file.getvalue())


def _simple(write: Callable[[Any, Any], object]) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - see above

    file = io.BytesIO()
    write(pa.table({"label": ["x", "y"], "a": [0.25, 0.75]}), file)
    return file.getvalue()


def _parquet_seeds() -> list[bytes]:
    from pyarrow import parquet  # noqa: PLC0415 - see above

    return [_simple(parquet.write_table)]


def _feather_seeds() -> list[bytes]:
    from pyarrow import feather  # noqa: PLC0415 - see above

    return [_simple(feather.write_feather), b"FEA1" + bytes(60) + b"FEA1"]


# ---- parts of an archive -------------------------------------------------------------------------


def _parts(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _rearranged(
    random: Random, data: bytes, method: int, change: Callable[[bytes], bytes]
) -> bytes:
    """Return an archive with one of its parts changed, left out or doubled."""
    parts = _parts(data)
    for _ in range(random.choice((0, 1, 1, 2))):
        place = random.randrange(len(parts))
        name, content = parts[place]
        parts[place : place + 1] = random.choice(
            ([(name, change(content))],) * 8 + ([], [(name, b"")], [(f"{name}x", content)])
        )
    return dented(random, zipped(parts, method), 0.1)


@cache
def _workbooks() -> list[bytes]:
    import openpyxl  # noqa: PLC0415 - see above

    found = []
    for sheets in (1, 2):
        book = openpyxl.Workbook()
        for number in range(sheets):
            sheet = book.active if number == 0 else book.create_sheet("a")
            sheet.append(["label", "a", "b"])
            for row in (["x", 0.25, 1], ["y", 0.5, True], ["z", 1, 3]):
                sheet.append(row)
        file = io.BytesIO()
        book.save(file)
        found.append(file.getvalue())
    return found


_XML: Final = (
    *(b"<v>1e999</v>", b"<v>-</v>", b"<v/>", b't="s"', b't="b"', b't="e"', b't="d"', b't="x"'),
    *(b'r="XFD1048576"', b'r="A1"', b'r="ZZZZ1"', b'r="A0"', b'r="1"', b'r=""', b'r="A-1"'),
    *(b'ref="A1:XFD1048576"', b'ref=""', b'ref="x"', b'count="999999999"', b"&#0;", b"&a;"),
    *(b"<!DOCTYPE a [<!ENTITY a 'x'>]>", b"<row>", b"</row>", b"<c>", b"<is><t>x</t></is>"),
)


def _make_excel(random: Random) -> bytes:
    def change(content: bytes) -> bytes:
        if random.random() < 0.2:
            return _cut(random, content)
        tokens = [i for i, byte in enumerate(content) if byte in b' <"']
        start = random.choice(tokens or [0])
        stop = start + random.choice((0, 0, 3, 5, 9, 20))
        return content[:start] + b" " + random.choice(_XML) + content[stop:]

    return _rearranged(random, random.choice(_workbooks()), zipfile.ZIP_DEFLATED, change)


@cache
def _torch_seeds() -> list[bytes]:
    import torch  # noqa: PLC0415 - see above

    half = torch.arange(6).reshape(3, 2).to(torch.bfloat16)
    found = []
    for each in (
        torch.arange(6.0).reshape(3, 2),
        {"a": half, "b": [half.T, torch.tensor(1)]},
        {"a": torch.nn.Parameter(torch.zeros(2)), "n": 1},
        {"a": torch.eye(2).to_sparse()},
    ):
        file = io.BytesIO()
        torch.save(each, file)
        found.append(file.getvalue())
    return found


def _make_torch(random: Random) -> bytes:
    """Return a file whose pickle, of sizes and strides, is changed."""
    return _rearranged(
        random,
        random.choice(_torch_seeds()),
        zipfile.ZIP_STORED,
        lambda content: _cut(random, dented(random, content, 0.9)),
    )


# ---- h5py ----------------------------------------------------------------------------------------

_HDF5: Final = ("<f8", ">f4", "<i8", "|u1", "|b1", "<f2", "S3", "<c8")


def _hdf5(fill: Callable[[Any], object]) -> bytes:
    import h5py  # noqa: PLC0415 - see above

    file = io.BytesIO()
    with h5py.File(file, "w") as store:
        fill(store)
    return file.getvalue()


def _make_hdf5(random: Random) -> bytes:
    import h5py  # noqa: PLC0415 - see above

    def fill(store: Any) -> None:
        for name in random.sample(("a", "b", "g/a", "é"), random.choice((0, 1, 1, 2, 3))):
            action = random.random()
            if action < 0.05:
                store[name] = h5py.SoftLink(random.choice(("/a", "/g", "/", "/none")))
            elif action < 0.1:
                store[name] = h5py.ExternalLink("x.h5", "/a")
            elif action < 0.15:
                store.create_dataset(name, data=["x", "y"])
            else:
                shape = tuple(random.choice((0, 1, 2, 3, 7)) for _ in range(random.randrange(4)))
                extra: dict[str, Any] = {}
                if math.prod(shape) and shape and random.random() < 0.6:
                    extra["chunks"] = tuple(max(1, (n + 1) // 2) for n in shape)
                    extra["compression"] = random.choice((None, "gzip", "lzf"))
                    extra["shuffle"], extra["fletcher32"] = random.random() < 0.3, False
                    if random.random() < 0.1:
                        extra["maxshape"] = (1 << 40,) + (None,) * (len(shape) - 1)
                store.create_dataset(name, shape, random.choice(_HDF5), **extra)
        if "g" in store and random.random() < 0.2:
            store["g/loop"] = h5py.SoftLink("/g") if random.random() < 0.5 else store["g"]

    return _cut(random, _hdf5(fill))


# ---- several tensors -----------------------------------------------------------------------------

_TEACHER: Final = ("temperature", "vocabulary", "log_probs", "indices", "rest")


def _teacher(rows: int, k: int, *, rest: bool, random: Random | None = None) -> bytes:
    """Return a sparse teacher's file, whose header is altered if there is chance."""
    kinds: tuple[tuple[str, int, list[int]], ...] = (
        *(("F64", 8, [1]), ("I64", 8, [1]), ("F32", 4, [rows, k])),
        *(("I32", 4, [rows, k]), ("F32", 4, [rows if rest else 0])),
    )
    header, place = dict[str, Any](), 0
    for name, (kind, size, shape) in zip(_TEACHER, kinds, strict=True):
        end = place + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}
        place = end
    start = np.array([1.0]).tobytes() + np.array([9]).tobytes()
    if random is None:
        return tensors(header, start + bytes(place - 16))
    if random.random() < 0.3:
        start = random.randbytes(16)
    for _ in range(random.choice((0, 0, 0, 1, 2))):
        header = altered(random, header)
    return dented(random, tensors(header, start + body(random, place - 16)), 0.1)


def _read_teacher(path: Path) -> None:
    from kldiv.streaming import open_teacher  # noqa: PLC0415 - only one target needs it

    teacher = open_teacher(path)
    for block in teacher.blocks(2):
        np.asarray(block.log_probs) + np.asarray(block.indices)


_INDEX: Final = (
    *("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
    *("model-00002-of-00002.safetensors", "other.safetensors", "x.json"),
)


def _tensor(name: str) -> bytes:
    return tensors({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))


def _make_index(random: Random) -> bytes:
    names = random.choice((("a", "b"), ("a", "a"), ("b", "a"), ("a", "c")))
    weights: Any = dict(zip(names, _INDEX[1:3], strict=True))
    if random.random() < 0.3:
        places = ("../x", "/etc/hostname", ".", "", "x.json", "model.safetensors.index.json", 1)
        weights[random.choice(names)] = random.choice((*places, *_INDEX, *ODD))
    index: Any = {"metadata": {"total_size": 16}, "weight_map": weights}
    if random.random() < 0.3:
        index = altered(random, index)
    files = {_INDEX[0]: dented(random, json.dumps(index).encode(), 0.1)}
    for file, name in zip(_INDEX[1:3], ("a", "b"), strict=True):
        if random.random() < 0.9:
            files[file] = dented(random, _tensor(name), 0.1)
    return packed(files, _INDEX)


def _read_index(path: Path) -> None:
    read(path / _INDEX[0], key="a", max_bytes=BUDGET)


# ---- text ----------------------------------------------------------------------------------------


def _read_widely(path: Path) -> None:
    """Read a table with the options that its text may need."""
    for options in ({"na": "drop", "header": False}, {"decimal": ",", "sep": ";", "na": "zero"}):
        read(path, max_bytes=BUDGET, reading=Reading(**options))


def _zstd(text: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - see above

    return zstandard.ZstdCompressor(level=1).compress(text)


def _make_zstd(random: Random) -> bytes:
    return _packed(_zstd, random)


def _packed(pack: Callable[[bytes], bytes], random: Random) -> bytes:
    bomb = b"1\n" * (1 << 21) if random.random() < 0.02 else make_text(random, ",")
    return _cut(random, pack(bomb) * random.choice((1, 1, 1, 2)))


def _make_xz(random: Random) -> bytes:
    return _packed(lzma.compress, random)


def _make_bz2(random: Random) -> bytes:
    return _packed(bz2.compress, random)


_FIRST: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"# x\n", b"\n\n", b"sep=;\n", b"")
_MESSY: Final = (
    *("1.234,5", "1,234.5", "1 234", "12 %", "5%", "0,5", "1'000", "\u2212 1", "(10, 20]", "10-20"),
    *("NA", "#N/A", "-", "", "x", "x ", "X", "e\u0301", "é", "1e3", "1e-400", "0", "3", '"a;b"'),
)


def _make_messy(random: Random) -> bytes:
    """Return a table as spreadsheets, pandas and R write it, of any encoding and separator."""
    sep, width = random.choice(",;\t| "), random.choice((1, 2, 2, 3))
    rows = [
        random.choice((["", "a", "b"], ["low", "high", "a"], ["label", "a", "a"], ["1", "2", "3"]))
    ]
    rows += [[random.choice(_MESSY) for _ in range(width)] for _ in range(random.choice((1, 2, 5)))]
    text = random.choice(("\n", "\r\n", "\r")).join(sep.join(row[:width]) for row in rows)
    encoding = random.choice(("utf-8", "utf-8", "utf-16-le", "utf-16-be", "cp1252"))
    return random.choice(_FIRST) + dented(random, text.encode(encoding, "replace"), 0.1)


def _seeds(*texts: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [text.encode() for text in texts]


EVERY: Final[Mapping[str, Target]] = TARGETS | {
    "parquet": Target(_parquet_seeds, _make_parquet, suffix=".parquet"),
    "arrow": Target(_feather_seeds, _make_arrow, suffix=".feather"),
    "xlsx": Target(_workbooks, _make_excel, suffix=".xlsx"),
    "h5": Target(
        lambda: [_hdf5(lambda store: store.create_dataset("a", data=np.eye(3)))],
        _make_hdf5,
        suffix=".h5",
    ),
    "pt": Target(_torch_seeds, _make_torch, suffix=".pt"),
    "teacher": Target(
        lambda: [_teacher(3, 2, rest=True), _teacher(3, 2, rest=False)],
        lambda r: _teacher(r.choice((0, 1, 5)), r.choice((1, 2)), rest=r.random() < 0.7, random=r),
        suffix=".safetensors",
        ways=(_read_teacher,),
    ),
    "index": Target(
        lambda: [
            packed(
                {
                    _INDEX[0]: b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
                    _INDEX[1]: _tensor("a"),
                },
                _INDEX,
            )
        ],
        _make_index,
        names=_INDEX,
        ways=(_read_index,),
    ),
    "zst": Target(lambda: [_zstd(b"letter,count\na,8\nb,1.5")], _make_zstd, suffix=".csv.zst"),
    "xz": Target(
        lambda: [lzma.compress(b"letter,count\na,8\nb,1.5")],
        _make_xz,
        suffix=".csv.xz",
        unpacking=130 << 20,
    ),
    "bz2": Target(
        lambda: [bz2.compress(b"letter,count\na,8\nb,1.5")], _make_bz2, suffix=".csv.bz2"
    ),
    "messy": Target(
        _seeds("label;a\nx;0,5\ny;1,5", "low,high,a\n1,2,3\n2,4,5", "a\n1.234,5\n2 000"),
        _make_messy,
        suffix=".csv",
        ways=(_read_widely,),
    ),
}
"""Every reader by name."""
