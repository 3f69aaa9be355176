"""Every registered pair of families, with parameters in their interior."""

from __future__ import annotations

import inspect

import numpy as np

from kldiv import distributions as d
from kldiv.distributions import registry


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
