"""The divergences of `f_div_with_logits` by their definitions, in mpmath, and one of a user's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import mpmath
import numpy as np
from logit_families import TARGET, batch, gradient_error, value_error
from reference import Truth, constant, converged, numbers, softmax

from kldiv.divergences import (
    KL,
    Alpha,
    ChiSquared,
    FDivergence,
    Hellinger,
    Jeffreys,
    Mixture,
    TotalVariation,
    exp_rise,
    expm1,
)


@dataclass(frozen=True)
class Own(FDivergence):
    """½ Σ (√p − √q)², as a user would write it: `kldiv.divergences.Hellinger`."""

    def term(self, xp, p, q, ell):
        return 0.5 * xp.maximum(p, q) * expm1(xp, -0.5 * abs(ell)) ** 2

    def u(self, xp, at, step):
        return -0.5 * exp_rise(xp, -0.5, at, step)

    def v(self, xp, at, step):
        return -0.5 * exp_rise(xp, 0.5, at, step)

    def slope(self, xp, p, q, ell):
        return 0.25 * xp.maximum(p, q) * xp.exp(-0.5 * abs(ell))


RECORDS = {
    "KL": KL(),
    "reverse KL": KL(reverse=True),
    "JS": Mixture(0.3, 0.3, 0.7),
    "skew": Mixture(0.1, 1.0, 0.0),
    "skew, reverse": Mixture(0.9, 0.0, 1.0),
    "mixture": Mixture(0.2, 0.4, 1.3),
    "Jeffreys": Jeffreys(),
    "Jeffreys, weighed": Jeffreys(0.25, 2.0),
    "TV": TotalVariation(),
    "Hellinger": Hellinger(),
    "own": Own(),
    "chi2": ChiSquared(),
    "alpha": Alpha(0.3),
}


ORDERS = {Hellinger: (0.5, 0.25), ChiSquared: (2, 2)}
"""α of those that are a multiple of an α-divergence, and the factor."""


def definition(record, p, q):
    """F(p, q) of a class, p·∂F/∂p and q·∂F/∂q; NaN where one is infinite."""
    order, scale = ORDERS.get(type(record), (getattr(record, "alpha", None), 1))
    if order is not None:
        alpha, rest = mpmath.mpf(order), 1 - mpmath.mpf(order)
        if (p and not q and rest <= 0) or (q and not p and alpha <= 0):
            return mpmath.inf, mpmath.nan, mpmath.nan
        power = p**alpha * q**rest if p and q else mpmath.mpf(0)
        return (
            (alpha * p + rest * q - power) * scale / (alpha * rest),
            (p - power) * scale / rest,
            (q - power) * scale / alpha,
        )
    if isinstance(record, Own):
        root_p, root_q = mpmath.sqrt(p), mpmath.sqrt(q)
        both = root_p * root_q
        return (root_p - root_q) ** 2 / 2, (p - both) / 2, (q - both) / 2
    if isinstance(record, TotalVariation):
        side = mpmath.sign(p - q) / 2
        return abs(p - q) / 2, p * side, -q * side
    if isinstance(record, Mixture):
        m, a, b = (mpmath.mpf(float(x)) for x in (record.m, record.a, record.b))
        mean = m * p + (1 - m) * q
        log_p, log_q = (x * mpmath.log(x / mean) if x else mpmath.mpf(0) for x in (p, q))
        share = (a * p + b * q) / mean
        return (
            a * log_p + b * log_q,
            a * (log_p + p) - m * p * share,
            b * (log_q + q) - (1 - m) * q * share,
        )
    w, r = (record.w, record.r) if isinstance(record, Jeffreys) else (1, 0)
    if isinstance(record, KL) and record.reverse:
        w, r = 0, 1
    log_p, log_q = mpmath.mpf(0), mpmath.mpf(0)
    if p and q:
        ell = mpmath.log(p / q)
        log_p, log_q = p * ell, -q * ell
    lost_p, lost_q = (p and not q and w), (q and not p and r)
    return (
        mpmath.inf if lost_p or lost_q else w * log_p + r * log_q,
        mpmath.nan if lost_p else w * (log_p + p) - r * q,
        mpmath.nan if lost_q else r * (log_q + q) - w * p,
    )


def exact(record, s, t, temperature=1.0):
    """The divergence of one row and both its gradients, limits where the value is infinite."""
    return _exact(record, *(tuple(map(float, row)) for row in (s, t)), float(temperature))


@cache  # the same rows are given to every library
def _exact(record, s, t, temperature):
    def compute():
        scale = 1 / mpmath.mpf(temperature)
        value, *gradients = of_numbers(record, numbers(s, scale), numbers(t, scale))
        return [[value], *([x * scale for x in each] for each in gradients)]

    (value,), gs, gt = converged(compute)
    return Truth(float(value), *(np.array([float(g) for g in each]) for each in (gs, gt)))


@cache  # the same rows are given to every divergence
def _masses(logits, _precision):
    return softmax(logits)[0]


def of_numbers(record, s, t):
    """The divergence and both its gradients, at the working precision; None stands for −∞."""
    q, p = (_masses(tuple(each), mpmath.mp.prec) for each in (s, t))
    pairs = zip(p, q, strict=True)
    parts = [definition(record, *pair) if any(pair) else (0, 0, 0) for pair in pairs]
    value, of_p, of_q = zip(*parts, strict=True)
    return mpmath.fsum(value), slope(q, of_q), slope(p, of_p)


def slope(p, by):
    """The gradient in logits, given that in their softmax times it."""
    mean = mpmath.fsum(by)
    return [x - a * mean if a else x for a, x in zip(p, by, strict=True)]


def of_masses(record, p, q):
    """F(p, q) of masses that sum to no number in particular, ∂F/∂p and ∂F/∂q.

    It is what `definition` returns, and a multiple of q − p, which normalised rows do not see.
    """
    value, *slopes = definition(record, p, q)
    by_p, by_q = 0, 0
    if isinstance(record, Mixture):
        m, a, b = (mpmath.mpf(float(x)) for x in (record.m, record.a, record.b))
        by_p, by_q = (a + b) * m - a, (a + b) * (1 - m) - b
    elif isinstance(record, KL):
        by_p, by_q = (1, -1) if record.reverse else (-1, 1)
    of_p, of_q = (each / x if x else each for each, x in zip(slopes, (p, q), strict=True))
    return value + by_p * p + by_q * q, of_p + by_p, of_q + by_q


NAMED = {
    "kl": lambda _: KL(),
    "jeffreys": lambda _: Jeffreys(),
    "js": lambda share: Mixture(share, share, 1 - share),
    "skew": lambda share: Mixture(share, 1.0, 0.0),
    "tv": lambda _: TotalVariation(),
    "hellinger": lambda _: Hellinger(),
    "chi2": lambda _: ChiSquared(),
    "alpha": Alpha,
}
"""Records by what `kldiv.pairwise` calls them, of the order that may follow."""


def measured(name, p, q):
    """A divergence of two rows, by its name as `kldiv.pairwise` takes it."""
    kind, _, order = name.partition(":")
    p, q = ([mpmath.mpmathify(x) for x in row] for row in (p, q))

    def total(record):
        pairs = [pair for pair in zip(p, q, strict=True) if any(pair)]
        return mpmath.fsum(of_masses(record, *pair)[0] for pair in pairs)

    if kind != "renyi":
        return total(NAMED[kind](float(order or 0.5)))
    alpha = mpmath.mpf(float(order))
    mass = alpha * mpmath.fsum(p) + (1 - alpha) * mpmath.fsum(q)
    lost = alpha * (1 - alpha) * total(Alpha(float(order))) / mass
    return mpmath.log1p(-lost) / (alpha - 1)


def renyi(order, p, q):
    """Rényi's divergence of normalised rows, and each class's share of Σ p^α q^(1−α)."""
    alpha, lost = mpmath.mpf(order), mpmath.inf if order > 1 else 0
    powers = [
        a**alpha * b ** (1 - alpha) if a and b else lost if a else 0
        for a, b in zip(p, q, strict=True)
    ]
    total = mpmath.fsum(powers)
    if not total or not mpmath.isfinite(total):
        return mpmath.inf, [mpmath.nan] * len(powers)
    return mpmath.log(total) / (alpha - 1), [x / total for x in powers]


@cache
def truths(name, size, dtype, temperature=1.0):
    """The truth of every row of `batch`."""
    _, s, t = batch(size, dtype)
    return [of_row(RECORDS[name], *row, temperature) for row in zip(s, t, strict=True)]


def of_row(record, s, t, temperature=1.0):
    """`exact`, and 0 where P is Q."""
    if constant(s, t):
        zeros = np.zeros(len(s))
        return Truth(0.0, zeros, zeros)
    return exact(record, s, t, temperature)


def condition(record, s, t, truth):
    """How much larger errors may be than the rounding of log p/q: of the value, of gradients."""
    order, scale = ORDERS.get(type(record), (getattr(record, "alpha", None), 1))
    if order is None or isinstance(record, Hellinger):
        return 1.0, 1.0, 1.0
    with np.errstate(all="ignore"):
        log_q, log_p = (x - np.logaddexp.reduce(x.astype("f8")) for x in (s, t))
        ell = np.nan_to_num(log_p - log_q, posinf=0, neginf=0)
        power = np.nan_to_num(np.exp(order * log_p + (1 - order) * log_q), posinf=0)
        sums = abs((power - np.exp(log_q)) / order * ell).sum(), *[abs(power * ell).sum()] * 2
        sizes = (np.sum(abs(each)) for each in truth)
        return tuple(
            1 + scale * each / size if 0 < size < np.inf else 1.0
            for each, size in zip(sums, sizes, strict=True)
        )


def wrong_rows(name, size, dtype, found, rows=slice(None)):
    """The rows of `batch` that miss the targets times their condition, each with its errors."""
    names, s, t = batch(size, dtype)
    wrong, expected = {}, truths(name, size, dtype)
    for place, row in enumerate(range(len(names))[rows]):
        true, results = expected[row], [each[place] for each in found]
        if name == "chi2" and true.value > float(np.finfo(dtype).max):  # gradients overflow as well
            errors = [0.0 if results[0] == np.inf else np.inf]
        else:
            allowed = condition(RECORDS[name], s[row], t[row], true)
            measures = (value_error, gradient_error, gradient_error)
            errors = [
                error(result, wanted, dtype) / most
                for error, result, wanted, most in zip(
                    measures, results, true, allowed, strict=True
                )
            ]
        if not max(errors) <= TARGET[dtype]:
            wrong[names[row]] = errors
    return wrong
