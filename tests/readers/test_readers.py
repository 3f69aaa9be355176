"""Files that are fine are read exactly; files that lie are refused, cheaply and in words."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from processes import python
from readers.refusing import Trap, refused

from kldiv.errors import InputError, OptionError
from kldiv.readers import cells, read, sources, tensor_files

MIB = 1 << 20


def npy(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version, allow_pickle=True)
    return file.getvalue()


def npy_header(shape, descr="<f8", *, version=1):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return np.lib.format.magic(version, 0) + struct.pack("<" + "HI"[version - 1], len(text)) + text


def zipped(members, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def patched(archive, **fields):
    """Change a field of the only member in both places where a zip file has it."""
    data = bytearray(archive)
    places = {"flags": (8, 6), "method": (10, 8), "crc": (16, 14), "packed": (20, 18)}
    places["size"] = (24, 22)
    central = data.index(b"PK\x01\x02")
    for field, value in fields.items():
        kind = "<H" if field in {"flags", "method"} else "<I"
        for start, place in zip((central, 0), places[field], strict=True):
            struct.pack_into(kind, data, start + place, value)
    return bytes(data)


def tensors(**entries):
    """Write a .safetensors file from (dtype, shape, bytes), as its specification says."""
    header, data = {"__metadata__": {"format": "np"}}, b""
    for name, (dtype, shape, raw) in entries.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def write(tmp_path):
    def write_file(name, data):
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return write_file


def peak_of(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


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
TENSOR = tensors(a=("F32", [10], bytes(40)))
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


# --- .npy -----------------------------------------------------------------------------------------

DTYPES = ["?", "i1", "u1", "<i2", "<u4", "<i8", "<f2", "<f4", "<f8", ">f4", ">f8", ">i4", ">u2"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("mmap", [True, False])
def test_npy_round_trip(write, dtype, order, mmap):
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    path = write("p.npy", npy(array))
    table = read(path, mmap=mmap)
    assert table.array.dtype == array.dtype.newbyteorder("=")
    assert table.array.dtype.isnative
    np.testing.assert_array_equal(table.array, array)
    assert type(table.array) is np.ndarray
    assert (table.path, table.member, table.classes, table.rows) == (path, None, None, None)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 2**40)])
@pytest.mark.parametrize("mmap", [True, False])
def test_npy_of_odd_shape(write, shape, mmap):
    array = read(write("p.npy", npy(np.zeros(shape))), mmap=mmap).array
    assert array.shape == shape
    assert isinstance(array.base, np.memmap) is (mmap and shape == ())


@pytest.mark.parametrize(
    ("mmap", "elements", "mapped"),
    [("auto", 10, False), ("auto", 2 * MIB, True), (True, 10, True), (False, 2 * MIB, False)],
)
def test_npy_is_mapped_read_only_from_16_mib(write, mmap, elements, mapped):
    array = read(write("p.npy", npy(np.ones(elements))), mmap=mmap).array
    assert array.flags.writeable is not mapped
    assert isinstance(array.base, np.memmap) is mapped


def test_misaligned_npy_is_read(write):
    data = npy_header((4,))
    assert len(data) % 8
    array = read(write("p.npy", data + np.ones(4).tobytes()), mmap=True).array
    assert array.flags.aligned
    assert array.tolist() == [1, 1, 1, 1]


def test_mapping_takes_no_memory(write):
    path = write("p.npy", npy(np.ones(4 * MIB)))
    assert peak_of(lambda: read(path)) < MIB


def test_objects_are_refused_and_never_unpickled(write, tmp_path):
    trap = tmp_path / "trap"
    array = np.array([Trap(trap), 1.0], dtype=object)
    pickle.loads(pickle.dumps(Trap(trap)))  # noqa: S301 - shows that the trap works
    trap.unlink()
    bare = pickle.dumps(Trap(trap))
    refused(write("p.npy", npy(array)), "Python objects", "unpickling")
    refused(write("p.npz", zipped({"a.npy": npy(array)})), "Python objects", "'a'")
    for suffix in (".npy", ".npz", ".csv", ".tsv", ".safetensors", ".pkl"):
        refused(write(f"bare{suffix}", bare))
    assert not trap.exists()


def test_npy_has_no_members(write):
    refused(f"{write('p.npy', npy(np.ones(3)))}::a", "::a")


@pytest.mark.parametrize("mmap", [True, False])
def test_npy_of_as_many_dimensions_as_any_array(write, mmap):
    deep = (1,) * (64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32)
    assert read(write("p.npy", npy(np.ones(deep))), mmap=mmap).array.shape == deep


@pytest.mark.parametrize("mmap", [False, True])
def test_max_bytes_holds_for_npy(write, mmap):
    path = write("p.npy", npy(np.ones(100)))
    assert read(path, max_bytes=800, mmap=mmap).array.sum() == 100
    refused(path, "800 bytes", "at most 799", "--max-bytes 800", max_bytes=799, mmap=mmap)


def test_no_more_than_half_of_the_memory_is_read(write, monkeypatch):
    path = write("p.npy", npy(np.ones(100)))
    monkeypatch.setattr(sources, "memory", lambda: 1598)
    refused(path, "at most 799", mmap=False)
    assert read(path, mmap=True).array.sum() == 100


def unknown(_):
    raise ValueError


@pytest.mark.parametrize("sysconf", [None, unknown, lambda _: -1])
def test_memory_is_known_or_unlimited(monkeypatch, sysconf):
    assert sources.memory() > MIB
    monkeypatch.setattr(os, "sysconf", sysconf, raising=False)
    assert sources.memory() == 2**63


# --- .npz -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", DTYPES)
def test_npz_round_trip(tmp_path, save, dtype):
    path = tmp_path / "p.npz"
    array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
    save(path, p=array, q=np.zeros(3))
    for table in (read(f"{path}::p"), read(path, key="p"), read(path, key="p.npy")):
        assert (table.path, table.member) == (path, "p")
        assert table.array.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(table.array, array)


def test_npz_with_several_arrays_lists_them(write):
    path = write("p.npz", zipped({f"a{i}.npy": npy(np.ones(3)) for i in range(25)}))
    refused(path, "25 arrays", "'a0', 'a1'", "'a19' and 5 more", "p.npz::name")
    refused(f"{path}::b", "'b'", "'a0', 'a1'")
    refused(f"{path}::", "''")


@pytest.mark.parametrize(("rows", "columns", "dtype"), [(4000, 8000, "f4"), (20_000, 1000, "f8")])
def test_honest_one_hot_matrix_is_accepted(tmp_path, rows, columns, dtype):
    path = tmp_path / "p.npz"
    hot = np.random.default_rng(0).integers(columns, size=rows)
    array = np.zeros((rows, columns), dtype)
    array[np.arange(rows), hot] = 1
    np.savez_compressed(path, array)
    assert array.nbytes > 700 * path.stat().st_size
    np.testing.assert_array_equal(read(path).array, array)


def deflated(*parts):
    """Deflate parts given as (bytes, times), without ever holding them."""
    packer, out = zlib.compressobj(9, zlib.DEFLATED, -15), []
    size = crc = 0
    for part, times in parts:
        for _ in range(times):
            out.append(packer.compress(part))
            size, crc = size + len(part), zlib.crc32(part, crc)
    return b"".join([*out, packer.flush()]), size, crc


def archived(body, size, crc):
    """Return a zip file of one member ``a.npy`` with this deflated body."""
    archive = zipped({"a.npy": body}, zipfile.ZIP_STORED)
    return patched(archive, method=8, size=size, crc=crc)


@pytest.fixture(scope="module")
def zeros():
    """Half a gibibyte of zeros, deflated."""
    return deflated((bytes(MIB), 512))


@pytest.fixture(scope="module")
def array_of_zeros():
    """The same behind an honest .npy header."""
    return deflated((npy_header((512 * MIB,), "|u1"), 1), (bytes(MIB), 512))


@pytest.mark.slow
def test_bomb_is_refused_without_memory(write, zeros):
    path = write("bomb.npz", archived(*zeros))
    words = ("'a'", "536,870,912 bytes", "at most 268,435,456", "max_bytes=536870912")
    assert peak_of(lambda: refused(path, *words)) < MIB


def test_bomb_behind_an_honest_header_is_refused_unless_allowed(write, array_of_zeros):
    path = write("bomb.npz", archived(*array_of_zeros))
    size = array_of_zeros[1]
    assert peak_of(lambda: refused(path, f"{size:,} bytes", f"--max-bytes {size}")) < MIB
    assert read(path, max_bytes=size).array.shape == (512 * MIB,)


def test_bomb_that_is_no_array_is_refused_even_if_allowed(write, zeros):
    path = write("bomb.npz", archived(*zeros))
    assert peak_of(lambda: refused(path, "not a .npy", max_bytes=1 << 40)) < MIB


def test_bomb_behind_a_small_array_is_refused(write):
    body = deflated((npy(np.ones(10)), 1), (bytes(MIB), 200))
    path = write("bomb.npz", archived(*body))
    assert peak_of(lambda: refused(path, "80 bytes", "209,715,280 bytes of data follow")) < MIB


@pytest.mark.parametrize(("size", "word"), [(1000, "CRC"), (10**6, "shape (536870912,)")])
def test_bomb_whose_size_is_declared_small_is_refused(write, array_of_zeros, size, word):
    body, _, crc = array_of_zeros
    path = write("bomb.npz", archived(body, size, crc))
    assert peak_of(lambda: refused(path, "'a'", word)) < MIB


def test_no_more_is_read_than_declared(write):
    head = npy(np.ones(10))
    body, _, crc = deflated((head, 1), (bytes(MIB), 100))
    path = write("bomb.npz", archived(body, len(head), crc))
    assert peak_of(lambda: refused(path, "CRC")) < 2 * MIB
    path = write("forged.npz", archived(body, len(head), zlib.crc32(head)))
    assert peak_of(lambda: read(path)) < 2 * MIB


def test_bomb_with_a_lying_compressed_size_is_refused(write, array_of_zeros):
    archive = patched(archived(*array_of_zeros), packed=2**31)
    refused(write("bomb.npz", archive), "at most 268,435,456")


def test_nested_archive_is_refused(write, zeros):
    inner = archived(*zeros)
    refused(write("p.npz", zipped({"a.npz": inner})), "no arrays")
    refused(write("q.npz", zipped({"a.npy": inner})), "not a .npy")


def test_budget_grows_with_the_file(write, monkeypatch):
    path = write("p.npz", zipped({"a.npy": npy(np.zeros(2000))}))
    monkeypatch.setattr(sources, "FLOOR", 1)
    monkeypatch.setattr(sources, "RATIO", 1000)
    assert read(path).array.shape == (2000,)
    monkeypatch.setattr(sources, "RATIO", 2)
    refused(path, "16,128 bytes")


def test_member_that_ends_early_is_refused(write):
    head = npy_header((1000,))
    body, _, crc = deflated((head, 1), (bytes(100), 1))
    refused(write("p.npz", archived(body, len(head) + 8000, crc)), "'a'")


@pytest.mark.parametrize(
    "name",
    ["../a.npy", "/a.npy", "b/../a.npy", "..", "b\\a.npy", "C:/a.npy", "a\n.npy", "a\x1b.npy"],
)
def test_member_with_a_tricky_name_is_refused(write, name):
    archive = zipped({"fine.npy": npy(np.ones(3)), name: npy(np.ones(3))})
    refused(f"{write('p.npz', archive)}::fine", repr(name))


@pytest.mark.parametrize(
    "name", ["..a.npy", "a...npy", "a b.npy", "ä.npy", "a.b/c..npy", "w:0.npy"]
)
def test_member_with_an_odd_but_plain_name_is_accepted(write, name):
    path = write("p.npz", zipped({name: npy(np.ones(3))}))
    assert read(path).member == name.removesuffix(".npy")


def test_duplicate_member_is_refused(write):
    archive = zipped({"a.npy": npy(np.ones(3)), "b.npy": npy(np.zeros(3))})
    archive = archive.replace(b"b.npy", b"a.npy")
    refused(f"{write('p.npz', archive)}::a", "'a.npy'", "two members")


# --- .safetensors ---------------------------------------------------------------------------------

KINDS = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mmap", [True, False])
def test_safetensors_round_trip(write, kind, mmap):
    array = np.arange(6).reshape(2, 3).astype(KINDS[kind])
    entry = (kind, [2, 3], array.tobytes())
    path = write("p.safetensors", tensors(first=("F64", [1], bytes(8)), p=entry))
    table = read(f"{path}::p", mmap=mmap)
    assert (table.path, table.member, table.array.dtype) == (path, "p", array.dtype)
    assert table.array.flags.writeable is not mmap
    np.testing.assert_array_equal(table.array, array)


def test_safetensors_as_the_package_writes_it(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "p.safetensors"
    array = np.random.default_rng(0).normal(size=(3, 5))
    save_file({"a": array, "b": np.zeros((0, 3))}, path)
    np.testing.assert_array_equal(read(f"{path}::a").array, array)
    assert read(f"{path}::b").array.shape == (0, 3)


@pytest.mark.parametrize("mmap", [True, False])
def test_bfloat16_becomes_float32_without_ml_dtypes(write, monkeypatch, mmap):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    bits = np.array([0x3FC0, 0xFF80, 0x7FC0, 0x0001, 0x8000, 0x7F7F], "<u2")
    path = write("p.safetensors", tensors(a=("BF16", [2, 3], bits.tobytes())))
    array = read(path, mmap=mmap).array
    assert array.dtype == np.float32
    expected = [[1.5, -np.inf, np.nan], [2.0**-133, -0.0, 255 * 2.0**120]]
    np.testing.assert_array_equal(array, np.array(expected, np.float32))
    assert np.signbit(array[1, 1])


def test_every_bfloat16_is_what_ml_dtypes_says(write):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = np.arange(2**16, dtype="<u2")
    array = read(write("p.safetensors", tensors(a=("BF16", [2**16], bits.tobytes())))).array
    np.testing.assert_array_equal(array, bits.view(ml_dtypes.bfloat16).astype(np.float32))


def test_max_bytes_holds_for_the_widened_bfloat16(write):
    path = write("p.safetensors", tensors(a=("BF16", [10], bytes(20))))
    assert read(path, max_bytes=40).array.shape == (10,)
    refused(path, "40 bytes", "at most 39", max_bytes=39)


def test_large_safetensors_is_mapped(write):
    path = write("p.safetensors", tensors(a=("U8", [32 * MIB], bytes(32 * MIB))))
    assert peak_of(lambda: read(path)) < MIB


def test_safetensors_with_several_tensors_lists_them(write):
    path = write("p.safetensors", tensors(a=("U8", [1], b"1"), b=("U8", [1], b"2")))
    message = refused(path, "2 tensors: 'a', 'b'", "p.safetensors::name")
    assert "metadata" not in message
    refused(f"{path}::c", "'c'", "'a', 'b'")
    refused(f"{path}::__metadata__", "no such name")


def test_missing_package_says_how_to_install_it(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = write("p.safetensors", tensors(a=("U8", [1], b"1")))
    refused(path, 'pip install "kldiv[cli]"')


LIES = {  # the file, its bytes, and words of the message
    "terabytes": (
        "npy", npy_header((2**40, 3)) + bytes(100), "(1099511627776, 3)", "100 bytes of data"
    ),
    "a header of gigabytes": (
        "npy", np.lib.format.magic(2, 0) + b"\xff\xff\xff\xff" + b" " * (8 * MIB), "not a .npy"
    ),
    **{
        f"a header of {length} bytes": (
            "safetensors", struct.pack("<Q", length) + TENSOR[8:], f"{length:,} bytes for itself"
        )
        for length in (0, 4096, 2**30, 2**64 - 1)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", LIES)
def test_what_claims_much_is_refused_without_memory(write, case):
    suffix, data, *words = LIES[case]
    path = write(f"p.{suffix}", data)
    assert peak_of(lambda: refused(path, *words)) < MIB


@pytest.mark.parametrize(
    ("kind", "shape", "size"), [("F32", [10], 44), ("F64", [10], 40), ("F32", [2**40], 40)]
)
@pytest.mark.parametrize("validated", [True, False])
def test_safetensors_header_that_lies_about_a_tensor_is_refused(
    write, monkeypatch, kind, shape, size, validated
):
    if not validated:  # our own checks hold without the package's
        monkeypatch.setattr(tensor_files, "_validate", lambda _: None)
    path = write("p.safetensors", tensors(a=(kind, shape, bytes(size))))
    refused(path, *([] if validated else ["places"]))


@pytest.mark.parametrize("offsets", [[40, 0], [-8, 32], [8, 48], [0, 39], "ab", [0], [1e400, 2]])
def test_safetensors_offsets_are_checked_without_the_package_too(write, monkeypatch, offsets):
    monkeypatch.setattr(tensor_files, "_validate", lambda _: None)
    entry = {"dtype": "F32", "shape": [10], "data_offsets": offsets}
    text = json.dumps({"a": entry}).encode()
    refused(write("p.safetensors", struct.pack("<Q", len(text)) + text + bytes(40)))


def test_safetensors_header_is_bounded(write, monkeypatch):
    data = tensors(a=("U8", [1], b"1"))
    length = int.from_bytes(data[:8], "little")
    path = write("p.safetensors", data)
    monkeypatch.setattr(tensor_files, "_JSON_HEADER", length)
    assert read(path).array.tolist() == [ord("1")]
    monkeypatch.setattr(tensor_files, "_JSON_HEADER", length - 1)
    refused(path, f"at most {length - 1}")


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
