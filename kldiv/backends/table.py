"""The names of all backends, and the built-in ones' facts, without importing their libraries.

Nothing of the package is imported here, so that the settings can be checked by it.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Entry(NamedTuple):
    """The facts of a built-in backend, readable before it is loaded."""

    roots: tuple[str, ...]
    """Top-level modules that its array types are defined in."""
    install: str
    """The line that installs it."""
    kernels: tuple[str, ...] = ("pure",)
    """Names of its kernels, the fastest first; ``pure`` is the array-API formula."""


TABLE: Final = {
    "numpy": Entry(("numpy", "ml_dtypes"), "pip install numpy", ("cpu", "blocks", "pure")),
    "torch": Entry(("torch",), 'pip install "kldiv[torch]"', ("cpu", "triton", "blocks", "pure")),
    "jax": Entry(("jax", "jaxlib"), 'pip install "kldiv[jax]"', ("cpu", "pallas", "pure")),
    "cupy": Entry(
        ("cupy",),
        'pip install "kldiv[cuda13]" (or cuda12, as your driver has it)',
        ("cuda", "pure"),
    ),
    "dask": Entry(("dask",), 'pip install "kldiv[dask]"'),
    "mlx": Entry(("mlx",), 'pip install "kldiv[mlx]"'),
}

GROUP: Final = "kldiv.backends"
"""The entry-point group that other packages offer their adapters in."""

registered: dict[str, tuple[str, ...]] = {}
"""Kernels of the backends that were registered, by name."""


def names() -> list[str]:
    """Return the names of all backends that can be asked for, built in or not."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - only listing needs it

    outside = {*registered, *(point.name for point in entry_points(group=GROUP))}
    return [*TABLE, *sorted(outside.difference(TABLE))]


def kernel_names() -> list[str]:
    """Return the names of the kernels of all backends that are known without loading them."""
    built_in = {kernel for entry in TABLE.values() for kernel in entry.kernels}
    return sorted(built_in.union(*registered.values()))
