"""JSON, Parquet, Arrow, Excel, HDF5, tensors, packed text and pipes: read, or refused in words."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import json
import lzma
import os
import subprocess
import sys
import threading
import zipfile
from decimal import Decimal

import numpy as np
import pytest
from readers.refusing import Trap, refused

from kldiv.readers import Reading, Stored, open_table, read
from kldiv.readers.records import cell_of

AB = (("a", "b"), [1.5, 2.0])
CSV = b"l,n\na,1.5\nb,2\n"


def parts(path, **options):
    table = read(path, **options)
    return table.classes, table.array.tolist()


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ([1.5, 2], (None, AB[1])),
        ([[1, 2], [3, 4]], (None, [[1, 2], [3, 4]])),
        ({"a": 1.5, "b": 2}, AB),
        ([{"l": "a", "n": 1.5}, {"l": "b", "n": 2}], AB),
        ([{"l": "5", "n": 1.5}, {"l": "3", "n": 2}], (("5", "3"), AB[1])),  # text by its type
        ({"l": ["a", "b"], "n": [1.5, 2]}, AB),
        ({"schema": {"version": 1}, "data": [{"l": "a", "n": 1.5}, {"l": "b", "n": 2}]}, None),
        ({"n": {"a": 1.5, "b": 2}}, AB),  # a data frame's columns
        ({"n": {"a": 1, "b": 2}, "m": {"b": 3, "a": 4}}, (("n", "m"), [[1, 4], [2, 3]])),
    ],
)
def test_json(tmp_path, value, result):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    assert parts(path, key=None if result else "data") == (result or AB)
    if isinstance(value, list):
        lines = "\n".join(map(json.dumps, value))
        for name in ("p.jsonl", "p.ndjson"):
            (tmp_path / name).write_text(lines, encoding="utf-8")
            assert parts(tmp_path / name) == result


BEYOND = ["1e-400", "-1E-400", "1e400", f"0.{'0' * 330}7", f"0.{'0' * 240}7e-99", "9" * 312]


@pytest.mark.parametrize("number", BEYOND)
@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("p.csv", "l,n\na,0.5\nb,{}\n", "line 3, column 'n'"),
        ("p.csv", "n\n0.5\n{}\n", "line 3, column 'n'"),
        ("p.csv", "l;n\na;0,5\nb;{}\n", "line 3, column 'n'"),
        ("p.txt", "0.5 0.5 0\n0.5 0.25 {}\n", "line 2, column '3'"),
        ("p.csv", "l,n\na,50%\nb,{}%\n", "line 3, column 'n'"),
        ("p.json", '[{{"l": "a", "n": 0.5}}, {{"l": "b", "n": {}}}]', "record 2, column 'n'"),
        ("p.jsonl", '{{"l": "a", "n": 0.5}}\n{{"l": "b", "n": {}}}', "record 2, column 'n'"),
        ("p.json", '{{"a": 0.5, "b": {}}}', "record 2, column 'value'"),
    ],
)
def test_numbers_that_float64_does_not_hold(tmp_path, name, text, place, number):
    """Read as 0, such a one makes a divergence infinite or drops a term of it."""
    number = number.replace(".", "," if ";" in text else ".")
    (tmp_path / name).write_text(text.format(number), encoding="utf-8")
    shown = str(Decimal(number)) if name.startswith("p.json") else number
    refused(tmp_path / name, place, shown[:50], "float64 does not hold")
    for held in ("0.0e-400", "Infinity", "5e-324", "1e308"):
        if not {"%", ";"} & set(text):
            (tmp_path / name).write_text(text.format(held), encoding="utf-8")
            assert read(tmp_path / name).array.ravel()[-1] == float(held)


def test_names_that_float64_does_not_hold_as_numbers(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,n\n12e4567,1.5\n34e4567,2.25\n", encoding="utf-8")
    refused(path, "float64 does not hold", "labels='id' takes the column for labels")
    table = read(path, reading=Reading(labels="id"))
    assert table.classes == ("12e4567", "34e4567")
    assert read(path, key="n").array.tolist() == table.array.tolist() == [1.5, 2.25]


@pytest.mark.parametrize("number", BEYOND)
def test_numbers_in_lists_that_float64_does_not_hold(tmp_path, number):
    (tmp_path / "p.json").write_text(f"[[0.5, 0.5], [0.0, {number}]]", encoding="utf-8")
    shown = str(Decimal(number))[:50]
    refused(tmp_path / "p.json", f"value 4 of 4: '{shown}", "float64 does not hold")
    pa = pytest.importorskip("pyarrow")
    frame = pa.table({"p": [["0.0", number]], "n": [number]})
    path = tmp_path / "p.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, frame.schema) as out:
        out.write_table(frame)
    for column in "pn":
        refused(f"{path}::{column}", number[:50], "float64 does not hold")


def test_line_ends_of_unicode_are_letters_of_a_label(tmp_path):
    label = "a\u2028b\x85c"
    lines = [{"l": label, "n": 1.5}, {"l": "b", "n": 2}]
    text = "\r\n".join(json.dumps(each, ensure_ascii=False) for each in lines)
    (tmp_path / "p.jsonl").write_bytes(text.encode())
    assert parts(tmp_path / "p.jsonl") == ((label, "b"), AB[1])


def test_a_number_written_as_text_has_a_mark_in_doubt(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"i": 1, "n": 5}, {"i": 2, "n": "1,234"}]), encoding="utf-8")
    refused(f"{path}::n", "'1,234' in record 2 may be a fraction or thousands")
    assert read(path, key="n", reading=Reading(decimal=",")).array.tolist() == [5, 1.234]


def test_a_typed_fraction_beside_decimal_commas_is_no_thousand(tmp_path):
    path = tmp_path / "p.json"
    for value in (1.234, 1.234e-25):
        rows = [{"l": "a", "n": value}, {"l": "b", "n": "2,5"}]
        path.write_text(json.dumps(rows), encoding="utf-8")
        refused(f"{path}::n", "has a decimal point", "'2,5' in record 2 a decimal comma")
    for text, value in (("2.5", 1.234), ("2.5", 1.234e-25), ("-", 1.234)):
        rows = [{"l": "a", "n": value}, {"l": "b", "n": text}]
        path.write_text(json.dumps(rows), encoding="utf-8")
        found = read(path, key="n", reading=Reading(na="zero")).array.tolist()
        assert found == [value, 0.0 if text == "-" else 2.5]


@pytest.mark.parametrize("name", ["p.json", "p.xlsx", "p.parquet", "p.arrow"])
@pytest.mark.parametrize("labels", [["a", "b", "c"], [True, False, None]])
def test_typed_numbers_have_a_point_whatever_another_file_has(tmp_path, name, labels):
    """1.234 was taken for a thousand and more where --decimal , was said."""
    values, path = [1.234, 1.5, 1e22], tmp_path / name
    if name == "p.json":
        rows = [{"l": label, "n": n} for label, n in zip(labels, values, strict=True)]
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif name == "p.xlsx":
        book = pytest.importorskip("openpyxl").Workbook()
        for row in [("l", "n"), *zip(labels, values, strict=True)]:
            book.active.append(row)
        book.save(path)
    else:
        pa = pytest.importorskip("pyarrow")
        frame = pa.table({"l": labels, "n": values})
        if name == "p.parquet":
            importlib.import_module("pyarrow.parquet").write_table(frame, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, frame.schema) as out:
                out.write_table(frame)
    assert read(path, reading=Reading(decimal=",")).array.tolist() == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, null]", "value 2 of 2: 'null' is no number: it is missing. na='zero'"),
        ('[1, "x"]', "'x' is no number"),
        ("[[1, 2], [3]]", "rows of different lengths"),
        ("[1", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ('{"p": [1], "q": [1, 2]}', "2 members: 'p', 'q'"),
        ('[{"l": 5, "n": 1}, {"l": 3, "n": 2}]', "column 'l' may be labels"),
        ("9" * 5000, "JSON"),
        ('[{"id": 1, "p": [0.5]}]', "column 'p' holds a list in every cell: "),
        ('{"columns": ["n", "n"], "index": [0], "data": [[2, 3]]}', "3 members"),
        ('{"columns": ["n"], "index": [["a", 1]], "data": [[2]]}', "3 members"),
        ('{"columns": ["n", "m"], "index": [0], "data": [[2]]}', "3 members"),
        ("{}", "p.json"),
        ("[{}]", "its records are empty"),
        ("[]", None),
    ],
)
def test_json_that_is_refused(tmp_path, text, said):
    path = tmp_path / "p.json"
    path.write_text(text, encoding="utf-8")
    if said is None:
        assert read(path).array.size == 0  # as an empty .npy
    else:
        refused(path, said)
        if text.startswith("{"):
            return
    if "null" in text:
        assert read(path, reading=Reading(na="zero")).array.tolist() == [1, 0]
    refused(path, "at most 1 are", max_bytes=1)


# --- Parquet, Arrow, Excel ------------------------------------------------------------------------


@pytest.fixture
def frame():
    pa = pytest.importorskip("pyarrow")
    return pa.table(
        {"l": ["a", "b"], "n": [1.5, 2.0], "__index_level_0__": pa.array([0, 1], pa.int64())}
    )


def test_parquet_and_arrow(tmp_path, frame):
    from pyarrow import feather, ipc, parquet

    parquet.write_table(frame, tmp_path / "p.parquet")
    feather.write_feather(frame, tmp_path / "p.feather")
    with ipc.new_stream(tmp_path / "p.arrow", frame.schema) as stream:
        stream.write_table(frame)
    for name in ("p.parquet", "p.feather", "p.arrow"):
        path = tmp_path / name
        assert parts(path) == AB, name  # the index of pandas is no label
        assert parts(path, key="n") == AB, name
        refused(path, "at most 8", max_bytes=8)
        path.write_bytes(path.read_bytes()[:-9])
        refused(path, "file that can be read")


def test_a_column_of_text_is_one_of_labels(tmp_path, frame):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"year": ["2019", "2021"], "n": [1.5, 2.0]})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert parts(tmp_path / "p.parquet") == (("2019", "2021"), AB[1])


def test_a_column_of_lists_is_a_matrix_on_request(tmp_path, frame):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"id": [1, 2], "p": [[0.5, 0.5], [1, 0]]}), tmp_path / "p.parquet")
    refused(tmp_path / "p.parquet", "column 'p' holds a list", "p.parquet::p")
    assert parts(tmp_path / "p.parquet", key="p") == (None, [[0.5, 0.5], [1, 0]])
    alike = pa.table({"p": [[0.5] * 10_000] * 2})
    parquet.write_table(alike, tmp_path / "wide.parquet")
    said = "160,000 bytes", "at most 99,999"
    refused(tmp_path / "wide.parquet", *said, max_bytes=99_999, key="p")
    (tmp_path / "p.json").write_text('[{"id": 1, "p": [0.5, 0.5]}]', encoding="utf-8")
    assert parts(tmp_path / "p.json", key="p") == (None, [[0.5, 0.5]])


def test_parquet_of_more_rows_than_memory_is_refused(tmp_path, frame):
    import pyarrow as pa
    from pyarrow import parquet

    zeros = pa.array(np.zeros(1 << 20))
    parquet.write_table(pa.table({"n": pa.chunked_array([zeros] * 50)}), tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").stat().st_size < 1 << 20
    refused(tmp_path / "p.parquet", "at most 268,435,456")


@pytest.fixture
def workbook(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["l", "n"], ["a", 1.5], ["b", 2]):
        book.active.append(row)
    book.save(tmp_path / "p.xlsx")
    return book


def test_excel(tmp_path, workbook):
    path = tmp_path / "p.xlsx"
    assert parts(path) == AB
    assert parts(f"{path}::n") == AB
    sheet = workbook.create_sheet("two")
    for row in (["l", "n", "m"], ["a", 1, 2], ["b", None, 5]):
        sheet.append(row)
    workbook.save(path)
    refused(path, "2 sheets: 'Sheet', 'two'")
    assert parts(f"{path}::two::m") == (("a", "b"), [2, 5])
    refused(f"{path}::two", "row 3, column 'n'", "missing")
    refused(path, "at most 99 are", max_bytes=99, key="two")


def test_a_workbook_that_declares_entities_or_inflates_is_refused(tmp_path, workbook):
    path, lie = tmp_path / "p.xlsx", b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]>'
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, data in (("xl/workbook.xml", lie), ("x.bin", bytes(300 << 20))):
        with zipfile.ZipFile(tmp_path / "q.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
            for each, content in {**members, name: data}.items():
                archive.writestr(each, content)
        refused(tmp_path / "q.xlsx", "document type" if data is lie else "at most 268,435,456")


# --- HDF5 and tensors -----------------------------------------------------------------------------


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "p.h5"
    large = np.arange(1 << 21, dtype=np.float64).reshape(1 << 10, -1)
    with h5py.File(path, "w") as file:
        file["g/p"] = [1.5, 2.0]
        file["q"] = np.arange(3, dtype=">i4")
        file["s"] = ["a", "b"]
        file.create_dataset("large", data=large, chunks=(64, 64), compression="gzip")
        file["elsewhere"] = h5py.ExternalLink("other.h5", "x")
        layout = h5py.VirtualLayout((3,), "i4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
        file.create_virtual_dataset("virtual", layout)
    refused(path, "datasets: 'g/p', 'large', 'q', 's', 'virtual'")
    assert read(path, key="g/p").array.tolist() == [1.5, 2]
    table = read(path, key="q")
    assert (table.array.tolist(), table.array.dtype.isnative) == ([0, 1, 2], True)
    refused(f"{path}::s", "holds text")
    refused(f"{path}::virtual", "other files")
    refused(f"{path}::elsewhere", "no such name")
    refused(f"{path}::q", "at most 11", max_bytes=11)
    stored = open_table(path, key="large").array
    assert isinstance(stored, Stored)
    np.testing.assert_array_equal(stored[3:70, 60:70], large[3:70, 60:70])
    path.write_bytes(path.read_bytes()[:2000])
    refused(path, "not a HDF5 file")


def test_tensors_without_unpickling(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "p.pt"
    half = torch.tensor([1.5, 2.0], dtype=torch.bfloat16)
    torch.save({"p": torch.ones(2), "m": {"w": half}, "step": 3}, path)
    refused(path, "2 tensors: 'p', 'm.w'")
    assert read(path, key="m.w").array.tolist() == [1.5, 2]
    torch.save(torch.ones(1).expand(10**12), path)
    refused(path, "4,000,000,000,000 bytes")
    torch.save({"a": Trap(tmp_path / "trap")}, path)
    refused(path, "only unpickling could read")
    torch.save(half, path, _use_new_zipfile_serialization=False)
    refused(path, "Save it again")
    assert not (tmp_path / "trap").exists()


# --- packed, piped, missing -----------------------------------------------------------------------


def test_packed_text(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packers = {
        ".gz": gzip.compress,
        ".zst": zstandard.ZstdCompressor().compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    for suffix, packer in packers.items():
        path = tmp_path / f"p.csv{suffix}"
        path.write_bytes(packer(CSV))
        assert parts(path) == AB
        assert parts(path, key="n") == AB
        (tmp_path / f"p.json{suffix}").write_bytes(packer(b"[1.5, 2]"))
        assert parts(tmp_path / f"p.json{suffix}") == (None, AB[1])
        refused(path, "unpacks to more than 9 bytes", max_bytes=9)
        path.write_bytes(packer(CSV)[:-4])
        refused(path)
        (tmp_path / f"p.npy{suffix}").write_bytes(packer(CSV))
        refused(tmp_path / f"p.npy{suffix}", "only text is read")
    two = tmp_path / "p.csv.xz"
    two.write_bytes(lzma.compress(CSV[:5]) + lzma.compress(CSV[5:]))
    assert parts(two) == AB
    bomb = tmp_path / "p.csv.gz"
    bomb.write_bytes(gzip.compress(bytes(257 << 20), 1))
    refused(bomb, "unpacks to more than 268,435,456")


def table_of(kind, request):
    """Write the numbers in a format."""
    buffer = io.BytesIO()
    if kind == "parquet":
        frame = request.getfixturevalue("frame")
        importlib.import_module("pyarrow.parquet").write_table(frame, buffer)
    elif kind == "xlsx":
        request.getfixturevalue("workbook").save(buffer)
    elif kind == "pt":
        torch = pytest.importorskip("torch")
        torch.save(torch.tensor(AB[1]), buffer)
    else:
        {"npy": np.save, "npz": np.savez}[kind](buffer, AB[1])
    return buffer.getvalue()


TEXTS = {
    "csv": CSV,
    "gz": gzip.compress(CSV),
    "json": b"[1.5,\n 2]",
    "jsonl": b'{"l": "a", "n": 1.5}\n{"l": "b", "n": 2}\n',
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
@pytest.mark.parametrize("kind", [*TEXTS, "npy", "npz", "parquet", "xlsx", "pt"])
def test_a_pipe_is_known_by_its_first_bytes(tmp_path, kind, request):
    os.mkfifo(tmp_path / "pipe")
    data = TEXTS.get(kind) or table_of(kind, request)
    keep = os.open(tmp_path / "pipe", os.O_RDWR)  # writing needs somebody who reads
    os.write(keep, data)
    threading.Timer(0.1, os.close, [keep]).start()  # and the end comes when it is closed
    assert read(tmp_path / "pipe").array.tolist() == AB[1]


def test_standard_input_by_any_shell(tmp_path):
    code = "from kldiv.readers import read; t = read('-::n'); print(t.classes, t.array.tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code], input=gzip.compress(CSV), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "('a', 'b') [1.5, 2.0]"


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("p.parquet", "pyarrow", "files"),
        ("p.feather", "pyarrow", "files"),
        ("p.xlsx", "openpyxl", "files"),
        ("p.h5", "h5py", "files"),
        ("p.csv.zst", "zstandard", "files"),
        ("p.pt", "torch", "torch"),
    ],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / name
    path.write_bytes(b"data")
    refused(path, f'needs the {package} package: pip install "kldiv[{extra}]"')


def test_numbers_in_a_column_of_text_have_a_mark_in_doubt(tmp_path):
    pa = pytest.importorskip("pyarrow")
    frame = pa.table({"l": ["a", "b"], "m": [1, 2], "n": ["5", "1,234"]})
    with pa.OSFile(f"{tmp_path}/p.arrow", "wb") as sink, pa.ipc.new_file(sink, frame.schema) as out:
        out.write_table(frame)
    refused(f"{tmp_path}/p.arrow::n", "'1,234' in row 2 may be a fraction or thousands")
    assert parts(tmp_path / "p.arrow", key="m")[1] == [1, 2]


def test_half_floats_keep_their_digits(tmp_path):
    pa = pytest.importorskip("pyarrow")
    values = np.array([0.1, 0.9], np.float16)
    frame = pa.table({"l": ["a", "b"], "n": values})
    with pa.OSFile(f"{tmp_path}/p.arrow", "wb") as sink, pa.ipc.new_file(sink, frame.schema) as out:
        out.write_table(frame)
    assert parts(tmp_path / "p.arrow") == (("a", "b"), values.astype(float).tolist())
    assert float(cell_of(values[0])) == float(values[0])


def test_two_columns_of_one_name_are_told_apart_by_nobody(tmp_path):
    pa = pytest.importorskip("pyarrow")
    frame = pa.table([["a", "b"], [1.5, 2], [3.0, 4]], names=["l", "n", "n"])
    with pa.OSFile(f"{tmp_path}/p.arrow", "wb") as sink, pa.ipc.new_file(sink, frame.schema) as out:
        out.write_table(frame)
    for path, options in ((f"{tmp_path}/p.arrow::n", {}), (tmp_path / "p.arrow", {"values": "n"})):
        refused(path, "two columns are named 'n'. Rename one", reading=Reading(**options))


def test_packed_numbers_and_chunks_that_are_not_stored(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "p.h5"
    with h5py.File(path, "w") as file:
        for name, factor in (("packed", 0.01), ("plain", 1.0)):
            file[name] = np.arange(3)
            file[name].attrs["scale_factor"] = np.array([factor])
        part = file.create_dataset("part", (10, 4), "f4", chunks=(4, 4))
        part[:4] = 1
        file["signed"] = np.array([100, -56], np.int8)  # which is 200
        file["signed"].attrs["_Unsigned"] = "True"
        file["unsigned"] = np.array([100, 200], np.uint8)  # which is −56
        file["unsigned"].attrs["_Unsigned"] = np.bytes_("false")
        for name, kind, said in (("i", "i1", np.bytes_("false")), ("u", "u1", "true")):
            file[name] = np.arange(3, dtype=kind)
            file[name].attrs["_Unsigned"] = said
    refused(f"{path}::packed", "packed", "scale_factor")
    for name in ("signed", "unsigned"):
        refused(f"{path}::{name}", "packed", "_Unsigned")
    for name in ("i", "u"):
        assert read(path, key=name).array.tolist() == [0, 1, 2]
    assert read(path, key="plain").array.tolist() == [0, 1, 2]
    (note,) = read(path, key="part").notes
    assert "2 of 3 chunks" in note
    assert "are not stored" in note
    with h5py.File(path, "a") as file:
        file["part"][...] = 1
    assert read(path, key="part").notes == ()


def test_the_index_of_several_safetensors(tmp_path):
    numpy_ = pytest.importorskip("safetensors.numpy")
    parts = {name: f"model-0000{i}-of-00002.safetensors" for i, name in enumerate("ab", 1)}
    for name, file in parts.items():
        numpy_.save_file({name: np.arange(3.0) + ord(name)}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**parts, "c": "../x.safetensors"}}))
    assert read(f"{tmp_path}::b").array.tolist() == [98, 99, 100]
    assert read(index, key="a").array.tolist() == [97, 98, 99]
    refused(f"{tmp_path}::c", "beside the index")
    refused(tmp_path, "'a', 'b', 'c'")


def test_what_arrow_would_follow_out_of_the_file_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table, file = pa.table({"l": ["x", "y"], "n": [1, 2]}), tmp_path / "p.arrow"
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    data = file.read_bytes()
    offsets = np.array([0, 1, 2], "<i4").tobytes()
    assert data.count(offsets) == 1
    file.write_bytes(data.replace(offsets, np.array([0, 1, 1 << 30], "<i4").tobytes()))
    refused(file, "Offset invariant")
    file.write_bytes(b"FEA1" + data)
    refused(file, "first version")


def test_a_workbook_that_was_never_computed(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["l", "n"], ["a", "=2+3"], ["b", 3]):
        book.active.append(row)
    book.save(tmp_path / "p.xlsx")
    refused(tmp_path / "p.xlsx", "cell B2", "'=2+3'")


def test_parquet_that_declares_fewer_than_no_rows_is_refused(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    rows, file = 40 + 7, tmp_path / "p.parquet"  # 47 is 94 in zigzag, a byte that no other has
    parquet.write_table(pa.table({"n": range(rows)}), file, store_schema=False)
    data = file.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    places = [i for i in range(footer, len(data) - 8) if data[i] == 2 * rows]
    changed = bytearray(data)
    changed[places[-1]] = 2 * rows - 1  # the same but negative, in the last row group
    file.write_bytes(changed)
    refused(file, "and parts of -47 in all")
