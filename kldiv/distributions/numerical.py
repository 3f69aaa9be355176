"""Where there is no closed form: quadrature or sums of the densities, averages over samples.

Everything here happens on the host, in float64, for one batch entry after another, by the
log-densities of `densities`, or by those that an object of another library brings.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution, broadcast, exp
from kldiv.distributions.densities import density, entry, on_host
from kldiv.distributions.foreign import Opaque
from kldiv.distributions.foreign_densities import log_probs, samples
from kldiv.distributions.quadrature import integrate
from kldiv.distributions.sums import add_up
from kldiv.distributions.supports import DISCRETE, never_covers
from kldiv.errors import BackendError, LibraryError, OptionError

SAMPLES = 100_000
"""How many samples Monte Carlo takes of each batch entry."""
_BLOCK = 1 << 22
"""How many numbers are sampled at a time."""
_SEED = 0


class Estimate(NamedTuple):
    """
    A divergence that was computed numerically, and how far off it may be.

    Attributes
    ----------
    value : ndarray
        One number for each batch entry.
    standard_error : ndarray
        The standard error of an average over samples; of quadrature a bound of its error, which
        holds rounding and the part of P's mass that was not found.
    """

    value: Any
    standard_error: Any


def estimate(p: Distribution, q: Distribution, method: str, unit: float) -> Estimate:
    """Return D(p‖q) by that method, for each batch entry."""
    shape = broadcast("p and q together", p.batch_shape, q.batch_shape)
    compute = _quadrature if method == "quadrature" else _monte_carlo
    points = {i: x for i in np.ndindex(shape) if (x := _of_points(p, q, i, shape)) is not None}
    values, errors = np.zeros(shape), np.zeros(shape)
    if len(points) < values.size:
        values[...], errors[...] = compute(p, q, shape)
    for index, value in points.items():
        values[index], errors[index] = value, 0.0
    return Estimate((values / unit)[()], (errors / unit)[()])


def _of_points(
    p: Distribution, q: Distribution, index: tuple[int, ...], shape: tuple[int, ...]
) -> float | None:
    """Return the divergence of an entry where P or Q is a point mass among densities, or None."""
    points = [concentrated(entry(d, index, shape)) for d in (p, q)]
    if not any(points):
        return None
    places = [float(x.value) if x else math.inf for x in points]
    if any(map(math.isnan, places)):
        return math.nan
    return 0.0 if places[0] == places[1] else math.inf


_AT_LOC = (f.Normal, f.Laplace, f.Cauchy, f.StudentT, f.Gumbel)
_AT_ZERO = (f.HalfNormal, f.HalfCauchy, f.Weibull)


def concentrated(d: Distribution) -> f.Delta | None:
    """Return the point mass that a distribution is whose scale is 0 in the whole batch.

    None where it is none, and where values cannot be read, as they are traced.
    """
    if not isinstance(d, (*_AT_LOC, *_AT_ZERO, f.LogNormal)):
        return None
    try:
        scale = on_host(d.scale)
    except (BackendError, LibraryError):
        return None
    if scale.any() or not scale.size:
        return None
    zero = 0.0 * d.scale
    if isinstance(d, _AT_ZERO):
        return f.Delta(zero)
    place = d.loc + zero  # of a floating dtype, as exponentials of integers are not exact
    return f.Delta(exp(place) if isinstance(d, f.LogNormal) else place)


def _quadrature(p: Distribution, q: Distribution, shape: tuple[int, ...]) -> tuple[Any, Any]:
    values, errors = np.empty(shape), np.empty(shape)
    for index in np.ndindex(shape):
        values[index], errors[index] = _entry_by_quadrature(
            entry(p, index, shape), entry(q, index, shape)
        )
    return values, errors


def _entry_by_quadrature(p: Distribution, q: Distribution) -> tuple[float, float]:
    counts = p.support in DISCRETE and q.support in DISCRETE  # of rate 0 P lies within any Q
    if never_covers(q.support, p.support) and not counts:
        return math.inf, 0.0
    a, b = density(p), density(q)
    if a.vector or b.vector:
        raise OptionError(
            "method='quadrature' is for distributions of single numbers; got "
            f"{_name(p)} and {_name(q)}; use method='monte_carlo'"
        )
    if a.discrete != b.discrete:
        return math.inf, 0.0
    return add_up(a, b) if a.discrete else integrate(a, b)


def _name(d: Distribution) -> str:
    return type(getattr(d, "original", d)).__name__


def _monte_carlo(p: Distribution, q: Distribution, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Average over samples: whole batches at once of an object that has its own, else by entry."""
    size = max(1, math.prod(shape))
    step = max(1, min(SAMPLES, _BLOCK // size))
    source, of_p, of_q = _sampler(p, shape), _log_density(p, shape), _log_density(q, shape)
    ratios = np.empty((SAMPLES, *shape))
    for start in range(0, SAMPLES, step):
        x = source(min(step, SAMPLES - start))
        with np.errstate(all="ignore"):
            ratios[start : start + step] = of_p(x) - of_q(x)
    with np.errstate(all="ignore"):
        return np.mean(ratios, axis=0), np.std(ratios, axis=0, ddof=1) / math.sqrt(SAMPLES)


def _sampler(p: Distribution, shape: tuple[int, ...]) -> Any:
    """Return a function that draws n samples of each entry, of shape (n, *shape, *event)."""
    if isinstance(p, Opaque):
        rng = np.random.default_rng(_SEED)
        own = len(p.batch_shape)

        def draw(n: int) -> Any:
            drawn = samples(p.original, n, rng)
            event = drawn.shape[1 + own :]
            lead = (1,) * (len(shape) - own)
            drawn = np.reshape(drawn, (n, *lead, *drawn.shape[1:]))
            return np.broadcast_to(drawn, (n, *shape, *event))

        return draw
    parts = [density(entry(p, index, shape)) for index in np.ndindex(shape)]
    if any(part.sample is None for part in parts):
        raise OptionError(
            f"method='monte_carlo' needs samples of P, and {_name(p)} has no sampler; use "
            "method='quadrature'"
        )
    streams = [np.random.default_rng(_SEED) for _ in parts]

    def draw_each(n: int) -> Any:
        drawn = [part.sample(n, rng) for part, rng in zip(parts, streams, strict=True)]  # type: ignore[misc]
        if not drawn:
            return np.empty((n, *shape))
        stacked = np.stack(drawn, axis=1)
        return np.reshape(stacked, (n, *shape, *stacked.shape[2:]))

    return draw_each


def _log_density(d: Distribution, shape: tuple[int, ...]) -> Any:
    """Return a function from samples of each entry to their log-densities, of shape (n, *shape)."""
    if isinstance(d, Opaque):
        return lambda x: log_probs(d.original, x)
    parts = [(index, density(entry(d, index, shape))) for index in np.ndindex(shape)]

    def of_each(x: Any) -> Any:
        logs = np.empty((len(x), *shape))
        for index, part in parts:
            logs[(slice(None), *index)] = part.log_prob(x[(slice(None), *index)])
        return logs

    return of_each
