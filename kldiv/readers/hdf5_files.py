"""``.h5`` and ``.hdf5``, by h5py: a dataset, in parts where it is large.

Datasets that lie in other files, and filters that the library would load as code, are refused.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np

from kldiv.readers.sources import (
    Source,
    check_attributes,
    check_budget,
    check_layout,
    choose,
    missing_marks,
    parsing,
    stays,
    unwritten,
)
from kldiv.readers.stored import Layout, Stamped, without_marks
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from kldiv.readers.stored import Index

_FILTERS: Final = {1, 2, 3, 4, 5, 6, 32000}  # those of HDF5 itself, and lzf, which h5py has


def read_hdf5(source: Source) -> Table:
    """Return a dataset of a file."""
    with parsing(source, "HDF5 file"), h5py.File(source.file, "r") as file:
        names = list[str]()
        file.visit(names.append)  # follows no links to other files
        names = [name for name in names if file.get(name, getclass=True) is h5py.Dataset]
        member = choose(source, names, "datasets")
        found = file[member]
        _check(source, found, member)
        notes: tuple[str, ...] = ()
        if found.chunks and math.prod(found.shape):
            notes = unwritten(source, found.id.get_num_chunks(), found.shape, found.chunks)
        table = Table(None, source.path, member, notes=notes)
        marks = missing_marks(found.attrs, found.dtype)
        stored = stays(source, found.nbytes)
        if source.max_bytes is not None or not stored:
            check_budget(source, found.nbytes, found.id.get_storage_size(), member)
        if stored:
            dataset = _Dataset(source.path, member, found)
            return replace(table, array=without_marks(dataset, marks))
        array = np.asarray(found[()])
        array = array.astype(array.dtype.newbyteorder("="))
        return replace(table, array=without_marks(array, marks))


def _check(source: Source, found: Any, member: str) -> None:
    if found.dtype.kind in "OSU":
        raise source.error("holds text, not numbers. Choose another dataset", member)
    check_layout(source, Layout(found.dtype, found.shape or (), 0), member)
    check_attributes(source, found.attrs, found.dtype, member)
    if found.external or found.is_virtual:
        raise source.error("its numbers lie in other files. Write them into this one", member)
    settings = found.id.get_create_plist()
    used = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    if used - _FILTERS:
        text = f"filters {sorted(used - _FILTERS)} are code from outside, which is not run on data"
        raise source.error(f"{text} that nobody vouches for. Write it again with gzip", member)
    if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > 1 << 30:
        raise source.error(f"one chunk, {found.chunks}, is over 1 GiB. Use smaller ones", member)


class _Dataset(Stamped):
    """A dataset of which parts are read."""

    def __init__(self, path: Path, member: str, found: Any) -> None:
        super().__init__(path, found.shape, found.dtype, None, found.chunks)
        self._member = member

    def __getitem__(self, index: Index) -> NDArray[Any]:
        with self.opened(), h5py.File(self.path, "r") as file:
            return np.asarray(file[self._member][index], dtype=self.dtype)
