"""NumPy's files: fine ones are read exactly, those that lie are refused, cheaply and in words."""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib

import numpy as np
import pytest
from readers.making import npy, npy_header, patched, peak_of, zipped
from readers.refusing import Trap, refused

from kldiv.readers import read, sources

MIB = 1 << 20


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
