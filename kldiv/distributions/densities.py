"""Log-densities, landmarks and samplers of one distribution, not a batch, in NumPy's float64.

A density near an edge of its support is asked for by the logarithm of the distance from that edge:
Gamma(0.01, 1) has a thousandth of its mass below the smallest float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv import backends
from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution, changed
from kldiv.distributions.foreign import Opaque
from kldiv.distributions.foreign_densities import of_object, of_scipy
from kldiv.distributions.host import Density
from kldiv.distributions.masses import information
from kldiv.distributions.scipy_names import BY_FAMILY
from kldiv.errors import BackendError, OptionError
from kldiv.formulas.circle import decayed_bessel

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, eq=False)
class Entry(Distribution):
    """One batch entry of an object of another library."""

    original: Any
    index: Any
    support = ""
    options = ("original", "index")


def entry(d: Distribution, index: tuple[Any, ...], shape: tuple[int, ...]) -> Distribution:
    """Return one entry of a distribution that is broadcast to a batch of that shape."""
    if isinstance(d, Opaque):
        own = d.batch_shape
        last = index[len(index) - len(own) :]
        return Entry(d.original, tuple(i if n != 1 else 0 for i, n in zip(last, own, strict=True)))

    def at(name: str, value: Any) -> Any:
        if isinstance(value, Distribution):
            extra = value.batch_shape[len(d.batch_shape) :]
            return _stack(value, index, (*shape, *extra)) if extra else entry(value, index, shape)
        host = on_host(value)
        event = host.shape[host.ndim - d.event_axes.get(name, 0) :]
        return np.broadcast_to(host, (*shape, *event))[index]

    return changed(d, at)  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Stack(Distribution):
    """The entries of the parts of an Independent or a mixture."""

    entries: Any
    shape: Any
    options = ("entries", "shape")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch."""
        return self.shape  # type: ignore[no-any-return]


def _stack(d: Distribution, index: tuple[Any, ...], shape: tuple[int, ...]) -> Stack:
    extra = shape[len(index) :]
    return Stack([entry(d, (*index, *more), shape) for more in np.ndindex(extra)], extra)


def on_host(value: Any) -> Any:
    """Return a parameter as NumPy's float64."""
    if not hasattr(value, "dtype"):
        return np.asarray(value, dtype=np.float64)
    return np.asarray(backends.find(value).on_host(value), dtype=np.float64)


def density(d: Distribution) -> Density:
    """Return the density of one entry."""
    with np.errstate(all="ignore"):  # constants of invalid parameters are NaN
        return _density(d)


def _density(d: Distribution) -> Density:
    if isinstance(d, Entry):
        return of_object(d.original, d.index)
    if isinstance(d, f.MixtureSameFamily):
        return _mixture(d)
    if isinstance(d, f.Independent):
        return _independent(d)
    frozen = _frozen(d)
    formula = _formula(d)
    if formula is None and frozen is None:
        raise OptionError(
            f"{type(d).__name__} has no density on the host, which method= needs; pass a "
            "distribution of SciPy or PyTorch, or register a closed form by kldiv.register_kl"
        )
    if formula is None:
        return of_scipy(frozen)
    return _of_family(d, formula, frozen)


def log_density(d: Distribution) -> Callable[..., Any]:
    """Return the logarithm of a family's density, a function of points inside its support."""
    formula = _formula(d)
    assert formula is not None  # noqa: S101 - asked of the families of `_FORMULAS` only
    return formula(d)  # type: ignore[no-any-return]


def _formula(d: Any) -> Callable[[Any], Any] | None:
    return next((_FORMULAS[cls] for cls in type(d).__mro__ if cls in _FORMULAS), None)


def _of_family(d: Any, formula: Callable[[Any], Any], frozen: Any) -> Density:
    log_prob = formula(d)
    if isinstance(d, f.ContinuousBernoulli | f.Kumaraswamy | f.LogitNormal):
        sample, quantile = _of_unit(d)
        made = Density(log_prob, sample, (0.0, 1.0), quantile=quantile)
    else:
        made = of_scipy(frozen)
        made.log_prob = log_prob
    made.underflows, made.by_logarithms = False, True
    if d.support == "real":
        made.cuts = tuple(float(d.loc + k * d.scale) for k in (-1, 0, 1))
    if made.discrete:  # SciPy's quantiles of large numbers may be missing
        made.cuts = tuple(frozen.mean() + frozen.std() * np.arange(-6.0, 7.0))
    if isinstance(d, f.VonMises):
        made.bounds = (float(d.loc) - math.pi, float(d.loc) + math.pi)
    return made


# --- the families ---------------------------------------------------------------------------------
# Each takes the parameters, and x, log x and log(1 − x), the last two being None where they are no
# more than the logarithms of floats; one that has constants takes the parameters, and returns a
# function of the others.


def _log(x: Any, log_x: Any) -> Any:
    return np.log(x) if log_x is None else log_x


def _normal(d: Any, x: Any, *_: Any) -> Any:
    z = (x - getattr(d, "loc", 0.0)) / d.scale
    return -z * z / 2 - 0.5 * math.log(2 * math.pi) - np.log(d.scale)


def _log_normal(d: Any, x: Any, log_x: Any = None, *_: Any) -> Any:
    log_x = _log(x, log_x)
    return _normal(d, log_x) - log_x


def _half_normal(d: Any, x: Any, *_: Any) -> Any:
    return _normal(d, x) + math.log(2)


def _laplace(d: Any, x: Any, *_: Any) -> Any:
    return -np.abs(x - d.loc) / d.scale - np.log(2 * d.scale)


def _student(d: Any, df: Any = None) -> Any:
    from scipy.special import betaln  # noqa: PLC0415 - optional

    df = d.df if df is None else df
    constant = -betaln(df / 2, 0.5) - 0.5 * np.log(df) - np.log(d.scale)

    def log_prob(x: Any, *_: Any) -> Any:
        z = np.abs(x - d.loc) / d.scale / np.sqrt(df)
        near = np.log1p(np.minimum(z, 1.0) ** 2) / 2
        return constant - (df + 1) * np.where(z < 1, near, np.log(np.hypot(1.0, z)))

    return log_prob


def _gumbel(d: Any, x: Any, *_: Any) -> Any:
    z = (x - d.loc) / d.scale
    return -z - np.exp(-z) - np.log(d.scale)


def _von_mises(d: Any) -> Any:
    constant = -np.log(2 * math.pi * decayed_bessel(np, np.asarray(d.concentration)))

    def log_prob(x: Any, *_: Any) -> Any:
        return constant - 2 * d.concentration * np.sin((x - d.loc) / 2) ** 2

    return log_prob


def _exponential(d: Any, x: Any, *_: Any) -> Any:
    return np.log(d.rate) - d.rate * x


def _remainder(a: Any) -> Any:
    """Return log Γ(a) − a log a + a, by Stirling's series (DLMF 5.11.1) where that cancels."""
    from scipy.special import gammaln  # noqa: PLC0415 - optional

    a = np.asarray(a, dtype=float)
    large = np.maximum(a, 30.0)
    series = (
        0.5 * np.log(2 * math.pi / large)
        + 1 / (12 * large)
        - 1 / (360 * large**3)
        + 1 / (1260 * large**5)
        - 1 / (1680 * large**7)
    )
    return np.where(a > 30, series, gammaln(a) - a * np.log(a) + a)


def _gamma(a: Any, rate: Any, sign: int = 1) -> Any:
    """Return the density of a Gamma, or of its inverse (sign −1)."""
    shift = np.log(rate) - np.log(a)
    constant = -_remainder(a)

    def log_prob(x: Any, log_x: Any = None, *_: Any) -> Any:
        log_x = _log(x, log_x)
        w = shift + sign * log_x
        return _fall(a, w) + constant - log_x

    return log_prob


def _weibull(d: Any, x: Any, log_x: Any = None, *_: Any) -> Any:
    log_x = _log(x, log_x)
    v = d.concentration * (log_x - np.log(d.scale))
    return np.log(d.concentration) + v - np.exp(v) - log_x


def _pareto(d: Any, x: Any, log_x: Any = None, *_: Any) -> Any:
    log_x = _log(x, log_x)
    inside = np.log(d.alpha) + d.alpha * (np.log(d.scale) - log_x) - log_x
    return np.where(x >= d.scale, inside, -np.inf)


def _uniform(d: Any, x: Any, *_: Any) -> Any:
    inside = (x >= d.low) & (x <= d.high)
    return np.where(inside, -np.log(d.high - d.low), -np.inf)


def _beta(d: Any) -> Any:
    a, b = d.concentration1, d.concentration0
    constant = _remainder(a + b) - _remainder(a) - _remainder(b)

    def log_prob(x: Any, log_x: Any = None, log_rest: Any = None) -> Any:
        log_x = _log(x, log_x)
        log_rest = np.log1p(-x) if log_rest is None else log_rest
        found = constant + _fall(a, log_x - np.log(a / (a + b)))
        return found + _fall(b, log_rest - np.log(b / (a + b))) - log_x - log_rest

    return log_prob


def _kumaraswamy(d: Any, x: Any, log_x: Any = None, log_rest: Any = None) -> Any:
    a, b = d.concentration1, d.concentration0
    log_x = _log(x, log_x)
    tail = np.log(-np.expm1(a * log_x))
    if log_rest is not None:  # log x may be 0 where 1 − x is not
        tail = np.where(log_rest < -30, np.log(a) + log_rest, tail)
    return np.log(a) + np.log(b) + (a - 1) * log_x + (b - 1) * tail


def _logit_normal(d: Any, x: Any, log_x: Any = None, log_rest: Any = None) -> Any:
    log_x = _log(x, log_x)
    log_rest = np.log1p(-x) if log_rest is None else log_rest
    return _normal(d, log_x - log_rest) - log_x - log_rest


def _continuous_bernoulli(d: Any) -> Any:
    logit = _logit(d)
    size = np.abs(logit)
    if size < 1e-3:
        constant = -logit / 2 - logit**2 / 24
    else:
        constant = -np.maximum(logit, 0.0) - np.log(-np.expm1(-size) / size)

    def log_prob(x: Any, *_: Any) -> Any:
        return logit * x + constant

    return log_prob


def _logit(d: Any) -> Any:
    return d.logits if d.logits is not None else np.log(d.probs) - np.log1p(-d.probs)


def _fall(k: Any, w: Any) -> Any:
    """Return k (w − e^w + 1): how far the logarithm of a power falls from its top."""
    return k * (w - np.expm1(w))


def _of_counts(d: Any) -> Any:
    def log_prob(x: Any, *_: Any) -> Any:
        inside, lost = information(np, d, np.asarray(x, dtype=float))  # type: ignore[misc]
        return np.where(inside, -lost, -np.inf)

    return log_prob


_PLAIN: dict[Any, Callable[..., Any]] = {
    f.Normal: _normal,
    f.LogNormal: _log_normal,
    f.HalfNormal: _half_normal,
    f.Laplace: _laplace,
    f.Gumbel: _gumbel,
    f.Exponential: _exponential,
    f.Weibull: _weibull,
    f.Pareto: _pareto,
    f.Uniform: _uniform,
    f.LogitNormal: _logit_normal,
    f.Kumaraswamy: _kumaraswamy,
}
_FORMULAS: dict[Any, Callable[[Any], Any]] = {
    f.Cauchy: lambda d: _student(d, np.float64(1.0)),
    f.StudentT: _student,
    f.VonMises: _von_mises,
    f.Gamma: lambda d: _gamma(d.concentration, d.rate),
    f.InverseGamma: lambda d: _gamma(d.concentration, d.rate, -1),
    f.Chi2: lambda d: _gamma(d.df / 2, 0.5),
    f.Beta: _beta,
    f.ContinuousBernoulli: _continuous_bernoulli,
    **dict.fromkeys(
        (f.Bernoulli, f.Binomial, f.Geometric, f.NegativeBinomial, f.Poisson), _of_counts
    ),
    **{family: partial(partial, formula) for family, formula in _PLAIN.items()},
}


def _of_unit(d: Any) -> tuple[Any, Any]:
    """Return the sampler and the quantiles of the families that SciPy does not have."""
    if isinstance(d, f.Kumaraswamy):
        a, b = d.concentration1, d.concentration0

        def quantile(u: Any) -> Any:
            return (-np.expm1(np.log1p(-u) / b)) ** (1 / a)

    elif isinstance(d, f.LogitNormal):
        from scipy.special import expit, ndtri  # noqa: PLC0415 - optional

        def quantile(u: Any) -> Any:
            return expit(d.loc + d.scale * ndtri(u))

    else:
        x = _logit(d)

        def quantile(u: Any) -> Any:
            if x == 0:
                return u
            small = np.log1p(u * np.expm1(-np.abs(x))) / -np.abs(x)  # of the logit −|x|
            return small if x < 0 else 1 - np.log1p((1 - u) * np.expm1(-x)) / -x

    return lambda n, rng: quantile(rng.random(n)), quantile


def _frozen(d: Any) -> Any:
    """Return SciPy's frozen distribution of the same kind, or None."""
    try:
        from scipy import stats  # noqa: PLC0415 - optional
    except ImportError:
        raise BackendError(
            "method= needs SciPy's densities and samplers, which are not installed; "
            'pip install "kldiv[scipy]"'
        ) from None
    from kldiv.distributions.closed_forms.multivariate import (  # noqa: PLC0415 - loads all pairs
        NORMALS,
        covariance,
    )

    make: dict[Any, Callable[[Any], Any]] = {
        f.Dirichlet: lambda d: stats.dirichlet(np.ravel(d.concentration)),
        f.Categorical: lambda d: stats.rv_discrete(
            values=(np.arange(len(_weights(d))), _weights(d))
        ),
        **dict.fromkeys(NORMALS, lambda d: stats.multivariate_normal(d.loc, covariance(np, d))),
    }
    for cls in type(d).__mro__:
        if cls in BY_FAMILY:
            return BY_FAMILY[cls].law(*BY_FAMILY[cls].numbers(d))
        if cls in make:
            return make[cls](d)
    return None


def _weights(d: Any) -> Any:
    weights = d.probs if d.probs is not None else np.exp(d.logits - np.max(d.logits))
    return weights / np.sum(weights)


# --- made of others -------------------------------------------------------------------------------


def _mixture(d: Any) -> Density:
    weights = _weights(d.mixture_distribution)
    kept = weights > 0
    weights = weights[kept]
    parts = [
        density(part) for part, k in zip(d.component_distribution.entries, kept, strict=True) if k
    ]
    log_weights = np.log(weights)

    def log_prob(x: Any, log_x: Any = None, log_rest: Any = None) -> Any:
        logs = np.stack(
            [
                w + _within(part, x, part.log_prob(x, log_x, log_rest))
                for w, part in zip(log_weights, parts, strict=True)
            ]
        )
        top = np.max(logs, axis=0)
        top = np.where(np.isfinite(top), top, 0.0)
        return top + np.log(np.sum(np.exp(logs - top), axis=0))

    def sample(n: int, rng: Any) -> Any:
        chosen = rng.choice(len(weights), size=n, p=weights)
        drawn = np.stack([part.sample(n, rng) for part in parts])  # type: ignore[misc]
        return drawn[chosen, np.arange(n)]

    edges = [edge for part in parts for edge in (*part.bounds, *part.cuts)]
    return Density(
        log_prob,
        sample,
        (min(part.bounds[0] for part in parts), max(part.bounds[1] for part in parts)),
        parts[0].discrete,
        parts[0].vector,
        cuts=tuple(edge for edge in edges if math.isfinite(edge)),
        marks=lambda: np.concatenate([part.landmarks() for part in parts]),
        underflows=any(part.underflows for part in parts),
        by_logarithms=all(part.by_logarithms for part in parts),
    )


def _within(part: Density, x: Any, log_prob: Any) -> Any:
    """Return a log-density as −∞ outside its support, where a formula may be of no meaning."""
    if part.vector:
        return log_prob
    return np.where((x < part.bounds[0]) | (x > part.bounds[1]), -np.inf, log_prob)


def _independent(d: Any) -> Density:
    if not d.reinterpreted_batch_ndims:
        return density(d.base_dist)
    shape = d.base_dist.batch_shape
    parts = [density(part) for part in d.base_dist.entries]

    def log_prob(x: Any) -> Any:
        x = np.asarray(x)
        rows = np.reshape(x, (len(x), len(parts), *x.shape[1 + len(shape) :]))
        return np.sum([part.log_prob(rows[:, i]) for i, part in enumerate(parts)], axis=0)

    def sample(n: int, rng: Any) -> Any:
        drawn = np.stack([part.sample(n, rng) for part in parts], axis=1)  # type: ignore[misc]
        return np.reshape(drawn, (n, *shape, *drawn.shape[2:]))

    return Density(log_prob, sample, discrete=parts[0].discrete, vector=True)
