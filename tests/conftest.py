"""What every test shares: the libraries, untouched settings, and a header that says what runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from libraries import Library, demanded, require

from kldiv import config

# A user's own configuration must not decide what the suite tests.
for variable in (*config.VARIABLES, "KLDIV_CONFIG"):
    os.environ.pop(variable, None)

# Without a GPU Triton interprets its kernels on the CPU; it asks when it is first imported, which
# torch may do in any test.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_report_header() -> list[str]:
    problems = {library: library.problem() for library in Library}
    unknown = demanded() - {library.value for library in Library}
    if unknown:
        raise pytest.UsageError(
            f"KLDIV_TEST_BACKENDS names {', '.join(sorted(unknown))}; known: "
            f"{', '.join(library.value for library in Library)}"
        )
    return [
        "kldiv on: " + ", ".join(lib.value for lib, why in problems.items() if why is None),
        "not on: " + ", ".join(f"{lib.value} ({why})" for lib, why in problems.items() if why),
    ]


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, tmp_path_factory):
    """No settings from outside, and none left behind."""
    monkeypatch.setattr(config, "_process", {})
    monkeypatch.setattr(config, "_file", {})


@pytest.fixture(
    params=[
        pytest.param(library, marks=pytest.mark.gpu if library.needs_gpu else (), id=library.value)
        for library in Library
    ]
)
def lib(request):
    """Each array library in turn."""
    require(request.param)
    with request.param.configured():
        yield request.param
