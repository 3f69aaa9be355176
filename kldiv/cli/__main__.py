"""``python -m kldiv.cli`` is ``kldiv``."""

from __future__ import annotations

from kldiv.cli import main

main()
