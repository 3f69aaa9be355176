"""A results file as Markdown tables, as the README shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..harness.cells import OWN
from . import show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..harness.records import Results

    Record = dict[str, Any]


def tables(results: Results) -> str:
    """Return one table for each group, with the ratio to the fastest of kldiv that is ranked."""
    parts = [_about(results)]
    parts += [
        f"**{show.group_title(members[0])}**\n\n{_table(members)}"
        for members in show.groups(results["cells"]).values()
    ]
    if results["missing"]:
        lines = (
            f"- {name}: {each['reason']}" + (f" (`{each['install']}`)" if each["install"] else "")
            for name, each in results["missing"].items()
        )
        parts.append("Not measured:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _about(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    names = ("kldiv", "numpy", "torch", "jax", "cupy", "scipy", "optax")
    shown = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    memory = "; ".join(
        f"{device} memory " + ", ".join(f"{k} {v / 1e9:.0f} GB/s" for k, v in found.items())
        for device, found in results["bandwidth"].items()
    )
    gpus = "".join(f", {gpu['name']} (driver {gpu['driver']})" for gpu in machine["gpus"])
    where = f"{machine['cpu']}, {machine['cores']} cores{gpus}"
    return f"{where}; {memory}; {shown}; {results['started'][:10]}."


def _table(members: Sequence[Record]) -> str:
    shown = show.order(members)
    own = [cell for cell in shown if cell["who"] == OWN and not show.standing(cell)]
    best = own[0] if own else None
    rows = [
        [
            f"**{show.who(cell)}**" if cell["who"] == OWN else show.who(cell),
            show.duration(cell["median_s"]),
            _ratio(cell, best),
            show.percent(cell["of_bandwidth"]),
            show.peak(cell),
            show.error(show.worst_error(cell)),
            show.standing(cell),
        ]
        for cell in shown
    ]
    heads = ["", "median", "times kldiv's best", "of memory", "extra memory", "error", ""]
    return markdown(heads, rows)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    widths = [max(3, *map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(entries: Sequence[str]) -> str:
        first, *rest = entries
        padded = [first.ljust(widths[0])]
        padded += [entry.rjust(width) for entry, width in zip(rest, widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = "|".join([":" + "-" * (widths[0] + 1), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join([line(heads), f"|{rule}|", *map(line, rows)])


def _ratio(cell: Record, best: Record | None) -> str:
    """Return a ranked cell's ratio to the best, with its interval where there is one."""
    if best is None or show.standing(cell):
        return "–"
    if cell is best:
        return "1"
    found = best["ratios"].get(cell["who"]) if cell["who"] != OWN else None
    if found is None:
        return f"{show.digits(cell['median_s'] / best['median_s'])}"
    low, high = show.digits(found["low"]), show.digits(found["high"])
    return f"{show.digits(found['ratio'])} ({low}–{high})"
