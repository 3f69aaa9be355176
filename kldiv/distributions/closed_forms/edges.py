"""Parameters at the edges of their domains, and others in their place for the formulas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from kldiv.distributions import families as f
from kldiv.distributions.base import changed

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace

_POSITIVE: Final = ("scale", "rate", "concentration", "concentration1", "concentration0", "alpha")
_DOMAINS: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(_POSITIVE, (0.0, math.inf)),
    "probs": (0.0, 1.0),
    "logits": (-math.inf, math.inf),
}


def _end(xp: Namespace, d: f.ContinuousBernoulli) -> tuple[Array, Array]:
    x, (low, high) = (d.logits, (-math.inf, math.inf)) if d.probs is None else (d.probs, (0.0, 1.0))
    above = x == high
    return above | (x == low), xp.where(above, 1.0, xp.zeros_like(x))


# Where a parameter at its edge makes a point mass, and of what place.
_POINTS: Final[dict[Any, Callable[[Namespace, Any], tuple[Array, Array]]]] = {
    f.ContinuousBernoulli: _end,
    f.Exponential: lambda xp, d: (d.rate == math.inf, xp.zeros_like(d.rate)),
    f.Gamma: lambda xp, d: (
        (d.rate == math.inf) | (d.concentration == 0),
        xp.zeros_like(d.rate),
    ),
    f.Gumbel: lambda _, d: (d.scale == 0, d.loc),
    f.HalfNormal: lambda xp, d: (d.scale == 0, xp.zeros_like(d.scale)),
    f.Laplace: lambda _, d: (d.scale == 0, d.loc),
    f.LogNormal: lambda xp, d: (d.scale == 0, xp.exp(d.loc)),
    f.Normal: lambda _, d: (d.scale == 0, d.loc),
    f.Uniform: lambda _, d: (d.low == d.high, d.low),
    f.Weibull: lambda xp, d: (d.scale == 0, xp.zeros_like(d.scale)),
}


def point(xp: Namespace, d: Any) -> Array:
    """Return where a point mass is, NaN for all else."""
    for family, found in _POINTS.items():
        if isinstance(d, family):
            there, place = found(xp, d)
            return xp.where(there, place, math.nan)
    (_, some), *_ = d.parameters()
    return xp.full_like(some, math.nan)


def inside(xp: Namespace, d: Any) -> tuple[Any, Any, Any]:
    """Return where parameters are inside their domain, where valid, and the family of safe ones."""
    values = dict(d.parameters())
    alive: Any = True
    valid: Any = True
    for name, value in values.items():
        low, high = _DOMAINS.get(name, (-math.inf, math.inf))
        valid = (value >= low) & (value <= high) & valid
        if name in _DOMAINS:
            alive = (value > low) & (value < high) & alive
    safe = {name: 3.0 if name == "alpha" else 0.5 for name in values}
    if isinstance(d, f.Uniform):
        alive, valid = (d.high > d.low) & alive, (d.high >= d.low) & valid
        safe = {"low": 0.25, "high": 0.75}
    return alive, valid, replaced(xp, d, alive, safe)


def replaced(xp: Namespace, d: Any, alive: Any, safe: dict[str, float]) -> Any:
    """Return the family with these parameters where it is not alive."""
    return changed(d, lambda name, value: xp.where(alive, value, safe[name]))


def at_edges(xp: Namespace, p: Any, q: Any, valid: Any, like: Array) -> Array:
    """Return 0 for two equal point masses, +∞ for others at an edge, NaN where not valid."""
    zero = xp.zeros_like(like)
    apart = xp.where(valid, zero + math.inf, math.nan)
    return xp.where(point(xp, p) == point(xp, q), zero, apart)
