"""The built-in backends, by what can be said of them without importing their libraries."""

from __future__ import annotations

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """What is known of a backend before it is loaded."""

    roots: tuple[str, ...]
    """Top-level modules that its array types are defined in."""
    install: str
    """The line that installs it."""
    kernels: tuple[str, ...] = ("pure",)
    """Names of its kernels, the fastest first; ``pure`` is the array-API formula."""


TABLE: Final = {
    "numpy": Entry(("numpy", "ml_dtypes"), "pip install numpy", ("cpu", "pure")),
    "torch": Entry(("torch",), 'pip install "kldiv[torch]"', ("cpu", "triton", "pure")),
    "jax": Entry(("jax", "jaxlib"), 'pip install "kldiv[jax]"', ("cpu", "pallas", "pure")),
    "cupy": Entry(
        ("cupy",),
        'pip install "kldiv[cuda13]" (or cuda12, as your driver has it)',
        ("cuda", "pure"),
    ),
    "dask": Entry(("dask",), 'pip install "kldiv[dask]"'),
}
