"""The fuzzer finds what a reader must not do, and its files break none of the readers."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tools.fuzz import targets
from tools.fuzz.packages import EVERY
from tools.fuzz.targets import OverBudgetError, Target, dented, packed, unpacked

ROOT = Path(__file__).parents[2]
NEEDS = {"safetensors": "safetensors", "zarr": "zarr", "shards": "safetensors"}


@pytest.mark.parametrize(
    "name", [name for name in EVERY if name not in NEEDS or find_spec(NEEDS[name])]
)
def test_files_that_are_nearly_right_break_no_reader(name, tmp_path, monkeypatch):
    monkeypatch.setattr("kldiv.readers.sources.STORED", 64)
    target = EVERY[name]
    with suppress(OverBudgetError):  # the libraries that the first one loads
        target.check(target.seeds()[0], tmp_path)
    for seed in target.seeds():
        target.check(seed, tmp_path)
    for number in range(30):
        random = Random(number)  # noqa: S311 - no secret
        target.check(target.make(random), tmp_path)
        seed = random.choice(target.seeds())
        target.check(dented(random, seed, 1.0), tmp_path)


def planted(monkeypatch, action):
    monkeypatch.setattr(targets, "read", lambda *_, **__: action())
    return Target(lambda: [b""], Random.random, suffix=".npy")


def test_another_exception_is_a_finding(monkeypatch, tmp_path):
    with pytest.raises(ZeroDivisionError):
        planted(monkeypatch, lambda: 1 / 0).check(b"", tmp_path)


def test_memory_beyond_the_budget_is_a_finding(monkeypatch, tmp_path):
    target = planted(monkeypatch, lambda: np.empty(2 * targets.ALLOWED, np.uint8))
    with pytest.raises(OverBudgetError, match="_read"):
        target.check(b"", tmp_path)


def test_every_input_is_files_of_a_folder():
    names = ("a", "b")
    files = {"b": b"xyz", "a": b""}
    assert unpacked(packed(files, names), names) == files
    assert unpacked(b"\x05\xff\xffrest", names) == {"b": b"rest"}


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_the_engine_keeps_the_input_that_breaks_a_reader(tmp_path):
    code = """
import sys
from tools.fuzz import engine, targets

def check(self, data, scratch):
    if len(data) > 3:
        raise KeyError("planted")

targets.Target.check = check
engine.main("npy", 60, *sys.argv[1:], 0)
"""
    for name in ("corpus", "findings"):
        (tmp_path / name).mkdir()
    (tmp_path / "corpus/x").write_bytes(b"x" * 9)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "corpus"), str(tmp_path / "findings")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "planted" in done.stdout + done.stderr
    assert len(list((tmp_path / "findings").iterdir())) == 1
