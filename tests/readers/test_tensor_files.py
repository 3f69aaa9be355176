"""Files of tensors: fine ones are read exactly, others refused, cheaply and in words."""

from __future__ import annotations

import json
import struct
import sys

import numpy as np
import pytest
from readers.making import TENSOR, npy_header, peak_of, tensors
from readers.refusing import refused

from kldiv.readers import read, tensor_files

MIB = 1 << 20


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
