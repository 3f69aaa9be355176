"""A result as a table of HTML, for notebooks: the one place that writes any."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()
) -> str:
    """Return a table with its caption above and notes below, every text escaped.

    Its colours are those of the page, light or dark; numbers stand to the right.
    """
    number = 'style="text-align: right; font-variant-numeric: tabular-nums"'
    text = 'style="text-align: left; white-space: pre-wrap"'

    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"<td {number}>{value:.6g}</td>"
        return f"<td {number if isinstance(value, int) else text}>{escape(str(value))}</td>"

    parts = [
        "<table>",
        f'<caption style="caption-side: top; text-align: left">{escape(caption)}</caption>',
        "<thead><tr>"
        + "".join(f"<th {text}>{escape(name)}</th>" for name in head)
        + "</tr></thead>",
        "<tbody>",
        *("<tr>" + "".join(map(cell, row)) + "</tr>" for row in rows),
        "</tbody></table>",
        *(f"<p>{escape(note)}</p>" for note in notes),
    ]
    return "".join(parts)
