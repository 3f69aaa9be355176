"""Divergences of distributions on every library: derivatives, the registry, methods, errors."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distribution_pairs import make, pairs
from libraries import Library, require

import kldiv
from kldiv import distributions as d
from kldiv import kl_divergence as kl
from kldiv.distributions import registry
from kldiv.errors import BackendError, DTypeError, LibraryError, OptionError, ShapeError

INF = math.inf


# --- every library --------------------------------------------------------------------------------


def some(lib):
    """A few pairs that need each kind of piece."""
    x = lib.array([0.5, 1.0, 2.5])
    return [
        (d.Normal(x, 2 * x), d.Normal(0.0, x), "normal"),
        (d.Gamma(x, 2.0), d.Gamma(1.0, x), "gamma"),
        (d.Gamma(x, 2.0), d.Normal(1.0, x), "special functions"),
    ]


def test_every_library(lib):
    reference = some(Library.NUMPY)
    for (p, q, _), (a, b, name) in zip(some(lib), reference, strict=True):
        if lib is Library.STRICTEST and name == "special functions":
            continue
        expected = kl(a, b)
        scale = 64 * max(1, float(np.max(expected)))
        lib.assert_equal(kl(p, q), expected, ulps=scale)


def test_dtypes_and_batches(lib):
    for dtype in lib.floats:
        loc = lib.array([[0.0], [1.0]], dtype)
        found = kl(d.Normal(loc, 1), d.Normal(lib.array([0.0, 1.0, 2.0], dtype), 2.0))
        lib.assert_like(found, (2, 3), dtype)
        if lib.root == "jax":
            break


def test_numbers_alone_are_float64():
    assert kl(d.Normal(0, 1), d.Normal(0, 2)).dtype == np.float64
    assert kl(d.Poisson(np.array([1, 2])), d.Poisson(2)).dtype == np.float64


def test_base_and_broadcast_of_unused_parameters():
    bits = kl(d.Exponential(0.2), d.Exponential(0.4), base=2)
    np.testing.assert_allclose(bits, (1 - math.log(2)) / math.log(2))
    assert kl(d.Normal(np.zeros((4, 1)), 1), d.Beta(np.ones(3), 1)).shape == (4, 3)


def test_another_backend_computes():
    require(Library.TORCH)
    x = np.array([0.5, 2.0])
    with kldiv.config_context(backend="torch"):
        found = kl(d.Gamma(x, 1.0), d.Gamma(2.0, x))
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, kl(d.Gamma(x, 1.0), d.Gamma(2.0, x)), rtol=1e-13)


def test_dask_stays_lazy_and_says_what_it_cannot():
    da = pytest.importorskip("dask.array")
    x = da.from_array(np.array([0.5, 1.0, 2.5]), chunks=2)
    lazy = kl(d.Gamma(x, 2.0), d.Gumbel(1.0, x))
    assert isinstance(lazy, da.Array)
    with pytest.raises(LibraryError, match="Dirichlet has events with axes"):
        kl(d.Dirichlet(x), d.Dirichlet(x))


# --- derivatives ----------------------------------------------------------------------------------

KINKS = {("Uniform", "Laplace")}


def interior(p, q):
    rng = np.random.default_rng(sum(map(ord, p + q)) + 2)
    return make(p, rng), make(q, rng)


# Where it is infinite the slope is 0 or undefined.
FINITE = [pair for pair in pairs() if np.isfinite(kl(*interior(*pair))).all()]


@pytest.mark.parametrize(("p", "q"), FINITE)
def test_gradients_of_every_parameter(torch, p, q):
    a, b = interior(p, q)
    leaves: list[Any] = []
    specs = [d.base.flatten(x, leaves) for x in (a, b)]
    tensors = [
        torch.tensor(np.asarray(leaf, float)[..., :], requires_grad=True)
        if np.ndim(leaf)
        else torch.tensor(float(leaf), dtype=torch.float64)
        for leaf in leaves
    ]

    def value(*arrays):
        x, y = (d.base.rebuild(spec, list(arrays)) for spec in specs)
        return kl(x, y)

    if "Multivariate" in p + q:  # a covariance stays symmetric
        inner = value

        def value(*arrays):
            return inner(
                *(
                    (x + x.mT) / 2 if x.ndim == 3 and x.shape[-1] == x.shape[-2] else x
                    for x in arrays
                )
            )

    assert torch.autograd.gradcheck(value, tensors, atol=1e-6, rtol=1e-5)


def test_gradients_near_equality(torch):
    """φ's slope, not a difference of large numbers: ∂/∂μ = (μ₁ − μ₂)/σ²."""
    loc = torch.tensor(1.0 + 1e-9, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kl(d.Normal(loc, 2.0), d.Normal(1.0, 2.0)), loc)
    assert slope.item() == pytest.approx((loc.item() - 1.0) / 4, rel=1e-13)
    rate = torch.tensor(2.0 + 1e-7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kl(d.Poisson(rate), d.Poisson(2.0)), rate)
    assert slope.item() == pytest.approx(math.log1p((rate.item() - 2) / 2), rel=1e-12)


def test_torch_compiles_and_maps(torch):
    torch.compiler.reset()
    x = torch.tensor([0.5, 1.0], dtype=torch.float64)

    def loss(x):
        return kl(d.Normal(x, 1.0), d.Normal(0.0, x)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))
    each = torch.func.vmap(torch.func.grad(loss))(x)
    torch.testing.assert_close(each, torch.func.grad(loss)(x))


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ("Normal", "Normal"),
        ("Gamma", "Gamma"),
        pytest.param("Beta", "Beta", marks=pytest.mark.slow),
        ("VonMises", "VonMises"),
        ("Categorical", "Categorical"),
        ("MultivariateNormal", "MultivariateNormal"),
    ],
)
def test_jax_transforms_holders(jax, p, q):
    rng = np.random.default_rng(7)
    host, other = make(p, rng), make(q, rng)  # NumPy's need no compiler
    with jax.enable_x64(True):
        a, b = (jax.tree_util.tree_map(jax.numpy.asarray, each) for each in (host, other))

        def summed(a, b):
            value = kl(a, b)
            return value.sum(), value

        gradient, value = jax.jit(jax.grad(summed, has_aux=True))(a, b)
        np.testing.assert_allclose(value, kl(host, other), rtol=1e-12)
        assert type(gradient) is type(a)
        found, told = (jax.tree_util.tree_flatten(x) for x in (gradient, a))
        assert found[1] == told[1]
        step = 1e-6
        for i, (slope, leaf) in enumerate(zip(found[0], told[0], strict=True)):
            if p == "MultivariateNormal" and leaf.ndim == 3:
                continue  # a covariance moves symmetrically: torch's test has it
            moved = []
            for sign in (1, -1):
                leaves = [np.array(each) for each in told[0]]
                leaves[i][(0,) * leaf.ndim] += sign * step
                moved.append(kl(jax.tree_util.tree_unflatten(told[1], leaves), other).sum())
            wanted = (moved[0] - moved[1]) / (2 * step)
            np.testing.assert_allclose(slope[(0,) * leaf.ndim], wanted, rtol=1e-6, atol=1e-8)


# --- the registry ---------------------------------------------------------------------------------


@pytest.fixture
def own_registry(monkeypatch):
    registry.find(d.Normal, d.Normal)
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))
    monkeypatch.setattr(registry, "_found", {})


@dataclass(frozen=True, eq=False)
class Special(d.Normal):
    """A normal that is its own family."""


def test_the_most_specific_pair_is_taken(own_registry):
    p, q = Special(0, 1), Special(1, 2)
    assert kl(p, q) == kl(d.Normal(0, 1), d.Normal(1, 2))

    @kldiv.register_kl(Special, d.Normal)
    def left(xp, p, q):
        return p.loc * 0 + 7

    assert kl(p, q) == 7
    assert kl(d.Normal(0, 1), q) != 7

    @kldiv.register_kl(d.Normal, Special)
    def right(xp, p, q):
        return p.loc * 0 + 8

    with pytest.warns(RuntimeWarning, match="equally specific"):
        assert kl(p, q) == 7
    kldiv.register_kl(Special, Special)(right)
    assert kl(p, q) == 8


def test_no_closed_form_names_what_would_work():
    with pytest.raises(d.NoClosedFormError, match=r"method='quadrature'.*method='monte_carlo'"):
        kl(d.StudentT(3), d.Normal(0, 1))
    assert issubclass(d.NoClosedFormError, NotImplementedError)


def test_the_table_of_the_documentation_is_the_registry():
    from tools.tables import pairs_table

    page = Path(kldiv.__file__).parents[1] / "docs" / "distributions.md"
    text = page.read_text(encoding="utf-8")
    table = text.partition("<!-- pairs -->\n")[2].partition("\n<!-- /pairs -->")[0]
    assert table == pairs_table(), f"paste this into {page.name}:\n{pairs_table()}"
    assert "registered without words" not in table


# --- methods --------------------------------------------------------------------------------------


def test_methods():
    p, q = d.StudentT(5.0, 0.0, 1.0), d.Normal(0.5, 2.0)
    exact, sampled = (kl(p, q, method=method) for method in ("quadrature", "monte_carlo"))
    assert isinstance(exact, d.Estimate)
    assert exact.standard_error < 1e-9
    assert abs(sampled.value - exact.value) < 5 * sampled.standard_error < 0.05
    pair = d.Normal(np.array([0.0, 1.0]), 1), d.Laplace(0, 1)
    found = kl(*pair, method="quadrature", base=2).value
    np.testing.assert_allclose(found, kl(*pair, base=2), rtol=1e-10)
    assert np.isinf(kl(d.Normal(0, 1), d.Poisson(1), method="quadrature").value)
    rates = d.Poisson(np.array([0.0, 1.0]))
    found = kl(rates, d.Binomial(3, 0.5), method="quadrature").value
    np.testing.assert_allclose(found, [3 * math.log(2), INF])


def test_independent():
    locs = np.array([[0.0, 1.0], [2.0, 3.0]])
    p, q = (d.Independent(d.Normal(x, 1.0), 1) for x in (locs, 0.0 * locs))
    np.testing.assert_allclose(kl(p, q), [0.5, 6.5])
    one, zero = (d.Independent(d.Normal(x, 1.0), 1) for x in (locs[0], 0.0 * locs[0]))
    vectors = [d.MultivariateNormal(x, np.eye(2)) for x in (locs[0], 0.0 * locs[0])]
    for pair in ((one, zero), vectors):
        sampled = kl(*pair, method="monte_carlo")
        assert abs(sampled.value - 0.5) < 5 * sampled.standard_error
    with pytest.raises(OptionError, match="single numbers"):
        kl(one, zero, method="quadrature")


def test_opaque_distributions(torch):
    stats = pytest.importorskip("scipy.stats")
    found = kl(stats.gennorm(2, scale=math.sqrt(2)), d.Normal(0, 2), method="quadrature")
    np.testing.assert_allclose(found.value, kl(d.Normal(0, 1), d.Normal(0, 2)), rtol=1e-9)
    snedecor = torch.distributions.FisherSnedecor(
        torch.tensor(5.0, dtype=torch.float64), torch.tensor(9.0, dtype=torch.float64)
    )
    theirs = kl(snedecor, d.Exponential(1.0), method="quadrature")
    scipys = kl(stats.f(5, 9), d.Exponential(1.0), method="quadrature")
    np.testing.assert_allclose(theirs.value, scipys.value, rtol=1e-6)


# --- errors ---------------------------------------------------------------------------------------


UNIT, PAIR = d.Normal(0, 1), d.Normal(np.zeros(2), 1)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: kldiv.register_kl(int, d.Normal), LibraryError, "two subclasses"),
        (d.Bernoulli, OptionError, "exactly one of probs, logits; got none"),
        (lambda: d.Bernoulli(0.5, 0.0), OptionError, "got probs, logits"),
        (lambda: d.Normal([0.0], 1.0), DTypeError, "loc of Normal must be a number or an array"),
        (lambda: kl(PAIR, d.Normal(np.zeros(3), 1)), ShapeError, "must broadcast"),
        (lambda: kl(d.Dirichlet(1.0), d.Dirichlet(np.ones(2))), ShapeError, "needs 1 axes"),
        (lambda: kl(UNIT, UNIT, method="magic"), OptionError, "method must be one of"),
        (lambda: kl(UNIT, UNIT, normalize=True), OptionError, "axis and normalize belong to"),
        (lambda: kl(np.ones(2), UNIT), LibraryError, r"be a distribution.*got numpy\.ndarray"),
        (lambda: kl(d.Normal(np.array([1j]), 1), UNIT), DTypeError, "complex"),
        (
            lambda: kl(d.Independent(PAIR, 1), d.Independent(PAIR, 0)),
            ShapeError,
            "is a vector, one of",
        ),
    ],
)
def test_errors(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_a_method_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(BackendError, match="not installed"):
        kl(UNIT, UNIT, method="quadrature")


def test_holders_are_immutable_and_show_what_they_hold():
    p = d.Normal(0, 1)
    assert repr(p) == "Normal(loc=0, scale=1)"
    with pytest.raises(AttributeError):
        p.loc = 1
    assert d.Normal(np.zeros((2, 1)), np.ones(3)).batch_shape == (2, 3)
    assert d.MultivariateNormal(np.zeros(3), np.eye(3)).batch_shape == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(d.__all__) <= set(dir(d))
