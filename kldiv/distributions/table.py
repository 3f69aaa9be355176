"""The table of pairs that have a closed form, in Markdown, from the registry itself."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from kldiv.distributions import registry
from kldiv.distributions.base import Distribution
from kldiv.distributions.families import FAMILIES, Normal

if TYPE_CHECKING:
    from kldiv.distributions.base import Formula


def pairs_table() -> str:
    """Return one row for each family P and closed form, with the families Q that it serves."""
    registry.find(Normal, Normal)
    rows: dict[tuple[str, str], list[str]] = {}
    for (p, q), formula in registry.REGISTRY.items():
        own = FAMILIES.get(p.__name__) is p and q in {Distribution, *FAMILIES.values()}
        if own:
            rows.setdefault((p.__name__, _words(formula)), []).append(_name(q))
    head = ["P", "Q", "D(P‖Q)"]
    lines = [head, ["---"] * 3]
    lines += [[p, ", ".join(sorted(qs)), words] for (p, words), qs in sorted(rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(family: type[Distribution]) -> str:
    return "any other" if family is Distribution else family.__name__


def _words(formula: Formula) -> str:
    """Return the first paragraph of a formula's docstring, as one line of a table."""
    text = inspect.getdoc(formula) or "registered without words"
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")
