"""Pairs of different families, whose divergence takes a moment of P."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mpmath
from mpmath import mp

import kldiv
from kldiv import distributions as d

from ...oracle import moments
from ..searching import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Beta": ("shape", "shape"),
    "ContinuousBernoulli": ("logit",),
    "Exponential": ("scale",),
    "Gamma": ("shape", "scale"),
    "Gumbel": ("location", "scale"),
    "HalfNormal": ("scale",),
    "Laplace": ("location", "scale"),
    "LogNormal": ("location", "scale"),
    "Normal": ("location", "scale"),
    "Pareto": ("scale", "scale"),
    "Uniform": ("probability", "probability"),
    "Weibull": ("scale", "shape"),
}

_CROSS = {
    "Beta": "ContinuousBernoulli Exponential Gamma HalfNormal Normal Uniform",
    "ContinuousBernoulli": "Exponential HalfNormal Normal Uniform",
    "Exponential": "Gumbel HalfNormal Normal",
    "Gamma": "Gumbel HalfNormal Normal",
    "Gumbel": "Normal",
    "HalfNormal": "Exponential Gamma Normal",
    "Laplace": "Gumbel Normal",
    "LogNormal": "Exponential Gamma HalfNormal Normal",
    "Normal": "Gumbel Laplace",
    "Pareto": "Exponential Gamma HalfNormal Normal",
    "Uniform": "Beta ContinuousBernoulli Exponential Gamma Gumbel HalfNormal Laplace Normal Pareto",
    "Weibull": "Gamma HalfNormal Normal",
}

_CROSS_UNITS = 1678.0
"""1e-4 in float32; in float64 it is a millionth of the target 1e-10."""


def _made(name: str, numbers: Sequence[Any]) -> Any:
    if name == "ContinuousBernoulli":
        return d.ContinuousBernoulli(logits=numbers[0])
    return getattr(d, name)(*numbers)


def _matched(q: str, p: str, numbers: Sequence[float]) -> list[float] | None:
    """Return parameters of Q whose moments are P's, or about them."""
    with mpmath.workdps(30):
        _, mean, variance, *_ = moments.P[p](*map(mp.mpf, numbers))
        if not 0 < variance < mp.inf:
            return None
        scale = mp.sqrt(variance)
        beta = scale * mp.sqrt(6) / mp.pi
        found = {
            "Beta": (1, 1),
            "ContinuousBernoulli": (mp.mpf("1e-3"),),
            "Exponential": (1 / mean,),
            "Gamma": (mean**2 / variance, mean / variance),
            "Gumbel": (mean - mp.euler * beta, beta),
            "HalfNormal": (mp.sqrt(mean**2 + variance),),
            "Laplace": (mean, scale / mp.sqrt(2)),
            "Normal": (mean, scale),
        }.get(q)
    return None if found is None else [float(x) for x in found]


def _cross(p: str, q: str) -> Target:
    size = len(_PARAMETERS[p])
    exact = moments.divergence(p, q, size)

    def fits(*x: Any) -> bool:
        of_p, of_q = x[:size], x[size:]
        if p == "Uniform" and not of_p[0] < of_p[1]:
            return False
        if q == "Pareto":
            return bool(of_q[0] <= of_p[0])
        return not (p == "Pareto" and of_p[1] <= (1 if q in {"Exponential", "Gamma"} else 2))

    def call(*x: Any) -> Any:
        of_q = (-x[size], x[size + 1]) if q == "Uniform" else x[size:]
        return kldiv.kl_divergence(_made(p, x[:size]), _made(q, of_q))

    def truth(*x: Any) -> Any:
        if not fits(*x):
            return mp.inf
        return exact(*x[:size], -x[size], x[size + 1]) if q == "Uniform" else exact(*x)

    def near(numbers: Sequence[float]) -> list[float] | None:
        return _matched(q, p, numbers[:size]) if fits(*numbers) else None

    ranges = _PARAMETERS[p] + (("scale", "above") if q == "Uniform" else _PARAMETERS[q])
    return Target(f"{p}‖{q}", truth, call, ranges, units=_CROSS_UNITS, near=near)


def cross_families() -> Iterator[Target]:
    """Yield pairs of different families with textbook moments."""
    for p, qs in _CROSS.items():
        for q in qs.split():
            yield _cross(p, q)
    yield Target(
        "Bernoulli‖Poisson",
        lambda p, r: p * mp.log(p / r) + (1 - p) * mp.log(1 - p) + r - p + p,
        lambda p, r: kldiv.kl_divergence(d.Bernoulli(p), d.Poisson(r)),
        ("probability", "scale"),
        ((0, 1),),
    )
