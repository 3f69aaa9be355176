"""The families that `kldiv.fitting` knows, where each lives and how it is fitted."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from kldiv.distributions.densities import log_density
from kldiv.distributions.scipy_names import BY_NAME
from kldiv.errors import InputError, OptionError
from kldiv.formulas.binet import excess

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Sample: TypeAlias = NDArray[np.float64]
    Support: TypeAlias = Literal["real", "nonnegative", "positive", "unit", "counts"]


_LARGEST_SHAPE = 1e10
"""Beyond it a log-density is a difference of terms so large that less than four digits are left."""


@dataclass(frozen=True)
class Family:
    """A parametric family: its name here and in SciPy, where it lives, and its parameters."""

    name: str
    scipy: str
    support: Support
    parameters: Callable[..., dict[str, float]]
    """From SciPy's numbers (shapes, loc, scale) to ours by name."""
    fixed: dict[str, float] = field(default_factory=dict)
    """Keywords of SciPy's fit for the parameters that it must not fit."""
    fitter: Callable[[Sample], tuple[float, ...]] | None = None
    """Maximum likelihood where SciPy has none, or a worse one; of data near 1 unless of counts."""
    fitted_ends: bool = False
    """Whether the finite ends of the support follow the data."""

    def fit(self, data: Sample) -> tuple[float, ...]:
        """Return the parameters of largest likelihood, as SciPy numbers.

        Data are moved and scaled to the middle 0 and the quartiles 1 apart, or to the median 1,
        because a search for the optimum knows no other origin and no other unit.
        """
        if self.support == "counts":
            assert self.fitter is not None  # noqa: S101 - SciPy cannot fit counts
            return self.fitter(data)
        low, middle, high = np.quantile(data, [0.25, 0.5, 0.75])
        origin, unit = (0.0, middle) if "floc" in self.fixed else (float(middle), high - low)
        unit = 1.0 if "fscale" in self.fixed else float(unit) or float(np.ptp(data))
        if not 0 < unit < np.inf:
            raise InputError(
                f"the points of a fold lie from {data.min():.6g} to {data.max():.6g}: no unit fits"
            )
        numbers = self._fit_near_one(data, origin, unit)
        if not np.isfinite(self.log_likelihoods(data, numbers)).all():
            # An end of the support that is a point of the data has been rounded past it.
            numbers = self._fit_near_one(data, 0.0, 1.0)
        *shapes, _, scale = numbers
        # Of a LogNormal the shape is the standard deviation of logarithms.
        extremes = [1 / shape if self.scipy == "lognorm" else shape for shape in shapes if shape]
        if not (np.isfinite(numbers).all() and scale > 0):
            raise InputError(f"no parameters of largest likelihood were found; got {numbers}")
        if max(extremes, default=0.0) > _LARGEST_SHAPE and self.name != "StudentT":
            raise InputError(
                f"its shape would be {shapes[0]:.1e}, with which its density cannot be computed: "
                "the data vary too little for their size"
            )
        return numbers

    def _fit_near_one(self, data: Sample, origin: float, unit: float) -> tuple[float, ...]:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of trial parameters that fit worse
            near = (data - origin) / unit
            found = self.law.fit(near, **self.fixed) if self.fitter is None else self.fitter(near)
        *shapes, loc, scale = (float(number) for number in found)
        return (*shapes, origin + unit * loc, unit * scale)

    def log_likelihoods(self, data: Sample, numbers: tuple[float, ...]) -> Sample:
        """Return the logarithm of density or probability at every point.

        SciPy's of Laplace, Student's t and Pareto underflow in their tails, and those of counts
        lose the digits that log Γ of large numbers lacks: kldiv's own do not.
        """
        same = BY_NAME.get(self.scipy) if self.name in FAMILIES else None
        with np.errstate(all="ignore"):
            if same is None:
                return np.asarray(self.law.logpdf(data, *numbers), dtype=np.float64)
            made = same.taken([np.float64(number) for number in numbers])
            assert made is not None  # noqa: S101 - the fit leaves loc and scale where they are
            low, high = self.law.support(*numbers)
            outside = (data < low) | (data > high)
            if self.support == "counts":
                outside |= data != np.rint(data)
            found = np.asarray(log_density(made)(data), dtype=np.float64)
            return np.where(outside, -np.inf, found)

    def log_predictive(self, data: Sample, numbers: tuple[float, ...], fitted: int) -> Sample:
        """Return the logarithm of the density of points that the fit had not seen.

        Beyond either end of the support that follows the data, the smallest or the largest of the
        n = ``fitted`` points, a new point lies with probability 1/(n + 1), whatever the
        distribution: it is as likely as any to be the extreme of n + 1. That mass is spread
        exponentially over the distance from the end to the fit's own quantile of that probability.
        For uniform data this is, to first order in 1/n, the Bayesian predictive density of
        J. Aitchison and I. R. Dunsmore, "Statistical Prediction Analysis" (1975), chapter 2.
        """
        inside = self.log_likelihoods(data, numbers)
        share = 1 / (fitted + 1)
        ends = self.moving_ends(numbers)
        with np.errstate(all="ignore"):
            values = inside + np.log1p(-share * len(ends))
            for sign, end in ends:
                quantile = self.law.isf if sign > 0 else self.law.ppf
                width = sign * (end - float(quantile(share, *numbers)))
                beyond = sign * (data - end)
                outside = np.log(share / width) - beyond / width
                values = np.where(beyond > 0, outside, values)
        return np.where(np.isnan(values), -np.inf, values)

    def moving_ends(self, numbers: tuple[float, ...]) -> list[tuple[int, float]]:
        """Return the ends of the support that follow the data: −1 or 1 for the side, and where."""
        if not self.fitted_ends:
            return []
        ends = zip((-1, 1), self.law.support(*numbers), strict=True)
        return [(sign, float(end)) for sign, end in ends if np.isfinite(end)]

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


def _failures_and_success(data: Sample) -> tuple[float, ...]:
    """Search for the number of failures alone: the best probability follows from it."""
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - see above

    mean = float(data.mean())
    values, number = np.unique(data, return_counts=True)

    def numbers(log_n: float) -> tuple[float, ...]:
        n = float(np.exp(log_n))
        return n, n / (n + mean), 0.0

    def loss(log_n: float) -> float:
        """Return −the mean log-likelihood, less terms that are the same for all n."""
        n = np.exp(log_n)
        bends = excess(np, np.append(values, 0.0) + n)
        terms = (values + n) * np.log1p((values - mean) / (n + mean)) - np.log1p(values / n)
        return -float((number * (terms + (bends[:-1] - bends[-1]))).sum()) / len(data)

    # Of 10⁶ failures to each success it is a Poisson distribution to all digits that matter.
    most = 14.0 + float(np.log(max(mean, 1.0)))
    return numbers(minimize_scalar(loss, bounds=(-7.0, most), method="bounded").x)


def _weibull(data: Sample) -> tuple[float, ...]:
    """Fit the logarithms, whose distribution is Gumbel's of smallest values: a robust search."""
    from scipy.stats import gumbel_l  # noqa: PLC0415 - see above

    loc, scale = gumbel_l.fit(np.log(data))
    return 1 / float(scale), 0.0, float(np.exp(loc))


def _inverse_gamma(data: Sample) -> tuple[float, ...]:
    """Fit the reciprocals, whose distribution is Gamma: one equation instead of a search."""
    from scipy.stats import gamma  # noqa: PLC0415 - see above

    shape, loc, scale = gamma.fit(1 / data, floc=0.0)
    return float(shape), float(loc), 1 / float(scale)


def _student(data: Sample, log_df: tuple[float, float] = (-5.0, 14.0)) -> tuple[float, ...]:
    """Search by the slopes of the log-likelihood: a tenth of the steps of SciPy's simplex."""
    from scipy.optimize import minimize  # noqa: PLC0415 - see above
    from scipy.special import digamma, poch  # noqa: PLC0415 - see above

    def loss(point: Sample) -> tuple[float, list[float]]:
        df, scale = np.exp(point[0]), np.exp(point[2])
        z = (data - point[1]) / scale
        square = z * z
        tail, pull = np.log1p(square / df), (df + 1) / (df + square)
        value = np.log(poch(df / 2, 0.5)) - np.log(np.pi * df) / 2 - point[2]
        of_df = digamma((df + 1) / 2) - digamma(df / 2) - 1 / df - tail + pull * square / df
        slopes = df / 2 * of_df.mean(), (pull * z).mean() / scale, (pull * square).mean() - 1
        return -float(value - (df + 1) / 2 * tail.mean()), [-float(slope) for slope in slopes]

    # Quartiles 1 apart have scales of about 0.6; beyond 10⁶ degrees of freedom it is normal to all
    # digits that matter.
    bounds = [log_df, (None, None), (None, None)]
    start = [min(1.0, log_df[1]), 0.0, float(np.log(0.6))]
    found, loc, log_scale = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(found)), float(loc), float(np.exp(log_scale))


def _cauchy(data: Sample) -> tuple[float, ...]:
    """Fit Student's t of one degree of freedom: SciPy's search can stop where it starts."""
    return _student(data, (0.0, 0.0))[1:]


_ZERO = {"floc": 0.0}


def _fitted(scipy: str, support: Support, **options: Any) -> Family:
    same = BY_NAME[scipy]

    def parameters(*numbers: float) -> dict[str, float]:
        found = same.taken(numbers)
        assert found is not None  # noqa: S101 - the fit leaves loc and scale where they are
        return {name: float(value) for name, value in found.parameters()}

    return Family(same.family.__name__, scipy, support, parameters, **options)


FAMILIES = {
    family.name: family
    for family in (
        _fitted("norm", "real"),
        _fitted("laplace", "real"),
        _fitted("cauchy", "real", fitter=_cauchy),
        _fitted("gumbel_r", "real"),
        _fitted("t", "real", fitter=_student),
        _fitted("uniform", "real", fitted_ends=True),
        _fitted("halfnorm", "nonnegative", fixed=_ZERO),
        _fitted("expon", "nonnegative", fixed=_ZERO),
        _fitted("gamma", "positive", fixed=_ZERO),
        _fitted("invgamma", "positive", fixed=_ZERO, fitter=_inverse_gamma),
        _fitted("lognorm", "positive", fixed=_ZERO),
        _fitted("weibull_min", "positive", fixed=_ZERO, fitter=_weibull),
        _fitted("pareto", "positive", fixed=_ZERO, fitted_ends=True),
        _fitted("beta", "unit", fixed=_ZERO | {"fscale": 1.0}),
        _fitted("poisson", "counts", fitter=lambda data: (float(data.mean()), 0.0)),
        # SciPy counts trials, we count failures.
        _fitted("geom", "counts", fitter=lambda data: (1 / (1 + float(data.mean())), -1.0)),
        Family(
            "NegativeBinomial",
            "nbinom",
            "counts",
            lambda n, p, _: {"total_count": n, "probs": 1 - p},
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
    return Family(
        name,
        name,
        "real",
        lambda *numbers: dict(zip(names, numbers, strict=True)),
        fitted_ends=True,
    )
