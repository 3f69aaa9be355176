"""Classes and rows of two tables, matched by their labels."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat
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
_FEW: Final = 1000  # labels, for which nothing need be fast
# Factors of a label's words, odd, of which the first leaves a single word as it is.
_ODD: Final = np.array([pow(0x9E3779B97F4A7C15, i, 1 << 64) for i in range(4)], np.uint64)


def in_memory(table: Table) -> Table:
    """Return a table whose array is read, if it stayed on disk."""
    array = table.array
    return replace(table, array=array[array.whole]) if isinstance(array, Stored) else table


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
    p, q = in_memory(p), in_memory(q)
    (p_classes, p_rows), (q_classes, q_rows) = labels_of(p, axis), labels_of(q, axis)
    if p_classes is None or q_classes is None:
        raise InputError(
            "`align` needs labels of the classes in both files: a text column, the header of a"
            " matrix, or labels='column'"
        )
    if fold:
        q_classes = _respelled(p_classes, q_classes)
    found = _found(p_classes, q_classes)
    if fold is None:
        _check_spelling(p_classes, q_classes, found)
    if p_rows is not None and q_rows is not None and p_rows != q_rows:
        q = replace(q, array=np.take(q.array, _order(p_rows, q_rows, fold=fold), axis=1 - axis))
        q_rows = p_rows
    added = tuple(q_classes[i] for i in np.flatnonzero(found < 0))
    found[found < 0] = np.arange(len(p_classes), len(p_classes) + len(added))
    notes = _lacking(p_classes, q_classes, found)
    union = p_classes + added if added else p_classes
    tables = (
        _widened(p, axis, np.arange(len(p_classes)), p_rows, union, empty),
        _widened(q, axis, found, q_rows, union, empty),
    )
    return tables, notes


def _order(p_rows: tuple[str, ...], q_rows: tuple[str, ...], *, fold: bool | None) -> NDArray[Any]:
    """Return where Q has each of P's rows."""
    if fold:
        q_rows = _respelled(p_rows, q_rows)
    found = _found(p_rows, q_rows)
    if fold is None:
        _check_spelling(p_rows, q_rows, found)
    if set(p_rows) != set(q_rows):
        odd = min(set(p_rows) ^ set(q_rows))
        raise InputError(f"row {odd!r} is in one file only. `align` matches rows, never adds any")
    return np.argsort(found)


def _found(p: tuple[str, ...], q: tuple[str, ...]) -> NDArray[np.intp]:
    """Return the places of Q's labels among P's, -1 of those that it lacks.

    A label that is there twice is refused. Labels that are short are sorted as numbers: a look into
    a dict of a million goes to that many places in memory, which takes twice as long.
    """
    words = _words(p + q) if p else None
    if words is not None:
        keys = words @ _ODD[: words.shape[1], None]
        own, others = keys[: len(p), 0], keys[len(p) :, 0]
        order, other = np.argsort(own), np.argsort(others)
        own, others = own[order], others[other]
        if not ((own[1:] == own[:-1]).any() or (others[1:] == others[:-1]).any()):
            place = order[np.minimum(np.searchsorted(own, others), len(p) - 1)]
            same = (words[place] == words[len(p) :][other]).all(axis=1)
            found = np.empty(len(q), np.intp)
            found[other] = np.where(same, place, -1)
            return found
    where = _places("P", p)
    _places("Q", q)
    return np.fromiter(map(where.get, q, repeat(-1)), np.intp, len(q))


def _words(labels: tuple[str, ...]) -> NDArray[np.uint64] | None:
    """Return labels as rows of numbers, equal where they are; None where that is no help."""
    if len(labels) < _FEW or "\0" in "".join(labels):
        return None
    cells: Sequence[str | bytes] = labels
    if not all(map(str.isascii, labels)):
        cells = [label.encode("utf-8", "surrogatepass") for label in labels]
    width = -(-max(map(len, cells)) // 8) * 8
    if not 0 < width <= 8 * len(_ODD):
        return None
    return np.array(cells, f"S{width}").view(np.uint64).reshape(len(labels), -1)


def _places(name: str, labels: tuple[str, ...]) -> dict[str, int]:
    """Return where each label is; refuse one that is there twice."""
    where = dict(zip(labels, range(len(labels)), strict=True))
    if len(where) < len(labels):
        label = next(label for i, label in enumerate(labels) if where[label] != i)
        raise InputError(f"{name} has the label {label!r} twice. `align` needs distinct ones")
    return where


def _lacking(p: tuple[str, ...], q: tuple[str, ...], found: NDArray[np.intp]) -> list[str]:
    """Say which labels one side lacks; refuse sides that share none."""
    filled = np.zeros(max(len(p), int(found.max(initial=-1)) + 1), bool)
    filled[found] = True
    if not filled[: len(p)].any():
        raise InputError(
            f"no label is in both files: P has {_listed(p)}, Q {_listed(q)}. Check which column"
            " holds the labels; labels='column' chooses it"
        )
    notes = []
    for name, own, absent in (("Q", p, ~filled[: len(p)]), ("P", q, found >= len(p))):
        labels = [own[i] for i in np.flatnonzero(absent)]
        if labels:
            lack = "lacks 1 label" if len(labels) == 1 else f"lacks {len(labels):,} labels"
            notes.append(f"{name} {lack} of the other, {_listed(labels)}: taken as empty there")
    return notes


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else ""
    return ", ".join(map(repr, labels[:NAMED])) + more or "none"


def _respelled(p: tuple[str, ...], q: tuple[str, ...]) -> tuple[str, ...]:
    """Return Q's labels as P spells them."""
    known = _by_folded("P", p)
    spelled = {label: known.get(key, label) for key, label in _by_folded("Q", q).items()}
    return tuple(spelled[label] for label in q)


def _check_spelling(p: tuple[str, ...], q: tuple[str, ...], found: NDArray[np.intp]) -> None:
    """Ask whether labels of one side alone, which differ in their letters' form, are the same."""
    added = np.flatnonzero(found < 0)
    alone = np.ones(len(p), bool)
    alone[found[found >= 0]] = False
    lost = np.flatnonzero(alone)
    _check_blanks("P", p, lost)
    _check_blanks("Q", q, added)
    if not len(added):
        return
    known = {folded(p[i]): p[i] for i in lost}
    for label in (q[i] for i in added):
        if folded(label) in known:
            raise InputError(
                f"{known[folded(label)]!r} in P and {label!r} in Q differ by case, blanks, Unicode"
                " form or the spelling of a number alone: fold=True matches such labels,"
                " fold=False keeps them apart"
            )


def _check_blanks(name: str, labels: tuple[str, ...], alone: NDArray[np.intp]) -> None:
    """Ask whether a label that one side alone has is another label of that side, and a blank."""
    spare = [(label, label.strip()) for label in (labels[i] for i in alone)]
    spare = [(label, bare) for label, bare in spare if label != bare]
    if spare:
        known = set(labels)
        for label, bare in spare:
            if bare in known:
                raise InputError(
                    f"{name} has {bare!r} and {label!r}, which differ by blanks alone, and the"
                    " other side lacks the latter: make them one, or fold=False keeps them apart"
                )


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
    p, q = in_memory(p), in_memory(q)
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


def zero_for_missing(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array with 0 in place of NaN."""
    return np.asarray(np.nan_to_num(array, posinf=np.inf, neginf=-np.inf))


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


def _widened(
    table: Table, axis: int, places: NDArray[Any], rows: Names, union: tuple[str, ...], empty: float
) -> Table:
    """Return a table with its classes at their places in ``union``, ``empty`` elsewhere."""
    shape = list(table.array.shape)
    shape[axis] = len(union)
    array = np.full(shape, empty)
    array[(slice(None),) * axis + (places,)] = table.array
    if len(shape) > 1 and axis == 0:
        return replace(table, array=array, rows=union, classes=rows, edges=None)
    return replace(table, array=array, classes=union, rows=rows, edges=None)
