"""Numbers as people write them: decimal marks, thousands, per cent; and cells without a number."""

from __future__ import annotations

import math
import re
from typing import Final

MISSING: Final = frozenset(
    {"", "na", "n/a", "#n/a", "nan", "null", "none", "-", "--", "?", ".", "<na>"}
)
"""Cells without a number, in lower case."""

LACKING: Final = (
    "is no number: it is missing. na='zero' takes missing numbers as 0, na='drop' leaves their"
    " classes out"
)
"""How an error ends on a cell that `is_missing`."""

BEYOND: Final = (
    "is a number that float64 does not hold, which has 5e-324 to 1.8e308. Write logarithms, or"
    " divide all by a number that brings them near to 1"
)
"""How an error ends on a cell that `is_lost`."""

_DIGITS: Final = re.compile(r"[^eE]*[1-9]")
_SPACES: Final = str.maketrans(
    {"\u00a0": " ", "\u2007": " ", "\u2009": " ", "\u202f": " ", "\u2019": "'", "\u2212": "-"}
)
_GROUPS: Final = {
    mark: re.compile(
        rf"([+-]?)([1-9]\d{{0,2}}(?:([ '{re.escape(other)}])\d{{3}}(?:\3\d{{3}})*)|\d*)"
        rf"(?:{re.escape(mark)}(\d*))?([eE][+-]?\d+)?",
        flags=re.ASCII,
    )
    for mark, other in ((".", ","), (",", "."))
}


def plain(cell: str) -> float | None:
    """Return a number as programs write it, or None."""
    # float() alone would take "1_000" and the digits of every script.
    if "_" in cell or not cell.isascii():
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def number(cell: str, decimal: str) -> float | None:
    """Return a number whose decimal mark is known, or None; a per cent is a hundredth."""
    text = cell.translate(_SPACES).strip()
    percent = text.endswith("%")
    if percent:
        text = text[:-1].rstrip()
    elif decimal == "." or not (set(text) & {".", ","}):
        found = plain(text)
        if found is not None:
            return found
    match = _GROUPS[decimal].fullmatch(text)
    if match is None:
        return None
    sign, whole, mark, fraction, power = match.groups()
    digits = whole.replace(mark, "") if mark else whole
    if not (digits or fraction) or (fraction == "" and decimal == ","):
        return None
    exponent = int((power or "e0")[1:]) - 2 * percent
    return float(f"{sign}{digits or 0}.{fraction or 0}e{exponent}")


def decimals(cell: str) -> str:
    """Return the decimal marks, of . and , with which a cell is a number."""
    return "".join(mark for mark in ".," if number(cell, mark) is not None)


def is_lost(cell: str, value: float) -> bool:
    """Return whether a cell with the digits of a number is read as 0 or infinite."""
    return not 0.0 < abs(value) < math.inf and bool(_DIGITS.match(cell))


def is_missing(cell: str) -> bool:
    """Return whether a cell says that there is no number."""
    return cell.strip().lower() in MISSING


def is_blank(cell: str) -> bool:
    """Return whether a cell says nothing of whether its column holds numbers."""
    return is_missing(cell) and plain(cell) is None
