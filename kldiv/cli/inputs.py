"""Two files as one pair of arrays: equal shapes, equal labels, and what they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from kldiv.cli.arithmetic import Linear, Logarithmic
from kldiv.cli.blocks import Blocks
from kldiv.errors import InputError, OptionError, ShapeError
from kldiv.readers import read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv.cli.arithmetic import Floats, Scale
    from kldiv.cli.blocks import Index, Progress
    from kldiv.cli.compare import Form, Request
    from kldiv.readers import Table

    Labels = tuple[str, ...] | None

_LOGARITHMS: Final = ("log-probs", "logits")


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
        shape = self.p.array.shape
        return shape[: self.axis] + shape[self.axis + 1 :]

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
                f"{name} has shape {table.array.shape}: no distributions to compare. Give an array with"
                " at least one number"
            )
    axis = _axis(request.axis, p, q)
    if request.align:
        p, q = _align(p, q, axis, empty=-math.inf if request.form in _LOGARITHMS else 0.0)
    return _paired(p, q, axis)


def _read(spec: str, request: Request) -> Table:
    own = "::" in spec
    table = read(spec, key=None if own else request.key, max_bytes=request.max_bytes)
    # A single number is one class; Table is frozen, and what follows counts axes.
    return table if table.array.ndim else replace(table, array=table.array.reshape(1))


def _axis(axis: int, p: Table, q: Table) -> int:
    shapes = p.array.shape, q.array.shape
    if len(shapes[0]) != len(shapes[1]):
        raise ShapeError(
            f"P has shape {shapes[0]}, Q {shapes[1]}: both must have the same. Take a column or array"
            " by file::key"
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
            "--align needs labels of the classes in both files: a text column, or the header of a matrix"
        )
    union = tuple(dict.fromkeys(p_classes + q_classes))
    _check_distinct("P", p_classes)
    _check_distinct("Q", q_classes)
    if p_rows is not None and q_rows is not None and p_rows != q_rows:
        _check_distinct("P", p_rows)
        _check_distinct("Q", q_rows)
        if set(p_rows) != set(q_rows):
            odd = sorted(set(p_rows) ^ set(q_rows))[0]
            raise InputError(f"row {odd!r} is in one file only. --align matches rows, never adds any")
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


def _spread(  # noqa: PLR0913, PLR0917 - one table in its parts
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
    swapped = len(shape) > 1 and axis == 0
    named: dict[str, Labels] = (
        {"rows": union, "classes": rows} if swapped else {"classes": union, "rows": rows}
    )
    return replace(table, array=array, **named)


# --- what they hold -------------------------------------------------------------------------------


@dataclass(slots=True)
class Scan:
    """What one pass over an array tells: its totals, and what is odd about it."""

    totals: Floats
    whole: bool = True
    negative: int = 0
    first_negative: tuple[int, ...] = ()
    undefined: int = 0
    first_undefined: tuple[int, ...] = ()


def scan(array: NDArray[Any], axis: int, scale: Scale, progress: Progress) -> Scan:
    """Look at every number once, a block at a time."""
    shape = array.shape[:axis] + array.shape[axis + 1 :]
    found = Scan(np.full(shape, scale.empty))
    linear = isinstance(scale, Linear)
    for _, group in Blocks(array, axis):
        for index in group:
            raw = array[index]
            values = scale.read(raw)
            rows = index[:axis] + index[axis + 1 :]
            found.totals[rows] = scale.merge(found.totals[rows], scale.total(values, axis))
            if linear:
                _look(found, raw, index)
            odd = np.isnan(values) | (values == np.inf)
            if odd.any():
                found.first_undefined = found.first_undefined or _first(odd, index)
                found.undefined += int(np.count_nonzero(odd))
            progress.advance()
    return found


def _look(found: Scan, raw: NDArray[Any], index: Index) -> None:
    """Notice negative numbers, and numbers that no count can be."""
    negative = raw < 0
    if negative.any():
        found.first_negative = found.first_negative or _first(negative, index)
        found.negative += int(np.count_nonzero(negative))
    if found.whole and raw.dtype.kind == "f":
        found.whole = bool(np.all((raw == np.floor(raw)) | np.isnan(raw)))


def _first(mask: NDArray[np.bool_], index: Index) -> tuple[int, ...]:
    place = np.unravel_index(int(np.argmax(mask)), mask.shape)
    return tuple(int(i) + part.start for i, part in zip(place, index, strict=True))


@dataclass(frozen=True, slots=True)
class Distribution:
    """One of the two: an array, what it holds, and its totals."""

    name: str
    table: Table
    form: Form
    normalized: bool
    guessed: bool
    scan: Scan

    @property
    def tolerance(self) -> float:
        """How far from 1 a sum of probabilities may be by rounding."""
        dtype = self.table.array.dtype
        return max(1e-6, math.sqrt(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0)

    def sums(self, scale: Scale) -> Floats:
        """Return what the probabilities of each row sum to, as they stand in the file."""
        return scale.probabilities(self.scan.totals)

    def off(self, scale: Scale) -> NDArray[np.bool_]:
        """Return which rows do not sum to 1; a NaN is another matter."""
        return np.asarray(np.abs(self.sums(scale) - 1.0) > self.tolerance)


def scale_of(request: Request) -> Scale:
    """Return how the numbers stand for probabilities; refuse options that do not fit it."""
    if request.form not in _LOGARITHMS:
        if request.smoothing and request.form == "probs" and not request.normalize:
            raise click.UsageError(_SMOOTHING)
        return Linear(request.smoothing)
    if request.smoothing:
        raise click.UsageError(f"--smoothing adds to counts or probabilities, not to {request.form}")
    return Logarithmic()


_SMOOTHING: Final = "--smoothing changes the sum of probabilities: say --normalize too"


def settle(name: str, table: Table, found: Scan, request: Request, pair: Pair) -> Distribution:
    """Decide what an array holds, and whether it is to be normalised."""
    if found.negative:
        kind = "counts" if request.form == "counts" else "probabilities"
        raise InputError(
            f"{name} ({table.path}) has {found.negative:,} negative numbers, the first at"
            f" {pair.place(found.first_negative)}: no {kind}. For logarithms or scores say --from"
            " log-probs or --from logits"
        )
    guessed = request.form == "auto"
    form = request.form
    if guessed:
        raw_sums = found.totals - request.smoothing * pair.size
        counts = found.whole and bool(np.any(raw_sums != 1.0))
        form = "counts" if counts else "probs"
    normalized = request.normalize or form in {"counts", "logits"}
    if request.smoothing and not normalized:
        raise OptionError(f"{name} holds probabilities, not counts: {_SMOOTHING}")
    return Distribution(name, table, form, normalized, guessed, found)
