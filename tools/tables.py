"""The tables of the documentation that are made of code: of backends' features, and of pairs.

``python -m tools.tables`` prints both; tests compare them with docs/reference/index.md and
docs/distributions.md.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Final

from kldiv.distributions import registry
from kldiv.distributions.base import Distribution
from kldiv.distributions.families import FAMILIES, Normal

if TYPE_CHECKING:
    from kldiv.distributions.base import Formula

FEATURES: Final = {
    "values": "values, masks, every dtype the library has",
    "value_and_grad": "`value_and_grad`",
    "reverse": "automatic differentiation, reverse",
    "forward": "automatic differentiation, forward",
    "second order": "second order",
    "compile": "compiled: `torch.compile(fullgraph=True)`, `jax.jit`",
    "vmap": "`vmap`",
    "lazy": "lazy, a block at a time",
    "gpu": "GPU arrays",
}
"""Each feature with the words that the table has for it."""

_AUTODIFF = {"reverse", "forward", "second order", "compile", "vmap"}

CAPABILITIES: Final = {
    "numpy": {"values", "value_and_grad"},
    "torch": {"values", "value_and_grad", "gpu", *_AUTODIFF},
    "jax": {"values", "value_and_grad", "gpu", *_AUTODIFF},
    "cupy": {"values", "value_and_grad", "gpu"},
    "dask": {"values", "value_and_grad", "lazy"},
    "mlx": {"values", "value_and_grad", *_AUTODIFF},
    "array API": {"values", "value_and_grad"},
}
"""The features of each backend; the last stands for any other library of the standard."""

UNMEASURED: Final = {"gpu"}
"""Features that have not been run on a device yet: the table marks them so."""


def support_table() -> str:
    """Return the table of features and backends in Markdown."""
    head = ["", *CAPABILITIES]
    rows = [head, ["---", *(":-:" for _ in CAPABILITIES)]]
    for feature, words in FEATURES.items():
        mark = "not run yet" if feature in UNMEASURED else "yes"
        rows.append([words, *(mark if feature in able else "–" for able in CAPABILITIES.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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


if __name__ == "__main__":
    sys.stdout.write(f"{support_table()}\n\n{pairs_table()}\n")
