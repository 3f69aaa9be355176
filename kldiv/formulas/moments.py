r"""Moments of a set of numbers with weights, and their merger: any split gives the whole.

The mean and the sum of squares about it are kept, never sums of squares themselves, which cancel
(T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", Amer.
Statist. 37 (1983) 242-247).  The standard error of a weighted mean takes the same of w², since

    Σ w² (x − m)² = Σ w² (x − m′)² + (m′ − m)² Σ w²

for m′ = Σ w² x / Σ w².
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kldiv.formulas.reductions import divide, finite_or_zero

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


class Moments(NamedTuple):
    """The moments, each an array of no axes."""

    count: Array
    """Finite numbers of weight other than 0."""
    weight: Array
    """Σ w."""
    mean: Array
    """Σ w x / Σ w, 0 where there is none."""
    squares: Array
    """Σ w (x − mean)²."""
    square_weight: Array
    """Σ w²."""
    square_mean: Array
    """Σ w² x / Σ w²."""
    square_squares: Array
    """Σ w² (x − square_mean)²."""
    least: Array
    """The smallest number; +∞ where there is none."""
    greatest: Array
    """The largest, +∞ included; −∞ where there is none."""
    infinite: Array
    """Numbers that are infinite."""
    undefined: Array
    """Numbers that are NaN."""


def moments(xp: Namespace, values: Array, weight: Array | None, kept: Array | None) -> Moments:
    """Return the moments of numbers; one that is not kept, or of weight 0, lets nothing through."""
    if 0 in values.shape:  # which has no extremes
        zero = xp.sum(values)
        nothing = zero, zero, zero
        return Moments(zero, *nothing, *nothing, zero + xp.inf, zero - xp.inf, zero, zero)
    counts = counting(xp, values, weight, kept)
    finite = counts & xp.isfinite(values)
    x = xp.where(finite, finite_or_zero(xp, values), 0.0)
    w = xp.astype(finite, values.dtype)
    if weight is not None:
        w = xp.where(finite, weight, w)
    infinite, undefined = counts & xp.isinf(values), counts & xp.isnan(values)
    most = xp.where(infinite, xp.inf, xp.where(finite, x, -xp.inf))
    return Moments(
        _number(xp, finite, values),
        *_about_their_mean(xp, x, w),
        *_about_their_mean(xp, x, w * w),
        xp.min(xp.where(finite, x, xp.inf)),
        xp.max(most),
        _number(xp, infinite, values),
        _number(xp, undefined, values),
    )


def counting(xp: Namespace, values: Array, weight: Array | None, kept: Array | None) -> Array:
    """Return which numbers count: those that are kept and have a weight other than 0."""
    counts = xp.ones_like(values, dtype=xp.bool) if kept is None else kept
    return counts if weight is None else counts & (weight != 0)


def _number(xp: Namespace, flags: Array, like: Array) -> Array:
    return xp.sum(xp.astype(flags, like.dtype))


def _about_their_mean(xp: Namespace, x: Array, w: Array) -> tuple[Array, Array, Array]:
    total = xp.sum(w)
    mean = divide(xp, xp.sum(w * x), total, 0.0)
    # The mean is rounded: the average distance from it corrects that.
    mean = mean + divide(xp, xp.sum(w * (x - mean)), total, 0.0)
    return total, mean, xp.sum(w * (x - mean) ** 2)


def merge(xp: Namespace, a: Moments, b: Moments) -> Moments:
    """Return the moments of both sets together."""
    return Moments(
        a.count + b.count,
        *_merged(xp, a[1:4], b[1:4]),
        *_merged(xp, a[4:7], b[4:7]),
        xp.minimum(a.least, b.least),
        xp.maximum(a.greatest, b.greatest),
        a.infinite + b.infinite,
        a.undefined + b.undefined,
    )


def mean(xp: Namespace, m: Moments) -> Array:
    """Return the mean of all numbers: NaN of none or where one is NaN, +∞ where one is infinite."""
    found = xp.where(m.count > 0, m.mean, xp.nan)
    found = xp.where(m.infinite > 0, xp.inf, found)
    return xp.where(m.undefined > 0, xp.nan, found)


def _merged(
    xp: Namespace, a: tuple[Array, ...], b: tuple[Array, ...]
) -> tuple[Array, Array, Array]:
    (weight, mean, squares), (other, mean_b, squares_b) = a, b
    total, apart = weight + other, mean_b - mean
    share = divide(xp, other, total, 0.0)
    return total, mean + apart * share, squares + squares_b + apart * apart * weight * share
