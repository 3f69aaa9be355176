"""Distributions of other libraries, told by their classes' names and taken as they are.

No library is imported: an object brings its own.  A subclass is its parent as long as it leaves
the density alone.  Wrappers are taken apart.  Any other is kept as `Opaque`: it has no
closed form, but its density and its sampler can be used.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kldiv import backends
from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution, changed
from kldiv.distributions.foreign_densities import batch_shape
from kldiv.distributions.scipy_names import BY_NAME
from kldiv.distributions.wrappers import (
    EXP,
    LOG,
    SIGMOID,
    Bijection,
    Masked,
    Sample,
    apply,
)
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

    def label(self) -> str:
        """Return the name of the original's class, or of SciPy's distribution."""
        name = getattr(getattr(self.original, "dist", None), "name", None)
        return name or type(self.original).__name__


def unknown(d: Distribution) -> bool:
    """Return whether a distribution is of no known family, or made of one that is not."""
    if isinstance(d, Opaque):
        return True
    return any(unknown(value) for _, value in d.parameters() if isinstance(value, Distribution))


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
        for name, cls in f.FAMILIES.items()
        for kind in ("Probs", "Logits")
        if kind.lower() in cls.one_of
    },
    "MultivariateNormalTriL": "MultivariateNormal",
    "MultivariateNormalTri": "MultivariateNormal",
    "MultivariateNormalFullCovariance": "MultivariateNormal",
    "MixtureSameFamilyDistribution": "MixtureSameFamily",
    "Deterministic": "Delta",
    "VectorDeterministic": "Delta",
}

# Parameters that go by other names; the first that an object has is taken.
_PARAMETERS = {
    ("Beta", "concentration1"): ("concentration1", "alpha"),
    ("Beta", "concentration0"): ("concentration0", "beta"),
    ("Delta", "value"): ("v", "loc"),
    ("Pareto", "alpha"): ("alpha", "concentration"),
    ("InverseGamma", "rate"): ("rate", "scale"),
    ("HalfCauchy", "scale"): ("scale", "_scale"),
    ("HalfNormal", "scale"): ("scale", "_scale"),
    ("Independent", "base_dist"): ("base_dist", "distribution"),
    ("MixtureSameFamily", "mixture_distribution"): ("mixture_distribution", "mixing_distribution"),
    ("MixtureSameFamily", "component_distribution"): (
        "component_distribution",
        "components_distribution",
    ),
}

_DENSITY = ("log_prob", "_log_prob", "prob", "_prob", "__getattribute__", "__getattr__")
"""Methods that a subclass must leave alone to count as its parent."""


def _by_name(value: Any) -> Distribution:
    """Convert a distribution by the first of its classes that is known here."""
    for cls in type(value).__mro__:
        library = cls.__module__.partition(".")[0] in _LIBRARIES
        name = cls.__name__
        if library and (name in _FAMILIES or name in _WRAPPERS):
            if _changed(value, cls, _FAMILIES.get(name, name)):
                break
            make = _WRAPPERS.get(name)
            found = _family(value, _FAMILIES[name]) if make is None else make(value)
            return Opaque(value) if found is None else found
        if any(word in vars(cls) for word in _DENSITY):
            break
    return Opaque(value)


def _changed(value: Any, known: type, family: str) -> bool:
    """Return whether a subclass, or the object itself, has another density than the known class."""
    words = {*_DENSITY, "support"}
    if family in f.FAMILIES:
        for name in _required(f.FAMILIES[family]):
            words.update(_PARAMETERS.get((family, name), (name,)))
    below = type(value).__mro__[: type(value).__mro__.index(known)]
    own = [cls for cls in below if cls.__module__.partition(".")[0] not in _LIBRARIES]
    stored = getattr(value, "__dict__", {})
    return any(word in vars(cls) for cls in own for word in words) or any(
        word in stored for word in _DENSITY
    )


def _required(cls: type[Distribution]) -> list[str]:
    """Return the names of a family's parameters, but for optional ones."""
    names = (field.name for field in fields(cls) if field.default is not None)
    return [*names, *cls.one_of]


def _family(value: Any, family: str) -> Distribution | None:
    """Convert a distribution whose library names parameters as PyTorch does, or nearly."""
    cls = f.FAMILIES[family]
    if family == "MultivariateNormal":
        return _multivariate(value)
    if family == "Delta":
        mass = getattr(value, "log_density", 0.0)
        return f.Delta(_attribute(value, family, "value"), mass, len(tuple(value.event_shape)))
    given: dict[str, Any] = {}
    for name in _required(cls):
        if name not in cls.one_of:
            found: Any = _attribute(value, family, name)
            found = convert(name, found) if name in cls.parts else found
            given[name] = int(found) if name in cls.options else found
    if cls.one_of:
        which = _which(value, cls.one_of)
        given[which] = getattr(value, which)
    made = cls(**given)
    if family == "HalfCauchy" and hasattr(value, "loc"):  # TFP's starts there
        return apply(made, (value.loc, 1.0))
    return made


# --- wrappers -------------------------------------------------------------------------------------


def _expanded(value: Any) -> Distribution | None:
    """Convert a distribution that repeats another over a larger batch."""
    base = convert("base_dist", value.base_dist)
    return None if isinstance(base, Opaque) else _broadcast(base, tuple(value.batch_shape))


def _broadcast(d: Distribution, shape: tuple[int, ...]) -> Distribution:
    """Return a distribution whose batch has that shape."""
    numbers: list[str] = []

    def wide(name: str, value: Any) -> Any:
        if isinstance(value, Distribution):
            return _broadcast(value, (*shape, *value.batch_shape[len(d.batch_shape) :]))
        if not hasattr(value, "dtype"):
            numbers.extend([name] if name not in d.counts else [])
            return value
        event = tuple(value.shape)[len(value.shape) - d.event_axes.get(name, 0) :]
        return backends.find(value).namespace(value).broadcast_to(value, (*shape, *event))

    made: Distribution = changed(d, wide)
    if made.batch_shape != shape and numbers:  # of numbers alone
        return replace(made, **{numbers[0]: np.full(shape, getattr(d, numbers[0]))})
    return made


def _masked(value: Any) -> Distribution | None:
    mask = value._mask if hasattr(value, "_mask") else value.validity_mask  # noqa: SLF001
    base = convert("base_dist", _base(value))
    return base if mask is True else Masked(base, mask * 1)  # numbers: a mask is a parameter here


def _sample(value: Any) -> Distribution | None:
    shape = np.ravel(np.asarray(value.sample_shape))
    return Sample(convert("distribution", _base(value)), tuple(int(n) for n in shape))


def _transformed(value: Any) -> Distribution | None:
    found = convert("base_dist", _base(value))
    several = hasattr(value, "transforms")
    steps = _in_turn(value.transforms) if several else _steps(value.bijector)
    if steps is None or isinstance(found, Opaque):
        return None
    for step in steps:
        found = apply(found, step)
    return found


def _base(value: Any) -> Any:
    return value.base_dist if hasattr(value, "base_dist") else value.distribution


_WRAPPERS: dict[str, Callable[[Any], Distribution | None]] = {
    "ExpandedDistribution": _expanded,
    "MaskedDistribution": _masked,
    "Masked": _masked,
    "_Masked": _masked,
    "Sample": _sample,
    "_Sample": _sample,
    "TransformedDistribution": _transformed,
    "_TransformedDistribution": _transformed,
    "Transformed": _transformed,
}

_Steps = list[Any]
"""Bijections and (loc, scale) of affine maps, the innermost first."""

# Transforms that are one and the same wherever their class is.
_NAMED = {
    "ExpTransform": EXP,
    "Exp": EXP,
    "SigmoidTransform": SIGMOID,
    "Sigmoid": SIGMOID,
    "TanhTransform": Bijection("tanh"),
    "Tanh": Bijection("tanh"),
    "SoftplusTransform": Bijection("softplus"),
    "Softplus": Bijection("softplus"),
    "StickBreakingTransform": Bijection("stick-breaking"),
    "CorrCholeskyTransform": Bijection("correlation"),
    "OrderedTransform": Bijection("ordered"),
}
_CHANGING = ("low", "high", "hinge_softness", "_low", "_high", "_hinge_softness")
"""Parameters of TFP's bijectors, by which they are others."""
_LOSSY = {"AbsTransform", "AbsoluteValue", "SoftmaxTransform"}
"""Transforms that map several values to one: their images may be closer than the bases."""


def _in_turn(transforms: Any) -> _Steps | None:
    steps: _Steps = []
    for transform in transforms:
        found = _steps(transform)
        if found is None:
            return None
        steps += found
    return steps


def _steps(t: Any) -> _Steps | None:  # noqa: PLR0911 - one return for each kind
    """Return the steps of a transform, or None where it may not be injective."""
    library = type(t).__module__.partition(".")[0] in _LIBRARIES
    name = type(t).__name__
    if any(cls.__name__ in _LOSSY for cls in type(t).__mro__):
        return None
    if not library or (name == "Scale" and t.scale is None):
        return _unknown(t)
    if name in {"IdentityTransform", "Identity"}:
        return []
    if name in _NAMED and all(getattr(t, word, None) is None for word in _CHANGING):
        return [_NAMED[name]]
    if name in {"ComposeTransform", "Chain"}:
        return _in_turn(t.parts if name == "ComposeTransform" else reversed(t.bijectors))
    if name == "IndependentTransform":
        return _steps(t.base_transform)
    if name in {"AffineTransform", "Shift", "Scale", "ScalarAffine"}:
        names = (("loc", "shift"), 0.0), (("scale",), 1.0)
        return [tuple(_first(t, words, default) for words, default in names)]
    if name == "PowerTransform":
        return [LOG, (0.0, t.exponent), EXP]
    if name in {"_InverseTransform", "Invert", "Inverse"}:
        return _undone(_steps(t._inv if hasattr(t, "_inv") else t.bijector))  # noqa: SLF001
    return _unknown(t)


def _unknown(t: Any) -> _Steps | None:
    """Return a transform as itself, where its library says that it is injective."""
    library = next(
        (r for c in type(t).__mro__ if (r := c.__module__.partition(".")[0]) in _LIBRARIES), ""
    )
    says: dict[str, Callable[[], bool]] = {
        "torch": lambda: t.bijective,
        "pyro": lambda: t.bijective,
        "numpyro": lambda: any(
            "_inverse" in vars(c) for c in type(t).__mro__ if c.__name__ != "Transform"
        ),
        "tensorflow_probability": lambda: getattr(t, "_is_injective", True),
        "distrax": lambda: True,
    }
    if library not in says or not says[library]():
        return None
    return [Bijection(type(t).__name__, t)]


def _undone(steps: _Steps | None) -> _Steps | None:
    if steps is None:
        return None
    return [
        (-step[0] / step[1], 1.0 / step[1]) if isinstance(step, tuple) else step.inverse()
        for step in reversed(steps)
    ]


def _first(t: Any, names: tuple[str, ...], default: float) -> Any:
    return next((v for n in names if (v := getattr(t, n, None)) is not None), default)


def _on_jax(found: Distribution) -> Distribution:
    """Return it with its NumPy parameters as JAX's: these libraries keep arrays as given."""
    if isinstance(found, Opaque):
        return found
    jax = backends.get("jax")

    def on_jax(_: str, value: Any) -> Any:
        return jax.from_numpy(value, None) if isinstance(value, np.ndarray) else value

    return changed(found, on_jax)  # type: ignore[no-any-return]


def _attribute(value: Any, family: str, name: str) -> Any:
    names = _PARAMETERS.get((family, name), (name,))
    for each in names:
        if hasattr(value, each):
            return getattr(value, each)
    raise LibraryError(
        f"{type(value).__module__}.{type(value).__qualname__} has no {' or '.join(names)}, which a "
        f"{family} needs; give a kldiv.distributions.{family} of its parameters"
    )


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


def _from_scipy(value: Any) -> Distribution:
    name = type(value).__name__
    if hasattr(value, "dist") and hasattr(value, "args"):  # frozen, of one variable
        shapes, loc, scale = value.dist._parse_args(*value.args, **value.kwds)  # noqa: SLF001
        own = not type(value.dist).__module__.startswith("scipy.stats")  # whatever its name
        same = None if own else BY_NAME.get(value.dist.name)
        discrete = not hasattr(value.dist, "_pdf")
        found = same and same.taken([*shapes, loc, *(() if discrete else (scale,))])
        return found or Opaque(value)
    if name in _SCIPY_OBJECTS:
        return _SCIPY_OBJECTS[name](value)
    density = hasattr(value, "logpdf") or hasattr(value, "logpmf")
    if density and not hasattr(value, "freeze"):
        return Opaque(value)
    raise LibraryError(
        f"scipy.stats.{name} is not a frozen distribution; give it its parameters: "
        "scipy.stats.norm(0, 1)"
    )
