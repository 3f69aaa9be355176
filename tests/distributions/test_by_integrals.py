"""Closed forms with one integral at fixed nodes, against sums and integrals of 30 digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from libraries import unit

from kldiv import distributions as d
from kldiv import kl_divergence as kl


def negative_binomials(r1, p, r2, q):
    """Return the sum over counts."""
    r1, p, r2, q = (mpmath.mpf(float(x)) for x in (r1, p, r2, q))
    log_p, log_q = r1 * mpmath.log(1 - p), r2 * mpmath.log(1 - q)
    total = mpmath.mpf(0)
    mean = r1 * p / (1 - p)
    for k in range(int(mean + 40 * mpmath.sqrt(mean / (1 - p)) + 60 / (1 - p) + 50)):
        total += mpmath.exp(log_p) * (log_p - log_q)
        log_p += mpmath.log(p * (k + r1) / (k + 1))
        log_q += mpmath.log(q * (k + r2) / (k + 1))
    return total


COUNTS = [
    (5, 0.3, 6, 0.3),
    (3, 0.3, 3.0001, 0.29999),
    (1, 0.5, 1, 0.2),
    (0.01, 0.5, 3, 0.2),
    (50, 0.1, 1e3, 0.01),
    (2, 0.95, 0.1, 0.99),
    (1.0, 0.5, 1e8, 1e-8),
    (1e-6, 0.3, 2.0, 0.3),
]


@pytest.mark.parametrize("case", COUNTS)
def test_negative_binomials_of_different_counts(case):
    for dtype in ("float64", "float32"):
        r1, p, r2, q = np.array(case, dtype)
        with mpmath.workdps(30):
            wanted = negative_binomials(r1, p, r2, q)
            found = kl(d.NegativeBinomial(r1, p), d.NegativeBinomial(r2, q))
            assert found.dtype == dtype
            assert abs(mpmath.mpf(float(found)) - wanted) < 20 * unit(dtype) * wanted
    logits = [math.log(x) - math.log1p(-x) for x in (case[1], case[3])]
    again = kl(
        d.NegativeBinomial(float(case[0]), logits=logits[0]),
        d.NegativeBinomial(float(case[2]), logits=logits[1]),
    )
    with mpmath.workdps(30):
        wanted = float(negative_binomials(*case))
    np.testing.assert_allclose(again, wanted, rtol=1e-10)


@pytest.mark.parametrize("case", COUNTS[:5])
def test_negative_binomials_of_torch_in_float32(case):
    torch = pytest.importorskip("torch")
    r1, p, r2, q = (torch.tensor(x, dtype=torch.float32) for x in case)
    make = torch.distributions.NegativeBinomial
    found = kl(make(r1, p, validate_args=False), make(r2, q, validate_args=False))
    wanted = negative_binomials(r1, p, r2, q)
    # PyTorch's own logits of probs are what its object was not given: probs are taken.
    near = 3e3 if case[2] == 3.0001 else 100
    assert abs(found - float(wanted)) < near * unit("float32") * float(wanted)


def test_edges_of_negative_binomials():
    r = np.array([0.0, 5, 5, 0, 3])
    p = np.array([0.5, 0.0, 0.3, 0.5, 0.0])
    s = np.array([3.0, 6, 0, 0, 0])
    q = np.array([0.5, 0.5, 0.5, 0.2, 0.4])
    wanted = [3 * math.log(2), 6 * math.log(2), math.inf, 0, 0]
    np.testing.assert_allclose(kl(d.NegativeBinomial(r, p), d.NegativeBinomial(s, q)), wanted)
    ones = (
        kl(d.Geometric(**half), d.NegativeBinomial(4, 0.4))
        for half in ({"probs": 0.5}, {"logits": 0.0})
    )
    np.testing.assert_allclose(*ones, rtol=1e-13)
    found = kl(d.NegativeBinomial(2, 0.3), d.NegativeBinomial(3, math.nan))
    assert math.isnan(found)


@pytest.mark.parametrize("logits", [(60.0, 61.0), (85.0, 85.0), (200.0, 201.0)])
@pytest.mark.parametrize("counts", [(2.5, 7.0), (5.0, 3.0), (30.0, 20.0)])
def test_odds_without_end_are_those_of_two_gammas(counts, logits):
    """And the odds' exponential need not be a number of the dtype."""
    torch = pytest.importorskip("torch")

    def gammas(r, a, s, b):
        value = (r - s) * mpmath.digamma(r) - mpmath.loggamma(r) + mpmath.loggamma(s)
        return value + s * (b - a) + r * mpmath.expm1(a - b)

    for dtype, tolerance in ((torch.float32, 100), (torch.float64, 3000)):
        case = (counts[0], logits[0], counts[1], logits[1])
        x = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in case]
        value = kl(*(d.NegativeBinomial(r, logits=v) for r, v in (x[:2], x[2:])))
        slopes = torch.autograd.grad(value, x)
        with mpmath.workdps(50):
            wanted = [mpmath.diff(gammas, case, tuple(i == j for j in range(4))) for i in range(4)]
            value -= float(gammas(*case))
            rest = [float(g) - w for g, w in zip(slopes, wanted, strict=True)]
        bound = tolerance * torch.finfo(dtype).eps
        assert abs(value.item()) < bound * abs(np.multiply(case, np.array(wanted, float))).sum()
        assert max(abs(v) for v in rest) < bound * max(abs(w) for w in wanted)


def test_slopes_of_counts():
    """At equal counts too, where the formula for them knows nothing of the other's."""
    torch = pytest.importorskip("torch")
    x = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 0.3, 2.0, 0.4)]
    slopes = torch.autograd.grad(
        kl(d.NegativeBinomial(x[0], x[1]), d.NegativeBinomial(x[2], x[3])), x
    )
    # E ψ(k + r) − ψ(r) = −log(1 − p)
    assert float(slopes[2]) == pytest.approx(math.log(0.7 / 0.6), rel=1e-12)
    x = [
        torch.tensor([v, 1.5 * v], dtype=torch.float64, requires_grad=True)
        for v in (2, 0.3, 3, 0.4)
    ]

    def value(*a):
        return kl(d.NegativeBinomial(a[0], a[1]), d.NegativeBinomial(a[2], a[3]))

    assert torch.autograd.gradcheck(value, x)


def kumaraswamy_beta(a, b, c, e):
    """Return the divergence and the sum of the sizes of its terms; v = e^(−s/b) is 1 − xᵃ."""
    a, b, c, e = (mpmath.mpf(x) for x in (a, b, c, e))
    scale = min(b, 1)
    cuts = [
        0,
        scale / 10**6,
        scale / 1000,
        b / 100,
        b / 10,
        b,
        3 * b,
        10 * b,
        10 * b + 10,
        10 * b + 60,
    ]
    log_rest = mpmath.quad(
        lambda s: mpmath.exp(-s) * mpmath.log(-mpmath.expm1(mpmath.log1p(-mpmath.exp(-s / b)) / a)),
        cuts,
    )
    log_x = -(mpmath.digamma(b + 1) + mpmath.euler) / a
    terms = [
        mpmath.log(a * b),
        (a - c) * log_x,
        (1 - b) / b,
        mpmath.log(mpmath.beta(c, e)),
        (1 - e) * log_rest,
    ]
    return mpmath.fsum(terms), mpmath.fsum(map(abs, terms))


@pytest.mark.parametrize(
    "case", [(1.5, 2, 2, 3), (0.05, 0.1, 1, 1.5), (20, 0.3, 0.5, 7), (0.001, 50, 0.5, 2)]
)
def test_kumaraswamy_and_beta(case):
    pytest.importorskip("scipy")
    with mpmath.workdps(25):
        wanted, size = kumaraswamy_beta(*case)
    found = kl(d.Kumaraswamy(*case[:2]), d.Beta(*case[2:]))
    assert abs(float(found - wanted)) < 8 * unit("float64") * size
    torch = pytest.importorskip("torch")
    numbers = [torch.tensor(x, dtype=torch.float32) for x in case]
    found = kl(d.Kumaraswamy(*numbers[:2]), d.Beta(*numbers[2:]))
    assert abs(float(found) - float(wanted)) < 8 * unit("float32") * size


def test_kumaraswamys_that_are_betas():
    pytest.importorskip("scipy")
    for a, b in ((1.0, 2.5), (0.3, 1.0)):
        np.testing.assert_allclose(kl(d.Kumaraswamy(a, b), d.Beta(a, b)), 0, atol=1e-15)
