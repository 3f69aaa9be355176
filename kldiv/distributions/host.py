"""One distribution, not a batch, on the host: its log-density, where its mass lies, its sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_TAILS = np.array([1e-12, 1e-9, 1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1])
_MIDDLE = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
_LEVELS = np.concatenate([[0, 0.001], _TAILS[4:], _MIDDLE, 1 - _TAILS[4:], [0.999, 1]])
_SAMPLES = 4000


@dataclass
class Density:
    """A distribution for integrals, sums and averages on the host."""

    log_prob: Callable[..., Any]
    """Takes x and, where ``by_logarithms`` says so, log x and log(1 − x) too."""
    sample: Callable[[int, Any], Any] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    discrete: bool = False
    vector: bool = False
    circle: bool = False
    quantile: Callable[[Any], Any] | None = None
    upper_quantile: Callable[[Any], Any] | None = None
    """The quantiles of 1 − u, exact where u is small."""
    marks: Callable[[], Any] | None = None
    """Returns places among which the mass lies, instead of quantiles."""
    cuts: tuple[float, ...] = ()
    """Where the density is not smooth, apart from the ends of its support."""
    underflows: bool = False
    """Whether −∞ inside the support may be a logarithm of an underflow."""
    by_logarithms: bool = False
    """Whether the log-density is as good at any distance from an edge at 0 or 1."""

    def landmarks(self) -> Any:
        """Return places among which the mass lies: quantiles, of samples if need be."""
        with np.errstate(all="ignore"):
            if self.marks is not None:
                parts = [self.marks()]
            elif self.quantile is not None:
                upper = self.upper_quantile or (lambda u: self.quantile(1 - u))  # type: ignore[misc]
                parts = [self.quantile(np.concatenate([_TAILS, _MIDDLE])), upper(_TAILS), self.cuts]
            elif self.sample is not None:
                drawn = np.sort(np.ravel(self.sample(_SAMPLES, np.random.default_rng(0))))
                parts = [drawn[np.rint(_LEVELS * (len(drawn) - 1)).astype(int)], self.cuts]
            else:
                parts = [self.cuts]
            found = np.unique(np.concatenate(parts).astype(float))
        return found[np.isfinite(found)]
