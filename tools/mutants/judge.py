"""A copy of the checkout in which one mutant after another is tested."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from kldiv import config

if TYPE_CHECKING:
    from collections.abc import Sequence

    Verdict = Literal["killed", "survived", "timeout"]
    Stage = tuple[str, ...]
    """Arguments of one run of pytest."""

_COPIED = ("kldiv", "tests", "bench", "docs", "examples", "pyproject.toml", "README.md")
# Loading these takes longer than most tests.  Not pytest's plugins: it rewrites their asserts.
LIBRARIES = (
    "array_api_strict",
    "dask.array",
    "jax.numpy",
    "ml_dtypes",
    "mpmath",
    "llvmlite",
    "numcodecs",
    "safetensors.numpy",
    "scipy.integrate",
    "scipy.stats",
    "torch._dynamo",
)
_PYTEST = (
    "-x",
    "-q",
    "-n",
    "0",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:zarr",
    "--no-header",
    "--hypothesis-seed=0",
)
_MEMORY = 12 << 30  # bytes of a process: a mutant may ask for more than there is
_TEST = 120  # seconds of a test,
_STAGE = 1200  # and of a run: then a mutant is in an endless loop
_TOO_LONG = "Failed: Timeout"  # says pytest-timeout


class CannotJudgeError(Exception):
    """Tests that fail without a mutant can judge none."""


@dataclass(frozen=True)
class Judgement:
    """How the tests took a mutant."""

    verdict: Verdict
    seconds: float
    by: str = ""
    """The test that failed; empty where none could start."""


class Copy:
    """A temporary copy of the checkout and a process in it that runs tests."""

    def __init__(self, root: Path, libraries: Sequence[str] = LIBRARIES) -> None:
        self._folder = TemporaryDirectory(prefix="kldiv-mutants-", ignore_cleanup_errors=True)
        self.path = Path(self._folder.name, "checkout")
        self._log = Path(self._folder.name, "log")
        self._passes: set[Stage] = set()
        without = shutil.ignore_patterns("__pycache__", ".*")
        self.path.mkdir()
        kept = [name for name in _COPIED if (root / name).exists()]
        for name in kept:
            if (root / name).is_dir():
                shutil.copytree(root / name, self.path / name, ignore=without)
            else:
                shutil.copy2(root / name, self.path / name)
        self._server = self._started(libraries)

    def _started(self, libraries: Sequence[str]) -> subprocess.Popen[str]:
        temporary = Path(self._folder.name, "tmp")
        temporary.mkdir()
        outside = {*config.VARIABLES, "KLDIV_CONFIG", "PYTHONPATH"}
        own = {name: value for name, value in os.environ.items() if name not in outside}
        own |= {"PYTHONPATH": str(self.path), "TMPDIR": str(temporary)}
        # -P: not the script's own folder, in which other names could be found.
        command = [sys.executable, "-P", str(Path(__file__).with_name("server.py")), *libraries]
        return subprocess.Popen(  # noqa: S603 - this interpreter
            command,
            cwd=self.path,
            env=own,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the command
        )

    def close(self) -> None:
        """End the process, which may be at work, and remove the copy."""
        self._server.terminate()
        self._server.wait()
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()

    def judge(self, path: str, changed: str, stages: Sequence[Stage]) -> Judgement:
        """Run tests with other text in a file, until one fails."""
        start = time.monotonic()
        for stage in stages:
            run = self._run_changed(path, changed, stage)
            if run["code"] != 0:
                spent = time.monotonic() - start
                if run["code"] is None or _TOO_LONG in self._log.read_text("utf-8", "replace"):
                    return Judgement("timeout", spent, run["failed"])
                self._verify(run["failed"], stage)
                return Judgement("killed", spent, run["failed"])
        return Judgement("survived", time.monotonic() - start)

    def _verify(self, failed: str, stage: Stage) -> None:
        """Show that what has failed passes without a mutant, or is collected where none ran."""
        alone: Stage = (failed,) if "::" in failed else ("--collect-only", *stage)
        if alone in self._passes:
            return
        if self._run(alone, keep=True)["code"] != 0:
            raise CannotJudgeError(f"{' '.join(alone)}: {self._said()}")
        self._passes.add(alone)

    def _run_changed(self, path: str, changed: str, stage: Stage) -> dict[str, Any]:
        file = self.path / path
        kept = file.read_bytes()
        try:
            self._replace(file, changed.encode())
            return self._run(stage, keep=False)
        finally:
            self._replace(file, kept)

    @staticmethod
    def _replace(file: Path, text: bytes) -> None:
        file.write_bytes(text)
        # Python takes a compiled file for current by second and size, which may both be the same.
        Path(cache_from_source(str(file))).unlink(missing_ok=True)

    def _run(self, stage: Stage, *, keep: bool) -> dict[str, Any]:
        request = {
            "arguments": [*_PYTEST, f"--timeout={_TEST}", *stage],
            "log": str(self._log),
            "seconds": _STAGE,
            "memory": _MEMORY,
            "keep": keep,
        }
        pipe = self._server
        if pipe.stdin is None or pipe.stdout is None:
            raise RuntimeError("the process that runs tests has no pipes")
        pipe.stdin.write(f"{json.dumps(request)}\n")
        pipe.stdin.flush()
        answer = pipe.stdout.readline()
        if not answer:
            raise RuntimeError("the process that runs tests has ended")
        run: dict[str, Any] = json.loads(answer)
        return run

    def _said(self) -> str:
        return self._log.read_text("utf-8", "replace")[-4000:]
