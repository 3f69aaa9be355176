"""``kldiv compare --pairwise``: all pairs of the distributions in one file or several."""

from __future__ import annotations

import csv
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
from rich.text import Text

import kldiv
from kldiv._named import is_information, parsed
from kldiv.cli.flags import in_flags
from kldiv.cli.json_output import print_json
from kldiv.cli.progress import Progress
from kldiv.cli.render import Page, clean, column, source
from kldiv.errors import InputError, KLDivError, OptionError
from kldiv.formulas.blocks import slices
from kldiv.readers import Table, read
from kldiv.streaming.alignment import align, without_missing
from kldiv.streaming.members import member

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_UNUSED: Final = {
    "rebin": False, "checkpoint": None, "scheduler": None, "quantization": False,
    "next_tokens": None, "hidden": False, "weight": None, "weight_q": None, "bins": None,
    "reduction": "mean",
}  # fmt: skip
_FAR: Final = 0.01  # how far from 1 sums of rounded probabilities are not
_STEP: Final = 10**8  # terms between two looks at the progress
_LOGARITHMIC: Final = {"logits", "log-probs"}


@dataclass(frozen=True, slots=True)
class Pairs:
    """Distributions, their names, and a matrix of each divergence, P in the row."""

    names: tuple[str, ...]
    classes: int
    matrices: dict[str, Floats]
    notes: tuple[str, ...]


def show(options: dict[str, Any], files: Sequence[str]) -> None:
    """Print the divergences of all pairs."""
    _check(options, files)
    draw = None if options["plot"] is None else _plotter(options["plot"])
    try:
        found = _compared(options, files)
    except OptionError as error:
        raise click.UsageError(in_flags(str(error))) from error
    except KLDivError as error:
        raise KLDivError(in_flags(str(error))) from error
    if draw is not None:
        draw(found)
    if options["as_json"]:
        print_json(_to_dict(found, files))
    elif options["as_csv"]:
        _print_csv(found)
    else:
        _print(found, files, options["top"])
    sys.stdout.flush()
    page = Page(stderr=True)
    for text in found.notes:
        page.paragraph(Text("note: ", style="bold yellow"), in_flags(text))


def _check(options: dict[str, Any], files: Sequence[str]) -> None:
    for name, default in _UNUSED.items():
        if options[name] != default:
            raise click.UsageError(f"--{name.replace('_', '-')}: not with --pairwise")
    if list(files).count("-") > 1:
        raise click.UsageError("one file alone can be standard input (-)")
    if options["form"] == "samples":
        raise click.UsageError(
            "--pairwise compares distributions, not samples: count them first, or compare two files"
            " --from samples"
        )
    if options["as_json"] and options["as_csv"]:
        raise click.UsageError("--json and --csv: choose one")
    if options["plot"] and len(options["divergences"] or ()) > 1:
        raise click.UsageError("--plot draws one matrix: name one --divergence")
    if options["smoothing"] and options["form"] in _LOGARITHMIC:
        raise click.UsageError(f"--smoothing adds to counts, not to {options['form']}")


def _plotter(path: str) -> Callable[[Pairs], None]:
    """Return the function that draws, or say at once that it could not."""
    try:
        from kldiv.cli.pair_plot import PairPlot  # noqa: PLC0415 - imports Matplotlib
    except ImportError as error:
        raise click.UsageError('--plot needs Matplotlib: pip install "kldiv[cli]"') from error
    return PairPlot(path).draw


# --- reading --------------------------------------------------------------------------------------


def _compared(options: dict[str, Any], files: Sequence[str]) -> Pairs:
    texts = [text.strip() for text in options["divergences"] or ("kl",)]
    for text in texts:
        parsed(text)  # before any file is read
    tables = [_rows_of(each, options) for each in files]
    names = _names(tables, files)
    form = options["form"]
    rows, notes = _joined(tables, files, options)
    if len(names) < 2:
        raise InputError(
            f"{files[0]} holds one distribution: there are no pairs. Name more files; of a table"
            " the rows are distributions, and axis=0 takes its columns"
        )
    if form in _LOGARITHMIC:
        _check_logits(rows.array, names, options)
    else:
        guessed = [form == "auto" and _whole(table.array) for table in tables]
        counts = [each or form == "counts" or options["normalize"] for each in guessed]
        normalize = np.repeat(counts, [len(table.array) for table in tables])
        rows = replace(rows, array=_probabilities(rows.array, names, options, normalize))
        if any(guessed) and not options["normalize"]:
            which = [path for path, each in zip(files, guessed, strict=True) if each]
            said = "all files" if len(which) == len(files) > 1 else ", ".join(which)
            notes.append(
                f"{said}: read as counts (all numbers are whole) and divided by their totals;"
                " form='counts' or normalize=True says so and silences this"
            )
    with Progress() as progress:
        matrices = {
            text: _matrix(rows.array, text, progress, logits=form in _LOGARITHMIC) for text in texts
        }
    return Pairs(names, rows.array.shape[1], matrices, (*notes, *_infinite(matrices)))


def _rows_of(spec: str, options: dict[str, Any]) -> Table:
    """Read a file as rows of distributions."""
    table = read(
        spec,
        key=None if "::" in spec else options["key"],
        max_bytes=options["max_bytes"],
        reading=options["reading"],
    )
    array = np.asarray(table.array)
    if array.dtype.kind not in "biuf" or not array.size:
        raise InputError(f"{spec}: expected numbers, got shape {array.shape} of {array.dtype}")
    array = array.astype(np.float64)
    if array.ndim == 1:
        return replace(table, array=array[None, :], rows=None)
    if array.ndim != 2:
        raise InputError(
            f"{spec} has shape {array.shape}: pairs are taken of the rows of a matrix. Save it"
            " reshaped to two axes"
        )
    if options["axis"] not in {-2, -1, 0, 1}:
        raise OptionError(f"axis={options['axis']} does not exist in shape {array.shape}")
    if options["axis"] in {0, -2}:
        return replace(table, array=array.T, rows=table.classes, classes=table.rows)
    return replace(table, array=array)


def _names(tables: Sequence[Table], files: Sequence[str]) -> tuple[str, ...]:
    """Return the name of each distribution: its label, after its file where there are several."""
    if len(files) == 1:
        count = len(tables[0].array)
        return tables[0].rows or tuple(map(str, range(count)))
    bare = [
        path if path == "-" or member else Path(path).name.split(".")[0] or path
        for path, _, member in (each.partition("::") for each in files)
    ]
    # A column of a file that others come from too goes by its own name.
    members = [each.partition("::")[2] for each in files]
    if all(members) and len({*members}) == len(members):
        bare = members
    elif len({*bare}) < len(bare):
        bare = list(files)
    names: list[str] = []
    for name, table in zip(bare, tables, strict=True):
        own = table.rows or tuple(map(str, range(len(table.array))))
        names += [name] if len(table.array) == 1 else [f"{name}::{each}" for each in own]
    return tuple(names)


def _joined(
    tables: Sequence[Table], files: Sequence[str], options: dict[str, Any]
) -> tuple[Table, list[str]]:
    """Return all distributions as one table, their classes matched by label where that is asked."""
    notes = [note for table in tables for note in table.notes]
    every = replace(tables[0], rows=None)
    empty = -math.inf if options["form"] in _LOGARITHMIC else 0.0
    if options["fold"] is not None and not options["align"]:
        raise OptionError("`fold` is how labels are matched: say align=True too")
    for table, path in zip(tables[1:], files[1:], strict=True):
        other = replace(table, rows=None)
        if options["align"]:
            try:
                pair, remarks = align(every, other, 1, empty=empty, fold=options["fold"])
            except InputError as error:
                text = f"{error} (Q is {path}, P the files before it)"
                raise InputError(text) from error
            every, other = pair
            notes += [f"{path}: {each}" for each in remarks]
        else:
            _check_classes(every, other, files[0], path)
        every = replace(
            every,
            array=np.concatenate([every.array, other.array]),
            classes=every.classes or other.classes,
        )
    if options["reading"].na == "drop":
        (every, _), dropped = without_missing(every, every, 1)
        notes += dropped
    return every, list(dict.fromkeys(notes))


def _check_classes(p: Table, q: Table, first: str, other: str) -> None:
    if p.edges is not None and q.edges is not None and not np.array_equal(p.edges, q.edges):
        raise InputError(f"the bins of {first} and {other} differ: count both in the same ones")
    if p.classes is not None and q.classes is not None and p.classes != q.classes:
        both = zip(p.classes, q.classes, strict=False)
        odd = next((i for i, (a, b) in enumerate(both) if a != b), None)
        found = (
            f"{first} has {len(p.classes):,}, {other} {len(q.classes):,}"
            if odd is None
            else f"number {odd + 1} is {p.classes[odd]!r} in {first}, {q.classes[odd]!r} in {other}"
        )
        raise InputError(
            f"the classes differ: {found}. align=True matches them by label; labels='' compares by"
            " position"
        )
    if p.array.shape[1] != q.array.shape[1]:
        raise InputError(
            f"{first} has {p.array.shape[1]:,} classes, {other} {q.array.shape[1]:,}: all must have"
            " the same. align=True matches classes by label where files have labels"
        )


# --- numbers --------------------------------------------------------------------------------------


def _whole(array: Floats) -> bool:
    return bool(np.all(array == np.rint(array)))


def _check_finite(array: Floats, names: Sequence[str], wrong: NDArray[np.bool_], what: str) -> None:
    bad = np.flatnonzero(wrong.any(axis=1))
    if len(bad):
        value = array[bad[0]][wrong[bad[0]]][0]
        raise InputError(f"{names[bad[0]]} has {value:g}: {what}")


def _probabilities(
    array: Floats, names: Sequence[str], options: dict[str, Any], normalize: NDArray[np.bool_]
) -> Floats:
    """Return probabilities, some rows normalised; refuse what are none."""
    what = "probabilities and counts are finite and not negative; form='logits' takes scores"
    _check_finite(array, names, ~((array >= 0) & (array < math.inf)), what)
    if options["smoothing"] and not normalize.all():
        raise OptionError("`smoothing` changes the sum of probabilities: say normalize=True too")
    array = array + options["smoothing"]
    sums = array.sum(axis=1)
    nothing = np.flatnonzero(normalize & (sums == 0))
    if len(nothing):
        raise InputError(f"{names[nothing[0]]} has no probability anywhere: it sums to 0")
    array[normalize] /= sums[normalize, None]
    sums[normalize] = 1.0
    far = int(np.argmax(abs(sums - 1.0)))
    if abs(sums[far] - 1.0) > _FAR and not options["generalized"]:
        raise InputError(
            f"{names[far]} sums to {sums[far]:.6g}, not to 1. normalize=True divides each"
            " distribution by its sum; --generalized takes the numbers as they are, in the"
            " generalised divergence"
        )
    return array


def _check_logits(array: Floats, names: Sequence[str], options: dict[str, Any]) -> None:
    _check_finite(array, names, ~(array < math.inf), "logits are numbers below inf")
    if options["form"] == "log-probs" and not options["normalize"]:
        sums = np.exp(array).sum(axis=1)
        far = int(np.argmax(abs(sums - 1.0)))
        if abs(sums[far] - 1.0) > _FAR:
            raise InputError(
                f"exp({names[far]}) sums to {sums[far]:.6g}, not to 1. normalize=True divides each"
                " distribution by its sum; form='logits' takes them as scores"
            )


def _matrix(rows: Floats, text: str, progress: Progress, *, logits: bool) -> Floats:
    """Return the divergences of all pairs, some rows at a time."""
    count, classes = rows.shape
    found = np.empty((count, count))
    loss = member(text)[1] if logits else None
    for some in slices(count, 1 if logits else max(1, _STEP // (count * classes))):
        if loss is None:
            found[some] = kldiv.pairwise(rows[some], rows, divergence=text)
        else:
            own = np.broadcast_to(rows[some], rows.shape)
            found[some] = loss(rows, own, reduction="none")
        progress.reach(some.stop, count)
    return found


def _infinite(matrices: dict[str, Floats]) -> list[str]:
    found = []
    for text, matrix in matrices.items():
        count = int(np.isinf(matrix).sum())
        if count:
            pairs = len(matrix) * (len(matrix) - 1)
            found.append(
                f"{count:,} of {pairs:,} pairs have an infinite {text}: one has a class that the"
                " other lacks. --smoothing A adds to every class, and --divergence js is finite"
            )
    return found


# --- printing -------------------------------------------------------------------------------------


def units_of(text: str) -> str | None:
    """Return the unit of a divergence of that name, if it has one."""
    return "nats" if is_information(parsed(text)[0]) else None


def _to_dict(found: Pairs, files: Sequence[str]) -> dict[str, Any]:
    return {
        "labels": list(found.names),
        "classes": found.classes,
        "divergences": {
            text: {"matrix": matrix.tolist(), "units": units_of(text)}
            for text, matrix in found.matrices.items()
        },
        "files": list(files),
        "version": kldiv.__version__,
        "warnings": [in_flags(text) for text in found.notes],
    }


def _print_csv(found: Pairs) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    several = len(found.matrices) > 1
    writer.writerow([*(["divergence"] if several else []), "", *found.names])
    for text, matrix in found.matrices.items():
        for name, values in zip(found.names, matrix.tolist(), strict=True):
            writer.writerow([*([text] if several else []), name, *map(repr, values)])


def _print(found: Pairs, files: Sequence[str], top: int) -> None:
    page = Page()
    where = clean(files[0]) if len(files) == 1 else f"{len(files):,} files"
    page.line(f"{len(found.names):,} distributions of {found.classes:,} classes in {where}")
    for text, matrix in found.matrices.items():
        units = units_of(text)
        page.line()
        head = f"{text}, P in the row, Q in the column{f', in {units}' if units else ''}"
        page.line(Text(head, style="bold"))
        _print_matrix(page, found.names, matrix, top)


def _print_matrix(page: Page, names: Sequence[str], matrix: Floats, top: int) -> None:
    """Print a matrix where it fits, else the pairs that are furthest apart, and closest."""
    labels = [page.label(each) for each in names]
    cells = np.array(column(matrix.ravel().tolist(), digits=4)).reshape(matrix.shape)
    widths = [
        max(len(label), *map(len, own)) + 2 for label, own in zip(labels, cells.T, strict=True)
    ]
    if max(map(len, labels)) + sum(widths) <= page.width:
        rows: list[list[str | Text]] = [["", *(Text(each, style="dim") for each in labels)]]
        for i, (label, own) in enumerate(zip(labels, cells, strict=True)):
            values = [Text(each, style="dim" if i == j else "") for j, each in enumerate(own)]
            rows.append([Text(label, style="bold"), *values])
        page.table(rows, "<" + ">" * len(labels))
        return
    places = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    if np.array_equal(matrix, matrix.T):
        places = [(i, j) for i, j in places if i < j]
    places.sort(key=lambda place: -matrix[place])
    half = max(1, top // 2) if top else len(places)
    head = [Text(each, style="dim") for each in ("P", "Q", "")]
    for words, some in (("furthest apart", places[:half]), ("closest", places[::-1][:half])):
        page.line(Text(words, style="dim"))
        values = column([float(matrix[place]) for place in some], digits=4)
        own = [[labels[i], labels[j], value] for (i, j), value in zip(some, values, strict=True)]
        page.table([head, *own], "<<>")
        if len(places) <= half:
            return
    page.line(Text("--csv and --json print the whole matrix", style="dim"))
