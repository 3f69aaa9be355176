"""Slopes at a logit of exactly 0, where most parameters begin: no formula has a kink there."""

from __future__ import annotations

import pytest

import kldiv
from kldiv.distributions import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    Delta,
    Exponential,
    Geometric,
    HalfNormal,
    NegativeBinomial,
    Normal,
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
    assert slope.item() == pytest.approx(by_differences, rel=1e-7)
    second = sum(c * v for c, v in zip((-1, 16, -30, 16, -1), away, strict=True)) / (12 * step**2)
    assert bend.item() == pytest.approx(second, rel=1e-6)


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
