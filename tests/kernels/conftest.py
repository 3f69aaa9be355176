"""What the tests of kernels share: a technology, ready to run, and what the CPU's is given."""

from __future__ import annotations

import pytest

from kldiv.kernels.cpu import CPU


@pytest.fixture
def technology(request, monkeypatch):
    """The technology of a test's parameter (`kernels.conformance.each`), or an error."""
    with request.param.prepared(monkeypatch):
        yield request.param


@pytest.fixture
def small_too(monkeypatch):
    """Give small arrays to the CPU kernels too."""
    monkeypatch.setattr(CPU, "small", 0)


@pytest.fixture
def launches(monkeypatch):
    """The works that CPU kernels are launched with, whoever launches them."""
    found, prepare = [], CPU.prepare

    def prepared(work):
        launch = prepare(work)
        return lambda work: found.append(work) or launch(work)

    monkeypatch.setattr(CPU, "prepare", prepared)
    monkeypatch.setattr("kldiv.backends.routing._places", {})  # whose routes keep launchers
    return found
