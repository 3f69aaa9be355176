"""The ``kldiv`` command; it uses public names only, and needs the ``cli`` extra."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]

USAGE = 2  # the exit code of a command that cannot run as it was called


def main() -> None:
    """Run the command line and exit: 0 fine, 2 usage, 4 bad input, 130 interrupted."""
    # Looked for, not imported: rich is not needed for --help.
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        sys.stderr.write(f'kldiv needs {" and ".join(missing)}: pip install "kldiv[cli]"\n')
        sys.exit(USAGE)
    from kldiv.cli.app import app  # noqa: PLC0415 - without the extra there is no click

    app(prog_name="kldiv")
