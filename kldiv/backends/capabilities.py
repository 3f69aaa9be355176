"""The features of each backend, declared once for tests, their skips and the reference's table."""

from __future__ import annotations

from typing import Final

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
