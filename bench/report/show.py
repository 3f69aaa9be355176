"""Output for the terminal: a run's ranking, a comparison, and how times and bytes are written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..harness import memory
from ..harness.cells import FLOOR, OWN, label

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from ..harness.records import Results
    from .compare import Outcome

    Record = dict[str, Any]

RESTLESS = 0.1
"""The scatter among controls from which a comparison can find little."""
_STYLES = {"SLOWER": "bold red", "FASTER": "bold green", "SAME": "dim", "UNCLEAR": "yellow"}


def who(cell: Record) -> str:
    """Return who computes a cell, in words."""
    if cell["who"] == FLOOR:
        return "memory: move the bytes"
    return label(cell["who"], cell["library"], cell["kernel"], cell["mode"])


def group_title(cell: Record) -> str:
    """Return in words the fields that the cells of a group share."""
    from ..harness.operations import OPERATIONS

    known = OPERATIONS.get(cell["operation"])
    title = known.title if known else cell["operation"]
    part = "" if cell["pass"] == "value" else " with gradient"  # noqa: S105 - no password
    rows, classes = cell["shape"]
    return f"{title}{part} · {rows}×{classes} {cell['dtype']} · {cell['device']}"


def groups(cells: Iterable[Record]) -> dict[str, list[Record]]:
    """Return cells by group, in the order in which they came."""
    found: dict[str, list[Record]] = {}
    for cell in cells:
        found.setdefault(cell["key"].partition(" | ")[0], []).append(cell)
    return found


def order(cells: Iterable[Record]) -> list[Record]:
    """Return cells as they are shown: the ranked by time, then unstable, wrong and failed ones."""
    return sorted(cells, key=lambda cell: (standing(cell) != "", cell["median_s"] or math.inf))


def standing(cell: Record) -> str:
    """Return why a cell is not ranked, as one word; nothing for one that is."""
    if cell["status"] != "ok":
        return str(cell["status"])
    return "unstable" if cell["unstable"] else ""


def duration(seconds: float | None) -> str:
    """Return a time with three digits and its unit."""
    if seconds is None:
        return "–"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale * 0.9995:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def size(amount: float | None) -> str:
    """Return bytes with their unit."""
    if amount is None:
        return "–"
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if amount >= scale:
            return f"{digits(amount / scale)} {unit}"
    return f"{amount:.0f} B"


def digits(value: float) -> str:
    """Return a positive number with three digits."""
    if value >= 999.5 or value == 0:
        return f"{value:.0f}"
    before = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, min(2 - before, 6))}f}"


def error(value: float | None) -> str:
    """Return a relative error with two digits."""
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.1e}"


def percent(value: float | None) -> str:
    """Return a fraction as percent; arrays that stay in a cache can exceed 100."""
    return "–" if value is None else f"{100 * value:.0f} %"


def peak(cell: Record) -> str:
    """Return the peak extra memory."""
    found = memory.headline(cell["memory"])
    return "–" if found is None else size(found[0])


def worst_error(cell: Record) -> float | None:
    """Return the larger error of value and gradient."""
    known = [each for each in (cell["error"], cell["gradient_error"]) if each is not None]
    return max(known, default=None)


def leaders(members: Iterable[Record]) -> tuple[Record, Record] | None:
    """Return kldiv's fastest cell and the fastest peer's; None where one of them is unstable."""
    timed = [c for c in members if c["status"] == "ok" and c["who"] != FLOOR and c["median_s"]]
    sides = [[c for c in timed if (c["who"] == OWN) is own] for own in (True, False)]
    if not all(sides):
        return None
    best, rival = (min(side, key=lambda c: c["median_s"]) for side in sides)
    return None if best["unstable"] or rival["unstable"] else (best, rival)


def beside(best: Record, rival: Record) -> str:
    """Return in words how fast one cell is beside another."""
    ratio = rival["median_s"] / best["median_s"]
    return f"{ratio:.1f}× as fast as" if ratio >= 1 else f"{1 / ratio:.1f}× slower than"


def sentence(cells: Iterable[Record]) -> str:
    """Return in one sentence where kldiv stands in the last group that can be ranked."""
    cells = list(cells)
    found = ""
    for members in groups(cells).values():
        leading = leaders(members)
        if leading:
            best, rival = leading
            errors = [error(worst_error(each)) for each in (best, rival)]
            found = (
                f"{who(best)} is {beside(best, rival)} {who(rival)} at {group_title(best)};"
                f" relative errors are {errors[0]} and {errors[1]}."
            )
    if found:
        return found
    shaky = sum(standing(cell) == "unstable" for cell in cells)
    return (
        f"Nothing can be ranked: {shaky} of {len(cells)} cells are unstable, their times scatter by"
        " more than 10 %. Measure again while nothing else runs."
    )


def run(results: Results, console: Console) -> None:
    """Print one sentence, and the ranking of every group."""
    console.print(Text(sentence(results["cells"]), style="bold"))
    for cells in groups(results["cells"]).values():
        table = Table(title=group_title(cells[0]), title_justify="left", title_style="bold")
        heads = ("median", "IQR", "n", "of memory", "first call", "extra", "error")
        for head in ("", *heads, ""):
            table.add_column(head, justify="right" if head else "left")
        for cell in order(cells):
            spread = cell["iqr_s"] / cell["median_s"] if cell["median_s"] else None
            style = {OWN: "bold", FLOOR: "dim italic"}.get(cell["who"], "")
            table.add_row(
                Text(who(cell), style=style),
                duration(cell["median_s"]),
                percent(spread),
                str(cell["n"]),
                percent(cell["of_bandwidth"]),
                duration(cell["first_s"]),
                peak(cell),
                error(worst_error(cell)),
                Text(standing(cell), style="yellow" if cell["status"] == "ok" else "red"),
            )
        console.print(table)
        for cell in cells:
            if cell["reason"]:
                console.print(Text(f"  {who(cell)}: {cell['reason']}", style="dim"))
    missing(results, console)


def missing(results: Results, console: Console) -> None:
    """Print the cells that could not be measured, and the lines that install their libraries."""
    for name, each in results["missing"].items():
        install = f"   {each['install']}" if each["install"] else ""
        console.print(Text(f"{name}: missing, {each['reason']}{install}", style="dim"))


def comparison(outcome: Outcome, console: Console) -> None:
    """Print the verdict on every cell."""
    table = Table("verdict", "now/before", "95 % interval", "drift", "cell", "")
    rank = {"SLOWER": 0, "FASTER": 1, "UNCLEAR": 2, "SAME": 3}
    for cell in sorted(outcome.cells, key=lambda cell: (rank[cell.verdict], -cell.ratio)):
        table.add_row(
            Text(cell.verdict, style=_STYLES[cell.verdict]),
            f"{cell.ratio:.3f}",
            f"{cell.low:.3f} – {cell.high:.3f}",
            f"{cell.drift:.3f}",
            cell.key,
            cell.why,
        )
    console.print(table)
    for text, keys in (("only before", outcome.only_before), ("only now", outcome.only_after)):
        for key in keys:
            console.print(Text(f"{text}: {key}", style="dim"))
    counts = ", ".join(f"{count} {word}" for word, count in outcome.count().items())
    console.print(
        f"{counts}; {outcome.controls} controls, left scatter {outcome.luck:.1%}", highlight=False
    )
    if outcome.luck > RESTLESS:
        console.print("The machine was too restless to tell much: measure again when it is idle.")
