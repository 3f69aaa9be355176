"""What the tests of streaming share."""

from __future__ import annotations

import pytest

from kldiv.readers import sources
from kldiv.streaming import blocks


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder to work in, where small files count as large."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "STORED", 1)
    for size in ("_RUN", "_PIECE", "_STEP"):
        monkeypatch.setattr(blocks, size, 1)
