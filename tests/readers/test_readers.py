"""Files that are fine are read exactly; files that lie are refused, cheaply and in words."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from processes import python
from readers.making import TENSOR, npy, npy_header, patched, tensors, zipped
from readers.refusing import refused

from kldiv.errors import InputError, OptionError
from kldiv.readers import cells, read, sources

MIB = 1 << 20


# --- any file -------------------------------------------------------------------------------------


def test_import_is_light():
    heavy = {"csv", "safetensors", "torch", "zarr", "zipfile"}
    code = f"import sys; heavy = {heavy} - set(sys.modules); import kldiv.readers;"
    code += "print(heavy.intersection(sys.modules))"
    assert python("-W", "error", "-c", code).strip() == "set()"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "pipe.npy"
    os.mkfifo(path)
    refused(path, "no regular file")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.npy", ("none.npy", "no such file", "path::member")),
        ("none.npz::a", ("none.npz", "no such file")),
        ("", ("there is no such file", "whose parts")),  # the folder, which has no shards
        ("nul\0.npy", ("no file can have this name",)),
        ("\ud800.npy", ("no file can have this name",)),
        ("x" * 5000 + ".npy", ("cannot be read",)),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, name, words):
    with pytest.raises(InputError) as caught:
        read(f"{tmp_path}/{name}")
    for word in words:
        assert word in str(caught.value)


def test_unreadable_file_is_refused(write, monkeypatch):
    path = write("p.npy", npy(np.ones(3)))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "Permission denied")


def headed(text):
    """The first bytes of a .npy file whose header is this text."""
    return np.lib.format.magic(1, 0) + struct.pack("<H", len(text)) + text


def ten(**fields):
    """An archive of ten ones, patched."""
    return patched(zipped({"a.npy": npy(np.ones(10))}), **fields)


HEADER = repr({"descr": "<f8", "fortran_order": False, "shape": (1,)}).encode()
HEX = b"{'descr': '<f8', 'fortran_order': False, 'shape': (0x" + b"f" * 9000 + b",)}"
BZIP2, LZMA = zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
REFUSED = {  # the file's suffix, its bytes, and words of the message
    ".npy for records": ("npy", npy(np.arange(3), (3, 0)), "(3, 0)", "(1, 0) or (2, 0)"),
    ".npy of more than it declares": (
        "npy", npy(np.ones(10)) * 2, "80 bytes", "288 bytes of data follow"
    ),
    **{
        f".npy that lacks {cut} bytes": (
            "npy", npy(np.ones(10))[:-cut], "shape (10,) of float64", "80 bytes",
            f"{80 - cut} bytes of data follow",
        )
        for cut in (1, 79, 80)
    },
    **{
        f".npy of shape {number}": (
            "npy", npy_header(shape) + bytes(64), "a shape that no array can have"
        )
        for number, shape in enumerate([(-1,), (2**63,), (2**10000,), (1,) * 65, (-2, -4)])
    },
    ".npy of a shape in hexadecimal": ("npy", headed(HEX), "a shape that no array can have"),
    ".npy of a long header": ("npy", headed(HEADER + b" " * 11_000) + bytes(8), "not a .npy"),
    ".npy of a deep header": ("npy", headed(b"(" * 9000)),
    **{
        f".npy that begins {data[:4]}": ("npy", data, "not a .npy")
        for data in (b"\x93NUMPY", b"PK\x03\x04rest", b"\x80\x04K\x01.", b"1,2")
    },
    **{
        f".npy of {array.dtype}": (
            "npy", npy(array), f"dtype {array.dtype}", "booleans, integers or floats"
        )
        for array in (
            np.ones(2, complex), np.array(["a"]), np.array([b"a"]), np.zeros(2, "M8[s]"),
            np.zeros(2, "m8[s]"), np.zeros(2, "V2"), np.zeros(2, "f8,f8"),
        )
    },
    ".npz of a text": ("npz", zipped({"readme.txt": "no array"}), "no arrays"),
    ".npz of nothing": ("npz", zipped({}), "no arrays"),
    ".npz that lacks a byte": ("npz", zipped({"a.npy": npy(np.arange(1000))})[:-1], "not a .npz"),
    ".npz of one half": ("npz", zipped({"a.npy": npy(np.arange(1000))})[:1000], "not a .npz"),
    ".npz of a wrong checksum": ("npz", ten(crc=1), "'a'", "CRC"),
    ".npz of nothing's wrong checksum": (
        "npz", patched(zipped({"a.npy": npy(np.ones(0))}), crc=1), "'a'", "CRC"
    ),
    ".npz that is encrypted": ("npz", ten(flags=1), "'a'", "Decrypt the archive"),
    **{
        f".npz by {name}": (
            "npz", zipped({"a.npy": npy(np.ones(10))}, method),
            "'a'", f"compression {method}", "stored or deflated",
        )  # whose size cannot be bounded
        for name, method in (("bzip2", BZIP2), ("LZMA", LZMA))
    },
    ".npz with NUL in a name": (
        "npz", zipped({"aX.npy": npy(np.ones(3))}).replace(b"aX.npy", b"a\0.npy"), r"'a\x00.npy'"
    ),
    ".safetensors without tensors": ("safetensors", tensors(), "no tensors"),
    **{
        f".safetensors of {kind}": (
            "safetensors", tensors(a=(kind, [1], bytes(size))), f"dtype {kind}", "F32 or BF16"
        )
        for kind, size in (("F8_E4M3", 1), ("C64", 8))
    },
    **{
        f".safetensors that lacks {cut} bytes": ("safetensors", TENSOR[:-cut])
        for cut in (1, 40, 60, 100)
    },
    ".safetensors that is no JSON": (
        "safetensors", struct.pack("<Q", 8) + b"x" * 16, "not a .safetensors"
    ),
    ".csv with gaps": ("csv", "letter,count\na,1\nb,\nc,\n", "line 3", "'count'", "''"),
    **{
        f".csv with a cell {cell!r}": (
            "csv", f"letter,count\na,82\nb,15\nc,{cell}\n", "line 4", "'count'", repr(cell)
        )
        for cell in ("x", "", " ", "1_000", "1 00", "٣", "1.2.3", "0x10", "1e")
    },
    ".csv of text": ("csv", "a&b\nx&1\ny&2\n", "no column holds numbers", "line 2", "commas"),
    ".csv without a header": ("csv", "0.4,0.6\n0.1,0.9\n", "first line", "'0.4', '0.6'"),
    ".csv without its header": ("csv", "0.5,0.5\n0.1,0.9\n", "'0.5'", "header"),
    ".csv of labels without a header": ("csv", "a,10\nb,20\n", "first line", "'10'"),
    **{
        f".csv without rows {text!r}": ("csv", text, "no rows")
        for text in ("a,b\n", "\n\n", "a,b\n\n\n", "\ufeff")
    },
    **{
        f".csv with a row {row}": (
            "csv", f"a,b,c\n5,2,3\n{row}\n",
            f"line 3 has {row.count(',') + 1} cells, the header 3",
        )
        for row in ("1,2", "1,2,3,4")
    },
    ".csv of two columns of one name": ("csv", "a,b,a\n1,2,3\n", "'a'"),
    ".csv with an open quote": ("csv", 'letter,count\na,1\n"b,2\nc,3\n', "does not end"),
    ".csv of another encoding": (
        "csv", "letter,count\nä,1\n".encode("latin-1"), "line 2", "UTF-8", "latin-1"
    ),
    ".csv of a cell beyond the limit": (
        "csv", f"letter,count\n{'x' * 200_000},1\n", "not a text file"
    ),
    **{
        f".{suffix} that is empty": (suffix, b"", "is empty")
        for suffix in ("npy", "npz", "csv", "tsv", "safetensors")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(write, case):
    suffix, data, *words = REFUSED[case]
    refused(write(f"p.{suffix}", data), *words)


@pytest.mark.parametrize("name", ["p.pkl", "p", "p.joblib"])
def test_unknown_format_lists_the_known(write, name):
    refused(write(name, b"data"), ".npy, .npz, .csv, .tsv", ".safetensors", ".gz", "pickle")


@pytest.mark.parametrize("max_bytes", [0, -1, True, 1.5, "1"])
def test_max_bytes_is_a_positive_whole_number(write, max_bytes):
    with pytest.raises(OptionError, match="max_bytes"):
        read(write("p.npy", npy(np.ones(3))), max_bytes=max_bytes)


def test_mmap_is_one_of_three(write):
    with pytest.raises(OptionError, match="mmap"):
        read(write("p.npy", npy(np.ones(3))), mmap="yes")


def test_table_is_frozen(write):
    table = read(write("p.npy", npy(np.ones(3))))
    with pytest.raises(AttributeError):
        table.array = None


def test_path_with_colons_is_taken_as_it_stands(write):
    path = write("a::b.npz", zipped({"x.npy": npy(np.ones(3))}))
    assert read(str(path)).member == "x"
    assert read(path).member == "x"
    assert read(str(path), key="x").member == "x"
    path.rename(path.with_name("a"))
    refused(str(path), "no such file", "a::b.npz", key="x")


def test_member_may_hold_colons(write):
    path = write("a.npz", zipped({"xx::y.npy": npy(np.ones(3)), "z.npy": npy(np.ones(3))}))
    assert read(f"{path}::xx::y").member == "xx::y"


PLAIN = {  # the file, its member and its shape
    "a suffix in upper case": ("P.NPY", npy(np.ones(3)), None, (3,)),
    "the first version of .npy": ("p.npy", npy(np.ones(3), (1, 0)), None, (3,)),
    "the second": ("p.npy", npy(np.ones(3), (2, 0)), None, (3,)),
    "one array needs no name": (
        "p.npz", zipped({"a/b.npy": npy(np.ones(3)), "readme.txt": "no array"}), "a/b", (3,)
    ),
    "an empty array": ("p.npz", zipped({"a.npy": npy(np.ones((0, 3)))}), "a", (0, 3)),
    "one tensor needs no name": (
        "p.safetensors", tensors(a=("F32", [], np.float32(1).tobytes())), "a", ()
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN)
def test_plain_files(write, case):
    name, data, member, shape = PLAIN[case]
    table = read(write(name, data))
    assert (table.member, table.array.shape) == (member, shape)
    assert (table.array == 1).all()


# --- .csv and .tsv --------------------------------------------------------------------------------


AB = ("a", "b")
TEXTS = {  # text, member, classes, rows, numbers
    "labels and counts": ("letter,count\na,82\nb,15\n", "count", AB, None, [82, 15]),
    "a matrix": (
        "cat,dog,bird\n0.25,0.5,.25\n0.25,0,-inf\n",
        None, ("cat", "dog", "bird"), None, [[0.25, 0.5, 0.25], [0.25, 0, -np.inf]],
    ),
    "NUL in a name": ("a\0,b\n1,2\n", None, ("a\0", "b"), None, [[1, 2]]),
    "one cell of two lines": ('w,n\n"a,x,\nb",5\nc,9\n', "n", ("a,x,\nb", "c"), None, [5, 9]),
    "one row is still a matrix": ("a,b\n0.5,0.5\n", None, AB, None, [[0.5, 0.5]]),
    "a matrix with labels of rows": (
        "cat,who,dog\n1,Ann,2\n3,Bo,4\n", None, ("cat", "dog"), ("Ann", "Bo"), [[1, 2], [3, 4]]
    ),
    "one that starts with a count": (
        "who,cat,dog\nAnn,1,2\nBo,2,5\n", None, ("cat", "dog"), ("Ann", "Bo"), [[1, 2], [2, 5]]
    ),
    "two columns of text make one label": (
        "lang,letter,count\nde,a,3\nen,a,1\n", "count", ("de / a", "en / a"), None, [3, 1]
    ),
    "an unnamed first column is an index": (",count\n0,10\n1,20\n", "count", ("0", "1"), None,
                                            [10, 20]),
    "a single column": ("count\n0\n1\n2\n", "count", None, None, [0, 1, 2]),
    "words that look like numbers are labels": (
        "word,count\n2024,3\nthe,100\nnan,1\nof,50\nto,40\n",
        "count", ("2024", "the", "nan", "of", "to"), None, [3, 100, 1, 50, 40],
    ),
    "a blank column is text": (
        "letter,count,note\na,1,\nb,2, \n", "count", ("a / ", "b /  "), None, [1, 2]
    ),
    "a space is a label": ("letter,count\n ,3\na,1\n", "count", (" ", "a"), None, [3, 1]),
    "classes may be numbered": ("0,1,2\n.5,.25,.25\n", None, ("0", "1", "2"), None,
                                [[0.5, 0.25, 0.25]]),
    "from one": ("1,2,3\n.5,.25,.25\n", None, ("1", "2", "3"), None, [[0.5, 0.25, 0.25]]),
    **{
        f"the number {cell!r}": (f"letter,count\na,{cell}\n", "count", ("a",), None, [float(cell)])
        for cell in ("1", "-2.5", "1e-3", " 7 ", "inf", "+4")
    },
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_what_a_text_holds(write, case):
    text, *wanted = TEXTS[case]
    path = write("p.csv", text)
    table = read(path)
    assert (table.path, table.array.dtype) == (path, np.float64)
    assert [table.member, table.classes, table.rows, table.array.tolist()] == wanted


def test_tabs(write):
    table = read(write("p.tsv", "letter\tcount\n,\t82\n\t15\n"))
    assert (table.classes, table.array.tolist()) == ((",", ""), [82, 15])


def test_columns_of_odd_names(write):
    assert read(write("p.csv", "a,a.npy\n1,2\n"), key="a.npy").array.tolist() == [2]
    refused(write("q.csv", "a,b\n1,2\n"), "'a.npy'", key="a.npy")
    assert read(write("p.csv", "a,*\n1,2\n"), key="*").array.tolist() == [2]
    assert read(write("p.csv", ",count\n0,10\n1,20\n"), key="").classes is None


def test_column_by_name(write):
    path = write("p.csv", "letter,count,share\na,3,0.75\nb,1,0.25\n")
    table = read(f"{path}::share")
    assert (table.member, table.classes) == ("share", ("a", "b"))
    assert table.array.tolist() == [0.75, 0.25]
    refused(f"{path}::size", "'size'", "'letter', 'count', 'share'")
    refused(f"{path}::letter", "line 2", "'letter'", "'a'")


@pytest.mark.parametrize("start", [0, 1])
def test_column_that_counts_the_rows_is_not_guessed_at(write, start):
    path = write("p.csv", f"digit,count\n{start},10\n{start + 1},20\n")
    refused(path, "'digit'", "p.csv::count", "p.csv::*")
    assert read(f"{path}::count").array.tolist() == [10, 20]
    table = read(f"{path}::*")
    assert (table.classes, table.array.tolist()) == (
        ("digit", "count"),
        [[start, 10], [start + 1, 20]],
    )


def test_quotes_byte_order_mark_and_line_ends(write):
    text = '\ufeff"letter", count \r\n"a,b",1\r\n"say ""ä""\r\n",2\r\n\r\nñ,3'
    table = read(write("p.csv", text))
    assert (table.member, table.classes) == ("count", ("a,b", 'say "ä"\r\n', "ñ"))
    assert read(write("q.csv", "\ufeffa,b\n1,2\n")).classes == ("a", "b")
    assert table.array.tolist() == [1, 2, 3]


@pytest.mark.parametrize(("bound", "size"), [("_SAMPLE_ROWS", 2), ("_SAMPLE_CELLS", 5)])
def test_labels_after_the_sample_are_kept(write, monkeypatch, bound, size):
    monkeypatch.setattr(cells, bound, size)
    path = write("p.csv", "word,count\na,1\nb,2\n3,4\n5,6\n7,8\n9,10\n")
    assert read(path).classes == ("a", "b", "3", "5", "7", "9")
    assert read(path).array.tolist() == [1, 2, 4, 6, 8, 10]


def test_long_cell_is_cut_in_the_message(write):
    assert len(refused(write("p.csv", f"a\n1\n2\n{'x' * 9999}\n"))) < 1000


def test_text_has_a_budget(write, monkeypatch):
    path = write("p.csv", "letter,count\na,1\n")
    refused(path, "17 bytes of text", "at most 16", "--max-bytes 17", max_bytes=16)
    assert read(path, max_bytes=17).array.tolist() == [1]
    monkeypatch.setattr(sources, "FLOOR", 16)
    refused(path, "at most 16")


def test_many_columns(write):
    names = [f"c{i}" for i in range(50_000)]
    table = read(write("p.csv", ",".join(names) + "\n" + ",".join(["1"] * 50_000) + "\n"))
    assert (table.array.shape, table.classes) == ((1, 50_000), tuple(names))
