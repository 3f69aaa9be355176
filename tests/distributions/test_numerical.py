"""Quadrature, sums and averages of pairs without a closed form: values, errors, batches."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from benchmark.suite import load

import kldiv
from kldiv import distributions as d
from kldiv import kl_divergence as kl
from kldiv.distributions.host import Density
from kldiv.distributions.quadrature import integrate
from kldiv.errors import OptionError

stats = pytest.importorskip("scipy.stats")
INF = math.inf


def found(p, q, method="quadrature"):
    estimate = kl(p, q, method=method)
    return np.asarray(estimate.value), np.asarray(estimate.standard_error)


def mixture(weights, locs, scales):
    return d.MixtureSameFamily(
        d.Categorical(np.array(weights)), d.Normal(np.array(locs), np.array(scales))
    )


# --- where the integral does not converge ---------------------------------------------------------

DIVERGENT = {
    "Student of 1 and a Gaussian tail": (d.StudentT(1.0), d.Normal(0, 1)),
    "Student of 2, the edge": (d.StudentT(2.0), d.Normal(0, 1)),
    "Cauchy and a Gaussian tail": (d.Cauchy(0, 1), d.Normal(0, 1)),
    "Cauchy and an exponential tail, the edge": (d.Cauchy(0, 1), d.Laplace(0, 1)),
    "inverse gamma without a mean": (d.InverseGamma(0.9, 1.0), d.Gamma(2.0, 1.0)),
    "inverse gamma, the edge": (d.InverseGamma(1.0, 1.0), d.Gamma(2.0, 1.0)),
    "E[1/x] of an exponential": (d.Exponential(1.0), d.InverseGamma(1.0, 1.0)),
    "power against a double exponential": (d.StudentT(100.0), d.Gumbel(0, 1)),
    "where it falls for long before it rises": (d.StudentT(1000.0), d.Gumbel(0, 1)),
    "Pareto and an exponential": (d.Pareto(1.0, 0.8), d.Exponential(1.0)),
    "an object of SciPy": (stats.levy(), stats.expon()),
    "a sum": (stats.zipf(2.0), stats.geom(0.5)),
}


@pytest.mark.parametrize(("p", "q"), DIVERGENT.values(), ids=DIVERGENT)
def test_a_divergent_integral_is_infinite(p, q):
    value, error = found(p, q)
    assert value == INF
    assert error == 0


def test_what_nearly_diverges():
    """E[x] of InverseGamma(1.001, 1) is 1000, and half of it comes from beyond e⁶⁹³."""
    a = mpmath.mpf("1.001")
    entropy = a + mpmath.loggamma(a) - (1 + a) * mpmath.digamma(a)
    wanted = float(-entropy + mpmath.digamma(a) + 1 / (a - 1))
    value, error = found(d.InverseGamma(1.001, 1.0), d.Gamma(2.0, 1.0))
    assert abs(value - wanted) <= error <= 1e-5 * wanted


# --- where P has its mass -------------------------------------------------------------------------

FINITE = {
    "narrow": (d.Normal(0, 1e-4), d.Normal(0, 1), math.log(1e4) + (1e-8 - 1) / 2),
    "two peaks": (mixture([0.5, 0.5], [0.0, 5.0], [1e-4, 1.0]), d.Normal(0, 3), 5.2328575318),
    "mass below the smallest float": (d.Gamma(0.01, 1.0), d.Gamma(1.0, 1.0), 94.95579672525),
    "far away": (d.Normal(1000, 1), d.Laplace(0, 1), 999.27420864735),
    "far away, by SciPy": (stats.norm(1000, 1), stats.laplace(0, 1), 999.27420864735),
    "pole at the upper edge": (d.Beta(2.0, 0.01), d.Beta(1.0, 1.0), 95.3785489477332),
    "poles of Q": (d.Beta(2.0, 2.0), d.Beta(1e-3, 1e-3), 6.06099361956974),
    "tail beyond floats": (d.StudentT(0.01), d.Cauchy(0, 1), 91.947116954775605),
    "both beyond floats": (d.StudentT(1e-3), d.StudentT(2e-3), 0.30654804350837958),
    "logarithms beyond floats": (d.LogNormal(0, 1000), d.LogNormal(0, 1), 499992.5922447208),
}


@pytest.mark.parametrize(("p", "q", "wanted"), FINITE.values(), ids=FINITE)
def test_mass_is_found(p, q, wanted):
    value, error = found(p, q)
    assert abs(value - wanted) <= error + 1e-11 * wanted
    assert error <= 1e-8 * wanted


def test_near_pairs_lose_nothing():
    for step in (1e-3, 1e-6, 1e-8):
        value, error = found(d.Normal(0, 1), d.Normal(step, 1))
        assert abs(value - step**2 / 2) <= error <= 1e-4 * step**2
    value, error = found(d.Gamma(1e4, 100.0), d.Normal(100, 1))
    assert abs(value - 3.3334166677776944e-05) <= error <= 1e-6 * value  # mpmath, 50 digits


def test_mass_that_is_not_found_is_an_error():
    half = Density(lambda x, *_: np.full(np.shape(x), math.log(0.5)), bounds=(0.0, 1.0))
    with pytest.raises(OptionError, match=r"integrates to 0\.5, not to 1.*method='monte_carlo'"):
        integrate(half, half)


def test_random_pairs():
    """Two of each kind; ``python -m bench.studies.quadrature`` takes five hundred."""
    results = load("studies.quadrature").measure(38, seed=11)
    assert all(result.bounded for result in results), [r for r in results if not r.bounded]
    assert not any(result.wrong or result.refused for result in results)
    finite = [r for r in results if np.isfinite(r.truth)]
    assert np.median([r.error / abs(r.truth) for r in finite if r.truth]) < 1e-9


# --- sums -----------------------------------------------------------------------------------------


def zipf(a, b):
    log_mean = -mpmath.zeta(a, derivative=1) / mpmath.zeta(a)
    return float((b - a) * log_mean + mpmath.log(mpmath.zeta(b) / mpmath.zeta(a)))


@pytest.mark.parametrize(("a", "b"), [(2.0, 3.0), (2.0, 1.5), (1.01, 1.02), (1.03, 1.05)])
def test_slow_tails_are_summed_to_their_end(a, b):
    value, error = found(stats.zipf(a), stats.zipf(b))
    assert abs(value - zipf(a, b)) <= error < 1e-8


def test_sums_of_large_numbers():
    a, b = 1e9, 1e9 + 1e5
    with mpmath.workdps(40):
        a_, b_ = mpmath.mpf(a), mpmath.mpf(b)
        wanted = float(a_ * mpmath.log(a_ / b_) + b_ - a_)
    value, error = found(d.Poisson(a), d.Poisson(b))
    assert abs(value - wanted) <= error <= 1e-6 * wanted


# --- batches --------------------------------------------------------------------------------------

METHODS = ("quadrature", "monte_carlo")


def agrees(estimate, wanted, method):
    value, error = estimate
    assert value.shape == np.shape(wanted)
    np.testing.assert_array_less(np.abs(value - wanted), 5 * error + 1e-9)
    assert (error < (0.02 if method == "monte_carlo" else 1e-7)).all()


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_torch(torch, method):
    t = torch.distributions

    def tanh(loc):
        base = t.Normal(torch.asarray(loc, dtype=torch.float64), 1.0)
        return t.TransformedDistribution(base, [t.TanhTransform()])

    agrees(found(tanh([0.0, 3.0]), tanh(0.0), method), [0.0, 4.5], method)
    both = found(tanh([0.0, 3.0]), tanh([[0.0], [1.0]]), method)
    agrees(both, [[0.0, 4.5], [0.5, 2.0]], method)
    scales = torch.asarray([1e-4, 1.0], dtype=torch.float64)
    peaks = t.MixtureSameFamily(
        t.Categorical(probs=torch.asarray([[0.5, 0.5], [1.0, 0.0]])),
        t.Normal(torch.asarray([[0.0, 5.0], [1.0, 1.0]]).double(), scales),
    )
    wanted = [5.2328575318, kl(d.Normal(1.0, 1e-4), d.Normal(0, 3))]
    agrees(found(peaks, d.Normal(0, 3), method), wanted, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_batches_of_numpyro(jax, method):
    numpyro = pytest.importorskip("numpyro.distributions", exc_type=ImportError)
    logistic = numpyro.Logistic(np.array([0.0, 3.0], dtype=np.float32), 1.0)
    # ½ log(8π) + (π²/3 + μ²)/8 − 2, the entropy of a logistic being 2.
    wanted = [math.log(8 * math.pi) / 2 + (math.pi**2 / 3 + m**2) / 8 - 2 for m in (0.0, 3.0)]
    agrees(found(logistic, d.Normal(0.0, 2.0), method), wanted, method)


@pytest.mark.parametrize("method", METHODS)
def test_batches_of_scipy_and_of_mixtures(method):
    many = stats.gennorm(2.0, loc=[[0.0], [1.0]], scale=math.sqrt(2))
    one = stats.gennorm([2.0, 2.0, 2.0], scale=math.sqrt(8))
    wanted = kl(d.Normal(np.array([[0.0], [1.0]]), 1.0), d.Normal(np.zeros(3), 2.0))
    agrees(found(many, one, method), wanted, method)
    parts = mixture([[0.5, 0.5], [1.0, 0.0]], [[0.0, 5.0], [1.0, 1.0]], [[1e-4, 1.0], [2.0, 2.0]])
    wanted = [5.2328575318, kl(d.Normal(1, 2), d.Normal(0, 3))]
    agrees(found(parts, d.Normal(0, 3), method), wanted, method)


def test_batches_where_entries_differ_in_kind():
    """One entry is infinite, one finite, one is no distribution."""
    value, error = found(d.StudentT(np.array([1.0, 3.0, -1.0])), d.Normal(0, 1))
    assert value[0] == INF
    assert abs(value[1] - 0.6454609649) < 1e-6  # E x² = 3: ½ log(2π) + 3/2 − the entropy
    assert np.isnan(value[2])
    assert np.isnan(error[2])


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch(method):
    value, error = found(d.Normal(np.zeros(0), 1.0), d.Normal(0, 1), method)
    assert value.shape == error.shape == (0,)


def test_vectors_of_another_library_by_entry(torch):
    t = torch.distributions
    base = t.TransformedDistribution(t.Normal(torch.tensor([[0.0, 3.0], [1.0, 1.0]]), 1.0), [])
    zero = t.TransformedDistribution(t.Normal(torch.zeros(2, 2), 1.0), [])
    estimate = found(t.Independent(base, 1), t.Independent(zero, 1), "monte_carlo")
    agrees(estimate, [4.5, 1.0], "monte_carlo")
    assert isinstance(kldiv.kl_divergence(base, zero, method="quadrature"), d.Estimate)
