"""The suite of this project notices when the package is broken on purpose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from repository.sabotage import SABOTAGE

TESTS = Path(__file__).parents[1]
SAMPLE = [
    "losses/test_semantics.py::test_reductions",
    "losses/test_semantics.py::test_where_leaks_nothing",
    "losses/test_semantics.py::test_gradient",
    "test_config.py::test_another_backend_computes_and_the_result_comes_home",
]


def run(sabotage: str) -> subprocess.CompletedProcess[str]:
    """Run a part of the suite on NumPy and torch, with the package broken or not."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "repository.sabotage",
        "-p",
        "no:cacheprovider",
    ]
    first = ["-x"] if sabotage else []  # one failure is enough
    return subprocess.run(
        [*command, *first, "-k", "numpy or torch", *SAMPLE],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS), "KLDIV_TEST_SABOTAGE": sabotage},
        capture_output=True,
        text=True,
        check=False,
    )


def counts(output: str) -> dict[str, int]:
    """Return what the closing line counts."""
    return {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error)", output)}


@pytest.fixture(autouse=True)
def _torch():
    pytest.importorskip("torch")


def test_it_passes_untouched():
    result = run("")
    assert result.returncode == 0, result.stdout
    assert counts(result.stdout)["passed"] > 100


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_it_fails_when(sabotage):
    result = run(sabotage)
    assert result.returncode == 1, result.stdout + result.stderr
    found = counts(result.stdout)
    assert found["failed"] > 0
    assert "error" not in found, "broken in another way than meant"
