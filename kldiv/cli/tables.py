"""The options that commands share: how tables are read, as in `kldiv.readers.Reading`, pictures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from kldiv.cli.suggestions import Choice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kldiv.readers import Reading, Table

_SEPARATORS: Final = {"tab": "\t", "\\t": "\t", "blank": " ", "space": " "}

TABLES: Final = """\b
TABLES
  A question that a table leaves open is asked, never guessed. --labels COLUMN
  and --values COLUMN name columns (each may be given again; --labels '' for
  none), --sep, --decimal, --encoding, --comment and --no-header say how the
  text is written, --na zero or --na drop how a missing number counts. Numbers
  may have a decimal comma, thousands (1.234,5 or 1 234.5) and % signs.
"""

_OPTIONS: Final = (
    click.option("--key", metavar="NAME", help="The array or column of files without ::key."),
    click.option(
        "--max-bytes", type=click.IntRange(min=1), metavar="N", help="The largest array to accept."
    ),
    click.option("--labels", multiple=True, metavar="COLUMN", help="The column with the labels."),
    click.option("--values", multiple=True, metavar="COLUMN", help="The column with the numbers."),
    click.option("--sep", metavar="C", help="What separates cells: ';', '|', tab, blank, ..."),
    click.option("--decimal", metavar="C", help="The decimal mark: . or ,"),
    click.option("--encoding", metavar="NAME", help="Of the text: latin-1, cp1252, utf-16, ..."),
    click.option("--comment", metavar="TEXT", help="The start of lines to leave out; '' for none."),
    click.option(
        "--na",
        type=Choice(["zero", "drop"]),
        help="Take missing numbers as 0, or leave their classes out.",
    ),
    click.option(
        "--header/--no-header", default=None, help="Whether the first line names the columns."
    ),
)


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of tables."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def refuse(options: dict[str, Any], names: Iterable[str], why: str) -> None:
    """Refuse those of the options that were given: here they mean nothing."""
    ctx = click.get_current_context()
    known = {each.name: each for each in ctx.command.params}
    given = [
        known[name].opts[0]
        for name in names
        if options[name] not in {None, known[name].get_default(ctx)}
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)}: {why}")


def picture(module: str, name: str, path: str | None) -> Any:
    """Return the picture to draw to a file, if any, or say at once that it could not be drawn."""
    if path is None:
        return None
    try:
        made = getattr(import_module(f"kldiv.cli.{module}"), name)  # imports Matplotlib
    except ImportError as error:
        raise click.UsageError('--plot needs Matplotlib: pip install "kldiv[cli]"') from error
    return made(path)


def read_table(options: dict[str, Any], name: str, reading: Reading) -> Table:
    """Read the file that an option or argument of that name names."""
    from kldiv.readers import read  # noqa: PLC0415 - imported where a command runs

    return read(options[name], reading=reading, **part_of(options, name))


def part_of(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Return which array to take of a file, and of which size, as readers take it."""
    key = None if "::" in options[name] else options["key"]
    return {"key": key, "max_bytes": options["max_bytes"]}


def reading_of(options: dict[str, Any]) -> Reading:
    """Take these options out of all others, and return them as one."""
    from kldiv.cli.flags import in_flags  # noqa: PLC0415 - imported where a command runs
    from kldiv.errors import OptionError  # noqa: PLC0415
    from kldiv.readers import Reading  # noqa: PLC0415

    names = ("labels", "values", "sep", "decimal", "encoding", "comment", "na", "header")
    given = {name: options.pop(name) for name in names}
    for name in ("labels", "values"):
        given[name] = given[name] or None
    given["sep"] = _SEPARATORS.get(given["sep"], given["sep"])
    try:
        return Reading(**given)
    except OptionError as error:
        raise click.UsageError(in_flags(str(error))) from error
