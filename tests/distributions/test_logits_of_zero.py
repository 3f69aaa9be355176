"""Slopes at a logit of exactly 0, where most parameters begin: no formula has a kink there."""

from __future__ import annotations

import pytest

import kldiv
from kldiv.distributions import Bernoulli, Binomial, Delta, Geometric, NegativeBinomial

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
}


def number(x):
    return torch.tensor(float(x), dtype=torch.float64)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_slopes_at_a_logit_of_zero(pair):
    x, step = number(0).requires_grad_(), 1e-5
    kldiv.kl_divergence(*pair(x)).backward()
    above, below = (kldiv.kl_divergence(*pair(number(at))) for at in (step, -step))
    assert x.grad.item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-7)


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
