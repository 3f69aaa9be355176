"""Two files as one pair of arrays: of equal shapes, with equal labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import InputError, ShapeError
from kldiv.readers import open_table

if TYPE_CHECKING:
    from kldiv.cli.request import Request
    from kldiv.readers import Table

    Labels = tuple[str, ...] | None

LOGARITHMS: Final = ("log-probs", "logits")
"""What files can hold that is not on the scale of probabilities."""


@dataclass(frozen=True, slots=True)
class Pair:
    """P and Q, of one shape, and the labels that they share."""

    p: Table
    q: Table
    axis: int
    classes: Labels
    rows: Labels

    @property
    def size(self) -> int:
        """How many classes there are."""
        return int(self.p.array.shape[self.axis])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows: one entry a distribution."""
        shape: tuple[int, ...] = self.p.array.shape
        return shape[: self.axis] + shape[self.axis + 1 :]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return math.prod(self.shape)

    def class_name(self, index: int) -> str:
        """Return the label of a class, or its number."""
        return str(index) if self.classes is None else self.classes[index]

    def row_name(self, index: int) -> str:
        """Return the label of a row, or its number; rows are counted in C order."""
        if self.rows is not None:
            return self.rows[index]
        place = [int(i) for i in np.unravel_index(index, self.shape)]
        return str(place[0]) if len(place) == 1 else str(tuple(place))

    def place(self, place: tuple[int, ...]) -> str:
        """Return the name of an element."""
        name = f"class {self.class_name(place[self.axis])!r}"
        if not self.shape:
            return name
        row = np.ravel_multi_index(place[: self.axis] + place[self.axis + 1 :], self.shape)
        return f"row {self.row_name(int(row))!r}, {name}"


def read_pair(request: Request) -> Pair:
    """Read both files; refuse what cannot be compared."""
    p, q = (_read(spec, request) for spec in (request.p, request.q))
    for name, table in (("P", p), ("Q", q)):
        if not table.array.size:
            raise ShapeError(
                f"{name} has shape {table.array.shape}: no distributions to compare. Give an array"
                " with at least one number"
            )
    axis = _axis(request.axis, p, q)
    if request.align:
        p, q = _align(p, q, axis, empty=-math.inf if request.form in LOGARITHMS else 0.0)
    return _paired(p, q, axis)


def _read(spec: str, request: Request) -> Table:
    own = "::" in spec
    table = open_table(
        spec,
        key=None if own else request.key,
        max_bytes=request.max_bytes,
        shard_axis=request.shard_axis,
    )
    # A single number is one class; Table is frozen, and what follows counts axes.
    return table if table.array.ndim else replace(table, array=table.array.reshape(1))


def _axis(axis: int, p: Table, q: Table) -> int:
    shapes = p.array.shape, q.array.shape
    if len(shapes[0]) != len(shapes[1]):
        raise ShapeError(
            f"P has shape {shapes[0]}, Q {shapes[1]}: both must have the same. Take a column or"
            " array by file::key"
        )
    size = len(shapes[0])
    if not -size <= axis < size:
        raise ShapeError(
            f"--axis {axis} does not exist in shape {shapes[0]}: {-size} to {size - 1} do"
        )
    return axis % size


def _labels(table: Table, axis: int) -> tuple[Labels, Labels]:
    """Return the labels of the classes and of the rows."""
    if table.array.ndim == 1:
        return table.classes, None
    swapped = axis == 0
    return (table.rows, table.classes) if swapped else (table.classes, table.rows)


def _paired(p: Table, q: Table, axis: int) -> Pair:
    (p_classes, p_rows), (q_classes, q_rows) = _labels(p, axis), _labels(q, axis)
    _check_labels("classes", p_classes, q_classes, "--align matches them by label")
    _check_labels("rows", p_rows, q_rows, "--align matches them by label")
    if p.array.shape != q.array.shape:
        raise ShapeError(
            f"P has shape {p.array.shape}, Q {q.array.shape}: both must have the same. Nothing is"
            " padded or broadcast; --align matches classes by label where files have labels"
        )
    return Pair(p, q, axis, p_classes or q_classes, p_rows or q_rows)


def _check_labels(what: str, first: Labels, second: Labels, mend: str) -> None:
    if first is None or second is None or first == second:
        return
    pairs = zip(first, second, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        found = f"P has {len(first):,}, Q {len(second):,}"
    else:
        found = f"number {place + 1} is {first[place]!r} in P, {second[place]!r} in Q"
    raise InputError(f"the {what} differ: {found}. {mend[0].upper()}{mend[1:]}")


def _align(p: Table, q: Table, axis: int, *, empty: float) -> tuple[Table, Table]:
    """Return both with the union of their classes, P's first, and Q's rows in P's order."""
    (p_classes, p_rows), (q_classes, q_rows) = _labels(p, axis), _labels(q, axis)
    if p_classes is None or q_classes is None:
        raise InputError(
            "--align needs labels of the classes in both files: a text column, or the header of a"
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
                f"row {odd!r} is in one file only. --align matches rows, never adds any"
            )
        where = {name: i for i, name in enumerate(q_rows)}
        q = replace(q, array=np.take(q.array, [where[name] for name in p_rows], axis=1 - axis))
        q_rows = p_rows
    return (
        _spread(p, axis, p_classes, p_rows, union, empty),
        _spread(q, axis, q_classes, q_rows, union, empty),
    )


def _check_distinct(name: str, labels: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise InputError(f"{name} has the label {label!r} twice. --align needs distinct ones")
        seen.add(label)


def _spread(
    table: Table,
    axis: int,
    classes: tuple[str, ...],
    rows: Labels,
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
