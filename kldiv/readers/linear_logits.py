"""Logits that are computed where they are read: hidden states times the weight of a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import DTypeError, ShapeError
from kldiv.readers.stored import Stored
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv.readers.stored import Index

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
        kinds = {each.array.dtype for each in (hidden, weight)}
        wide = np.float64 if np.dtype(np.float64) in kinds else np.float32
        super().__init__(shape, np.dtype(wide), tuple(reversed(range(len(shape)))))
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


def linear_logits(hidden: Any, weight: Any) -> Table:
    """Return the logits of a linear layer, which are computed a part at a time and never kept.

    Parameters
    ----------
    hidden : array, path or Table
        Hidden states along the last axis: NumPy's, or a file of them that `open_table` opens.
    weight : array, path or Table
        The layer's weight, a row for each class as in PyTorch's ``Linear``. A large one is mapped.

    Returns
    -------
    Table
        For `kldiv.streaming.compare`; its array is a `Stored` of float32, or of float64 where
        either is.

    Raises
    ------
    ShapeError
        The hidden states are no longer or shorter than the rows of the weight.
    DTypeError
        Either is not of real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv import readers, streaming
    >>> hidden, weight = np.ones((5, 8)), np.eye(8)[:3]
    >>> logits = readers.linear_logits(hidden, weight)
    >>> logits.array.shape
    (5, 3)
    >>> streaming.compare(logits, np.zeros((5, 3)), form="logits").mean
    0.0
    """
    from kldiv.readers import open_table, read  # noqa: PLC0415 - the package imports this module

    tables = [
        Table(given)
        if isinstance(given, np.ndarray | Stored)
        else given
        if isinstance(given, Table)
        else opening(given)
        for given, opening in ((hidden, open_table), (weight, read))
    ]
    for name, each in zip(("hidden", "weight"), tables, strict=True):
        if each.array.dtype.kind not in "biuf":
            raise DTypeError(f"{name} has dtype {each.array.dtype}; expected real numbers")
    states, rows = (each.array.shape for each in tables)
    if len(rows) != 2 or not states or states[-1] != rows[1]:
        mend = "a row for each class is expected"
        if len(rows) == 2 and states and states[-1] == rows[0]:
            mend += "; transpose the weight"
        raise ShapeError(f"hidden has shape {states} and weight {rows}: {mend}")
    first, second = tables
    return replace(first, array=LinearLogits(first, second), classes=second.rows)
