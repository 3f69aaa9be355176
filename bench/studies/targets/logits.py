"""Losses of logits, labels, sparse teachers and layers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import mpmath
from mpmath import mp

import kldiv
from kldiv import divergences

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
    softmax,
    softmaxed,
    space,
    variation,
    vector,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def _weighted(w: float, r: float) -> Callable[..., Any]:
    def value(*x: Any) -> Any:
        return mp.mpf(w) * generalised(*x) + mp.mpf(r) * generalised(*x[3:], *x[:3])

    return value


def _sparse_truth(truth: Callable[..., Any], tail: str, *numbers: Any) -> Any:
    """Return the divergence of two classes of four and, unless renormalized, the rest as one.

    The teacher's numbers are −log p.
    """
    p, q = [mp.exp(-x) for x in numbers[4:]], softmax(numbers[:4])
    rest = 1 - mpmath.fsum(p)
    if rest <= 0:
        return mp.inf
    if tail == "renormalize":
        return truth(*(x / mpmath.fsum(r) for r in (p, q[:2]) for x in r))
    return truth(*p, rest, *q[:2], mpmath.fsum(q[2:]))


def _sparse_loss(options: dict[str, Any], *numbers: Any, **more: Any) -> Any:
    """Return `topk_kl_div_with_logits` of two classes of four."""
    return kldiv.topk_kl_div_with_logits(
        vector(*numbers[:4]), -vector(*numbers[4:]), _indices(numbers[0]), reduction="none",
        **options, **more,
    )  # fmt: skip


def _matched_truth(truth: Callable[..., Any], *logits: Any) -> Any:
    """Return the divergence of rows of which the first two classes match, the rest being one."""
    q, p = (softmax(half) for half in halves(logits))
    return truth(*p[:2], mpmath.fsum(p[2:]), *q[:2], mpmath.fsum(q[2:]))


def _indices(number: Any) -> Any:
    """Return classes 0 and 1 of every row."""
    one = _labels(number)
    return vector(0 * one, one)


def _labels(number: Any) -> Any:
    """Return label 1 for every row, as the library's integers."""
    xp = space(number)
    return xp.astype(xp.ones_like(number), xp.int32 if "torch" not in xp.__name__ else xp.int64)


def _hard(logits: Sequence[Any]) -> Any:
    return -mp.log(softmax(logits)[1])


def losses() -> Iterator[Target]:
    """Yield losses of rows of logits, their first half the input's."""
    k, logit = kldiv, ("logit",)
    pairs: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "kl_div_with_logits": (generalised, k.kl_div_with_logits, {}),
        "js_div_with_logits": (of_mixture(0.5, 0.5, 0.5), k.js_div_with_logits, {}),
        "js_div_with_logits 0.125": (
            of_mixture(0.125, 0.125, 0.875), k.js_div_with_logits, {"beta": 0.125},
        ),
        "skew_kl_div_with_logits": (
            of_mixture(0.125, 1, 0), k.skew_kl_div_with_logits, {"alpha": 0.125},
        ),
        "skew_kl_div_with_logits, reverse": (
            of_mixture(0.875, 0, 1), k.skew_kl_div_with_logits, {"alpha": 0.125, "reverse": True},
        ),
        "jeffreys_div_with_logits": (_weighted(1, 1), k.jeffreys_div_with_logits, {}),
        "jeffreys_div_with_logits, weights": (
            _weighted(0.25, 0.75), k.jeffreys_div_with_logits, {"weights": (0.25, 0.75)},
        ),
        "tv_div_with_logits": (variation, k.tv_div_with_logits, {}),
        "hellinger_div_with_logits": (hellinger, k.hellinger_div_with_logits, {}),
        "chi2_div_with_logits": (alpha_divergence(2.0, 2.0), k.chi2_div_with_logits, {}),
        **{
            f"alpha_div_with_logits {alpha:g}": (
                alpha_divergence(alpha), k.alpha_div_with_logits, {"alpha": alpha},
            )
            for alpha in (-0.5, 0.25, 0.75, 1.5)
        },
        **{
            f"renyi_div_with_logits {alpha:g}": (
                renyi(alpha), k.renyi_div_with_logits, {"alpha": alpha},
            )
            for alpha in (0.375, 2.0, 20.0)
        },
        "f_div_with_logits": (
            of_mixture(0.25, 1, 2),
            k.f_div_with_logits,
            {"divergence": divergences.Mixture(0.25, 1.0, 2.0)},
        ),
        "distillation_loss": (of_mixture(0.5, 0.5, 0.5), k.distillation_loss, {}),
        "distillation_loss, forward": (generalised, k.distillation_loss, {"beta": 0.0}),
        "distillation_loss, reverse": (
            lambda *x: generalised(*x[3:], *x[:3]), k.distillation_loss, {"beta": 1.0},
        ),
    }  # fmt: skip
    for name, (truth, function, options) in pairs.items():
        call = partial(lambda f, o, *x: by_rows(f, x, reduction="none", **o), function, options)
        order = 1 if truth is variation else 2  # it has kinks
        yield Target(name, softmaxed(truth), call, ROWS * logit, TWINS, order=order)
    for name in (
        "kl_div_with_logits", "js_div_with_logits", "jeffreys_div_with_logits",
        "hellinger_div_with_logits", "alpha_div_with_logits 0.25", "renyi_div_with_logits 2",
    ):  # fmt: skip
        truth, function, options = pairs[name]
        yield Target(
            f"{name}, temperature",
            lambda *x, truth=truth: softmaxed(truth)(*(v / x[-1] for v in x[:-1])),
            lambda *x, f=function, o=options: by_rows(
                f, x[:-1], reduction="none", temperature=x[-1], **o
            ),
            (*ROWS * logit, "temperature"),
            TWINS,
            digits=400,  # logits over T reach 600
        )
    sparse: dict[str, tuple[Any, dict[str, Any]]] = {
        "forward": (generalised, {}),
        "renormalize": (generalised, {"tail": "renormalize"}),
        "reverse": (lambda *x: generalised(*halves(x)[1], *halves(x)[0]), {"beta": 1.0}),
        "JS": (of_mixture(0.5, 0.5, 0.5), {"beta": 0.5}),
        "Hellinger": (hellinger, {"divergence": divergences.Hellinger()}),
        "Alpha": (alpha_divergence(1.5), {"divergence": divergences.Alpha(1.5)}),
    }
    for name, (truth, options) in sparse.items():
        exact = partial(_sparse_truth, truth, options.get("tail", "bucket"))
        given = partial(_sparse_loss, options)
        numbers = (*4 * logit, *2 * ("shape",))
        whole = f"topk_kl_div_with_logits, {name}"
        yield Target(whole, exact, given, numbers, digits=200)
        yield Target(
            f"{whole}, temperature",
            lambda *x, exact=exact: exact(*(v / x[-1] for v in x[:4]), *x[4:-1]),
            lambda *x, given=given: given(*x[:-1], temperature=x[-1]),
            (*numbers, "temperature"),
            digits=400,
        )
    for name in ("kl_div_with_logits", "js_div_with_logits", "hellinger_div_with_logits"):
        truth, function, _ = pairs[name]
        yield Target(
            f"{name}, matched",
            partial(_matched_truth, truth),
            lambda *x, f=function: f(
                vector(*x[:4]), vector(*x[4:]), reduction="none",
                input_classes=[0, 1], target_classes=[0, 1],
            ),
            8 * logit,
            ((0, 4), (1, 5), (2, 6), (3, 7)),
            units=500.0,  # masses of unlike classes are rounded, however near they are
            digits=200,
        )  # fmt: skip
    yield Target(
        "distillation_loss, hard",
        lambda *x: (
            _hard(x[:3]) / 4 + 3 * softmaxed(of_mixture(0.25, 0.25, 0.75), 2.0)(*x)
        ),
        lambda *x: by_rows(
            k.distillation_loss, x, labels=_labels(x[0]), beta=0.25, hard_weight=0.25,
            temperature=2.0, scale_by_temperature=True, reduction="none",
        ),
        ROWS * logit,
        TWINS,
        units=100.0,  # a sum, whose parts' slopes may cancel
    )  # fmt: skip
    yield Target(
        "cross_entropy_with_logits",
        softmaxed(cross_entropy),
        lambda *x: by_rows(k.cross_entropy_with_logits, x, reduction="none"),
        ROWS * logit,
        TWINS,
    )
    yield Target(
        "cross_entropy_with_logits, labels",
        lambda *x: _hard(x),
        lambda *x: k.cross_entropy_with_logits(vector(*x), _labels(x[0]), reduction="none"),
        CLASSES * logit,
    )
    yield Target(
        "entropy_with_logits",
        lambda *x: _of_softmax(x),
        lambda *x: k.entropy_with_logits(vector(*x), reduction="none"),
        CLASSES * logit,
    )
    for index, (part, exact) in enumerate({"log_prob": _hard, "entropy": _of_softmax}.items()):
        yield Target(
            f"log_prob_and_entropy_with_logits, {part}",
            lambda *x, exact=exact: exact(x),
            partial(_policy, index),
            CLASSES * logit,
        )
    yield Target(
        "linear_kl_div",
        lambda h, a, b, g, c, e: softmaxed(generalised)(h * a, h * b, g * c, g * e),
        lambda h, a, b, g, c, e: kldiv.linear_kl_div(
            h[..., None, None], vector(a, b)[..., None], g[..., None, None],
            vector(c, e)[..., None], reduction="sum",
        ),
        ROWS * ("small",),
        TWINS,
        alone=True,
    )  # fmt: skip
    yield Target(
        "KLState",
        softmaxed(generalised),
        _merged,
        ROWS * logit,
        TWINS,
        order=0,
        libraries=("numpy", "torch"),
    )


def _of_softmax(logits: Sequence[Any]) -> Any:
    return entropy(*softmax(logits))


def _policy(index: int, *x: Any) -> Any:
    found = kldiv.log_prob_and_entropy_with_logits(vector(*x), _labels(x[0]))[index]
    return found if index else -found


def _merged(*numbers: Any) -> Any:
    s, t = (vector(*half) for half in halves(numbers))
    parts = [kldiv.KLState.from_logits(s[..., i], t[..., i]) for i in (slice(2), slice(2, None))]
    return parts[0].merge(parts[1]).kl()
