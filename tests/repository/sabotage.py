"""Break kldiv on purpose, and run a part of its tests each time: all in one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from kldiv import backends
from kldiv.backends.routing import Route
from kldiv.formulas.pointwise import MinusTarget, PointwiseLoss

TESTS = Path(__file__).parents[1]
SAMPLE = [
    "losses/test_semantics.py::test_reductions",
    "losses/test_semantics.py::test_where_leaks_nothing",
    "losses/test_semantics.py::test_gradient",
    "test_config.py::test_another_backend_computes_and_the_result_comes_home",
]


def _nothing(patch):
    pass


def _torch_returns_numpy(patch):
    kind = type(backends.get("torch"))
    real = kind.run
    patch.setattr(kind, "run", lambda self, *call: real(self, *call).detach().numpy())


def _mask_is_dropped(patch):
    patch.setattr(PointwiseLoss, "keep", lambda _self, _arrays: None)


def _sign_of_a_gradient(patch):
    patch.setattr(MinusTarget, "value", lambda _self, _xp, _x, y: y)


def _nothing_crosses(patch):
    real = Route.compute

    def compute(self, operation, *arrays):
        return real(Route(self.caller, self.caller, None, "pure"), operation, *arrays)

    patch.setattr(Route, "compute", compute)


def _value_is_off(patch):
    real = PointwiseLoss.elements
    off = np.float32(1.001)
    patch.setattr(
        PointwiseLoss, "elements", lambda self, xp, *arrays: real(self, xp, *arrays) * off
    )


UNTOUCHED = "nothing is broken"
SABOTAGE = {
    UNTOUCHED: _nothing,
    "the torch path returns NumPy": _torch_returns_numpy,
    "a mask is dropped": _mask_is_dropped,
    "a gradient has the wrong sign": _sign_of_a_gradient,
    "nothing crosses to another backend": _nothing_crosses,
    "values are a thousandth off": _value_is_off,
}


class Outcomes:
    """A pytest plugin that counts how tests end; an error beside a test itself has a name too."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "error": 0}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.counts[report.outcome] = self.counts.get(report.outcome, 0) + 1
        elif report.failed:
            self.counts["error"] += 1


def outcomes(name: str) -> dict[str, int]:
    """Break kldiv in one way, run the sample on NumPy and torch, and mend it again."""
    plugin = Outcomes()
    first = [] if name == UNTOUCHED else ["--exitfirst"]  # one failure is enough
    command = ["-q", "-n", "0", "-p", "no:cacheprovider", *first]
    with pytest.MonkeyPatch.context() as patch:
        SABOTAGE[name](patch)
        pytest.main([*command, "-k", "numpy or torch", *SAMPLE], plugins=[plugin])
    return plugin.counts


if __name__ == "__main__":
    found = {name: outcomes(name) for name in SABOTAGE}
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
