"""Classes and rows of two tables, matched by their labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.errors import InputError
from kldiv.readers import Stored

if TYPE_CHECKING:
    from kldiv.readers import Table
    from kldiv.streaming._types import Names


def labels_of(table: Table, axis: int) -> tuple[Names, Names]:
    """Return the labels of the classes and of the rows."""
    if table.array.ndim == 1:
        return table.classes, None
    return (table.rows, table.classes) if axis == 0 else (table.classes, table.rows)


def align(p: Table, q: Table, axis: int, *, empty: float) -> tuple[Table, Table]:
    """Return both with the union of their classes, P's first, and Q's rows in P's order."""
    p, q = (
        replace(each, array=each.array[each.array.whole])
        if isinstance(each.array, Stored)
        else each
        for each in (p, q)
    )
    (p_classes, p_rows), (q_classes, q_rows) = labels_of(p, axis), labels_of(q, axis)
    if p_classes is None or q_classes is None:
        raise InputError(
            "`align` needs labels of the classes in both files: a text column, or the header of a"
            " matrix"
        )
    union = tuple(dict.fromkeys(p_classes + q_classes))
    _check_distinct("P", p_classes)
    _check_distinct("Q", q_classes)
    if p_rows is not None and q_rows is not None and p_rows != q_rows:
        _check_distinct("P", p_rows)
        _check_distinct("Q", q_rows)
        if set(p_rows) != set(q_rows):
            odd = min(set(p_rows) ^ set(q_rows))
            raise InputError(
                f"row {odd!r} is in one file only. `align` matches rows, never adds any"
            )
        where = {name: i for i, name in enumerate(q_rows)}
        q = replace(q, array=np.take(q.array, [where[name] for name in p_rows], axis=1 - axis))
        q_rows = p_rows
    return (
        _widened(p, axis, p_classes, p_rows, union, empty),
        _widened(q, axis, q_classes, q_rows, union, empty),
    )


def _check_distinct(name: str, labels: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise InputError(f"{name} has the label {label!r} twice. `align` needs distinct ones")
        seen.add(label)


def _widened(
    table: Table,
    axis: int,
    classes: tuple[str, ...],
    rows: Names,
    union: tuple[str, ...],
    empty: float,
) -> Table:
    """Return a table with the classes of ``union``, ``empty`` where it had none."""
    shape = list(table.array.shape)
    shape[axis] = len(union)
    array = np.full(shape, empty)
    where = {name: i for i, name in enumerate(union)}
    index: list[Any] = [slice(None)] * len(shape)
    index[axis] = [where[name] for name in classes]
    array[tuple(index)] = table.array
    if len(shape) > 1 and axis == 0:
        return replace(table, array=array, rows=union, classes=rows)
    return replace(table, array=array, classes=union, rows=rows)
