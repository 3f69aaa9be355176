"""``kldiv doctor`` and ``kldiv diagnose``."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import kldiv
from kldiv import config


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    """Run the command in a folder of its own; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    return command


@pytest.fixture
def pair(tmp_path):
    """A target and an input without mistakes."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(4), size=(2, 3))
    np.save(tmp_path / "p.npy", p)
    np.save(tmp_path / "q.npy", q)
    np.save(tmp_path / "log_q.npy", np.log(q))


# --- doctor ---------------------------------------------------------------------------------------


def test_doctor_says_what_there_is(run):
    status, out, err = run("doctor")
    assert (status, err) == (0, "")
    known = kldiv.available_backends(unusable=True)
    assert set(known) >= {"numpy", "torch", "jax", "cupy", "dask"}
    lines = {line.split()[0].rstrip(":"): line for line in out.splitlines() if line.strip()}
    for name, state in known.items():
        if state.usable:
            assert lines[name].split()[1] == state.version
            assert state.devices[0] in lines[name]
            assert state.kernels[0] in lines[name]
        else:
            assert state.reason in lines[name]
            assert state.install in out
    assert out.startswith(f"kldiv {kldiv.__version__}, Python {sys.version.split()[0]}")


def test_doctor_in_json(run):
    found = json.loads(run("doctor", "--json")[1])
    assert list(found) == ["version", "python", "backends", "settings"]
    for name, state in kldiv.available_backends(unusable=True).items():
        told = found["backends"][name]
        assert list(told) == [
            *("usable", "version", "devices", "kernels", "kernel_problems", "reason", "install")
        ]
        assert (told["usable"], told["version"]) == (state.usable, state.version)
        assert told["devices"] == list(state.devices)
    assert found["backends"]["numpy"]["version"] == np.__version__
    assert found["settings"]["backend"] == {"value": "auto", "origin": "default"}


def test_doctor_says_why_a_library_cannot_be_used(run, monkeypatch):
    def unusable(*, unusable):
        assert unusable
        reason = "the driver is too old"
        return {"cupy": kldiv.backends.BackendStatus("cupy", False, None, (), (), reason, "do x")}

    monkeypatch.setattr(kldiv, "available_backends", unusable)
    out = run("doctor")[1]
    assert "cupy: the driver is too old\n  do x\n" in out


def test_doctor_says_where_settings_come_from(run, monkeypatch, tmp_path):
    monkeypatch.setenv("KLDIV_KERNEL", "pure")
    file = tmp_path / "mine.toml"
    file.write_text('backend = "numpy"\n', encoding="utf-8")
    monkeypatch.setenv("KLDIV_CONFIG", str(file))
    monkeypatch.setattr(config, "_file", None)
    settings = json.loads(run("doctor", "--json")[1])["settings"]
    assert settings["backend"]["value"] == "numpy"
    assert "mine.toml" in settings["backend"]["origin"]
    assert settings["device"] == {"value": "auto", "origin": "default"}
    assert settings["kernel"]["value"] == "pure"
    assert "KLDIV_KERNEL" in settings["kernel"]["origin"]
    assert "KLDIV_KERNEL" in run("doctor")[1]


def test_doctor_sees_patients_with_broken_settings(run, monkeypatch):
    monkeypatch.setenv("KLDIV_BACKEND", "nothing")
    status, out, err = run("doctor")
    assert status == 4
    assert "\nnumpy " in out
    assert "'nothing'" in err


# --- diagnose -------------------------------------------------------------------------------------


def test_diagnose_finds_nothing_where_nothing_is(run, pair):
    status, out, err = run("diagnose", "p.npy", "log_q.npy", "--strict")
    assert (status, err) == (0, "")
    assert "Nothing looks wrong." in out
    assert "reads as log-probabilities" in out


def test_diagnose_sums_counts_of_half_floats(run):
    """Their sum is beyond the largest number of their dtype."""
    for name, counts in (("p", [60000, 20000]), ("q", [40000, 40000])):
        np.save(f"{name}.npy", np.array(counts, np.float16))
    status, out, _ = run("diagnose", "p.npy", "q.npy", "--strict")
    assert status == 0
    assert out.count("taken as counts") == 2


def test_diagnose_names_the_mistake_and_the_mend(run, pair):
    as_given = ("diagnose", "p.npy", "q.npy", "--from", "kl_div")
    status, out, _ = run(*as_given)
    assert status == 0
    assert "error   probabilities-as-input" in out
    assert "mend    pass log_softmax" in out
    assert run(*as_given, "--strict")[0] == 1


def test_diagnose_hands_target_and_input_over_in_order(run, pair):
    found = json.loads(run("diagnose", "log_q.npy", "p.npy", "--json")[1])
    assert found["findings"][0]["code"] == "arguments-swapped"
    assert (found["p"], found["q"]) == ("log_q.npy", "p.npy")
    assert found["wrong"] is True
    assert set(found["findings"][0]) == {"code", "severity", "message", "mend"}


def test_diagnose_passes_its_options_on(run, pair, tmp_path):
    array = np.load(tmp_path / "p.npy")
    np.savez(tmp_path / "x.npz", p=np.log(array).T, q=np.load(tmp_path / "log_q.npy").T)
    arguments = ("diagnose", "x.npz::p", "x.npz", "--key", "q", "--axis", "0", "--strict")
    assert run(*arguments)[0] == 1
    assert run(*arguments, "--log-target")[0] == 0


@pytest.mark.parametrize(
    ("form", "function"),
    [("auto", np.asarray), ("counts", np.asarray), ("auto", lambda n: n / 25), ("logits", np.log)],
)
def test_diagnose_takes_what_compare_takes(run, tmp_path, form, function):
    np.save(tmp_path / "n.npy", function(np.array([[9, 12, 4]])))
    found = json.loads(run("diagnose", "n.npy", "n.npy", "--json", "--from", form)[1])
    assert {finding["code"] for finding in found["findings"]} <= {"mean-over-elements"}
    found = json.loads(run("diagnose", "n.npy", "n.npy", "--json", "--from", "kl_div")[1])
    assert found["wrong"]
