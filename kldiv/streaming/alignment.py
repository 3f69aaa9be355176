"""Classes and rows of two tables, matched by their labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import InputError
from kldiv.frames import folded
from kldiv.readers import Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kldiv.readers import Table
    from kldiv.streaming._types import Names

NAMED: Final = 8  # labels that a message names


def labels_of(table: Table, axis: int) -> tuple[Names, Names]:
    """Return the labels of the classes and of the rows."""
    if table.array.ndim == 1:
        return table.classes, None
    return (table.rows, table.classes) if axis == 0 else (table.classes, table.rows)


def align(
    p: Table, q: Table, axis: int, *, empty: float, fold: bool | None
) -> tuple[tuple[Table, Table], list[str]]:
    """Return both with the union of their classes, P's first, and Q's rows in P's order.

    The sentences say which labels are in one file only.
    """
    p, q = (
        replace(each, array=each.array[each.array.whole])
        if isinstance(each.array, Stored)
        else each
        for each in (p, q)
    )
    (p_classes, p_rows), (q_classes, q_rows) = labels_of(p, axis), labels_of(q, axis)
    if p_classes is None or q_classes is None:
        raise InputError(
            "`align` needs labels of the classes in both files: a text column, the header of a"
            " matrix, or labels='column'"
        )
    _check_distinct("P", p_classes)
    _check_distinct("Q", q_classes)
    q_classes = _matched(p_classes, q_classes, fold=fold)
    within = set(p_classes).issuperset(q_classes)
    union = p_classes if within else tuple(dict.fromkeys(p_classes + q_classes))
    if p_rows is not None and q_rows is not None and p_rows != q_rows:
        _check_distinct("P", p_rows)
        _check_distinct("Q", q_rows)
        q_rows = _matched(p_rows, q_rows, fold=fold)
        if set(p_rows) != set(q_rows):
            odd = min(set(p_rows) ^ set(q_rows))
            raise InputError(
                f"row {odd!r} is in one file only. `align` matches rows, never adds any"
            )
        where = {name: i for i, name in enumerate(q_rows)}
        q = replace(q, array=np.take(q.array, [where[name] for name in p_rows], axis=1 - axis))
        q_rows = p_rows
    tables = (
        _widened(p, axis, p_classes, p_rows, union, empty),
        _widened(q, axis, q_classes, q_rows, union, empty),
    )
    return tables, _lacking(p_classes, q_classes)


def _lacking(p: tuple[str, ...], q: tuple[str, ...]) -> list[str]:
    """Say which labels one side lacks; refuse sides that share none."""
    sets = set(p), set(q)
    if sets[0].isdisjoint(sets[1]):
        raise InputError(
            f"no label is in both files: P has {_listed(p)}, Q {_listed(q)}. Check which column"
            " holds the labels; labels='column' chooses it"
        )
    found = []
    for name, own, ours, names in (("Q", p, *sets), ("P", q, *sets[::-1])):
        if not ours <= names:
            absent = [label for label in own if label not in names]
            lack = "lacks 1 label" if len(absent) == 1 else f"lacks {len(absent):,} labels"
            found.append(f"{name} {lack} of the other, {_listed(absent)}: taken as empty there")
    return found


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else ""
    return ", ".join(map(repr, labels[:NAMED])) + more


def _matched(p: tuple[str, ...], q: tuple[str, ...], *, fold: bool | None) -> tuple[str, ...]:
    """Return Q's labels, those spelled as in P that are the same label in other letters."""
    if fold is False:
        return q
    if fold:
        known = _by_folded("P", p)
        spelled = {label: known.get(key, label) for key, label in _by_folded("Q", q).items()}
        return tuple(spelled[label] for label in q)
    names, others = set(p), set(q)
    if others <= names:
        return q
    known = {folded(label): label for label in p if label not in others}
    for label in q:
        if label not in names and folded(label) in known:
            raise InputError(
                f"{known[folded(label)]!r} in P and {label!r} in Q differ by case, blanks, Unicode"
                " form or the spelling of a number alone: fold=True matches such labels,"
                " fold=False keeps them apart"
            )
    return q


def _by_folded(name: str, labels: tuple[str, ...]) -> dict[str, str]:
    """Return labels by their `folded` form; refuse two with the same one."""
    found: dict[str, str] = {}
    for label in labels:
        one = found.setdefault(folded(label), label)
        if one is not label:
            raise InputError(
                f"{name} has {one!r} and {label!r}, which `fold` makes one label."
                " fold=False keeps them apart"
            )
    return found


def without_missing(p: Table, q: Table, axis: int) -> tuple[tuple[Table, Table], list[str]]:
    """Return both without the classes of which a number is missing in either."""
    if any(isinstance(each.array, Stored) for each in (p, q)):
        return (p, q), []
    lost = _holes(p, axis) | _holes(q, axis)
    if not lost.any():
        return (p, q), []
    keep = np.flatnonzero(~lost)
    if not len(keep):
        raise InputError("every class lacks a number: nothing is left to compare")
    names = labels_of(p, axis)[0] or labels_of(q, axis)[0] or tuple(map(str, range(len(lost))))
    gone = _listed([names[i] for i in np.flatnonzero(lost)])
    tables = _taken(p, axis, keep), _taken(q, axis, keep)
    noun = "class is" if len(lost) - len(keep) == 1 else "classes are"
    return tables, [
        f"{len(lost) - len(keep):,} {noun} left out of both, as a number is missing: {gone}"
    ]


def _holes(table: Table, axis: int) -> NDArray[np.bool_]:
    """Return the classes of which a number is missing."""
    missing = np.isnan(np.moveaxis(table.array, axis, -1))
    return np.asarray(missing.reshape(-1, missing.shape[-1]).any(axis=0))


def _taken(table: Table, axis: int, keep: NDArray[Any]) -> Table:
    classes, _ = labels_of(table, axis)
    names = None if classes is None else tuple(classes[i] for i in keep)
    array = np.take(table.array, keep, axis=axis)
    if table.array.ndim > 1 and axis == 0:
        return replace(table, array=array, rows=names)
    edges = None if table.edges is None else table.edges[keep]
    return replace(table, array=array, classes=names, edges=edges)


def rebinned(p: Table, q: Table) -> tuple[Table, Table]:
    """Return two histograms with common edges; a bin is spread evenly over its parts."""
    if p.edges is None or q.edges is None:
        raise InputError(
            "`rebin` needs the edges of bins in both files: columns low and high, or the two that"
            " `labels` names"
        )
    edges = np.unique(np.concatenate([p.edges, q.edges], axis=None))
    low, high = edges[:-1], edges[1:]
    tables = []
    shares = [_shares(each.edges, low, high) for each in (p, q)]
    used = shares[0].any(axis=0) | shares[1].any(axis=0)  # no gaps between bins
    names = tuple(f"{a:g}–{b:g}" for a, b in zip(low[used], high[used], strict=True))
    for each, share in zip((p, q), shares, strict=True):
        parts = np.stack([low[used], high[used]], axis=1)
        values = np.asarray(each.array, np.float64) @ share[:, used]
        tables.append(replace(each, array=values, classes=names, edges=parts))
    return tables[0], tables[1]


def _shares(bins: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    """Return which share of each bin lies in each of the parts."""
    inside = (low >= bins[:, :1]) & (high <= bins[:, 1:])
    return np.where(inside, (high - low) / (bins[:, 1:] - bins[:, :1]), 0.0)


def _check_distinct(name: str, labels: tuple[str, ...]) -> None:
    if len(set(labels)) == len(labels):
        return
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
    if classes == union:
        array = np.array(table.array, np.float64)
    else:
        array = np.full(shape, empty)
        where = dict(zip(union, range(len(union)), strict=True))
        index: list[Any] = [slice(None)] * len(shape)
        index[axis] = list(map(where.__getitem__, classes))
        array[tuple(index)] = table.array
    if len(shape) > 1 and axis == 0:
        return replace(table, array=array, rows=union, classes=rows, edges=None)
    return replace(table, array=array, classes=union, rows=rows, edges=None)
