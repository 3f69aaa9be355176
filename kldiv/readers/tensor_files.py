"""``.safetensors``, and the index that says in which of several files a tensor is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from kldiv.readers.sources import (
    Source,
    check_layout,
    choose,
    load,
    needed,
    opened,
    parsing,
    size_of,
)
from kldiv.readers.stored import Layout
from kldiv.readers.table import Table

INDEX: Final = ".safetensors.index.json"
"""How the name of an index ends."""

_JSON_HEADER: Final = 16 << 20  # names of some 100 000 tensors

SAFETENSORS: Final = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",  # NumPy has no bfloat16: its bits are read, then widened
    "F32": "<f4",
    "F64": "<f8",
}
"""NumPy's code of each dtype of the format."""


def read_safetensors(source: Source) -> Table:
    """Return a tensor of a ``.safetensors`` file."""
    length = int.from_bytes(source.file.read(8), "little")
    there = max(source.size - 8, 0)
    if not 0 < length <= min(there, _JSON_HEADER):
        text = f"the header declares {length:,} bytes for itself; {there:,} follow, and at most"
        raise source.error(f"{text} {_JSON_HEADER:,} are accepted. Copy or save it again")
    _validate(source)
    with parsing(source, ".safetensors"):
        header = json.loads(source.file.read(length))
        header.pop("__metadata__", None)
        member = choose(source, header, "tensors")
        entry = header[member]
        kind, (start, end) = str(entry["dtype"]), map(int, entry["data_offsets"])
        shape = tuple(int(n) for n in entry["shape"])
    if kind not in SAFETENSORS:
        text = f"dtype {kind} is none of {', '.join(SAFETENSORS)}. Save it as F32 or BF16"
        raise source.error(text, member)
    layout = Layout(np.dtype(SAFETENSORS[kind]), shape, 8 + length + start)
    check_layout(source, layout, member)
    if not (0 <= start <= end <= there - length and layout.nbytes == end - start):
        text = f"the header places {layout} at bytes {start:,} to {end:,} of {there - length:,}"
        raise source.error(f"{text}. Copy or save it again", member)
    return Table(load(source, layout, member, bfloat16=kind == "BF16"), source.path, member)


def read_index(source: Source) -> Table:
    """Return a tensor of the files that an index of Hugging Face's names, which lie beside it."""
    if source.size > _JSON_HEADER:
        raise source.error(f"{source.size:,} bytes; an index has at most {_JSON_HEADER:,}")
    with parsing(source, "index of .safetensors files"):
        files = dict(json.loads(source.file.read())["weight_map"])
        member = choose(source, files, "tensors")
        name = str(files[member])
        if Path(name).name != name or not name.endswith(".safetensors"):
            text = f"is said to be in {name!r}, which is no .safetensors file beside the index"
            raise source.error(f"{text}. Write the index again", member)
        path = source.path.with_name(name)
    with opened(path) as file:
        return read_safetensors(
            replace(source, file=file, path=path, key=member, size=size_of(file))
        )


def index_in(folder: Path) -> Path | None:
    """Return the one index in a folder, or None."""
    found = list(folder.glob("*" + INDEX)) if folder.is_dir() else []
    return found[0] if len(found) == 1 else None


def _validate(source: Source) -> None:
    """Have the format's own package check the header: names, types, and offsets without holes."""
    package = needed(source, "safetensors", "cli")
    with parsing(source, ".safetensors"), package.safe_open(source.path, framework="np"):
        pass
