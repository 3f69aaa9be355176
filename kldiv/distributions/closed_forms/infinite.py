"""Pairs that are infinitely far apart whatever their parameters, though supports do not say it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv.distributions import families as f
from kldiv.distributions.closed_forms.multivariate import NORMALS
from kldiv.distributions.registry import infinite, register_kl

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace


def without_mean(xp: Namespace, p: Any, q: Any) -> Array:
    """+∞: P has no mean."""
    return infinite(xp, p, q)


def singular(xp: Namespace, p: Any, q: Any) -> Array:
    """+∞: a simplex has no volume."""
    return infinite(xp, p, q)


for _q in (f.Chi2, f.Exponential, f.Gamma, f.Gumbel, f.HalfNormal, f.Laplace, f.Normal):
    register_kl(f.HalfCauchy, _q)(without_mean)
    if _q.support == "real":
        register_kl(f.Cauchy, _q)(without_mean)
for _normal in NORMALS:
    register_kl(f.Dirichlet, _normal)(singular)
    register_kl(_normal, f.Dirichlet)(singular)
