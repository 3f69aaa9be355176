"""``kldiv diagnose``: the common mistakes, looked for in two files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from kldiv.diagnosis import Diagnosis
    from kldiv.readers import Table

_STYLES: Final = {"error": "bold red", "warning": "bold yellow", "note": "bold"}
_FLOATS: Final = ("float16", "float32", "float64")


@click.command("diagnose", short_help="Look for the common mistakes in two files.")
@click.argument("p", type=click.Path())
@click.argument("q", type=click.Path())
@click.option("--axis", default=-1, show_default=True, help="The axis that the classes lie on.")
@click.option("--log-target", is_flag=True, help="P holds log-probabilities.")
@click.option("--key", metavar="NAME", help="The array to take from files without ::key.")
@click.option(
    "--max-bytes", type=click.IntRange(min=1), metavar="N", help="The largest array to accept."
)
@click.option("--strict", is_flag=True, help="Exit with 1 if something looks wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Look for the common mistakes in two files.

    The files are taken as the arguments of kldiv.kl_div: P holds the target, which are
    probabilities, and Q the input, which are log-probabilities.  Each finding comes with its mend.
    """
    # Imported here, as these bring NumPy and rich.
    import json  # noqa: PLC0415

    import kldiv  # noqa: PLC0415
    from kldiv.readers import read  # noqa: PLC0415

    tables = [
        read(
            options[name],
            key=None if "::" in options[name] else options["key"],
            max_bytes=options["max_bytes"],
        )
        for name in ("p", "q")
    ]
    target, source = (
        table.array if table.array.dtype.name in _FLOATS else table.array.astype("float64")
        for table in tables
    )
    found = kldiv.diagnose(source, target, axis=options["axis"], log_target=options["log_target"])
    if options["as_json"]:
        names = {name: options[name] for name in ("p", "q")}
        click.echo(json.dumps({**names, **found.to_dict()}, indent=2))
    else:
        _show(found, *tables)
    if options["strict"] and found:
        ctx.exit(1)


def _show(found: Diagnosis, p: Table, q: Table) -> None:
    from rich.text import Text  # noqa: PLC0415 - see above

    from kldiv.cli.render import Page, source  # noqa: PLC0415

    page = Page()
    rows: list[list[str | Text]] = [
        [Text(role, style="bold"), source(table), Text(f"reads as {kind}", style="dim")]
        for role, table, kind in (("target", p, found.target), ("input", q, found.input))
    ]
    page.table(rows, "<<<")
    if not found:
        page.line()
        page.line("Nothing looks wrong.")
    for finding in found.findings:
        page.line()
        page.line(Text(f"{finding.severity:<8}", style=_STYLES[finding.severity]), finding.code)
        page.paragraph(Text(" " * 8), finding.message)
        page.paragraph(Text("mend    ", style="dim"), finding.mend)
