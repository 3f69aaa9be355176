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


FILES = {name: TYPING / name for name in ("right.py", "wrong.py")}


def by_mypy():
    options = ["--strict", "--no-error-summary", "--follow-imports=silent"]
    options += ["--cache-dir", ".mypy_cache/typing"]
    printed = run("mypy", *options, *(path.relative_to(ROOT).as_posix() for path in FILES.values()))
    found = re.findall(r"^.*/(\w+\.py):(\d+): error: (.*)$", printed, re.MULTILINE)
    return [(name, int(line), text) for name, line, text in found]


def by_pyright():
    options = ["--outputjson", "--level", "error", "--pythonpath", sys.executable]
    options += ["--project", str(TYPING / "pyrightconfig.json")]
    found = json.loads(run("basedpyright", *options, *map(str, FILES.values())))
    return [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in found["generalDiagnostics"]
    ]


def run(module, *arguments):
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


CHECKERS = {"mypy": by_mypy, "basedpyright": by_pyright}


@pytest.mark.parametrize("checker", CHECKERS)
def test_right_code_passes_and_every_mistake_is_found(checker):
    for name in (checker, "torch", "jax"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    found = CHECKERS[checker]()
    assert [each for each in found if each[0] == "right.py"] == []
    lines = FILES["wrong.py"].read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert {line for name, line, _ in found if name == "wrong.py"} == marked
