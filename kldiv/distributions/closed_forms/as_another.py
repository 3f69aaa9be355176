"""Families that are others with fixed parameters: they take the pairs of those.

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


def _gamma(xp: Namespace, d: f.Chi2) -> f.Gamma:
    return f.Gamma(0.5 * d.df, xp.full_like(d.df, 0.5))


def _negative_binomial(xp: Namespace, d: f.Geometric) -> f.NegativeBinomial:
    if d.logits is not None:
        return f.NegativeBinomial(xp.ones_like(d.logits), logits=-d.logits)
    return f.NegativeBinomial(xp.ones_like(d.probs), 1.0 - d.probs)


AS: Final[dict[Any, tuple[Any, Callable[[Namespace, Any], Any]]]] = {
    f.Chi2: (f.Gamma, _gamma),
    f.Geometric: (f.NegativeBinomial, _negative_binomial),
}
"""For each family, the wider one that it is a case of, and its member there."""


def _as(case: Any) -> Callable[..., Array]:
    wider, convert = AS[case]

    def as_another(xp: Namespace, p: Any, q: Any) -> Array:
        p, q = (convert(xp, d) if isinstance(d, case) else d for d in (p, q))
        return closed_form(xp, p, q)

    as_another.__doc__ = f"The {wider.__name__}'s: a {case.__name__} is one."
    return as_another


def _swaps(family: Any, wider: Any, case: Any) -> tuple[Any, ...]:
    return (family, case) if family is wider else (family,)


for _case, (_wider, _) in AS.items():
    _formula = _as(_case)
    for _p, _q in list(REGISTRY):
        for _pair in product(_swaps(_p, _wider, _case), _swaps(_q, _wider, _case)):
            if _pair not in REGISTRY:
                register_kl(*_pair)(_formula)
