"""Logits of exactly 0, where most parameters begin, and those of chances beyond the numbers."""

from __future__ import annotations

import mpmath
import pytest
from mpmath import mp

import kldiv
from kldiv.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    ContinuousBernoulli,
    Delta,
    Exponential,
    Geometric,
    HalfNormal,
    Multinomial,
    NegativeBinomial,
    Normal,
    OneHotCategorical,
)

torch = pytest.importorskip("torch")

PAIRS = {
    "Bernoulli, P": lambda x: (Bernoulli(logits=x), Bernoulli(logits=number(3))),
    "Bernoulli, Q": lambda x: (Bernoulli(logits=number(3)), Bernoulli(logits=x)),
    "Geometric, P": lambda x: (Geometric(logits=x), Geometric(logits=number(3))),
    "Geometric, Q": lambda x: (Geometric(logits=number(3)), Geometric(logits=x)),
    "NegativeBinomial": lambda x: (
        NegativeBinomial(number(2), logits=number(4)),
        NegativeBinomial(number(2), logits=x),
    ),
    "a point": lambda x: (Delta(number(1)), Bernoulli(logits=x)),
    "no trials": lambda x: (Binomial(0, number(0.3)), Binomial(5, logits=x)),
    "ContinuousBernoulli, P": lambda x: (unit(x), unit(number(5))),
    "ContinuousBernoulli, Q": lambda x: (unit(number(5)), unit(x)),
    "ContinuousBernoulli, below": lambda x: (unit(number(-5)), unit(x)),
    "Normal": lambda x: (unit(x), Normal(number(0.2), number(2))),
    "HalfNormal": lambda x: (unit(x), HalfNormal(number(2))),
    "Exponential": lambda x: (unit(x), Exponential(number(3))),
}


def unit(x):
    return ContinuousBernoulli(logits=x)


def number(x):
    return torch.tensor(float(x), dtype=torch.float64)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_slopes_at_a_logit_of_zero(pair):
    def value(x):
        return kldiv.kl_divergence(*pair(x))

    x, step = number(0).requires_grad_(), 1e-3
    (slope,) = torch.autograd.grad(value(x), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope, x)
    away = [value(number(k * step)).item() for k in (-2, -1, 0, 1, 2)]
    by_differences = sum(c * v for c, v in zip((1, -8, 0, 8, -1), away, strict=True)) / (12 * step)
    assert slope.item() == pytest.approx(by_differences, rel=1e-7, abs=0)
    second = sum(c * v for c, v in zip((-1, 16, -30, 16, -1), away, strict=True)) / (12 * step**2)
    assert bend.item() == pytest.approx(second, rel=1e-6, abs=0)


@pytest.mark.parametrize(("at", "slope"), [(0.0, 5.0), (1.0, -5.0)])
def test_slopes_of_a_point_at_a_certain_chance(at, slope):
    chance = number(at).requires_grad_()
    kldiv.kl_divergence(Delta(number(5 * at)), Binomial(5, probs=chance)).backward()
    assert chance.grad.item() == slope


def test_no_trials_keep_the_digits_of_small_chances():
    none = Binomial(0, number(0.3))
    assert kldiv.kl_divergence(none, Binomial(5, number(1e-20))).item() == 5e-20
    found = kldiv.kl_divergence(none, Binomial(5, logits=number(800)))
    assert found.item() == 4000


# --- chances that are no numbers ------------------------------------------------------------------


def lost(x):
    """−log of the chance of 1."""
    return mp.log1p(mp.exp(-x))


def classes(x):
    return torch.stack([0.0 * x, x])


def tossed(a, b):
    """The divergence of two Bernoullis of logits."""
    return (lost(b) - lost(a)) / (1 + mp.exp(-a)) + (lost(-b) - lost(-a)) / (1 + mp.exp(a))


def quarter(x):
    return tossed(-mp.log(3), x)


FAR = {
    "a point, Bernoulli": (lambda x: (Delta(1.0), Bernoulli(logits=x)), lost),
    "a point, Binomial": (
        lambda x: (Delta(2.0), Binomial(5, logits=x)),
        lambda x: 2 * lost(x) + 3 * lost(-x) - mp.log(10),
    ),
    "a point, no successes": (
        lambda x: (Delta(0.0), Binomial(5, logits=x)),
        lambda x: 5 * lost(-x),
    ),
    "a point, Geometric": (
        lambda x: (Delta(3.0), Geometric(logits=x)),
        lambda x: lost(x) + 3 * lost(-x),
    ),
    "a point, NegativeBinomial": (
        lambda x: (Delta(3.0), NegativeBinomial(2, logits=x)),
        lambda x: 3 * lost(x) + 2 * lost(-x) - mp.log(4),
    ),
    "a point, Categorical": (lambda x: (Delta(1.0), Categorical(logits=classes(x))), lost),
    "a point, OneHotCategorical": (
        lambda x: (
            Delta(torch.tensor([0, 1]), event_dim=1),
            OneHotCategorical(logits=classes(x)),
        ),
        lost,
    ),
    "a point, Multinomial": (
        lambda x: (Delta(torch.tensor([1, 2]), event_dim=1), Multinomial(3, logits=classes(x))),
        lambda x: lost(-x) + 2 * lost(x) - mp.log(3),
    ),
    "Bernoulli of a chance": (lambda x: (Bernoulli(0.25), Bernoulli(logits=x)), quarter),
    "Geometric of a chance": (
        lambda x: (Geometric(0.25), Geometric(logits=x)),
        lambda x: 4 * quarter(x),
    ),
    "NegativeBinomial of a chance": (
        lambda x: (NegativeBinomial(3, 0.25), NegativeBinomial(3, logits=x)),
        lambda x: 4 * quarter(x),
    ),
    "NegativeBinomial of a chance, other counts": (
        lambda x: (NegativeBinomial(3.0, 0.25), NegativeBinomial(3.0, logits=x)),
        lambda x: 4 * quarter(x),
    ),
    "Categorical of chances": (
        lambda x: (Categorical(torch.tensor([0.75, 0.25]).to(x)), Categorical(logits=classes(x))),
        quarter,
    ),
    "Bernoulli, P": (
        lambda x: (Bernoulli(logits=x), Bernoulli(logits=2.0)),
        lambda x: tossed(x, 2),
    ),
    "Bernoulli, both": (
        lambda x: (Bernoulli(logits=x), Bernoulli(logits=x - 1)),
        lambda x: tossed(x, x - 1),
    ),
    "Geometric, P": (
        lambda x: (Geometric(logits=x), Geometric(logits=2.0)),
        lambda x: tossed(x, 2) * (1 + mp.exp(-x)),
    ),
    "Geometric, Q": (
        lambda x: (Geometric(logits=2.0), Geometric(logits=x)),
        lambda x: tossed(2, x) * (1 + mp.exp(-2)),
    ),
    "Geometric, both": (
        lambda x: (Geometric(logits=x), Geometric(logits=x - 1)),
        lambda x: tossed(x, x - 1) * (1 + mp.exp(-x)),
    ),
    "NegativeBinomial, both, other counts": (
        lambda x: (NegativeBinomial(3.0, logits=x), NegativeBinomial(3.0, logits=x + 1)),
        lambda x: 3 * tossed(x, x + 1) * (1 + mp.exp(x)),
    ),
    "Geometric, equal": (lambda x: (Geometric(logits=x), Geometric(logits=x)), lambda x: 0 * x),
}


@pytest.mark.parametrize(("pair", "truth"), FAR.values(), ids=FAR)
@pytest.mark.parametrize("at", [-1, -0.9, 0.9, 1])  # at 0.9 the smaller chance is subnormal
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_slopes_at_far_logits(pair, truth, at, dtype):
    far, close = (800.0, 1e-14) if dtype == "float64" else (110.0, 1e-6)
    numbers = torch.finfo(getattr(torch, dtype))
    x = torch.tensor(at * far, dtype=getattr(torch, dtype), requires_grad=True)
    value = kldiv.kl_divergence(*pair(x))
    with mpmath.workdps(1000):
        at = mp.mpf(x.item())
        wanted, slope = truth(at), mp.diff(truth, at)
        if wanted > numbers.max:
            assert value.item() == mp.inf
            return
        assert value.item() == pytest.approx(float(wanted), rel=close, abs=numbers.tiny)
    value.backward()
    assert x.grad.item() == pytest.approx(float(slope), rel=close, abs=numbers.tiny)
