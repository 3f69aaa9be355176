r"""Pairs of different families: D(P‖Q) = −H(P) − E[log q(x)], by the moments of P.

Each P below gives its entropy and the moments that it has in closed form; each Q gives −E[log q]
in terms of moments.  `PAIRS` says which of them go together.  Such pairs cannot be close, but for
those that contain each other, which have formulas of their own elsewhere.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from kldiv.distributions import families as f
from kldiv.distributions.closed_forms.shape import curvature, log_partition, mean, natural
from kldiv.distributions.registry import register_kl
from kldiv.formulas.remainders import EULER
from kldiv.formulas.special import log1p

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace

_LOG_2PI: Final = math.log(2 * math.pi)


class Moments:
    """What is known of a distribution P; what is not defined here has no closed form."""

    def __init__(self, xp: Namespace, p: Any) -> None:
        self.xp = xp
        self.p = p

    def negative_entropy(self) -> Array:
        """Return E log p(x)."""
        raise NotImplementedError

    def mean(self) -> Array:
        """Return E x."""
        raise NotImplementedError

    def variance(self) -> Array:
        """Return the variance."""
        raise NotImplementedError

    def log(self) -> Array:
        """Return E log x."""
        raise NotImplementedError

    def log_rest(self) -> Array:
        """Return E log(1 − x)."""
        raise NotImplementedError

    def deviation(self, center: Array) -> Array:
        """Return E |x − center|."""
        raise NotImplementedError

    def exponential(self, center: Array, scale: Array) -> Array:
        """Return E e^(−(x − center)/scale)."""
        raise NotImplementedError


class _Beta(Moments):
    def negative_entropy(self) -> Array:
        a, b = self.p.concentration1, self.p.concentration0
        return (a - 1.0) * self.log() + (b - 1.0) * self.log_rest() - log_beta(self.xp, a, b)

    def mean(self) -> Array:
        return self.p.concentration1 / (self.p.concentration1 + self.p.concentration0)

    def variance(self) -> Array:
        total = self.p.concentration1 + self.p.concentration0
        rest = self.p.concentration0 / total
        return self.mean() * rest / (total + 1.0)

    def log(self) -> Array:
        a, b = self.p.concentration1, self.p.concentration0
        return self.xp.special.digamma(a) - self.xp.special.digamma(a + b)

    def log_rest(self) -> Array:
        a, b = self.p.concentration1, self.p.concentration0
        return self.xp.special.digamma(b) - self.xp.special.digamma(a + b)


class _ContinuousBernoulli(Moments):
    def negative_entropy(self) -> Array:
        x = natural(self.xp, self.p)
        return x * self.mean() - log_partition(self.xp, x)

    def mean(self) -> Array:
        return mean(self.xp, natural(self.xp, self.p))

    def variance(self) -> Array:
        return curvature(self.xp, natural(self.xp, self.p))


class _Exponential(Moments):
    def negative_entropy(self) -> Array:
        return self.xp.log(self.p.rate) - 1.0

    def mean(self) -> Array:
        return 1.0 / self.p.rate

    def variance(self) -> Array:
        return 1.0 / (self.p.rate * self.p.rate)

    def log(self) -> Array:
        return -EULER - self.xp.log(self.p.rate)

    def exponential(self, center: Array, scale: Array) -> Array:
        rate = self.p.rate
        return self.xp.exp(center / scale) * rate * scale / (1.0 + rate * scale)


class _Gamma(Moments):
    def negative_entropy(self) -> Array:
        a = self.p.concentration
        special = self.xp.special
        inner = a + special.gammaln(a) + (1.0 - a) * special.digamma(a)
        return self.xp.log(self.p.rate) - inner

    def mean(self) -> Array:
        return self.p.concentration / self.p.rate

    def variance(self) -> Array:
        return self.mean() / self.p.rate

    def log(self) -> Array:
        return self.xp.special.digamma(self.p.concentration) - self.xp.log(self.p.rate)

    def exponential(self, center: Array, scale: Array) -> Array:
        inner = log1p(self.xp, 1.0 / (self.p.rate * scale))
        return self.xp.exp(center / scale - self.p.concentration * inner)


class _Gumbel(Moments):
    def negative_entropy(self) -> Array:
        return -self.xp.log(self.p.scale) - EULER - 1.0

    def mean(self) -> Array:
        return self.p.loc + EULER * self.p.scale

    def variance(self) -> Array:
        return (math.pi**2 / 6) * self.p.scale * self.p.scale


class _Laplace(Moments):
    def negative_entropy(self) -> Array:
        return -self.xp.log(2.0 * self.p.scale) - 1.0

    def mean(self) -> Array:
        return self.p.loc + 0.0 * self.p.scale

    def variance(self) -> Array:
        return 2.0 * self.p.scale * self.p.scale

    def exponential(self, center: Array, scale: Array) -> Array:
        # Finite for a scale below Q's only.
        t = self.p.scale / scale
        finite = t < 1.0
        inner = (1.0 - self.xp.where(finite, t, 0.0)) * (1.0 + t)
        value = self.xp.exp((center - self.p.loc) / scale) / inner
        return self.xp.where(finite, value, math.inf)


class _Normal(Moments):
    def negative_entropy(self) -> Array:
        return -self.xp.log(self.p.scale) - 0.5 * (1.0 + _LOG_2PI)

    def mean(self) -> Array:
        return self.p.loc + 0.0 * self.p.scale

    def variance(self) -> Array:
        return self.p.scale * self.p.scale

    def deviation(self, center: Array) -> Array:
        z = (self.p.loc - center) / self.p.scale
        density = math.sqrt(2 / math.pi) * self.xp.exp(-0.5 * z * z)
        both = self.xp.special.erf(z / math.sqrt(2))
        return self.p.scale * (density + z * both)

    def exponential(self, center: Array, scale: Array) -> Array:
        t = self.p.scale / scale
        return self.xp.exp((center - self.p.loc) / scale + 0.5 * t * t)


class _LogNormal(Moments):
    def negative_entropy(self) -> Array:
        return -self.xp.log(self.p.scale) - 0.5 * (1.0 + _LOG_2PI) - self.p.loc

    def mean(self) -> Array:
        return self.xp.exp(self.p.loc + 0.5 * self.p.scale * self.p.scale)

    def variance(self) -> Array:
        square = self.p.scale * self.p.scale
        return self.xp.exp(2.0 * self.p.loc + square) * self.xp.expm1(square)

    def log(self) -> Array:
        return self.p.loc + 0.0 * self.p.scale


class _HalfNormal(Moments):
    def negative_entropy(self) -> Array:
        return -self.xp.log(self.p.scale) + 0.5 * math.log(2 / math.pi) - 0.5

    def mean(self) -> Array:
        return math.sqrt(2 / math.pi) * self.p.scale

    def variance(self) -> Array:
        return (1 - 2 / math.pi) * self.p.scale * self.p.scale

    def log(self) -> Array:
        return self.xp.log(self.p.scale) - 0.5 * (EULER + math.log(2))


class _Pareto(Moments):
    def negative_entropy(self) -> Array:
        return self.xp.log(self.p.alpha / self.p.scale) - 1.0 - 1.0 / self.p.alpha

    def mean(self) -> Array:
        return self._finite(1.0, lambda a: a * self.p.scale / (a - 1.0))

    def variance(self) -> Array:
        square = self.p.scale * self.p.scale
        return self._finite(2.0, lambda a: square * a / ((a - 1.0) * (a - 1.0) * (a - 2.0)))

    def log(self) -> Array:
        return self.xp.log(self.p.scale) + 1.0 / self.p.alpha

    def _finite(self, above: float, moment: Callable[[Array], Array]) -> Array:
        fits = self.p.alpha > above
        value = moment(self.xp.where(fits, self.p.alpha, above + 1.0))
        return self.xp.where(fits, value, math.inf)


class _Weibull(Moments):
    def negative_entropy(self) -> Array:
        k = self.p.concentration
        return self.xp.log(k / self.p.scale) - EULER * (1.0 - 1.0 / k) - 1.0

    def mean(self) -> Array:
        gammaln = self.xp.special.gammaln
        return self.p.scale * self.xp.exp(gammaln(1.0 + 1.0 / self.p.concentration))

    def variance(self) -> Array:
        gammaln = self.xp.special.gammaln
        second = self.xp.exp(gammaln(1.0 + 2.0 / self.p.concentration))
        return self.p.scale * self.p.scale * second - self.mean() * self.mean()

    def log(self) -> Array:
        return self.xp.log(self.p.scale) - EULER / self.p.concentration


class _Uniform(Moments):
    def negative_entropy(self) -> Array:
        return -self.xp.log(self.p.high - self.p.low)

    def mean(self) -> Array:
        return 0.5 * (self.p.low + self.p.high)

    def variance(self) -> Array:
        width = self.p.high - self.p.low
        return width * width / 12.0

    def log(self) -> Array:
        return self._mean_log(self.p.low, self.p.high)

    def log_rest(self) -> Array:
        return self._mean_log(1.0 - self.p.high, 1.0 - self.p.low)

    def deviation(self, center: Array) -> Array:
        above, below = self.p.high - center, self.p.low - center
        return 0.5 * (above * abs(above) - below * abs(below)) / (above - below)

    def exponential(self, center: Array, scale: Array) -> Array:
        start, width = (center - self.p.low) / scale, (self.p.high - self.p.low) / scale
        return self.xp.exp(start) * -self.xp.expm1(-width) / width

    def _mean_log(self, low: Array, high: Array) -> Array:
        """Return the mean of log x, of what is ≥ 0; the support is looked at elsewhere."""
        xp = self.xp
        low, high = (xp.where(x > 0, x, 0.0) for x in (low, high))
        parts = [x * xp.log(xp.where(x > 0, x, 1.0)) for x in (low, high)]
        width = xp.where(high > low, high - low, 1.0)
        return (parts[1] - parts[0]) / width - 1.0


# --- −E log q -------------------------------------------------------------------------------------


def log_beta(xp: Namespace, a: Array, b: Array) -> Array:
    """Return log B(a, b)."""
    gammaln = xp.special.gammaln
    return gammaln(a) + gammaln(b) - gammaln(a + b)


def _beta(xp: Namespace, m: Moments, q: f.Beta) -> Array:
    a, b = q.concentration1 - 1.0, q.concentration0 - 1.0
    inner = _times(xp, a, m.log) + _times(xp, b, m.log_rest)
    return log_beta(xp, q.concentration1, q.concentration0) - inner


def _times(xp: Namespace, factor: Array, moment: Callable[[], Array]) -> Array:
    """Return the product, 0 where the factor is: an infinite moment has no say there."""
    value = moment()
    nothing = (factor == 0) & ~xp.isfinite(value)
    return factor * xp.where(nothing, 0.0, value)


def _continuous_bernoulli(xp: Namespace, m: Moments, q: f.ContinuousBernoulli) -> Array:
    x = natural(xp, q)
    return log_partition(xp, x) - x * m.mean()


def _exponential(xp: Namespace, m: Moments, q: f.Exponential) -> Array:
    return q.rate * m.mean() - xp.log(q.rate)


def _gamma(xp: Namespace, m: Moments, q: f.Gamma) -> Array:
    a = q.concentration
    normal = xp.special.gammaln(a) - a * xp.log(q.rate)
    return normal - _times(xp, a - 1.0, m.log) + q.rate * m.mean()


def _gumbel(xp: Namespace, m: Moments, q: f.Gumbel) -> Array:
    z = (m.mean() - q.loc) / q.scale
    return xp.log(q.scale) + z + m.exponential(q.loc, q.scale)


def _laplace(xp: Namespace, m: Moments, q: f.Laplace) -> Array:
    return xp.log(2.0 * q.scale) + m.deviation(q.loc) / q.scale


def _normal(xp: Namespace, m: Moments, q: f.Normal) -> Array:
    z = (m.mean() - q.loc) / q.scale
    spread = m.variance() / (q.scale * q.scale)
    return 0.5 * (_LOG_2PI + z * z + spread) + xp.log(q.scale)


def _half_normal(xp: Namespace, m: Moments, q: f.HalfNormal) -> Array:
    square = m.mean() * m.mean() + m.variance()
    return 0.5 * math.log(math.pi / 2) + xp.log(q.scale) + 0.5 * square / (q.scale * q.scale)


def _pareto(xp: Namespace, m: Moments, q: f.Pareto) -> Array:
    return (q.alpha + 1.0) * m.log() - xp.log(q.alpha) - q.alpha * xp.log(q.scale)


def _uniform(xp: Namespace, m: Moments, q: f.Uniform) -> Array:  # noqa: ARG001
    return xp.log(q.high - q.low)


# --- which go together ----------------------------------------------------------------------------

_MOMENTS: Final[dict[Any, type[Moments]]] = {
    f.Beta: _Beta,
    f.ContinuousBernoulli: _ContinuousBernoulli,
    f.Exponential: _Exponential,
    f.Gamma: _Gamma,
    f.Gumbel: _Gumbel,
    f.HalfNormal: _HalfNormal,
    f.Laplace: _Laplace,
    f.LogNormal: _LogNormal,
    f.Normal: _Normal,
    f.Pareto: _Pareto,
    f.Uniform: _Uniform,
    f.Weibull: _Weibull,
}
_CROSS: Final[dict[Any, Callable[..., Array]]] = {
    f.Beta: _beta,
    f.ContinuousBernoulli: _continuous_bernoulli,
    f.Exponential: _exponential,
    f.Gamma: _gamma,
    f.Gumbel: _gumbel,
    f.HalfNormal: _half_normal,
    f.Laplace: _laplace,
    f.Normal: _normal,
    f.Pareto: _pareto,
    f.Uniform: _uniform,
}

PAIRS: Final[dict[Any, tuple[Any, ...]]] = {
    f.Beta: (f.ContinuousBernoulli, f.Exponential, f.Gamma, f.HalfNormal, f.Normal, f.Uniform),
    f.ContinuousBernoulli: (f.Exponential, f.HalfNormal, f.Normal, f.Uniform),
    f.Exponential: (f.Gumbel, f.HalfNormal, f.Normal),
    f.Gamma: (f.Gumbel, f.HalfNormal, f.Normal),
    f.Gumbel: (f.Normal,),
    f.HalfNormal: (f.Exponential, f.Gamma, f.Normal),
    f.Laplace: (f.Gumbel, f.Normal),
    f.LogNormal: (f.Exponential, f.Gamma, f.HalfNormal, f.Normal),
    f.Normal: (f.Gumbel, f.Laplace),
    f.Pareto: (f.Exponential, f.Gamma, f.HalfNormal, f.Normal),
    f.Uniform: (
        f.Beta,
        f.ContinuousBernoulli,
        f.Exponential,
        f.Gamma,
        f.Gumbel,
        f.HalfNormal,
        f.Laplace,
        f.Normal,
        f.Pareto,
    ),
    f.Weibull: (f.Gamma, f.HalfNormal, f.Normal),
}

# Where Q's support depends on parameters, or P's does.
_BOUNDS: Final[dict[Any, Callable[[Any], tuple[Any, Any]]]] = {
    f.Uniform: lambda d: (d.low, d.high),
    f.Pareto: lambda d: (d.scale, math.inf),
    f.Beta: lambda _: (0.0, 1.0),
    f.ContinuousBernoulli: lambda _: (0.0, 1.0),
    f.Exponential: lambda _: (0.0, math.inf),
    f.Gamma: lambda _: (0.0, math.inf),
    f.HalfNormal: lambda _: (0.0, math.inf),
}


def _bounds(d: Any) -> tuple[Any, Any]:
    """Return where the support starts and ends."""
    everywhere = (-math.inf, math.inf)
    return next((bounds(d) for cls, bounds in _BOUNDS.items() if isinstance(d, cls)), everywhere)


def _formula(of_p: type[Moments], of_q: Callable[..., Array]) -> Callable[..., Array]:
    def cross(xp: Namespace, p: Any, q: Any) -> Array:
        """−H(P) − E[log q], by the moments of P."""
        moments = of_p(xp, p)
        value = moments.negative_entropy() + of_q(xp, moments, q)
        if isinstance(p, f.Uniform) or isinstance(q, f.Uniform):
            (low_p, high_p), (low_q, high_q) = _bounds(p), _bounds(q)
            outside = (low_p < low_q) | (high_p > high_q)
            value = xp.where(outside, xp.where(xp.isnan(value), value, math.inf), value)
        return value

    return cross


for _p, _qs in PAIRS.items():
    for _q in _qs:
        register_kl(_p, _q)(_formula(_MOMENTS[_p], _CROSS[_q]))
