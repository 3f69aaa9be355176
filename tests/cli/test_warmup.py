"""``kldiv warmup``: the kernels that it compiles, their place on disk, and refusals."""

from __future__ import annotations

import re

import pytest
from processes import python

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("llvmlite")

from kldiv import backends


def test_kernels_of_a_function_are_kept_on_disk(tmp_path):
    words = ("-m", "kldiv", "warmup", "entropy_with_logits")
    lines = python(*words, KLDIV_CACHE_DIR=str(tmp_path)).splitlines()
    assert [re.sub(r": \d+\.\d s$", "", line) for line in lines] == [
        f"cross_entropy_with_logits, {dtype}" for dtype in ("float32", "float64")
    ]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.o")}
    names = {path.stem for path in kept}
    assert {"labels-float32", "labels-float32-gradients", "labels-float64"} <= names
    use = """
import numpy as np, kldiv
kldiv.value_and_grad(kldiv.entropy_with_logits)(np.zeros((9, 5000), 'float32'))
"""
    python("-c", use, KLDIV_CACHE_DIR=str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.o")} == kept


@pytest.mark.parametrize(
    ("arguments", "names", "first"),
    [
        ((), (), True),
        (("--all",), (), False),
        (("kl_div", "pairwise"), ("kl_div", "pairwise"), False),
    ],
)
def test_which_kernels_are_meant(command, monkeypatch, arguments, names, first):
    asked, done = [], []

    def kernels(given, *, first):
        asked.append((given, first))
        return [("one, float32", lambda: done.append(1)), ("two", lambda: done.append(2))]

    monkeypatch.setattr(backends, "compile_kernels", kernels)
    status, out, _ = command("warmup", *arguments)
    assert status == 0
    assert re.fullmatch(r"one, float32: 0\.\d s\ntwo: 0\.\d s\n", out)
    assert asked == [(names, first)]
    assert done == [1, 2]


def test_what_is_refused(command, monkeypatch):
    status, _, err = command("warmup", "kl_div", "--all")
    assert (status, "--all goes without names" in err) == (2, True)
    status, out, err = command("warmup", "kl_dvi")
    assert (status, out, "no CPU kernel serves 'kl_dvi'" in err) == (4, "", True)

    def fails():
        raise OSError("the disk is full")

    monkeypatch.setattr(backends, "compile_kernels", lambda *_, **__: [("KL", fails)])
    status, out, err = command("warmup")
    assert (status, out) == (4, "")
    assert "compiling KL fails: the disk is full" in err
