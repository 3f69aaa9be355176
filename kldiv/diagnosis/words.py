"""How findings put numbers into words."""

from __future__ import annotations

from typing import Final

ROUGH: Final = 0.01
"""The error that half precision or printed decimals make in the sum of a row."""


def number(value: float) -> str:
    """Return a number, short."""
    return f"{value:.4g}"


def row_sum(value: float) -> str:
    """Return a sum that should be 1."""
    near = abs(value - 1) <= ROUGH
    return f"1 {'+' if value > 1 else '−'} {abs(value - 1):.2g}" if near else number(value)


def many(count: int, what: str) -> str:
    """Return a count and the noun that is counted, in the plural where it must be."""
    if count == 1 or what == "+inf":
        return f"{count} {what}"
    return f"{count} {what[:-1]}ies" if what.endswith("y") else f"{count} {what}s"
