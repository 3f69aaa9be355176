"""Families of location and scale, and normals of vectors, where a formula may lose its digits."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from libraries import unit

import kldiv
from kldiv import distributions as d

INF, NAN = math.inf, math.nan
LOCATED = [d.Normal, d.LogNormal, d.Laplace, d.Cauchy, d.Gumbel]
kl = kldiv.kl_divergence


# ---- narrow against wide -------------------------------------------------------------------------

NARROW = {"float32": 1e-3, "float64": 1e-9}


def given(way, scales, dtype, make=np.asarray):
    """A normal of vectors of these scales, described in one of the ways there are."""
    zero, scales = np.zeros(2), np.asarray(scales)
    arrays = {
        "scale_tril": {"scale_tril": np.diag(scales)},
        "covariance": {"covariance_matrix": np.diag(scales**2)},
        "precision": {"precision_matrix": np.diag(scales**-2)},
        "diagonal": {"scale_diag": scales},
        "low rank": {"cov_factor": np.zeros((2, 1)), "cov_diag": scales**2},
    }[way]
    family = {"diagonal": d.MultivariateNormalDiag, "low rank": d.LowRankMultivariateNormal}
    arrays = {name: make(value.astype(dtype)) for name, value in arrays.items()}
    return family.get(way, d.MultivariateNormal)(make(zero.astype(dtype)), **arrays)


WAYS = ["scale_tril", "covariance", "precision", "diagonal", "low rank"]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("way", WAYS)
def test_a_narrow_normal_within_a_wide_one(way, dtype):
    s = float(np.dtype(dtype).type(NARROW[dtype]))
    wanted = -math.log(s) - 0.5 + 0.5 * s * s
    for other in WAYS:
        found = kl(given(way, [s, 1.0], dtype), given(other, [1.0, 1.0], dtype))
        assert found == pytest.approx(wanted, rel=10 * unit(dtype), abs=0)


@pytest.mark.parametrize("way", ["scale_tril", "covariance_matrix"])
def test_torch_s_own_normals_and_their_slopes(torch, way):
    s = torch.tensor(1e-3, requires_grad=True)
    one = torch.ones(())
    matrix = torch.diag(torch.stack([s if way == "scale_tril" else s * s, one]))
    normal = torch.distributions.MultivariateNormal
    value = kl(normal(torch.zeros(2), **{way: matrix}), normal(torch.zeros(2), torch.eye(2)))
    (slope,) = torch.autograd.grad(value, s, create_graph=True)
    (bend,) = torch.autograd.grad(slope, s)
    assert value.item() == pytest.approx(6.407755778982137, rel=1e-6)
    assert slope.item() == pytest.approx(1e-3 - 1e3, rel=1e-6)
    assert bend.item() == pytest.approx(1 + 1e6, rel=1e-6)


@pytest.mark.slow
def test_a_narrow_normal_in_jax(jax):
    def value(s):
        p = given("scale_tril", [1.0, 1.0], "float32", jax.numpy.asarray)
        narrow = p.scale_tril * jax.numpy.stack([s, 1.0 + 0 * s])[:, None]
        return kl(d.MultivariateNormal(p.loc, scale_tril=narrow), p)

    found, slope = jax.value_and_grad(value)(1e-3)
    assert float(found) == pytest.approx(6.407755778982137, rel=1e-6)
    assert float(slope) == pytest.approx(1e-3 - 1e3, rel=1e-6)


def test_low_rank_beside_a_small_diagonal():
    """The covariance in float32 no longer holds the diagonal."""
    w = np.array([[1.0], [1.0]], "float32")
    p, q = (
        d.LowRankMultivariateNormal(np.zeros(2, "float32"), w, np.full(2, s, "float32"))
        for s in (1e-6, 4e-6)
    )
    wanted = exact(*(1 + s * np.eye(2) for s in (1e-6, 4e-6)), np.zeros(2))
    assert kl(p, q) == pytest.approx(wanted, rel=2e-3)  # √κ = 1.4e3 units; of the matrix itself κ


# ---- near one another ----------------------------------------------------------------------------


def exact(a, b, loc):
    with mpmath.workdps(60):
        a, b, loc = (mpmath.matrix(each.tolist()) for each in (a, b, loc))
        inverse = b**-1
        product = inverse * a
        trace = mpmath.fsum(product[i, i] for i in range(a.rows))
        square = (loc.T * inverse * loc)[0]
        return float((trace - a.rows - mpmath.log(mpmath.det(product)) + square) / 2)


@pytest.mark.parametrize("distance", [1.0, 1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("way", ["covariance_matrix", "precision_matrix", "scale_tril"])
def test_near_and_far(way, distance):
    rng = np.random.default_rng(5)
    root, more = rng.normal(size=(2, 5, 5))
    q = root @ root.T + np.eye(5)
    p = q + 0.1 * distance * (more + more.T)
    loc = distance * rng.normal(size=5)
    if way == "scale_tril":
        p, q = np.linalg.cholesky(p), np.linalg.cholesky(q)
    found = kl(d.MultivariateNormal(loc, **{way: p}), d.MultivariateNormal(0 * loc, **{way: q}))
    with mpmath.workdps(60):
        a, b = (mpmath.matrix(each.tolist()) for each in (p, q))
        if way == "scale_tril":
            a, b = a * a.T, b * b.T
        elif way == "precision_matrix":
            a, b = a**-1, b**-1
    condition = np.linalg.cond(q)
    assert found == pytest.approx(exact(a, b, loc), rel=10 * unit("float64") * condition, abs=0)


def test_a_precision_beside_a_factor(torch):
    """An inverse of the precision is right by its largest element only."""
    tril = np.array([[3.54, 0, 0], [8.1, 0.17, 0], [0.33, 0.12, 0.43]], "float32")
    root = np.array([[-12.98, 0, 0], [-14.78, -0.09, 0], [-0.25, -0.02, -0.01]])
    precision = (root @ root.T).astype("float32")
    zero = torch.zeros(3)
    with mpmath.workdps(60):
        a = mpmath.matrix(tril.tolist())
        inverse = mpmath.matrix(precision.tolist()) ** -1
        covariances = [np.array(m.tolist()).reshape(3, 3) for m in (a * a.T, inverse)]
    p = d.MultivariateNormal(zero, scale_tril=torch.tensor(tril))
    q = d.MultivariateNormal(zero, precision_matrix=torch.tensor(precision))
    assert kl(p, q).item() == pytest.approx(exact(*covariances, np.zeros(3)), rel=1e-6)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax.numpy"])
def test_nearly_singular_covariances(library):
    """The last pivot is as small as its rounding: a Cholesky factor in float32 refuses some."""
    make = pytest.importorskip(library).asarray
    rng = np.random.default_rng(0)
    zero, one = (make(np.full(4, x, "float32")) for x in (0.0, 1.0))
    for _ in range(40):
        rows = rng.normal(size=(4, 4))
        rows[3] = rows[:3].T @ rng.normal(size=3) + 10 ** rng.uniform(-5, -3) * rows[3]
        covariance = (rows @ rows.T).astype("float32")
        with mpmath.workdps(60):
            exactly = mpmath.matrix(covariance.tolist())
            try:
                root = mpmath.cholesky(exactly)
            except ValueError:  # not positive
                continue
            logs = 2 * mpmath.fsum(mpmath.log(root[i, i]) for i in range(4))
            wanted = float((np.trace(covariance.astype(float)) - 4 - logs) / 2)
            slopes = (np.eye(4) - np.array((exactly**-1).tolist(), float).reshape(4, 4)) / 2
        p = d.MultivariateNormal(zero, covariance_matrix=make(covariance))
        found = float(kl(p, d.MultivariateNormalDiag(zero, one)))
        condition = wanted + abs(slopes * covariance).sum()
        assert found == pytest.approx(wanted, abs=10 * unit("float32") * condition)


# Of P and the precision of Q, the worst that were found: a slope passed through a Cholesky factor.
BESIDE_A_PRECISION = [
    (
        "scale_tril",
        [
            [258.144409, 0, 0],
            [-0.0391500741, 214.433472, 0],
            [-1.42444763e-3, 1.14358857e-3, 0.0916150883],
        ],
        [
            [293957.969, -220.706894, 3.30040526],
            [-220.706894, 426.05368, 9779.45801],
            [3.30040526, 9779.45801, 224600.047],
        ],
    ),
    (
        "covariance_matrix",
        [
            [89355.5, -11.8024349, -0.96817565],
            [-11.8024349, 35287.6445, 0.257633686],
            [-0.96817565, 0.257633686, 5.58566581e-3],
        ],
        [
            [277230.031, -220.706894, 2.18071556],
            [-220.706894, 426.174652, 9780.49121],
            [2.18071556, 9780.49121, 224574.609],
        ],
    ),
]


@pytest.mark.parametrize(("way", "given", "precision"), BESIDE_A_PRECISION)
def test_slopes_in_a_precision_beside_another_description(torch, way, given, precision):
    given, precision = (np.array(each, "float32") for each in (given, precision))
    zero = torch.zeros(3)
    at = torch.tensor(precision, requires_grad=True)
    p = d.MultivariateNormal(zero, **{way: torch.tensor(given)})
    kl(p, d.MultivariateNormal(zero, precision_matrix=at)).backward()
    with mpmath.workdps(60):
        a, b = (mpmath.matrix(each.tolist()) for each in (given, precision))
        wanted = ((a * a.T if way == "scale_tril" else a) - b**-1) / 2
        wanted = np.array(wanted.tolist(), float).reshape(3, 3)
    off, most = (abs(x * precision).max() for x in (at.grad.numpy() - wanted, wanted))
    assert off < 1e-6 * most


# ---- second derivatives where both are the same --------------------------------------------------

# Fisher's information in location and scale, times scale².
EULER = 0.5772156649015329
INFORMATION = {
    d.Normal: [[1, 0], [0, 2]],
    d.LogNormal: [[1, 0], [0, 2]],
    d.Laplace: [[1, 0], [0, 1]],
    d.Cauchy: [[0.5, 0], [0, 0.5]],
    d.Gumbel: [[1, EULER - 1], [EULER - 1, (1 - EULER) ** 2 + math.pi**2 / 6]],
}


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("family", LOCATED)
def test_the_hessian_at_equality_is_fisher_s_information(torch, family, argument):
    def value(loc, scale):
        moved, fixed = family(loc, scale), family(0 * loc.detach() + 0.3, 0 * loc.detach() + 1.2)
        return kl(*((moved, fixed) if argument == 0 else (fixed, moved)))

    at = [torch.tensor(x, dtype=torch.float64) for x in (0.3, 1.2)]
    found = torch.func.hessian(value, argnums=(0, 1))(*at)
    wanted = np.array(INFORMATION[family]) / 1.44
    np.testing.assert_allclose(np.array(found, float), wanted, rtol=1e-13, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("family", [d.Normal, d.Laplace, d.Cauchy])  # Gumbel compiles for 30 s
def test_so_is_that_of_jax(jax, family):
    def value(both):
        return kl(family(*both), family(0.3, 1.2))

    with jax.enable_x64(True):
        found = jax.jit(jax.hessian(value))(jax.numpy.asarray([0.3, 1.2]))
    wanted = np.array(INFORMATION[family]) / 1.44
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-15)


def test_equal_eigenvalues_have_a_hessian(torch):
    two = 2 * torch.eye(3, dtype=torch.float64)
    zero = torch.zeros(3, dtype=torch.float64)

    def in_variance(v):
        p = d.MultivariateNormal(zero, covariance_matrix=two + v * torch.eye(3, dtype=v.dtype))
        return kl(p, d.MultivariateNormal(zero, covariance_matrix=two))

    def in_matrix(m):
        p = d.MultivariateNormal(zero, covariance_matrix=two + m + m.T)
        return kl(p, d.MultivariateNormal(zero, covariance_matrix=two))

    found = torch.func.hessian(in_variance)(torch.zeros((), dtype=torch.float64))
    assert found.item() == pytest.approx(3 * 0.125, rel=1e-14)
    found = torch.func.hessian(in_matrix)(0 * two)
    assert found[0, 0, 0, 0].item() == pytest.approx(4 * 0.125, rel=1e-14)
    assert found[0, 1, 0, 1].item() == pytest.approx(2 * 0.125, rel=1e-14)


# ---- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LOCATED)
def test_point_masses(lib, family):
    p_loc, p_scale, q_loc, q_scale, wanted = np.array(
        [
            (0.5, 0.0, 0.5, 0.0, 0.0),
            (0.5, 0.0, 0.7, 0.0, INF),
            (0.5, 0.0, 0.5, 1.0, INF),
            (0.5, 1.0, 0.5, 0.0, INF),
            (0.5, 1.0, 0.7, 0.0, INF),
            (0.5, -1.0, 0.5, 1.0, NAN),
            (0.5, 1.0, 0.5, -1.0, NAN),
            (0.5, NAN, 0.5, 1.0, NAN),
            (NAN, 0.0, 0.5, 0.0, NAN),
        ]
    ).T
    p, q = (family(*map(lib.array, each)) for each in ((p_loc, p_scale), (q_loc, q_scale)))
    np.testing.assert_array_equal(lib.numpy(kl(p, q)).astype(float), wanted)


def test_distances_whose_squares_overflow(torch):
    far = torch.tensor(1e20, requires_grad=True)
    value = kl(d.Cauchy(0.0, torch.tensor(1.0)), d.Cauchy(far, torch.tensor(1.0)))
    assert value.item() == pytest.approx(2 * math.log(1e20) - math.log(4), rel=1e-6)
    (slope,) = torch.autograd.grad(value, far)
    assert slope.item() == pytest.approx(2e-20, rel=1e-6, abs=0)
    wanted = 1e10 + math.log(1e300) - 1
    assert kl(d.Laplace(0.0, 1e-300), d.Laplace(1e10, 1.0)) == pytest.approx(wanted, rel=1e-15)


# ---- by the logarithm of the variance ------------------------------------------------------------


@pytest.mark.parametrize("log_variance", [-190.0, -3.0, 0.0, 2.0])
def test_normals_by_log_variance(torch, jax, log_variance):
    wanted = 0.5 * (math.exp(log_variance) - 1 - log_variance + 0.25)
    slope = 0.5 * math.expm1(log_variance)
    logs = torch.tensor(log_variance, requires_grad=True)
    value = kl(d.Normal.from_log_variance(torch.tensor(0.5), logs), d.Normal(0.0, 1.0))
    (found,) = torch.autograd.grad(value, logs)
    assert value.item() == pytest.approx(wanted, rel=1e-6, abs=0)
    assert found.item() == pytest.approx(slope, rel=1e-6, abs=0)

    def by_jax(logs):
        return kl(d.Normal.from_log_variance(0.5, logs), d.Normal(0.0, 1.0))

    found = jax.value_and_grad(by_jax)(log_variance)
    np.testing.assert_allclose(found, (wanted, slope), rtol=1e-6, atol=1e-7)
    host = d.Normal.from_log_variance(np.float32(0.5), np.float32(log_variance))
    assert kl(host, d.Normal(0.0, 1.0)) == pytest.approx(wanted, rel=1e-6)
    assert kl(host, d.Laplace(0.0, 1.0)) == pytest.approx(
        kl(d.Normal(np.float32(0.5), np.exp(np.float32(0.5 * log_variance))), d.Laplace(0.0, 1.0))
    )
    both = kl(host, d.Normal.from_log_variance(np.float32(0.5), np.float32(log_variance + 2)))
    assert both == pytest.approx(0.5 * (math.exp(-2) + 1), rel=1e-5)
