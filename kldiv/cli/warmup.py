"""``kldiv warmup``: compile the CPU kernels ahead of their first use."""

from __future__ import annotations

import click


@click.command("warmup", short_help="Compile the CPU kernels ahead of their first use.")
def command() -> None:
    """Compile the CPU kernels and keep them on disk, so that no program has to wait for them.

    They are kept in the user's cache directory, or in that of KLDIV_CACHE_DIR.  Compiled ones are
    only loaded.  Needs llvmlite: pip install "kldiv[cpu]".
    """
    # Imported here, as these bring NumPy and rich.
    import time  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from kldiv.backends import compile_kernels  # noqa: PLC0415
    from kldiv.errors import BackendError  # noqa: PLC0415

    messages = Console(stderr=True)
    for name, compiled in compile_kernels():
        start = time.perf_counter()
        with messages.status(f"{name} ..."):
            try:
                compiled()
            except Exception as error:
                raise BackendError(f"compiling {name} fails: {error}") from error
        click.echo(f"{name}: {time.perf_counter() - start:.1f} s")
