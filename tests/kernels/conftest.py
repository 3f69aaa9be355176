"""What the tests of kernels share: a technology, ready to run."""

from __future__ import annotations

import pytest


@pytest.fixture
def technology(request, monkeypatch):
    """The technology of a test's parameter (`kernels.conformance.each`), or an error."""
    with request.param.prepared(monkeypatch):
        yield request.param
