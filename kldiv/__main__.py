"""``python -m kldiv`` is ``kldiv``."""

from __future__ import annotations

from kldiv.cli import main

if __name__ == "__main__":
    main()
