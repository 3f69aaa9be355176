"""The double-double oracle against mpmath, and the data that it is the truth of."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from benchmark.suite import load
from logit_families import batch, families
from reference import doubles, exact, losses, truth

operations = load("harness.operations")


def exactly(values):
    return [mpmath.mpf(float(value)) for value in values]


def worst(found, wanted):
    """The largest relative error of double-doubles, by mpmath."""
    errors = [
        abs((mpmath.mpf(float(high)) + mpmath.mpf(float(low))) / true - 1)
        for high, low, true in zip(*found, wanted, strict=True)
    ]
    return float(max(errors))


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


random = np.random.default_rng(0)
NEAR_0 = random.normal(size=100) * 10.0 ** random.integers(-17, 0, 100)
WIDE = np.concatenate([random.normal(0.0, 20.0, 200), [-600.0, 700.0], NEAR_0])
POSITIVE = np.concatenate([np.exp(WIDE / 4), 1 + NEAR_0, [5e-324, 1e-310, 1e300]])
ABOVE = np.concatenate([NEAR_0, random.uniform(-0.999, 3.0, 200), [1e9]])
FUNCTIONS = {
    "exp": (mpmath.exp, WIDE),
    "expm1": (mpmath.expm1, WIDE),
    "log": (mpmath.log, POSITIVE[POSITIVE != 1]),
    "log1p": (mpmath.log1p, ABOVE),
    "gap": (lambda x: x - mpmath.log1p(x), ABOVE),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_29_digits(name):
    function, x = FUNCTIONS[name]
    found = getattr(doubles, name)(x)
    with mpmath.workdps(80):
        assert worst(found, [function(v) for v in exactly(x)]) < 1e-29


def test_sums_do_not_cancel():
    high, low = random.normal(size=(2, 2, 100))
    high[1] = np.where(np.arange(100) % 2, -high[0], high[1])
    a, b = (doubles.Double(each, 1e-17 * each * low) for each, low in zip(high, low, strict=True))
    pairs = [exactly(row) for row in (*a, *b)]
    true = [mpmath.fsum(each) for each in zip(*pairs, strict=True)]
    assert worst(a + b, true) < 1e-31
    assert worst((a * b) / b, [x + y for x, y in zip(*pairs[:2], strict=True)]) < 1e-30


SETTINGS = [
    *((3, "float64", temperature, None) for temperature in (1.0, 0.7, 3.3)),
    *((3, "float32", 1.0, beta) for beta in (None, 0.01, 0.5, 0.99)),
    (3, "float64", 0.7, 0.3),
    (100, "float64", 1.0, None),
    pytest.param(100, "float64", 1.0, 0.01, marks=pytest.mark.slow),
    pytest.param(100, "float32", 3.3, 0.5, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("size", "dtype", "temperature", "beta"), SETTINGS)
def test_rows_are_those_of_mpmath(size, dtype, temperature, beta):
    """Rounded once: a unit in the last place, whatever the logits."""
    names, s, t = batch(size, dtype)
    found = truth(s, t, temperature=temperature, beta=beta)
    for i, name in enumerate(names):
        wanted = exact(s[i], t[i], temperature=temperature, beta=beta)
        for one, other in zip(found, wanted, strict=True):
            norm = abs(other)[np.isfinite(other)].sum() if one.ndim > 1 else 0.0
            np.testing.assert_allclose(one[i], other, rtol=2e-16, atol=2e-16 * norm, err_msg=name)


def test_rows_without_meaning_and_masks():
    s, t = (np.stack([pair[i] for pair in list(families(4).values())[:6]]) for i in (0, 1))
    s[0, 1], s[1], t[2], t[3, 0], s[4, 2] = np.nan, -np.inf, -np.inf, np.inf, -np.inf
    for beta in (None, 0.3):
        found = truth(s, t, beta=beta)
        for i in range(6):
            wanted = exact(s[i], t[i], beta=beta)
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_allclose(one[i], other, rtol=2e-16)


@pytest.mark.parametrize("distance", [1.0, 1e-4, 1e-8])
@pytest.mark.parametrize("beta", [None, 0.5])
def test_losses_of_logits(distance, beta):
    random = np.random.default_rng(1)
    t = random.normal(0.0, 3.0, (2, 100))
    s = t + distance * random.normal(0.0, 1.0, t.shape)
    loss = losses.kl_div_with_logits if beta is None else losses.js_div_with_logits
    found, wanted = loss(s, t), [exact(a, b, beta=beta) for a, b in zip(s, t, strict=True)]
    assert found.value == pytest.approx(np.mean([row.value for row in wanted]), rel=4e-16, abs=0)
    gradient = np.stack([row.grad_input for row in wanted]) / 2
    assert abs(found.gradient - gradient).sum() <= 2e-16 * abs(gradient).sum()


def test_kl_div_of_what_is_given():
    random = np.random.default_rng(2)
    y, x = random.uniform(0.0, 1.0, (2, 50)), random.normal(-3.0, 1.0, (2, 50))
    y[0, 0] = 0.0
    pairs = list(zip(exactly(x.ravel()), exactly(y.ravel()), strict=True))
    wanted = sum(b * (mpmath.log(b) - a) if b else 0 for a, b in pairs)
    assert losses.kl_div(x, y).value == pytest.approx(float(wanted), rel=2e-16, abs=0)
    wanted = sum(mpmath.exp(b) * (b - a) for a, b in pairs)
    assert losses.kl_div(x, y, log_target=True).value == pytest.approx(
        float(wanted), rel=2e-16, abs=0
    )


def test_the_truth_of_a_tile_is_that_of_all():
    operation = operations.OPERATIONS["kl_div"]
    data = operations.make(operation, "float64", (6, 40000))
    assert data.repeats == 6
    whole = losses.kl_div(data.input, data.target)
    assert data.errors(whole.value, whole.gradient) == (0.0, 0.0)
    assert data.errors(whole.value * 1.5, whole.gradient)[0] == pytest.approx(0.5)
    assert data.errors(whole.value, whole.gradient * 1.5)[1] == pytest.approx(0.5)
    assert data.errors(np.nan, whole.gradient)[0] == np.inf


def test_a_fault_in_the_last_rows_is_seen():
    operation = operations.OPERATIONS["kl_div_with_logits"]
    data = operations.make(operation, "float64", (6, 40000))
    gradient = losses.kl_div_with_logits(data.input, data.target).gradient
    gradient[-1, -1] += 1.0
    assert data.errors(data.exact(), gradient)[1] > 1e-3
