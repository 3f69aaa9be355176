"""The families that SciPy has too: its name for each, and its numbers for our parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.distributions import families as f
from kldiv.distributions.base import exp
from kldiv.distributions.supports import DISCRETE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv.distributions.base import Distribution


@dataclass(frozen=True)
class Counterpart:
    """A distribution of ``scipy.stats`` and the family here that is the same.

    SciPy's numbers are shapes, loc and, where there is a density, scale.  Those that are free are
    parameters here, in the order of ``names``, or ``give`` and ``make`` convert them.
    """

    name: str
    family: type[Distribution]
    names: tuple[str, ...]
    give: Callable[[Any], tuple[Any, ...]] | None = None
    """From a distribution here to SciPy's free numbers."""
    make: Callable[..., Distribution] | None = None
    """From SciPy's free numbers to a distribution here."""
    loc: float | None = None
    """The only loc that the family here has."""
    scale: float | None = None
    """The only scale that the family here has."""

    def numbers(self, d: Any) -> tuple[Any, ...]:
        """Return SciPy's numbers of a distribution here."""
        free = (
            [_parameter(d, name) for name in self.names] if self.give is None else [*self.give(d)]
        )
        if self.scale is not None:
            free.append(self.scale)
        if self.loc is not None:
            free.insert(len(free) - (not self._discrete), self.loc)
        return tuple(free)

    def taken(self, numbers: Sequence[Any]) -> Distribution | None:
        """Return the distribution here, or None where a loc or a scale makes it another family."""
        free = list(numbers)
        if self.scale is not None and not np.all(free.pop() == self.scale):
            return None
        if self.loc is not None:
            last = self._discrete or self.scale is not None
            if not np.all(free.pop(-1 if last else -2) == self.loc):
                return None
        given = {
            name: number if name in self.family.counts else _real(number)
            for name, number in zip(self.names, free, strict=True)
        }
        return self.family(**given) if self.make is None else self.make(*given.values())

    @property
    def law(self) -> Any:
        """SciPy's distribution."""
        import scipy.stats  # noqa: PLC0415 - optional, and slow to import

        return getattr(scipy.stats, self.name)

    @property
    def _discrete(self) -> bool:
        return self.family.support in DISCRETE


def _parameter(d: Any, name: str) -> Any:
    value = getattr(d, name)
    return np.exp(-np.logaddexp(0.0, -d.logits)) if name == "probs" and value is None else value


def _real(number: Any) -> Any:
    """Return integers as float64: uint8 would overflow, and its logarithm has three digits."""
    number = np.asarray(number) if isinstance(number, list | tuple) else number
    kind = getattr(getattr(number, "dtype", None), "kind", None)  # PyTorch's dtypes have none
    return number.astype(np.float64) if kind in {"i", "u", "b"} else number


def _trials(d: Any) -> tuple[Any, Any]:
    return np.asarray(d.total_count).astype(int), _parameter(d, "probs")


COUNTERPARTS: Final = (
    Counterpart("norm", f.Normal, ("loc", "scale")),
    Counterpart("laplace", f.Laplace, ("loc", "scale")),
    Counterpart("cauchy", f.Cauchy, ("loc", "scale")),
    Counterpart("gumbel_r", f.Gumbel, ("loc", "scale")),
    Counterpart("t", f.StudentT, ("df", "loc", "scale")),
    Counterpart(
        "uniform",
        f.Uniform,
        ("low", "width"),
        lambda d: (d.low, d.high - d.low),
        lambda low, width: f.Uniform(low, low + width),
    ),
    Counterpart("vonmises", f.VonMises, ("concentration", "loc"), scale=1.0),
    Counterpart("halfnorm", f.HalfNormal, ("scale",), loc=0.0),
    Counterpart("halfcauchy", f.HalfCauchy, ("scale",), loc=0.0),
    Counterpart(
        "expon",
        f.Exponential,
        ("scale",),
        lambda d: (1.0 / d.rate,),
        lambda s: f.Exponential(1.0 / s),
        loc=0.0,
    ),
    Counterpart(
        "gamma",
        f.Gamma,
        ("concentration", "scale"),
        lambda d: (d.concentration, 1.0 / d.rate),
        lambda a, s: f.Gamma(a, 1.0 / s),
        loc=0.0,
    ),
    Counterpart("invgamma", f.InverseGamma, ("concentration", "rate"), loc=0.0),
    Counterpart(
        "lognorm",
        f.LogNormal,
        ("deviation", "median"),
        lambda d: (d.scale, exp(d.loc)),
        lambda deviation, median: f.LogNormal(np.log(median), deviation),
        loc=0.0,
    ),
    Counterpart("weibull_min", f.Weibull, ("concentration", "scale"), loc=0.0),
    Counterpart("pareto", f.Pareto, ("alpha", "scale"), loc=0.0),
    Counterpart("chi2", f.Chi2, ("df",), loc=0.0, scale=1.0),
    Counterpart("chi", f.Chi, ("df",), loc=0.0, scale=1.0),
    Counterpart("beta", f.Beta, ("concentration1", "concentration0"), loc=0.0, scale=1.0),
    Counterpart("bernoulli", f.Bernoulli, ("probs",), loc=0),
    Counterpart("binom", f.Binomial, ("total_count", "probs"), _trials, loc=0),
    Counterpart("poisson", f.Poisson, ("rate",), loc=0),
    # SciPy counts trials, kldiv failures.
    Counterpart("geom", f.Geometric, ("probs",), loc=-1),
    Counterpart(
        "nbinom",
        f.NegativeBinomial,
        ("total_count", "failure"),
        lambda d: (d.total_count, 1 - _parameter(d, "probs")),
        # 1 − p would lose a small p.
        lambda n, p: f.NegativeBinomial(n, logits=np.log1p(-p) - np.log(p)),
        loc=0,
    ),
)

BY_NAME: Final = {each.name: each for each in COUNTERPARTS}
BY_FAMILY: Final = {each.family: each for each in COUNTERPARTS}
