"""The distillation example learns the same on each library, and its student gains by it."""

from __future__ import annotations

import re

import pytest
from repository.example_runs import is_png, load, require, run

NEEDS = ("sklearn", "rich", "matplotlib")
MODELS = ["teacher", "plain student", "distilled student"]


@pytest.mark.slow
@pytest.mark.parametrize(  # each takes the same steps: see below
    "backend", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("numpy", "jax"))]
)
def test_distill_digits_gains_and_draws(backend, tmp_path):
    require(backend, *NEEDS)
    arguments = ["--backend", backend, "--epochs", 60, "--out", "curves.png"]
    printed = run("distill_digits.py", *arguments, cwd=tmp_path)
    rows = [[cell.strip() for cell in re.split(r"[│|]", line)] for line in printed.splitlines()]
    right = {row[1]: float(row[5].rstrip("%")) for row in rows if row[1:] and row[1] in MODELS}
    assert list(right) == MODELS
    assert right["teacher"] > 95
    assert right["distilled student"] > right["plain student"] + 5
    assert is_png(tmp_path / "curves.png")


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_distill_digits_takes_the_same_steps_on_each_library(backend):
    require(backend, "sklearn")
    distill = load("distill_digits")
    train = distill.TRAININGS
    names, expected = zip(*distill.learn(train["numpy"], 1, 12), strict=True)
    same, found = zip(*distill.learn(train[backend], 1, 12), strict=True)
    assert same == names
    assert [name for name in MODELS for _ in range(13)] == list(names)
    for ours, theirs in zip(expected, found, strict=True):
        # Rounding may turn the one or other image.
        assert theirs.accuracy == pytest.approx(ours.accuracy, abs=0.005)
        assert theirs.divergence == pytest.approx(ours.divergence, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("epochs", [0, 3, 20])
def test_distill_digits_can_be_interrupted(epochs, monkeypatch, tmp_path, capsys):
    require(*NEEDS)
    distill = load("distill_digits")
    learn = distill.learn

    def interrupted(train, seed, _):
        yield from distill.islice(learn(train, seed, 4), epochs)
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "learn", interrupted)
    out = tmp_path / "curves.png"
    assert distill.main(["--backend", "numpy", "--epochs", "4", "--out", str(out)]) == 130
    assert "Traceback" not in "".join(capsys.readouterr())
    assert out.is_file() == (epochs > 0)


def test_distill_digits_says_what_is_missing(tmp_path):
    printed = run("distill_digits.py", blocked=["sklearn"], cwd=tmp_path, code=1)
    assert "sklearn" in printed
    assert "pip install scikit-learn" in printed
    printed = run("distill_digits.py", blocked=[*NEEDS], cwd=tmp_path, code=1)
    assert 'sklearn, rich, matplotlib: pip install scikit-learn "kldiv[cli]"' in printed
    printed = run("distill_digits.py", "--epochs", 0, cwd=tmp_path, code=2)
    assert "--epochs must be at least 1, got 0" in printed


@pytest.mark.slow
def test_distill_digits_says_which_library_is_missing(tmp_path):
    require(*NEEDS)
    printed = run("distill_digits.py", "--backend", "jax", blocked=["jax"], cwd=tmp_path, code=1)
    assert re.search(r'no jax: .*not installed; pip install "kldiv\[jax\]"', printed)
