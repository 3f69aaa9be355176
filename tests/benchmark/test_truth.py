"""The benchmark's truth against mpmath, and the data that it is the truth of."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from benchmark.suite import load
from reference import js, kl

truth, operations = load("truth"), load("operations")


def exactly(values):
    return [mpmath.mpf(float(value)) for value in values]


def worst(found, wanted):
    """The largest relative error of double-doubles, by mpmath."""
    errors = []
    for high, low, exact in zip(found.high, found.low, wanted, strict=True):
        errors.append(abs((mpmath.mpf(float(high)) + mpmath.mpf(float(low))) / exact - 1))
    return float(max(errors))


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


def test_exp_and_log_have_thirty_digits():
    x = np.concatenate([np.random.default_rng(0).normal(0.0, 20.0, 200), [1e-9, -600.0]])
    assert worst(truth.exp(x), [mpmath.exp(v) for v in exactly(x)]) < 1e-29
    y = np.exp(x[:200] / 4)
    assert worst(truth.log(y), [mpmath.log(v) for v in exactly(y)]) < 1e-28


@pytest.mark.parametrize("distance", [1.0, 1e-4, 1e-8])
def test_divergences_of_logits(distance):
    random = np.random.default_rng(1)
    t = random.normal(0.0, 3.0, (1, 300))
    s = t + distance * random.normal(0.0, 1.0, t.shape)
    for found, wanted in (
        (truth.kl_div_with_logits(s, t), kl(exactly(s[0]), exactly(t[0]))),
        (truth.js_div_with_logits(s, t), js(exactly(s[0]), exactly(t[0]), mpmath.mpf("0.5"))),
    ):
        assert abs(found.value / wanted[0] - 1) < 2e-16
        difference = sum(abs(a - b) for a, b in zip(found.gradient[0], wanted[1], strict=True))
        assert difference / sum(map(abs, wanted[1])) < 2e-16


def test_kl_div_of_what_is_given():
    random = np.random.default_rng(2)
    y, x = random.uniform(0.0, 1.0, (2, 50)), random.normal(-3.0, 1.0, (2, 50))
    y[0, 0] = 0.0
    found = truth.kl_div(x, y)
    pairs = list(zip(exactly(x.ravel()), exactly(y.ravel()), strict=True))
    wanted = sum(b * (mpmath.log(b) - a) if b else 0 for a, b in pairs)
    assert abs(found.value / wanted - 1) < 2e-16
    found = truth.kl_div(x, np.log(y[:, 1:] + 0.1)[:, :1].repeat(50, 1), log_target=True)
    assert np.isfinite(found.value)


def test_the_truth_of_a_tile_is_that_of_all():
    operation = operations.OPERATIONS["kl_div"]
    data = operations.make(operation, "float64", (6, 40000))
    assert data.repeats == 6
    whole = truth.kl_div(data.input, data.target)
    assert data.errors(whole.value, whole.gradient) == (0.0, 0.0)
    assert data.errors(whole.value * 1.5, whole.gradient)[0] == pytest.approx(0.5)
    assert data.errors(whole.value, whole.gradient * 1.5)[1] == pytest.approx(0.5)
    assert data.errors(np.nan, whole.gradient)[0] == np.inf


def test_a_fault_in_the_last_rows_is_seen():
    operation = operations.OPERATIONS["kl_div_with_logits"]
    data = operations.make(operation, "float64", (6, 40000))
    gradient = truth.kl_div_with_logits(data.input, data.target).gradient
    gradient[-1, -1] += 1.0
    assert data.errors(data.exact(), gradient)[1] > 1e-3
