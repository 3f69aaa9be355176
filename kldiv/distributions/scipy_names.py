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

    SciPy's numbers are shapes, loc and, where there is a density, scale.  ``give`` and ``make``
    have those that are free.
    """

    name: str
    family: type[Distribution]
    give: Callable[[Any], tuple[Any, ...]]
    """From a distribution here to SciPy's free numbers."""
    make: Callable[..., Distribution]
    """From SciPy's free numbers to a distribution here."""
    loc: float | None = None
    """The only loc that the family here has."""
    scale: float | None = None
    """The only scale that the family here has."""

    def numbers(self, d: Any) -> tuple[Any, ...]:
        """Return SciPy's numbers of a distribution here."""
        free = list(self.give(d))
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
        return self.make(*free)

    @property
    def law(self) -> Any:
        """SciPy's distribution."""
        import scipy.stats  # noqa: PLC0415 - optional, and slow to import

        return getattr(scipy.stats, self.name)

    @property
    def _discrete(self) -> bool:
        return self.family.support in DISCRETE


def _probs(d: Any) -> Any:
    return d.probs if d.probs is not None else np.exp(-np.logaddexp(0.0, -d.logits))


def _own(*names: str) -> Callable[[Any], tuple[Any, ...]]:
    """Return the parameters of these names."""
    return lambda d: tuple([getattr(d, name) for name in names])


def _uniform(low: Any, width: Any) -> Distribution:
    return f.Uniform(low, low + width)


_LOC_SCALE = _own("loc", "scale")

COUNTERPARTS: Final = (
    Counterpart("norm", f.Normal, _LOC_SCALE, f.Normal),
    Counterpart("laplace", f.Laplace, _LOC_SCALE, f.Laplace),
    Counterpart("cauchy", f.Cauchy, _LOC_SCALE, f.Cauchy),
    Counterpart("gumbel_r", f.Gumbel, _LOC_SCALE, f.Gumbel),
    Counterpart("t", f.StudentT, _own("df", "loc", "scale"), f.StudentT),
    Counterpart("uniform", f.Uniform, lambda d: (d.low, d.high - d.low), _uniform),
    Counterpart(
        "vonmises",
        f.VonMises,
        _own("concentration", "loc"),
        lambda k, loc: f.VonMises(loc, k),
        scale=1.0,
    ),
    *(
        Counterpart(name, family, give, make, loc=0.0)
        for name, family, give, make in (
            ("halfnorm", f.HalfNormal, _own("scale"), f.HalfNormal),
            ("halfcauchy", f.HalfCauchy, _own("scale"), f.HalfCauchy),
            ("expon", f.Exponential, lambda d: (1.0 / d.rate,), lambda s: f.Exponential(1.0 / s)),
            (
                "gamma",
                f.Gamma,
                lambda d: (d.concentration, 1.0 / d.rate),
                lambda a, s: f.Gamma(a, 1.0 / s),
            ),
            ("invgamma", f.InverseGamma, _own("concentration", "rate"), f.InverseGamma),
            (
                "lognorm",
                f.LogNormal,
                lambda d: (d.scale, exp(d.loc)),
                lambda sigma, s: f.LogNormal(np.log(s), sigma),
            ),
            (
                "weibull_min",
                f.Weibull,
                _own("concentration", "scale"),
                lambda c, s: f.Weibull(s, c),
            ),
            ("pareto", f.Pareto, _own("alpha", "scale"), lambda b, s: f.Pareto(s, b)),
        )
    ),
    Counterpart("chi2", f.Chi2, _own("df"), f.Chi2, loc=0.0, scale=1.0),
    Counterpart("chi", f.Chi, _own("df"), f.Chi, loc=0.0, scale=1.0),
    Counterpart(
        "beta", f.Beta, _own("concentration1", "concentration0"), f.Beta, loc=0.0, scale=1.0
    ),
    Counterpart("bernoulli", f.Bernoulli, lambda d: (_probs(d),), f.Bernoulli, loc=0),
    Counterpart(
        "binom",
        f.Binomial,
        lambda d: (np.asarray(d.total_count).astype(int), _probs(d)),
        f.Binomial,
        loc=0,
    ),
    Counterpart("poisson", f.Poisson, _own("rate"), f.Poisson, loc=0),
    # SciPy counts trials, kldiv failures.
    Counterpart("geom", f.Geometric, lambda d: (_probs(d),), f.Geometric, loc=-1),
    Counterpart(
        "nbinom",
        f.NegativeBinomial,
        lambda d: (d.total_count, 1 - _probs(d)),
        lambda n, p: f.NegativeBinomial(n, 1.0 - p),
        loc=0,
    ),
)

BY_NAME: Final = {each.name: each for each in COUNTERPARTS}
BY_FAMILY: Final = {each.family: each for each in COUNTERPARTS}
