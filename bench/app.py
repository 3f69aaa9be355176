"""The command: ``run``, ``compare``, ``report`` and ``gpu-check``.

Only click is imported here, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .harness.cells import Request

_INTERRUPTED = 130


class BadInput(click.ClickException):
    """Input that cannot be read, compared or measured; 1 is for cells that became slower."""

    exit_code = 4


_FILE = click.Path(dir_okay=False, path_type=Path)
_RESULTS = click.Path(exists=True, dir_okay=False, path_type=Path)


class Shape(click.ParamType):
    """Rows and classes, as in 1024x32000."""

    name = "ROWSxCLASSES"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        """Return the two numbers."""
        if isinstance(value, tuple):
            return value
        rows, _, classes = value.lower().replace("×", "x").partition("x")
        if not (rows.isdecimal() and classes.isdecimal() and int(rows) and int(classes)):
            self.fail(f"{value!r} is not two numbers as in 1024x32000", param, ctx)
        return int(rows), int(classes)


@click.group(
    "bench",
    short_help="Measure speed, memory and accuracy beside other libraries.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def app() -> None:
    """Measure which library, device and kernel is fastest here, and how right each one is."""


@app.command()
@click.option("--quick", is_flag=True, help="The main operations in small; at most a minute.")
@click.option("--op", "operations", multiple=True, metavar="NAME", help="An operation to measure.")
@click.option("--backend", "libraries", multiple=True, metavar="NAME", help="A library of kldiv's.")
@click.option("--kernel", "kernels", multiple=True, metavar="NAME", help="A kernel of kldiv's.")
@click.option(
    "--peer", "peers", multiple=True, metavar="NAME", help="A peer, or part of its name; or none."
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    metavar="NAME",
    help="float32, float64, bfloat16 or float16.",
)
@click.option("--shape", "shapes", multiple=True, type=Shape(), help="Rows and classes.")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    type=click.Choice(["value", "gradient"]),
    help="Value, or value and gradient; both by default.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0), help="Of rounds for each group of cells.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out", type=_FILE, default="kldiv-bench.json", show_default=True, help="The results file."
)
@click.option("--resume", is_flag=True, help="Measure only what the results file lacks.")
def run(**options: Any) -> None:
    """Measure, and write a results file.

    Every option but the last five may be given several times. Progress goes to stderr; the file is
    written after every group of cells, so an interrupted run goes on with --resume.
    """
    from .harness import records
    from .report import show

    console = _console()
    try:
        found = _run(options)
    except (records.ResultsError, LookupError) as error:
        raise BadInput(str(error)) from error
    except KeyboardInterrupt:
        click.echo(f"interrupted; go on with --resume --out {options['out']}", err=True)
        sys.exit(_INTERRUPTED)
    show.run(found, console)
    click.echo(f"written to {options['out']}", err=True)


def _run(options: dict[str, Any]) -> dict[str, Any]:
    from dataclasses import replace

    from .harness import cells, progress, records, runner

    out, resume = options.pop("out"), options.pop("resume")
    options["out"] = out
    seed, seconds, quick = options["seed"], options["seconds"], options["quick"]
    request = _request(options)
    plan = cells.plan(request)
    if not plan.groups:
        reasons = "; ".join(f"{name}: {each['reason']}" for name, each in plan.missing.items())
        raise LookupError(f"there is nothing to measure{': ' + reasons if reasons else ''}")
    effort = runner.QUICK if quick else runner.FULL
    if seconds is not None:
        effort = replace(effort, budget=seconds)
    asked = {name: options[name] for name in options if name not in {"out", "seed", "seconds"}}
    runs = runner.Runner(plan, effort, records.plain(asked), seed=seed)
    if resume and out.exists():
        runs.resume(records.read(out))
    with progress.bar() as told:
        return runs.run(out, told)


def _request(options: dict[str, Any]) -> Request:
    from .harness.cells import Request, known_dtypes
    from .harness.libraries import LIBRARIES
    from .harness.operations import OPERATIONS
    from .harness.peers import PEERS

    quick = options["quick"]
    dtypes = options["dtypes"] or (("float32",) if quick else ("float32", "float64"))
    peers = options["peers"]
    return Request(
        operations=_known("--op", options["operations"], OPERATIONS),
        libraries=_known("--backend", options["libraries"], LIBRARIES),
        kernels=options["kernels"] or None,
        peers=() if peers == ("none",) else _known("--peer", peers, PEERS, parts=True),
        dtypes=_known("--dtype", dtypes, known_dtypes()) or (),
        shapes=options["shapes"] or None,
        passes=options["passes"] or ("value", "gradient"),
        device=options["device"],
        quick=quick,
    )


def _known(
    option: str, asked: Sequence[str], names: Any, *, parts: bool = False
) -> tuple[str, ...] | None:
    """Return the names that were asked for, or all that hold the part asked for; None for none."""
    if not asked:
        return None
    found: dict[str, None] = {}
    for each in asked:
        hits = [name for name in names if name == each]
        if not hits and parts:
            hits = [name for name in names if each.lower() in name.lower()]
        if not hits:
            raise click.BadParameter(f"{each!r} is none of {', '.join(names)}", param_hint=option)
        found.update(dict.fromkeys(hits))
    return tuple(found)


@app.command()
@click.argument("before", type=_RESULTS)
@click.argument("after", type=_RESULTS)
@click.option("--force", is_flag=True, help="Compare even if the machines differ.")
@click.option("--fail-on-slower", is_flag=True, help="Exit with 1 if any cell of kldiv is SLOWER.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(before: Path, after: Path, **options: Any) -> None:
    """Say of every cell whether it is the SAME, FASTER, SLOWER or UNCLEAR.

    Peers and the plain reading of memory, which did not change between the runs, are the control:
    its drift is taken off, and its scatter widens the intervals.
    """
    from .harness import records
    from .report import compare as comparing
    from .report import show

    try:
        runs = [records.read(path) for path in (before, after)]
    except records.ResultsError as error:
        raise BadInput(str(error)) from error
    different = comparing.refusal(*runs)
    if different and not options["force"]:
        raise BadInput(
            f"these are not runs of like machines; they differ in {different}; compare runs of one "
            "machine, or say --force"
        )
    outcome = comparing.compare(*runs)
    if options["as_json"]:
        click.echo(records.dumps(comparing.to_dict(outcome)))
    else:
        show.comparison(outcome, _console())
    if options["fail_on_slower"] and outcome.slower():
        sys.exit(1)


@app.command()
@click.argument("file", type=_RESULTS)
@click.option("--html", type=_FILE, help="Write one self-contained page.")
@click.option("--markdown", is_flag=True, help="Print the table of a README.")
def report(file: Path, html: Path | None, *, markdown: bool) -> None:
    """Show a results file: as a page, as Markdown, or here."""
    from .harness import records
    from .report import show

    try:
        found = records.read(file)
    except records.ResultsError as error:
        raise BadInput(str(error)) from error
    if html is not None:
        from .report import page

        records.write_text(html, page(found))
        click.echo(f"written to {html}", err=True)
    if markdown:
        from .report.markdown import tables

        click.echo(tables(found))
    if html is None and not markdown:
        show.run(found, _console())


@app.command("gpu-check")
@click.option("--out", type=_FILE, default="gpu-check.json", show_default=True)
@click.option("--html", type=_FILE, default="gpu-check.html", show_default=True)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1),
    default=9.0,
    show_default=True,
    help="When to be done.",
)
@click.option(
    "--device",
    type=click.Choice(["cuda", "cpu"]),
    default="cuda",
    show_default=True,
    help="cpu rehearses it all.",
)
@click.option("--tests", type=click.Path(path_type=Path), help="The folder of kldiv's tests.")
def gpu_check(**options: Any) -> None:
    """Say everything worth knowing on a machine with a GPU.

    Runs kldiv's GPU tests, the accuracy grid and the benchmark on every library that reaches the
    GPU, and writes one JSON and one HTML file. Exits with 0 if all went well, 1 if anything failed,
    3 if there was no GPU to check.
    """
    from .studies import gpu_check as checking

    sys.exit(checking.main(**options))


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 150)
