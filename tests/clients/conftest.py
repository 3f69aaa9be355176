"""The programs of others: no network, and their warnings are not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients.real import EXAMPLES, curves


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    """The examples import one another as scripts do."""
    monkeypatch.syspath_prepend(EXAMPLES)
    for name, value in curves.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
