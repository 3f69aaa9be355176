"""The page around charts and table."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import charts, show, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..harness.records import Results

    Record = dict[str, Any]

HERE = Path(__file__).parent


def page(results: Results, summary: str = "") -> str:
    """Return the page as HTML, with a summary before the charts."""
    cells = results["cells"]
    body = [
        _head(results),
        summary,
        _findings(cells),
        _filters(cells),
        charts.ratios(cells),
        charts.roofline(results),
        charts.errors(cells),
        table.section(cells),
        _missing(results),
        _notes(results),
    ]
    style, script = (
        (HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js")
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(_title(results))}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<main>\n{''.join(body)}</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _title(results: Results) -> str:
    machine = results["machine"]
    gpus = [gpu["name"] for gpu in machine.get("gpus") or []]
    where = gpus[0] if gpus and "cuda" in results["bandwidth"] else machine.get("cpu", "")
    return f"kldiv benchmark · {where}"


def _head(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    revision = results["revision"]
    facts = [
        ("Machine", f"{machine.get('cpu')}, {machine.get('cores')} cores"),
        ("Measured", results["started"].replace("T", " ").partition("+")[0] + " UTC"),
    ]
    facts += [("GPU", f"{gpu.get('name')}, driver {gpu.get('driver')}") for gpu in machine["gpus"]]
    for device, found in results["bandwidth"].items():
        rates = ", ".join(f"{name} {rate / 1e9:.0f} GB/s" for name, rate in found.items())
        facts.append((f"Memory, {device}", rates))
    if revision:
        changed = ", changed" if revision["dirty"] else ""
        facts.append(("Revision", f"{revision['commit'][:12]}{changed}"))
    names = ("kldiv", "python", "numpy", "torch", "jax", "cupy", "llvmlite", "scipy", "optax")
    shown = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    facts.append(("Versions", shown))
    listed = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in facts)
    incomplete = (
        ""
        if results["complete"]
        else '<p class="warn">This run was interrupted: some cells are not there.</p>'
    )
    return f"<header><h1>kldiv benchmark</h1>{incomplete}<dl>{listed}</dl></header>\n"


def _findings(cells: Iterable[Record]) -> str:
    """Return one sentence for each group: kldiv's place among the cells that can be ranked."""
    lines = []
    for members in show.groups(cells).values():
        leading = show.leaders(members)
        if leading:
            best, rival = leading
            words = show.beside(best, rival)
            lines.append(
                f"<tr {charts.data(members[0])}><td>{escape(show.group_title(members[0]))}</td>"
                f"<td><b>{escape(show.who(best))}</b> {words} {escape(show.who(rival))}</td></tr>"
            )
    if not lines:
        return ""
    return (
        "<section><h2>At a glance</h2><p>The fastest of kldiv beside the fastest peer, wherever "
        'both could be ranked.</p><table class="glance">' + "".join(lines) + "</table></section>\n"
    )


def _filters(cells: Iterable[Record]) -> str:
    choices = {"o": "operation", "p": "pass", "d": "dtype", "s": "shape", "v": "device"}
    found: dict[str, dict[str, None]] = {letter: {} for letter in choices}
    for cell in cells:
        for letter, value in charts.facets(cell).items():
            found[letter].setdefault(value)
    parts = []
    for letter, name in choices.items():
        if len(found[letter]) < 2:
            continue
        options = "".join(f"<option>{escape(value)}</option>" for value in found[letter])
        parts.append(
            f'<label>{name} <select data-facet="{letter}"><option value="">all</option>'
            f"{options}</select></label>"
        )
    return f'<nav aria-label="Filter">{"".join(parts)}</nav>\n' if parts else ""


def _missing(results: Results) -> str:
    if not results["missing"]:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(each['reason'])}</td>"
        f"<td><code>{escape(each['install'] or '')}</code></td></tr>"
        for name, each in results["missing"].items()
    )
    table = f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'
    return f"<section><h2>Not measured</h2>{table}</section>\n"


def _notes(results: Results) -> str:
    effort = results["settings"].get("effort", {})
    rounds = effort.get("rounds", ["?", "?"])
    load = results["machine"].get("load")
    busy = "" if load is None else f" The load was {load} a core when the run began."
    return (
        "<section><h2>How to read this</h2><ul>"
        f"<li>All rows of one chart were measured in the same {rounds[0]}–{rounds[1]} rounds, in "
        f"an order shuffled each round; times are medians, whiskers 95 % intervals.{busy}</li>"
        "<li>Rows whose quartiles lie more than 10 % of the median apart are <i>unstable</i>; rows "
        "with less than half of their dtype's digits right are <i>wrong</i>. Neither is ranked."
        "</li>"
        "<li>“Of memory” compares the bytes that must move, each input read once and each output "
        "written once, with what the memory of this machine was measured to do. What fits in a "
        "cache can exceed it.</li>"
        "<li>Errors are relative to the loss in double-double arithmetic on the very inputs; of a "
        "gradient, in the 1-norm. The larger of the two is shown.</li>"
        "<li>“Extra” is the peak of memory beyond the inputs, the result included.</li>"
        "</ul></section>\n"
    )
