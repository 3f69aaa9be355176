"""Logits that are computed where they are read: hidden states times the weight of a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import DTypeError, ShapeError
from kldiv.readers.arrays import unmasked
from kldiv.readers.stored import Stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv.readers.stored import Index
    from kldiv.readers.table import Table

_WIDENED: Final = 64 << 20  # bytes of the weight that are converted at a time


class LinearLogits(Stored):
    """hidden @ weight.T, a part at a time.

    Parameters
    ----------
    hidden : Table
        Hidden states, along the last axis.
    weight : Table
        A row for each class.
    """

    def __init__(self, hidden: Table, weight: Table) -> None:
        shape = (*hidden.array.shape[:-1], weight.array.shape[0])
        both = np.result_type(hidden.array.dtype, weight.array.dtype, np.float32)
        super().__init__(shape, min(both, np.dtype(np.float64), key=lambda each: each.itemsize))
        self.hidden = hidden
        self.weight = weight

    def __getitem__(self, index: Index) -> NDArray[Any]:
        *rows, classes = index
        size = self.weight.array.shape[1]
        hidden = self.hidden.array[(*rows, slice(0, size))].astype(self.dtype, copy=False)
        flat = np.ascontiguousarray(hidden.reshape(-1, size))
        found = np.empty((len(flat), classes.stop - classes.start), self.dtype)
        step = max(_WIDENED // (size * self.dtype.itemsize), 1)
        for start in range(classes.start, classes.stop, step):
            stop = min(start + step, classes.stop)
            part = self.weight.array[start:stop, 0:size].astype(self.dtype, copy=False)
            found[:, start - classes.start : stop - classes.start] = flat @ part.T
        return found.reshape(*hidden.shape[:-1], -1)


def logits_of(hidden: Table, weight: Table) -> Table:
    """Return the logits, once the shapes and dtypes are checked."""
    tables = hidden, weight
    for name, each in zip(("hidden", "weight"), tables, strict=True):
        if not isinstance(each.array, Stored):
            unmasked(name, each.array)
        if each.array.dtype.kind not in "biuf":
            raise DTypeError(f"{name} has dtype {each.array.dtype}; expected real numbers")
    states, rows = (each.array.shape for each in tables)
    if len(rows) != 2 or not states or states[-1] != rows[1]:
        mend = "a row for each class is expected"
        if len(rows) == 2 and states and states[-1] == rows[0]:
            mend += "; transpose the weight"
        raise ShapeError(f"hidden has shape {states} and weight {rows}: {mend}")
    return replace(hidden, array=LinearLogits(hidden, weight), classes=weight.rows)
