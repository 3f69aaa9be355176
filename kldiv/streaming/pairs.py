"""All pairs of the distributions in files: read, matched by label, compared."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import kldiv
from kldiv._named import parsed
from kldiv.errors import DTypeError, InputError, OptionError, ShapeError
from kldiv.formulas.blocks import slices
from kldiv.readers import Table, read
from kldiv.readers.arrays import doubles, unmasked
from kldiv.streaming.alignment import align as aligned
from kldiv.streaming.alignment import without_missing, zero_for_missing
from kldiv.streaming.inputs import check_labels, is_whole
from kldiv.streaming.members import member
from kldiv.streaming.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from kldiv.streaming._types import Floats

_FAR: Final = 0.01  # how far from 1 sums of rounded probabilities are not
_STEP: Final = 10**8  # terms between two looks at the progress


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """
    Divergences of all pairs of distributions, made by `kldiv.streaming.pairwise`.

    Attributes
    ----------
    labels : tuple of str
        The names of the distributions: their own labels, after the file's where there are several.
    classes : int
        How many classes they have.
    divergences : dict
        A matrix of each divergence by its name, P in the row, Q in the column, in nats.
    warnings : tuple of str
        Assumptions and oddities, in sentences.
    """

    labels: tuple[str, ...]
    classes: int
    divergences: dict[str, Floats]
    warnings: tuple[str, ...]


def pairwise(
    *sources: Any,
    divergences: str | Sequence[str] = "kl",
    generalized: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Pairs:
    """
    Compare every distribution in some arrays or files with every other.

    Classes are matched by their labels, where the files have labels. Everything is read into
    memory, as float64.

    Parameters
    ----------
    *sources : array, path or Table
        Matrices, of which each row is a distribution, and single distributions; as `compare` takes
        them.
    divergences : str or sequence of str, default "kl"
        Their names: those of `kldiv.pairwise`, of logits also "jeffreys:1,0.5".
    generalized : bool, default False
        Whether to take probabilities that do not sum to 1 as they are; by default that is an error.
    progress : callable, optional
        Called with the number of rows done and of all rows.
    **options
        ``form``, ``axis``, ``normalize``, ``smoothing``, ``align``, ``fold``, ``key``,
        ``max_bytes`` and ``reading`` of `compare`. ``axis=0`` takes a matrix's columns as
        distributions.

    Returns
    -------
    Pairs
        The names of the distributions, and a matrix of each divergence.

    Raises
    ------
    InputError
        A file cannot be read, holds no such numbers, or classes that differ; or there is one
        distribution only.
    ShapeError, DTypeError, LibraryError
        An array has more than two axes, no real numbers, or a mask.
    OptionError
        An option with a value that it does not take.

    See Also
    --------
    kldiv.pairwise : Of arrays of any library, differentiable.
    compare : Two files, with the classes that contribute the most.

    Examples
    --------
    >>> from kldiv import streaming
    >>> found = streaming.pairwise([[3, 1], [1, 1]], [4, 4], form="counts", divergences="tv")
    >>> found.labels
    ('1::0', '1::1', '2')
    >>> found.divergences["tv"].tolist()
    [[0.0, 0.25, 0.25], [0.25, 0.0, 0.0], [0.25, 0.0, 0.0]]
    """
    checked = Options(**options)
    texts = [divergences] if isinstance(divergences, str) else [*divergences]
    for text in texts:  # before any file is read
        parsed(text)
        _matrix(np.ones((1, 1)), text, checked, None)
    names = [
        str(s) if isinstance(s, str | os.PathLike) else str(i) for i, s in enumerate(sources, 1)
    ]
    tables = [_rows_of(*each, checked) for each in zip(sources, names, strict=True)]
    labels = _labels(tables, names)
    rows, notes = _joined(tables, names, checked)
    if len(labels) < 2:
        raise InputError(
            f"{names[0]} holds one distribution: there are no pairs. Name more files; of a table"
            " the rows are distributions, and axis=0 takes its columns"
        )
    array = rows.array
    if checked.logarithmic:
        _check_logits(array, labels, checked)
    else:
        guessed = [checked.form == "auto" and is_whole(table.array) for table in tables]
        counts = [each or checked.form == "counts" or checked.normalize for each in guessed]
        normalize = np.repeat(counts, [len(table.array) for table in tables])
        array = _probabilities(array, labels, checked, normalize, generalized=generalized)
        if any(guessed) and not checked.normalize:
            which = [name for name, each in zip(names, guessed, strict=True) if each]
            said = "all files" if len(which) == len(names) > 1 else ", ".join(which)
            notes.append(
                f"{said}: read as counts (all numbers are whole) and divided by their totals;"
                " form='counts' or normalize=True says so and silences this"
            )
    matrices = {text: _matrix(array, text, checked, progress) for text in texts}
    return Pairs(labels, array.shape[1], matrices, (*notes, *_infinite(matrices)))


# --- reading --------------------------------------------------------------------------------------


def _rows_of(given: Any, name: str, options: Options) -> Table:
    """Return an array or a file as rows of distributions."""
    if isinstance(given, str | os.PathLike):
        key, limit = options.key_of(given), options.max_bytes
        table = read(given, key=key, max_bytes=limit, reading=options.reading)
    else:
        table = given if isinstance(given, Table) else Table(given)
    array = unmasked(name, table.array)
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{name} has dtype {array.dtype}: expected booleans, integers or floats")
    if array.ndim not in {1, 2} or not array.size:
        raise ShapeError(
            f"{name} has shape {array.shape}: pairs are taken of the rows of a matrix. Give one"
            " with two axes, and at least one number"
        )
    array = doubles(name, array)
    if options.reading.na == "zero":
        array = zero_for_missing(array)
    if array.ndim == 1:
        return replace(table, array=array[None, :], rows=None)
    if options.axis not in {-2, -1, 0, 1}:
        raise ShapeError(f"axis={options.axis} does not exist in shape {array.shape}: -2 to 1 do")
    if options.axis in {0, -2}:
        return replace(table, array=array.T, rows=table.classes, classes=table.rows)
    return replace(table, array=array)


def _labels(tables: Sequence[Table], names: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each distribution: its label, after its file where there are several."""
    places = [tuple(map(str, range(len(table.array)))) for table in tables]
    if len(tables) == 1:
        return tables[0].rows or places[0]
    parts = [name.partition("::") for name in names]
    members = [member for _, _, member in parts]
    short = [
        name if member or path == "-" else Path(path).name.split(".")[0] or path
        for name, (path, _, member) in zip(names, parts, strict=True)
    ]
    if all(members) and len({*members}) == len(members):  # columns that go by their own names
        short = members
    elif len({*short}) < len(short):
        short = list(names)
    found: list[str] = []
    for name, table, numbers in zip(short, tables, places, strict=True):
        own = table.rows or numbers
        found += [name] if len(own) == 1 else [f"{name}::{each}" for each in own]
    return tuple(found)


def _joined(
    tables: Sequence[Table], names: Sequence[str], options: Options
) -> tuple[Table, list[str]]:
    """Return all distributions as one table, their classes matched by label where that is asked."""
    notes = [note for table in tables for note in table.notes]
    every = replace(tables[0], rows=None)
    empty = -math.inf if options.logarithmic else 0.0
    for table, name in zip(tables[1:], names[1:], strict=True):
        other = replace(table, rows=None)
        if options.align:
            try:
                (every, other), remarks = aligned(every, other, 1, empty=empty, fold=options.fold)
            except InputError as error:
                raise InputError(f"{error} (Q is {name}, P all before it)") from error
            notes += [f"{name}: {each}" for each in remarks]
        else:
            _check_classes(every, other, names[0], name)
        array = np.concatenate([every.array, other.array])
        every = replace(every, array=array, classes=every.classes or other.classes)
    if options.reading.na == "drop":
        (every, _), dropped = without_missing(every, every, 1)
        notes += dropped
    return every, list(dict.fromkeys(notes))


def _check_classes(p: Table, q: Table, first: str, other: str) -> None:
    if p.edges is not None and q.edges is not None and not np.array_equal(p.edges, q.edges):
        raise InputError(f"the bins of {first} and {other} differ: count both in the same ones")
    check_labels("classes", p.classes, q.classes, (first, other))
    sizes = p.array.shape[1], q.array.shape[1]
    if sizes[0] != sizes[1]:
        raise ShapeError(
            f"{first} has {sizes[0]:,} classes, {other} {sizes[1]:,}: all must have the same."
            " align=True matches classes by label where files have labels"
        )


# --- numbers --------------------------------------------------------------------------------------


def _refuse(array: Floats, labels: Sequence[str], wrong: NDArray[np.bool_], why: str) -> None:
    """Raise where a number is wrong."""
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        if np.isnan(array[row, place]):
            why = "it is missing. na='zero' takes missing numbers as 0, na='drop' leaves their"
            why += " classes out"
        raise InputError(f"{labels[row]} has {array[row, place]:g}: {why}")


def _refuse_rows(labels: Sequence[str], wrong: NDArray[np.bool_], why: str) -> None:
    """Raise where a row is wrong."""
    if wrong.any():
        raise InputError(f"{labels[int(np.argmax(wrong))]} {why}")


def _probabilities(
    array: Floats,
    labels: Sequence[str],
    options: Options,
    normalize: NDArray[np.bool_],
    *,
    generalized: bool,
) -> Floats:
    """Return probabilities, some rows normalised; refuse numbers that cannot be probabilities."""
    why = "probabilities and counts are finite and not negative; form='logits' takes scores"
    _refuse(array, labels, ~((array >= 0) & (array < math.inf)), why)
    if options.smoothing and not normalize.all():
        raise OptionError("`smoothing` changes the sum of probabilities: say normalize=True too")
    if array.shape[1] == 1 and normalize.any():
        raise ShapeError(
            f"{labels[0]} and others have one class, whose share is 1 in every one: there is"
            " nothing to compare. axis=0 takes columns as distributions"
        )
    array = array + options.smoothing
    with np.errstate(over="ignore"):
        sums = array.sum(axis=1)
    _refuse_rows(labels, normalize & (sums == 0), "has no probability anywhere: it sums to 0")
    why = "sums to more than the largest number there is. Divide its numbers by 1e9 first"
    _refuse_rows(labels, normalize & (sums == math.inf), why)
    array[normalize] /= sums[normalize, None]
    far = int(np.argmax(np.where(normalize, 0.0, abs(sums - 1.0))))
    if not (normalize[far] or generalized) and abs(sums[far] - 1.0) > _FAR:
        raise InputError(
            f"{labels[far]} sums to {sums[far]:.6g}, not to 1. normalize=True divides each"
            " distribution by its sum; generalized=True takes the numbers as they are, in the"
            " generalised divergence"
        )
    return array


def _check_logits(array: Floats, labels: Sequence[str], options: Options) -> None:
    _refuse(array, labels, ~(array < math.inf), "logits are numbers below inf")
    nothing = (array == -math.inf).all(axis=1)
    _refuse_rows(labels, nothing, "has no probability anywhere: all its numbers are -inf")
    if options.form == "log-probs" and not options.normalize:
        sums = np.exp(array).sum(axis=1)
        far = int(np.argmax(abs(sums - 1.0)))
        if abs(sums[far] - 1.0) > _FAR:
            raise InputError(
                f"exp({labels[far]}) sums to {sums[far]:.6g}, not to 1. normalize=True divides each"
                " distribution by its sum; form='logits' takes them as scores"
            )


def _matrix(
    rows: Floats, text: str, options: Options, progress: Callable[[int, int], None] | None
) -> Floats:
    """Return the divergences of all pairs, some rows at a time."""
    count, classes = rows.shape
    found = np.empty((count, count))
    loss = member(text) if options.logarithmic else None
    for some in slices(count, max(1, _STEP // (count * classes)) if loss is None else 1):
        if loss is None:
            found[some] = kldiv.pairwise(rows[some], rows, divergence=text)
        else:
            found[some] = loss(rows, np.broadcast_to(rows[some], rows.shape), reduction="none")
        if progress is not None:
            progress(some.stop, count)
    return found


def _infinite(matrices: dict[str, Floats]) -> list[str]:
    found = []
    for text, matrix in matrices.items():
        count = int(np.isinf(matrix).sum())
        if count:
            pairs = len(matrix) * (len(matrix) - 1)
            found.append(
                f"{count:,} of {pairs:,} pairs have an infinite {text}: one has a class that the"
                " other lacks. smoothing=0.5 adds to every class, and js is finite"
            )
    return found
