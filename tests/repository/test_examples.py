"""The examples run as a user runs them, say what is true, and stop when asked to."""

from __future__ import annotations

import re

import pytest
from processes import python
from repository.example_runs import EXAMPLES, is_png, load, require, run

# ---- quickstart ----------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "dask", "array_api_strict"])
def test_quickstart_computes_on_each_installed_library(library):
    require(library)
    others = {"torch", "jax", "dask", "array_api_strict", "cupy"} - {library}
    printed = run("quickstart.py", blocked=sorted(others))
    rows = [line.split() for line in printed.splitlines()[1:] if line[:1].strip()]
    assert [row[0] for row in rows[:-1]] == ["numpy", *({library} - {"numpy"})]
    for row in rows[:-1]:
        assert float(row[1]) == pytest.approx(0.1130266479163889, abs=1e-12)
    assert "They agree" in printed


def test_quickstart_notices_disagreement(monkeypatch, capsys):
    quickstart = load("quickstart")
    right = quickstart.on_numpy
    monkeypatch.setattr(quickstart, "usable", lambda: iter(["numpy"]))
    for wrong in (
        lambda log_q, p: (right(log_q, p)[0] + 1e-9, right(log_q, p)[1]),
        lambda log_q, p: (right(log_q, p)[0], right(log_q, p)[1] * float("nan")),
    ):
        monkeypatch.setitem(quickstart.LIBRARIES, "numpy", wrong)
        assert quickstart.main() == 1
        assert "DISAGREE" in capsys.readouterr().out


# ---- optimise ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_optimise_reaches_the_minimum_and_draws(backend, tmp_path):
    require(backend, "rich", "matplotlib")
    others = {"numpy", "torch", "jax", "dask", "cupy"} - {backend, "numpy"}
    printed = run(
        "optimise.py", "--backend", backend, "--steps", 150, blocked=sorted(others), cwd=tmp_path
    )
    first, last = map(float, re.search(r"= (\S+) at first, (\S+) after 150", printed).groups())
    assert first == pytest.approx(0.357552, abs=1e-6)
    assert 0 < last < 1e-5
    assert is_png(tmp_path / "optimise.png")


def test_optimise_takes_the_same_steps_on_each_library(tmp_path):
    require("torch", "jax", "rich", "matplotlib")
    optimise = load("optimise")
    _, p = optimise.letters()
    paths = {
        name: [value for value, _ in optimise.islice(descend(p, 1.0), 40)]
        for name, descend in optimise.DESCENTS.items()
    }
    assert paths["torch"] == pytest.approx(paths["numpy"], rel=1e-9)
    assert paths["jax"] == pytest.approx(paths["numpy"], rel=1e-9)


def test_optimise_can_be_interrupted(monkeypatch, tmp_path, capsys):
    require("rich", "matplotlib")
    optimise = load("optimise")

    def interrupted(p, rate):
        yield from optimise.islice(optimise.descend_numpy(p, rate), 5)
        raise KeyboardInterrupt

    monkeypatch.setitem(optimise.DESCENTS, "numpy", interrupted)
    out = tmp_path / "loss.png"
    assert optimise.main(["--backend", "all", "--out", str(out)]) == 130
    assert "after 4" in capsys.readouterr().out
    assert is_png(out)


@pytest.mark.slow
def test_optimise_says_what_is_missing(tmp_path):
    require("rich", "matplotlib")
    printed = run("optimise.py", "--backend", "jax", blocked=["jax"], cwd=tmp_path, code=2)
    assert re.search(r'without jax: .*not installed; pip install "kldiv\[jax\]"', printed)
    printed = run("optimise.py", "--steps", 2, blocked=["jax", "torch"], cwd=tmp_path)
    assert printed.count("not installed") == 2
    assert (tmp_path / "optimise.png").is_file()
    printed = run("optimise.py", blocked=["rich"], cwd=tmp_path, code=1)
    assert 'pip install "kldiv[cli]"' in printed
    assert "--steps must be at least 1, got 0" in run("optimise.py", "--steps", 0, code=2)


# ---- tensor parallel -----------------------------------------------------------------------------


@pytest.mark.slow
def test_tensor_parallel_agrees_with_one_process():
    require("torch")
    script = str(EXAMPLES / "tensor_parallel.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    printed = python(*launch, OMP_NUM_THREADS="1")
    assert "They agree" in printed
    losses = [float(loss) for loss in re.findall(r"step .*: (\S+) nats", printed)]
    assert losses[0] > 1.9
    assert losses == sorted(losses, reverse=True)


def test_tensor_parallel_says_how_to_start_it():
    require("torch")
    assert "torchrun --nproc-per-node 2" in run("tensor_parallel.py", code=1)


# ---- Dask ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dask_cluster_agrees_with_one_process():
    require("dask", "distributed")
    printed = run("dask_cluster.py")
    assert "The first rows agree" in printed
    assert float(printed.split()[0]) == pytest.approx(5e-7, rel=0.02)


# ---- distillation of a text ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_distill_text_gains_by_its_file_and_draws(backend, tmp_path):
    require(backend, "matplotlib", "safetensors")
    printed = run("distill_text.py", "--backend", backend, "--steps", 240, cwd=tmp_path)
    alone, sparse, whole = map(float, re.findall(r"student.*: (\S+) bits", printed))
    assert max(sparse, whole) < alone
    assert is_png(tmp_path / "distill_text.png")
