"""Divergences of samples: from nearest neighbours, and from counts."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from kldiv.formulas.blocks import BLOCK_BYTES, slices
from kldiv.formulas.measures import relative_entropy
from kldiv.formulas.special import log_ratio

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


def neighbour_distances(xp: Namespace, x: Array, y: Array, k: int) -> Array:
    """Return the distance from each point of ``x`` to its k-th neighbour in ``y``."""
    n, dimensions = x.shape
    step = max(1, BLOCK_BYTES // (8 * y.shape[0] * dimensions))
    parts = []
    for part in slices(n, step):
        # Differences, not the expanded square: that cancels between close neighbours.
        far = norms(xp, x[part, :][:, None, :] - y[None, :, :])
        unknown = xp.any(xp.isnan(far), axis=-1)  # sorted last, a NaN would be left out
        parts.append(xp.where(unknown, xp.nan, xp.sort(far, axis=-1)[:, k - 1]))
    return xp.concat(parts)


def norms(xp: Namespace, apart: Array) -> Array:
    """Return lengths along the last axis, where a square may overflow or underflow too."""
    if apart.shape[-1] == 1:
        return abs(apart[..., 0])
    top = xp.max(abs(apart), axis=-1, keepdims=True)
    share = apart / xp.where((top > 0) & (top < math.inf), top, 1.0)
    return top[..., 0] * xp.sqrt(xp.sum(share * share, axis=-1))


def knn_kl(xp: Namespace, to_y: Array, to_x: Array, dimensions: int, size: int) -> Array:
    """Return the estimate, given distances from the points of x, and ``size``, the points of y."""
    n = to_x.shape[0]
    ratio = log_ratio(xp, to_y, to_x)
    # A number, but in the array's dtype and on its device.
    sizes = xp.log(xp.full_like(ratio[0], size / (n - 1)))
    return dimensions * xp.mean(ratio) + sizes


def plug_in_kl(xp: Namespace, p: Array, q: Array, axis: int, *, corrected: bool) -> Array:
    """Return the divergence of frequencies, less its bias to first order if ``corrected``."""
    n = xp.sum(p, axis=axis, keepdims=True)
    m = xp.sum(q, axis=axis, keepdims=True)
    p, q = p / n, q / m
    value = xp.sum(relative_entropy(xp, p, q), axis=axis)
    if not corrected:
        return value
    # No zero reaches a quotient: lazy libraries would warn when they compute.
    seen = p > 0
    classes = xp.sum(xp.astype(seen, p.dtype), axis=axis)
    ratio = xp.sum(xp.where(seen, p, 0.0) / xp.where(q > 0, q, 1.0), axis=axis)
    n, m = xp.squeeze(n, axis=axis), xp.squeeze(m, axis=axis)
    bias = (classes - 1.0) / (2.0 * n) + (ratio - 1.0) / (2.0 * m)
    return xp.where(xp.isinf(value), value, value - bias)


class Noise(NamedTuple):
    """Noise that n terms share, as their densities come from the same points."""

    own: float = 0.0
    """The variance that it gives to each of the terms."""
    error: float = 0.0
    """The standard error of the terms' variance where there is nothing but noise."""
    joint: float = 0.0
    """n times the variance of its mean."""


NONE = Noise()


def mean_interval(
    xp: Namespace, terms: Array, confidence: float, bias: float = 0.0, noise: Noise = NONE
) -> tuple[float, float, float, float]:
    """Return the mean of terms less a bias, its standard error, and its interval.

    The interval is that of the central limit theorem; without ``noise`` the terms are independent.
    """
    value = float(xp.mean(terms)) - bias
    variance = float(xp.var(terms, correction=1)) - noise.own
    if variance <= noise.error:
        variance = 0.0
    elif noise.error:
        # Shrunk as L. Breiman's garrote, Technometrics 37 (1995) 373-384: cut at 0 alone, it would
        # be too large on average where there is nothing but noise.
        variance -= noise.error**2 / variance
    error = math.sqrt((variance + noise.joint) / terms.shape[0])
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return value, error, value - reach, value + reach


def log_density_on_unit(
    xp: Namespace, below: Array, above: Array, m: int, digammas: float
) -> Array:
    """Return the log-density of n sorted points of [0, 1] at each, from spacings of order ``m``.

    ``below`` are the points with 0 before and 1 after them, ``above`` is 1 − ``below``, which is
    known better near 1; ``digammas`` is ψ(m) − ψ(n + 1), the mean logarithm of such a spacing of
    uniform points, so that of these the estimate's mean is 0.
    """
    first, last = _spacings(xp, below.shape[0], m)
    lower = below[last] - below[first]
    return digammas - xp.log(xp.where(below[last] <= 0.5, lower, above[first] - above[last]))


def log_density_on_line(
    xp: Namespace, points: Array, offsets: Array, m: int, digammas: float
) -> Array:
    """Return the same of n sorted points of the line, ``points + offsets``: as double words."""
    below = [xp.concat([x[:1], x, x[-1:]]) for x in (points, offsets)]
    first, last = _spacings(xp, below[0].shape[0], m)
    width, more = (x[last] - x[first] for x in below)
    return digammas - xp.log(width + more)


def _spacings(xp: Namespace, places: int, m: int) -> tuple[Array, Array]:
    """Return the first and the last place of the spacing of order ``m`` about each inner place."""
    first = xp.clip(xp.arange(1, places - 1) - (m + 1) // 2, 0, places - 1 - m)
    return first, first + m


def spacing_noise(m: int, n: int, polygammas: tuple[float, float]) -> Noise:
    """Return the noise of log-densities from spacings of order ``m`` of n points.

    ``polygammas`` are the first and third derivatives of ψ at m: the variance and the fourth
    cumulant of such a logarithm. Those of spacings that are k < m apart correlate by about 1 − k/m.
    The mean's variance is of N. Cressie, "On the logarithms of high-order spacings", Biometrika 63
    (1976) 343-355; it is less, as all spacings have the sum m.
    """
    first, third = polygammas
    overlap = (2 * m * m + 1) / (3 * m)
    error = math.sqrt((third + 2 * first * first) * overlap / n)
    return Noise(first, error, (2 * m * m - 2 * m + 1) * first - 2 * m + 1)


def frequency_noise(cells: int, n: int) -> Noise:
    """Return the noise of log-frequencies, by the chi-squared law of the likelihood ratio."""
    free = cells - 1
    return Noise(free / n, math.sqrt(2 * free) / n, free / (2 * n))


def spread(values: Array, place: Array, uniform: Array) -> Array:
    """Return how far to move the points ``values[place]``, each within its rounding interval.

    That reaches half-way to the next of the sorted values; even steps would be farther apart than
    chance.
    """
    steps = (values[1:] - values[:-1]) / 2
    last = steps.shape[0] - 1
    low, high = steps[(place - 1).clip(0, last)], steps[place.clip(0, last)]
    return (low + high) * uniform - low
