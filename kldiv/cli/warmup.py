"""``kldiv warmup``: compile the CPU kernels ahead of their first use."""

from __future__ import annotations

import click


@click.command("warmup", short_help="Compile the CPU kernels ahead of their first use.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Compile all of them: half a minute.")
def command(names: tuple[str, ...], *, everything: bool) -> None:
    """Compile CPU kernels and keep them on disk, so that no program has to wait for them.

    NAME is a function such as tv_div_with_logits, whose kernels of float32 and float64 are
    compiled.  Without one kl_div, kl_div_with_logits and js_div_with_logits are, in float32.

    They are kept in the user's cache directory, or in that of KLDIV_CACHE_DIR.  Compiled ones are
    only loaded.  Needs llvmlite: pip install "kldiv[cpu]".
    """
    if names and everything:
        raise click.UsageError("--all goes without names")
    # Imported here, as these bring NumPy and rich.
    import time  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415

    from kldiv.backends import compile_kernels  # noqa: PLC0415
    from kldiv.errors import BackendError  # noqa: PLC0415

    messages = Console(stderr=True)
    for name, compiled in compile_kernels(names, first=not (names or everything)):
        start = time.perf_counter()
        with messages.status(f"{name} ..."):
            try:
                compiled()
            except Exception as error:
                raise BackendError(f"compiling {name} fails: {error}") from error
        click.echo(f"{name}: {time.perf_counter() - start:.1f} s")
