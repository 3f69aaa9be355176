"""What the tests of the command share."""

from __future__ import annotations

import pytest


@pytest.fixture
def drawn(monkeypatch):
    """Pictures that would be saved, each with its path."""
    figure = pytest.importorskip("matplotlib.figure")
    found = []
    save = lambda self, path, **_: found.append((self, path))  # noqa: E731
    monkeypatch.setattr(figure.Figure, "savefig", save)
    return found
