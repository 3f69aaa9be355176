"""The distributions that `kldiv.distributions.numerical` can integrate and sample."""

from __future__ import annotations

from typing import Any

from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution
from kldiv.distributions.foreign import Opaque
from kldiv.distributions.wrappers import WRAPPERS

_NO_DENSITY = (f.Multinomial, f.Delta, *WRAPPERS)
"""Families that `kldiv.distributions.numerical` has no density of."""


def has_density(d: Distribution) -> bool:
    """Return whether `kldiv.distributions.numerical` can integrate and sample it."""
    if isinstance(d, Opaque):
        if hasattr(d.original, "rvs") or hasattr(d.original, "logpdf"):
            return True
        steps = getattr(d.original, "transforms", ())
        torchs = type(d.original).__module__.startswith("torch")
        return torchs and all(step.bijective for step in steps)  # else PyTorch has no density
    if isinstance(d, _NO_DENSITY) or not isinstance(d, tuple(f.FAMILIES.values())):
        return False
    return all(has_density(v) for _, v in d.parameters() if isinstance(v, Distribution))


def with_density(d: Distribution, original: Any) -> Distribution:
    """Return a distribution that can be integrated and sampled, where there is one."""
    return d if has_density(d) or isinstance(original, Distribution) else Opaque(original)
