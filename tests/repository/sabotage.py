"""A pytest plugin that breaks kldiv on purpose: `test_suite_can_fail.py` loads it by name."""

from __future__ import annotations

import os

import numpy as np

from kldiv import backends
from kldiv.backends.routing import Route
from kldiv.formulas.pointwise import MinusTarget, PointwiseLoss


def _torch_returns_numpy() -> None:
    backend = backends.get("torch")
    real = type(backend).run
    type(backend).run = lambda self, *call: real(self, *call).detach().numpy()


def _mask_is_dropped() -> None:
    PointwiseLoss.keep = lambda _self, _arrays: None


def _sign_of_a_gradient() -> None:
    MinusTarget.value = lambda _self, _xp, _x, y: y


def _nothing_crosses() -> None:
    real = Route.compute

    def compute(self, operation, *arrays):
        return real(Route(self.caller, self.caller, None, "pure"), operation, *arrays)

    Route.compute = compute


def _value_is_off() -> None:
    real = PointwiseLoss.elements
    PointwiseLoss.elements = lambda self, xp, *arrays: real(self, xp, *arrays) * np.float32(1.001)


SABOTAGE = {
    "the torch path returns NumPy": _torch_returns_numpy,
    "a mask is dropped": _mask_is_dropped,
    "a gradient has the wrong sign": _sign_of_a_gradient,
    "nothing crosses to another backend": _nothing_crosses,
    "values are a thousandth off": _value_is_off,
}


def pytest_configure() -> None:
    """Break what the environment names; a name that does not exist is an error."""
    name = os.environ.get("KLDIV_TEST_SABOTAGE")
    if name:
        SABOTAGE[name]()
