"""Runs pytest again and again in children of a process that has loaded the libraries already.

Started as a script in a copy of the checkout, with their names.  Each line of stdin asks for a
run; each line of stdout says how it ended.  It never imports kldiv: every child imports it anew.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
import warnings
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def main() -> None:
    """Load the libraries, then run what each line of stdin asks for."""
    if not Path("/dev/nvidiactl").exists():
        os.environ["TRITON_INTERPRET"] = "1"  # asked for when torch loads Triton: tests/conftest.py
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # ends the child too: see `run`
    answers = os.fdopen(os.dup(1), "w")
    for name in ("pytest", *sys.argv[1:]):
        with suppress(ImportError):
            import_module(name)
    package = find_spec("kldiv")
    if package is None or not Path(str(package.origin)).is_relative_to(Path.cwd()):
        raise RuntimeError(f"tests would import {package}, expected a package in {Path.cwd()}")
    for line in sys.stdin:
        answers.write(f"{json.dumps(run(**json.loads(line)))}\n")
        answers.flush()


class _First:
    """A plugin of pytest that writes down which test or file fails first."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take a test's report."""
        if report.failed and not self.file.exists():
            self.file.write_text(report.nodeid, encoding="utf-8")

    pytest_collectreport = pytest_runtest_logreport


def run(
    arguments: list[str], log: str, seconds: float, memory: int, *, keep: bool
) -> dict[str, Any]:
    """Return pytest's exit status, None where it took longer than that, and what failed first.

    ``keep`` lets it write compiled files, ``memory`` is the most bytes of a process.
    """
    first = Path(f"{log}-first")
    first.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of any fork: it runs no thread yet
        child = os.fork()
    if not child:
        os.setsid()
        code = 3
        try:
            code = _in_child(arguments, log, first, memory, keep=keep)
        except BaseException:  # noqa: BLE001 - nothing may run on as a second server
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    try:
        status = _wait(child, time.monotonic() + seconds)
        failed = first.read_text("utf-8") if first.exists() else ""
        return {"code": status, "failed": failed}
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # with all that it has started


def _in_child(arguments: list[str], log: str, first: Path, memory: int, *, keep: bool) -> int:
    import resource  # noqa: PLC0415 - not on Windows, which has no fork either

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with Path(log).open("wb") as file, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if not keep:
        sys.dont_write_bytecode = True
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.path.insert(0, str(Path.cwd()))  # as python -m pytest has it
    return int(import_module("pytest").main(arguments, [_First(first)]))


def _wait(child: int, until: float) -> int | None:
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.02)


if __name__ == "__main__":
    main()
