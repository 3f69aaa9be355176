"""Divergences and entropies of probabilities: targets, edges, identities, on every library."""

from __future__ import annotations

import math
import pickle
from functools import partial

import mpmath
import numpy as np
import pytest
from f_divergences import measured
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import unit

import kldiv
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError

INF, NAN = math.inf, math.nan
P8 = np.array([0.05, 0.1, 0.2, 0.05, 0.15, 0.25, 0.08, 0.12])
Q8 = np.array([0.3, 0.1, 0.2, 0.1, 0.1, 0.02, 0.08, 0.1])
WEIGHTS = (0.2, 0.3, 0.5)

MEASURES = {
    "kl": kldiv.kl_divergence,
    "jeffreys": kldiv.jeffreys_divergence,
    "js": partial(kldiv.js_divergence, weights=(0.3, 0.7)),
    "renyi 0.5": partial(kldiv.renyi_divergence, alpha=0.5),
    "renyi 1.001": partial(kldiv.renyi_divergence, alpha=1.001),
    "renyi 3": partial(kldiv.renyi_divergence, alpha=3),
    "cross": kldiv.cross_entropy,
}
DIVERGENCES = [name for name in MEASURES if name != "cross"]
TARGET = {"float32": {1e-1: 1e-5, 1e-3: 1e-4, 1e-4: 1e-3}, "float64": {1e-3: 1e-12, 1e-4: 1e-11}}


def true(name, p, q):
    """The measure of the given numbers, normalised, by mpmath in 60 digits."""
    with mpmath.workdps(60):
        p, q = ([mpmath.mpf(float(a)) for a in row] for row in (p, q))
        p, q = ([a / mpmath.fsum(row) for a in row] for row in (p, q))
        if name == "cross":
            return -mpmath.fsum(a * mpmath.log(b) for a, b in zip(p, q, strict=True) if a)
        return measured({"js": "js:0.3"}.get(name, name.replace(" ", ":")), p, q)


def rows(epsilon, dtype, size=50, seed=1):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(size))
    q = p * (1 + epsilon * rng.uniform(-1, 1, size))
    return p.astype(dtype), (q / q.sum()).astype(dtype)


# --- G5 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_g5_near_equality(lib, name):
    for dtype in set(lib.floats) & set(TARGET):
        for epsilon, target in TARGET[dtype].items():
            p, q = rows(epsilon, dtype)
            found = float(lib.numpy(MEASURES[name](lib.from_numpy(p), lib.from_numpy(q))))
            wanted = true(name, p, q)
            assert abs(found - wanted) <= target * wanted, (dtype, epsilon)
            if lib.root == "jax":
                break  # each shape and dtype compiles for seconds


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("epsilon", [3.0, 40.0])
def test_far_apart_and_wide(name, epsilon):
    rng = np.random.default_rng(2)
    p, q = (np.exp(epsilon * rng.normal(size=30)) for _ in "pq")
    p, q = p / p.sum(), q / q.sum()
    found, wanted = MEASURES[name](p, q), true(name, p, q)
    assert abs(found - wanted) <= 1e-13 * wanted


def test_renyi_limits():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])
    renyi = partial(kldiv.renyi_divergence, p, q)
    assert renyi(alpha=0) == pytest.approx(-math.log(0.75), rel=1e-15)
    most = np.array([0.0, 0.5, 0.5, 0.0]), np.array([0.7, 0.1, 0.15, 0.05])
    assert kldiv.renyi_divergence(*most, alpha=0) == pytest.approx(-math.log(0.25), rel=1e-15)
    assert renyi(alpha=math.inf) == pytest.approx(math.log(2), rel=1e-15)
    assert renyi(alpha=1) == kldiv.kl_divergence(p, q)
    for limit, near in ((0, 1e-9), (1, 1 + 1e-9), (math.inf, 1e7)):
        assert renyi(alpha=near) == pytest.approx(renyi(alpha=limit), rel=1e-6)
    orders = [float(renyi(alpha=a)) for a in (0, 0.2, 0.9, 1, 1.1, 3, 50, math.inf)]
    assert orders == sorted(orders)


# --- checked numbers, units, options --------------------------------------------------------------


def test_checked_numbers(lib):
    def near(a, b, tolerance=8):
        return abs(float(lib.numpy(a)) - b) <= tolerance * unit(lib.widest)

    p, q = lib.array([0.36, 0.48, 0.16]), lib.array([1 / 3, 1 / 3, 1 / 3])
    assert near(kldiv.kl_divergence(p, q), 0.0852996013183706)
    assert near(kldiv.kl_divergence(q, p), 0.0974550067853875)
    p8, q8 = lib.array(P8), lib.array(Q8)
    assert near(kldiv.kl_divergence(p8, q8), 0.589885181619163)
    assert near(kldiv.kl_divergence(q8, p8), 0.497549319448034)
    assert near(kldiv.kl_divergence(p8, q8, base=2), 0.589885181619163 / math.log(2), 16)
    half = lib.array([0.5, 0.5, 0.0, 0.0])
    assert near(kldiv.entropy(half, base=2), 1.0)


def test_any_axis_keeps_library_shape_and_dtype(lib):
    p, q = (np.random.default_rng(i).dirichlet(np.ones(5), (2, 3)) for i in (0, 1))
    expected = (p * np.log(p / q)).sum(-1)
    moved = (lib.array(np.moveaxis(a, -1, 1)) for a in (p, q))
    lib.assert_equal(kldiv.kl_divergence(*moved, axis=1), expected, ulps=64)


@pytest.mark.parametrize("name", MEASURES)
def test_normalize(name):
    rng = np.random.default_rng(3)
    p, q = rng.uniform(1, 2, (2, 6))
    found, wanted = MEASURES[name](p, q, normalize=True), true(name, p, q)
    assert abs(found - wanted) <= 1e-13 * wanted
    assert kldiv.entropy(p, normalize=True) == pytest.approx(kldiv.entropy(p / p.sum()))
    if name in {"kl", "jeffreys", "js"}:  # nothing is normalised unasked
        assert MEASURES[name](2 * p, 2 * q) == pytest.approx(2 * MEASURES[name](p, q))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_a_sum_beyond_the_largest_number_is_nan(lib):
    huge = float(np.finfo(lib.widest).max) * np.array([0.6, 0.6])
    p, q = lib.array(huge), lib.array(huge * (1.0, 0.5))
    for measure in (*MEASURES.values(), kldiv.tv_divergence, kldiv.hellinger_divergence):
        assert math.isnan(measure(p, q, normalize=True))
    assert math.isnan(kldiv.entropy(p, normalize=True))
    rows = (lib.array(each[None]) for each in (huge, huge * (1.0, 0.5)))
    assert math.isnan(lib.numpy(kldiv.pairwise(*rows, normalize=True))[0, 0])


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types_are_computed_in_float32(lib, half):
    p, q = lib.array(P8, half), lib.array(Q8, half)
    result = kldiv.kl_divergence(p, q)
    lib.assert_like(result, (), half)
    a, b = (lib.numpy(x).astype(float) for x in (p, q))
    wanted = float((a * np.log(a / b) + b - a).sum())
    assert abs(float(lib.numpy(result)) - wanted) <= 1.01 * unit(half) * wanted


# --- edges ----------------------------------------------------------------------------------------


def test_g9_edges_of_value_and_slopes(lib):
    p, q = lib.array([0.0, 0.0, 1.0]), lib.array([0.0, 0.5, 0.5])
    value, (of_p, of_q) = kldiv.value_and_grad(kldiv.kl_divergence, (0, 1))(p, q)
    lib.assert_equal(value, math.log(2))
    lib.assert_equal(of_p, [0.0, 0.0, math.log(2)])
    lib.assert_equal(of_q, [1.0, 1.0, -1.0])
    q = lib.array([0.5, 0.5, 0.0])
    value, (of_p, of_q) = kldiv.value_and_grad(kldiv.kl_divergence, (0, 1))(p, q)
    lib.assert_equal(value, INF)
    lib.assert_equal(of_p, [0.0, 0.0, INF])
    lib.assert_equal(of_q, [1.0, 1.0, -INF])


EDGES = {  # p, q: kl, jeffreys, js at 0.3, renyi ½, renyi 3, cross
    "p zero": ([0.0, 1.0], [0.5, 0.5], math.log(2), INF, None, math.log(2), math.log(2)),
    "q zero": ([0.5, 0.5], [0.0, 1.0], INF, INF, None, math.log(2), INF),
    "disjoint": ([0.0, 1.0], [1.0, 0.0], INF, INF, None, INF, INF),
    "both zero": ([0.0, 1.0], [0.0, 1.0], 0.0, 0.0, 0.0, 0.0, 0.0),
    "nan": ([NAN, 1.0], [0.5, 0.5], NAN, NAN, NAN, NAN, NAN),
    "nan in q": ([0.5, 0.5], [0.5, NAN], NAN, NAN, NAN, NAN, NAN),
    "negative": ([-0.5, 1.5], [-0.5, 1.5], NAN, NAN, NAN, NAN, NAN),
}


@pytest.mark.parametrize("case", EDGES)
def test_edges(case):
    p, q, *expected = EDGES[case]
    names = ["kl", "jeffreys", "js", "renyi 0.5", "renyi 3"]
    for name, wanted in zip(names, expected, strict=True):
        found = MEASURES[name](np.array(p), np.array(q))
        if wanted is not None:
            np.testing.assert_allclose(found, wanted, rtol=1e-15, err_msg=name)
        assert np.isnan(found) == ("nan" in case or case == "negative"), name


def test_disjoint_js_is_the_entropy_of_its_weights():
    eye = np.eye(3)
    found = kldiv.js_divergence(*eye, weights=WEIGHTS)
    assert found == pytest.approx(-sum(w * math.log(w) for w in WEIGHTS), rel=1e-15)
    assert kldiv.js_divergence(*eye, weights=(0, 1, 0)) == 0
    assert kldiv.js_divergence(*eye, base=3) == pytest.approx(1)


def test_one_hot_entropy_is_a_positive_zero():
    assert math.copysign(1, float(kldiv.entropy(np.array([1.0, 0.0])))) == 1


ALL = ["kl", "js", "jeffreys", "tv", "hellinger", "chi2", "skew", "alpha", "renyi"]
TAKE_AN_ORDER = {"alpha": {"alpha": 0.3}, "renyi": {"alpha": 2.0}}


@pytest.mark.parametrize("name", ALL)
def test_a_negative_probability_is_nan_beside_a_zero_too(name):
    measure = partial(getattr(kldiv, f"{name}_divergence"), **TAKE_AN_ORDER.get(name, {}))
    p, q = np.array([0.0, 0.5]), np.array([-1.0, 0.5])
    for pair in ((p, q), (q, p)):
        value, slopes = kldiv.value_and_grad(measure, (0, 1))(*pair)
        assert np.isnan(value)
        assert np.isnan([slope[0] for slope in slopes]).all()


@pytest.mark.parametrize("name", ["js", "skew"])
def test_mixtures_of_large_numbers(lib, name):
    """Small numbers are lifted, by which those above 3e26 would overflow in float32."""
    measure = getattr(kldiv, f"{name}_divergence")
    p, q = np.random.default_rng(1).uniform(size=(2, 3, 5)) * np.array([[1e26], [1e30], [3e37]])
    own = [lib.array(each, "float32") for each in (p, q)]
    rounded = [lib.numpy(each).astype(float) for each in own]
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(lib.numpy(measure(*own)) / measure(*rounded), 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["kl", "jeffreys", "js", "skew"])
def test_sums_of_two_numbers_beyond_the_largest(lib, name):
    """p + q is no number, p and q are, and so is their divergence."""
    measure = getattr(kldiv, f"{name}_divergence")
    p, q = np.array([[0.9, 0.3, 0.9], [0.3, 0.9, 0.899]]).reshape(2, 3, 1)
    for dtype in {"float32", lib.widest}:
        top = float(np.finfo(dtype).max)
        found = lib.numpy(measure(lib.array(p * top, dtype), lib.array(q * top, dtype)))
        np.testing.assert_allclose(found / top, measure(p, q), rtol=1e-3)


LOGITS = np.random.default_rng(0).normal(size=(2, 50_000, 3)).astype("float32")
PROBABILITIES = np.exp(LOGITS.astype(float))
PROBABILITIES = (PROBABILITIES / PROBABILITIES.sum(1, keepdims=True)).astype("float32")
OF_PROBABILITIES = [
    kldiv.kl_divergence,
    kldiv.js_divergence,
    kldiv.jeffreys_divergence,
    kldiv.cross_entropy,
]


@pytest.mark.parametrize("function", OF_PROBABILITIES, ids=lambda f: f.__name__)
def test_sums_over_classes_that_are_not_adjacent(function):
    """NumPy adds such numbers one by one: 200 units off in float32."""
    with kldiv.config_context(kernel="pure"):
        wanted = function(*PROBABILITIES.astype(float), axis=0)
        for found in (function(*PROBABILITIES, axis=0), function(*(p.T for p in PROBABILITIES))):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, wanted, rtol=5e-7)


def test_states_of_classes_that_are_not_adjacent():
    wanted = kldiv.KLState.from_logits(*LOGITS.astype(float), axis=0).kl()
    np.testing.assert_allclose(kldiv.KLState.from_logits(*LOGITS, axis=0).kl(), wanted, rtol=5e-7)


# --- derivatives ----------------------------------------------------------------------------------


def numeric(f, x, h=1e-6):
    """Central differences."""
    steps = h * np.eye(x.size).reshape(x.size, *x.shape)
    return np.array([(f(x + d) - f(x - d)) / (2 * h) for d in steps]).reshape(x.shape)


@pytest.mark.parametrize("name", MEASURES)
def test_gradients_of_normalised_rows_against_differences(name):
    measure = partial(MEASURES[name], normalize=True)
    p, q = rows(0.7, "float64", 5)
    _, (of_p, of_q) = kldiv.value_and_grad(measure, (0, 1))(p, q)
    np.testing.assert_allclose(of_p, numeric(lambda p: measure(p, q), p), atol=1e-8, rtol=1e-7)
    np.testing.assert_allclose(of_q, numeric(lambda q: measure(p, q), q), atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("scale", [0.25, 0.8, 1.6, 1.9, 8.0])
@pytest.mark.parametrize("alpha", [0.25, 0.75, 1.00002, 2, 3])
def test_renyi_of_rows_that_are_not_normalised(alpha, scale):
    p, q = scale * P8, Q8
    with mpmath.workdps(40):
        a, b = ([mpmath.mpf(float(x)) for x in side] for side in (p, q))
        of_p, of_q = mpmath.fsum(a), mpmath.fsum(b)
        mass, power = alpha * of_p + (1 - alpha) * of_q, of_p**alpha * of_q ** (1 - alpha)
        divisor = power if alpha > 1 and mass < power / 2 else mass
        powers = mpmath.fsum(x**alpha * y ** (1 - alpha) for x, y in zip(a, b, strict=True))
        wanted = float(mpmath.log(powers / divisor) / (alpha - 1))
    assert kldiv.renyi_divergence(p, q, alpha=alpha) == pytest.approx(wanted, rel=1e-14, abs=0)


@pytest.mark.parametrize("scale", [0.3, 1.0, 1e15])
def test_renyi_of_order_0_where_little_is_lost(scale):
    p, q = np.array([0.0, 0.5, 0.5]), scale * np.array([1e-13, 0.75, 0.25])
    wanted = -math.log1p(-q[0] / q.sum())
    assert kldiv.renyi_divergence(p, q, alpha=0) == pytest.approx(wanted, rel=1e-15, abs=0)


@pytest.mark.parametrize("scale", [2.0**-900, 2.0**900])
@pytest.mark.parametrize("alpha", [0, 0.25, 0.75, 3, math.inf])
def test_renyi_of_rows_of_any_scale(alpha, scale):
    measure = kldiv.value_and_grad(partial(kldiv.renyi_divergence, alpha=alpha), (0, 1))
    (value, slopes), (wanted, one) = (measure(c * P8, c * Q8) for c in (scale, 1.0))
    np.testing.assert_allclose(value, wanted, rtol=1e-14)
    for found, expected in zip(slopes, one, strict=True):
        np.testing.assert_allclose(found * scale, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("alpha", "of_p", "of_q"),  # where Q, and where P, lacks the class
    [
        (0.75, (4, 0), (0, 4 / 3)),
        (2, (INF, -1), (-INF, 0.5)),
        (0.25, (4 / 3, 0), (0, 4)),
        (-1, (0.5, -INF), (-1, INF)),
    ],
)
def test_slopes_of_alpha_in_a_class_that_one_side_lacks(alpha, of_p, of_q):
    """With κ = 1 − α they are (1 − (p/q)^(α−1))/κ and (1 − (p/q)^α)/α, or 0 if masked."""
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.0, 0.5])
    measure = partial(kldiv.alpha_divergence, alpha=alpha)
    _, slopes = kldiv.value_and_grad(measure, (0, 1))(p, q)
    for found, wanted in zip(slopes, (of_p, of_q), strict=True):
        np.testing.assert_allclose(found[1:], wanted, rtol=1e-15)


@pytest.mark.parametrize("alpha", [0, math.inf, 50])
def test_gradients_of_extreme_orders(alpha):
    measure = partial(kldiv.renyi_divergence, alpha=alpha)
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.3, 0.5, 0.2])
    _, (of_p, of_q) = kldiv.value_and_grad(measure, (0, 1))(p, q)
    keep = p > 0
    wanted = numeric(lambda p: measure(np.where(keep, p, 0), q), p)
    np.testing.assert_allclose(of_p[keep], wanted[keep], atol=1e-6)
    np.testing.assert_allclose(of_q, numeric(lambda q: measure(p, q), q), atol=1e-6)


def test_gradient_of_many_and_of_one():
    ps = np.random.default_rng(0).dirichlet(np.full(4, 9.0), 3)
    measure = partial(kldiv.js_divergence, weights=WEIGHTS)
    _, gradients = kldiv.value_and_grad(measure, (0, 1, 2))(*ps)
    for i in range(3):

        def of(row, i=i):
            return measure(*(row if j == i else ps[j] for j in range(3)))

        np.testing.assert_allclose(gradients[i], numeric(of, ps[i]), atol=1e-8)
    _, gradient = kldiv.value_and_grad(kldiv.entropy)(ps[0])
    np.testing.assert_allclose(gradient, -np.log(ps[0]) - 1)
    with pytest.raises(OptionError, match="argnums"):
        kldiv.value_and_grad(kldiv.entropy, 1)


def test_operations_can_be_shipped():
    operation = kldiv.renyi_divergence.record.prepare(P8, Q8, alpha=2).operation
    assert pickle.loads(pickle.dumps(operation)) == operation  # noqa: S301 - our own
    assert hash(operation) == hash(pickle.loads(pickle.dumps(operation)))  # noqa: S301


# --- identities -----------------------------------------------------------------------------------

CALM = settings(deadline=None, derandomize=True, database=None, max_examples=50)
SEEDS = st.integers(0, 2**32 - 1)


def simplex(seed, size=7, number=2):
    rng = np.random.default_rng(seed)
    spread = rng.choice([0.05, 0.5, 5.0])
    return rng.dirichlet(np.full(size, spread), number)


@CALM
@given(SEEDS)
def test_identities(seed):
    p, q = simplex(seed)
    kl = kldiv.kl_divergence(p, q)
    assert kl >= 0
    for measure in MEASURES.values():
        assert measure(p, q) >= 0
    for name in DIVERGENCES:
        assert MEASURES[name](p, p) == 0
    np.testing.assert_allclose(kl, kldiv.cross_entropy(p, q) - kldiv.entropy(p), atol=1e-12)
    np.testing.assert_allclose(
        kldiv.jeffreys_divergence(p, q), kl + kldiv.kl_divergence(q, p), rtol=1e-12
    )
    m = (p + q) / 2
    halves = (kldiv.kl_divergence(p, m) + kldiv.kl_divergence(q, m)) / 2
    np.testing.assert_allclose(kldiv.js_divergence(p, q), halves, rtol=1e-10, atol=1e-15)


@CALM
@given(SEEDS)
def test_data_processing_and_chain_rule(seed):
    p, q = simplex(seed, 6)
    joint_p, joint_q = p.reshape(2, 3), q.reshape(2, 3)
    marginal = kldiv.kl_divergence(joint_p.sum(1), joint_q.sum(1))
    whole = kldiv.kl_divergence(p, q)
    assert marginal <= whole * (1 + 1e-12) + 1e-15
    if (joint_p.sum(1) > 1e-200).all() and (joint_q.sum(1) > 1e-200).all():
        inner = kldiv.kl_divergence(joint_p, joint_q, normalize=True)
        np.testing.assert_allclose(whole, marginal + joint_p.sum(1) @ inner, rtol=1e-9, atol=1e-14)
    order = np.random.default_rng(seed).permutation(6)
    np.testing.assert_allclose(kldiv.kl_divergence(p[order], q[order]), whole, rtol=1e-12)


# --- errors ---------------------------------------------------------------------------------------


KL, ONES, ROWS = kldiv.kl_divergence, np.ones(3), np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: KL(ONES, ONES[:2]), ShapeError, r"the same shape; got \(3,\) and \(2,\)"),
        (lambda: KL(ONES, ONES, axis=1), ShapeError, "axis 1 is out of range for p"),
        (lambda: KL(np.float64(1.0), np.float64(1.0)), ShapeError, "single number"),
        (lambda: KL(ROWS[:, :0], ROWS[:, :0]), ShapeError, "no classes"),
        (lambda: KL(ONES, ONES.astype(int)), DTypeError, "q has dtype int"),
        (lambda: kldiv.entropy(ONES, base=1), OptionError, "base must be a number above 1"),
        (lambda: kldiv.renyi_divergence(P8, Q8, alpha=-1), OptionError, "alpha"),
        (lambda: kldiv.js_divergence(P8, Q8, weights=(0.5, 0.6)), OptionError, "be 2 numbers"),
        (lambda: kldiv.js_divergence(P8), OptionError, "two or more"),
        (lambda: KL(P8, Q8, method="quadrature"), OptionError, "method belongs to distributions"),
        (lambda: kldiv.entropy([0.5, 0.5]), LibraryError, "p must be an array"),
        (lambda: kldiv.value_and_grad(KL)(ROWS, ROWS), ShapeError, "one row at a time"),
    ],
)
def test_errors(call, error, said):
    with pytest.raises(error, match=said):
        call()


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.25, 0.75)])
def test_slopes_of_normalised_rows_far_apart(weights):
    """Two classes whose slopes are both near their bound differ by what is left of them."""
    p = np.array([0.0034587453456467465, 4619.6946518872755, 0.5716173867849645])
    q = np.array([1661035164734.7744, 6.738744052280022e-08, 0.029251022076089175])
    loss = partial(kldiv.js_divergence, weights=weights, normalize=True)
    _, found = kldiv.value_and_grad(loss, (0, 1))(p, q)
    with mpmath.workdps(60):
        sides, (one, two) = [[mpmath.mpf(x) for x in row] for row in (p, q)], weights
        for own, other, w, rest, slopes in (
            (*sides, one, two, found[0]),
            (*sides[::-1], two, one, found[1]),
        ):
            size, away = mpmath.fsum(own), mpmath.fsum(other)
            pairs = [(x / size, y / away) for x, y in zip(own, other, strict=True)]
            logs = [w * mpmath.log(x / (w * x + rest * y)) for x, y in pairs]
            mean = mpmath.fsum(x * log for (x, _), log in zip(pairs, logs, strict=True))
            true = [float((log - mean) / size) for log in logs]
            np.testing.assert_allclose(slopes, true, rtol=16 * 2.0**-53)
