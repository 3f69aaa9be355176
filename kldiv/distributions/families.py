"""The families: parameters named and ordered as in ``torch.distributions``.

Each is documented by its density or mass function.  Nothing is normalised or checked.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar, dataclass_transform

from kldiv.distributions.base import Distribution, exp

if TYPE_CHECKING:
    from collections.abc import Callable

    Family = TypeVar("Family", bound=Distribution)

FAMILIES: Final[dict[str, type[Distribution]]] = {}
"""Every family by its name."""

_PARAMETERS: Final = {
    "loc": "Location: the mean of normals, the centre of other symmetric families.",
    "scale": "Scale, ≥ 0: the standard deviation of normals; Pareto's lower end.",
    "log_scale": "log(scale), where it is known better.",
    "covariance_matrix": "Covariance, positive definite.",
    "precision_matrix": "Inverse of the covariance.",
    "scale_tril": "Lower triangular L with covariance L Lᵀ.",
    "scale_diag": "Standard deviations of the components.",
    "cov_factor": "Factor W of the covariance's part W Wᵀ of low rank.",
    "cov_diag": "Diagonal that is added to it.",
    "df": "Degrees of freedom, > 0.",
    "concentration": "Concentration or shape, > 0; VonMises' may be 0.",
    "concentration1": "Exponent a of x, > 0.",
    "concentration0": "Exponent b of the other end, > 0.",
    "rate": "Rate, > 0: the inverse of the scale; Poisson's mean.",
    "alpha": "Exponent of the tail, > 0.",
    "low": "Lower end.",
    "high": "Upper end.",
    "probs": "Probability, or a probability of each class.",
    "logits": "Log odds log(p/(1 − p)), or a logit of each class.",
    "total_count": "Number of trials, draws or failures.",
    "value": "Place of the mass.",
    "log_density": "Logarithm of the mass.",
    "event_dim": "Number of value's last axes that are one event.",
    "base_dist": "Batch of distributions.",
    "reinterpreted_batch_ndims": "Number of its last axes that become one event.",
    "mixture_distribution": "Weights of the components, a Categorical.",
    "component_distribution": "Components, along the last axis of its batch.",
}


def _documented(family: type[Distribution]) -> str:
    """Return a family's docstring with a section of its parameters."""
    lines = [inspect.cleandoc(family.__doc__ or ""), "", "Parameters", "----------"]
    for each in fields(family):
        kind = "Distribution" if each.name in family.parts else "array or float"
        kind = "int" if each.name in family.options else kind
        default = "" if each.default is MISSING else f", default {each.default}"
        default = ", optional" if each.default is None else default
        lines += [f"{each.name} : {kind}{default}", f"    {_PARAMETERS[each.name]}"]
    return "\n".join(lines)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(field,))
def family(support: str = "", **facts: Any) -> Callable[[type[Family]], type[Family]]:
    """Make a family of a class: ``support`` and other facts are the variables of `Distribution`."""

    def make(cls: type[Family]) -> type[Family]:
        for name, fact in {"support": support, **facts}.items():
            setattr(cls, name, fact)
        made = dataclass(frozen=True, eq=False)(cls)
        made.__doc__ = _documented(made)
        FAMILIES[made.__name__] = made
        return made

    return make


_CHANCE: Final = ("probs", "logits")
_CLASSES: Final = {"probs": 1, "logits": 1}
_COVARIANCE: Final = ("covariance_matrix", "precision_matrix", "scale_tril")


@family("real")
class Normal(Distribution):
    """exp(−(x − loc)²/(2 scale²)) / (scale √(2π)); scale 0 is a point mass.

    ``log_scale`` is log(scale), where it is known better: `from_log_variance` gives it.
    """

    loc: Any
    scale: Any
    log_scale: Any = field(default=None, kw_only=True, repr=False)

    @classmethod
    def from_log_variance(cls, loc: Any, log_variance: Any) -> Normal:
        """Return the normal of a mean and the logarithm of its variance, as encoders give it.

        Divergences between normals then use that logarithm itself: value and gradients are right
        where ``exp(log_variance / 2)`` is no normal number of its dtype, in float32 from −175 down.

        Parameters
        ----------
        loc : array or float
            The mean.
        log_variance : array or float
            log σ², of a shape that broadcasts with ``loc``.

        Returns
        -------
        Normal
            Its ``scale`` is exp(log_variance / 2).

        Examples
        --------
        >>> import kldiv
        >>> from kldiv.distributions import Normal
        >>> float(kldiv.kl_divergence(Normal.from_log_variance(0.0, -1600.0), Normal(0.0, 1.0)))
        799.5
        """
        log_scale = 0.5 * log_variance
        return cls(loc, exp(log_scale), log_scale=log_scale)


@family("positive")
class LogNormal(Distribution):
    """The exponential of a Normal(loc, scale)."""

    loc: Any
    scale: Any


@family("positive")
class HalfNormal(Distribution):
    """The absolute value of a Normal(0, scale)."""

    scale: Any


@family("unit")
class LogitNormal(Distribution):
    """1/(1 + e⁻ˣ) of a Normal(loc, scale) x."""

    loc: Any
    scale: Any


@family("vectors", one_of=_COVARIANCE, event_axes={"loc": 1, **dict.fromkeys(_COVARIANCE, 2)})
class MultivariateNormal(Distribution):
    """A normal of vectors; one of covariance_matrix, precision_matrix, scale_tril is given."""

    loc: Any
    covariance_matrix: Any = None
    precision_matrix: Any = None
    scale_tril: Any = None


@family("vectors", event_axes={"loc": 1, "scale_diag": 1})
class MultivariateNormalDiag(Distribution):
    """A normal of vectors with independent components (as in TFP)."""

    loc: Any
    scale_diag: Any


@family("vectors", event_axes={"loc": 1, "cov_factor": 2, "cov_diag": 1})
class LowRankMultivariateNormal(Distribution):
    """A normal of vectors with covariance cov_factor cov_factorᵀ + diag(cov_diag)."""

    loc: Any
    cov_factor: Any
    cov_diag: Any


@family("real")
class Laplace(Distribution):
    """exp(−|x − loc|/scale) / (2 scale)."""

    loc: Any
    scale: Any


@family("real")
class Cauchy(Distribution):
    """scale / (π (scale² + (x − loc)²))."""

    loc: Any
    scale: Any


@family("positive")
class HalfCauchy(Distribution):
    """The absolute value of a Cauchy(0, scale)."""

    scale: Any


@family("real")
class StudentT(Distribution):
    """loc + scale · t, t of Student's distribution with df degrees of freedom."""

    df: Any
    loc: Any = 0.0
    scale: Any = 1.0


@family("real")
class Gumbel(Distribution):
    """exp(−z − e⁻ᶻ) / scale, z = (x − loc)/scale."""

    loc: Any
    scale: Any


@family("circle")
class VonMises(Distribution):
    """exp(concentration · cos(x − loc)) / (2π I₀(concentration)), on the circle."""

    loc: Any
    concentration: Any


@family("positive")
class Exponential(Distribution):
    """rate · exp(−rate x)."""

    rate: Any


@family("positive")
class Gamma(Distribution):
    """rateᵃ x^(a − 1) exp(−rate x) / Γ(a), a = concentration."""

    concentration: Any
    rate: Any


@family("positive")
class InverseGamma(Distribution):
    """The inverse of a Gamma(concentration, rate)."""

    concentration: Any
    rate: Any


@family("positive")
class Chi2(Distribution):
    """Gamma(df/2, 1/2)."""

    df: Any


@family("positive")
class Chi(Distribution):
    """The square root of a Chi2(df)."""

    df: Any


@family("positive")
class Weibull(Distribution):
    """(k/scale) (x/scale)^(k − 1) exp(−(x/scale)ᵏ), k = concentration."""

    scale: Any
    concentration: Any


@family("tail")
class Pareto(Distribution):
    """alpha · scaleᵃ / x^(a + 1) from scale on, a = alpha."""

    scale: Any
    alpha: Any


@family("interval")
class Uniform(Distribution):
    """1 / (high − low) between low and high."""

    low: Any
    high: Any


@family("unit")
class Beta(Distribution):
    """x^(a − 1) (1 − x)^(b − 1) / B(a, b), a = concentration1, b = concentration0."""

    concentration1: Any
    concentration0: Any


@family("unit")
class Kumaraswamy(Distribution):
    """a b x^(a − 1) (1 − xᵃ)^(b − 1), a = concentration1, b = concentration0."""

    concentration1: Any
    concentration0: Any


@family("unit", one_of=_CHANCE)
class ContinuousBernoulli(Distribution):
    """probsˣ (1 − probs)^(1 − x), normalised on [0, 1]; probs, or logits of it."""

    probs: Any = None
    logits: Any = None


@family("simplex", event_axes={"concentration": 1})
class Dirichlet(Distribution):
    """Π xᵢ^(aᵢ − 1) / B(a) on the simplex, a = concentration."""

    concentration: Any


@family("boolean", one_of=_CHANCE)
class Bernoulli(Distribution):
    """1 with probability probs, else 0; probs, or logits of it."""

    probs: Any = None
    logits: Any = None


@family("count", one_of=_CHANCE, counts=("total_count",))
class Binomial(Distribution):
    """Successes among total_count trials of probability probs, or of logits."""

    total_count: Any = 1
    probs: Any = None
    logits: Any = None


@family("naturals", one_of=_CHANCE)
class Geometric(Distribution):
    """Failures before the first success of probability probs, or of logits."""

    probs: Any = None
    logits: Any = None


@family("naturals", one_of=_CHANCE, counts=("total_count",))
class NegativeBinomial(Distribution):
    """Successes, of probability probs (or of logits), before total_count failures."""

    total_count: Any
    probs: Any = None
    logits: Any = None


@family("naturals")
class Poisson(Distribution):
    """rateᵏ e^(−rate) / k!; rate 0 is a point mass at 0."""

    rate: Any


@family("categories", one_of=_CHANCE, event_axes=_CLASSES)
class Categorical(Distribution):
    """Class i with probability probs[…, i], or softmax(logits)[…, i]; probs are not normalised."""

    probs: Any = None
    logits: Any = None


@family("one-hot")
class OneHotCategorical(Categorical):
    """A Categorical whose classes are written as unit vectors."""


@family("counts", one_of=_CHANCE, counts=("total_count",), event_axes=_CLASSES)
class Multinomial(Distribution):
    """How often each class came in total_count draws of a Categorical."""

    total_count: Any = 1
    probs: Any = None
    logits: Any = None


@family(options=("event_dim",))
class Delta(Distribution):
    """A point mass at value, whose last event_dim axes are one event.

    log_density is of NumPyro's and Pyro's point masses: the logarithm of the mass, 0 but
    where it is meant to stand for something else.
    """

    value: Any
    log_density: Any = 0.0
    event_dim: int = 0

    @property
    def event_axes(self) -> dict[str, int]:  # type: ignore[override]
        """How many of value's last axes belong to one event."""
        return {"value": self.event_dim} if self.event_dim else {}


@family(options=("reinterpreted_batch_ndims",), parts=("base_dist",))
class Independent(Distribution):
    """A batch of distributions, its last reinterpreted_batch_ndims axes taken as one event."""

    base_dist: Any
    reinterpreted_batch_ndims: int

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch that is left."""
        shape: tuple[int, ...] = self.base_dist.batch_shape
        return shape[: len(shape) - self.reinterpreted_batch_ndims]


@family(parts=("mixture_distribution", "component_distribution"))
class MixtureSameFamily(Distribution):
    """A mixture: a Categorical over the last batch axis of the component distribution."""

    mixture_distribution: Any
    component_distribution: Any

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch, without the components' axis."""
        shape: tuple[int, ...] = self.component_distribution.batch_shape
        return shape[:-1]
