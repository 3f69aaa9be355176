"""Arrays that stay on disk: every part is what NumPy would give, and no more is read."""

from __future__ import annotations

import base64
import gc
import io
import json
import os
import pickle
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from readers.refusing import Trap

from kldiv.errors import InputError
from kldiv.readers import Stored, open_table, read, sources


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(sources, "STORED", 1)


def parts(shape):
    """Some indices of an array: all of it, single elements, and pieces that cut every axis."""
    rng = np.random.default_rng(sum(shape))
    yield tuple(slice(0, size) for size in shape)
    for _ in range(30):
        ends = [sorted(rng.integers(0, size + 1, 2)) for size in shape]
        yield tuple(slice(int(a), int(b)) for a, b in ends)


def agrees(stored, array):
    assert isinstance(stored, Stored)
    assert (stored.shape, stored.dtype) == (array.shape, array.dtype.newbyteorder("="))
    for index in parts(array.shape):
        part = stored[index]
        assert part.dtype.isnative
        np.testing.assert_array_equal(part, array[index])


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "|b1"])
@pytest.mark.parametrize("shape", [(50,), (7, 9), (3, 4, 5), (2, 1, 6, 3)])
def test_parts_of_an_npy(tmp_path, shape, dtype, order):
    array = np.asarray(np.random.default_rng(0).normal(size=shape) * 9, dtype, order=order)
    np.save(tmp_path / "x.npy", array)
    stored = open_table(tmp_path / "x.npy").array
    agrees(stored, array)
    slow = range(len(shape)) if order == "C" else reversed(range(len(shape)))
    if 1 not in shape and len(shape) > 1:
        assert stored.order == tuple(slow)[::-1]


def test_only_the_part_is_read(tmp_path, monkeypatch):
    """A sparse file of a terabyte: whatever reads all of it does not come back."""
    head = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1)))
    shape = (1 << 20, 1 << 17)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {**head, "shape": shape})
        start = file.tell()
        file.seek(start + 8 * (777 * shape[1] + 5))
        file.write(np.array([1.5, 2.5]).tobytes())
        file.truncate(start + 8 * shape[0] * shape[1])
    stored = open_table(tmp_path / "x.npy").array
    assert stored[777:778, 4:8].tolist() == [[0, 1.5, 2.5, 0]]
    assert stored.nbytes == 1 << 40


@pytest.mark.parametrize("change", ["shorter", "other numbers", "another file"])
def test_a_file_that_changes_is_an_error(tmp_path, change):
    path, other = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(path, np.ones((9, 9)))
    stored = open_table(path).array
    assert stored[0:1, 0:9].tolist() == [[1] * 9]
    np.save(other, np.zeros((9, 9)))
    data = {"shorter": path.read_bytes()[:-8]}.get(change, other.read_bytes())
    if change == "another file":
        other.replace(path)
    else:
        path.write_bytes(data)
    os.utime(path, (0, 0))  # clocks may be coarse
    with pytest.raises(InputError, match="has changed since it was opened"):
        stored[stored.whole]


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_parts_of_a_tensor(tmp_path, name):
    pytest.importorskip("safetensors")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    from safetensors.numpy import save_file

    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.float32
    array = np.random.default_rng(1).normal(size=(6, 11)).astype(dtype)
    save_file({"a": array, "b": array[:2] + 1}, tmp_path / "x.safetensors")
    agrees(open_table(f"{tmp_path}/x.safetensors::a").array, array.astype(np.float32))


def test_small_arrays_are_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "STORED", 16 << 20)
    np.save(tmp_path / "x.npy", np.ones(3))
    assert isinstance(open_table(tmp_path / "x.npy").array, np.ndarray)


def test_the_limit_holds_for_what_stays_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(100))
    with pytest.raises(InputError, match="max_bytes=800"):
        open_table(tmp_path / "x.npy", max_bytes=799)


# --- shards ---------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """Write the parts of an array into a folder, in an order in which no name is sorted as text."""

    def write(array, cuts, axis, name="shard-{}.npy"):
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        for number, part in enumerate(np.split(array, cuts, axis=axis)):
            np.save(folder / name.format(number + 8), part)
        return folder

    return write


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("order", "CF")
def test_shards_follow_one_another(shards, axis, order):
    array = np.asarray(np.random.default_rng(2).normal(size=(9, 8)), order=order)
    folder = shards(array, [1, 4, 4, 6], axis)  # 8 to 12: one of them empty
    agrees(open_table(folder, shard_axis=axis).array, array)
    if axis == 0:
        np.testing.assert_array_equal(read(folder).array, array)


def test_a_gap_among_shards_is_said(shards):
    folder = shards(np.arange(40.0), [10, 20, 30], 0)
    assert open_table(folder).notes == ()
    (folder / "shard-10.npy").unlink()
    (note,) = open_table(folder).notes
    assert "between shard-9.npy and shard-11.npy" in note


def test_a_single_shard_and_other_files(shards):
    array = np.arange(6.0)
    folder = shards(array, [], 0)
    (folder / "README.md").write_text("what this is")
    (folder / ".shard-9.npy").write_bytes(b"half written")
    agrees(open_table(folder).array, array)


def test_a_pattern_names_shards(shards):
    array = np.random.default_rng(2).normal(size=(9, 8))
    folder = shards(array, [1, 4, 4, 6], 0)
    agrees(open_table(folder / "shard-*.npy").array, array)
    np.testing.assert_array_equal(read(f"{folder}/shard-1[01].npy").array, array[4:6])
    np.save(folder / "shard-[8].npy", array[5:])
    agrees(open_table(folder / "shard-[8].npy").array, array[5:])  # a file of that very name


@pytest.mark.parametrize("name", ["none-*.npy", "*.csv", "a*\0.npy"])
def test_a_pattern_that_names_nothing(tmp_path, name):
    with pytest.raises(InputError):
        open_table(f"{tmp_path}/{name}")


def test_tensors_in_shards(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.numpy import save_file

    for number in (1, 2):
        file = tmp_path / f"x-{number:05}-of-00002.safetensors"
        save_file({"a": np.full((2, 3), number), "b": np.ones(1)}, file)
    table = open_table(f"{tmp_path}::a")
    assert table.member == "a"
    agrees(table.array, np.repeat([[1] * 3, [2] * 3], 2, axis=0))
    with pytest.raises(InputError, match="holds 2 tensors"):
        open_table(tmp_path)
    (tmp_path / "x-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="there are 2 shards, but there are 1"):
        open_table(f"{tmp_path}::a")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (np.ones((2, 4), np.float32), r"shard-9\.npy: dtype float32, but shard-8\.npy has float64"),
        (np.ones((2, 5)), r"shard-9\.npy: shape \(2, 5\), but shard-8\.npy has \(2, 4\)"),
        (np.ones(4), r"shard-9\.npy: shape \(4,\)"),
    ],
)
def test_a_shard_that_does_not_fit_is_named(shards, other, said):
    folder = shards(np.ones((2, 4)), [], 0)
    np.save(folder / "shard-9.npy", other)
    with pytest.raises(InputError, match=said):
        open_table(folder)


def test_folders_that_hold_no_single_array(shards, tmp_path):
    folder = shards(np.ones((2, 4)), [], 0)
    with pytest.raises(InputError, match="no axis 2"):
        open_table(folder, shard_axis=2)
    (folder / "x.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="files of both kinds"):
        open_table(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such file"):
        open_table(tmp_path / "empty")
    (folder / "x.safetensors").unlink()
    for function in (open_table, read):
        with pytest.raises(InputError, match="at most 63 are"):
            function(folder, max_bytes=63)


# --- Zarr -----------------------------------------------------------------------------------------


@pytest.fixture
def zarr():
    return pytest.importorskip("zarr")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i4"])
def test_parts_of_a_zarr_store(tmp_path, zarr, version, dtype):
    array = np.asarray(np.random.default_rng(3).normal(size=(10, 21)) * 9, dtype)
    path = tmp_path / "x.zarr"
    store = zarr.create_array(
        store=str(path), shape=array.shape, chunks=(3, 8), dtype=dtype, zarr_format=version
    )
    store[...] = array
    stored = open_table(path).array
    agrees(stored, array)
    assert stored.chunks == (3, 8)
    np.testing.assert_array_equal(read(path).array, array)
    path.rename(tmp_path / "without-suffix")
    agrees(open_table(tmp_path / "without-suffix").array, array)


def test_zarr_shards_are_read_whole(tmp_path, zarr):
    path = str(tmp_path / "x.zarr")
    zarr.create_array(store=path, shape=(8, 8), chunks=(2, 2), shards=(4, 8), dtype="f4")[...] = 1
    assert open_table(path).array.chunks == (4, 8)


def test_an_array_of_a_group(tmp_path, zarr):
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    for name in ("a", "deep/b"):
        group.create_array(name, shape=(2,), dtype="f8")[...] = 5
    assert open_table(f"{tmp_path}/x.zarr::deep/b").array[slice(0, 2),].tolist() == [5, 5]
    with pytest.raises(InputError, match=r"holds 2 arrays: 'a', 'deep/b'|'deep/b', 'a'"):
        open_table(tmp_path / "x.zarr")
    with pytest.raises(InputError, match="no such name among its arrays"):
        open_table(f"{tmp_path}/x.zarr::c")


def test_a_damaged_member_of_a_group_leaves_nothing_behind(tmp_path, zarr, caplog):
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    for number in range(6):
        group.create_array(f"{number}", shape=(2,), dtype="f8")
        (tmp_path / f"x.zarr/{number}/zarr.json").write_text("{")
    with pytest.raises(InputError, match="not a Zarr store that can be read"):
        open_table(tmp_path / "x.zarr")
    gc.collect()  # asyncio reports a task that nobody waits for when it is collected
    assert caplog.records == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_back_into_a_group_is_not_followed(tmp_path, zarr):
    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    group.create_array("deep/b", shape=(2,), dtype="f8")
    (tmp_path / "x.zarr/deep/back").symlink_to("..")
    assert open_table(tmp_path / "x.zarr").member == "deep/b"


@pytest.mark.parametrize("name", ["zarr.json", "a/zarr.json"])
def test_metadata_that_would_fill_the_memory_is_refused(tmp_path, zarr, name, monkeypatch):
    from kldiv.readers import zarr_store

    group = zarr.open_group(str(tmp_path / "x.zarr"), mode="w")
    group.create_array("a", shape=(2,), dtype="f8")
    with (tmp_path / "x.zarr" / name).open("a") as file:
        file.write(" " * 5000)
    assert open_table(tmp_path / "x.zarr").member == "a"
    monkeypatch.setattr(zarr_store, "_MOST_METADATA", 5000)
    with pytest.raises(InputError, match=r"zarr\.json has 5,"):
        open_table(tmp_path / "x.zarr")


def test_what_is_no_zarr_store(tmp_path, zarr):
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(InputError, match="not a Zarr store"):
        open_table(tmp_path / "x.zarr")
    array = zarr.create_array(store=str(tmp_path / "y.zarr"), shape=(4,), chunks=(2,), dtype="f8")
    array[...] = 1
    with pytest.raises(InputError, match="one array; leave out ::a"):
        open_table(f"{tmp_path}/y.zarr::a")
    chunk = next(each for each in (tmp_path / "y.zarr").rglob("*") if each.name == "1")
    chunk.write_bytes(b"damaged")
    stored = open_table(tmp_path / "y.zarr").array
    assert stored[slice(0, 2),].tolist() == [1, 1]
    with pytest.raises(InputError, match="not a Zarr store that can be read"):
        stored[stored.whole]


def test_packed_numbers_and_chunks_that_are_not_stored(tmp_path, zarr):
    array = zarr.create_array(store=str(tmp_path / "x.zarr"), shape=(9,), chunks=(2,), dtype="f8")
    array[:4] = 1
    (note,) = open_table(tmp_path / "x.zarr").notes
    assert "3 of 5 chunks" in note
    assert "are not stored" in note
    array[:] = 1
    assert open_table(tmp_path / "x.zarr").notes == ()
    array.attrs["add_offset"] = 5
    with pytest.raises(InputError, match="packed, by the attributes add_offset"):
        open_table(tmp_path / "x.zarr")


def test_a_dataset_from_a_pipe_is_read_at_once(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.arange(5.0)
    with pytest.raises(InputError, match="40 bytes from 40 on disk; at most 8 are accepted"):
        open_table(tmp_path / "x.h5", max_bytes=8)
    content = io.BytesIO((tmp_path / "x.h5").read_bytes())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=content))
    assert open_table("-").array.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("dtype", "mark"), [("f4", 1e20), ("i2", -999), ("f8", "base64")])
def test_marks_of_missing_numbers_are_nan(tmp_path, zarr, dtype, mark):
    h5py = pytest.importorskip("h5py")
    number = -7.5 if mark == "base64" else mark
    values = np.array([[1, number], [3, 4]], dtype)
    written = zarr.create_array(store=str(tmp_path / "x.zarr"), shape=(2, 2), dtype=dtype)
    written[:] = values
    written.attrs["_FillValue"] = base64.b64encode(struct.pack("<d", number)).decode()
    if mark != "base64":
        written.attrs["_FillValue"] = mark
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = values
        file["x"].attrs["missing_value"] = np.array([number], dtype)
    for path in (tmp_path / "x.zarr", tmp_path / "x.h5"):
        stored = open_table(path).array
        assert isinstance(stored, Stored)
        for found in (stored[stored.whole], read(path).array):
            assert found.dtype == (dtype if dtype[0] == "f" else "f8")
            np.testing.assert_array_equal(found, [[1, np.nan], [3, 4]])


@pytest.mark.parametrize("where", ["filters", "compressor"])
@pytest.mark.parametrize("codec", ["pickle", "astype"])
def test_a_codec_that_is_not_known_to_be_safe_is_not_run(tmp_path, zarr, where, codec):
    path, trace = tmp_path / "x.zarr", tmp_path / "it-ran"
    zarr.create_array(store=str(path), shape=(2,), chunks=(2,), dtype="f8", zarr_format=2)
    metadata = json.loads((path / ".zarray").read_text())
    entry = {"id": codec}
    if codec == "astype":
        entry |= {"encode_dtype": "<f4", "decode_dtype": "<f8"}
    metadata.update({"compressor": None, where: [entry] if where == "filters" else entry})
    (path / ".zarray").write_text(json.dumps(metadata))
    (path / "0").write_bytes(pickle.dumps(Trap(trace)))
    # zarr itself refuses to unpickle numbers since its third version.
    said = "encoded by astype" if codec == "astype" else "pickle"
    with pytest.raises(InputError, match=said):
        open_table(path)
    assert not trace.exists()


def test_zarr_holds_numbers_in_chunks_that_fit(tmp_path, zarr, monkeypatch):
    from kldiv.readers import zarr_store

    zarr.create_array(store=str(tmp_path / "x.zarr"), shape=(2,), dtype="c16")
    with pytest.raises(InputError, match="complex128 holds no real numbers"):
        open_table(tmp_path / "x.zarr")
    zarr.create_array(store=str(tmp_path / "y.zarr"), shape=(64,), chunks=(64,), dtype="f8")
    monkeypatch.setattr(zarr_store, "memory", lambda: 8 * 511)
    with pytest.raises(InputError, match="one chunk of shape"):
        open_table(tmp_path / "y.zarr")


def test_without_the_package_the_install_line_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(InputError, match=r"kldiv\[zarr\]"):
        open_table(tmp_path / "x.zarr")
