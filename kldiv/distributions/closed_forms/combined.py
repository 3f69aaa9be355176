"""Distributions made of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kldiv.distributions.families import Independent
from kldiv.distributions.registry import closed_form, register_kl
from kldiv.errors import ShapeError

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


@register_kl(Independent, Independent)
def independent(xp: Namespace, p: Independent, q: Independent) -> Array:
    """The sum of the base distributions' divergences over the axes of the event."""
    axes = p.reinterpreted_batch_ndims
    if axes != q.reinterpreted_batch_ndims:
        raise ShapeError(
            "two Independent must have as many event axes; got reinterpreted_batch_ndims "
            f"{axes} and {q.reinterpreted_batch_ndims}"
        )
    value = closed_form(xp, p.base_dist, q.base_dist)
    return xp.sum(value, axis=tuple(range(-axes, 0))) if axes else value
