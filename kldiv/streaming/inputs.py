"""P and Q, arrays or files, as one pair of equal shapes and labels."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from operator import eq
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import DTypeError, InputError, LibraryError, OptionError, ShapeError
from kldiv.frames import folded
from kldiv.readers import Stored, Table, open_table, read
from kldiv.readers.arrays import doubles, unmasked
from kldiv.streaming.alignment import (
    align,
    in_memory,
    labels_of,
    rebinned,
    without_missing,
    zero_for_missing,
)
from kldiv.streaming.places import Places

if TYPE_CHECKING:
    from kldiv.streaming._types import Names
    from kldiv.streaming.options import Options

_TOTAL: Final = {
    *("", "total", "totals", "sum", "all", "overall", "grand total", "gesamt", "summe"),
    *("insgesamt", "somme", "total général", "total general", "suma", "soma", "totale"),
    *("totaal", "итого", "合计"),
}
"""Names of a class that may be the sum of all others."""
_MANY: Final = 1 << 16  # classes, among which nobody looks for a total
_ROUNDED: Final = 1e-3  # of a total, by rounding of its terms


@dataclass(frozen=True, slots=True)
class Pair:
    """P and Q, of one shape, and the labels that they share."""

    tables: tuple[Table, Table]
    places: Places
    notes: tuple[str, ...] = ()
    """The decisions about labels and columns, in sentences."""
    whole: tuple[bool | None, bool | None] = (None, None)
    """Whether the numbers were whole before bins were divided; None where none were."""
    next_tokens: Any = None
    """The class that follows each row in a text, where a report on that is wanted."""

    @property
    def limited(self) -> tuple[bool, bool]:
        """Whether classes of −∞ in P and in Q are below the range of a base file, and unknown."""
        first, second = (table.next_tokens is not None for table in self.tables)
        return first, second

    @property
    def declared(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of both."""
        return tuple((table.array.shape, str(table.array.dtype)) for table in self.tables)


def open_pair(p: Any, q: Any, options: Options, next_tokens: Any = None) -> Pair:
    """Open both; refuse those that cannot be compared."""
    tables = _open(p, "P", options), _open(q, "Q", options)
    axis = _axis(options.axis, *tables)
    notes = [note for table in tables for note in table.notes]
    whole: tuple[bool | None, bool | None] = (None, None)
    if options.rebin:
        whole = is_whole(tables[0].array), is_whole(tables[1].array)
        tables = rebinned(*tables)
    for name, table in zip("PQ", tables, strict=True):
        if options.reading.labels is None:
            _check_total(name, table)
    if options.align:
        empty = -np.inf if options.logarithmic else 0.0
        tables, remarks = align(*tables, axis, empty=empty, fold=options.fold)
        notes += remarks
    pair = _paired(*tables, axis)
    if not options.align:
        notes += _twice(pair.places.classes)
    if options.reading.na == "drop":
        tables, dropped = without_missing(*tables, axis)
        pair, notes = _paired(*tables, axis), notes + dropped
    if next_tokens is not None and not options.quantization:
        raise OptionError("`next_tokens` is for the report: say quantization=True too")
    tokens = _next_tokens(next_tokens, pair, options) if options.quantization else None
    return replace(pair, notes=tuple(dict.fromkeys(notes)), whole=whole, next_tokens=tokens)


def _next_tokens(given: Any, pair: Pair, options: Options) -> Any:
    """Return the next token of each row, as it is given or as base files have it."""
    places = pair.places
    if given is None:
        known = [t.next_tokens for t in pair.tables if t.next_tokens is not None]
        if len(known) == 2 and not np.array_equal(*known):
            raise InputError(
                "P and Q are base files of different texts: their tokens differ. Write both from"
                " one text with the same context"
            )
        tokens = known[0].reshape(places.shape) if known else None
    elif isinstance(given, str | os.PathLike):
        tokens = read(given, max_bytes=options.max_bytes).array
    else:
        tokens = unmasked("`next_tokens`", given)
    if tokens is None:
        return None
    if tokens.shape != places.shape:
        raise ShapeError(
            f"`next_tokens` has shape {tokens.shape}: expected {places.shape}, the class that"
            " follows each row, negative where none does"
        )
    if tokens.dtype.kind not in "iu" and not (
        tokens.dtype.kind == "f" and np.isfinite(tokens).all() and is_whole(tokens)
    ):
        raise DTypeError(f"`next_tokens` has dtype {tokens.dtype}: expected whole numbers")
    if tokens.max() >= places.size:
        raise InputError(
            f"`next_tokens` has {int(tokens.max()):,}, but there are {places.size:,} classes"
        )
    return tokens


def is_whole(array: Any) -> bool:
    """Return whether all numbers are whole; a missing one is no argument."""
    return bool(np.all((array == np.rint(array)) | np.isnan(array)))


def _open(given: Any, name: str, options: Options) -> Table:
    if isinstance(given, str | os.PathLike):
        table = open_table(
            given,
            key=options.key_of(given),
            max_bytes=options.max_bytes,
            shard_axis=options.shard_axis,
            reading=options.reading,
        )
    else:
        table = given if isinstance(given, Table) else Table(given)
    array = table.array
    if isinstance(array, np.ma.MaskedArray) or not isinstance(array, np.ndarray | Stored):
        raise LibraryError(
            f"{name} is a {type(array).__module__}.{type(array).__qualname__}: expected a NumPy"
            " array, a memory map, or the path of a file. Give numpy.asarray of it, or save it"
        )
    if array.dtype.kind not in "biuf":
        raise DTypeError(
            f"{name} has dtype {array.dtype}: expected booleans, integers or floats. Convert it,"
            " say by .astype('float32')"
        )
    if not array.size:
        raise ShapeError(
            f"{name} has shape {array.shape}: no distributions to compare. Give an array with at"
            " least one number"
        )
    if array.dtype.itemsize > np.dtype(np.float64).itemsize:
        table = in_memory(table)
        table = replace(table, array=doubles(name, table.array))
    if options.reading.na == "zero" and array.dtype.kind == "f":
        table = in_memory(table)
        table = replace(table, array=zero_for_missing(table.array))
    # A single number is one class; Table is frozen, and the rest counts axes.
    return table if array.ndim else replace(table, array=table.array.reshape(1))


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
            f"axis={axis} does not exist in shape {shapes[0]}: {-size} to {size - 1} do"
        )
    return axis % size


def _paired(p: Table, q: Table, axis: int) -> Pair:
    if p.edges is not None and q.edges is not None and not np.array_equal(p.edges, q.edges):
        _refuse_bins(p, q)
    (p_classes, p_rows), (q_classes, q_rows) = labels_of(p, axis), labels_of(q, axis)
    check_labels("classes", p_classes, q_classes)
    check_labels("rows", p_rows, q_rows)
    if p.array.shape != q.array.shape:
        raise ShapeError(
            f"P has shape {p.array.shape}, Q {q.array.shape}: both must have the same. Nothing is"
            " padded or broadcast; align=True matches classes by label where files have labels"
        )
    return Pair((p, q), Places(p.array.shape, axis, p_classes or q_classes, p_rows or q_rows))


def _twice(classes: Names) -> list[str]:
    """Say that a label is there twice, and taken as two classes."""
    if classes is None or len(set(classes)) == len(classes):
        return []
    label, count = Counter(classes).most_common(1)[0]
    return [f"{count:,} classes are {label!r}, each by itself: add their numbers if they are one"]


def _refuse_bins(p: Table, q: Table) -> None:
    """Refuse bins that differ, unless they are the same in another order."""
    bins = [sorted(map(tuple, each.edges.tolist())) for each in (p, q)]
    if bins[0] == bins[1]:
        return
    both = zip(*bins, strict=False)
    one, other = next((pair for pair in both if pair[0] != pair[1]), (bins[0][-1], bins[1][-1]))
    shown = [f"{low:g}–{high:g}" for low, high in (one, other)]
    raise InputError(
        f"the bins differ: P has {shown[0]}, Q {shown[1]}. rebin=True spreads both evenly within"
        " their bins over the common edges"
    )


def _check_total(name: str, table: Table) -> None:
    """Refuse a class that is the sum of all others by its name and its number."""
    array, labels = table.array, table.classes
    if labels is None or not isinstance(array, np.ndarray) or not 2 < len(labels) <= _MANY:
        return
    place = next((i for i, each in enumerate(labels) if folded(each) in _TOTAL), None)
    if place is None:
        return
    total = array[..., place].astype(float)
    others = array.sum(axis=-1, dtype=float) - total
    if np.all(np.abs(others - total) <= _ROUNDED * np.abs(total)) and total.any():
        mend = "take it out"
        if array.ndim == 1 and labels[place]:
            mend += f", of a text file by comment={labels[place]!r}"
        raise InputError(
            f"{name}'s class {labels[place]!r} is the sum of all others, which it would count"
            f" twice: {mend}. It stays where `labels` names the column of labels"
        )


def check_labels(
    kind: str, first: Names, second: Names, names: tuple[str, str] = ("P", "Q")
) -> None:
    """Refuse labels that differ, and name the first that do."""
    if first is None or second is None or first == second:
        return
    pairs = zip(first, second, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        found = f"{names[0]} has {len(first):,}, {names[1]} {len(second):,}"
    else:
        each = f"{first[place]!r} in {names[0]}, {second[place]!r} in {names[1]}"
        found = f"number {place + 1} is {each}"
    hint = ""
    if len(first) == len(second) and all(map(eq, map(folded, first), map(folded, second))):
        hint = ", align=True, fold=True whatever their case, blanks and Unicode form"
    raise InputError(
        f"the {kind} differ: {found}. align=True matches them by label{hint}; labels='' compares by"
        " position"
    )
