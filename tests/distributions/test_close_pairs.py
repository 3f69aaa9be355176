"""Pairs of different families that come close, large parameters, a batch with a point mass."""

from __future__ import annotations

import numpy as np
import pytest
from libraries import PAIRED, Library, require, unit

from bench.oracle.moments import condition, divergence, exact
from kldiv import distributions as d
from kldiv import kl_divergence as kl

# P, Q, then the parameters of both.
CLOSE = [
    ("Gamma", "Normal", (1e4, 100.0), (100.0, 1.0)),
    ("Gamma", "Normal", (1e8, 1.0), (1e8, 1e4)),
    ("Gamma", "Normal", (0.01, 3.0), (0.0, 0.1)),
    ("Gamma", "HalfNormal", (1e8, 1.0), (1e8,)),
    ("Weibull", "Normal", (1.0, 1e8), (1.0, 1e-8)),
    ("Weibull", "Normal", (2.0, 3.6), (1.8, 0.55)),
    ("Weibull", "Gamma", (2.0, 1.0), (1.0001, 0.5)),
    ("Weibull", "Gamma", (2.0, 1.001), (0.999, 0.501)),
    ("Weibull", "Gamma", (1.0, 1e6), (1e12, 1e12)),
    ("Weibull", "HalfNormal", (3.0, 0.5), (2.0,)),
    ("LogNormal", "Normal", (0.0, 1e-4), (1.0, 1e-4)),
    ("LogNormal", "Gamma", (1.0, 1e-3), (1e6, 367879.6)),
    ("LogNormal", "Exponential", (0.0, 1.0), (0.6,)),
    ("Beta", "Normal", (500.0, 500.0), (0.5, 0.0158)),
    ("Beta", "Normal", (1e8, 1e8), (0.5, 3.5e-5)),
    ("Beta", "Normal", (2.0, 1e6), (2e-6, 1.4e-6)),
    ("Beta", "Gamma", (2.0, 1e8), (2.0, 1e8)),
    ("Beta", "Gamma", (1e-6, 1.0), (1e-6, 1.0)),
    ("Beta", "Gamma", (1e6, 5.0), (5e5, 5e5)),
    ("Beta", "Exponential", (1.0, 1e6), (1e6,)),
    ("Beta", "Uniform", (1.0001, 0.9999), (0.0, 1.0)),
    ("Beta", "Uniform", (1e6, 1e6), (-1.0, 3.0)),
    ("Beta", "ContinuousBernoulli", (1.001, 0.999), (0.003,)),
    ("Beta", "ContinuousBernoulli", (1.0, 1e4), (-1e4,)),
    ("Beta", "ContinuousBernoulli", (1e4, 1.0), (1e4,)),
    ("ContinuousBernoulli", "Uniform", (1e-3,), (0.0, 1.0)),
    ("ContinuousBernoulli", "Exponential", (-20.0,), (20.0,)),
    ("ContinuousBernoulli", "Exponential", (-0.04,), (2.0,)),
    ("ContinuousBernoulli", "HalfNormal", (-2200.0,), (6e-4,)),
    ("ContinuousBernoulli", "Normal", (0.012,), (0.5, 0.3)),
    ("Uniform", "Beta", (0.0, 1.0), (1.0001, 0.9997)),
    ("Uniform", "Beta", (0.4999, 0.5001), (3e7, 3e7)),
    ("Uniform", "ContinuousBernoulli", (0.0, 1.0), (1e-3,)),
    ("Uniform", "ContinuousBernoulli", (0.999, 1.0), (1500.0,)),
    ("Uniform", "Gamma", (0.999, 1.0), (1e7, 1e7)),
    ("Uniform", "Pareto", (0.5, 0.5001), (0.5, 5000.0)),
]
IN_JAX = {  # each takes a second to compile
    ("Gamma", "Normal"),
    ("Weibull", "Normal"),
    ("LogNormal", "Gamma"),
    ("Beta", "Gamma"),
    ("ContinuousBernoulli", "Exponential"),
}


def make(name, parameters):
    if name == "ContinuousBernoulli":
        return d.ContinuousBernoulli(logits=parameters[0])
    return getattr(d, name)(*parameters)


@pytest.mark.parametrize(("library", "dtype"), PAIRED, ids=lambda x: getattr(x, "value", x))
def test_close_pairs(library, dtype):
    """Right to 1e-14 in float64, 1e-5 in float32, times the condition."""
    require(library)
    compile_ = pytest.importorskip("jax").jit if library is Library.JAX else None
    for p, q in dict.fromkeys(pair[:2] for pair in CLOSE):
        rows = [[*pair[2], *pair[3]] for pair in CLOSE if pair[:2] == (p, q)]
        size = next(len(pair[2]) for pair in CLOSE if pair[:2] == (p, q))
        if compile_ and (p, q) not in IN_JAX:
            continue
        x = np.array(rows, dtype)

        def value_of(*leaves, names=(p, q), size=size):
            return kl(make(names[0], leaves[:size]), make(names[1], leaves[size:]))

        leaves = [library.from_numpy(np.ascontiguousarray(column)) for column in x.T]
        found = library.numpy((compile_(value_of) if compile_ else value_of)(*leaves))
        function = divergence(p, q, size)
        for value, row in zip(found, x, strict=True):
            wanted = exact(function, row)
            allowed = 100 * unit(dtype) * condition(function, row) * wanted
            assert abs(float(value) - wanted) <= allowed, (p, q, row, float(wanted))


def test_gradients_of_close_pairs():
    """Finite, in float32, where the pair is close."""
    torch = pytest.importorskip("torch")
    for p, q, of_p, of_q in CLOSE:
        leaves = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (*of_p, *of_q)]
        value = kl(make(p, leaves[: len(of_p)]), make(q, leaves[len(of_p) :]))
        slopes = torch.autograd.grad(value, leaves)
        assert all(torch.isfinite(slope) for slope in slopes), (p, q, of_p, of_q)


def test_slopes_of_a_close_pair():
    """∂/∂μ of D(Gamma(a, r)‖Normal(μ, σ)) is −(a/r − μ)/σ²; ∂/∂σ vanishes at σ² = a/r²."""
    torch = pytest.importorskip("torch")
    values = (1e4, 100.0, 100.001, 1.0)
    a, r, loc, scale = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in values)
    slopes = torch.autograd.grad(kl(d.Gamma(a, r), d.Normal(loc, scale)), (loc, scale))
    assert slopes[0].item() == pytest.approx(1e-3, rel=1e-9, abs=0)
    assert slopes[1].item() == pytest.approx(-1e-6, rel=1e-6, abs=0)


# --- edges ----------------------------------------------------------------------------------------


def test_edges_leak_into_no_other_entry():
    """A batch with a point mass keeps the gradients of the rest, and none is NaN."""
    torch = pytest.importorskip("torch")
    scale = torch.tensor([0.0, 1.0], requires_grad=True)
    value = kl(d.Normal(torch.tensor([0.5, 0.0]), scale), d.Laplace(0.0, 1.0))
    (slope,) = torch.autograd.grad(value[1], scale)
    alone = torch.tensor(1.0, requires_grad=True)
    (wanted,) = torch.autograd.grad(kl(d.Normal(0.0, alone), d.Laplace(0.0, 1.0)), alone)
    assert slope.tolist() == [0.0, wanted.item()]
