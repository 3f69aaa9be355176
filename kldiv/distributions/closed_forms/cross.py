r"""Pairs of different families: the distance of P from Q's family, and of Q from its best member.

Some of these pairs come as close as one likes: a Gamma of large concentration to a Normal, a Beta
to a Gamma, nearly uniform ones to each other.  −H(P) − E[log q] by textbook moments loses all of
such a divergence, and the last digits of large concentrations anyway.  So each formula takes the
terms that cancel out by algebra:

* Q Normal: the negentropy of P, which depends on its shape alone, and D of two Normals.
* Q Gamma, Exponential: c φ(−w), w the logarithm of the ratio of means, and a term of the shapes.
* Q Gumbel: φ and the cumulant of P about its mean.
* Pairs that have a member in common: remainders about that member.

At its edge a parameter stands for its limit: +∞, or 0 between two equal point masses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from kldiv.distributions import families as f
from kldiv.distributions.closed_forms.edges import at_edges, inside, replaced
from kldiv.distributions.closed_forms.location import quotient
from kldiv.distributions.closed_forms.shape import (
    curvature,
    log_decay,
    mean,
    natural,
    of_concentrations,
    of_logits,
)
from kldiv.distributions.registry import register_kl
from kldiv.formulas.binet import (
    beta_negentropy,
    binet,
    binet_remainder,
    binet_slope,
    binet_slope_growth,
    gamma_negentropy,
)
from kldiv.formulas.measures import relative_entropy
from kldiv.formulas.numbers import NEAR
from kldiv.formulas.remainders import (
    EULER,
    gamma_excess,
    lgamma_remainder,
    ratio_phi,
    times_phi,
)
from kldiv.formulas.special import (
    artanh_parts,
    expm1,
    log1p,
    log1p_gap,
    log_ratio,
    phi,
    phi_near,
    relative,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace

_LOG_2PI: Final = math.log(2 * math.pi)
_NORMAL: Final = 0.5 * (1.0 + _LOG_2PI)
"""The entropy of a standard Normal."""


_SHAPES: Final[dict[Any, tuple[type[Shape], tuple[Any, ...]]]] = {}
"""For each family P its moments, and the families Q whose form takes these and no more of P."""


class Shape:
    """The moments of a distribution P; those not defined here have no closed form."""

    def __init_subclass__(cls, of: Any = None, against: tuple[Any, ...] = ()) -> None:
        """Enter the moments of a family in the table."""
        if of is not None:
            _SHAPES[of] = cls, against

    def __init__(self, xp: Namespace, p: Any) -> None:
        self.xp = xp
        self.p = p

    def negentropy(self) -> Array | float:
        """Return the entropy of the Normal of P's mean and variance, less P's."""
        raise NotImplementedError

    def mean(self) -> Array:
        """Return E x."""
        raise NotImplementedError

    def deviation(self) -> Array:
        """Return the standard deviation."""
        raise NotImplementedError

    def mean_from(self, center: Array | float) -> Array:
        """Return E x − center."""
        return self.mean() - center

    def standardised(self, center: Array | float, scale: Array) -> tuple[Array, Array]:
        """Return E x − center and the standard deviation, over scale."""
        return self.mean_from(center) / scale, self.deviation() / scale

    def negative_entropy(self, unit: Array) -> Array:
        """Return E log(unit · p(x))."""
        return (self.negentropy() - _NORMAL) + log_ratio(self.xp, unit, self.deviation())

    def log_gap(self) -> Array | float:
        """Return log E x − E log x ≥ 0."""
        raise NotImplementedError

    def log_entropy(self) -> Array | float:
        """Return the entropy of log x."""
        raise NotImplementedError

    def distance(self, center: Array) -> Array:
        """Return E |x − center|."""
        raise NotImplementedError

    def cumulant(self, scale: Array) -> Array:
        """Return log E e^(−(x − E x)/scale) ≥ 0."""
        raise NotImplementedError

    def fall(self, center: Array, scale: Array) -> Array:
        """Return −log E e^(−(x − center)/scale), where that is finite."""
        return self.mean_from(center) / scale - self.cumulant(scale)


class _Located(Shape):
    """A family of a scale or a rate, and mostly of a location.

    ``standard`` has the mean and the deviation at loc 0 and scale 1, and the negentropy.
    """

    standard: tuple[float, float, float]

    def __init__(self, xp: Namespace, p: Any) -> None:
        super().__init__(xp, p)
        self.loc = getattr(p, "loc", 0.0)
        self.scale = p.scale if hasattr(p, "scale") else 1.0 / p.rate

    def negentropy(self) -> float:
        return self.standard[2]

    def mean(self) -> Array:
        return self.loc + self.standard[0] * self.scale

    def mean_from(self, center: Array) -> Array:
        return (self.loc - center) + self.standard[0] * self.scale

    def deviation(self) -> Array:
        return self.standard[1] * self.scale + 0.0 * self.loc


class _Normal(_Located, of=f.Normal, against=(f.Gumbel, f.Laplace)):
    standard = (0.0, 1.0, 0.0)

    def distance(self, center: Array) -> Array:
        gap = self.p.loc - center
        far = abs(gap) > 40.0 * self.p.scale  # all mass is on one side
        z = self.xp.where(far, 0.0, gap) / self.p.scale
        density = math.sqrt(2 / math.pi) * self.xp.exp(-0.5 * z * z)
        near = self.p.scale * density + gap * self.xp.special.erf(z / math.sqrt(2))
        return self.xp.where(far, abs(gap), near)

    def cumulant(self, scale: Array) -> Array:
        t = self.p.scale / scale
        return 0.5 * t * t


class _Laplace(_Located, of=f.Laplace, against=(f.Gumbel, f.Normal)):
    standard = (0.0, math.sqrt(2), _NORMAL - 1.0 - 0.5 * math.log(2))

    def cumulant(self, scale: Array) -> Array:
        # Finite for a scale below Q's only.
        t = self.p.scale / scale
        finite = t < 1.0
        square = self.xp.where(finite, t * t, 0.0)
        return self.xp.where(finite, -log1p(self.xp, -square), math.inf)


class _Gumbel(_Located, of=f.Gumbel, against=(f.Normal,)):
    standard = (
        EULER,
        math.pi / math.sqrt(6),
        _NORMAL + 0.5 * math.log(math.pi**2 / 6) - 1.0 - EULER,
    )


class _HalfNormal(_Located, of=f.HalfNormal, against=(f.Exponential, f.Gamma, f.Normal)):
    standard = (
        math.sqrt(2 / math.pi),
        math.sqrt(1 - 2 / math.pi),
        _NORMAL + 0.5 * math.log((1 - 2 / math.pi) * 2 / math.pi) - 0.5,
    )

    def log_gap(self) -> float:
        return 0.5 * (EULER + math.log(4 / math.pi))

    def log_entropy(self) -> float:
        return 0.5 * (1.0 + EULER + math.log(math.pi))


class _Exponential(_Located, of=f.Exponential, against=(f.Gumbel, f.HalfNormal, f.Normal)):
    standard = (1.0, 1.0, _NORMAL - 1.0)

    def cumulant(self, scale: Array) -> Array:
        return log1p_gap(self.xp, self.scale / scale)

    def fall(self, center: Array, scale: Array) -> Array:
        return log1p(self.xp, self.scale / scale) - center / scale


class _Gamma(Shape, of=f.Gamma, against=(f.Gumbel, f.HalfNormal, f.Normal)):
    def negentropy(self) -> Array:
        return gamma_negentropy(self.xp, self.p.concentration)

    def mean(self) -> Array:
        return self.p.concentration / self.p.rate

    def deviation(self) -> Array:
        return self.xp.sqrt(self.p.concentration) / self.p.rate

    def cumulant(self, scale: Array) -> Array:
        return self.p.concentration * log1p_gap(self.xp, 1.0 / self.p.rate / scale)

    def fall(self, center: Array, scale: Array) -> Array:
        t = 1.0 / self.p.rate / scale
        direct = self.p.concentration * log1p(self.xp, t) - center / scale
        return self.xp.where(t > 1.0, direct, super().fall(center, scale))


class _LogNormal(Shape, of=f.LogNormal, against=(f.HalfNormal,)):
    def _square(self) -> Array:
        return self.p.scale * self.p.scale

    def negentropy(self) -> Array:
        x = self._square()
        return x + 0.5 * log_decay(self.xp, x)

    def mean(self) -> Array:
        return self.xp.exp(self.p.loc + 0.5 * self._square())

    def deviation(self) -> Array:
        x = self._square()
        # Both factors as roots: of e^x − 1 alone there would be no number for large x.
        root = self.xp.sqrt(-expm1(self.xp, -x))
        return self.xp.exp(self.p.loc + x) * root

    def standardised(self, center: Array | float, scale: Array) -> tuple[Array, Array]:
        # Roots, as the moments may be beyond the numbers.
        x = self._square()
        mean, wide = (self.xp.exp(0.5 * (self.p.loc + part)) for part in (0.5 * x, x))
        rest = self.xp.sqrt(-expm1(self.xp, -x))
        return (mean / scale) * mean - center / scale, (wide / scale) * wide * rest

    def log_deviation(self) -> Array:
        """Return the logarithm, where the deviation itself is too small a number or too large."""
        x = self._square()
        return self.p.loc + x + 0.5 * self.xp.log(-expm1(self.xp, -x))

    def negative_entropy(self, unit: Array) -> Array:
        return self.xp.log(unit / self.p.scale) - self.p.loc - _NORMAL


class _Pareto(Shape, of=f.Pareto, against=(f.Exponential, f.HalfNormal)):
    def _above(self, least: float) -> tuple[Array, Array]:
        fits = self.p.alpha > least
        return fits, self.xp.where(fits, self.p.alpha, least + 1.0)

    def mean(self) -> Array:
        fits, a = self._above(1.0)
        return self.xp.where(fits, self.p.scale + self.p.scale / (a - 1.0), math.inf)

    def mean_from(self, center: Array) -> Array:
        fits, a = self._above(1.0)
        return self.xp.where(fits, (self.p.scale - center) + self.p.scale / (a - 1.0), math.inf)

    def deviation(self) -> Array:
        fits, a = self._above(2.0)
        value = self.p.scale / (a - 1.0) * self.xp.sqrt(a / (a - 2.0))
        return self.xp.where(fits, value, math.inf)

    def negative_entropy(self, unit: Array) -> Array:
        a = self.p.alpha
        finite = unit < math.inf  # also a mean, which may be infinite
        unit = self.xp.where(finite, unit, 1.0)
        root = self.xp.sqrt(unit) / self.xp.sqrt(self.p.scale) * self.xp.sqrt(a)
        value = 2.0 * self.xp.log(root) - 1.0 - 1.0 / a
        return self.xp.where(finite, value, math.inf)

    def log_gap(self) -> Array:
        fits, a = self._above(1.0)
        own = relative(self.xp, a, a - 1.0, self.xp.ones_like(a)) / a
        return self.xp.where(fits, own, math.inf)

    def log_entropy(self) -> Array:
        return 1.0 - self.xp.log(self.p.alpha)


class _Weibull(Shape, of=f.Weibull, against=(f.HalfNormal, f.Normal)):
    """With t = 1/k: E x = scale · Γ(1 + t), the variance Γ(1 + 2t) − Γ(1 + t)² of that unit."""

    def __init__(self, xp: Namespace, p: Any) -> None:
        super().__init__(xp, p)
        self.t = 1.0 / p.concentration
        # Not so small that its square is 0.
        self.part = xp.where(self.t > 1e-12, self.t, 1e-12)
        t, one = self.part, xp.ones_like(self.t)
        middle = 1.0 + t
        sides = ((one, middle, middle), (middle, middle + t, one), (t, t, -t))
        stacked = (xp.stack(x, axis=-1) for x in sides)
        found = lgamma_remainder(xp, *stacked)
        self.rise = found[..., 0]  # log Γ(1 + t) + γt
        self.bend = found[..., 1] + found[..., 2]  # log Γ(1 + 2t) − 2 log Γ(1 + t)

    def negentropy(self) -> Array:
        t, bend = self.part, self.bend
        half = 0.5 * (bend + log_decay(self.xp, bend) + self.xp.log(bend / t / t))
        return (_NORMAL - 1.0 - EULER) + (self.rise + half)

    def mean(self) -> Array:
        root = self.xp.exp(0.5 * (self.rise - EULER * self.t))  # e^… may be beyond the numbers
        return (self.p.scale * root) * root

    def mean_from(self, center: Array) -> Array:
        more = expm1(self.xp, self.rise - EULER * self.t)
        return (self.p.scale - center) + self.p.scale * more

    def deviation(self) -> Array:
        t, bend = self.part, self.bend
        root = self.xp.sqrt(-expm1(self.xp, -bend) / t / t)
        return self.p.scale * self.t * root * self.xp.exp(self.rise - EULER * self.t + 0.5 * bend)

    def negative_entropy(self, unit: Array) -> Array:
        ratio = log_ratio(self.xp, unit / self.p.scale, self.t)
        return ratio + EULER * self.t - (1.0 + EULER)

    def log_gap(self) -> Array:
        return self.rise

    def log_entropy(self) -> Array:
        return self.xp.log(self.t) + (1.0 + EULER)


class _Beta(Shape, of=f.Beta, against=(f.HalfNormal, f.Normal)):
    def negentropy(self) -> Array:
        return beta_negentropy(self.xp, self.p.concentration1, self.p.concentration0)

    def mean(self) -> Array:
        return _share(self.xp, self.p.concentration1, self.p.concentration0)

    def deviation(self) -> Array:
        a, b = self.p.concentration1, self.p.concentration0
        total = a + b
        return self.xp.sqrt((a / total) * (b / total) / (total + 1.0))


def _share(xp: Namespace, a: Array, b: Array) -> Array:
    """Return a/(a + b); near 1 its slope in a would cancel."""
    total = a + b
    return xp.where(a < b, a / total, 1.0 - b / total)


class _ContinuousBernoulli(Shape, of=f.ContinuousBernoulli, against=(f.HalfNormal, f.Normal)):
    def negentropy(self) -> Array:
        xp = self.xp
        x = natural(xp, self.p)
        return _NORMAL + 0.5 * xp.log(curvature(xp, x)) + _from_even(xp, x)

    def mean(self) -> Array:
        return mean(self.xp, natural(self.xp, self.p))

    def deviation(self) -> Array:
        return self.xp.sqrt(curvature(self.xp, natural(self.xp, self.p)))


class _Uniform(
    Shape,
    of=f.Uniform,
    against=(f.Exponential, f.Gamma, f.Gumbel, f.HalfNormal, f.Laplace, f.Normal),
):
    def negentropy(self) -> float:
        return _NORMAL - 0.5 * math.log(12)

    def mean(self) -> Array:
        return 0.5 * self.p.low + 0.5 * self.p.high

    def mean_from(self, center: Array) -> Array:
        return 0.5 * (self.p.low - center) + 0.5 * (self.p.high - center)

    def deviation(self) -> Array:
        return (self.p.high - self.p.low) / math.sqrt(12)

    def log_gap(self) -> Array:
        return _log_gap_of_interval(self.xp, self.p.low, self.p.high, self.p.high - self.p.low)

    def log_entropy(self) -> Array:
        return self.xp.log((self.p.high - self.p.low) / self.mean()) + self.log_gap()

    def distance(self, center: Array) -> Array:
        above, below = self.p.high - center, center - self.p.low
        width = self.p.high - self.p.low
        inside = (above > 0) & (below > 0)
        parts = (self.xp.where(inside, x, 0.0) for x in (above, below))
        within = 0.5 * sum(x * (x / width) for x in parts)
        return self.xp.where(inside, within, 0.5 * abs(above - below))

    def cumulant(self, scale: Array) -> Array:
        width = (self.p.high - self.p.low) / scale
        return 0.5 * width + log_decay(self.xp, width)

    def fall(self, center: Array, scale: Array) -> Array:
        width = (self.p.high - self.p.low) / scale
        direct = (self.p.low - center) / scale - log_decay(self.xp, width)
        return self.xp.where(width > 1.0, direct, super().fall(center, scale))


def _log_gap_of_interval(xp: Namespace, low: Array, high: Array, width: Array) -> Array:
    """Return log E x − E log x of a uniform x between low ≥ 0 and high."""
    low, high = xp.where(low > 0, low, 0.0), xp.where(high > 0, high, 1.0)
    middle = 0.5 * low + 0.5 * high
    z, rest = artanh_parts(xp, 0.5 * width / middle)
    near = -0.5 * log1p(xp, -z * z) - rest / (2.0 * xp.where(z == 0, 1.0, z))
    low, high = low / middle, high / middle
    ends = high * xp.log(high) - low * xp.log(xp.where(low > 0, low, 1.0))
    small = 0.5 * width / middle < 0.3
    return xp.where(small, near, 1.0 - ends / xp.where(small, 1.0, high - low))


# --- by the shape of P ----------------------------------------------------------------------------


def _normal(xp: Namespace, m: Shape, q: f.Normal) -> Array:
    """The negentropy of P + D of the Normal of its mean and variance."""
    z = quotient(xp, m.mean_from(q.loc), q.scale)
    return m.negentropy() + 0.5 * (ratio_phi(xp, q.scale, m.deviation(), 2) + z * z)


def _by_second_moment(xp: Namespace, m: Shape, loc: Array | float, scale: Array) -> Array:
    """Return −H(P) − E[log q] of a Normal q."""
    a, b = m.standardised(loc, scale)
    square = a * a + b * b
    value = m.negative_entropy(scale) + 0.5 * square + 0.5 * _LOG_2PI
    return xp.where(square == math.inf, math.inf, value)


def _half_normal(xp: Namespace, m: Shape, q: f.HalfNormal) -> Array:
    """−H(P) − E[log q], by the second moment of P."""
    return _by_second_moment(xp, m, 0.0, q.scale) - math.log(2)


def _gumbel(xp: Namespace, m: Shape, q: f.Gumbel) -> Array:
    """φ(u) + κ + 1 − H(P/β), κ = log E e^(−(x − E x)/β), u = −log E e^(−(x − μ)/β)."""
    cumulant = m.cumulant(q.scale)
    finite = cumulant < math.inf
    kept = xp.where(finite, cumulant, 0.0)
    u = xp.where(finite, m.fall(q.loc, q.scale), 0.0)
    close = abs(u) < NEAR
    near = phi_near(xp, xp.clip(u, -NEAR, NEAR)) + kept
    # Far apart κ, whose slope may be large, is in neither term.
    far = (xp.exp(-xp.where(close, 0.0, u)) - 1.0) + m.mean_from(q.loc) / q.scale
    value = xp.where(close, near, far) + (1.0 + m.negative_entropy(q.scale))
    return xp.where(finite, value, xp.where(cumulant == math.inf, math.inf, math.nan))


def _laplace(xp: Namespace, m: Shape, q: f.Laplace) -> Array:  # noqa: ARG001
    """−H(P) − E[log q], by E|x − μ|."""
    return (m.negative_entropy(q.scale) + math.log(2)) + m.distance(q.loc) / q.scale


def _means(
    xp: Namespace, mean: Array, c: Array | float, rate: Array, more: Array | None = None
) -> Array:
    """Return c φ(−w), w = log(rate · mean/c); ``more`` is rate · mean − c, if known better."""
    top = rate * mean
    finite = top < math.inf
    top = xp.where(finite, top, 1.0)
    c = c + xp.zeros_like(top)
    value = times_phi(xp, c, log_ratio(xp, top, c, more), top)
    return xp.where(finite, value, math.inf)


def _exponential(xp: Namespace, m: Shape, q: f.Exponential) -> Array:
    """φ(log of the ratio of means) + 1 − H(P/E x)."""
    return _means(xp, m.mean(), 1.0, q.rate) + (1.0 + m.negative_entropy(m.mean()))


def _gamma(xp: Namespace, m: Shape, q: f.Gamma) -> Array:
    """c φ(−w) + c (log E x − E log x) − H(log x) + log Γ(c) − c log c + c."""
    return _means(xp, m.mean(), q.concentration, q.rate) + _of_log(xp, m, q.concentration)


def _of_log(xp: Namespace, m: Shape, c: Array) -> Array:
    own = (binet(xp, c) - 0.5 * xp.log(c)) + 0.5 * _LOG_2PI
    return c * m.log_gap() + (own - m.log_entropy())


# --- pairs that come close ------------------------------------------------------------------------


def _concentration(xp: Namespace, q: Any) -> Array:
    return xp.ones_like(q.rate) if isinstance(q, f.Exponential) else q.concentration


def _log_normal_gamma(xp: Namespace, m: Shape, q: Any) -> Array:
    """c φ(−w) + ½ φ(−log cσ²) + Binet's g(c), w = log of the ratio of means."""
    c, p = _concentration(xp, q), m.p
    square, narrow = p.scale * p.scale, xp.ones_like(c) / c
    level = log_ratio(xp, q.rate, c) + p.loc
    w = level + 0.5 * square
    close = abs(w) < NEAR
    near = c * phi_near(xp, xp.clip(-w, -NEAR, NEAR)) + 0.5 * ratio_phi(xp, narrow, square)
    # Far apart what depends on σ² alone is in neither term; the mean may be beyond the numbers.
    root = xp.exp(0.5 * (p.loc + 0.5 * square))
    top = (q.rate * root) * root
    far = top - c * (1.0 + level) - 0.5 * (1.0 + log_ratio(xp, square, narrow))
    far = xp.where(top == math.inf, math.inf, far)
    return xp.where(close, near, far) + binet(xp, c)


def _log_normal_normal(xp: Namespace, m: _LogNormal, q: f.Normal) -> Array:
    """The negentropy of P + D of the Normal of its mean and variance; of a wide P by moments."""
    # From σ = 1 on they are never close, and slopes of σ² would cancel.
    narrow, safe = m.p.scale < 1.0, {"loc": 0.0, "scale": 1.0}
    wide, m = (_LogNormal(xp, replaced(xp, m.p, x, safe)) for x in (~narrow, narrow))
    far = _by_second_moment(xp, wide, q.loc, q.scale)
    deviation, z = m.deviation(), quotient(xp, m.mean_from(q.loc), q.scale)
    held = (deviation > 1e-30) & (deviation < math.inf)
    near = ratio_phi(xp, q.scale, xp.where(held, deviation, q.scale), 2)
    tiny = phi(xp, 2.0 * (xp.log(q.scale) - m.log_deviation()))
    near = m.negentropy() + 0.5 * (xp.where(held, near, tiny) + z * z)
    return xp.where(narrow, near, far)


def _weibull_gamma(xp: Namespace, m: _Weibull, q: f.Gamma) -> Array:
    """c φ(−w) + the remainders of log Γ from k = c = 1, of which both are an Exponential."""
    c, t = xp.broadcast_arrays(q.concentration, m.t)
    more, less = c - 1.0, (1.0 - m.p.concentration) / m.p.concentration
    near = (abs(more) < 0.5) & (abs(less) < 0.5)
    one, two = xp.ones_like(c), xp.full_like(c, 2.0)
    shape = gamma_excess(xp, one, c, more) + c * lgamma_remainder(xp, two, 1.0 + t, less)
    shape = shape + log1p_gap(xp, xp.where(near, less, 0.0)) + more * less
    shape = xp.where(near, shape, _of_log(xp, m, c))
    return _means(xp, m.mean(), c, q.rate) + shape


def _beta_gamma(xp: Namespace, m: Shape, q: Any) -> Array:
    """D from the Gamma of the same mean and nearly the same E log x + D of that one from Q."""
    a, b = m.p.concentration1, m.p.concentration0
    return _scaled_beta_gamma(xp, a, b, _concentration(xp, q), q.rate)


def _scaled_beta_gamma(xp: Namespace, a: Array, b: Array, c: Array, rate: Array) -> Array:
    a, b = xp.broadcast_arrays(a, b)
    total = a + b
    more = a * (a / b)
    rich = a * (total / b)  # the concentration of that Gamma, a + more
    # Both ends at once, and both changes: a compiler sees each function once.
    ends = xp.stack([b, total], axis=-1)
    heights, slopes = binet(xp, ends), binet_slope(xp, ends)
    starts, changes = xp.stack([b, a], axis=-1), xp.stack([a, more], axis=-1)
    bends = binet_slope_growth(xp, starts, changes)
    remainders = binet_remainder(xp, starts, changes)
    close = remainders[..., 0] + a * slopes[..., 0]
    step = xp.where(a < b, close, heights[..., 1] - heights[..., 0])
    own = 0.5 * (a / b) / total + remainders[..., 1] + step - (b - 1.0) * bends[..., 0]
    own = own + more * slopes[..., 1]
    rest = (c - a) - more
    off = bends[..., 1] + slopes[..., 1]  # less Λ of Q than of that Gamma
    mean = _share(xp, a, b)
    exact = ((a - c) * rate + (c * (rate - b) - c * a)) / total
    above = xp.where(rate < 2.0 * total, exact, rate * mean - c)
    means = _means(xp, mean, c, rate, above)
    return own + means + gamma_excess(xp, rich, c, rest) + rest * off


def _beta_uniform(xp: Namespace, m: Shape, q: f.Uniform) -> Array:
    """D from a Beta of ones, which is uniform, + log of Q's width."""
    value = _from_uniform(xp, m.p, to=True)
    return value + _log_width(xp, q.low, q.high)


def _from_uniform(xp: Namespace, d: f.Beta, *, to: bool) -> Array:
    a = xp.stack(xp.broadcast_arrays(d.concentration1, d.concentration0), axis=-1)
    one = xp.ones_like(a)
    return of_concentrations(xp, a, one) if to else of_concentrations(xp, one, a)


def _log_width(xp: Namespace, low: Array, high: Array) -> Array:
    """Return log(high − low), right near width 1 too."""
    width = high - low
    return log_ratio(xp, width, xp.ones_like(width), (high - 1.0) - low)


def _from_even(xp: Namespace, x: Array) -> Array:
    """Return D of a ContinuousBernoulli of logits x from that of logits 0, which is uniform: −H."""
    return of_logits(xp, x, xp.zeros_like(x), -x)


def _continuous_bernoulli_uniform(xp: Namespace, m: Shape, q: f.Uniform) -> Array:
    """D from the one of logits 0, + log of Q's width."""
    return _from_even(xp, natural(xp, m.p)) + _log_width(xp, q.low, q.high)


def _uniform_continuous_bernoulli(xp: Namespace, m: Shape, q: f.ContinuousBernoulli) -> Array:
    """D of logits 0 from Q, and log of the ratio of widths."""
    x, low, high = natural(xp, q), m.p.low, m.p.high
    small = abs(x) < 1.0
    few = xp.where(small, x, 0.0)
    off = 0.5 * (low - (1.0 - high))
    close = of_logits(xp, xp.zeros_like(x), few, few) - few * off
    size = xp.where(small, 1.0, abs(x))
    end = xp.where(x > 0, 0.5 * ((1.0 - low) + (1.0 - high)), 0.5 * (low + high))
    far = size * end + log1p(xp, -xp.exp(-size)) - xp.log(size * (high - low))
    return xp.where(small, close - _log_width(xp, low, high), far)


def _uniform_beta(xp: Namespace, m: Shape, q: f.Beta) -> Array:
    """D of a Beta of ones from Q, and log of the ratio of widths."""
    low, high, a, b = m.p.low, m.p.high, q.concentration1, q.concentration0
    width, total = high - low, a + b
    fits = (low >= 0) & (high <= 1)
    low, high = xp.where(fits, low, 0.0), xp.where(fits, high, 1.0)
    width = xp.where(fits, width, 1.0)
    less, more = 1.0 - high, 1.0 - low
    near = (abs(a - 1.0) < 0.5) & (abs(b - 1.0) < 0.5)
    middle, rest = 0.5 * (low + high), 0.5 * (less + more)
    gaps = (
        _log_gap_of_interval(xp, low, high, width),
        _log_gap_of_interval(xp, less, more, width),
    )
    narrow = xp.log(middle) - gaps[0] + 1.0, log1p(xp, -middle) - gaps[1] + 1.0
    wide = _mean_log(xp, low, high, width), _mean_log(xp, less, more, width)
    ends = [
        xp.where(width < 0.5 * x, one, other)
        for x, one, other in zip((middle, rest), narrow, wide, strict=True)
    ]
    close = _from_uniform(xp, q, to=False) - _log_width(xp, low, high)
    close = close - (a - 1.0) * ends[0] - (b - 1.0) * ends[1]
    # Γ by Stirling's series about its peak, which may be narrow.
    off = (a * rest - b * middle) / total
    peak = relative_entropy(xp, a / total, middle, off) + relative_entropy(
        xp, b / total, rest, -off
    )
    spread = (a - 1.0) * gaps[0] + (b - 1.0) * gaps[1]
    scale = xp.log(middle * rest / width) - 0.5 * xp.log(a * (b / total)) + 0.5 * _LOG_2PI
    tails = (binet(xp, a) + binet(xp, b)) - binet(xp, total)
    return xp.where(near, close, total * peak + spread + (scale + tails))


def _mean_log(xp: Namespace, low: Array, high: Array, width: Array) -> Array:
    """Return E log x + 1 of a uniform x: 0 between 0 and 1."""
    parts = [x * xp.log(xp.where(x > 0, x, 1.0)) for x in (low, high)]
    return (parts[1] - parts[0]) / width


def _uniform_pareto(xp: Namespace, m: _Uniform, q: f.Pareto) -> Array:
    """−H(P) − E[log q]: α E[log x/s] + E[log x/width] − log α."""
    low, high, s = m.p.low, m.p.high, q.scale
    fits = low >= s
    width = high - low
    low, high = xp.where(fits, low, s), xp.where(fits, high, s + width)
    middle = 0.5 * low + 0.5 * high
    gap = _log_gap_of_interval(xp, low, high, width)
    logs = log_ratio(xp, middle, s, (low - s) + 0.5 * width) - gap
    return q.alpha * logs + (log_ratio(xp, middle, width) - gap) - xp.log(q.alpha)


def _pareto_normal(xp: Namespace, m: Shape, q: f.Normal) -> Array:
    """−H(P) − E[log q], by the second moment of P."""
    return _by_second_moment(xp, m, q.loc, q.scale)


def _pareto_gamma(xp: Namespace, m: _Pareto, q: f.Gamma) -> Array:
    """The Gamma's; of a small α by E log x itself, as the slope of the mean would cancel."""
    c, s, a = q.concentration, m.p.scale, m.p.alpha
    top = m.mean() * q.rate
    own = (binet(xp, c) - 0.5 * xp.log(c)) + 0.5 * _LOG_2PI - m.log_entropy()
    direct = top - c * (1.0 + log_ratio(xp, s * q.rate, c) + 1.0 / a) + own
    direct = xp.where(top == math.inf, math.inf, direct)
    return xp.where(a < 2.0, direct, _gamma(xp, m, q))


def _continuous_bernoulli_exponential(xp: Namespace, m: Shape, q: f.Exponential) -> Array:
    """−H(P) − E[log q]; of large negative logits P is an Exponential cut off at 1."""
    x = natural(xp, m.p)
    cut = x < -2.0
    size = xp.where(cut, -x, 2.0)
    lost = size * xp.exp(-size) / -expm1(xp, -size)
    close = -log1p_gap(xp, -lost) - log1p(xp, -xp.exp(-size))
    close = _means(xp, (1.0 - lost) / size, 1.0, q.rate) + close
    return xp.where(cut, close, _from_even(xp, x) + (q.rate * m.mean() - xp.log(q.rate)))


def _beta_continuous_bernoulli(xp: Namespace, m: Shape, q: f.ContinuousBernoulli) -> Array:
    """D of either from the uniform; of large logits that from an Exponential, cut off at 1."""
    a, b, x = m.p.concentration1, m.p.concentration0, natural(xp, q)
    small = abs(x) < 1.5
    few = xp.where(small, x, 0.0)
    close = _from_uniform(xp, m.p, to=True) + of_logits(xp, xp.zeros_like(x), few, few)
    close = close - few * (0.5 * (a - b) / (a + b))
    a, b = xp.where(x > 0, b, a), xp.where(x > 0, a, b)
    size = xp.where(small, 1.5, abs(x))
    far = _scaled_beta_gamma(xp, a, b, xp.ones_like(a), size) + log1p(xp, -xp.exp(-size))
    return xp.where(small, close, far)


# --- which go together ----------------------------------------------------------------------------

_BY_SHAPE: Final[dict[Any, Callable[..., Array]]] = {
    f.Exponential: _exponential,
    f.Gamma: _gamma,
    f.Gumbel: _gumbel,
    f.HalfNormal: _half_normal,
    f.Laplace: _laplace,
    f.Normal: _normal,
}
_OWN: Final[dict[tuple[Any, Any], Callable[..., Array]]] = {
    (f.Beta, f.ContinuousBernoulli): _beta_continuous_bernoulli,
    (f.Beta, f.Exponential): _beta_gamma,
    (f.Beta, f.Gamma): _beta_gamma,
    (f.Beta, f.Uniform): _beta_uniform,
    (f.ContinuousBernoulli, f.Exponential): _continuous_bernoulli_exponential,
    (f.ContinuousBernoulli, f.Uniform): _continuous_bernoulli_uniform,
    (f.LogNormal, f.Exponential): _log_normal_gamma,
    (f.LogNormal, f.Gamma): _log_normal_gamma,
    (f.LogNormal, f.Normal): _log_normal_normal,
    (f.Pareto, f.Gamma): _pareto_gamma,
    (f.Pareto, f.Normal): _pareto_normal,
    (f.Uniform, f.Beta): _uniform_beta,
    (f.Uniform, f.ContinuousBernoulli): _uniform_continuous_bernoulli,
    (f.Uniform, f.Pareto): _uniform_pareto,
    (f.Weibull, f.Gamma): _weibull_gamma,
}


def _bounds(d: Any) -> tuple[Any, Any]:
    """Return where the support starts and ends."""
    if isinstance(d, f.Uniform):
        return d.low, d.high
    if isinstance(d, f.Pareto):
        return d.scale, math.inf
    fixed = {"unit": (0.0, 1.0), "positive": (0.0, math.inf)}
    return fixed.get(d.support, (-math.inf, math.inf))


def _formula(of_p: type[Shape], of_q: Callable[..., Array]) -> Callable[..., Array]:
    def cross(xp: Namespace, p: Any, q: Any) -> Array:
        (alive_p, valid_p, safe_p), (alive_q, valid_q, safe_q) = (inside(xp, d) for d in (p, q))
        alive, valid = alive_p & alive_q, valid_p & valid_q
        if isinstance(p, f.Uniform) or isinstance(q, f.Uniform):
            (low_p, high_p), (low_q, high_q) = _bounds(p), _bounds(q)
            fits = (low_p >= low_q) & (high_p <= high_q)
            alive = alive & fits
            if isinstance(p, f.Uniform):
                safe_p = replaced(xp, safe_p, fits, {"low": 0.25, "high": 0.75})
        value = of_q(xp, of_p(xp, safe_p), safe_q)
        return xp.where(alive, value, at_edges(xp, p, q, valid, value))

    cross.__doc__ = of_q.__doc__
    return cross


for _p, (_shape, _qs) in _SHAPES.items():
    for _q in _qs:
        register_kl(_p, _q)(_formula(_shape, _BY_SHAPE[_q]))
for (_p, _q), _own in _OWN.items():
    register_kl(_p, _q)(_formula(_SHAPES[_p][0], _own))
