"""Run the examples as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script, *arguments, blocked=(), cwd=None, code=0):
    """Run an example in its own interpreter, warnings being errors, and return what it prints."""
    # A blocked library is not found, as if it were not installed.
    start = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({list(blocked)!r}))\n"
        f"sys.argv = {[script, *map(str, arguments)]!r}\n"
        f"runpy.run_path({str(EXAMPLES / script)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def load(name):
    spec = util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require(*modules):
    for module in modules:
        if util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


def is_png(path):
    content = path.read_bytes()
    return content.startswith(b"\x89PNG\r\n") and len(content) > 20_000
