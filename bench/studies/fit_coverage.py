"""How often the intervals of `kldiv.fitting` cover, and how often the right family comes first.

    python -m bench.studies.fit_coverage [--seeds N] [--size N] [--families A,B] [--recognise]

Samples are drawn from each family, which is fitted to them. The interval of the absolute divergence
is to cover D(family‖fit), which is taken over quantiles of the family. With ``--recognise`` all
families that live where the data do are ranked, and the first must be the right one, or one that
contains it.
"""

from __future__ import annotations

import argparse
import math
from functools import cache
from typing import Any

import numpy as np
import scipy.stats

from kldiv import fitting
from kldiv._families import FAMILIES, family_of

from ..harness.progress import bar

LAWS: dict[str, Any] = {
    "Normal": scipy.stats.norm(3.0, 2.0),
    "Laplace": scipy.stats.laplace(-1.0, 0.5),
    "Cauchy": scipy.stats.cauchy(1.0, 2.0),
    "Gumbel": scipy.stats.gumbel_r(2.0, 3.0),
    "StudentT": scipy.stats.t(3.0, 1.0, 2.0),
    "Uniform": scipy.stats.uniform(2.0, 3.0),
    "HalfNormal": scipy.stats.halfnorm(0.0, 3.0),
    "Exponential": scipy.stats.expon(0.0, 4.0),
    "Gamma": scipy.stats.gamma(3.0, 0.0, 2.0),
    "InverseGamma": scipy.stats.invgamma(4.0, 0.0, 2.0),
    "LogNormal": scipy.stats.lognorm(0.7, 0.0, math.e),
    "Weibull": scipy.stats.weibull_min(2.5, 0.0, 3.0),
    "Pareto": scipy.stats.pareto(2.0, 0.0, 1.0),
    "Beta": scipy.stats.beta(2.0, 5.0),
    "Poisson": scipy.stats.poisson(6.0),
    "Geometric": scipy.stats.geom(0.3, -1.0),
    "NegativeBinomial": scipy.stats.nbinom(3.0, 0.4),
}
"""A law of each family: its parameters are those of the tests."""

CONTAIN = {
    "Normal": {"StudentT"},
    "Cauchy": {"StudentT"},
    "Exponential": {"Gamma", "Weibull"},
    "Poisson": {"NegativeBinomial"},
    "Geometric": {"NegativeBinomial"},
}
"""Families that contain another, in the limit too."""

QUANTILES = 20_000


@cache
def support(name: str) -> tuple[Any, Any, Any]:
    """Return points that stand for a law, their weights and their log-probabilities."""
    law = LAWS[name]
    if FAMILIES[name].support == "counts":
        points = np.arange(int(law.isf(1e-15)) + 1.0)
        return points, law.pmf(points), law.logpmf(points)
    points = law.ppf((np.arange(QUANTILES) + 0.5) / QUANTILES)
    return points, np.full(QUANTILES, 1 / QUANTILES), law.logpdf(points)


def true_divergence(name: str, fit: fitting.Fit, size: int) -> float:
    """Return D(law‖prediction), the fit to that many points predicting a new one."""
    points, weights, logs = support(name)
    expected = family_of(fit.family).log_predictive(points, fit.numbers, size)
    return float(np.sum(weights * (logs - expected)))


def coverage(name: str, seeds: int, size: int, told: Any) -> str:
    """Return a row on the intervals of one family."""
    law, errors, scores = LAWS[name], [], []
    for seed in range(seeds):
        data = law.rvs(size, random_state=np.random.default_rng([seed, size])).astype(np.float64)
        fit = fitting.rank(data, [name], kind=_kind(name)).best
        errors.append(fit.kl.value - true_divergence(name, fit, size))
        scores.append(errors[-1] / fit.kl.standard_error)
        told((seed + 1) / seeds)
    reach = scipy.stats.norm.ppf(0.975)
    covered = np.mean(np.abs(scores) <= reach)
    return (
        f"{name:18}{100 * covered:8.1f} %{np.mean(errors):12.5f}{np.std(errors):10.5f}"
        f"{np.mean(scores):9.2f}{np.std(scores):7.2f}"
    )


def recognised(name: str, seeds: int, size: int, told: Any) -> str:
    """Return a row on how often a family, or one that contains it, comes first."""
    law, first = LAWS[name], []
    for seed in range(seeds):
        data = law.rvs(size, random_state=np.random.default_rng([seed, size])).astype(np.float64)
        first.append(fitting.rank(data, kind=_kind(name), seed=seed).best.family)
        told((seed + 1) / seeds)
    right = sum(each == name for each in first)
    containing = sum(each in CONTAIN.get(name, ()) for each in first)
    others = sorted({*first} - {name} - CONTAIN.get(name, set()))
    return f"{name:18}{right + containing:4} of {seeds}  {right:4} itself  {', '.join(others)}"


def _kind(name: str) -> Any:
    return "counts" if FAMILIES[name].support == "counts" else "continuous"


def main() -> None:
    """Print a row for each family."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, help="samples of each family")
    parser.add_argument("--size", type=int, default=1000, help="points of a sample")
    parser.add_argument("--families", help="names, with commas between; by default all")
    parser.add_argument("--recognise", action="store_true", help="rank all families")
    options = parser.parse_args()
    names = options.families.split(",") if options.families else list(FAMILIES)
    row = recognised if options.recognise else coverage
    if not options.recognise:
        print(f"{'family':18}{'covered':>10}{'bias':>12}{'spread':>10}{'mean z':>9}{'sd z':>7}")
    with bar() as told:
        for place, name in enumerate(names):

            def step(share: float, name: str = name, place: int = place) -> None:
                told((place + share) / len(names), name)

            print(row(name, options.seeds, options.size, step), flush=True)


if __name__ == "__main__":
    main()
