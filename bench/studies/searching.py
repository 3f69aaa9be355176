"""What a search can attack: public functions with their truth by mpmath, and inputs to begin from.

A target computes a batch of cases at once, each case a row of numbers: value, gradient and, where
the library has it, the Hessian in these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import mpmath
import numpy as np

import kldiv
from kldiv import distributions, estimators

from ..oracle import textbook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Floats = np.ndarray[Any, np.dtype[np.float64]]


class Found(NamedTuple):
    """What a library makes of n cases of k numbers; None where it has no derivative."""

    value: Floats  # (n,)
    gradient: Floats | None = None  # (n, k)
    hessian: Floats | None = None  # (n, k, k)


@dataclass(frozen=True)
class Target:
    """A function of ``k`` numbers, with its truth."""

    name: str
    truth: Callable[..., Any]
    """The function, of mpmath's numbers."""
    call: Callable[..., Any]
    """The function of kldiv, of ``k`` arrays of n numbers each, giving n numbers."""
    ranges: tuple[str, ...]
    """What each number is: a name of `RANGES`."""
    twins: tuple[tuple[int, int], ...] = ()
    """Pairs of numbers, of P and of Q, that are interesting where they are close."""
    units: float = 10.0
    """How many units of roundoff, scaled by the condition, it may be off."""


# What numbers are drawn from: the decimal exponents of their size, whether of both signs, limits.
RANGES: dict[str, tuple[float, float, bool, float, float]] = {
    "location": (-3, 3, True, -np.inf, np.inf),
    "scale": (-3, 3, False, 1e-30, 1e30),
    "shape": (-3, 5, False, 1e-6, 1e8),
    "angle": (-3, 0.5, True, -np.pi, np.pi),
    "probability": (-6, 0, False, 1e-30, 1 - 2.0**-20),
    "logit": (-3, 1.5, True, -60, 60),
    "order": (-3, 1.5, False, 1e-6, 1e3),
}


def draw(target: Target, random: np.random.Generator, dtype: str) -> Floats:
    """Return a case: each number log-uniform, half of the twins close to one another."""
    case = np.empty(len(target.ranges))
    for i, name in enumerate(target.ranges):
        low, high, signed, *_ = RANGES[name]
        case[i] = 10 ** random.uniform(low, high) * (random.choice([-1, 1]) if signed else 1)
    if random.random() < 0.5:
        near = 10 ** random.uniform(-7, -0.5)
        for i, j in target.twins:
            case[j] = case[i] * (1 + near * random.standard_normal())
    return settle(target, case, dtype)


def mutate(target: Target, case: Floats, random: np.random.Generator, dtype: str) -> Floats:
    """Return a neighbour of a case, or one with two numbers made equal."""
    case = case.copy()
    kind = random.random()
    if target.twins and kind < 0.2:
        i, j = target.twins[random.integers(len(target.twins))]
        case[j] = case[i]
    else:
        i = random.integers(len(case))
        step = 10 ** random.uniform(-7, 0.3) * random.standard_normal()
        case[i] *= np.exp(np.clip(step, -5, 5))
    return settle(target, case, dtype)


def settle(target: Target, case: Floats, dtype: str) -> Floats:
    """Return the case within its limits, as the dtype holds it."""
    limits = np.array([RANGES[name][3:] for name in target.ranges])
    return np.clip(case, *limits.T).astype(dtype).astype(np.float64)


_CLASSES = 3
_TWINS = tuple((i, _CLASSES + i) for i in range(_CLASSES))

# --- closed forms ---------------------------------------------------------------------------------


def _family(name: str, *ranges: str, truth: Any = None, **options: Any) -> Target:
    """Return the divergence of two members of a family whose parameters are these."""
    family, k = getattr(distributions, name), len(ranges)
    names = options.pop("names", (None,) * k)

    def made(numbers: Any) -> Any:
        given = dict(zip(names, numbers, strict=True))
        return family(*numbers) if None in given else family(**given)

    def call(*numbers: Any) -> Any:
        return kldiv.kl_divergence(made(numbers[:k]), made(numbers[k:]))

    twins = tuple((i, k + i) for i in range(k))
    return Target(
        name, truth or getattr(textbook, name.lower()), call, 2 * ranges, twins, **options
    )


def closed_forms() -> Iterator[Target]:
    """Yield the families whose divergence stands in a textbook."""
    yield _family("Normal", "location", "scale")
    yield _family("Laplace", "location", "scale")
    yield _family("Cauchy", "location", "scale")
    yield _family("Gumbel", "location", "scale")
    yield _family("HalfNormal", "scale", truth=textbook.half_normal)
    yield _family("Exponential", "scale")
    yield _family("Gamma", "shape", "scale")
    yield _family("InverseGamma", "shape", "scale", truth=textbook.gamma)
    yield _family("Chi2", "shape")
    yield _family("Beta", "shape", "shape")
    yield Target(
        "Dirichlet",
        lambda *x: textbook.dirichlet(x[:_CLASSES], x[_CLASSES:]),
        lambda *x: _rows(
            lambda p, q: kldiv.kl_divergence(*map(distributions.Dirichlet, (p, q))), x
        ),
        2 * _CLASSES * ("shape",),
        _TWINS,
    )
    yield _family("Weibull", "scale", "shape", units=40.0)
    yield _family("VonMises", "angle", "shape", truth=textbook.von_mises)
    yield _family("Poisson", "scale")
    yield _family("Bernoulli", "probability")
    yield _family("Bernoulli", "logit", truth=textbook.bernoulli_logits, names=("logits",))
    yield _family("Geometric", "probability")
    yield _family(
        "ContinuousBernoulli",
        "logit",
        truth=lambda a, b: textbook.continuous_bernoulli(_sigmoid(a), _sigmoid(b)),
        names=("logits",),
    )


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


# --- rows of probabilities, of logits; samples ----------------------------------------------------


def _rows(function: Any, numbers: Any, **options: Any) -> Any:
    """Return a function of two rows: the first half of the numbers, and the rest."""
    xp = kldiv.backends.find(numbers[0]).namespace(numbers[0])
    p, q = (xp.stack(list(half), axis=-1) for half in (numbers[:_CLASSES], numbers[_CLASSES:]))
    return function(p, q, **options)


def _generalised(*numbers: Any) -> Any:
    pairs = zip(numbers[:_CLASSES], numbers[_CLASSES:], strict=True)
    return mpmath.fsum(p * mpmath.log(p / q) - p + q for p, q in pairs)


def _jensen_shannon(*numbers: Any) -> Any:
    p, q = numbers[:_CLASSES], numbers[_CLASSES:]
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (_generalised(*p, *m) + _generalised(*q, *m)) / 2


def _of_logits(*numbers: Any) -> Any:
    def softmax(logits: Any) -> Any:
        weights = [mpmath.exp(x) for x in logits]
        return [w / mpmath.fsum(weights) for w in weights]

    return _generalised(*softmax(numbers[_CLASSES:]), *softmax(numbers[:_CLASSES]))


def rows() -> Iterator[Target]:
    """Yield measures of probabilities and losses of logits."""
    measures = {
        "kl_divergence": (_generalised, kldiv.kl_divergence, {}),
        "js_divergence": (_jensen_shannon, kldiv.js_divergence, {}),
        "jeffreys_divergence": (
            lambda *x: _generalised(*x) + _generalised(*x[_CLASSES:], *x[:_CLASSES]),
            kldiv.jeffreys_divergence,
            {},
        ),
    }
    for name, (truth, function, options) in measures.items():
        call = partial(lambda f, o, *numbers: _rows(f, numbers, **o), function, options)
        yield Target(name, truth, call, 2 * _CLASSES * ("probability",), _TWINS)
    yield Target(
        "kl_div_with_logits",
        _of_logits,
        lambda *numbers: _rows(kldiv.kl_div_with_logits, numbers, reduction="none"),
        2 * _CLASSES * ("logit",),
        _TWINS,
    )


def samples() -> Iterator[Target]:
    """Yield the k3 estimate of one sample."""
    yield Target(
        "kl_estimate k3",
        lambda p, q: mpmath.exp(q - p) - 1 - (q - p),
        lambda p, q: estimators.kl_estimate(p, q, reduction="none"),
        ("logit", "logit"),
        ((0, 1),),
    )


GROUPS = {"closed forms": closed_forms, "rows": rows, "samples": samples}


# --- libraries ------------------------------------------------------------------------------------


def by_numpy(target: Target, cases: Floats, dtype: str) -> Found:
    """Return values; NumPy differentiates no function of a user's."""
    return Found(np.asarray(target.call(*cases.T.astype(dtype)), dtype=np.float64))


def by_torch(target: Target, cases: Floats, dtype: str) -> Found:
    """Return values, gradients and Hessians by autograd: cases do not mix, so sums have all."""
    import torch

    numbers = [torch.tensor(column.astype(dtype), requires_grad=True) for column in cases.T.copy()]
    value = target.call(*numbers)
    slopes = torch.autograd.grad(
        value.sum(), numbers, create_graph=True, materialize_grads=True, allow_unused=True
    )
    bends = [
        torch.autograd.grad(
            slope.sum(), numbers, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        if slope.requires_grad
        else [torch.zeros_like(slope)] * len(numbers)
        for slope in slopes
    ]
    return Found(
        value.detach().double().numpy(),
        torch.stack(slopes, -1).detach().double().numpy(),
        torch.stack([torch.stack(list(row), -1) for row in bends], -2).double().numpy(),
    )


def by_jax(target: Target, cases: Floats, dtype: str) -> Found:
    """Return values, gradients and Hessians of each case, compiled once a target."""
    import jax

    with jax.enable_x64(dtype == "float64"):
        key = target.name, target.ranges, dtype
        if key not in _COMPILED:

            def one(numbers: Any) -> Any:
                return target.call(*(x[None] for x in numbers))[0]

            def all_three(numbers: Any) -> Any:
                return one(numbers), jax.grad(one)(numbers), jax.hessian(one)(numbers)

            _COMPILED[key] = jax.jit(jax.vmap(all_three))
        found = _COMPILED[key](jax.numpy.asarray(cases.astype(dtype)))
    return Found(*(np.asarray(each, np.float64) for each in found))


_COMPILED: dict[Any, Any] = {}
LIBRARIES = {"numpy": by_numpy, "torch": by_torch, "jax": by_jax}
