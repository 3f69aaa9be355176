"""Images under transforms: shared steps are taken off, the others become parameters.

D(T(P)‖T(Q)) = D(P‖Q) of every injective T.  Two affine maps need not be equal: the inverse of Q's
after P's is one affine map, which families of location and scale take into their parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution
from kldiv.distributions.registry import closed_form, no_closed_form, register_kl
from kldiv.distributions.wrappers import EXP, LOG, SIGMOID, Affine, Image, Mapped

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace

    Map = tuple[Array, Array]
    """(loc, scale) of an affine map."""

_NAMED: Final[dict[Any, tuple[Any, Any]]] = {
    f.LogNormal: (f.Normal, EXP),
    f.LogitNormal: (f.Normal, SIGMOID),
}
"""Families that are images of others."""


@register_kl(Image, Image)
@register_kl(Image, Distribution)
@register_kl(Distribution, Image)
def image(xp: Namespace, p: Any, q: Any) -> Array:
    """The bases', of transforms that are the same or affine; NaN where others differ by values."""
    core_p, steps_p = _chain(p)
    core_q, steps_q = _chain(q)
    between: Map | None = None  # the maps still to be applied to P
    holds: Array | None = None  # where that could be carried through
    while True:
        between = _affine(between, steps_p, steps_q)
        if not (steps_p and steps_q) or steps_p[-1] != steps_q[-1]:
            break
        if between is not None:
            between, fits = _inside(xp, steps_p[-1], between)
            holds = fits if holds is None else holds & fits
        steps_p.pop()
        steps_q.pop()
    core_p, core_q = _whole(xp, core_p, steps_p), _whole(xp, core_q, steps_q)
    if core_p is None or core_q is None:
        raise no_closed_form(p, q)
    if between is None:
        value = closed_form(xp, core_p, core_q)
    else:
        value = _moved(xp, core_p, core_q, *between)
    return value if holds is None else xp.where(holds, value, math.nan)


def _chain(whole: Any) -> tuple[Any, list[Any]]:
    """Return the innermost distribution, and the transforms applied to it, in order."""
    d = whole
    steps: list[Any] = []
    while isinstance(d, Affine | Mapped):
        steps.append(d.transform if isinstance(d, Mapped) else (d.loc, d.scale))
        d = d.base_dist
    if type(d) in _NAMED:
        inner, step = _NAMED[type(d)]
        d = inner(d.loc, d.scale)
        steps.append(step)
    done: list[Any] = []
    for step in reversed(steps):
        if isinstance(step, tuple):
            if done and isinstance(done[-1], tuple):
                done.append(_after(step, done.pop()))
            else:
                done.append(step)
        elif done and done[-1] == step.inverse():
            done.pop()
        else:
            done.append(step)
    return d, done


def _after(second: Map, first: Map) -> Map:
    return second[0] + second[1] * first[0], second[1] * first[1]


def _affine(between: Map | None, steps_p: list[Any], steps_q: list[Any]) -> Map | None:
    """Return the affine map between both with those on their outsides, which are taken off."""
    if steps_p and isinstance(steps_p[-1], tuple):
        of_p = steps_p.pop()
        between = of_p if between is None else _after(between, of_p)
    if steps_q and isinstance(steps_q[-1], tuple):
        loc, scale = steps_q.pop()
        if between is None:
            between = -loc / scale, 1.0 / scale
        else:
            between = (between[0] - loc) / scale, between[1] / scale
    return between


def _inside(xp: Namespace, step: Any, between: Map) -> tuple[Map, Array]:
    """Return the map inside a transform that equals one outside, and where that holds."""
    loc, scale = between
    if step == EXP:
        fits = (loc == 0) & (scale > 0)
        factor = xp.where(fits, scale, 1.0)
        return (_unknown_slope(xp, loc, fits) + xp.log(factor), xp.ones_like(factor)), fits
    if step == LOG:
        fits = scale == 1
        return (xp.zeros_like(loc), xp.exp(loc) + _unknown_slope(xp, scale - 1.0, fits)), fits
    fits = (loc == 0) & (scale == 1)
    slope = _unknown_slope(xp, loc, fits) + _unknown_slope(xp, scale - 1.0, fits)
    return (slope, xp.where(fits, scale, 1.0)), fits


def _unknown_slope(xp: Namespace, x: Array, fits: Array) -> Array:
    """Return 0 for x = 0, with a slope of NaN in x: beside 0 there is no closed form."""
    return 0.0 * xp.sqrt(abs(xp.where(fits, x, 0.0)))


def _whole(xp: Namespace, core: Any, steps: list[Any]) -> Any:
    """Return a family for the rest of one side, or None."""
    if steps and isinstance(steps[0], tuple) and type(core) in _ANY_MAP:
        core, steps = _ANY_MAP[type(core)](xp, core, *steps[0]), steps[1:]
    if not steps:
        return core
    made = next((c for c, parts in _NAMED.items() if parts == (type(core), steps[0])), None)
    return made(core.loc, core.scale) if made is not None and len(steps) == 1 else None


# --- an affine map of P, taken into the parameters of P or of Q -----------------------------------


def _moved(xp: Namespace, p: Any, q: Any, loc: Array, scale: Array) -> Array:
    """Return D(loc + scale·P‖Q)."""
    if isinstance(p, f.Independent) and isinstance(q, f.Independent):
        axes = p.reinterpreted_batch_ndims
        if axes == q.reinterpreted_batch_ndims:
            inner = Affine(p.base_dist, loc, scale)
            return closed_form(xp, f.Independent(inner, axes), q)
    if type(p) in _ANY_MAP:
        return closed_form(xp, _ANY_MAP[type(p)](xp, p, loc, scale), q)
    if type(q) in _ANY_MAP:
        return closed_form(xp, p, _ANY_MAP[type(q)](xp, q, -loc / scale, 1.0 / scale))
    if type(p) in _SCALED:
        fits = (loc == 0) & (scale > 0)
        value = closed_form(xp, _SCALED[type(p)](xp, p, xp.where(fits, scale, 1.0)), q)
        value = xp.where(fits, value + _unknown_slope(xp, loc, fits), math.nan)
        from_zero = p.support == q.support == "positive"
        return xp.where((loc < 0) | (scale < 0), math.inf, value) if from_zero else value
    fits = (loc == 0) & (scale == 1)
    slope = _unknown_slope(xp, loc, fits) + _unknown_slope(xp, scale - 1.0, fits)
    return xp.where(fits, closed_form(xp, p, q) + slope, math.nan)


def _location_scale(_: Namespace, d: Any, loc: Array, scale: Array) -> Any:
    return type(d)(loc + scale * d.loc, abs(scale) * d.scale)


def _uniform(xp: Namespace, d: f.Uniform, loc: Array, scale: Array) -> f.Uniform:
    low, high = loc + scale * d.low, loc + scale * d.high
    return f.Uniform(xp.where(scale < 0, high, low), xp.where(scale < 0, low, high))


def _gumbel(xp: Namespace, d: f.Gumbel, loc: Array, scale: Array) -> f.Gumbel:
    # A reflected one is no Gumbel.
    return f.Gumbel(loc + scale * d.loc, xp.where(scale < 0, math.nan, scale) * d.scale)


def _normal_vector(_: Namespace, d: f.MultivariateNormal, loc: Array, scale: Array) -> Any:
    center = loc + scale * d.loc
    scale = scale + 0.0 * center  # one for each component
    if d.scale_tril is not None:
        return f.MultivariateNormal(center, scale_tril=scale[..., :, None] * d.scale_tril)
    both = scale[..., :, None] * scale[..., None, :]
    if d.covariance_matrix is not None:
        return f.MultivariateNormal(center, covariance_matrix=both * d.covariance_matrix)
    return f.MultivariateNormal(center, precision_matrix=d.precision_matrix / both)


_ANY_MAP: Final[dict[Any, Callable[..., Any]]] = {
    f.Normal: _location_scale,
    f.Laplace: _location_scale,
    f.Cauchy: _location_scale,
    f.StudentT: lambda _, d, loc, scale: f.StudentT(
        d.df, loc + scale * d.loc, abs(scale) * d.scale
    ),
    f.Uniform: _uniform,
    f.Gumbel: _gumbel,
    f.MultivariateNormal: _normal_vector,
    f.MultivariateNormalDiag: lambda _, d, loc, scale: f.MultivariateNormalDiag(
        loc + scale * d.loc, abs(scale) * d.scale_diag
    ),
    f.LowRankMultivariateNormal: lambda _, d, loc, scale: f.LowRankMultivariateNormal(
        loc + scale * d.loc,
        (scale + 0.0 * d.loc)[..., :, None] * d.cov_factor,
        scale * scale * d.cov_diag,
    ),
}
"""Families that take an affine map into their parameters, whatever its sign."""

_SCALED: Final[dict[Any, Callable[..., Any]]] = {
    f.Exponential: lambda _, d, scale: f.Exponential(d.rate / scale),
    f.Gamma: lambda _, d, scale: f.Gamma(d.concentration, d.rate / scale),
    f.InverseGamma: lambda _, d, scale: f.InverseGamma(d.concentration, d.rate * scale),
    f.Weibull: lambda _, d, scale: f.Weibull(d.scale * scale, d.concentration),
    f.Pareto: lambda _, d, scale: f.Pareto(d.scale * scale, d.alpha),
    f.HalfNormal: lambda _, d, scale: f.HalfNormal(d.scale * scale),
    f.HalfCauchy: lambda _, d, scale: f.HalfCauchy(d.scale * scale),
    f.LogNormal: lambda xp, d, scale: f.LogNormal(d.loc + xp.log(scale), d.scale),
}
"""Families that take a positive factor into their parameters."""
