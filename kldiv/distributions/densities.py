"""Which distributions `kldiv.distributions.numerical` can integrate and sample, and as what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.distributions import families as f
from kldiv.distributions.base import Distribution
from kldiv.distributions.foreign import Opaque
from kldiv.distributions.wrappers import WRAPPERS

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_DENSITY = (f.Multinomial, f.HalfCauchy, f.Chi, f.LogitNormal, f.Delta, *WRAPPERS)
"""What `kldiv.distributions.numerical` has no density of."""


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
    if has_density(d):
        return d
    if type(d) in _STAND_INS and not any(getattr(v, "shape", ()) for _, v in d.parameters()):
        from scipy import stats  # noqa: PLC0415 - optional

        return Opaque(_STAND_INS[type(d)](stats, d))
    return d if isinstance(original, Distribution) else Opaque(original)


class _LogitNormal:
    """A LogitNormal with the methods of SciPy's frozen distributions."""

    def __init__(self, stats: Any, d: f.LogitNormal) -> None:
        self._normal = stats.norm(float(d.loc), float(d.scale))

    def logpdf(self, x: Any) -> Any:
        x = np.asarray(x)
        logs = np.log(x), np.log1p(-x)
        return self._normal.logpdf(logs[0] - logs[1]) - logs[0] - logs[1]

    def rvs(self, size: int, random_state: Any) -> Any:
        return 1.0 / (1.0 + np.exp(-self._normal.rvs(size=size, random_state=random_state)))

    def support(self) -> tuple[float, float]:
        return 0.0, 1.0


_STAND_INS: dict[Any, Callable[[Any, Any], Any]] = {
    f.Chi: lambda stats, d: stats.chi(float(d.df)),
    f.HalfCauchy: lambda stats, d: stats.halfcauchy(scale=float(d.scale)),
    f.LogitNormal: _LogitNormal,
}
