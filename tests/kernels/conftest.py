"""What the tests of kernels share: a technology, ready to run, and what the CPU's is given."""

from __future__ import annotations

from functools import cache
from importlib import import_module

import pytest

from kldiv.kernels.cpu import CPU
from kldiv.kernels.triton import TRITON


@pytest.fixture(autouse=True, scope="session")
def patched_once():
    """Have Triton's interpreter patch its language once a kernel.

    It does so at every function that a kernel calls, which takes most of the time of a test.
    """
    if TRITON.problem() or not TRITON.interpreted:
        yield
        return
    interpreter = import_module("triton.runtime.interpreter")
    tl, every = interpreter.tl, interpreter._patch_lang

    @cache
    def languages(function):
        seen = function.__globals__.values()
        return [each for each in (tl, tl.core) if any(value is each for value in seen)]

    def patch(function):
        if any(tl.core.is_builtin(language.load) for language in languages(function)):
            return every(function)
        return interpreter._LangPatchScope()

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(interpreter, "_patch_lang", patch)
        yield


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
