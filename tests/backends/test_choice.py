"""Which of an adapter's kernels computes a call, and what is said of those that do not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import kldiv
from kldiv.backends import get
from kldiv.cli.app import app
from kldiv.errors import BackendError
from kldiv.kernels import KernelError

PAIR = np.log([0.25, 0.75]), np.array([0.5, 0.5])


def technology(name, *, problem=None, refusal=None, small=0, error=None):
    """A stand-in for a package of kernels, which answers with its own name's length."""

    def compute(work):
        if error:
            raise KernelError(error)
        return np.float64(len(name)), [np.full(2, float(index)) for index in work.gradients]

    return SimpleNamespace(
        NAME=name,
        WORDS=f"the {name} one",
        SMALL=small,
        problem=lambda: problem,
        refusal=lambda operation, arrays: refusal,
        compute=compute,
        scaled=lambda gradients, cotangent: gradients,
    )


@pytest.fixture
def having(monkeypatch):
    """Give NumPy's adapter other kernels, and undo the routes that were chosen with them."""

    def having(*technologies):
        backend = get("numpy")
        monkeypatch.setattr(backend, "technologies", technologies, raising=False)
        names = (*(each.NAME for each in technologies), "pure")
        monkeypatch.setattr(backend, "kernels", names, raising=False)
        monkeypatch.setattr("kldiv.backends.routing._places", {})

    return having


def test_the_first_that_can_computes(having):
    having(technology("a", problem="no a here"), technology("bb", refusal="not this"))
    formulas = kldiv.kl_div(*PAIR, reduction="sum")
    having(technology("a", problem="no a here"), technology("bbb"), technology("cccc"))
    assert kldiv.kl_div(*PAIR, reduction="sum") == 3 != formulas
    value, gradient = kldiv.value_and_grad(kldiv.kl_div, argnums=1)(*PAIR)
    assert (value, gradient.tolist()) == (3, [1.0, 1.0])


def test_explain_says_why_each_of_them_does_not(having):
    having(technology("a", problem="no a here"), technology("bb", small=10))
    found = kldiv.explain(*PAIR)
    assert found.kernel == "pure"
    assert "a: no a here; bb: arrays of fewer than 10 elements" in str(found)
    having(technology("a"), technology("bb"))
    assert "kernel a: the a one, the fastest that applies" in str(kldiv.explain(*PAIR))


def test_one_that_fails_gives_way_with_a_warning(having):
    having(technology("a", error="it does not compile"), technology("bbb"))
    with pytest.warns(RuntimeWarning, match="not by its kernels 'a': it does not compile"):
        assert kldiv.kl_div(*PAIR) == 3


def test_doctor_says_which_kernels_cannot_run(having, capsys):
    having(technology("a", problem="no a here"), technology("bbb"))
    status = kldiv.available_backends()["numpy"]
    assert status.kernels == ("bbb", "pure")
    assert status.kernel_problems == {"a": "no a here"}
    with pytest.raises(SystemExit):
        app(["doctor"], prog_name="kldiv")
    assert "a (numpy): no a here" in capsys.readouterr().out


def test_a_name_forces_it_or_says_why_not(having):
    having(technology("cpu", problem="no compiler here"))
    with (
        kldiv.config_context(kernel="cpu"),
        pytest.raises(BackendError, match="kernel 'cpu' cannot run here: no compiler here"),
    ):
        kldiv.kl_div(*PAIR)
    having(technology("cpu", error="it does not compile"))
    with (
        kldiv.config_context(kernel="cpu"),
        pytest.raises(BackendError, match="cannot run here: it does not compile"),
    ):
        kldiv.kl_div(*PAIR)
