"""``kldiv diagnose``: the common mistakes, looked for in two files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from kldiv.cli.suggestions import Choice
from kldiv.cli.tables import read_table, reading_of, table_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv.diagnosis import Diagnosis
    from kldiv.readers import Table

_STYLES: Final = {"error": "bold red", "warning": "bold yellow", "note": "bold"}
_FLOATS: Final = ("float16", "float32", "float64")


@click.command("diagnose", short_help="Look for the common mistakes in two files.")
@click.argument("p", type=click.Path())
@click.argument("q", type=click.Path())
@click.option(
    "--from",
    "form",
    type=Choice(["auto", "probs", "log-probs", "logits", "counts", "kl_div"]),
    default="auto",
    show_default=True,
    help="What the files hold, as in compare; kl_div: the arguments of kldiv.kl_div, P "
    "probabilities and Q log-probabilities.",
)
@click.option("--axis", default=-1, show_default=True, help="The axis that the classes lie on.")
@click.option("--log-target", is_flag=True, help="P holds log-probabilities, Q too.")
@table_options
@click.option("--strict", is_flag=True, help="Exit with 1 if something looks wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Look for the common mistakes in two files.

    The files are taken as compare takes them, and their content is made into the arguments of
    kldiv.kl_div: P is the target, Q the input.  With --from auto a file of whole numbers holds
    counts, one with negative numbers log-probabilities, and any other probabilities.  Each finding
    comes with its mend.
    """
    # Imported here, as these bring NumPy and rich.
    import json  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    import kldiv  # noqa: PLC0415

    reading = reading_of(options)
    tables = [read_table(options, name, reading) for name in ("p", "q")]
    _check_labels(*tables)
    form = "log-probs" if options["log_target"] else options["form"]
    target, source = (
        table.array if table.array.dtype.name in _FLOATS else table.array.astype("float64")
        for table in tables
    )
    log_target = form in {"log-probs", "logits"}
    if form == "auto" and (target < 0).any() and not (source < 0).any():
        form = "kl_div"  # swapped, as diagnose sees
    taken = ["", ""]
    with np.errstate(all="ignore"):
        if form != "kl_div":
            target, taken[0] = _prepared(target, form, options["axis"], log=log_target)
            source, taken[1] = _prepared(source, form, options["axis"], log=True)
    found = kldiv.diagnose(source, target, axis=options["axis"], log_target=log_target)
    if options["as_json"]:
        names = {name: options[name] for name in ("p", "q")}
        click.echo(json.dumps({**names, **found.to_dict()}, indent=2))
    else:
        _show(found, tables, taken)
    if options["strict"] and found:
        ctx.exit(1)


def _check_labels(p: Table, q: Table) -> None:
    """Say where classes have other names: they are looked at by their places."""
    for note in dict.fromkeys((*p.notes, *q.notes)):
        click.echo(f"note: {note}", err=True)
    if p.classes and q.classes and p.classes != q.classes:
        click.echo(
            "note: the labels of P and Q differ; diagnose goes by their places, compare --align by"
            " label",
            err=True,
        )


def _prepared(given: Any, form: str, axis: int, *, log: bool) -> tuple[Any, str]:
    """Return probabilities, or their logarithms, and the numbers of the file they were made of."""
    import numpy as np  # noqa: PLC0415 - see above

    array = given.astype(np.float64)  # sums of float16 end at 65504
    if form == "logits":
        array = array - array.max(axis=axis, keepdims=True)
        array -= np.log(np.exp(array).sum(axis=axis, keepdims=True))
        return array.astype(given.dtype), "logits"
    if form == "log-probs":
        return given, ""
    if form == "auto":
        if (array < 0).any():
            return given, ""  # as it stands: diagnose names its form
        whole = not (array != np.rint(array)).any()  # where NaN is no argument
        sums = array.sum(axis=axis)
        form = "counts" if whole and not (abs(sums - 1) < 1e-6).all() else "probs"
    if form == "counts":
        array = array / array.sum(axis=axis, keepdims=True)
    taken = "counts" if form == "counts" else "probabilities" if log else ""
    return (np.log(array) if log else array).astype(given.dtype), taken


def _show(found: Diagnosis, tables: Sequence[Table], taken: Sequence[str]) -> None:
    from rich.text import Text  # noqa: PLC0415 - see above

    from kldiv.cli.render import Page, dim, source  # noqa: PLC0415

    page = Page()
    rows = [
        (
            Text(role, style="bold"),
            source(table),
            dim(f"taken as {made}" if made else f"reads as {kind}"),
        )
        for role, table, kind, made in zip(
            ("target", "input"), tables, (found.target, found.input), taken, strict=True
        )
    ]
    page.table(rows, "<<<")
    if not found:
        page.line()
        page.line("Nothing looks wrong.")
    for finding in found.findings:
        page.line()
        page.line(Text(f"{finding.severity:<8}", style=_STYLES[finding.severity]), finding.code)
        page.paragraph(Text(" " * 8), finding.message)
        page.paragraph(dim("mend    "), finding.mend)
