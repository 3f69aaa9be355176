"""``kldiv fit``: which family of distributions describes the numbers in a file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from kldiv.cli.suggestions import Choice
from kldiv.cli.tables import picture, read_table, reading_of, table_options
from kldiv.errors import ShapeError

if TYPE_CHECKING:
    from kldiv.fitting import Fit, Ranking
    from kldiv.readers import Table

EPILOG: Final = """\b
WHAT IT PRINTS
  behind  how much less likely new data are under the family than under the
          best one, in nats a point, with its standard error; by
          cross-validation
  KL      the divergence from the data to the fit, in nats, with its interval
          of 95 %; "none seen" where the estimate is below 0, which no
          divergence is (--json has the number)

\b
EXAMPLES
  kldiv fit wind.csv
  kldiv fit table.csv::height --families Normal,LogNormal,Gamma --plot fit.png
"""


_PRINTED: Final = ("family", "parameters", "score", "behind", "behind_error")
_LISTED: Final = 8
"""How many columns an error names."""


@click.command("fit", epilog=EPILOG, short_help="Rank the distributions that describe data.")
@click.argument("data", type=click.Path())
@click.option("--families", metavar="A,B", help="The families to try; by default all that can be.")
@click.option(
    "--kind",
    type=Choice(["auto", "continuous", "counts"]),
    default="auto",
    show_default=True,
    help="What the numbers are; auto takes whole numbers from 0 for counts where each occurs twice "
    "on average.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    default=5,
    show_default=True,
    metavar="N",
    help="Parts for cross-validation.",
)
@click.option("--seed", default=0, show_default=True, help="Of the random parts.")
@table_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Draw data and the best fits to a .png, .svg or .pdf.",
)
def command(**options: Any) -> None:
    """Rank the families of distributions that describe the numbers in a file.

    Each family is fitted by maximum likelihood, and judged by points that it was not fitted to.
    """
    # Imported here, as these bring NumPy, SciPy and rich.
    import numpy as np  # noqa: PLC0415

    from kldiv import fitting  # noqa: PLC0415
    from kldiv.cli.progress import Progress  # noqa: PLC0415

    reading = reading_of(options)
    if reading.labels is None:
        reading = replace(reading, labels="")  # a column of numbers is data
    drawn = picture("fit_plot", "FitPlot", options["plot"])
    table = read_table(options, "data", reading)
    numbers = _one_list(table)
    families = options["families"]
    names = [name.strip() for name in families.split(",")] if families else None
    numbers = numbers[~np.isnan(numbers)] if reading.na == "drop" else numbers
    with Progress("Fitting") as progress:
        found = fitting.rank(
            numbers,
            names,
            kind=options["kind"],
            folds=options["folds"],
            seed=options["seed"],
            progress=progress.reach,
        )
    if drawn is not None:
        drawn.draw(found, table)
    if options["as_json"]:
        _print_json(found, options["data"])
    else:
        _print(found, table)


def _one_list(table: Table) -> Any:
    """Return the numbers of a table that has one column of them, or raise with the names."""
    shape = table.array.shape
    if table.array.size == max(shape, default=1):
        return table.array.ravel()
    if table.classes is None or len(shape) != 2:
        raise ShapeError(
            f"{table.path} has numbers of shape {shape}; kldiv fit takes one list of numbers"
        )
    from kldiv.cli.render import clean  # noqa: PLC0415 - see above

    names = [clean(name) for name in table.classes]
    listed = ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
    raise ShapeError(
        f"{table.path} has {len(names)} columns of numbers, {listed}; kldiv fit takes one: "
        f"{table.path}::{names[0]}"
    )


def _print_json(found: Ranking, path: str) -> None:
    from kldiv.cli.json_output import print_json  # noqa: PLC0415 - see above

    fits = [
        {**{name: getattr(fit, name) for name in _PRINTED}, "kl": fit.kl._asdict()}
        for fit in found.fits
    ]
    report = {
        "data": path,
        "kind": found.kind,
        "samples": found.samples,
        "confidence": found.confidence,
        "units": "nats",
        "fits": fits,
        "warnings": list(found.warnings),
    }
    print_json(report)


def _print(found: Ranking, table: Table) -> None:
    from rich.text import Text  # noqa: PLC0415 - see above

    from kldiv.cli.render import Page, print_notes, source  # noqa: PLC0415

    page = Page()
    page.line(Text("data", style="bold"), f"  {source(table)}  {found.taken_for}")
    page.line()
    divergence, level = f"KL(data{page.glyphs.parallel}fit)", f"{100 * found.confidence:g} % from"
    head = ("family", "behind", "", divergence, level, "to", "")
    page.table([_row(fit, best=fit is found.best) for fit in found.fits], "<>>>>><", head)
    print_notes(found.warnings, apart=True)


def _row(fit: Fit, *, best: bool) -> list[Any]:
    from rich.text import Text  # noqa: PLC0415 - see above

    from kldiv.cli.render import dim  # noqa: PLC0415

    numbers = ", ".join(f"{name}={value:.5g}" for name, value in fit.parameters.items())
    behind = f"{fit.behind:.4f}"
    error = "" if best or fit.behind_error != fit.behind_error else f"±{fit.behind_error:.4f}"
    kl = (
        "none seen" if fit.kl.value < 0 else f"{fit.kl.value:.4f}",
        *(f"{max(number, 0.0):.4f}" for number in (fit.kl.low, fit.kl.high)),
    )
    name = Text(fit.family, style="bold" if best else "")
    return [name, behind, error, *kl, dim(numbers)]
