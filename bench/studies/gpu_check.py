"""Everything worth knowing on a machine with a GPU: tests, accuracy, speed, in one go.

Each part reports its steps, those skipped and why, and failures; the JSON file is written after
each, and by a watchdog if one of them hangs. With ``--device cpu`` the same steps are rehearsed on
a machine without a GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from datetime import UTC, datetime
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..harness import cells, progress, records, runner
from ..harness.libraries import LIBRARIES
from ..report import page
from . import accuracy_grid

if TYPE_CHECKING:
    from collections.abc import Callable

    Part = dict[str, Any]

SCHEMA: Final = records.GPU_CHECK
ALL_WELL, FAILED, NO_GPU = 0, 1, 3
"""Exit codes."""
_TESTS: Final = 0.35  # of the time, at most
_GRID: Final = 0.25
_SHAPE: Final = {"cuda": (4096, 32000), "cpu": (64, 1000)}
_DTYPES: Final = ("bfloat16", "float32")
_WORKERS: Final = 8
"""Of pytest, where xdist is installed: they share a GPU."""
_GRACE: Final = 20.0  # seconds that writing the files may take
_COUNT: Final = re.compile(r"(\d+) (passed|failed|error|skipped)")


def main(
    out: Path, html: Path, minutes: float, device: str = "cuda", tests: Path | None = None
) -> int:
    """Check, write both files, and return the exit code."""
    check = Check(out, html, 60 * minutes, device)
    watchdog = threading.Timer(max(1.0, 60 * minutes - _GRACE), check.give_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        return check.run(tests)
    finally:
        watchdog.cancel()


class Check:
    """The findings so far."""

    def __init__(self, out: Path, html: Path, seconds: float, device: str) -> None:
        self.out, self.html, self.device = out, html, device
        self.begin, self.seconds = time.monotonic(), seconds
        self.lock = threading.Lock()
        self.part = "libraries"
        self.found: dict[str, Any] = {
            "schema": SCHEMA,
            "version": records.VERSION,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": device,
            "outcome": "not finished",
            "libraries": {},
            "tests": _skipped("not reached"),
            "accuracy": _skipped("not reached"),
            "speed": _skipped("not reached"),
            "benchmark": None,
        }

    def left(self) -> float:
        """Return the seconds that are left for work."""
        return self.seconds - 2 * _GRACE - (time.monotonic() - self.begin)

    def run(self, tests: Path | None) -> int:
        """Do all parts; an error in one does not keep the others from running."""
        here = self._libraries()
        if not here:
            for part in ("tests", "accuracy", "speed"):
                self.found[part] = _skipped(f"no library reaches a device for {self.device}")
            return self._finish(NO_GPU, "nothing was checked: no GPU is reachable from here")
        with progress.bar() as told:
            self._do("tests", lambda: self._tests(tests), told)
            self._do("accuracy", lambda: self._accuracy(here, told), told)
            self._do("speed", lambda: self._speed(told), told)
        parts = [self.found[name]["status"] for name in ("tests", "accuracy", "speed")]
        if "failed" in parts:
            return self._finish(FAILED, "something failed")
        said = "all well" if "skipped" not in parts else "what ran went well; some was skipped"
        return self._finish(ALL_WELL, said)

    def _libraries(self) -> list[str]:
        """Return the libraries that reach the device, and note down the others."""
        able = []
        for name, library in LIBRARIES.items():
            if self.device not in library.devices:
                continue
            why = library.problem(self.device)
            self.found["libraries"][name] = {"reason": why, "install": library.install()}
            if why is None:
                able.append(name)
                print(f"{name}: reaches {self.device}")
            else:
                print(f"{name}: skipped, {why}; {library.install()}")
        return able

    def _do(self, name: str, work: Callable[[], Part], told: Callable[[float, str], None]) -> None:
        told(0.0, name)
        self.part = name
        try:
            found = work()
        except Exception:  # noqa: BLE001 - it is what this reports
            found = {"status": "failed", "said": traceback.format_exc()[-4000:]}
        with self.lock:
            self.found[name] = found
        self._write()
        print(f"{name}: {found['status']}; {found['said'].splitlines()[-1]}")

    # ---- the parts -------------------------------------------------------------------------------

    def _tests(self, folder: Path | None) -> Part:
        folder = folder or Path(__file__).parents[2] / "tests"
        if not (folder / "conftest.py").exists():
            return _skipped(f"kldiv's tests are not at {folder}; name their folder by --tests")
        if find_spec("pytest") is None:
            return _skipped("pytest is not installed: pip install pytest")
        marker = "gpu" if self.device == "cuda" else "gpu and not gpu"
        limit = max(10.0, _TESTS * self.left())
        with tempfile.TemporaryDirectory() as scratch:
            settings = Path(scratch) / "pytest.ini"
            # The repository's own settings need plugins that may not be here.
            settings.write_text("[pytest]\nmarkers = gpu: needs a GPU\n", encoding="utf-8")
            command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "-rfE", "--tb=short"]
            command += ["-c", str(settings), "--rootdir", str(folder.parent)]
            command += ["--import-mode=importlib"]  # files of the same name in different folders
            if find_spec("xdist"):
                command += ["-n", str(min(_WORKERS, os.cpu_count() or 1)), "--dist=worksteal"]
            command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", str(folder)]
            paths = [str(folder), str(folder.parent), os.environ.get("PYTHONPATH", "")]
            try:
                done = subprocess.run(  # noqa: S603 - pytest itself
                    command,
                    capture_output=True,
                    text=True,
                    timeout=limit,
                    check=False,
                    cwd=folder.parent,
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                        # JAX takes most of a GPU for itself, and workers share it.
                        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                    },
                )
            except subprocess.TimeoutExpired as error:
                text = error.stdout.decode(errors="replace") if error.stdout else ""
                return {
                    "status": "failed",
                    "output": text[-8000:],
                    "said": f"not done after {limit:.0f} s",
                }
        return _judge_tests(done.returncode, done.stdout + done.stderr)

    def _accuracy(self, here: list[str], told: Callable[[float, str], None]) -> Part:
        until = time.monotonic() + _GRID * self.left()
        rows = accuracy_grid.measure(
            here,
            self.device,
            quick=self.device == "cpu",
            enough=lambda: time.monotonic() > until,
            progress=lambda done, what: told(done, f"accuracy: {what}"),
        )
        beyond = [row for row in rows["cells"] if not row["within"]]
        said = f"{len(rows['cells'])} errors measured, {len(beyond)} beyond their targets"
        if rows["left"]:
            said += f"; {rows['left']} left out for lack of time"
        bad = bool(beyond) or not rows["cells"]
        return {"status": "failed" if bad else "passed", "said": said, **rows}

    def _speed(self, told: Callable[[float, str], None]) -> Part:
        request = cells.Request(
            dtypes=_DTYPES,
            shapes=[_SHAPE[self.device]],
            device=self.device,
            quick=self.device == "cpu",
        )
        plan = cells.plan(request)
        runs = runner.Runner(plan, runner.QUICK, {"device": self.device, "gpu_check": True})
        runs.enough = lambda: self.left() < 0
        with tempfile.TemporaryDirectory() as scratch:
            found = runs.run(
                Path(scratch) / "results.json", lambda done, what: told(done, f"speed: {what}")
            )
        with self.lock:
            self.found["benchmark"] = found
        wrong = [
            c
            for c in found["cells"]
            if c["who"] == cells.OWN and c["status"] in {"wrong", "failed"}
        ]
        timed = [c for c in found["cells"] if c["median_s"]]
        said = f"{len(timed)} times measured, {len(wrong)} cells of kldiv failed or wrong"
        if not found["complete"]:
            said += f"; {len(runs.left())} groups left out for lack of time"
        bad = bool(wrong) or not timed
        return {
            "status": "failed" if bad else "passed",
            "said": said,
            "wrong": [f"{c['key']}: {c['reason']}" for c in wrong],
        }

    # ---- the files -------------------------------------------------------------------------------

    def _write(self) -> None:
        with self.lock:
            found = dict(self.found)
        found["seconds"] = round(time.monotonic() - self.begin, 1)
        records.write_text(self.out, records.dumps_lines(found))

    def _finish(self, code: int, outcome: str) -> int:
        self.found["outcome"] = outcome
        self._write()
        benchmark = self.found["benchmark"] or runner.nothing()
        records.write_text(self.html, page(benchmark, summary(self.found)))
        print(f"{outcome}; written to {self.out} and {self.html}")
        return code

    def give_up(self) -> None:
        """Write the findings so far and end the process: some part hangs and time is up."""
        self.found[self.part or "tests"] = {"status": "failed", "said": "hung until time was up"}
        self._finish(FAILED, f"time was up in: {self.part}")
        sys.stdout.flush()
        os._exit(FAILED)


def _skipped(why: str) -> Part:
    return {"status": "skipped", "said": why}


def _judge_tests(code: int, output: str) -> Part:
    """Return the verdict of pytest's exit code and closing line; nothing run is not a pass."""
    closing = next((line for line in reversed(output.splitlines()) if _COUNT.search(line)), "")
    counts = {word: int(number) for number, word in _COUNT.findall(closing)}
    part = {"counts": counts, "output": output[-8000:], "said": closing.strip(" =") or "no result"}
    if code == 0 and counts.get("passed"):
        return {"status": "passed", **part}
    if code == 5 or (code == 0 and not counts.get("passed")):
        return {**part, "status": "skipped", "said": f"no GPU test ran: {part['said']}"}
    return {"status": "failed", **part}


def summary(found: dict[str, Any]) -> str:
    """Return the lines that the page shows before the benchmark."""
    names = {"tests": "Tests", "accuracy": "Accuracy", "speed": "Speed"}
    rows = "".join(
        f'<tr><td>{names[name]}</td><td class="{_LOOK[found[name]["status"]]}">'
        f"{found[name]['status']}</td><td>{escape(found[name]['said'].splitlines()[-1])}</td></tr>"
        for name in names
    )
    libraries = "".join(
        f"<tr><td>{escape(name)}</td><td>{'reached' if each['reason'] is None else 'skipped'}</td>"
        f"<td>{escape(each['reason'] or '')}</td></tr>"
        for name, each in found["libraries"].items()
    )
    heading = f"<h2>GPU check: {escape(found['outcome'])}</h2>"
    body = f"<table><tbody>{rows}{libraries}</tbody></table>"
    parts = [f"<section>{heading}{body}</section>\n"]
    if found["tests"].get("output") and found["tests"]["status"] == "failed":
        tail = found["tests"]["output"][-3000:]
        parts.append(f"<section><h2>Tests</h2><pre>{escape(tail)}</pre></section>\n")
    if found["accuracy"].get("cells"):
        parts.append(accuracy_grid.table(found["accuracy"]["cells"]))
    return "".join(parts)


_LOOK: Final = {"passed": "", "failed": "failed", "skipped": "unstable"}
