"""Distributions on any array library, and the divergence of every pair that has a closed form.

Families are small immutable holders of parameters, named and ordered as in ``torch.distributions``.
`kldiv.kl_divergence` takes them, and those of PyTorch, SciPy, NumPyro, TFP and distrax as they are.
"""

from __future__ import annotations

from kldiv.distributions.base import Distribution
from kldiv.distributions.divergence import divergence
from kldiv.distributions.families import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Chi2,
    ContinuousBernoulli,
    Dirichlet,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    HalfNormal,
    Independent,
    InverseGamma,
    Kumaraswamy,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    MultivariateNormalDiag,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
    Pareto,
    Poisson,
    StudentT,
    Uniform,
    VonMises,
    Weibull,
)
from kldiv.distributions.foreign import convert
from kldiv.distributions.numerical import Estimate
from kldiv.distributions.registry import NoClosedFormError, register_kl

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Chi2",
    "ContinuousBernoulli",
    "Dirichlet",
    "Distribution",
    "Estimate",
    "Exponential",
    "Gamma",
    "Geometric",
    "Gumbel",
    "HalfNormal",
    "Independent",
    "InverseGamma",
    "Kumaraswamy",
    "Laplace",
    "LogNormal",
    "LowRankMultivariateNormal",
    "MixtureSameFamily",
    "Multinomial",
    "MultivariateNormal",
    "MultivariateNormalDiag",
    "NegativeBinomial",
    "NoClosedFormError",
    "Normal",
    "OneHotCategorical",
    "Pareto",
    "Poisson",
    "StudentT",
    "Uniform",
    "VonMises",
    "Weibull",
    "convert",
    "divergence",
    "register_kl",
]
