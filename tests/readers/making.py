"""Files that readers are tested with, honest ones and others."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile

import numpy as np


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


def peak_of(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


TENSOR = tensors(a=("F32", [10], bytes(40)))
