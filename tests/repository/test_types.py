"""Type checkers know the public functions: right code passes, every mistake is found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each checker reads torch and JAX

TYPING = Path(__file__).parents[1] / "typing"
ROOT = TYPING.parents[1]


def by_mypy(path):
    options = ["--strict", "--no-error-summary", "--follow-imports=silent"]
    options += ["--cache-dir", f".mypy_cache/{path.stem}"]  # processes share none
    name = path.relative_to(ROOT).as_posix()
    printed = run("mypy", *options, name)
    found = re.findall(rf"^{re.escape(name)}:(\d+): error: (.*)$", printed, re.MULTILINE)
    return [(int(line), text) for line, text in found]


def by_pyright(path):
    options = ["--outputjson", "--level", "error", "--pythonpath", sys.executable]
    options += ["--project", str(TYPING / "pyrightconfig.json")]
    diagnostics = json.loads(run("basedpyright", *options, str(path)))["generalDiagnostics"]
    return [(each["range"]["start"]["line"] + 1, each["message"]) for each in diagnostics]


def run(module, *arguments):
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


CHECKERS = {"mypy": by_mypy, "basedpyright": by_pyright}


@pytest.fixture(params=CHECKERS)
def check(request):
    for name in (request.param, "torch", "jax"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    return CHECKERS[request.param]


def test_right_code_passes(check):
    assert check(TYPING / "right.py") == []


def test_every_mistake_is_found(check):
    path = TYPING / "wrong.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert {line for line, _ in check(path)} == marked
