"""``python -m bench``; from an installed package it is ``kldiv bench``."""

from __future__ import annotations

import sys

try:
    from .app import app
except ImportError as missing:
    sys.exit(f'the benchmark cannot start ({missing}): pip install "kldiv[bench]"')

if __name__ == "__main__":
    app(prog_name="python -m bench")
