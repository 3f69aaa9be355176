"""Point masses against everything: −log of a mass, +∞ under a density."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from kldiv import distributions as d
from kldiv import kl_divergence as kl
from kldiv.errors import ShapeError

INF = math.inf
P3 = np.array([0.2, 0.3, 0.5])
LOGITS = np.log(P3) + 1.7

MASSES = [
    (d.Delta(1), d.Bernoulli(0.3), 0.3),
    (d.Delta(0), d.Bernoulli(logits=-2.0), 1 / (1 + math.exp(-2))),
    (d.Delta(2), d.Binomial(5, 0.3), 10 * 0.3**2 * 0.7**3),
    (d.Delta(3), d.Geometric(0.25), 0.75**3 * 0.25),
    (d.Delta(2), d.NegativeBinomial(3, 0.4), 6 * 0.4**2 * 0.6**3),
    (d.Delta(4), d.Poisson(2.5), math.exp(-2.5) * 2.5**4 / 24),
    (d.Delta(1), d.Categorical(P3), 0.3),
    (d.Delta(2), d.Categorical(logits=LOGITS), 0.5),
    (d.Delta(np.array([0, 1, 0]), event_dim=1), d.OneHotCategorical(P3), 0.3),
    (d.Delta(np.array([1, 0, 2]), event_dim=1), d.Multinomial(3, P3), 3 * 0.2 * 0.25),
    (d.Delta(np.array([1, 0]), event_dim=1), d.Independent(d.Bernoulli(P3[:2]), 1), 0.2 * 0.7),
]


@pytest.mark.parametrize(("p", "q", "mass"), MASSES)
def test_the_mass_that_q_has_there(p, q, mass):
    np.testing.assert_allclose(kl(p, q), -math.log(mass), rtol=1e-13)
    assert kl(q, p) == INF


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (d.Delta(0.5), d.Normal(0, 1)),
        (d.Delta(0.5), d.Uniform(0, 1)),
        (d.Delta(1.5), d.Poisson(1.0)),
        (d.Delta(3), d.Poisson(INF)),
        (d.Delta(-1), d.Poisson(1.0)),
        (d.Delta(6), d.Binomial(5, 0.3)),
        (d.Delta(3), d.Categorical(P3)),
        (d.Delta(P3, event_dim=1), d.OneHotCategorical(P3)),
        (d.Delta(P3, event_dim=1), d.MultivariateNormalDiag(P3, P3)),
        (d.Delta(np.array([1, 1, 2]), event_dim=1), d.Multinomial(3, P3)),
        (d.Delta(1), d.Delta(2)),
        (d.Delta(1), d.Bernoulli(0.0)),
        (d.Delta(P3[:2], event_dim=1), d.Independent(d.Normal(P3[:2], 1), 1)),
        (d.Bernoulli(1e-20), d.Delta(0)),
        (d.Normal(0, 1), d.Delta(0)),
    ],
)
def test_what_is_infinitely_far(p, q):
    assert kl(p, q) == INF


def test_what_is_the_same():
    assert kl(d.Delta(1.5), d.Delta(1.5)) == 0
    assert kl(d.Delta(P3, event_dim=1), d.Delta(P3, event_dim=1)) == 0
    assert kl(d.Poisson(0), d.Delta(0)) == 0
    assert kl(d.Bernoulli(1.0), d.Delta(1)) == 0
    assert math.isnan(kl(d.Delta(math.nan), d.Normal(0, 1)))
    assert math.isnan(kl(d.Delta(1.0), d.Poisson(math.nan)))


def test_what_is_no_probability_is_nan():
    for q in (d.Bernoulli(1.5), d.Bernoulli(-0.5), d.Geometric(1.5)):
        assert math.isnan(kl(d.Delta(0), q))
        assert math.isnan(kl(d.Delta(1), q))


@pytest.mark.parametrize(
    ("q", "k", "mass"),
    [
        (d.Poisson(1e6), 1e6 + 300, lambda k: -(mpmath.mpf(10) ** 6) + k * mpmath.log(10**6)),
        (
            d.NegativeBinomial(1e4, 0.25),
            3000.0,
            lambda k: (
                mpmath.loggamma(k + 10**4)
                - mpmath.loggamma(10**4)
                + k * mpmath.log(0.25)
                + 10**4 * mpmath.log(0.75)
            ),
        ),
        (
            d.Binomial(10**7, 0.5),
            5e6 + 1000,
            lambda k: (
                mpmath.loggamma(10**7 + 1) - mpmath.loggamma(10**7 + 1 - k) - 10**7 * mpmath.log(2)
            ),
        ),
    ],
)
def test_large_counts_lose_nothing(q, k, mass):
    with mpmath.workdps(50):
        wanted = -(mass(mpmath.mpf(k)) - mpmath.loggamma(mpmath.mpf(k) + 1))
        error = abs(mpmath.mpf(float(kl(d.Delta(k), q))) - wanted) / wanted
    assert error < 20 * 2.0**-53


def test_chances_below_the_smallest_number_keep_their_logarithm():
    found = kl(d.Delta(1), d.Binomial(5, logits=-800.0))
    np.testing.assert_allclose(found, 800 - math.log(5), rtol=1e-14)
    found = kl(d.Delta(np.float32(1)), d.Binomial(5, logits=np.float32(-100)))
    np.testing.assert_allclose(found, 100 - math.log(5), rtol=1e-6)
    found = kl(d.Delta(0), d.NegativeBinomial(3, logits=800.0))
    np.testing.assert_allclose(found, 2400, rtol=1e-14)
    assert kl(d.Delta(0), d.NegativeBinomial(0, 0.5)) == 0


def test_likely_classes_lose_nothing():
    found = kl(d.Delta(0), d.Categorical(logits=np.array([0.0, -40.0])))
    np.testing.assert_allclose(found, math.exp(-40), rtol=1e-14)


def test_gradients():
    torch = pytest.importorskip("torch")
    k = torch.tensor([0.0, 3.0, 20.0], dtype=torch.float64)
    rate = torch.tensor([0.5, 2.0, 18.0], dtype=torch.float64, requires_grad=True)
    kl(d.Delta(k), d.Poisson(rate)).sum().backward()
    torch.testing.assert_close(rate.grad, (1 - k / rate).detach())


def test_numpyros_and_tfps():
    numpyro = pytest.importorskip("numpyro.distributions")
    jnp = pytest.importorskip("jax.numpy")
    p = numpyro.Delta(jnp.asarray([2.0, 3.0]), log_density=0.5)
    q = numpyro.Poisson(jnp.asarray([0.5, 4.0]))
    np.testing.assert_allclose(kl(p, q), numpyro.kl_divergence(p, q), rtol=1e-5)
    vector = numpyro.Delta(jnp.asarray([2.0, 3.0])).to_event(1)
    assert kl(vector, q.to_event(1)).shape == ()
    made = type("Deterministic", (), {"__module__": "tensorflow_probability.python"})()
    made.loc, made.event_shape = np.array([2.0, 3.0]), ()
    np.testing.assert_allclose(kl(made, d.Poisson(1.0)), [1 + math.log(2), 1 + math.log(6)])


@pytest.mark.parametrize("method", [None, "quadrature", "monte_carlo"])
def test_scale_0_is_a_point_mass_without_a_closed_form_too(method):
    def value(p, q):
        found = kl(p, q, method=method)
        return found if method is None else found.value

    one = np.array([0.0, 1.0])
    for p, q, wanted in (
        (d.Normal(0.0, 1.0), d.Cauchy(0.0, 0.0), INF),
        (d.StudentT(3.0, one, 0.0), d.StudentT(2.0, 1.0, 0.0), [INF, 0.0]),
        (d.LogNormal(0.0, 0.0), d.Cauchy(one, 0.0), [INF, 0.0]),
        (d.HalfNormal(0.0), d.HalfCauchy(1.0), INF),
        (d.Normal(math.nan, 0.0), d.Cauchy(0.0, 1.0), math.nan),
    ):
        np.testing.assert_array_equal(value(p, q), wanted)
    mixed = d.Normal(0.0, one)
    if method is None:
        with pytest.raises(d.NoClosedFormError, match="estimate"):
            kl(mixed, d.Cauchy(0.0, 1.0))
    else:
        found = kl(mixed, d.Cauchy(0.0, 1.0), method=method)
        np.testing.assert_array_equal(np.isinf(found.value), [True, False])


def test_what_has_no_answer():
    with pytest.raises(d.NoClosedFormError, match=r"D\(Delta‖Rayleigh\)"):
        kl(d.Delta(1.0), type("Rayleigh", (d.Distribution,), {})())
    with pytest.raises(ShapeError, match="needs 1 axes"):
        kl(d.Delta(1.0, event_dim=1), d.OneHotCategorical(P3))
    with pytest.raises(ShapeError, match="is a vector"):
        kl(d.Delta(P3), d.OneHotCategorical(P3))
