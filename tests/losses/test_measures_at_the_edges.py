"""Measures where a factor underflows, an order is small, or classes are not adjacent in memory."""

from __future__ import annotations

from functools import partial

import mpmath
import numpy as np
import pytest

import kldiv

ROWS = {
    "a class nearly without mass": ([1e-36, 1.0], [0.5, 0.5]),
    "both": ([1e-30, 1.0], [1.0, 1e-25]),
    "close": ([0.25, 0.75], [0.2501, 0.7499]),
}


@pytest.mark.parametrize("alpha", [1e-4, 1e-3, 0.3, 0.999, 1.001, 4.0, 60.0])
@pytest.mark.parametrize("name", ROWS)
def test_renyi_of_any_order_and_ratio(lib, name, alpha):
    dtype = lib.widest
    p, q = (lib.numpy(lib.array(row, dtype)).astype(float) for row in ROWS[name])
    with mpmath.workdps(50):
        a = mpmath.mpf(alpha)
        total = mpmath.fsum(
            mpmath.mpf(x) ** a * mpmath.mpf(y) ** (1 - a) for x, y in zip(p, q, strict=True)
        )
        mass = a * mpmath.fsum(p) + (1 - a) * mpmath.fsum(q)
        wanted = float(mpmath.log(total / mass) / (a - 1))
    found = kldiv.renyi_divergence(lib.array(p, dtype), lib.array(q, dtype), alpha=alpha)
    rtol = {"float32": 2e-4, "float64": 1e-11}[dtype]
    np.testing.assert_allclose(float(lib.numpy(found)), wanted, rtol=rtol)


def test_renyi_of_a_small_order():
    value = kldiv.renyi_divergence(np.array([1e-36, 1.0]), np.array([0.5, 0.5]), alpha=1e-3)
    assert value == pytest.approx(0.0399347, abs=5e-8)


@pytest.mark.parametrize("weights", [None, [0.3, 0.7]])
def test_jensen_shannon_where_half_a_probability_underflows(lib, weights):
    p = lib.array(np.array([1.4e-45, 1.0], "float32"), "float32")
    value, gradient = kldiv.value_and_grad(kldiv.js_divergence)(p, p)
    assert float(lib.numpy(value)) == 0
    assert (lib.numpy(gradient) == 0).all()
    assert float(lib.numpy(kldiv.js_divergence(p, p, weights=weights))) == 0


ALL = ["kl", "js", "jeffreys", "tv", "hellinger", "chi2", "skew", "alpha", "renyi"]
TAKE_AN_ORDER = {"alpha": {"alpha": 0.3}, "renyi": {"alpha": 2.0}}


@pytest.mark.parametrize("name", ALL)
def test_a_negative_probability_is_nan_beside_a_zero_too(name):
    measure = partial(getattr(kldiv, f"{name}_divergence"), **TAKE_AN_ORDER.get(name, {}))
    p, q = np.array([0.0, 0.5]), np.array([-1.0, 0.5])
    for pair in ((p, q), (q, p)):
        value, slopes = kldiv.value_and_grad(measure, (0, 1))(*pair)
        assert np.isnan(value)
        assert np.isnan([slope[0] for slope in slopes]).all()


@pytest.mark.parametrize("name", ["js", "skew"])
def test_mixtures_of_large_numbers(lib, name):
    """Small numbers are lifted, by which those above 3e26 would overflow in float32."""
    measure = getattr(kldiv, f"{name}_divergence")
    p, q = np.random.default_rng(1).uniform(size=(2, 3, 5)) * np.array([[1e26], [1e30], [3e37]])
    own = [lib.array(each, "float32") for each in (p, q)]
    rounded = [lib.numpy(each).astype(float) for each in own]
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(lib.numpy(measure(*own)) / measure(*rounded), 1.0, rtol=1e-6)


RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 50_000, 3)).astype("float32")
PROBABILITIES = np.exp(LOGITS.astype(float))
PROBABILITIES = (PROBABILITIES / PROBABILITIES.sum(1, keepdims=True)).astype("float32")
OF_LOGITS = [kldiv.kl_div_with_logits, kldiv.js_div_with_logits]
OF_PROBABILITIES = [
    kldiv.kl_divergence,
    kldiv.js_divergence,
    kldiv.jeffreys_divergence,
    kldiv.cross_entropy,
]


@pytest.mark.parametrize("function", [*OF_LOGITS, *OF_PROBABILITIES], ids=lambda f: f.__name__)
def test_sums_over_classes_that_are_not_adjacent(function):
    """NumPy adds such numbers one by one: 200 units off in float32."""
    arrays = LOGITS if function in OF_LOGITS else PROBABILITIES
    options = {"reduction": "none"} if function in OF_LOGITS else {}
    with kldiv.config_context(kernel="pure"):
        wanted = function(*arrays.astype(float), axis=0, **options)
        for found in (
            function(*arrays, axis=0, **options),
            function(*(array.T for array in arrays), **options),
        ):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, rtol=5e-7)


def test_states_of_classes_that_are_not_adjacent():
    wanted = kldiv.KLState.from_logits(*LOGITS.astype(float), axis=0).kl()
    np.testing.assert_allclose(kldiv.KLState.from_logits(*LOGITS, axis=0).kl(), wanted, rtol=5e-7)
