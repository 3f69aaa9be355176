"""``kldiv compare --pairwise``: all pairs of the distributions in one file or several."""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
from rich.text import Text

import kldiv
from kldiv import streaming
from kldiv.cli.flags import in_flags
from kldiv.cli.json_output import print_json
from kldiv.cli.progress import Progress
from kldiv.cli.render import Page, clean, column, dim, print_notes
from kldiv.cli.report import is_information
from kldiv.cli.tables import picture, refuse
from kldiv.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from kldiv.streaming import Pairs

    Floats = NDArray[np.float64]

_UNUSED: Final = (
    *("rebin", "checkpoint", "scheduler", "quantization", "next_tokens", "hidden", "weight"),
    *("weight_q", "bins", "reduction"),
)


def show(options: dict[str, Any], files: Sequence[str]) -> None:
    """Print the divergences of all pairs."""
    _check(options, files)
    drawn = picture("pair_plot", "PairPlot", options["plot"])
    names = "form", "axis", "normalize", "smoothing", "align", "fold", "key", "max_bytes", "reading"
    with Progress() as progress:
        try:
            found = streaming.pairwise(
                *files,
                divergences=options["divergences"] or "kl",
                generalized=options["generalized"],
                progress=progress.reach,
                **{name: options[name] for name in names},
            )
        except OptionError as error:
            raise click.UsageError(in_flags(str(error))) from error
    if drawn is not None:
        drawn.draw(found)
    if options["as_json"]:
        print_json(_to_dict(found, files))
    elif options["as_csv"]:
        _print_csv(found)
    else:
        _print(found, files, options["top"])
    sys.stdout.flush()
    print_notes(map(in_flags, found.warnings))


def _check(options: dict[str, Any], files: Sequence[str]) -> None:
    refuse(options, _UNUSED, "not with --pairwise")
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


# --- printing -------------------------------------------------------------------------------------


def _units(text: str) -> str | None:
    return "nats" if is_information(text) else None


def _to_dict(found: Pairs, files: Sequence[str]) -> dict[str, Any]:
    return {
        "labels": list(found.labels),
        "classes": found.classes,
        "divergences": {
            text: {"matrix": matrix.tolist(), "units": _units(text)}
            for text, matrix in found.divergences.items()
        },
        "files": list(files),
        "version": kldiv.__version__,
        "warnings": [in_flags(text) for text in found.warnings],
    }


def _print_csv(found: Pairs) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    several = len(found.divergences) > 1
    writer.writerow([*(["divergence"] if several else []), "", *found.labels])
    for text, matrix in found.divergences.items():
        for name, values in zip(found.labels, matrix.tolist(), strict=True):
            writer.writerow([*([text] if several else []), name, *map(repr, values)])


def _print(found: Pairs, files: Sequence[str], top: int) -> None:
    page = Page()
    where = clean(files[0]) if len(files) == 1 else f"{len(files):,} files"
    page.line(f"{len(found.labels):,} distributions of {found.classes:,} classes in {where}")
    for text, matrix in found.divergences.items():
        units = _units(text)
        page.head(f"{text}, P in the row, Q in the column{f', in {units}' if units else ''}")
        _print_matrix(page, found.labels, matrix, top)


def _print_matrix(page: Page, names: Sequence[str], matrix: Floats, top: int) -> None:
    """Print a matrix where it fits, else the pairs that are furthest apart, and closest."""
    labels = [page.label(each) for each in names]
    if len(labels) < page.width // 3 and _fits(page, labels, matrix):
        return
    symmetric = np.array_equal(matrix, matrix.T)
    shown = (
        np.triu(np.ones(matrix.shape, bool), 1) if symmetric else ~np.eye(len(labels), dtype=bool)
    )
    places = np.argwhere(shown)
    places = places[np.argsort(-matrix[shown], kind="stable")]
    half = max(1, top // 2) if top else len(places)
    for words, some in (("furthest apart", places[:half]), ("closest", places[::-1][:half])):
        page.line(dim(words))
        numbers = column(matrix[tuple(some.T)].tolist(), digits=4)
        pairs = [(labels[i], labels[j], each) for (i, j), each in zip(some, numbers, strict=True)]
        page.table(pairs, "<<>", ("P", "Q", ""))
        if len(places) <= half:
            return
    page.line(dim("--csv and --json print the whole matrix"))


def _fits(page: Page, labels: Sequence[str], matrix: Floats) -> bool:
    """Print a matrix, unless it is wider than the page."""
    cells = np.array(column(matrix.ravel().tolist(), digits=4)).reshape(matrix.shape)
    widths = [
        max(len(label), *map(len, own)) + 2 for label, own in zip(labels, cells.T, strict=True)
    ]
    if max(map(len, labels)) + sum(widths) > page.width:
        return False
    rows = []
    for i, (label, own) in enumerate(zip(labels, cells, strict=True)):
        values = [Text(each, style="dim" if i == j else "") for j, each in enumerate(own)]
        rows.append([Text(label, style="bold"), *values])
    page.table(rows, "<" + ">" * len(labels), ("", *labels))
    return True
