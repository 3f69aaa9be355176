"""The families that `kldiv.fitting` knows: how SciPy fits each, and what we call its parameters."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from kldiv.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Sample: TypeAlias = NDArray[np.float64]
    Support: TypeAlias = Literal["real", "nonnegative", "positive", "unit", "counts"]


@dataclass(frozen=True)
class Family:
    """A parametric family: its name here and in SciPy, where it lives, and its parameters."""

    name: str
    scipy: str
    support: Support
    parameters: Callable[..., dict[str, float]]
    """From SciPy's numbers (shapes, loc, scale) to ours by name."""
    fixed: dict[str, float] = field(default_factory=dict)
    """What SciPy's fit must leave alone."""
    fitter: Callable[[Sample], tuple[float, ...]] | None = None
    """Maximum likelihood where SciPy has no ``fit``: for counts."""

    def fit(self, data: Sample) -> tuple[float, ...]:
        """Return the parameters of largest likelihood, as SciPy numbers."""
        if self.fitter is not None:
            return self.fitter(data)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of trial parameters that fit worse
            return tuple(float(number) for number in self.law.fit(data, **self.fixed))

    def log_likelihoods(self, data: Sample, numbers: tuple[float, ...]) -> Sample:
        """Return the logarithm of density or probability at every point."""
        law = self.law
        with np.errstate(all="ignore"):
            log = law.logpmf if self.support == "counts" else law.logpdf
            return np.asarray(log(data, *numbers), dtype=np.float64)

    @property
    def law(self) -> Any:
        """SciPy's distribution."""
        import scipy.stats  # noqa: PLC0415 - optional, and slow to import

        return getattr(scipy.stats, self.scipy)

    def takes(self, data: Sample) -> bool:
        """Return whether every point lies where the family lives."""
        low, high = float(data.min()), float(data.max())
        inside = {
            "real": True,
            "nonnegative": low >= 0,
            "positive": low > 0,
            "unit": low > 0 and high < 1,
            "counts": low >= 0 and bool((data == np.rint(data)).all()),
        }
        return inside[self.support]


def _loc_scale(loc: float, scale: float) -> dict[str, float]:
    return {"loc": loc, "scale": scale}


def _mean(data: Sample) -> tuple[float, ...]:
    return (float(data.mean()),)


def _success(data: Sample) -> tuple[float, ...]:
    return 1 / (1 + float(data.mean())), -1.0  # SciPy counts trials, we count failures


def _failures_and_success(data: Sample) -> tuple[float, ...]:
    """Given the number of failures, the best probability is known: one unknown is left."""
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - see above
    from scipy.stats import nbinom  # noqa: PLC0415 - see above

    mean = float(data.mean())

    def loss(log_n: float) -> float:
        n = float(np.exp(log_n))
        return -float(nbinom.logpmf(data, n, n / (n + mean)).sum())

    # Beyond 10⁶ failures it is a Poisson distribution to all digits that matter.
    n = float(np.exp(minimize_scalar(loss, bounds=(-7.0, 14.0), method="bounded").x))
    return n, n / (n + mean)


_ZERO = {"floc": 0.0}

FAMILIES = {
    family.name: family
    for family in (
        Family("Normal", "norm", "real", _loc_scale),
        Family("Laplace", "laplace", "real", _loc_scale),
        Family("Cauchy", "cauchy", "real", _loc_scale),
        Family("Gumbel", "gumbel_r", "real", _loc_scale),
        Family("StudentT", "t", "real", lambda df, *rest: {"df": df, **_loc_scale(*rest)}),
        Family("Uniform", "uniform", "real", lambda low, w: {"low": low, "high": low + w}),
        Family("HalfNormal", "halfnorm", "nonnegative", lambda _, s: {"scale": s}, _ZERO),
        Family("Exponential", "expon", "nonnegative", lambda _, s: {"rate": 1 / s}, _ZERO),
        Family(
            "Gamma",
            "gamma",
            "positive",
            lambda a, _, s: {"concentration": a, "rate": 1 / s},
            _ZERO,
        ),
        Family(
            "InverseGamma",
            "invgamma",
            "positive",
            lambda a, _, s: {"concentration": a, "rate": s},
            _ZERO,
        ),
        Family(
            "LogNormal",
            "lognorm",
            "positive",
            lambda sigma, _, s: {"loc": float(np.log(s)), "scale": sigma},
            _ZERO,
        ),
        Family(
            "Weibull",
            "weibull_min",
            "positive",
            lambda c, _, s: {"scale": s, "concentration": c},
            _ZERO,
        ),
        Family("Pareto", "pareto", "positive", lambda b, _, s: {"scale": s, "alpha": b}, _ZERO),
        Family(
            "Beta",
            "beta",
            "unit",
            lambda a, b, *_: {"concentration1": a, "concentration0": b},
            {"floc": 0.0, "fscale": 1.0},
        ),
        Family("Poisson", "poisson", "counts", lambda rate: {"rate": rate}, fitter=_mean),
        Family("Geometric", "geom", "counts", lambda p, _: {"probs": p}, fitter=_success),
        Family(
            "NegativeBinomial",
            "nbinom",
            "counts",
            lambda n, p: {"total_count": n, "probs": 1 - p},
            fitter=_failures_and_success,
        ),
    )
}


def family_of(name: str) -> Family:
    """Return the family of a name of ours, or of a continuous distribution of ``scipy.stats``."""
    if name in FAMILIES:
        return FAMILIES[name]
    import scipy.stats  # noqa: PLC0415 - see above

    law = getattr(scipy.stats, str(name), None)
    if not isinstance(law, scipy.stats.rv_continuous):
        raise OptionError(
            f"no family {name!r}; there are {', '.join(FAMILIES)}, and every continuous "
            "distribution of scipy.stats by its name there"
        )
    shapes = [each.strip() for each in (law.shapes or "").split(",") if each]
    names = (*shapes, "loc", "scale")
    return Family(name, name, "real", lambda *numbers: dict(zip(names, numbers, strict=True)))
