"""The Gamma family for shapes from 1e-6 to 1e8, and other families of large parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from libraries import PAIRED, Library, require, unit

import kldiv
from bench.oracle import textbook as truths
from bench.oracle.moments import condition, exact
from kldiv import distributions as d
from kldiv import kl_divergence as kl
from kldiv.formulas.circle import decayed_bessel

every_library = pytest.mark.parametrize(
    ("library", "dtype"), PAIRED, ids=[f"{lib.value}-{dtype}" for lib, dtype in PAIRED]
)


def compiled(library, pair):
    """The divergence as a function of parameters; JAX would compile each operation by itself."""

    def value(*x):
        return kl(*pair(*x))

    return pytest.importorskip("jax").jit(value) if library is Library.JAX else value


# a, r, c, s of Gamma(a, r)‖Gamma(c, s): far, near, of equal means, in both directions.
GAMMA = np.array(
    [
        (4000.0, 1.0, 0.5, 1.0),
        (0.5, 1.0, 4000.0, 1.0),
        (1e8, 1.0, 1e-3, 1.0),
        (1e8, 1e3, 1e8 + 1e3, 1e3),
        (1e-6, 2.0, 1.1e-6, 2.2),
        (1e-6, 1e-3, 1e3, 1e6),
        (4000.0, 8000.0, 0.5, 1.0),
        (7.0, 1e-4, 0.07, 1e-6),
        (1e8, 1e8, 1e4, 1e4),
    ]
).T
# a, b, c, d of Beta(a, b)‖Beta(c, d)
BETA = np.array(
    [
        (1e8, 1e-6, 2e8, 1e-6),
        (1e-6, 1e8, 1e-6, 5e7),
        (1.4, 8.6e7, 1.4, 493.0),
        (1e4, 1.0, 1.0, 1.0),
        (1.0, 1.0, 1e4, 1.0),
        (1e8, 1e8, 1e8 + 1e4, 1e8),
        (1e-6, 1e-3, 1e-3, 1e-6),
        (24.5, 9e-6, 0.78, 1e7),
        (3e6, 1.5e5, 0.003, 0.14),
    ]
).T


def continuous_bernoulli(a, b):
    from mpmath import mp

    def log_normal(x):
        return mp.log((mp.exp(x) - 1) / x)

    return log_normal(b) - log_normal(a) - (b - a) * (1 / (1 - mp.exp(-a)) - 1 / a)


def von_mises(k, j):
    return truths.von_mises(k * 0, k, k * 0, j)


EXACT = {  # the pair of its parameters, the truth, and parameters
    "Gamma": (lambda a, r, c, s: (d.Gamma(a, r), d.Gamma(c, s)), truths.gamma, GAMMA),
    "Beta": (lambda a, b, c, e: (d.Beta(a, b), d.Beta(c, e)), truths.beta, BETA),
    "Chi2": (
        lambda a, c: (d.Chi2(a), d.Chi2(c)),
        truths.chi2,
        [[1e-6, 1e8, 8000.0, 1.0, 1e8], [1e-3, 1.0, 1.0, 8000.0, 1.0001e8]],
    ),
    "ContinuousBernoulli": (
        lambda a, b: (d.ContinuousBernoulli(logits=a), d.ContinuousBernoulli(logits=b)),
        continuous_bernoulli,
        [
            [225.0, -225.0, 1e4, 50.0, -1e-3, 3.0, 20.0, -400.0],
            [220.0, -220.0, 1.2e4, -45.0, 30.0, 0.01, -1e-4, -1.0],
        ],
    ),
    "VonMises": (
        lambda k, j: (d.VonMises(0 * k, k), d.VonMises(0 * j, j)),
        von_mises,
        [[1e3, 1e6, 7e5, 3.0, 1e-3], [2e3, 1e3, 1.6e5, 1e4, 2.0]],
    ),
}


@every_library
@pytest.mark.parametrize("name", EXACT)
def test_batches_are_exact(library, dtype, name):
    """In units of the condition in the parameters, at least 1."""
    require(library)
    pair, truth, columns = EXACT[name]
    columns = [np.asarray(column, dtype) for column in columns]
    found = library.numpy(compiled(library, pair)(*map(library.from_numpy, columns)))
    assert found.dtype == dtype
    for value, *x in zip(found, *columns, strict=True):
        wanted = exact(truth, x)
        allowed = 10 * unit(dtype) * condition(truth, x) * wanted
        assert abs(float(value) - wanted) <= allowed, (x, value, float(wanted))


@every_library
def test_dirichlet(library, dtype):
    require(library)
    rows = np.array(
        [
            [(1e4, 1.0, 1.0), (1.0, 1.0, 1.0)],
            [(1.0, 1.0, 1.0), (1e4, 1.0, 1.0)],
            [(1e8, 1e-3, 1e-6), (2e8, 1e-3, 1e-6)],
            [(4.8e4, 2.8e7, 6.8e5), (4.3, 2e4, 7.0)],
            [(1e-6, 1e-6, 1e-6), (1.1e-6, 1e-6, 1e-6)],
        ],
        dtype,
    )
    p, q = (library.from_numpy(np.ascontiguousarray(rows[:, i])) for i in (0, 1))
    divergence = compiled(library, lambda a, b: (d.Dirichlet(a), d.Dirichlet(b)))
    found = library.numpy(divergence(p, q))

    def truth(*x):
        return truths.dirichlet(x[:3], x[3:])

    for value, row in zip(found, rows, strict=True):
        x = [*row[0], *row[1]]
        wanted = exact(truth, x)
        assert abs(float(value) - wanted) <= 10 * unit(dtype) * condition(truth, x) * wanted
    np.testing.assert_allclose(found[0], 15.727933538394756, rtol=10 * unit(dtype))


def slopes_of_gamma(a, r, c, s):
    """By hand, as NumPy of float64 and SciPy have them."""
    special = pytest.importorskip("scipy.special")
    trigamma = special.polygamma(1, a)
    return (
        (a - c) * trigamma + s / r - 1,
        c / r - a * s / r**2,
        special.digamma(c) - special.digamma(a) + np.log(r / s),
        a / r - c / s,
    )


FAR = np.array([(4000.0, 1.0, 0.5, 1.0), (0.5, 1.0, 4000.0, 1.0), (1e-3, 2.0, 50.0, 3.0)]).T


def test_gradients_of_float32_in_jax():
    jax = pytest.importorskip("jax")
    leaves = [jax.numpy.asarray(x, jax.numpy.float32) for x in FAR]

    def value(a, r, c, s):
        return kl(d.Gamma(a, r), d.Gamma(c, s)).sum()

    found = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3)))(*leaves)
    for slope, wanted in zip(found, slopes_of_gamma(*FAR), strict=True):
        np.testing.assert_allclose(slope, wanted, rtol=2e-5, atol=1e-4)


def test_no_shape_gives_nan():
    """A grid of every magnitude, value and gradient, in float32."""
    torch = pytest.importorskip("torch")
    sizes = 10.0 ** np.arange(-6, 9, 2)
    grid = [torch.tensor(x.ravel(), dtype=torch.float32) for x in np.meshgrid(*[sizes] * 4)]
    for family in (d.Gamma, d.Beta, d.InverseGamma):
        leaves = [x.clone().requires_grad_() for x in grid]
        value = kl(family(*leaves[:2]), family(*leaves[2:]))
        assert not torch.isnan(value).any()
        assert (value >= 0).all()
        slopes = torch.autograd.grad(value[torch.isfinite(value)].sum(), leaves)
        assert not any(torch.isnan(slope).any() for slope in slopes)


# --- Binomials of different counts ----------------------------------------------------------------


def binomials(n, m):
    from mpmath import mp

    def value(p, q):
        total, of_p, of_q = mp.mpf(0), (1 - p) ** n, (1 - q) ** m
        for k in range(n + 1):
            total += of_p * mp.log(of_p / of_q)
            of_p *= mp.mpf(n - k) / (k + 1) * p / (1 - p)
            of_q *= mp.mpf(m - k) / (k + 1) * q / (1 - q)
        return total

    return value


@pytest.mark.parametrize(
    ("n", "m", "p", "q"),
    [
        (1100, 1101, 0.3, 0.3),
        (1100, 1101, 0.3, 0.3 * 1100 / 1101),
        (1100, 5000, 0.3, 0.07),
        (1, 50, 0.3, 0.01),
        (60, 61, 0.74, 0.73),
        (3, 5, 0.9, 0.2),
    ],
)
def test_binomials_of_different_counts(n, m, p, q):
    wanted = float(exact(binomials(n, m), (p, q)))
    # Where the means agree the terms of a sum are its root times as large.
    np.testing.assert_allclose(kl(d.Binomial(n, p), d.Binomial(m, q)), wanted, rtol=1e-11)


def test_binomials_of_different_counts_in_float32():
    torch = pytest.importorskip("torch")
    n, m = 1100, 1101
    for p, q in ((0.3, 0.3), (0.099, 0.0989)):
        x = torch.tensor([p, q])
        wanted = float(exact(binomials(n, m), x.tolist()))
        found = kl(d.Binomial(n, x[0]), d.Binomial(m, x[1]))
        np.testing.assert_allclose(found.item(), wanted, rtol=1e-3)


def test_binomials_of_huge_counts():
    """D ≈ p/(2n(1 − p)), the first term of its expansion in 1/n."""
    n = 10**9
    found = kl(d.Binomial(n, 0.3), d.Binomial(n + 1, 0.3))
    np.testing.assert_allclose(found, 0.3 / (2 * n * 0.7), rtol=1e-6)
    batch = kl(d.Binomial(n, np.array([0.0, 0.5, 1.0])), d.Binomial(n + 1, 0.5))
    log_2 = math.log(2)
    np.testing.assert_allclose(batch[[0, 2]], [(n + 1) * log_2, (n + 1) * log_2], rtol=1e-7)
    assert kl(d.Binomial(n, 0.5), d.Binomial(n + 1, 0.0)) == math.inf
    assert math.isnan(kl(d.Binomial(n, -0.5), d.Binomial(n + 1, 0.5)))
    assert kldiv.kl_divergence(d.Binomial(n, 0.0), d.Binomial(n + 1, 0.0)) == 0


@every_library
def test_scales_near_the_largest_number(library, dtype):
    """Their sums are beyond it."""
    require(library)
    a, b = np.array([[0.9, 0.4, 0.9], [0.4, 0.9, 0.8]]) * np.finfo(dtype).max
    families = {
        "Exponential": d.Exponential,
        "HalfNormal": d.HalfNormal,
        "Normal": lambda x: d.Normal(0.0, x),
        "Cauchy": lambda x: d.Cauchy(0.0, x),
        "Gamma": lambda x: d.Gamma(2.0, x),
    }
    for name, make in families.items():
        arrays = [library.from_numpy(x.astype(dtype)) for x in (a, b)]
        found = library.numpy(compiled(library, lambda x, y, m=make: (m(x), m(y)))(*arrays))
        small = [x.astype(dtype) / np.finfo(dtype).max.astype(float) for x in (a, b)]
        np.testing.assert_allclose(found, kl(make(small[0]), make(small[1])), 1e-5, err_msg=name)


def test_a_ratio_of_scales_whose_power_overflows_is_infinitely_far():
    for p, q in (
        (d.Gumbel(0.0, 1e308), d.Gumbel(0.0, 1.0)),
        (d.Weibull(1.0, 1e-308), d.Weibull(1.0, 1.0)),
    ):
        assert kl(p, q) == math.inf


def test_bessel_s_function_of_the_largest_numbers_of_float32():
    """2πk is beyond them, and its root is not."""
    k = np.array([5e37, 6e37, 3e38], np.float32)
    wanted = 1 / np.sqrt(2 * math.pi * k.astype(np.float64))
    np.testing.assert_allclose(decayed_bessel(np, k), wanted, rtol=4 * unit("float32"))
