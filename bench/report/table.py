"""All cells in one table that sorts by any of its columns."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from ..harness import memory
from ..harness.cells import FLOOR, OWN
from . import show
from .charts import data

if TYPE_CHECKING:
    from collections.abc import Sequence

    Record = dict[str, Any]

_HEADS = (
    "operation", "pass", "shape", "dtype", "device", "who", "median", "IQR", "n", "first call",
    "compile", "GB/s", "of memory", "extra", "error", "",
)  # fmt: skip


def section(cells: Sequence[Record]) -> str:
    """Return the table with its heading."""
    heads = "".join(
        f'<th><button type="button">{escape(head) or "standing"}</button></th>' for head in _HEADS
    )
    rows = "\n".join(_row(cell) for cell in cells)
    return (
        "<section><h2>All cells</h2><p>Click a heading to sort. "
        '<label>Search <input type="search" id="search" placeholder="torch gradient"></label></p>'
        f'<div class="scroll"><table id="cells"><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div></section>\n"
    )


def _row(cell: Record) -> str:
    rows, classes = cell["shape"]
    spread = cell["iqr_s"] / cell["median_s"] if cell["median_s"] else None
    peak = memory.headline(cell["memory"])
    error = show.worst_error(cell)
    rate = cell["bytes_per_s"]
    parts = [
        _text(cell["operation"]),
        _text(cell["pass"]),
        _number(rows * classes, f"{rows}×{classes}"),
        _text(cell["dtype"]),
        _text(cell["device"]),
        f"<td>{escape(show.who(cell))}",
        _number(cell["median_s"], show.duration(cell["median_s"])),
        _number(spread, show.percent(spread)),
        _number(cell["n"], str(cell["n"])),
        _number(cell["first_s"], show.duration(cell["first_s"])),
        _number(cell["compile_s"], show.duration(cell["compile_s"])),
        _number(rate, "–" if rate is None else show.digits(rate / 1e9)),
        _number(cell["of_bandwidth"], show.percent(cell["of_bandwidth"])),
        _number(peak[0] if peak else None, show.peak(cell)),
        _number(error, show.error(error)),
        _standing(cell),
    ]
    kind = {OWN: ' class="me"', FLOOR: ' class="dim"'}.get(cell["who"], "")
    return f"<tr {data(cell)}{kind}>{''.join(parts)}"


def _text(value: str) -> str:
    return f"<td>{escape(value)}"


def _number(value: float | None, text: str) -> str:
    # The sort key; missing numbers come last either way.
    return f"<td data-n={value:.6g}>{text}" if value is not None else f"<td data-n>{text}"


def _standing(cell: Record) -> str:
    word = show.standing(cell)
    if not word:
        return "<td>"
    title = f' title="{escape(cell["reason"])}"' if cell["reason"] else ""
    return f'<td class="{word}"{title}>{word}'
