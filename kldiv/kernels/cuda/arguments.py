"""A kernel's arguments: one structure by value, as the sources' ``Job`` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.kernels.layout import STRIDES, memory, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace

AXES: Final = 6
"""Axes that a table has room for; with more than these arrays are copied into plain ones."""


def layout(
    xp: Namespace, arrays: Sequence[Array | None], *, whole_rows: bool = False
) -> tuple[np.ndarray[Any, Any], list[Array | None]]:
    """Return the table of arrays that broadcast to the first's shape, and the arrays it is of."""
    found = table([None if a is None else memory(a) for a in arrays], whole_rows=whole_rows)
    if found.shape[1] > STRIDES + AXES:
        shape = arrays[0].shape  # type: ignore[union-attr] # the first is one
        plain = [
            None if a is None else xp.ascontiguousarray(xp.broadcast_to(a, shape)) for a in arrays
        ]
        return layout(xp, plain, whole_rows=whole_rows)
    padded = np.zeros((len(found), STRIDES + AXES), dtype=np.int64)
    padded[:, : found.shape[1]] = found
    return padded, list(arrays)


def numbers(xp: Namespace, array: Array) -> Array:
    """Return an array's numbers one after another, in float64."""
    return xp.reshape(xp.ascontiguousarray(xp.astype(array, xp.float64)), (-1,))


def address(array: Array | None) -> int:
    """Return where an array is in memory; 0 for none."""
    return 0 if array is None else memory(array).address


def structure(**fields: Any) -> np.ndarray[Any, Any]:
    """Return fields as an array of one structure, which CuPy passes by value."""
    kinds: list[tuple[str, Any, Any]] = []
    for name, value in fields.items():
        if isinstance(value, np.ndarray):
            kinds.append((name, value.dtype, value.shape))
        else:
            kinds.append((name, np.float64 if isinstance(value, float) else np.int64, ()))
    job = np.zeros((), dtype=np.dtype(kinds, align=True))
    for name, value in fields.items():
        job[name] = value
    return job


def wide(names: Sequence[str]) -> str:
    """Return the dtype to compute in: float32 unless one of these is wider."""
    return "float64" if "float64" in names else "float32"
