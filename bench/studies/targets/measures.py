"""Divergences and entropies of probabilities, and estimates from samples."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
from mpmath import mp

import kldiv
from kldiv import estimators

from ..searching import Target
from .rows import (
    CLASSES,
    ROWS,
    TWINS,
    alpha_divergence,
    by_rows,
    cross_entropy,
    entropy,
    generalised,
    halves,
    hellinger,
    of_mixture,
    renyi,
    softmaxed,
    variation,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _normalised(truth: Callable[..., Any]) -> Callable[..., Any]:
    def value(*numbers: Any) -> Any:
        sums = [mpmath.fsum(half) for half in halves(numbers)]
        pairs = zip(halves(numbers), sums, strict=True)
        return truth(*(x / total for half, total in pairs for x in half))

    return value


def measures() -> Iterator[Target]:
    """Yield measures of rows of probabilities, as they are and normalised."""
    k = kldiv
    both = {"jeffreys_divergence": lambda *x: generalised(*x) + generalised(*x[3:], *x[:3])}
    plain: dict[str, Any] = {
        "kl_divergence": generalised,
        "js_divergence": of_mixture(0.5, 0.5, 0.5),
        **both,
        "cross_entropy": cross_entropy,
    }
    for name, truth in plain.items():
        function = getattr(kldiv, name)
        for normalize in (False, True):
            call = partial(lambda f, n, *x: by_rows(f, x, normalize=n), function, normalize)
            label, exact = (
                (f"{name}, normalised", _normalised(truth)) if normalize else (name, truth)
            )
            yield Target(label, exact, call, ROWS * ("probability",), TWINS)
    yield Target(
        "js_divergence, weights",
        of_mixture(0.125, 0.125, 0.875),
        lambda *x: by_rows(kldiv.js_divergence, x, weights=(0.125, 0.875)),
        ROWS * ("probability",),
        TWINS,
    )
    powers = {
        "hellinger_divergence": (hellinger, k.hellinger_divergence, {}),
        "chi2_divergence": (_of_powers(2.0, 2.0), k.chi2_divergence, {}),
        "tv_divergence": (variation, k.tv_divergence, {}),
        "skew_divergence": (of_mixture(0.125, 1, 0), k.skew_divergence, {"alpha": 0.125}),
    }
    for alpha in (-0.5, 0.25, 0.75, 1.5):
        powers[f"alpha_divergence {alpha:g}"] = (
            _of_powers(alpha), k.alpha_divergence, {"alpha": alpha},
        )  # fmt: skip
    for name, (truth, function, options) in powers.items():
        call = partial(lambda f, o, *x: by_rows(f, x, **o), function, options)
        order = 1 if truth is variation else 2
        yield Target(name, truth, call, ROWS * ("probability",), TWINS, order=order)
    for alpha in (2.0**-10, 0.375, 0.5, 0.984375, 1.5, 2.0, 20.0):
        yield Target(
            f"renyi_divergence {alpha:g}",
            _normalised(renyi(alpha)),
            partial(
                lambda a, *x: by_rows(kldiv.renyi_divergence, x, alpha=a, normalize=True), alpha
            ),
            ROWS * ("probability",),
            TWINS,
        )
    yield Target(
        "entropy",
        entropy,
        lambda *x: kldiv.entropy(vector(*x)),
        CLASSES * ("probability",),
    )
    yield Target(
        "entropy, normalised",
        lambda *x: entropy(*(each / mpmath.fsum(x) for each in x)),
        lambda *x: kldiv.entropy(vector(*x), normalize=True),
        CLASSES * ("probability",),
    )
    yield Target(
        "kl_div",
        lambda x, y: y * (mp.log(y) - x),
        lambda x, y: kldiv.kl_div(x, y, reduction="none"),
        ("logit", "probability"),
        signed=True,
    )
    yield Target(
        "kl_div, log_target",
        lambda x, y: mp.exp(y) * (y - x),
        lambda x, y: kldiv.kl_div(x, y, reduction="none", log_target=True),
        ("logit", "logit"),
        ((0, 1),),
        signed=True,
    )
    yield Target(
        "plug_in_kl",
        _plug_in,
        lambda *x: by_rows(estimators.plug_in_kl, x),
        ROWS * ("count",),
        TWINS,
        order=0,
        signed=True,
    )
    for name, truth in {
        "kl_pq": generalised,
        "kl_qp": lambda *x: generalised(*x[CLASSES:], *x[:CLASSES]),
        "js": of_mixture(0.5, 0.5, 0.5),
    }.items():
        for form, label, exact, ranges in (
            ("probs", "probability", truth, "probability"),
            ("logits", "logit", _swapped(softmaxed(truth)), "logit"),
        ):
            yield Target(
                f"streaming.compare {name} of {label}s",
                exact,
                partial(_compared, name, form),
                ROWS * (ranges,),
                TWINS,
                order=0,
                libraries=("numpy",),
            )


def _plug_in(*numbers: Any) -> Any:
    counts, others = halves(numbers)
    n, m = mpmath.fsum(counts), mpmath.fsum(others)
    p, q = [x / n for x in counts], [x / m for x in others]
    ratio = mpmath.fsum(x / y for x, y in zip(p, q, strict=True))
    return generalised(*p, *q) - (CLASSES - 1) / (2 * n) - (ratio - 1) / (2 * m)


def _compared(name: str, form: Any, *numbers: Any) -> Any:
    from kldiv.streaming import compare

    p, q = (vector(*half) for half in halves(numbers))
    return getattr(compare(p, q, form=form, reduction="none"), name).values


def _swapped(truth: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *x: truth(*halves(x)[1], *halves(x)[0])


def _of_powers(alpha: float, times: float = 1.0) -> Callable[..., Any]:
    """Return the α-divergence of rows that need not sum to 1, a number of times."""
    whole = alpha_divergence(alpha, times)

    def value(*numbers: Any) -> Any:
        p, q = halves(numbers)
        order = mp.mpf(alpha)
        mixed = order * mpmath.fsum(p) + (1 - order) * mpmath.fsum(q)
        return whole(*numbers) - times * (mixed - 1) / (order * (order - 1))

    return value


def samples() -> Iterator[Target]:
    """Yield estimates from samples."""
    kinds: dict[str, Any] = {
        "k1": lambda x: x,
        "k2": lambda x: x * x / 2,
        "k3": lambda x: mp.expm1(-x) + x,
    }
    for kind, truth in kinds.items():
        yield Target(
            f"kl_estimate {kind}",
            partial(lambda f, p, q: f(p - q), truth),
            partial(lambda k, p, q: estimators.kl_estimate(p, q, kind=k, reduction="none"), kind),
            ("logit", "logit"),
            ((0, 1),),
            signed=kind == "k1",
        )
    yield Target(
        "kl_estimate, weight",
        lambda p, q, w: w * kinds["k3"](p - q),
        lambda p, q, w: estimators.kl_estimate(p, q, weight=w, reduction="none"),
        ("logit", "logit", "scale"),
        ((0, 1),),
    )
    yield Target(
        "monte_carlo_kl",
        lambda *x: mpmath.fsum(kinds["k3"](p - q) for p, q in zip(*halves(x), strict=True)) / 3,
        lambda *x: _each(lambda p, q: estimators.monte_carlo_kl(p, q).value, x),
        ROWS * ("logit",),
        TWINS,
        order=0,
        libraries=("numpy", "torch"),
    )
    yield Target(
        "knn_kl",
        _nearest,
        lambda *x: _each(lambda p, q: estimators.knn_kl(p, q, k=1), x),
        ROWS * ("location",),
        units=100.0,  # a mean of logarithms of both signs
        signed=True,
        order=0,
        libraries=("numpy", "torch"),
    )


def _each(function: Any, numbers: Any) -> Any:
    pairs = zip(*(vector(*half) for half in halves(numbers)), strict=True)
    return np.array([float(function(p, q)) for p, q in pairs])


def _nearest(*numbers: Any) -> Any:
    x, y = halves(numbers)
    total = mp.mpf(0)
    for i, a in enumerate(x):
        own = min(abs(a - b) for j, b in enumerate(x) if j != i)
        other = min(abs(a - b) for b in y)
        if not own or not other:
            return mp.inf
        total += mp.log(other / own)
    return total / len(x) + mp.log(mp.mpf(len(y)) / (len(x) - 1))
