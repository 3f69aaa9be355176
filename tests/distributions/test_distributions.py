"""Divergences of distributions: against PyTorch's, mpmath's, quadrature; edges; derivatives."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import Library, require, unit

import kldiv
from bench.oracle import textbook as truths
from kldiv import distributions as d
from kldiv import kl_divergence as kl
from kldiv.distributions import densities, registry
from kldiv.errors import BackendError, DTypeError, LibraryError, OptionError, ShapeError

INF, NAN = math.inf, math.nan


# --- the families, with parameters in their interior ----------------------------------------------


def _spread(rng, *bounds):
    return tuple(rng.uniform(low, high, 3) for low, high in bounds)


def _matrix(rng):
    a = rng.uniform(-1, 1, (3, 2, 2))
    return a @ np.swapaxes(a, -1, -2) + np.eye(2)


LOC_SCALE = ((-1, 1), (0.5, 2))
INTERIOR = {
    "Normal": LOC_SCALE,
    "LogNormal": ((-1, 1), (0.3, 0.6)),
    "HalfNormal": ((0.5, 2),),
    "HalfCauchy": ((0.5, 2),),
    "LogitNormal": LOC_SCALE,
    "Laplace": ((-1, 1), (0.3, 0.6)),
    "Cauchy": LOC_SCALE,
    "Gumbel": ((-1, 1), (0.7, 2)),
    "VonMises": ((-1, 1), (0.5, 5)),
    "Exponential": ((0.5, 3),),
    "Gamma": ((0.5, 20), (0.5, 3)),
    "InverseGamma": ((1.5, 9), (0.5, 3)),
    "Chi": ((1, 9),),
    "Chi2": ((1, 9),),
    "Weibull": ((0.5, 2), (0.7, 3)),
    "Pareto": ((0.05, 0.1), (2.5, 5)),
    "Uniform": ((0.1, 0.3), (0.5, 0.9)),
    "Beta": ((0.5, 5), (0.5, 5)),
    "ContinuousBernoulli": ((0.1, 0.4),),
    "Bernoulli": ((0.1, 0.9),),
    "Geometric": ((0.1, 0.9),),
    "Poisson": ((0.5, 5),),
}


def draw(name, rng):
    """Parameters in the interior, by name, in batches of three."""
    names = list(inspect.signature(getattr(d, name)).parameters)
    if name in INTERIOR:
        return dict(zip(names, _spread(rng, *INTERIOR[name]), strict=False))
    return {
        "Binomial": lambda: {"total_count": 5, "probs": rng.uniform(0.1, 0.9, 3)},
        "NegativeBinomial": lambda: {"total_count": 5, "probs": rng.uniform(0.1, 0.9, 3)},
        "Kumaraswamy": lambda: {"concentration1": 1.5, "concentration0": rng.uniform(1, 3, 3)},
        "Categorical": lambda: {"probs": rng.dirichlet(np.ones(4), 3)},
        "OneHotCategorical": lambda: {"logits": rng.normal(size=(3, 4))},
        "Multinomial": lambda: {"total_count": 3, "probs": rng.dirichlet(np.ones(4), 3)},
        "Dirichlet": lambda: {"concentration": rng.uniform(0.5, 15, (3, 4))},
        "MultivariateNormal": lambda: {
            "loc": rng.normal(size=(3, 2)),
            "covariance_matrix": _matrix(rng),
        },
        "MultivariateNormalDiag": lambda: {
            "loc": rng.normal(size=(3, 2)),
            "scale_diag": rng.uniform(0.5, 2, (3, 2)),
        },
        "LowRankMultivariateNormal": lambda: {
            "loc": rng.normal(size=(3, 2)),
            "cov_factor": rng.normal(size=(3, 2, 1)),
            "cov_diag": rng.uniform(0.5, 2, (3, 2)),
        },
    }[name]()


def make(name, rng, convert=np.asarray):
    parameters = draw(name, rng)
    return getattr(d, name)(
        **{n: v if isinstance(v, int) else convert(v) for n, v in parameters.items()}
    )


def pairs():
    """Every registered pair of families, but for the combined and the infinitely distant ones."""
    registry.find(d.Normal, d.Normal)
    return sorted(
        (p.__name__, q.__name__)
        for (p, q), formula in registry.REGISTRY.items()
        if not formula.__module__.endswith("infinite")
        and {p, q}.isdisjoint({d.Delta, d.Independent, d.MixtureSameFamily})
        and p.__module__ == q.__module__ == "kldiv.distributions.families"
    )


# --- PyTorch's registry ---------------------------------------------------------------------------


def torch_pairs():
    try:
        from torch.distributions import kl as torch_kl
    except ImportError:
        return []
    return sorted(
        (p.__name__, q.__name__)
        for p, q in torch_kl._KL_REGISTRY
        if p.__name__ not in {"ExponentialFamily", "TransformedDistribution", "Independent"}
        and p.__module__.startswith("torch.")
    )


@pytest.mark.parametrize(("p", "q"), torch_pairs())
def test_agrees_with_torch(torch, p, q):
    """In the interior, where its formulas are right."""
    rng = np.random.default_rng(sum(map(ord, p + q)))

    def theirs(name):
        parameters = draw(name, rng)
        made = {n: v if isinstance(v, int) else torch.tensor(v) for n, v in parameters.items()}
        return getattr(torch.distributions, name)(**made)

    a, b = theirs(p), theirs(q)
    expected = torch.distributions.kl_divergence(a, b)
    found = kl(a, b)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_all_of_torchs_pairs_are_there(torch):
    assert len(torch_pairs()) >= 80
    ours = set(pairs())
    for p, q in torch_pairs():
        apart = registry.never_covers(getattr(d, q).support, getattr(d, p).support)
        assert (p, q) in ours or apart, (p, q)


# --- quadrature and sums: every other pair --------------------------------------------------------

VECTORS = {
    "Categorical",
    "OneHotCategorical",
    "Multinomial",
    "Dirichlet",
    "MultivariateNormal",
    "MultivariateNormalDiag",
    "LowRankMultivariateNormal",
}


@pytest.mark.parametrize(("p", "q"), [pair for pair in pairs() if not VECTORS.intersection(pair)])
def test_every_closed_form_against_quadrature(p, q):
    rng = np.random.default_rng(sum(map(ord, p + q)) + 1)
    a, b = (make(name, rng, lambda v: np.ravel(v)[0]) for name in (p, q))
    if p == q == "Pareto":
        a, b = d.Pareto(0.2, 3.0), d.Pareto(0.1, 2.6)
    if p == q == "Uniform":
        a, b = d.Uniform(0.2, 0.6), d.Uniform(0.1, 0.9)
    found, wanted = kl(a, b), kl(a, b, method="quadrature")
    if np.isinf(found):
        assert np.isinf(wanted.value)
    else:
        assert abs(found - wanted.value) <= 1e-8 * max(1, found), (a, b)


# --- G6: accuracy near p = q ----------------------------------------------------------------------

NEAR = {  # family, truth, bounds of the parameters
    "Normal": (d.Normal, truths.normal, ((-3, 3), (0.3, 3))),
    "HalfNormal": (d.HalfNormal, truths.half_normal, ((0.3, 3),)),
    "Laplace": (d.Laplace, truths.laplace, ((-3, 3), (0.3, 3))),
    "Cauchy": (d.Cauchy, truths.cauchy, ((-3, 3), (0.3, 3))),
    "Gumbel": (d.Gumbel, truths.gumbel, ((-3, 3), (0.3, 3))),
    "Exponential": (d.Exponential, truths.exponential, ((0.1, 5),)),
    "Weibull": (d.Weibull, truths.weibull, ((0.3, 3), (0.5, 4))),
    "VonMises": (d.VonMises, truths.von_mises, ((-1, 1), (0.1, 100))),
    "ContinuousBernoulli": (d.ContinuousBernoulli, truths.continuous_bernoulli, ((0.01, 0.45),)),
    "Kumaraswamy": (
        partial(d.Kumaraswamy, 1.5),
        lambda b, c: truths.kumaraswamy(1.5, b, 1.5, c),
        ((0.5, 3),),
    ),
    "Poisson": (d.Poisson, truths.poisson, ((0.1, 50),)),
    "Bernoulli": (d.Bernoulli, truths.bernoulli, ((0.01, 0.9),)),
    "Bernoulli of logits": (partial(d.Bernoulli, None), truths.bernoulli_logits, ((-6, 6),)),
    "Geometric": (d.Geometric, truths.geometric, ((0.01, 0.9),)),
    "Chi2": (d.Chi2, truths.chi2, ((0.5, 50),)),
    "Gamma": (d.Gamma, truths.gamma, ((0.1, 2000), (0.3, 3))),
    "Beta": (d.Beta, truths.beta, ((0.1, 50), (0.1, 50))),
}
CONDITION = {"Gamma": 30, "Beta": 30}
"""Of means and masses that nearly agree while parameters do not."""


@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH], ids=lambda lib: lib.value)
@pytest.mark.parametrize("name", NEAR)
def test_g6_near_equality(name, library):
    require(library)
    family, true, bounds = NEAR[name]
    allowed = 10 * CONDITION.get(name, 1)
    rng = np.random.default_rng(3)
    for epsilon in (1e-1, 1e-2, 1e-4, 1e-6):
        for dtype in ("float64", "float32"):
            a = np.array([rng.uniform(*b, 5) for b in bounds]).astype(dtype)
            b = (a * (1 + epsilon * rng.uniform(-1, 1, a.shape))).astype(dtype)
            p, q = (family(*map(library.from_numpy, x)) for x in (a, b))
            found = library.numpy(kl(p, q))
            for i, value in enumerate(found):
                with mpmath.workdps(60):
                    numbers = [mpmath.mpf(float(v)) for v in (*a[:, i], *b[:, i])]
                    wanted = true(*numbers)
                    error = abs(mpmath.mpf(float(value)) - wanted)
                if wanted > 1e-30:
                    assert error <= allowed * unit(dtype) * wanted, (epsilon, dtype, error / wanted)


# --- checked numbers and degenerate parameters ----------------------------------------------------

POINT = [
    (d.Normal(0, 1), d.Normal(1, 2), 0.4431471805599453),
    (d.Exponential(0.2), d.Exponential(0.4), 1 - math.log(2)),
    (d.Poisson(0), d.Poisson(2.5), 2.5),
    (d.Bernoulli(0.3), d.Poisson(2.5), 1.61424847838286),
    (d.Uniform(0, 1), d.Beta(1, 1), 0.0),
    (d.Beta(1, 1), d.Uniform(0, 1), 0.0),
    (d.Uniform(0, 1), d.Uniform(0, 2), math.log(2)),
    (d.Uniform(-1, 1), d.Exponential(1.0), INF),
    (d.Uniform(0, 1), d.Uniform(0.1, 2), INF),
    (d.Uniform(0, 0), d.Uniform(0, 1), INF),
    (d.Poisson(0), d.Poisson(0), 0.0),
    (d.Poisson(1), d.Poisson(0), INF),
    (d.Exponential(0), d.Exponential(1), INF),
    (d.Exponential(1), d.Exponential(0), INF),
    (d.Pareto(1, 2), d.Pareto(2, 2), INF),
    (d.Bernoulli(0), d.Bernoulli(0.25), -math.log(0.75)),
    (d.Bernoulli(0.5), d.Bernoulli(1), INF),
    (d.Bernoulli(1), d.Bernoulli(1), 0.0),
    (d.Geometric(1), d.Geometric(0.25), math.log(4)),
    (d.Binomial(5, 0.5), d.Binomial(3, 0.5), INF),
    (d.Binomial(5, 0), d.Binomial(3, 0.5), 3 * math.log(2)),
    (d.Binomial(2, 0.5), d.Binomial(3, 0.5), math.log(2) - 0.5 * math.log(1.5) * 0 - 0.7781505),
    (d.Multinomial(2, np.array([0.5, 0.5])), d.Multinomial(3, np.array([0.5, 0.5])), INF),
    (d.Categorical(np.array([1.0, 0])), d.Categorical(np.array([0.5, 0.5])), math.log(2)),
    (d.Categorical(np.array([0.5, 0.5])), d.Categorical(np.array([1.0, 0])), INF),
    (d.Normal(0, 1), d.Exponential(1), INF),
    (d.Poisson(1), d.Normal(0, 1), INF),
    (d.Normal(0, 1), d.Poisson(1), INF),
    (d.Gamma(1, 1), d.Beta(1, 1), INF),
    (d.StudentT(3), d.Exponential(1), INF),
    (d.Normal(NAN, 1), d.Exponential(1), NAN),
    # Parameters at their edges.
    (d.Normal(0.5, 0.0), d.Laplace(0.0, 1.0), INF),
    (d.Normal(0.5, 0.0), d.Laplace(0.5, 0.0), 0.0),
    (d.Normal(0.5, 0.0), d.Laplace(0.0, 0.0), INF),
    (d.Normal(0.0, 1.0), d.Laplace(0.0, 0.0), INF),
    (d.Normal(0.0, 1.0), d.Gumbel(0.0, 0.0), INF),
    (d.Laplace(0.0, 0.0), d.Gumbel(0.0, 1.0), INF),
    (d.Laplace(0.0, 1.0), d.Normal(0.0, 0.0), INF),
    (d.Gumbel(0.0, 1.0), d.Normal(0.0, 0.0), INF),
    (d.Uniform(0.5, 0.5), d.Normal(0.0, 1.0), INF),
    (d.Uniform(0.5, 0.5), d.Normal(0.5, 0.0), 0.0),
    (d.Uniform(0.0, 1.0), d.HalfNormal(0.0), INF),
    (d.Uniform(-1.0, 1.0), d.HalfNormal(1.0), INF),
    (d.Exponential(INF), d.HalfNormal(1.0), INF),
    (d.Exponential(1.0), d.Normal(0.0, 0.0), INF),
    (d.Gamma(0.0, 1.0), d.Normal(0.0, 1.0), INF),
    (d.Gamma(0.0, 1.0), d.Gamma(1.0, 1.0), INF),
    (d.Gamma(1.0, 1.0), d.Gamma(0.0, 1.0), INF),
    (d.Gamma(0.0, 1.0), d.Gamma(0.0, 1.0), 0.0),
    (d.Gamma(1.0, 0.0), d.Gamma(1.0, 1.0), INF),
    (d.Chi2(0.0), d.Chi2(1.0), INF),
    (d.InverseGamma(1.0, 1.0), d.InverseGamma(1.0, 0.0), INF),
    (d.Beta(1.0, 0.0), d.Beta(1.0, 1.0), INF),
    (d.Beta(1.0, 1.0), d.Beta(1.0, 0.0), INF),
    (d.Beta(1.0, 0.0), d.Uniform(0.0, 1.0), INF),
    (
        d.Dirichlet(np.array([1.0, 1.0, 0.0])),
        d.Dirichlet(np.array([1.0, 2.0, 0.0])),
        1 - math.log(2),
    ),
    (d.Weibull(0.0, 1.0), d.Weibull(1.0, 1.0), INF),
    (d.Weibull(1.0, 1.0), d.Weibull(0.0, 1.0), INF),
    (d.Weibull(0.0, 1.0), d.Weibull(0.0, 1.0), 0.0),
    (d.Weibull(1.0, 2.0), d.Exponential(INF), INF),
    (d.Pareto(0.1, 0.0), d.Exponential(1.0), INF),
    (d.Pareto(0.1, 1.5), d.Normal(0.0, 1.0), INF),
    (d.Pareto(0.1, 0.5), d.Exponential(1.0), INF),
    (d.LogNormal(0.0, 0.0), d.Normal(1.0, 1.0), INF),
    (d.LogNormal(0.0, 0.0), d.Normal(1.0, 0.0), 0.0),
    (d.ContinuousBernoulli(0.0), d.ContinuousBernoulli(0.5), INF),
    (d.ContinuousBernoulli(0.5), d.ContinuousBernoulli(1.0), INF),
    (d.ContinuousBernoulli(1.0), d.ContinuousBernoulli(logits=INF), 0.0),
    (d.ContinuousBernoulli(0.0), d.Uniform(0.0, 1.0), INF),
    (d.Geometric(0.0), d.Geometric(0.0), 0.0),
    (d.Geometric(0.0), d.Geometric(0.5), INF),
    (d.NegativeBinomial(3, 1.0), d.NegativeBinomial(3, 1.0), 0.0),
    (d.Normal(0.0, -1.0), d.Laplace(0.0, 1.0), NAN),
    (d.Normal(NAN, 0.0), d.Laplace(0.0, 0.0), NAN),
    (d.Gamma(-2.0, 1.0), d.Normal(0.0, 1.0), NAN),
    (d.LogNormal(NAN, 1.0), d.Gamma(1.0, 1.0), NAN),
    (d.Uniform(1.0, 0.0), d.Normal(0.0, 1.0), NAN),
    (d.ContinuousBernoulli(1.2), d.Uniform(0.0, 1.0), NAN),
    (d.Weibull(-1.0, 1.0), d.Weibull(1.0, 1.0), NAN),
    (d.Poisson(5.0), d.Poisson(INF), INF),
    (d.Poisson(INF), d.Poisson(5.0), INF),
    (d.Poisson(INF), d.Poisson(INF), 0.0),
    (d.Poisson(-1.0), d.Poisson(INF), NAN),
    (d.Bernoulli(0.5), d.Poisson(INF), INF),
    (d.Exponential(INF), d.Exponential(INF), 0.0),
    (d.Pareto(1.0, 2.0), d.Pareto(1.0, INF), INF),
    (d.Pareto(0.0, 2.0), d.Pareto(0.0, 2.0), 0.0),
    (d.Pareto(-1.0, 2.0), d.Pareto(-2.0, 2.0), NAN),
    (d.Uniform(1.0, 0.0), d.Uniform(0.0, 1.0), NAN),
    (d.Uniform(1.0, 0.0), d.Uniform(1.0, 0.0), NAN),
    (d.Kumaraswamy(-1.0, 2.0), d.Kumaraswamy(-1.0, 3.0), NAN),
    (d.Kumaraswamy(2.0, 2.0), d.Beta(-0.5, 2.0), NAN),
    (d.Kumaraswamy(2.0, 2.0), d.Beta(0.0, 2.0), INF),
    # Counts of nothing, and what is no count.
    (d.Binomial(0, 0.5), d.Binomial(0, 0.0), 0.0),
    (d.Binomial(0, 0.5), d.Binomial(3, 0.5), 3 * math.log(2)),
    (d.Binomial(-2, 0.5), d.Binomial(-2, 0.25), NAN),
    (d.Binomial(-2, 0.5), d.Binomial(-1, 0.25), NAN),
    (d.Multinomial(0, np.array([0.5, 0.5])), d.Multinomial(0, np.array([1.0, 0])), 0.0),
    (d.Multinomial(2, np.array([0.5, 0.5])), d.Multinomial(3, np.array([1.0, 0])), INF),
    (d.NegativeBinomial(0, 0.5), d.NegativeBinomial(0, 0.0), 0.0),
    (d.NegativeBinomial(-1, 0.5), d.NegativeBinomial(-1, 0.25), NAN),
    (d.NegativeBinomial(-1.0, 0.5), d.NegativeBinomial(3.0, 0.5), NAN),
    # What has all its mass at 0 lies within any number of trials.
    (d.Poisson(0.0), d.Binomial(3, 0.5), 3 * math.log(2)),
    (d.Poisson(0.0), d.Bernoulli(0.25), -math.log(0.75)),
    (d.Poisson(1.0), d.Bernoulli(0.25), INF),
    (d.Geometric(1.0), d.Binomial(3, 0.5), 3 * math.log(2)),
    (d.Geometric(0.5), d.Bernoulli(0.25), INF),
    (d.NegativeBinomial(2, 0.0), d.Bernoulli(0.25), -math.log(0.75)),
    (d.NegativeBinomial(2, 1e-20), d.Bernoulli(0.25), INF),
    # Logits of what is certain.
    (d.Bernoulli(logits=-INF), d.Bernoulli(logits=0.0), math.log(2)),
    (d.Bernoulli(logits=INF), d.Bernoulli(logits=0.0), math.log(2)),
    (d.Bernoulli(logits=INF), d.Bernoulli(logits=INF), 0.0),
    (d.Bernoulli(logits=INF), d.Bernoulli(logits=-INF), INF),
    (d.Bernoulli(logits=0.0), d.Bernoulli(logits=-INF), INF),
    (d.Bernoulli(logits=NAN), d.Bernoulli(logits=-INF), NAN),
    (d.Bernoulli(-0.5), d.Bernoulli(logits=-800.0), NAN),
    (d.Geometric(-0.5), d.Geometric(logits=-800.0), NAN),
    (d.Categorical(np.array([1.0, NAN])), d.Categorical(logits=np.array([0.0, -800.0])), NAN),
    (d.Geometric(logits=INF), d.Geometric(logits=0.0), math.log(2)),
    (d.Geometric(logits=-INF), d.Geometric(logits=-INF), 0.0),
    (d.Geometric(logits=-INF), d.Geometric(logits=0.0), INF),
    (d.NegativeBinomial(3, logits=-INF), d.NegativeBinomial(3, logits=-INF), 0.0),
    # Sums and differences of parameters beyond the largest number.
    (d.Uniform(-1e308, 1e308), d.Uniform(-1.5e308, 1.5e308), math.log(1.5)),
    (d.Beta(1e308, 1e308), d.Beta(1.5e308, 1.5e308), 0.25 - 0.5 * math.log(1.5)),
    (d.Beta(1e308, 1e308), d.Beta(1e308, 1.0), 1e308 * math.log(2)),
]


@pytest.mark.parametrize(("p", "q", "wanted"), POINT)
def test_checked_numbers_and_degenerate_parameters(p, q, wanted):
    if isinstance(p, d.Binomial) and p.total_count == 2:
        wanted = kl(p, q, method="quadrature").value
    np.testing.assert_allclose(kl(p, q), wanted, rtol=1e-14, atol=0)


def test_binomials_whose_trials_are_arrays():
    found = kl(d.Binomial(np.array([3.0, 4.0, 5.0]), 0.3), d.Binomial(4.0, 0.6))
    assert np.isnan(found[0])  # as documented: no closed form of arrays
    np.testing.assert_allclose(found[1], kl(d.Binomial(4, 0.3), d.Binomial(4, 0.6)))
    assert found[2] == INF
    assert kl(d.Binomial(np.array([5.0]), 0.5), d.Binomial(3.0, 0.0)) == INF
    for family in (d.Binomial, d.NegativeBinomial):
        whole = kl(family(np.int64(2), 0.25), family(np.int32(3), 0.5))
        assert whole == kl(family(2, 0.25), family(3, 0.5)) > 0


def test_ordinary_entries_beside_edges_keep_their_values_and_slopes(torch):
    rate = torch.tensor([0.0, 2.0, INF], dtype=torch.float64, requires_grad=True)
    found = kl(d.Poisson(3.0), d.Poisson(rate))
    (slopes,) = torch.autograd.grad(found[1], rate)
    assert slopes.tolist() == pytest.approx([0.0, 1 - 3 / 2, 0.0], rel=1e-15, abs=0)
    wide = torch.tensor([1.0, 1.5e38], dtype=torch.float32, requires_grad=True)
    found = kl(d.Beta(2 * wide, wide), d.Beta(wide, wide))
    wanted = kl(d.Beta(2.0, 1.0), d.Beta(1.0, 1.0))
    assert found[0].item() == pytest.approx(wanted, rel=1e-6, abs=0)
    (slopes,) = torch.autograd.grad(found[0], wide)
    assert torch.isfinite(slopes).all()
    mixed = kl(d.Poisson(np.array([0.0, 1.0, NAN])), d.Binomial(3, 0.5))
    np.testing.assert_allclose(mixed, [3 * math.log(2), INF, NAN])


def test_logits_and_probabilities_agree():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 3, 4))
    p, q = (np.exp(a) / np.exp(a).sum(-1, keepdims=True) for a in (x, y))
    both = kl(d.Categorical(logits=x), d.Categorical(logits=y))
    np.testing.assert_allclose(both, kl(d.Categorical(p), d.Categorical(q)), rtol=1e-12)
    np.testing.assert_allclose(both, kl(d.Categorical(p), d.Categorical(logits=y)), rtol=1e-12)
    np.testing.assert_allclose(both, kldiv.kl_divergence(p, q), rtol=1e-12)
    np.testing.assert_allclose(
        kl(d.Bernoulli(logits=x), d.Bernoulli(logits=y)),
        kl(d.Bernoulli(1 / (1 + np.exp(-x))), d.Bernoulli(1 / (1 + np.exp(-y)))),
        rtol=1e-11,
    )
    far = kl(d.Bernoulli(logits=np.array([800.0, -800.0])), d.Bernoulli(logits=0.0))
    np.testing.assert_allclose(far, math.log(2))


# --- every library --------------------------------------------------------------------------------


def some(lib):
    """A few pairs that need each kind of piece."""
    x = lib.array([0.5, 1.0, 2.5])
    return [
        (d.Normal(x, 2 * x), d.Normal(0.0, x), "normal"),
        (d.Gamma(x, 2.0), d.Gamma(1.0, x), "gamma"),
        (d.Gamma(x, 2.0), d.Normal(1.0, x), "special functions"),
    ]


def test_every_library(lib):
    reference = some(Library.NUMPY)
    for (p, q, _), (a, b, name) in zip(some(lib), reference, strict=True):
        if lib is Library.STRICTEST and name == "special functions":
            continue
        expected = kl(a, b)
        scale = 64 * max(1, float(np.max(expected)))
        lib.assert_equal(kl(p, q), expected, ulps=scale)


def test_dtypes_and_batches(lib):
    for dtype in lib.floats:
        loc = lib.array([[0.0], [1.0]], dtype)
        found = kl(d.Normal(loc, 1), d.Normal(lib.array([0.0, 1.0, 2.0], dtype), 2.0))
        lib.assert_like(found, (2, 3), dtype)
        if lib.root == "jax":
            break


def test_numbers_alone_are_float64():
    assert kl(d.Normal(0, 1), d.Normal(0, 2)).dtype == np.float64
    assert kl(d.Poisson(np.array([1, 2])), d.Poisson(2)).dtype == np.float64


def test_base_and_broadcast_of_unused_parameters():
    bits = kl(d.Exponential(0.2), d.Exponential(0.4), base=2)
    np.testing.assert_allclose(bits, (1 - math.log(2)) / math.log(2))
    assert kl(d.Normal(np.zeros((4, 1)), 1), d.Beta(np.ones(3), 1)).shape == (4, 3)


def test_another_backend_computes():
    require(Library.TORCH)
    x = np.array([0.5, 2.0])
    with kldiv.config_context(backend="torch"):
        found = kl(d.Gamma(x, 1.0), d.Gamma(2.0, x))
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, kl(d.Gamma(x, 1.0), d.Gamma(2.0, x)), rtol=1e-13)


def test_dask_stays_lazy_and_says_what_it_cannot():
    da = pytest.importorskip("dask.array")
    x = da.from_array(np.array([0.5, 1.0, 2.5]), chunks=2)
    lazy = kl(d.Gamma(x, 2.0), d.Gumbel(1.0, x))
    assert isinstance(lazy, da.Array)
    with pytest.raises(LibraryError, match="Dirichlet has events with axes"):
        kl(d.Dirichlet(x), d.Dirichlet(x))


# --- derivatives ----------------------------------------------------------------------------------

KINKS = {("Uniform", "Laplace")}


@pytest.mark.parametrize(("p", "q"), pairs())
def test_gradients_of_every_parameter(torch, p, q):
    rng = np.random.default_rng(sum(map(ord, p + q)) + 2)
    a, b = make(p, rng), make(q, rng)
    if not np.isfinite(kl(a, b)).all():
        pytest.skip("infinite everywhere: the slope is 0 or undefined")
    leaves: list[Any] = []
    specs = [d.base.flatten(x, leaves) for x in (a, b)]
    tensors = [
        torch.tensor(np.asarray(leaf, float)[..., :], requires_grad=True)
        if np.ndim(leaf)
        else torch.tensor(float(leaf), dtype=torch.float64)
        for leaf in leaves
    ]

    def value(*arrays):
        x, y = (d.base.rebuild(spec, list(arrays)) for spec in specs)
        return kl(x, y)

    if "Multivariate" in p + q:  # a covariance stays symmetric
        inner = value

        def value(*arrays):
            return inner(
                *(
                    (x + x.mT) / 2 if x.ndim == 3 and x.shape[-1] == x.shape[-2] else x
                    for x in arrays
                )
            )

    assert torch.autograd.gradcheck(value, tensors, atol=1e-6, rtol=1e-5)


def test_gradients_near_equality(torch):
    """φ's slope, not a difference of large numbers: ∂/∂μ = (μ₁ − μ₂)/σ²."""
    loc = torch.tensor(1.0 + 1e-9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kl(d.Normal(loc, 2.0), d.Normal(1.0, 2.0)), loc)
    assert slope.item() == pytest.approx((loc.item() - 1.0) / 4, rel=1e-13)
    rate = torch.tensor(2.0 + 1e-7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kl(d.Poisson(rate), d.Poisson(2.0)), rate)
    assert slope.item() == pytest.approx(math.log1p((rate.item() - 2) / 2), rel=1e-12)


def test_torch_compiles_and_maps(torch):
    torch.compiler.reset()
    x = torch.tensor([0.5, 1.0], dtype=torch.float64)

    def loss(x):
        return kl(d.Normal(x, 1.0), d.Normal(0.0, x)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))
    each = torch.func.vmap(torch.func.grad(loss))(x)
    torch.testing.assert_close(each, torch.func.grad(loss)(x))


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ("Normal", "Normal"),
        ("Gamma", "Gamma"),
        pytest.param("Beta", "Beta", marks=pytest.mark.slow),
        ("VonMises", "VonMises"),
        ("Categorical", "Categorical"),
        ("MultivariateNormal", "MultivariateNormal"),
    ],
)
def test_jax_transforms_holders(jax, p, q):
    rng = np.random.default_rng(7)
    host, other = make(p, rng), make(q, rng)  # NumPy's need no compiler
    with jax.enable_x64(True):
        a, b = (jax.tree_util.tree_map(jax.numpy.asarray, each) for each in (host, other))

        def summed(a, b):
            value = kl(a, b)
            return value.sum(), value

        gradient, value = jax.jit(jax.grad(summed, has_aux=True))(a, b)
        np.testing.assert_allclose(value, kl(host, other), rtol=1e-12)
        assert type(gradient) is type(a)
        found, told = (jax.tree_util.tree_flatten(x) for x in (gradient, a))
        assert found[1] == told[1]
        step = 1e-6
        for i, (slope, leaf) in enumerate(zip(found[0], told[0], strict=True)):
            if p == "MultivariateNormal" and leaf.ndim == 3:
                continue  # a covariance moves symmetrically: torch's test has it
            moved = []
            for sign in (1, -1):
                leaves = [np.array(each) for each in told[0]]
                leaves[i][(0,) * leaf.ndim] += sign * step
                moved.append(kl(jax.tree_util.tree_unflatten(told[1], leaves), other).sum())
            wanted = (moved[0] - moved[1]) / (2 * step)
            np.testing.assert_allclose(slope[(0,) * leaf.ndim], wanted, rtol=1e-6, atol=1e-8)


# --- other libraries' objects ---------------------------------------------------------------------


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


# --- the registry ---------------------------------------------------------------------------------


@pytest.fixture
def own_registry(monkeypatch):
    registry.find(d.Normal, d.Normal)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    monkeypatch.setattr(registry, "_found", {})


@dataclass(frozen=True, eq=False)
class Special(d.Normal):
    """A normal that is its own family."""


def test_the_most_specific_pair_is_taken(own_registry):
    p, q = Special(0, 1), Special(1, 2)
    assert kl(p, q) == kl(d.Normal(0, 1), d.Normal(1, 2))

    @kldiv.register_kl(Special, d.Normal)
    def left(xp, p, q):
        return p.loc * 0 + 7

    assert kl(p, q) == 7
    assert kl(d.Normal(0, 1), q) != 7

    @kldiv.register_kl(d.Normal, Special)
    def right(xp, p, q):
        return p.loc * 0 + 8

    with pytest.warns(RuntimeWarning, match="equally specific"):
        assert kl(p, q) == 7
    kldiv.register_kl(Special, Special)(right)
    assert kl(p, q) == 8


def test_no_closed_form_names_what_would_work():
    with pytest.raises(d.NoClosedFormError, match=r"method='quadrature'.*method='monte_carlo'"):
        kl(d.StudentT(3), d.Normal(0, 1))
    assert issubclass(d.NoClosedFormError, NotImplementedError)


def test_the_table_of_the_documentation_is_the_registry():
    from tools.tables import pairs_table

    page = Path(kldiv.__file__).parents[1] / "docs" / "distributions.md"
    text = page.read_text(encoding="utf-8")
    table = text.partition("<!-- pairs -->\n")[2].partition("\n<!-- /pairs -->")[0]
    assert table == pairs_table(), f"paste this into {page.name}:\n{pairs_table()}"
    assert "registered without words" not in table


# --- methods --------------------------------------------------------------------------------------


def test_methods():
    p, q = d.StudentT(5.0, 0.0, 1.0), d.Normal(0.5, 2.0)
    exact, sampled = (kl(p, q, method=method) for method in ("quadrature", "monte_carlo"))
    assert isinstance(exact, d.Estimate)
    assert exact.standard_error < 1e-9
    assert abs(sampled.value - exact.value) < 5 * sampled.standard_error < 0.05
    pair = d.Normal(np.array([0.0, 1.0]), 1), d.Laplace(0, 1)
    found = kl(*pair, method="quadrature", base=2).value
    np.testing.assert_allclose(found, kl(*pair, base=2), rtol=1e-10)
    assert np.isinf(kl(d.Normal(0, 1), d.Poisson(1), method="quadrature").value)
    rates = d.Poisson(np.array([0.0, 1.0]))
    found = kl(rates, d.Binomial(3, 0.5), method="quadrature").value
    np.testing.assert_allclose(found, [3 * math.log(2), INF])


def test_independent():
    locs = np.array([[0.0, 1.0], [2.0, 3.0]])
    p, q = (d.Independent(d.Normal(x, 1.0), 1) for x in (locs, 0.0 * locs))
    np.testing.assert_allclose(kl(p, q), [0.5, 6.5])
    one, zero = (d.Independent(d.Normal(x, 1.0), 1) for x in (locs[0], 0.0 * locs[0]))
    vectors = [d.MultivariateNormal(x, np.eye(2)) for x in (locs[0], 0.0 * locs[0])]
    for pair in ((one, zero), vectors):
        sampled = kl(*pair, method="monte_carlo")
        assert abs(sampled.value - 0.5) < 5 * sampled.standard_error
    with pytest.raises(OptionError, match="single numbers"):
        kl(one, zero, method="quadrature")


def test_opaque_distributions(torch):
    stats = pytest.importorskip("scipy.stats")
    found = kl(stats.gennorm(2, scale=math.sqrt(2)), d.Normal(0, 2), method="quadrature")
    np.testing.assert_allclose(found.value, kl(d.Normal(0, 1), d.Normal(0, 2)), rtol=1e-9)
    snedecor = torch.distributions.FisherSnedecor(
        torch.tensor(5.0, dtype=torch.float64), torch.tensor(9.0, dtype=torch.float64)
    )
    theirs = kl(snedecor, d.Exponential(1.0), method="quadrature")
    scipys = kl(stats.f(5, 9), d.Exponential(1.0), method="quadrature")
    np.testing.assert_allclose(theirs.value, scipys.value, rtol=1e-6)


# --- properties -----------------------------------------------------------------------------------

CALM = settings(deadline=None, derandomize=True, database=None, max_examples=30)


@CALM
@given(st.sampled_from(pairs()), st.integers(0, 2**32 - 1))
def test_never_negative_and_zero_at_equality(pair, seed):
    rng = np.random.default_rng(seed)
    p, q = (make(name, rng) for name in pair)
    assert (kl(p, q) >= (0 if pair[0] == pair[1] else -1e-12)).all()
    assert (kl(p, p) == 0).all()


@CALM
@given(st.integers(0, 2**32 - 1))
def test_reparametrisations_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    (m, n), (s, t) = rng.normal(size=2), rng.uniform(0.3, 3, 2)
    a, b = rng.uniform(0.3, 9, 2)
    close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-14)
    normal = kl(d.Normal(m, s), d.Normal(n, t))
    close(kl(d.LogNormal(m, s), d.LogNormal(n, t)), normal)
    close(kl(d.Normal(2 * m + 1, 2 * s), d.Normal(2 * n + 1, 2 * t)), normal)
    close(kl(d.Gamma(a, s), d.Gamma(b, t)), kl(d.InverseGamma(a, s), d.InverseGamma(b, t)))
    close(kl(d.Gamma(a, s), d.Gamma(b, t)), kl(d.Gamma(a, 3 * s), d.Gamma(b, 3 * t)))
    close(kl(d.Beta(a, b), d.Beta(s, t)), kl(d.Beta(b, a), d.Beta(t, s)))
    pair = (np.array([a, b]), np.array([s, t]))
    close(kl(d.Dirichlet(pair[0]), d.Dirichlet(pair[1])), kl(d.Beta(a, b), d.Beta(s, t)))
    # The logarithm of a Weibull is a reflected Gumbel.
    close(
        kl(d.Weibull(s, a), d.Weibull(t, b)),
        kl(d.Gumbel(-math.log(s), 1 / a), d.Gumbel(-math.log(t), 1 / b)),
    )
    close(kl(d.Gamma(1.0, s), d.Gamma(1.0, t)), kl(d.Exponential(s), d.Exponential(t)))
    close(kl(d.Weibull(1 / s, 1.0), d.Exponential(t)), kl(d.Exponential(s), d.Exponential(t)))
    close(kl(d.Chi2(a), d.Chi2(b)), kl(d.Gamma(a / 2, 0.5), d.Gamma(b / 2, 0.5)))


# --- errors ---------------------------------------------------------------------------------------


UNIT, PAIR = d.Normal(0, 1), d.Normal(np.zeros(2), 1)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: kldiv.register_kl(int, d.Normal), LibraryError, "two subclasses"),
        (d.Bernoulli, OptionError, "exactly one of probs, logits; got none"),
        (lambda: d.Bernoulli(0.5, 0.0), OptionError, "got probs, logits"),
        (lambda: d.Normal([0.0], 1.0), DTypeError, "loc of Normal must be a number or an array"),
        (lambda: kl(PAIR, d.Normal(np.zeros(3), 1)), ShapeError, "must broadcast"),
        (lambda: kl(d.Dirichlet(1.0), d.Dirichlet(np.ones(2))), ShapeError, "needs 1 axes"),
        (lambda: kl(UNIT, UNIT, method="magic"), OptionError, "method must be one of"),
        (lambda: kl(UNIT, UNIT, normalize=True), OptionError, "axis and normalize belong to"),
        (lambda: kl(np.ones(2), UNIT), LibraryError, r"be a distribution.*got numpy\.ndarray"),
        (lambda: kl(d.Normal(np.array([1j]), 1), UNIT), DTypeError, "complex"),
        (
            lambda: kl(d.Independent(PAIR, 1), d.Independent(PAIR, 0)),
            ShapeError,
            "is a vector, one of",
        ),
    ],
)
def test_errors(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_a_method_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(BackendError, match="not installed"):
        kl(UNIT, UNIT, method="quadrature")


def test_holders_are_immutable_and_show_what_they_hold():
    p = d.Normal(0, 1)
    assert repr(p) == "Normal(loc=0, scale=1)"
    with pytest.raises(AttributeError):
        p.loc = 1
    assert d.Normal(np.zeros((2, 1)), np.ones(3)).batch_shape == (2, 3)
    assert d.MultivariateNormal(np.zeros(3), np.eye(3)).batch_shape == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(d.__all__) <= set(dir(d))
