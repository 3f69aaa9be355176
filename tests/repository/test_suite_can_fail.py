"""The suite of this project notices when the package is broken on purpose."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from repository.sabotage import SABOTAGE, TESTS, UNTOUCHED

pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # it runs a sample of the suite again and again


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """How the sample of tests ends for every sabotage, in a process of its own."""
    path = tmp_path_factory.mktemp("sabotage") / "outcomes.json"
    command = [sys.executable, "-m", "repository.sabotage", str(path)]
    run = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_passes_untouched(outcomes):
    assert outcomes[UNTOUCHED]["passed"] > 100
    assert outcomes[UNTOUCHED]["failed"] == outcomes[UNTOUCHED]["error"] == 0


@pytest.mark.parametrize("sabotage", [name for name in SABOTAGE if name != UNTOUCHED])
def test_it_fails_when(outcomes, sabotage):
    assert outcomes[sabotage]["failed"] > 0
    assert outcomes[sabotage]["error"] == 0, "broken in another way than meant"
