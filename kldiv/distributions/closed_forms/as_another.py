"""Families that are others with fixed parameters, or images of others: they take their pairs.

Imported last, so that forms of their own stand.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Final

from kldiv.distributions import families as f
from kldiv.distributions.registry import REGISTRY, closed_form, register_kl

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace

    Convert = Callable[[Namespace, Any], Any]


def _negative_binomial(xp: Namespace, d: f.Geometric) -> f.NegativeBinomial:
    if d.logits is not None:
        return f.NegativeBinomial(xp.ones_like(d.logits), logits=-d.logits)
    return f.NegativeBinomial(xp.ones_like(d.probs), 1.0 - d.probs)


_CASES: Final[tuple[tuple[Any, Any, Convert], ...]] = (
    (f.Exponential, f.Gamma, lambda xp, d: f.Gamma(xp.ones_like(d.rate), d.rate)),
    (f.Exponential, f.Weibull, lambda xp, d: f.Weibull(1.0 / d.rate, xp.ones_like(d.rate))),
    (f.Chi2, f.Gamma, lambda xp, d: f.Gamma(0.5 * d.df, xp.full_like(d.df, 0.5))),
    (f.Geometric, f.NegativeBinomial, _negative_binomial),
    (f.Bernoulli, f.Binomial, lambda _, d: f.Binomial(1, d.probs, d.logits)),
)
"""A family, a wider one that it is a case of, and its member there."""

_IMAGES: Final[tuple[tuple[Any, Any, Convert], ...]] = (
    (f.Chi, f.Chi2, lambda _, d: f.Chi2(d.df)),
    (f.HalfCauchy, f.Cauchy, lambda xp, d: f.Cauchy(xp.zeros_like(d.scale), d.scale)),
    (f.LogitNormal, f.Normal, lambda _, d: f.Normal(d.loc, d.scale)),
)
"""A family, the one that it is an image of under one map, and its member there."""


def _by(family: Any, convert: Convert, words: str) -> Callable[..., Array]:
    def as_another(xp: Namespace, p: Any, q: Any) -> Array:
        p, q = (convert(xp, d) if isinstance(d, family) else d for d in (p, q))
        return closed_form(xp, p, q)

    as_another.__doc__ = words
    return as_another


def _register(family: Any, wider: Any, convert: Convert, *, own: bool) -> None:
    """Register the pairs of a wider family, with itself or with others, for a case of it."""
    formula = _by(family, convert, f"The {wider.__name__}'s, of which {family.__name__} is a case.")
    for pair in list(REGISTRY):
        if (pair[0] is pair[1]) is own:
            for case in product(*((d, family) if d is wider else (d,) for d in pair)):
                if case not in REGISTRY:
                    register_kl(*case)(formula)


for _own in (True, False):  # the form of one family is the more exact one: it comes first
    for _case in _CASES:
        _register(*_case, own=_own)
for _family, _base, _convert in _IMAGES:
    register_kl(_family, _family)(_by(_family, _convert, f"The {_base.__name__}s'."))
