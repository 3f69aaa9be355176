"""Estimators from samples: against mpmath, known divergences, and each other."""

from __future__ import annotations

import math
from functools import partial

import mpmath
import numpy as np
import pytest
from libraries import Library, unit

import kldiv
from kldiv.errors import DTypeError, OptionError, ShapeError
from kldiv.estimators import (
    Estimate,
    kl_by_sequence,
    kl_estimate,
    knn_kl,
    monte_carlo_kl,
    plug_in_kl,
)

RNG = np.random.default_rng(17)
KINDS = {
    "k1": lambda x: x,
    "k2": lambda x: x * x / 2,
    "k3": lambda x: mpmath.exp(-x) - 1 + x,
}


def pairs(dtype):
    """Log-probabilities near each other and far apart."""
    log_p = -RNG.gamma(2.0, 3.0, size=120)
    steps = np.concatenate([10.0**-k * RNG.normal(size=10) for k in range(10)])
    steps = np.concatenate([steps, RNG.uniform(-30, 30, size=20)])
    return log_p.astype(dtype), (log_p + steps).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_right_to_a_few_units(lib, kind):
    for dtype in {"float32", "float64"} & set(lib.floats):
        log_p, log_q = pairs(dtype)
        found = kl_estimate(
            lib.from_numpy(log_p), lib.from_numpy(log_q), kind=kind, reduction="none"
        )
        lib.assert_like(found, log_p.shape, dtype)
        with mpmath.workdps(60):
            true = [
                KINDS[kind](mpmath.mpf(float(a)) - mpmath.mpf(float(b)))
                for a, b in zip(log_p, log_q, strict=True)
            ]
            for value, exact in zip(lib.numpy(found), true, strict=True):
                assert abs(float(value) - exact) <= 10 * unit(dtype) * abs(exact)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_leaks_nothing(lib, kind):
    log_p, log_q = RNG.normal(size=(2, 3, 4))
    keep = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], bool)
    dirty_p, dirty_q = np.where(keep, log_p, np.nan), np.where(keep, log_q, -np.inf)
    x = (log_p - log_q)[keep]
    terms = {"k1": x, "k2": x**2 / 2, "k3": np.exp(-x) - 1 + x}[kind]
    loss = partial(kl_estimate, kind=kind, where=lib.array(keep))
    arrays = lib.array(dirty_p), lib.array(dirty_q)
    lib.assert_equal(loss(*arrays), terms.mean(), ulps=64)
    lib.assert_equal(loss(*arrays, reduction="sum"), terms.sum(), ulps=64)
    lib.assert_equal(loss(*arrays, reduction="batchmean"), terms.sum() / 2, ulps=64)
    for gradient in kldiv.value_and_grad(loss, argnums=(0, 1))(*arrays)[1]:
        found = lib.numpy(gradient)
        assert (found[~keep] == 0).all()
        assert np.isfinite(found).all()


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients(lib, kind, unbiased):
    log_p, log_q = RNG.normal(size=(2, 6))
    x = log_p - log_q
    slope = {"k1": np.ones(6), "k2": x, "k3": 1 - np.exp(-x)}[kind]
    if unbiased:
        slope = x
    loss = partial(kl_estimate, kind=kind, unbiased_gradient=unbiased, reduction="sum")
    value, (of_p, of_q) = kldiv.value_and_grad(loss, argnums=(0, 1))(
        lib.array(log_p), lib.array(log_q)
    )
    lib.assert_equal(of_p, slope, ulps=64)
    lib.assert_equal(of_q, -slope, ulps=64)
    plain = kl_estimate(lib.array(log_p), lib.array(log_q), kind=kind, reduction="sum")
    lib.assert_equal(value, lib.numpy(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_torch_differentiates_twice(kind):
    torch = pytest.importorskip("torch")
    arrays = [torch.tensor(a, requires_grad=True) for a in RNG.normal(size=(2, 5))]
    function = partial(kl_estimate, kind=kind, reduction="none")
    assert torch.autograd.gradcheck(function, arrays, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, arrays)


def test_the_mean_gradients_are_what_the_documentation_says():
    """Over all samples, weighted by p: the exact expectation of each gradient."""
    torch = pytest.importorskip("torch")
    logits = torch.tensor(RNG.normal(size=5), requires_grad=True)
    log_q = torch.tensor(RNG.normal(size=5)).log_softmax(0)
    log_p = logits.log_softmax(0)
    p, q = log_p.detach().exp(), log_q.exp()

    def mean_gradient(**options):
        terms = kl_estimate(log_p, log_q, reduction="none", **options)
        return torch.autograd.grad((p * terms).sum(), logits, retain_graph=True)[0]

    (forward,) = torch.autograd.grad(
        (log_p.exp() * (log_p - log_q)).sum(), logits, retain_graph=True
    )
    (reverse,) = torch.autograd.grad((q * (log_q - log_p)).sum(), logits, retain_graph=True)
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-14)
    close(mean_gradient(kind="k1"), torch.zeros_like(forward))
    close(mean_gradient(kind="k2"), forward)
    close(mean_gradient(kind="k3"), reverse)
    for kind in KINDS:
        close(mean_gradient(kind=kind, unbiased_gradient=True), forward)


@pytest.mark.leave_out(lambda lib: "float16" not in lib.floats and f"{lib.value} has no float16")
def test_half_types_are_computed_in_float32(lib):
    log_p, log_q = (a.astype(np.float16) for a in RNG.normal(size=(2, 8)))
    found = kl_estimate(
        lib.from_numpy(log_p), lib.from_numpy(log_q), reduction="none", dtype="float32"
    )
    x = log_p.astype(float) - log_q.astype(float)
    lib.assert_equal(found, np.exp(-x) - 1 + x, "float32", ulps=16)


# --- Monte Carlo ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_intervals_cover_as_often_as_they_say(kind):
    covered = 0
    for seed in range(400):
        x = np.random.default_rng([3, seed]).normal(size=500)
        estimate = monte_carlo_kl(-(x**2) / 2, -((x - 0.5) ** 2) / 2, kind=kind, confidence=0.9)
        covered += estimate.low <= 0.125 <= estimate.high
    assert 0.86 * 400 <= covered <= 0.94 * 400


def test_an_estimate_says_what_it_rests_on():
    estimate = monte_carlo_kl(np.zeros((2, 3)), np.zeros((2, 3)))
    assert estimate == Estimate(0.0, 0.0, 0.0, 0.0, 6)


# --- nearest neighbours ---------------------------------------------------------------------------


def by_definition(x, y, k):
    """The estimate by sorting all distances of every point."""
    n, d = x.shape
    total = 0.0
    for i, point in enumerate(x):
        others = np.sort(np.linalg.norm(np.delete(x, i, 0) - point, axis=1))
        total += math.log(np.sort(np.linalg.norm(y - point, axis=1))[k - 1] / others[k - 1])
    return d * total / n + math.log(len(y) / (n - 1))


@pytest.mark.leave_out(lambda lib: lib is Library.DASK and "Dask arrays have no sort")
@pytest.mark.parametrize("dimensions", [1, 3])
@pytest.mark.parametrize("k", [1, 5])
def test_nearest_neighbours_are_found(lib, dimensions, k, monkeypatch):
    from kldiv.formulas import samples

    monkeypatch.setattr(samples, "BLOCK_BYTES", 8 * 30 * dimensions * 7)
    x, y = RNG.normal(size=(20, dimensions)), RNG.normal(0.5, 2.0, size=(30, dimensions))
    found = knn_kl(lib.array(x), lib.array(y), k=k)
    lib.assert_equal(found, by_definition(x, y, k), ulps=512)
    if dimensions == 1:
        lib.assert_equal(knn_kl(lib.array(x[:, 0]), lib.array(y[:, 0]), k=k), lib.numpy(found))


def test_the_tree_and_all_pairs_agree(monkeypatch):
    x, y = RNG.normal(size=(200, 2)), RNG.normal(size=(300, 2))
    by_tree = knn_kl(x, y)
    monkeypatch.setitem(__import__("sys").modules, "scipy.spatial", None)
    assert knn_kl(x, y) == pytest.approx(by_tree, rel=1e-12)


@pytest.mark.leave_out(lambda lib: lib is Library.DASK and "Dask arrays have no sort")
@pytest.mark.parametrize("dimensions", [1, 2])
def test_points_have_no_unit(lib, dimensions):
    """Squares of their distances overflow or underflow, they themselves do not."""
    large = 2.0**600 if lib.widest == "float64" else 2.0**90
    x, y = RNG.normal(size=(20, dimensions)), RNG.normal(0.5, 2.0, size=(30, dimensions))
    wanted = knn_kl(lib.array(x), lib.array(y), k=2)
    for unit_ in (large, 1 / large):
        found = knn_kl(lib.array(x * unit_), lib.array(y * unit_), k=2)
        lib.assert_equal(found, lib.numpy(wanted), ulps=64)


@pytest.mark.leave_out(lambda lib: lib is Library.DASK and "Dask arrays have no sort")
@pytest.mark.parametrize("dimensions", [1, 2])
def test_a_point_that_is_nan_is_not_left_out(lib, dimensions):
    x = RNG.normal(size=(8, dimensions))
    y = np.where(np.arange(8)[:, None] == 3, np.nan, x + 1)
    for pair in ((x, y), (y, x)):
        assert np.isnan(lib.numpy(knn_kl(*map(lib.array, pair), k=1)))


def test_it_comes_close_to_the_truth():
    x, y = RNG.normal(size=(20_000, 2)), RNG.normal(size=(20_000, 2)) * 2.0
    true = 2 * (math.log(2) + 1 / 8 - 1 / 2)
    assert knn_kl(x, y) == pytest.approx(true, abs=0.05)
    assert knn_kl(x, RNG.normal(size=(20_000, 2))) == pytest.approx(0, abs=0.05)


# --- counts ---------------------------------------------------------------------------------------


def test_counts_of_classes(lib):
    p, q = np.array([[3.0, 5, 2, 0], [1, 1, 1, 7]]), np.array([[2.0, 5, 2, 1], [4, 3, 2, 1]])
    plain = [
        sum(a * math.log(a / b) for a, b in zip(r / 10, s / 10, strict=True) if a)
        for r, s in zip(p, q, strict=True)
    ]
    lib.assert_equal(plug_in_kl(lib.array(p), lib.array(q), correction=None), plain, ulps=32)
    bias = [
        (2 / 20) + (3 / 2 + 5 / 5 + 2 / 2 - 1) / 20,
        (3 / 20) + (1 / 4 + 1 / 3 + 1 / 2 + 7 / 1 - 1) / 20,
    ]
    corrected = plug_in_kl(lib.array(p.T.copy()), lib.array(q.T.copy()), axis=0)
    lib.assert_equal(corrected, np.subtract(plain, bias), ulps=64)


def test_a_class_never_seen_in_q_is_infinite(lib):
    found = plug_in_kl(lib.array([1.0, 1.0]), lib.array([2.0, 0.0]))
    lib.assert_equal(found, np.inf)


def test_the_correction_removes_most_of_the_bias():
    random = np.random.default_rng(8)
    p, q = random.dirichlet(np.full(20, 5.0), size=2)
    true = float(np.sum(p * np.log(p / q)))
    counts_p = random.multinomial(400, p, size=3000).astype(float)
    counts_q = random.multinomial(2000, q, size=3000).astype(float)
    keep = (counts_q > 0).all(1)
    plain, corrected = (
        plug_in_kl(counts_p[keep], counts_q[keep], correction=each).mean() - true
        for each in (None, "miller-madow")
    )
    assert abs(corrected) < 0.15 * plain


# --- arguments that do not fit --------------------------------------------------------------------

THREE, FOUR, POINTS = np.zeros(3), np.zeros(4), np.zeros((6, 2))
WRONG = {
    kl_estimate: [
        ((THREE, THREE), {"kind": "k4"}, OptionError, "got 'k4'"),
        ((THREE, THREE), {"reduction": "average"}, OptionError, "reduction"),
        ((THREE, FOUR), {}, ShapeError, "log_p and log_q must have the same shape"),
        ((np.zeros(3, np.int64), THREE), {}, DTypeError, "int64"),
        ((POINTS, POINTS), {"weight": np.ones(6)}, ShapeError, r"\(6,\).*weight\[:, None\]"),
        ((POINTS, POINTS), {"weight": np.ones(2, int)}, DTypeError, "weight has dtype int64"),
        *(
            ((THREE, THREE), {"log_ratio_clip": clip}, OptionError, "must be a positive number")
            for clip in (0.0, -1.0, math.inf, math.nan, "1")
        ),
    ],
    kl_by_sequence: [
        ((np.float64(1.0), np.float64(0.5)), {}, ShapeError, "one number"),
        ((THREE, THREE), {"kind": "k4"}, OptionError, "low_var_kl"),
    ],
    monte_carlo_kl: [
        ((THREE, THREE), {"confidence": 1.5}, OptionError, r"confidence .* got 1\.5"),
        ((np.zeros(1), np.zeros(1)), {}, ShapeError, "two samples"),
    ],
    knn_kl: [
        ((POINTS, np.zeros((6, 3))), {}, ShapeError, "dimensions; got points of 2 and 3"),
        ((POINTS, np.zeros((9, 2))), {"k": 6}, ShapeError, "k = 6 needs .* x .* got 6 and 9"),
        ((np.zeros((2, 2, 2)), POINTS), {}, ShapeError, "x must have a point a row"),
        *(((POINTS, POINTS), {"k": k}, OptionError, "positive integer") for k in (0, 1.5, True)),
    ],
    plug_in_kl: [
        ((THREE, THREE), {"correction": "none"}, OptionError, "or None; got 'none'"),
        ((THREE, FOUR), {}, ShapeError, "p_counts and q_counts must have the same shape"),
        ((THREE, THREE), {"axis": 1}, ShapeError, "axis 1 is out of range"),
    ],
}


@pytest.mark.parametrize("estimator", WRONG, ids=lambda each: each.__name__)
def test_arguments_that_do_not_fit(estimator):
    for arrays, options, error, said in WRONG[estimator]:
        with pytest.raises(error, match=said):
            estimator(*arrays, **options)
