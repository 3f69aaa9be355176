"""Distributions made of others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kldiv.distributions.base import Distribution
from kldiv.distributions.closed_forms.discrete import times
from kldiv.distributions.closed_forms.multivariate import NORMALS
from kldiv.distributions.families import Independent, MultivariateNormalDiag, Normal
from kldiv.distributions.registry import closed_form, no_closed_form, register_kl
from kldiv.distributions.wrappers import Masked, Sample
from kldiv.errors import ShapeError

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(Independent, Independent)
def independent(xp: Namespace, p: Independent, q: Independent) -> Array:
    """The sum of the base distributions' divergences over the axes of the event."""
    p, q = _flat(p), _flat(q)
    axes_p, axes_q = p.reinterpreted_batch_ndims, q.reinterpreted_batch_ndims
    axes = min(axes_p, axes_q)
    # With more axes on one side, the other's base has them as the axes of its own events.
    inner_p, inner_q = _inner(p, axes_p - axes), _inner(q, axes_q - axes)
    value = closed_form(xp, inner_p, inner_q)
    return xp.sum(value, axis=tuple(range(-axes, 0))) if axes else value


def _flat(d: Independent) -> Independent:
    """Return an Independent whose base is none."""
    axes, base = d.reinterpreted_batch_ndims, d.base_dist
    while isinstance(base, Independent):
        axes, base = axes + base.reinterpreted_batch_ndims, base.base_dist
    return Independent(base, axes)


def _inner(d: Independent, axes: int) -> Any:
    return Independent(d.base_dist, axes) if axes else d.base_dist


def independent_normal(xp: Namespace, p: Any, q: Any) -> Array:
    """A MultivariateNormalDiag's, where the base is a Normal."""
    return closed_form(xp, _vector(xp, p, p, q), _vector(xp, q, p, q))


def _vector(xp: Namespace, d: Any, p: Any, q: Any) -> Any:
    if not isinstance(d, Independent):
        return d
    flat = _flat(d)
    if not isinstance(flat.base_dist, Normal) or flat.reinterpreted_batch_ndims != 1:
        raise no_closed_form(p, q)
    return MultivariateNormalDiag(*xp.broadcast_arrays(flat.base_dist.loc, flat.base_dist.scale))


for _other in NORMALS:
    register_kl(Independent, _other)(independent_normal)
    register_kl(_other, Independent)(independent_normal)


@register_kl(Masked, Masked)
@register_kl(Masked, Distribution)
@register_kl(Distribution, Masked)
def masked(xp: Namespace, p: Any, q: Any) -> Array:
    """The bases' divergence, 0 where both masks are 0; NaN where one of them is."""
    (p, of_p), (q, of_q) = (_mask(d) for d in (p, q))
    value = closed_form(xp, p, q)
    kept = (of_p != 0) & (of_q != 0)
    dropped = (of_p == 0) & (of_q == 0)
    return xp.where(kept, value, xp.where(dropped, 0.0, math.nan))


@register_kl(Sample, Sample)
def sample(xp: Namespace, p: Sample, q: Sample) -> Array:
    """The bases' divergence, times the number of draws."""
    if p.sample_shape != q.sample_shape:
        raise ShapeError(
            "two Sample must have as many draws; got sample_shape "
            f"{p.sample_shape} and {q.sample_shape}"
        )
    return times(xp, math.prod(p.sample_shape), closed_form(xp, p.base_dist, q.base_dist))


def _mask(d: Any) -> tuple[Any, Any]:
    return (d.base_dist, d.mask) if isinstance(d, Masked) else (d, 1.0)
