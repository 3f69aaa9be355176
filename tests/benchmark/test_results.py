"""The results file: its schema, resuming, and a whole run of little things."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark.suite import cell, load, results
from click.testing import CliRunner
from processes import python

from kldiv.errors import BackendError
from kldiv.kernels.cpu import CPU

records, runner, cells, libraries, peers = map(
    load, [f"harness.{name}" for name in ("records", "runner", "cells", "libraries", "peers")]
)
operations, timing = load("harness.operations"), load("harness.timer")
app = load("app").app

TINY = timing.Effort(warmup=0.0, sample=0.0, rounds=(3, 3), budget=1.0)
SMALL = "--quick --op kl_div --backend numpy --peer none --shape 8x10".split()


@pytest.fixture(autouse=True)
def small_bandwidth(monkeypatch):
    """Whoever tests the bookkeeping need not read gigabytes."""
    monkeypatch.setattr(load("harness.bandwidth"), "BYTES", {"cpu": 1 << 20})


def test_programs_that_the_suite_names_are_there():
    root = Path(load("harness.records").__file__).parents[2]
    texts = [path.read_text(encoding="utf-8") for path in (root / "bench").rglob("*.py")]
    names = set(re.findall(r'(?:python -m |")(bench\.[\w.]+)', "".join(texts)))
    assert "bench.studies.linear" in names
    for name in names:
        assert root.joinpath(*name.split(".")).with_suffix(".py").exists(), name


# --- the schema -----------------------------------------------------------------------------------


def test_a_file_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "results.json"
    written = results(cell([1.0, 1.25, 2.0]), cell([0.5] * 3, who="torch eager"))
    records.write(path, written)
    assert records.read(path) == written
    again = tmp_path / "again.json"
    records.write(again, records.read(path))
    assert again.read_bytes() == path.read_bytes()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum('"key"' in line for line in lines) == 2, "a line for each cell"


def test_what_is_not_finite_becomes_null(tmp_path):
    path = tmp_path / "results.json"
    records.write(path, results(cell([1.0] * 3, error=float("inf"))))
    assert records.read(path)["cells"][0]["error"] is None


def spoilt(change):
    found = results(cell([1.0] * 3))
    change(found)
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(schema="else"), "schema 'kldiv-bench'"),
        (lambda r: r.update(version=99), "version 99"),
        (lambda r: r.pop("machine"), "machine is missing"),
        (lambda r: r.update(extra=1), "unknown field 'extra'"),
        (lambda r: r["cells"][0].pop("median_s"), r"cells\[0\]: median_s is missing"),
        (lambda r: r["cells"][0].update(n="three"), "n is str"),
        (lambda r: r["cells"][0].update(status="fine"), "status 'fine'"),
        (lambda r: r["cells"].append(r["cells"][0]), "twice"),
    ],
)
def test_what_is_not_as_the_schema_says_is_named(change, said):
    with pytest.raises(records.ResultsError, match=said):
        records.check(spoilt(change))


@pytest.mark.parametrize(("text", "said"), [("", "not JSON"), ("[]", "schema")])
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(records.ResultsError, match=said):
        records.read(path)


def test_an_interrupted_write_leaves_the_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    records.write(path, results())
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        records.write(path, results(cell([1.0] * 3)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- a run ----------------------------------------------------------------------------------------


def measured(tmp_path, request, **replaced):
    """Run a plan with hardly an effort."""
    for name, value in replaced.items():
        peers.PEERS[name] = value
    plan = cells.plan(request)
    path = tmp_path / "results.json"
    return runner.Runner(plan, TINY, {}).run(path, lambda *_: None)


def request(**options):
    return cells.Request(
        **{
            "operations": ["kl_div"],
            "libraries": ["numpy"],
            "peers": [],
            "dtypes": ["float64"],
            "shapes": [(8, 10)],
            **options,
        }
    )


def test_every_kernel_that_kldiv_has_is_measured(tmp_path):
    import kldiv

    found = measured(tmp_path, request())
    kernels = kldiv.available_backends()["numpy"].kernels
    own = [each for each in found["cells"] if each["who"] == "kldiv"]
    assert [each["kernel"] for each in own] == [*kernels, *kernels]
    assert {each["pass"] for each in own} == {"value", "gradient"}


def test_a_cell_says_all_that_was_measured(tmp_path):
    found = measured(tmp_path, request(peers=["NumPy, written out"]))
    assert found["complete"]
    own = next(each for each in found["cells"] if each["who"] == "kldiv")
    assert own["status"] == "ok"
    assert own["n"] == 3
    assert own["first_s"] > 0
    assert own["error"] < 1e-14
    assert own["memory"]["tracemalloc"] > 0
    assert own["bytes"] == {"read": 2 * 80 * 8, "written": 0}
    assert own["bytes_per_s"] == pytest.approx(1280 / own["median_s"], rel=1e-6)
    assert set(own["ratios"]) == {"NumPy, written out", "memory"}
    for each in own["ratios"].values():
        assert each["low"] <= each["ratio"] <= each["high"]
    assert found["bandwidth"]["cpu"].keys() == {"read", "copy"}
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["numpy"] == np.__version__


def test_a_kernel_that_does_not_do_it_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries.LIBRARIES["numpy"], "kernels", lambda: ("pure", "auto", "none"))

    def settings(library, dtype, kernel):
        if kernel == "none":
            raise BackendError("kernel 'none' does not do this")
        return real(library, dtype, kernel)

    real = runner.settings
    monkeypatch.setattr(runner, "settings", settings)
    found = measured(tmp_path, request())
    statuses = {each["kernel"]: each["status"] for each in found["cells"]}
    assert statuses == {None: "ok", "pure": "ok", "auto": "ok", "none": "unavailable"}
    unavailable = next(each for each in found["cells"] if each["kernel"] == "none")
    assert unavailable["reason"] == "BackendError: kernel 'none' does not do this"


def fake(name, formula, **options):
    return peers.Peer(
        name, "numpy", ("numpy",), "pip install numpy", {"kl_div": lambda: formula}, **options
    )


@pytest.fixture
def own_peers(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", dict(peers.PEERS))
    for module in (cells, runner):
        monkeypatch.setattr(module, "PEERS", peers.PEERS)


@pytest.mark.usefixtures("own_peers")
def test_a_wrong_peer_is_shown_as_wrong(tmp_path):
    wrong = fake("wrong", lambda x, y: (y * (np.log(y) - x)).sum() * (1 + 1e-6))
    found = measured(tmp_path, request(peers=["wrong"]), wrong=wrong)
    (each,) = (each for each in found["cells"] if each["who"] == "wrong")
    assert each["status"] == "wrong"
    assert each["error"] == pytest.approx(1e-6, rel=1e-3)
    assert "wrong by 1.0e-06" in each["reason"]
    own = next(each for each in found["cells"] if each["who"] == "kldiv")
    assert "wrong" not in own["ratios"]


@pytest.mark.usefixtures("own_peers")
def test_a_peer_that_breaks_is_named_and_the_others_go_on(tmp_path):
    broken = fake("broken", lambda _x, _y: 1 / 0)
    found = measured(tmp_path, request(peers=["broken"]), broken=broken)
    (each,) = (each for each in found["cells"] if each["who"] == "broken")
    assert (each["status"], each["reason"]) == ("failed", "ZeroDivisionError: division by zero")
    others = [each["status"] for each in found["cells"] if each["who"] != "broken"]
    assert set(others) == {"ok"}
    assert len(others) >= 4  # more kernels make more cells


@pytest.mark.usefixtures("own_peers")
def test_a_missing_peer_is_shown_with_its_install_line(tmp_path):
    absent = replace(fake("absent", None), needs=("no_such_module",), install="pip install x")
    found = measured(tmp_path, request(peers=["absent"]), absent=absent)
    assert found["missing"] == {
        "absent": {"reason": "no_such_module not installed", "install": "pip install x"}
    }


@pytest.mark.parametrize(
    "name",
    [  # libraries that compile take seconds for each
        pytest.param(name, marks=() if name in {"kl_div", "kl_div_none"} else pytest.mark.slow)
        for name in operations.OPERATIONS
    ],
)
def test_every_peer_computes_what_kldiv_does(tmp_path, name):
    """A formula in the table that is wrong would make a peer look fast."""
    others = [each for each in peers.PEERS if each != "torch.compile"]  # it takes long
    found = measured(tmp_path, request(operations=[name], peers=others, shapes=[(4, 50)]))
    bad = [f"{each['key']}: {each['reason']}" for each in found["cells"] if each["status"] != "ok"]
    # SimSIMD adds 1e-7 to every probability, in every dtype.
    assert [line for line in bad if "SimSIMD" not in line] == []
    assert max(each["error"] or 0 for each in found["cells"] if each["who"] != "SimSIMD") < 1e-12


# --- resuming -------------------------------------------------------------------------------------


def test_resume_measures_only_what_is_missing(tmp_path):
    path = tmp_path / "results.json"
    plan = cells.plan(request())
    first = runner.Runner(plan, TINY, {})
    stop = iter([False, True])
    first.enough = lambda: next(stop)
    before = first.run(path, lambda *_: None)
    assert not before["complete"]
    assert {each["pass"] for each in before["cells"]} == {"value"}

    second = runner.Runner(plan, TINY, {})
    second.resume(records.read(path))
    assert [group.part for group in second.left()] == ["gradient"]
    after = second.run(path, lambda *_: None)
    assert after["complete"]
    assert after["cells"][: len(before["cells"])] == records.plain(before["cells"])
    assert runner.Runner(plan, TINY, {}).left().keys() == plan.groups.keys()


def test_another_run_is_not_resumed(tmp_path):
    before = runner.Runner(cells.plan(request()), TINY, {}).run(tmp_path / "a", lambda *_: None)
    other = runner.Runner(cells.plan(request()), TINY, {}, seed=1)
    with pytest.raises(records.ResultsError, match="settings"):
        other.resume(before)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "kldiv", "bench", "run", *SMALL, "--out", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    killed = records.read(path)
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resumed = records.read(path)
    assert resumed["complete"]
    kept = len(killed["cells"])
    assert kept
    assert resumed["cells"][:kept] == killed["cells"]
    assert len(resumed["cells"]) == len({each["key"] for each in resumed["cells"]})


# --- the command ----------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "nothing"], "'nothing' is none of kl_div"),
        (["--backend", "nothing"], "'nothing' is none of numpy"),
        (["--peer", "nothing"], "'nothing' is none of torch eager"),
        (["--dtype", "int8"], "'int8' is none of"),
        (["--shape", "10"], "1024x32000"),
    ],
)
def test_unknown_names_are_answered_with_the_known(arguments, said):
    done = invoke("run", *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_nothing_to_measure_says_why(tmp_path):
    done = invoke("run", "--backend", "cupy", "--peer", "none", "--out", tmp_path / "a.json")
    assert done.exit_code == 4
    assert "there is nothing to measure" in done.output


def test_a_part_of_a_name_finds_peers():
    known = load("app")._known("--peer", ("scipy",), peers.PEERS, parts=True)
    assert known == ("scipy rel_entr", "scipy rel_entr of softmax", "scipy entropy")


def test_gpu_check_without_a_gpu_says_so(tmp_path, monkeypatch):
    for library in libraries.LIBRARIES.values():
        monkeypatch.setattr(library, "device_problem", "nothing for {}".format, raising=False)
    done = invoke("gpu-check", "--out", tmp_path / "a.json", "--html", tmp_path / "a.html")
    assert done.exit_code == 3, done.output
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["outcome"].startswith("nothing was checked")
    assert {found[part]["status"] for part in ("tests", "accuracy", "speed")} == {"skipped"}
    assert set(found["libraries"]) == {"torch", "jax", "cupy"}
    assert all(each["reason"] for each in found["libraries"].values())
    assert "nothing was checked" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert invoke("report", tmp_path / "a.json").exit_code == 4


def checked(tmp_path, monkeypatch, *arguments, tests=""):
    """Rehearse the GPU check on NumPy alone, with a folder of tests of our own."""
    monkeypatch.setattr(libraries, "LIBRARIES", {"numpy": libraries.LIBRARIES["numpy"]})
    for name in ("studies.gpu_check", "studies.accuracy_grid", "harness.cells", "harness.runner"):
        monkeypatch.setattr(load(name), "LIBRARIES", libraries.LIBRARIES)
    monkeypatch.setattr(cells, "PEERS", {"NumPy, written out": peers.NUMPY})
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "conftest.py").write_text("", encoding="utf-8")
    (folder / "test_it.py").write_text(tests, encoding="utf-8")
    out = tmp_path / "a.json"
    done = invoke(
        *("gpu-check", "--device", "cpu", "--tests", folder),
        *("--out", out, "--html", tmp_path / "a.html", *arguments),
    )
    return done, json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_gpu_check_rehearsed_on_a_cpu(tmp_path, monkeypatch):
    done, found = checked(tmp_path, monkeypatch)
    assert done.exit_code == 0, done.output
    assert found["tests"]["status"] == "skipped"
    assert found["accuracy"]["status"] == found["speed"]["status"] == "passed", found
    assert records.check(found["benchmark"])["complete"]
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "within the targets" in page
    assert invoke("report", tmp_path / "a.json", "--markdown").exit_code == 0


@pytest.mark.slow
def test_gpu_check_notices_what_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(load("studies.accuracy_grid"), "measure", lambda *_, **__: 1 / 0)
    done, found = checked(tmp_path, monkeypatch)
    assert done.exit_code == 1
    assert "ZeroDivisionError" in found["accuracy"]["said"]
    assert found["speed"]["status"] == "passed"


def test_a_kernel_that_fails_is_reported_and_tried_again(monkeypatch):
    tried = []

    def prepare(work):
        tried.append(work)
        raise CPU.failed(RuntimeError("no such chip"))

    monkeypatch.setattr(CPU, "prepare", prepare)
    monkeypatch.setattr(CPU, "installed", True)
    monkeypatch.setattr("kldiv.backends.routing._places", {})  # whose routes keep launchers
    grid = load("studies.accuracy_grid")
    found = grid.measure(
        *(["numpy"], "cpu"),
        quick=True,
        enough=lambda: len(tried) > 1,
        progress=lambda *_: None,
    )
    reasons = [cell["reason"] for cell in found["cells"] if cell["kernel"] == "cpu"]
    assert len(reasons) > 1
    assert all("no such chip" in reason for reason in reasons)
    assert CPU.failure is None


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [
        (0, "==== 12 passed, 3 skipped in 4.0s ====", "passed"),
        (1, "==== 1 failed, 11 passed in 4.0s ====", "failed"),
        (1, "==== 11 passed, 2 errors in 4.0s ====", "failed"),
        (0, "==== 15 skipped in 4.0s ====", "skipped"),
        (5, "==== 100 deselected in 1.0s ====", "skipped"),
        (2, "Traceback", "failed"),
        (-9, "", "failed"),
    ],
)
def test_what_tests_come_to(code, output, status):
    assert load("studies.gpu_check")._judge_tests(code, output)["status"] == status


def test_gpu_check_hangs_no_longer_than_it_may(tmp_path):
    """The watchdog writes what there is, and the process ends."""
    code = (
        "import sys, time; from kldiv.cli import bench\n"
        "from importlib import import_module\n"
        "check = import_module(bench.suite().__name__ + '.studies.gpu_check')\n"
        "check._GRACE = 0.0\n"
        "check.Check._libraries = lambda *_: ['numpy']\n"
        "check.Check._tests = lambda *_: time.sleep(600)\n"
        "from pathlib import Path\n"
        "sys.exit(check.main(Path('a.json'), Path('a.html'), 1 / 60, 'cpu'))\n"
    )
    root = str(Path(load("app").__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    python("-c", code, cwd=tmp_path, status=1, PYTHONPATH=path)
    found = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert found["outcome"] == "time was up in: tests"
    assert found["tests"]["status"] == "failed"
    assert (tmp_path / "a.html").exists()
