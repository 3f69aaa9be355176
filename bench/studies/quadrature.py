"""Whether the error that ``method="quadrature"`` returns bounds the true one, on random pairs.

    python -m bench.studies.quadrature [--pairs N] [--seed N]

The truths are closed forms in 50 digits. Scales and shapes spread over many powers of ten, a third
of the pairs are nearly equal, and some integrals diverge.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import kldiv
from kldiv import distributions as d
from kldiv.errors import KLDivError

try:
    import mpmath
    from mpmath import mp, mpf
except ImportError:
    sys.exit("bench.studies.quadrature needs mpmath for the truth: pip install mpmath")

from ..oracle import moments, textbook

if TYPE_CHECKING:
    from collections.abc import Callable

    Parameters = tuple[float, ...]
    Maker = Callable[[np.random.Generator], tuple[Any, Any, Any]]

DIGITS = 50
WRONG = 1e-6
"""The relative error that no result may have whose stated error is smaller."""


class Result(NamedTuple):
    """One pair: the stated number and error, and the truth."""

    pair: str
    value: float
    error: float
    truth: float
    seconds: float
    refused: str

    @property
    def distance(self) -> float:
        """How far the value is from the truth."""
        return 0.0 if self.value == self.truth else abs(self.value - self.truth)

    @property
    def bounded(self) -> bool:
        """Whether the truth lies within the error; a refusal states no number."""
        return bool(self.refused) or self.distance <= self.error

    @property
    def wrong(self) -> bool:
        """Whether the result is off by more than it says and by more than a millionth."""
        return not self.bounded and not self.distance <= WRONG * abs(self.truth)


def _spread(rng: np.random.Generator, low: float, high: float) -> float:
    return float(10.0 ** rng.uniform(low, high))


def _near(rng: np.random.Generator, *others: tuple[float, float]) -> tuple[Parameters, Parameters]:
    """Return parameters of P and Q, spread over powers of ten, nearly equal in a third of cases."""
    p = tuple(_spread(rng, *bounds) for bounds in others)
    if rng.random() < 1 / 3:
        step = _spread(rng, -8, -1)
        return p, tuple(x * (1 + step * rng.uniform(-1, 1)) for x in p)
    return p, tuple(_spread(rng, *bounds) for bounds in others)


# --- closed forms that no textbook of the oracle has ----------------------------------------------


def _normal_cross(mean: Any, variance: Any, n: Any, t: Any) -> Any:
    """Return −E log q of Normal(n, t), given the mean and variance of what it is taken over."""
    return moments.Q["Normal"](mean, variance, None, None, n, t)


def _student_normal(df: Any, n: Any, t: Any) -> Any:
    if df <= 2:
        return mp.inf
    entropy = (df + 1) / 2 * (mp.digamma((df + 1) / 2) - mp.digamma(df / 2))
    entropy += mp.log(mp.sqrt(df)) + mp.log(mp.beta(df / 2, mpf(1) / 2))
    return _normal_cross(0, df / (df - 2), n, t) - entropy


def _inverse_gamma_gamma(a: Any, r: Any, c: Any, s: Any) -> Any:
    if a <= 1:
        return mp.inf
    log_mean = mp.log(r) - mp.digamma(a)
    entropy = a + mp.log(r) + mp.loggamma(a) - (1 + a) * mp.digamma(a)
    return moments.Q["Gamma"](r / (a - 1), None, log_mean, None, c, s) - entropy


def _zipf(a: Any, b: Any) -> Any:
    log_mean = -mp.zeta(a, derivative=1) / mp.zeta(a)
    return (b - a) * log_mean + mp.log(mp.zeta(b)) - mp.log(mp.zeta(a))


# --- the pairs ------------------------------------------------------------------------------------


def _numbers(*values: Any) -> list[Any]:
    return [mpf(value) for value in values]


def _same(family: Any, truth: Callable[..., Any], *others: tuple[float, float]) -> Maker:
    """Return a maker of pairs of one family, its parameters spread over powers of ten."""

    def make(rng: np.random.Generator) -> tuple[Any, Any, Any]:
        p, q = _near(rng, *others)
        return family(*p), family(*q), truth(*_numbers(*p, *q))

    return make


def _located(family: Any, truth: Callable[..., Any], ratio: float = 3.0) -> Maker:
    """Return a maker of pairs with a place and a scale."""

    def make(rng: np.random.Generator) -> tuple[Any, Any, Any]:
        (s,), (t,) = _near(rng, (-3, 3))
        t = s * float(np.clip(t / s, 10**-ratio, 10**ratio))
        m = rng.normal() * _spread(rng, -2, 2)
        n = m + (t if s != t else s) * rng.normal() * _spread(rng, -2, 1)
        if 0.5 < t / s < 2:
            n = m + rng.normal() * abs(t - s)
        return family(m, s), family(n, t), truth(*_numbers(m, s, n, t))

    return make


def _gamma_normal(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    a, r = _spread(rng, -2, 4), _spread(rng, -2, 2)
    mean, deviation = a / r, a**0.5 / r
    n, t = mean + deviation * rng.normal(), deviation * _spread(rng, -0.5, 1)
    truth = moments.divergence("Gamma", "Normal", 2)
    return d.Gamma(a, r), d.Normal(n, t), truth(*_numbers(a, r, n, t))


def _gamma_log_normal(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    a, r = _spread(rng, -1.5, 4), _spread(rng, -2, 2)
    n, t = np.log(a / r) + rng.normal(), _spread(rng, -1, 1)
    a_, r_, n_, t_ = _numbers(a, r, n, t)
    own, _, _, log_mean, _ = moments.P["Gamma"](a_, r_)
    truth = own + log_mean + _normal_cross(log_mean, mp.psi(1, a_), n_, t_)
    return d.Gamma(a, r), d.LogNormal(n, t), truth


def _normal_laplace(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    m, s, b = rng.normal() * _spread(rng, -1, 3), _spread(rng, -3, 2), _spread(rng, -2, 2)
    truth = moments.divergence("Normal", "Laplace", 2)
    return d.Normal(m, s), d.Laplace(0.0, b), truth(*_numbers(m, s, 0.0, b))


def _student(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    df, n, t = rng.choice([0.5, 1.0, 1.9, 2.0, 2.2, 3.0, 10.0, 200.0]), rng.normal(), 1.5
    return d.StudentT(df, 0.0, 1.0), d.Normal(n, t), _student_normal(*_numbers(df, n, t))


def _inverse(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    a = float(rng.choice([0.5, 0.9, 1.0, 1.05, 1.5, 5.0, 100.0]))
    given = (a, _spread(rng, -1, 1), _spread(rng, -1, 1), _spread(rng, -1, 1))
    truth = _inverse_gamma_gamma(*_numbers(*given))
    return d.InverseGamma(*given[:2]), d.Gamma(*given[2:]), truth


def _peaks(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Return a mixture of peaks so far apart that its entropy is that of its parts."""
    count = int(rng.integers(2, 5))
    scales = np.array([_spread(rng, -4, 1) for _ in range(count)])
    starts = np.concatenate([[0.0], 40 * (scales[:-1] + scales[1:])])
    locs = np.cumsum(starts) + rng.normal()
    weights = rng.dirichlet(np.ones(count)) * 0.9 + 0.1 / count
    weights /= weights.sum()
    t = _spread(rng, 0, 2)
    p = d.MixtureSameFamily(d.Categorical(weights), d.Normal(locs, scales))
    truth, t_ = mpf(0), mpf(t)
    total = mp.fsum(_numbers(*weights))
    for w, m, s in zip(_numbers(*weights), _numbers(*locs), _numbers(*scales), strict=True):
        part = w / total
        own, *_ = moments.P["Normal"](m, s)
        truth += part * (own + _normal_cross(m, s**2, 0, t_) + mp.log(part))
    return p, d.Normal(0.0, t), truth


def _zipfs(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    from scipy import stats

    a, b = 1 + _spread(rng, -1.5, 0.7), 1 + _spread(rng, -1.5, 0.7)
    return stats.zipf(a), stats.zipf(b), _zipf(*_numbers(a, b))


def _geometric(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    p, q = _spread(rng, -6, -0.01), _spread(rng, -6, -0.01)
    return d.Geometric(p), d.Geometric(q), textbook.geometric(*_numbers(p, q))


PAIRS: dict[str, Maker] = {
    "Normal": _located(d.Normal, textbook.normal),
    "Laplace": _located(d.Laplace, textbook.laplace),
    "Cauchy": _located(d.Cauchy, textbook.cauchy, 8.0),
    "Gumbel": _located(d.Gumbel, textbook.gumbel, 0.7),
    "LogNormal": _located(d.LogNormal, textbook.normal, 2.0),
    "Gamma": _same(d.Gamma, textbook.gamma, (-3, 5), (-3, 3)),
    "InverseGamma": _same(d.InverseGamma, textbook.gamma, (-3, 5), (-3, 3)),
    "Beta": _same(d.Beta, textbook.beta, (-3, 4), (-3, 4)),
    "Weibull": _same(d.Weibull, textbook.weibull, (-0.5, 0.5), (-0.7, 1)),
    "Exponential": _same(d.Exponential, textbook.exponential, (-8, 8)),
    "Poisson": _same(d.Poisson, textbook.poisson, (-4, 7)),
    "Geometric": _geometric,
    "Zipf": _zipfs,
    "Gamma‖Normal": _gamma_normal,
    "Gamma‖LogNormal": _gamma_log_normal,
    "Normal‖Laplace": _normal_laplace,
    "StudentT‖Normal": _student,
    "InverseGamma‖Gamma": _inverse,
    "peaks‖Normal": _peaks,
}
"""By name: makers of P, Q and D(P‖Q)."""


def measure(pairs: int, seed: int) -> list[Result]:
    """Return the results of so many random pairs, all kinds in turn."""
    found = []
    names = list(PAIRS)
    for number in range(pairs):
        name = names[number % len(names)]
        with mpmath.workdps(DIGITS):
            p, q, exact = PAIRS[name](np.random.default_rng([seed, number]))
            truth = float(exact)
        start = perf_counter()
        try:
            value, error = kldiv.kl_divergence(p, q, method="quadrature")
            refused = ""
        except KLDivError as problem:
            value, error, refused = np.nan, np.nan, str(problem)
        seconds = perf_counter() - start
        pair = f"{name} {number}: {p} ‖ {q}"
        found.append(Result(pair, float(value), float(error), truth, seconds, refused))
    return found


def main() -> None:
    """Print how many errors bound the truth, and every pair that they do not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = measure(options.pairs, options.seed)
    for result in results:
        if result.refused or not result.bounded:
            print(result)
    number = len(results)
    finite = [r for r in results if not r.refused and np.isfinite(r.truth)]
    stated = np.array([r.error / abs(r.truth) for r in finite if r.truth])
    true = np.array([r.distance / abs(r.truth) for r in finite if r.truth])
    print(f"pairs                      {number}")
    print(f"refused                    {sum(bool(r.refused) for r in results)}")
    print(f"error bounds the truth     {sum(r.bounded for r in results) / number:.2%}")
    print(f"off by > 1e-6 and > stated {sum(r.wrong for r in results)}")
    for name, values in (("true relative error", true), ("stated relative error", stated)):
        median, most, top = np.quantile(values, [0.5, 0.99, 1.0])
        print(f"{name:26} median {median:.1e}, 99 % below {most:.1e}, largest {top:.1e}")
    print(f"longest                    {max(r.seconds for r in results):.2f} s")


if __name__ == "__main__":
    main()
