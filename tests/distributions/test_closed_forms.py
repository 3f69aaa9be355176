"""Closed forms against PyTorch's, mpmath's and quadrature; near equality; edges."""

from __future__ import annotations

import math
from functools import partial

import mpmath
import numpy as np
import pytest
from distribution_pairs import draw, make, pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import Library, require, unit

import kldiv
from bench.oracle import textbook as truths
from kldiv import distributions as d
from kldiv import kl_divergence as kl
from kldiv.distributions import registry

INF, NAN = math.inf, math.nan


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
