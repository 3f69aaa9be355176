"""``.npy`` and ``.npz``."""

from __future__ import annotations

import io
import re
from typing import IO, TYPE_CHECKING, Any, Final

from numpy.lib import format as npy

from kldiv.readers.sources import (
    Source,
    check_alone,
    check_budget,
    check_layout,
    choose,
    filled,
    load,
    opened,
    parsing,
    size_of,
)
from kldiv.readers.stored import Layout
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from zipfile import ZipFile, ZipInfo

    from numpy.typing import NDArray

_NPY_HEADER: Final = 10_000  # NumPy's own limit of a header that is safe to parse

# Absolute, with a backslash or a control character, or climbing out of its folder.
_TRICK: Final = re.compile(r"^/|^[A-Za-z]:/|\\|[\x00-\x1f\x7f]|(^|/)\.\.(/|$)|^$")


def read_npy(source: Source) -> Table:
    """Return the array of a ``.npy`` file."""
    check_alone(source, "a .npy file")
    layout = npy_layout(source, source.file, source.size)
    return Table(load(source, layout), source.path)


def npy_layout(source: Source, stream: IO[bytes], size: int, member: str | None = None) -> Layout:
    """Parse the header at the start of a stream, and check it against the bytes that follow."""
    # A header may claim 4 GiB for itself, and NumPy would read them: it gets no more than these.
    head = io.BytesIO(stream.read(_NPY_HEADER + npy.MAGIC_LEN + 4))
    with parsing(source, ".npy", member):
        version = npy.read_magic(head)
        parse = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if parse is None:
            text = f"version {version} of .npy is for records; expected (1, 0) or (2, 0). Save"
            raise source.error(f"{text} an array of numbers instead", member)
        shape, fortran, dtype = parse(head, max_header_size=_NPY_HEADER)
    shape = tuple(int(n) for n in shape)
    layout = Layout(dtype, shape, head.tell(), "F" if fortran else "C")
    check_layout(source, layout, member)
    there = size - layout.offset
    if there != layout.nbytes:
        text = f"the header declares {layout}, but {there:,} bytes of data follow it"
        raise source.error(f"{text}. Copy or save it again", member)
    return layout


def read_npz(source: Source) -> Table:
    """Return an array of a ``.npz`` archive."""
    import zipfile  # noqa: PLC0415 - only where one is read

    with parsing(source, ".npz"), zipfile.ZipFile(source.file) as archive:
        members = _npz_members(source, archive.infolist())
        name = choose(source, members, "arrays", ".npy")
        return Table(_npz_array(source, archive, members[name], name), source.path, name)


def _npz_members(source: Source, infos: Sequence[ZipInfo]) -> dict[str, ZipInfo]:
    """Return the arrays of an archive by name; refuse directories made to deceive."""
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        if _TRICK.search(name):
            raise source.error("a member's name is no plain relative path. Save it again", name)
        if name in seen:
            raise source.error("two members have this name. Save it again", name)
        seen.add(name)
    return {
        info.filename.removesuffix(".npy"): info for info in infos if info.filename.endswith(".npy")
    }


def _npz_array(source: Source, archive: ZipFile, info: ZipInfo, member: str) -> NDArray[Any]:
    """Decompress one member: never more than its entry declares and the budget allows."""
    if info.flag_bits & 0x1:
        raise source.error("is encrypted. Decrypt the archive first", member)
    if info.compress_type not in (0, 8):  # others inflate without bound at a single read
        text = f"compression {info.compress_type}; expected stored or deflated, as np.savez writes"
        raise source.error(f"{text}. Save it again", member)
    # The entry may lie about its compressed size too; the file's own size cannot.
    check_budget(source, info.file_size, min(info.compress_size, source.size), member)
    with parsing(source, "zip member", member):
        with archive.open(info) as stream:
            layout = npy_layout(source, stream, info.file_size, member)
        with archive.open(info) as stream:
            stream.read(layout.offset)
            array = filled(source, layout, stream, member)
            stream.read(1)  # reaches the end, where the checksum is compared
    return array


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return all arrays of a ``.npz`` archive of any name, checked as one of them is."""
    import zipfile  # noqa: PLC0415 - only where one is read

    with opened(path) as file:
        source = Source(file, path, None, size_of(file))
        with parsing(source, ".npz"), zipfile.ZipFile(file) as archive:
            members = _npz_members(source, archive.infolist())
            return {name: _npz_array(source, archive, info, name) for name, info in members.items()}
