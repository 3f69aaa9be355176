"""Distributions of SciPy, PyTorch and NumPyro, and of several at once."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

import kldiv
from kldiv import distributions as d
from kldiv import kl_divergence as kl
from kldiv.distributions import densities
from kldiv.errors import LibraryError, OptionError


def test_scipys_frozen_distributions():
    stats = pytest.importorskip("scipy.stats")
    cases = [
        (stats.norm(1, 2), d.Normal(1, 2)),
        (stats.lognorm(0.5, scale=2), d.LogNormal(math.log(2), 0.5)),
        (stats.expon(scale=4), d.Exponential(0.25)),
        (stats.gamma(3, scale=0.5), d.Gamma(3, 2)),
        (stats.invgamma(3, scale=2), d.InverseGamma(3, 2)),
        (stats.chi2(3), d.Chi2(3)),
        (stats.beta(2, 3), d.Beta(2, 3)),
        (stats.laplace(1, 2), d.Laplace(1, 2)),
        (stats.cauchy(1, 2), d.Cauchy(1, 2)),
        (stats.gumbel_r(1, 2), d.Gumbel(1, 2)),
        (stats.pareto(3, scale=2), d.Pareto(2, 3)),
        (stats.uniform(1, 2), d.Uniform(1, 3)),
        (stats.weibull_min(1.5, scale=2), d.Weibull(2, 1.5)),
        (stats.halfnorm(scale=2), d.HalfNormal(2)),
        (stats.vonmises(2, loc=1), d.VonMises(1, 2)),
        (stats.poisson(3), d.Poisson(3)),
        (stats.bernoulli(0.3), d.Bernoulli(0.3)),
        (stats.binom(5, 0.3), d.Binomial(5, 0.3)),
        (stats.geom(0.3, loc=-1), d.Geometric(0.3)),
        (stats.nbinom(5, 0.3), d.NegativeBinomial(5, 0.7)),
        (stats.dirichlet([1.0, 2.0]), d.Dirichlet(np.array([1.0, 2.0]))),
        (
            stats.multivariate_normal([0.0, 1.0], np.eye(2)),
            d.MultivariateNormal(np.array([0.0, 1.0]), np.eye(2)),
        ),
        (stats.Normal(mu=1.0, sigma=2.0), d.Normal(1, 2)),
        (stats.Uniform(a=1.0, b=3.0), d.Uniform(1, 3)),
    ]
    for theirs, ours in cases:
        converted = d.convert("p", theirs)
        assert type(converted) is type(ours)
        np.testing.assert_allclose(kl(theirs, ours), 0, atol=1e-15)
    # Small integers are not added, nor are their logarithms taken, in their own dtype.
    small = np.uint8(200)
    assert kl(stats.uniform(small, np.uint8(100)), d.Uniform(200, 300)) == 0
    assert kl(stats.lognorm(0.5, scale=small), d.LogNormal(math.log(200), 0.5)) < 1e-20
    assert (kl(stats.norm([0, 1], 2), d.Normal(np.array([0, 1]), 2)) == 0).all()
    rare = kl(stats.nbinom(5, 1e-20), stats.nbinom(5, 2e-20))
    assert rare == pytest.approx(5 * (1 - math.log(2)), rel=1e-13)
    # A shifted exponential is no Exponential, and is not taken for one.
    assert type(d.convert("p", stats.expon(1, 2))).__name__ == "Opaque"
    with pytest.raises(LibraryError, match="is not a frozen distribution"):
        kl(stats.norm, d.Normal(0, 1))


def test_scipy_distribution_is_what_it_was_converted_to():
    """Both have one density: quadrature of SciPy's own against the closed form."""
    stats = pytest.importorskip("scipy.stats")
    for theirs in (stats.gamma(3, scale=0.5), stats.weibull_min(1.5, scale=2), stats.pareto(3)):
        ours = d.convert("p", theirs)
        host = densities.density(densities.entry(ours, (), ()))
        x = np.array([1.1, 2.0, 3.0])
        np.testing.assert_allclose(host.log_prob(x), theirs.logpdf(x), rtol=1e-12)


def test_libraries_mix(torch):
    stats = pytest.importorskip("scipy.stats")
    tensor = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    found = kl(tensor, d.Normal(1, 2))
    torch.testing.assert_close(found, torch.full((2,), 0.4431471805599453))
    torch.testing.assert_close(kl(tensor, stats.norm(1.0, 2.0)), found)
    assert kl(tensor, d.Normal(np.float64(1), np.array(2))).dtype == torch.float32
    with pytest.raises(LibraryError, match="different libraries"):
        kl(tensor, d.Normal(np.ones(2), 2.0))
    with kldiv.config_context(backend="torch"):
        torch.testing.assert_close(kl(tensor, d.Normal(np.ones(2), 2.0)), found.double())


def test_torch_parametrisation_is_kept(torch):
    t = torch.distributions
    assert d.convert("p", t.Bernoulli(logits=torch.zeros(2))).probs is None
    assert d.convert("p", t.Bernoulli(torch.full((2,), 0.5))).logits is None
    assert d.convert("p", t.Categorical(logits=torch.zeros(2))).probs is None
    assert d.convert("p", t.Binomial(3, torch.full((2,), 0.5))).logits is None
    scale = d.convert("p", t.MultivariateNormal(torch.zeros(2), scale_tril=torch.eye(2)))
    assert scale.covariance_matrix is None


@pytest.mark.slow
def test_numpyro(jax):
    numpyro = pytest.importorskip("numpyro.distributions", exc_type=ImportError)
    x = jax.numpy.asarray([1.0, 2.0])
    for theirs, ours in [
        (numpyro.Normal(x, 2.0), d.Normal(x, 2.0)),
        (numpyro.Gamma(x, 2.0), d.Gamma(x, 2.0)),
        (numpyro.Bernoulli(logits=x), d.Bernoulli(logits=x)),
        (numpyro.Categorical(logits=x), d.Categorical(logits=x)),
        (numpyro.Pareto(x, 2.0), d.Pareto(x, 2.0)),
        (numpyro.Normal(x, 2.0).to_event(1), d.Independent(d.Normal(x, 2.0), 1)),
        (
            numpyro.MultivariateNormal(x, jax.numpy.eye(2)),
            d.MultivariateNormal(x, jax.numpy.eye(2)),
        ),
    ]:
        assert type(d.convert("p", theirs)) is type(ours)
        assert (kl(theirs, ours) == 0).all()


def stand_in(module, name, **values):
    """An object as another library would have it, where that library is not installed."""
    made = type(name, (), {"__module__": module})()
    vars(made).update(values)
    return made


def test_other_names_of_families_and_parameters():
    tfp = partial(stand_in, "tensorflow_probability.python.distributions")
    x = np.array([1.0, 2.0])
    for theirs, ours in [
        (tfp("Pareto", concentration=x, scale=3.0), d.Pareto(3.0, x)),
        (tfp("InverseGamma", concentration=x, scale=3.0), d.InverseGamma(x, 3.0)),
        (tfp("Weibull", concentration=x, scale=3.0), d.Weibull(3.0, x)),
        (tfp("Bernoulli", probs=None, logits=x), d.Bernoulli(logits=x)),
        (tfp("Bernoulli", _probs=None, _logits=x, probs=None, logits=x), d.Bernoulli(logits=x)),
        (
            tfp("MultivariateNormalTriL", loc=x, scale_tril=np.eye(2)),
            d.MultivariateNormal(x, scale_tril=np.eye(2)),
        ),
        (
            tfp(
                "Independent",
                distribution=tfp("Normal", loc=x, scale=1.0),
                reinterpreted_batch_ndims=1,
            ),
            d.Independent(d.Normal(x, 1.0), 1),
        ),
    ]:
        assert type(d.convert("p", theirs)) is type(ours)
        assert (kl(theirs, ours) == 0).all()
    unknown = d.convert("p", tfp("Horseshoe", scale=1.0))
    assert type(unknown).__name__ == "Opaque"
    with pytest.raises(OptionError, match="only distributions of SciPy and PyTorch"):
        kl(unknown, d.Normal(0, 1), method="monte_carlo")
