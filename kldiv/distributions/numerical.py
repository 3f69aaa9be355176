"""Where there is no closed form: quadrature or sums of the densities, averages over samples.

Everything here happens on the host, in float64, for one batch entry after another, by SciPy's
densities and samplers, or by those that an object of another library brings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kldiv import backends
from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution, broadcast, restore
from kldiv.distributions.foreign import Opaque
from kldiv.distributions.supports import never_covers
from kldiv.errors import BackendError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = 100_000
"""How many samples Monte Carlo takes of each batch entry."""
_SEED = 0
_TAIL = 1e-18  # of P, that sums and integrals may leave out


class Estimate(NamedTuple):
    """
    A divergence that was computed numerically, and how far off it may be.

    Attributes
    ----------
    value : ndarray
        One number for each batch entry.
    standard_error : ndarray
        The standard error of an average over samples; of quadrature SciPy's bound of its error.
    """

    value: Any
    standard_error: Any


@dataclass
class _Host:
    """One distribution, not a batch, on the host."""

    log_prob: Callable[[Any], Any]
    sample: Callable[[int, Any], Any] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    discrete: bool = False
    vector: bool = False
    circle: bool = False


def estimate(p: Distribution, q: Distribution, method: str, unit: float) -> Estimate:
    """Return D(p‖q) by that method, for each batch entry."""
    shape = broadcast("p and q together", p.batch_shape, q.batch_shape)
    compute = _quadrature if method == "quadrature" else _monte_carlo
    values, errors = np.empty(shape), np.empty(shape)
    for index in np.ndindex(shape):
        value, error = compute(_at(p, index, shape), _at(q, index, shape))
        values[index], errors[index] = value / unit, error / unit
    return Estimate(values[()], errors[()])


def _quadrature(p: Distribution, q: Distribution) -> tuple[float, float]:
    if never_covers(q.support, p.support):
        return math.inf, 0.0
    a, b = _host(p), _host(q)
    if a.vector or b.vector:
        raise OptionError(
            "method='quadrature' is for distributions of single numbers; got "
            f"{type(p).__name__} and {type(q).__name__}; use method='monte_carlo'"
        )
    if a.discrete != b.discrete:
        return math.inf, 0.0
    return _summed(a, b) if a.discrete else _integrated(a, b)


def _summed(a: _Host, b: _Host) -> tuple[float, float]:
    low, high = a.bounds
    start = int(max(low, -1e9))
    total, mass, step = 0.0, 0.0, 1 << 10
    while start <= high and mass < 1.0 - 1e-15 and start < 1e8:
        x = np.arange(start, min(start + step, high + 1))
        with np.errstate(all="ignore"):
            log_p, log_q = np.asarray(a.log_prob(x)), np.asarray(b.log_prob(x))
            p = np.exp(log_p)
            total += float(np.sum(np.where(p > 0, p * (log_p - log_q), 0.0)))
        gained = float(np.sum(p))
        if mass > 0.5 and gained < _TAIL:
            break
        mass += gained
        start, step = start + len(x), step * 2
    return total, abs(1.0 - mass) * max(1.0, abs(total))


def _integrated(a: _Host, b: _Host) -> tuple[float, float]:
    from scipy.integrate import quad  # noqa: PLC0415 - optional

    low, high = a.bounds
    if not b.circle and (b.bounds[0] > low or b.bounds[1] < high):
        return math.inf, 0.0
    cuts = _cuts(a, low, high)
    values = [
        quad(  # asked for its messages it gives no warnings: the error says it
            lambda x: _log_ratio_term(a, b, x),
            *pair,
            limit=200,
            epsabs=1e-13,
            epsrel=1e-12,
            full_output=1,
        )[:2]
        for pair in pairwise(cuts)
    ]
    return sum(v for v, _ in values), sum(e for _, e in values)


def _log_ratio_term(a: _Host, b: _Host, x: float) -> float:
    with np.errstate(all="ignore"):
        log_p, log_q = float(a.log_prob(x)), float(b.log_prob(x))
    p = math.exp(log_p)
    return p * (log_p - log_q) if p > 0 else 0.0


def _cuts(a: _Host, low: float, high: float) -> list[float]:
    """Return where to cut the integral: at quantiles of P, so that no peak is missed."""
    if a.sample is None:
        return [low, high] if math.isfinite(low) or math.isfinite(high) else [low, 0.0, high]
    drawn = np.sort(np.asarray(a.sample(1001, np.random.default_rng(_SEED)), dtype=float))
    inner = [float(c) for c in np.unique(drawn[[1, 10, 100, 500, 900, 990, 999]]) if low < c < high]
    return [low, *inner, high]


def _monte_carlo(p: Distribution, q: Distribution) -> tuple[float, float]:
    a, b = _host(p), _host(q)
    if a.sample is None:
        raise OptionError(
            f"method='monte_carlo' needs samples of P, and {type(p).__name__} has no sampler; use "
            "method='quadrature'"
        )
    x = a.sample(SAMPLES, np.random.default_rng(_SEED))
    with np.errstate(all="ignore"):
        ratios = np.asarray(a.log_prob(x)) - np.asarray(b.log_prob(x))
    return float(np.mean(ratios)), float(np.std(ratios, ddof=1) / math.sqrt(len(ratios)))


# --- one distribution on the host -----------------------------------------------------------------


def _at(d: Distribution, index: tuple[Any, ...], shape: tuple[int, ...]) -> Distribution:
    """Return one entry of a batch, its parameters as NumPy has them."""
    if isinstance(d, Opaque):
        return d
    values: dict[str, Any] = {}
    for field in fields(d):
        value = getattr(d, field.name)
        if field.name in d.options or value is None:
            values[field.name] = value
        elif isinstance(value, Distribution):
            extra = value.batch_shape[len(d.batch_shape) :]
            place = (*index, *(slice(None) for _ in extra))
            values[field.name] = _at(value, place, (*shape, *extra))
        else:
            host = _numpy(value)
            axes = d.event_axes.get(field.name, 0)
            event = host.shape[host.ndim - axes :]
            values[field.name] = np.broadcast_to(host, (*shape, *event))[index]
    return restore(type(d), values)  # type: ignore[no-any-return]


def _numpy(value: Any) -> Any:
    if not hasattr(value, "dtype"):
        return np.asarray(value, dtype=np.float64)
    backend = backends.find(value)
    return np.asarray(backend.to_numpy(backend.export(value)), dtype=np.float64)


def _host(d: Distribution) -> _Host:
    if isinstance(d, Opaque):
        return _of_other(d.original)
    if isinstance(d, f.MixtureSameFamily):
        return _mixture(d)
    if isinstance(d, f.Independent):
        return _independent(d)
    frozen = _frozen(d)
    if frozen is not None:
        return _of_scipy(frozen)
    if isinstance(d, f.ContinuousBernoulli):
        return _continuous_bernoulli(d)
    if isinstance(d, f.Kumaraswamy):
        return _kumaraswamy(d)
    raise OptionError(
        f"{type(d).__name__} has no density on the host, which method= needs; pass a distribution "
        "of SciPy or PyTorch, or register a closed form by kldiv.register_kl"
    )


def _frozen(d: Any) -> Any:
    """Return SciPy's frozen distribution of the same kind, or None."""
    try:
        from scipy import stats  # noqa: PLC0415 - optional
    except ImportError:
        raise BackendError(
            "method= needs SciPy's densities and samplers, which are not installed; "
            'pip install "kldiv[scipy]"'
        ) from None
    make: dict[Any, Callable[[Any], Any]] = {
        f.Normal: lambda d: stats.norm(d.loc, d.scale),
        f.LogNormal: lambda d: stats.lognorm(d.scale, scale=np.exp(d.loc)),
        f.HalfNormal: lambda d: stats.halfnorm(scale=d.scale),
        f.Laplace: lambda d: stats.laplace(d.loc, d.scale),
        f.Cauchy: lambda d: stats.cauchy(d.loc, d.scale),
        f.StudentT: lambda d: stats.t(d.df, d.loc, d.scale),
        f.Gumbel: lambda d: stats.gumbel_r(d.loc, d.scale),
        f.VonMises: lambda d: stats.vonmises(d.concentration, d.loc),
        f.Exponential: lambda d: stats.expon(scale=1 / d.rate),
        f.Gamma: lambda d: stats.gamma(d.concentration, scale=1 / d.rate),
        f.InverseGamma: lambda d: stats.invgamma(d.concentration, scale=d.rate),
        f.Chi2: lambda d: stats.chi2(d.df),
        f.Weibull: lambda d: stats.weibull_min(d.concentration, scale=d.scale),
        f.Pareto: lambda d: stats.pareto(d.alpha, scale=d.scale),
        f.Uniform: lambda d: stats.uniform(d.low, d.high - d.low),
        f.Beta: lambda d: stats.beta(d.concentration1, d.concentration0),
        f.Dirichlet: lambda d: stats.dirichlet(np.ravel(d.concentration)),
        f.Bernoulli: lambda d: stats.bernoulli(_probs(d)),
        f.Binomial: lambda d: stats.binom(np.asarray(d.total_count).astype(int), _probs(d)),
        f.Geometric: lambda d: stats.geom(_probs(d), loc=-1),
        f.NegativeBinomial: lambda d: stats.nbinom(d.total_count, 1 - _probs(d)),
        f.Poisson: lambda d: stats.poisson(d.rate),
        f.Categorical: lambda d: stats.rv_discrete(
            values=(np.arange(len(_weights(d))), _weights(d))
        ),
        f.MultivariateNormal: lambda d: stats.multivariate_normal(d.loc, _covariance(d)),
        f.MultivariateNormalDiag: lambda d: stats.multivariate_normal(
            d.loc, np.diag(d.scale_diag**2)
        ),
        f.LowRankMultivariateNormal: lambda d: stats.multivariate_normal(
            d.loc, d.cov_factor @ d.cov_factor.T + np.diag(d.cov_diag)
        ),
    }
    found = next((make[cls] for cls in type(d).__mro__ if cls in make), None)
    return None if found is None else found(d)


def _probs(d: Any) -> Any:
    return d.probs if d.probs is not None else 1 / (1 + np.exp(-d.logits))


def _weights(d: Any) -> Any:
    weights = d.probs if d.probs is not None else np.exp(d.logits - np.max(d.logits))
    return weights / np.sum(weights)


def _covariance(d: Any) -> Any:
    if d.covariance_matrix is not None:
        return d.covariance_matrix
    if d.scale_tril is not None:
        return d.scale_tril @ d.scale_tril.T
    return np.linalg.inv(d.precision_matrix)


def _of_scipy(frozen: Any) -> _Host:
    discrete = not hasattr(frozen, "logpdf") or (
        hasattr(frozen, "dist") and not hasattr(frozen.dist, "_pdf")
    )
    vector = not hasattr(frozen, "support")
    bounds = (-math.inf, math.inf) if vector else tuple(float(b) for b in frozen.support())
    log_prob = frozen.logpmf if discrete else frozen.logpdf
    if type(frozen).__name__ == "dirichlet_frozen":  # SciPy has events on the first axis
        return _Host(lambda x: frozen.logpdf(np.asarray(x).T), frozen.rvs, vector=True)
    circle = getattr(getattr(frozen, "dist", None), "name", "") == "vonmises"
    if circle:  # SciPy has its density on the whole line
        start = frozen.mean() - math.pi
        bounds = (start, start + 2 * math.pi)
    return _Host(
        log_prob,
        lambda n, rng: frozen.rvs(size=n, random_state=rng),
        bounds,  # type: ignore[arg-type]
        discrete,
        vector,
        circle,
    )


def _of_other(original: Any) -> _Host:
    """Wrap an object of another library by its own log_prob and sampler."""
    if hasattr(original, "rvs") or hasattr(original, "logpdf"):
        if hasattr(original, "rvs"):
            return _of_scipy(original)
        low, high = original.support()  # SciPy's newer objects
        return _Host(
            original.logpdf, lambda n, rng: original.sample(n, rng=rng), (float(low), float(high))
        )
    if type(original).__module__.startswith("torch"):
        return _of_torch(original)
    raise OptionError(
        f"{type(original).__module__}.{type(original).__qualname__} has no closed form here, and "
        "only distributions of SciPy and PyTorch can be sampled and integrated; convert it"
    )


def _of_torch(original: Any) -> _Host:
    backend = backends.get("torch")
    xp: Any = backend.namespace()

    def log_prob(x: Any) -> Any:
        return backend.to_numpy(original.log_prob(xp.asarray(x, dtype=xp.float64)).detach())

    def sample(n: int, rng: Any) -> Any:  # noqa: ARG001 - torch has a generator of its own
        return backend.to_numpy(original.sample((n,)).detach())

    support = original.support
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    vector = bool(original.event_shape)
    return _Host(log_prob, sample, (float(low), float(high)), bool(support.is_discrete), vector)


def _mixture(d: f.MixtureSameFamily) -> _Host:
    weights = _weights(d.mixture_distribution)
    size = len(weights)
    parts = [_host(_at(d.component_distribution, (i,), (size,))) for i in range(size)]
    log_weights = np.log(weights)

    def log_prob(x: Any) -> Any:
        logs = np.stack([w + part.log_prob(x) for w, part in zip(log_weights, parts, strict=True)])
        top = np.max(logs, axis=0)
        top = np.where(np.isfinite(top), top, 0.0)
        return top + np.log(np.sum(np.exp(logs - top), axis=0))

    def sample(n: int, rng: Any) -> Any:
        chosen = rng.choice(size, size=n, p=weights)
        drawn = np.stack([part.sample(n, rng) for part in parts])  # type: ignore[misc]
        return drawn[chosen, np.arange(n)]

    bounds = min(part.bounds[0] for part in parts), max(part.bounds[1] for part in parts)
    return _Host(log_prob, sample, bounds, parts[0].discrete, parts[0].vector)


def _independent(d: f.Independent) -> _Host:
    shape = d.base_dist.batch_shape
    parts = [_host(_at(d.base_dist, index, shape)) for index in np.ndindex(shape)]

    def log_prob(x: Any) -> Any:
        flat = np.reshape(x, (*np.shape(x)[: np.ndim(x) - len(shape)], -1))
        logs = [part.log_prob(flat[..., i]) for i, part in enumerate(parts)]
        return np.sum(np.stack(logs), axis=0)

    def sample(n: int, rng: Any) -> Any:
        drawn = np.stack([part.sample(n, rng) for part in parts], axis=-1)  # type: ignore[misc]
        return np.reshape(drawn, (n, *shape))

    return _Host(log_prob, sample, discrete=parts[0].discrete, vector=True)


def _continuous_bernoulli(d: f.ContinuousBernoulli) -> _Host:
    x = float(d.logits if d.logits is not None else np.log(d.probs) - np.log1p(-d.probs))
    normal = math.log(math.expm1(x) / x) if x else 0.0

    def sample(n: int, rng: Any) -> Any:
        u = rng.random(n)
        return np.log1p(u * math.expm1(x)) / x if x else u

    return _Host(lambda value: x * np.asarray(value) - normal, sample, (0.0, 1.0))


def _kumaraswamy(d: f.Kumaraswamy) -> _Host:
    a, b = float(d.concentration1), float(d.concentration0)

    def log_prob(x: Any) -> Any:
        return math.log(a * b) + (a - 1) * np.log(x) + (b - 1) * np.log1p(-(x**a))

    def sample(n: int, rng: Any) -> Any:
        return (1 - rng.random(n) ** (1 / b)) ** (1 / a)

    return _Host(log_prob, sample, (0.0, 1.0))
