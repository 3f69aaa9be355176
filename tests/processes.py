"""Programs in an interpreter of their own."""

from __future__ import annotations

import os
import subprocess
import sys


def python(*arguments, cwd=None, status=0, **environment):
    """Run Python with these arguments until it exits as it must; return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout
