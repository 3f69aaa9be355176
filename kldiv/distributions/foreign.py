"""Distributions of other libraries, told by their class's name and taken as they are.

No library is imported: an object brings its own.  One whose family is not known here is kept as
`Opaque`: it has no closed form, but its density and its sampler can be used.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kldiv import backends
from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution
from kldiv.distributions.foreign_densities import batch_shape
from kldiv.errors import LibraryError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, eq=False)
class Opaque(Distribution):
    """A distribution of another library whose family has no closed form here."""

    original: Any
    support: ClassVar[str] = ""
    options: ClassVar[tuple[str, ...]] = ("original",)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch."""
        return batch_shape(self.original)


def convert(name: str, value: Any) -> Distribution:
    """Return a distribution of ours for one of any library."""
    if isinstance(value, Distribution):
        return value
    for cls in type(value).__mro__:
        root, _, rest = cls.__module__.partition(".")
        if root == "scipy" and rest.startswith("stats"):
            return _from_scipy(value)
        if root in _LIBRARIES:
            found = _by_name(value)
            on_jax = root in {"numpyro", "distrax"} or ".substrates.jax" in cls.__module__
            return _on_jax(found) if on_jax else found
    raise LibraryError(
        f"{name} must be a distribution of kldiv.distributions, torch.distributions, scipy.stats "
        "(frozen), NumPyro, TFP or distrax, or an array of probabilities; got "
        f"{type(value).__module__}.{type(value).__qualname__}"
    )


_LIBRARIES = {"torch", "numpyro", "tensorflow_probability", "distrax", "pyro"}

# Other libraries' names for families, where they differ from PyTorch's.
_FAMILIES = {
    **{name: name for name in f.FAMILIES},
    **{
        name + kind: name
        for name in (
            "Bernoulli",
            "Binomial",
            "Categorical",
            "Geometric",
            "Multinomial",
            "NegativeBinomial",
        )
        for kind in ("Probs", "Logits")
    },
    "MultivariateNormalTriL": "MultivariateNormal",
    "MultivariateNormalTri": "MultivariateNormal",
    "MultivariateNormalFullCovariance": "MultivariateNormal",
    "MixtureSameFamilyDistribution": "MixtureSameFamily",
}

# Parameters that go by other names; the first that an object has is taken.
_PARAMETERS = {
    ("Pareto", "alpha"): ("alpha", "concentration"),
    ("InverseGamma", "rate"): ("rate", "scale"),
    ("HalfNormal", "scale"): ("scale", "_scale"),
    ("Independent", "base_dist"): ("base_dist", "distribution"),
    ("MixtureSameFamily", "mixture_distribution"): ("mixture_distribution", "mixing_distribution"),
    ("MixtureSameFamily", "component_distribution"): (
        "component_distribution",
        "components_distribution",
    ),
}


def _by_name(value: Any) -> Distribution:
    """Convert a distribution whose library names parameters as PyTorch does, or nearly."""
    family = _FAMILIES.get(type(value).__name__)
    if family is None:
        return Opaque(value)
    cls = f.FAMILIES[family]
    if family == "MultivariateNormal":
        return _multivariate(value)
    if family == "Independent":
        base = _attribute(value, family, "base_dist")
        return f.Independent(convert("base_dist", base), int(value.reinterpreted_batch_ndims))
    if family == "MixtureSameFamily":
        parts = (
            convert(part, _attribute(value, family, part))
            for part in ("mixture_distribution", "component_distribution")
        )
        return cls(*parts)
    given: dict[str, Any] = {}
    for field in fields(cls):
        if field.name not in cls.one_of:
            given[field.name] = _attribute(value, family, field.name)
    if cls.one_of:
        which = _which(value, cls.one_of)
        given[which] = getattr(value, which)
    return cls(**given)


def _on_jax(found: Distribution) -> Distribution:
    """Return it with its NumPy parameters as JAX's: these libraries keep what they were given."""
    if isinstance(found, Opaque):
        return found
    jax = backends.get("jax")
    return type(found)(
        **{
            field.name: jax.from_numpy(value, None)
            if isinstance(value := getattr(found, field.name), np.ndarray)
            else value
            for field in fields(found)
        }
    )


def _attribute(value: Any, family: str, name: str) -> Any:
    names = _PARAMETERS.get((family, name), (name,))
    return getattr(value, next((n for n in names if hasattr(value, n)), name))


def _which(value: Any, names: tuple[str, ...]) -> str:
    """Return which of several parametrisations an object was made with."""
    stored = vars(value)
    inner = stored.get("_param") is not None and "logits" in names  # torch: computed when asked
    for name in names:
        found = stored.get(name, stored.get(f"_{name}"))
        if found is not None and not callable(found):
            return name
    if inner:
        return "probs"
    return next(name for name in names if getattr(value, name, None) is not None)


def _multivariate(value: Any) -> Distribution:
    stored = vars(value)
    for name in ("covariance_matrix", "precision_matrix", "scale_tril"):
        if stored.get(name) is not None:
            return f.MultivariateNormal(value.loc, **{name: stored[name]})
    if hasattr(value, "scale_tril"):
        return f.MultivariateNormal(value.loc, scale_tril=value.scale_tril)
    return f.MultivariateNormal(value.loc, covariance_matrix=value.covariance())


# --- SciPy ----------------------------------------------------------------------------------------

# From (shape parameters, loc, scale); None where a shifted one is another family.
_SCIPY: dict[str, Callable[..., Distribution | None]] = {
    "norm": f.Normal,
    "laplace": f.Laplace,
    "cauchy": f.Cauchy,
    "gumbel_r": f.Gumbel,
    "t": f.StudentT,
    "uniform": lambda loc, scale: f.Uniform(loc, loc + scale),
    "vonmises": lambda k, loc, scale: f.VonMises(loc, k) if _is(scale, 1) else None,
    "expon": lambda loc, scale: f.Exponential(1.0 / scale) if _is(loc, 0) else None,
    "gamma": lambda a, loc, scale: f.Gamma(a, 1.0 / scale) if _is(loc, 0) else None,
    "invgamma": lambda a, loc, scale: f.InverseGamma(a, scale) if _is(loc, 0) else None,
    "chi2": lambda df, loc, scale: f.Chi2(df) if _is(loc, 0) and _is(scale, 1) else None,
    "halfnorm": lambda loc, scale: f.HalfNormal(scale) if _is(loc, 0) else None,
    "weibull_min": lambda c, loc, scale: f.Weibull(scale, c) if _is(loc, 0) else None,
    "pareto": lambda b, loc, scale: f.Pareto(scale, b) if _is(loc, 0) else None,
    "beta": lambda a, b, loc, scale: f.Beta(a, b) if _is(loc, 0) and _is(scale, 1) else None,
    "bernoulli": lambda p, loc: f.Bernoulli(p) if _is(loc, 0) else None,
    "binom": lambda n, p, loc: f.Binomial(n, p) if _is(loc, 0) else None,
    "poisson": lambda mu, loc: f.Poisson(mu) if _is(loc, 0) else None,
    "geom": lambda p, loc: f.Geometric(p) if _is(loc, -1) else None,
    "nbinom": lambda n, p, loc: f.NegativeBinomial(n, 1.0 - p) if _is(loc, 0) else None,
}


_SCIPY_OBJECTS: dict[str, Callable[[Any], Distribution]] = {
    "multivariate_normal_frozen": lambda d: f.MultivariateNormal(d.mean, covariance_matrix=d.cov),
    "dirichlet_frozen": lambda d: f.Dirichlet(d.alpha),
    "multinomial_frozen": lambda d: f.Multinomial(d.n, d.p),
    # SciPy's newer objects
    "Normal": lambda d: f.Normal(d.mu, d.sigma),
    "StandardNormal": lambda _: f.Normal(0.0, 1.0),
    "Uniform": lambda d: f.Uniform(d.a, d.b),
    "Binomial": lambda d: f.Binomial(d.n, d.p),
}


def _is(parameter: Any, number: float) -> bool:
    """Return whether all of a parameter of SciPy, which is concrete, is that number."""
    return bool((parameter == number).all()) if hasattr(parameter, "all") else parameter == number


def _log_normal(s: Any, loc: Any, scale: Any) -> Distribution | None:
    return f.LogNormal(np.log(scale), s) if _is(loc, 0) else None


_SCIPY["lognorm"] = _log_normal


def _from_scipy(value: Any) -> Distribution:
    name = type(value).__name__
    if hasattr(value, "dist") and hasattr(value, "args"):  # frozen, of one variable
        shapes, loc, scale = value.dist._parse_args(*value.args, **value.kwds)  # noqa: SLF001
        make = _SCIPY.get(value.dist.name)
        discrete = not hasattr(value.dist, "_pdf")
        found = None if make is None else make(*shapes, loc, *(() if discrete else (scale,)))
        return Opaque(value) if found is None else found
    if name in _SCIPY_OBJECTS:
        return _SCIPY_OBJECTS[name](value)
    density = hasattr(value, "logpdf") or hasattr(value, "logpmf")
    if density and not hasattr(value, "freeze"):
        return Opaque(value)
    raise LibraryError(
        f"scipy.stats.{name} is not a frozen distribution; give it its parameters: "
        "scipy.stats.norm(0, 1)"
    )
