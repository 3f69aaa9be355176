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
from typing import IO, TYPE_CHECKING, Literal

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
    "numba",
    "numcodecs",
    "safetensors.numpy",
    "scipy.integrate",
    "scipy.stats",
    "torch._dynamo",
)
_PYTEST = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", "--hypothesis-seed=0")
_MEMORY = 12 << 30  # bytes of a process: a mutant may ask for more than there is
_MOST = 3600  # seconds of tests without a mutant
_SLOWER = 5  # than that,
_LEAST = 60  # and at least these seconds: then a mutant is in an endless loop


class CannotJudgeError(Exception):
    """Tests that fail without a mutant can judge none."""


@dataclass(frozen=True)
class Judgement:
    """How the tests took a mutant."""

    verdict: Verdict
    seconds: float
    by: str = ""
    """The test that failed."""


class Copy:
    """A temporary copy of the checkout and a process in it that runs tests."""

    def __init__(self, root: Path, libraries: Sequence[str] = LIBRARIES) -> None:
        self._folder = TemporaryDirectory(prefix="kldiv-mutants-", ignore_cleanup_errors=True)
        self.path = Path(self._folder.name, "checkout")
        self._log = Path(self._folder.name, "log")
        self._seconds: dict[Stage, float] = {}
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
        spent = 0.0
        for stage in stages:
            if stage not in self._seconds:
                self._prepare(stage)
            start = time.monotonic()
            code = self._run_changed(path, changed, stage)
            spent += time.monotonic() - start
            if code is None:
                return Judgement("timeout", spent)
            if code:
                return Judgement("killed", spent, self._failed())
        return Judgement("survived", spent)

    def _prepare(self, stage: Stage) -> None:
        """Run tests without a mutant, which shows that they pass and how long they take."""
        start = time.monotonic()
        if self._run(stage, seconds=_MOST, keep=True) != 0:
            raise CannotJudgeError(f"{' '.join(stage)}: {self._said()}")
        self._seconds[stage] = time.monotonic() - start

    def _run_changed(self, path: str, changed: str, stage: Stage) -> int | None:
        file = self.path / path
        kept = file.read_bytes()
        try:
            self._replace(file, changed.encode())
            return self._run(stage, seconds=max(_LEAST, _SLOWER * self._seconds[stage]), keep=False)
        finally:
            self._replace(file, kept)

    @staticmethod
    def _replace(file: Path, text: bytes) -> None:
        file.write_bytes(text)
        # Python takes a compiled file for current by second and size, which may both be the same.
        Path(cache_from_source(str(file))).unlink(missing_ok=True)

    def _run(self, stage: Stage, *, seconds: float, keep: bool) -> int | None:
        request = {
            "arguments": [*_PYTEST, *stage],
            "log": str(self._log),
            "seconds": seconds,
            "memory": _MEMORY,
            "keep": keep,
        }
        pipe = self._server
        if pipe.stdin is None or pipe.stdout is None:
            raise RuntimeError("the process that runs tests has no pipes")
        _send(pipe.stdin, request)
        answer = pipe.stdout.readline()
        if not answer:
            raise RuntimeError("the process that runs tests has ended")
        code: int | None = json.loads(answer)
        return code

    def _said(self) -> str:
        return self._log.read_text("utf-8", "replace")[-4000:]

    def _failed(self) -> str:
        lines = [line for line in self._said().splitlines() if line.startswith(("FAILED", "ERROR"))]
        return lines[0].split(" - ")[0] if lines else "no test could start"


def _send(pipe: IO[str], request: object) -> None:
    pipe.write(f"{json.dumps(request)}\n")
    pipe.flush()
