"""Rows at the ends of a dtype: Rényi of any order, numbers that underflow, far logits."""

from __future__ import annotations

import math
from functools import partial

import f_divergences
import mpmath
import numpy as np
import pytest
from libraries import Library, unit
from reference import exact

import kldiv

INF = math.inf
LOSSES = {"kl": kldiv.kl_div_with_logits, "js": kldiv.js_div_with_logits}


def relative(found, wanted):
    """Return the sum of errors over the sum of sizes."""
    found, wanted = (np.asarray(a, dtype=np.float64) for a in (found, wanted))
    size = np.abs(wanted).sum()
    return np.abs(found - wanted).sum() / size if size else np.abs(found).sum()


@pytest.fixture(autouse=True)
def formulas():
    """Compute by the formulas: each kernel has tests of its own."""
    with kldiv.config_context(kernel="pure"):
        yield


# --- Rényi ----------------------------------------------------------------------------------------


def renyi(p, q, alpha):
    """Return Rényi's divergence, and its gradients, of normalised rows: mpmath in 400 digits."""
    with mpmath.workdps(400):
        p, q = ([mpmath.mpf(float(a)) for a in row] for row in (p, q))
        p, q = ([a / mpmath.fsum(row) for a in row] for row in (p, q))
        alpha = mpmath.mpf(alpha)
        value, shares = f_divergences.renyi(alpha, p, q)
        of_p = [alpha / (alpha - 1) * (w / a - 1) for w, a in zip(shares, p, strict=True)]
        of_q = [1 - w / b for w, b in zip(shares, q, strict=True)]
        return float(value), [float(g) for g in of_p], [float(g) for g in of_q]


FAR = [[1e-36, 1.0], [0.5, 0.5]]
WIDE = [[1e-20, 0.25, 0.75 - 1e-9, 1e-9], [0.5, 1e-30, 0.25, 0.25]]
MILD = [[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]
STEP = 2.0**-20
NEAR = [[0.125, 0.25, 0.625], [0.125 + STEP, 0.25 - 2 * STEP, 0.625 + STEP]]
ORDERS = [1e-30, 1e-3, 0.3, 0.499, 0.5, 0.9, 1 - 1e-9, 1 + 1e-9, 1.5, 30, 1e4, 1e8, 1e20]


@pytest.mark.parametrize("rows", [FAR, WIDE, MILD, NEAR], ids=["far", "wide", "mild", "near"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_renyi_of_any_order_and_ratio(library, dtype, rows):
    p, q = (np.array(row, dtype) for row in rows)
    arrays = [library.from_numpy(a) for a in (p, q)]
    for order in ORDERS:
        wanted, *slopes = renyi(p, q, order)
        measure = partial(kldiv.renyi_divergence, alpha=order)
        value, gradients = kldiv.value_and_grad(measure, (0, 1))(*arrays)
        # Rounded rows do not sum to 1: that moves near ones to second order, far ones by a unit.
        assert abs(float(value) - wanted) <= 20 * unit(dtype) * wanted + unit(dtype) ** 2, order
        scale = 1 + order * float(np.abs(np.log(p / q)).max())  # as far as exponents magnify
        for found, true, row in zip(gradients, slopes, (p, q), strict=True):
            error, size = row * (library.numpy(found) - true), row * np.array(true)
            bound = 30 * unit(dtype) * scale * (np.abs(size).sum() + 1)
            assert np.abs(error).sum() <= bound, order


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_renyi_of_rows_of_any_scale_is_that_of_the_rows(dtype):
    small = 2.0**-80
    for scale in (small, 1 / small):
        for order in (1e-3, 0.3, 0.9, 1.5, 20):
            measure = kldiv.value_and_grad(partial(kldiv.renyi_divergence, alpha=order), (0, 1))
            rows = [np.array(row, dtype) for row in NEAR]
            value, gradients = measure(*map(Library.TORCH.from_numpy, rows))
            scaled, slopes = measure(*(Library.TORCH.from_numpy(row * scale) for row in rows))
            assert float(scaled) == float(value), order
            assert renyi(*rows, order)[0] == pytest.approx(
                float(value), rel=10 * unit(dtype), abs=0
            )
            for found, true in zip(slopes, gradients, strict=True):
                np.testing.assert_array_equal(found.numpy() * scale, true.numpy())


def test_renyi_of_small_order_and_far_ratio(lib):
    p, q = (lib.array(row) for row in FAR)
    found = float(lib.numpy(kldiv.renyi_divergence(p, q, alpha=1e-3)))
    assert abs(found - 0.039934657451660542) <= 8 * unit(lib.widest) * found
    # The same kind at an order above 1: p is tiny, and p²/q is not.
    tiny, gone = (np.array(row) for row in ([1e-30, 1.0], [1e-62, 1.0]))
    assert kldiv.renyi_divergence(tiny, gone, alpha=2) == pytest.approx(math.log(101), rel=1e-14)


def test_renyi_reaches_its_limits():
    p, q = np.array([0.1, 0.2, 0.7]), np.array([0.3, 0.3, 0.4])
    half = np.array([0.0, 0.5, 0.5])
    most = kldiv.renyi_divergence(p, q, alpha=INF)
    for order in (1e17, 1e36, 1e37, 1e300):
        assert kldiv.renyi_divergence(p, q, alpha=order) == pytest.approx(most, rel=1e-15)
    assert kldiv.renyi_divergence(p, q, alpha=1e-300) == pytest.approx(
        1e-300 * kldiv.kl_divergence(q, p), rel=1e-14
    )
    assert kldiv.renyi_divergence(half, q, alpha=1e-300) == pytest.approx(-math.log(0.7), rel=1e-15)
    assert kldiv.renyi_divergence(half, q, alpha=1 + 2**-52) == pytest.approx(
        kldiv.kl_divergence(half, q), rel=1e-14
    )


@pytest.mark.parametrize("order", [1e3, 1e7, 1e10, 1e30])
def test_a_large_order_does_not_magnify_what_rows_lack_of_1(order):
    p, q = np.array([0.333, 0.333, 0.333]), np.array([0.5, 0.25, 0.25])
    wanted = renyi(p, q, order)[0]
    value, (of_p, of_q) = kldiv.value_and_grad(
        partial(kldiv.renyi_divergence, alpha=order), (0, 1)
    )(p, q)
    assert value == pytest.approx(wanted, rel=1e-12, abs=0)
    # Both sums' own derivatives, 1/0.999 and 1, and the two largest powers share the slope.
    np.testing.assert_allclose(of_p * 0.999, [-1, 0.5, 0.5], rtol=1e-14 + 5 / order)
    np.testing.assert_allclose(of_q, [1, -1, -1], rtol=1e-9)


def test_gradient_of_an_infinite_renyi_is_its_limit():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.0, 0.5, 0.5])
    measure = partial(kldiv.renyi_divergence, alpha=3)
    value, (of_p, of_q) = kldiv.value_and_grad(measure, (0, 1))(p, q)
    assert value == INF
    np.testing.assert_array_equal(of_p, [INF, -1.5, -1.5])
    np.testing.assert_array_equal(of_q, [-INF, 1, 1])


# --- probabilities that underflow -----------------------------------------------------------------

LEAST = {"float32": 1.4e-45, "float64": 5e-324}


def test_js_of_a_row_with_itself_where_a_half_underflows(lib):
    least = [LEAST[lib.widest], 1.0]
    p = lib.array(least)
    lib.assert_equal(kldiv.js_divergence(p, p), 0.0, ulps=0)
    lib.assert_equal(kldiv.js_divergence(p, p, p, p, weights=(0.1, 0.2, 0.3, 0.4)), 0.0, ulps=0)
    value, gradients = kldiv.value_and_grad(kldiv.js_divergence, (0, 1))(p, p)
    lib.assert_equal(value, 0.0, ulps=0)
    for gradient in gradients:
        lib.assert_equal(gradient, [0.0, 0.0], ulps=0)


@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_js_of_subnormal_probabilities_and_small_weights(library):
    p = np.array([1e-40, 3e-45, 1.0, 0.0], np.float32)
    q = np.array([3e-40, 3e-45, 0.9, 1e-44], np.float32)
    for weights in ((0.5, 0.5), (1e-6, 1 - 1e-6)):
        with mpmath.workdps(60):
            w = [mpmath.mpf(weight) for weight in weights]
            columns = [[mpmath.mpf(float(a)) for a in pair] for pair in zip(p, q, strict=True)]
            m = [w[0] * a + w[1] * b for a, b in columns]
            slopes = [
                [
                    float(w[i] * mpmath.log(c[i] / mean)) if c[i] else 0.0
                    for c, mean in zip(columns, m, strict=True)
                ]
                for i in (0, 1)
            ]
        measure = partial(kldiv.js_divergence, weights=weights)
        arrays = [library.from_numpy(a) for a in (p, q)]
        _, found = kldiv.value_and_grad(measure, (0, 1))(*arrays)
        for one, wanted in zip(found, slopes, strict=True):
            np.testing.assert_allclose(library.numpy(one), wanted, rtol=1e-6, atol=1e-12)


def test_a_weight_whose_product_is_zero_all_the_same_gives_no_nan():
    p, q = np.array([1e-300, 1.0]), np.array([0.0, 1.0])
    measure = partial(kldiv.js_divergence, weights=(1e-200, 1.0))
    value, gradient = kldiv.value_and_grad(measure)(p, q)
    assert value == 0
    assert 0 <= gradient[0] <= 1e-197


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_quotients_that_are_no_numbers_have_logarithms(library, dtype):
    """Of the largest numbers and of subnormal ones; the terms themselves are numbers."""
    least = LEAST[dtype]
    large = {"float32": 1e36, "float64": 1e305}[dtype]
    p, q = np.array([large, 1.0], dtype), np.array([least, 1.0], dtype)
    wide = [[mpmath.mpf(float(x)) for x in row] for row in (p, q)]
    ratio = mpmath.log(wide[0][0] / wide[1][0])
    arrays = [library.from_numpy(a) for a in (p, q)]
    _, (slope,) = kldiv.value_and_grad(kldiv.kl_divergence, (0,))(*arrays)
    kl, most = kldiv.kl_divergence(*arrays), kldiv.renyi_divergence(*arrays, alpha=INF)
    for found, wanted in (
        (kl, wide[0][0] * (ratio - 1)),
        (kldiv.kl_divergence(*arrays[::-1]), wide[0][0]),
        (most, ratio),
        (slope[0], ratio),
    ):
        np.testing.assert_allclose(float(found), float(wanted), rtol=4 * unit(dtype))
    some = np.array([1e-5, 1.0], dtype), np.array([8 * least, 1.0], dtype)
    if dtype == "float64":
        some[0][0] = 1e-20
    arrays = [library.from_numpy(a) for a in some]
    wanted = mpmath.mpf(float(some[0][0])) ** 2 / mpmath.mpf(float(some[1][0]))
    found = float(kldiv.chi2_divergence(*arrays))
    np.testing.assert_allclose(found, float(wanted), rtol=4 * unit(dtype))


# --- classes that are not adjacent in memory ------------------------------------------------------


def test_strided_rows_are_added_as_exactly_as_adjacent_ones():
    random = np.random.default_rng(0)
    x = random.normal(size=(50_000, 2)).astype(np.float32)
    y = (x + 0.3 * random.normal(size=x.shape)).astype(np.float32)
    wide = [np.ascontiguousarray(a.T, np.float64) for a in (x, y)]
    for loss in LOSSES.values():
        both = kldiv.value_and_grad(partial(loss, reduction="sum"), (0, 1))
        wanted, slopes = both(*wide)
        transposed, _ = both(x.T, y.T)
        value, gradients = kldiv.value_and_grad(partial(loss, axis=0, reduction="sum"), (0, 1))(
            x, y
        )
        assert relative(value, wanted) <= 1e-6
        assert relative(transposed, wanted) <= 1e-6
        for found, true in zip(gradients, slopes, strict=True):
            assert relative(found.T, true) <= 1e-6
    # Half of a wider array: every other column.
    every = np.repeat(x, 2, axis=1)[:, ::2]
    assert (
        relative(
            kldiv.kl_div_with_logits(every, y, axis=0, reduction="sum"),
            kldiv.kl_div_with_logits(*wide, reduction="sum"),
        )
        <= 1e-6
    )


def test_strided_rows_of_another_library_that_computes_by_numpy():
    strict = pytest.importorskip("array_api_strict")
    random = np.random.default_rng(1)
    x, y = random.normal(size=(2, 20_000, 2)).astype(np.float32)
    found = kldiv.kl_div_with_logits(strict.asarray(x).T, strict.asarray(y).T, reduction="sum")
    wanted = kldiv.kl_div_with_logits(x.T.astype(float), y.T.astype(float), reduction="sum")
    assert relative(float(found), wanted) <= 1e-6


def test_gradient_in_a_bias_adds_many_rows():
    random = np.random.default_rng(2)
    sizes = [(20_000, 2), (5, 2), (20_000, 2), (5, 2), (5,)]
    arrays = [random.normal(size=size).astype(np.float32) for size in sizes]

    def of_bias(dtype):
        *four, bias = (a.astype(dtype) for a in arrays)
        call = kldiv.linear_kl_div.record.prepare(*four, bias=bias, reduction="sum")
        return call.value_and_gradients((4,))[1][0]

    assert relative(of_bias(np.float32), of_bias(np.float64)) <= 1e-6


# --- logits far apart, and near the end of float32 ------------------------------------------------


def right(library, loss, s, t, dtype="float32", **options):
    """Assert that value and both gradients of a row of logits are right."""
    s, t, bound = np.array(s, dtype), np.array(t, dtype), 17 * unit(dtype)
    known = {key: options[key] for key in ("beta", "temperature") if key in options}
    if loss is kldiv.js_div_with_logits:
        known.setdefault("beta", 0.5)
    truth = exact(s, t, **known)
    call = kldiv.value_and_grad(partial(loss, reduction="sum", **options), (0, 1))
    value, found = call(*(library.from_numpy(a) for a in (s, t)))
    wanted = float(truth.value)
    if wanted > float(np.finfo(dtype).max):
        assert float(value) == INF
        return
    assert abs(float(value) - wanted) <= bound * wanted
    for gradient, true in zip(found, (truth.grad_input, truth.grad_target), strict=True):
        assert relative(library.numpy(gradient), true) <= bound


APART = {  # groups of logits that many units apart
    "1e6": (
        [11.7, -25.6, -22.3, 16.4, 12.9, 10.4],
        [-1000001.7, 1.7, 999997.06, 0.19, -999997.2, 999998.0],
    ),
    "1e7": ([0.5, -0.3, 1.7, 0.8, -0.4, -0.2], [3.0, -1.2, 1e7, -10000002.0, 10000004.0, -1.0]),
    "1e9": ([2.7, -32.7, 9.8, -20.1, -4.3, 17.0], [1e9, 1e9, 1.6, 1e9, 1e9, 1e9]),
    "masks on either side": (
        [0.0314486, -0.025965, 0.0174098, -1e30],
        [-1e4, -1.6861667, -2.0608730, 3.8084407],
    ),
    "1e20": ([32.3, -14.1, -24.0, -25.1, -9.5, 10.0], [-1e20, -3.3, -1e20, 1.9, 1e20, 1e20]),
}


@pytest.mark.parametrize("case", APART)
@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_js_of_groups_far_apart(library, case):
    s, t = APART[case]
    for beta in (0.5, 0.1):
        right(library, kldiv.js_div_with_logits, s, t, beta=beta)
        right(library, kldiv.js_div_with_logits, t, s, beta=beta)


@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_a_far_class_of_hardly_a_weight_carries_no_anchor_away(library):
    s, t = [-14335864832.0, 0.0360315777361393], [-40.86069869995117, 0.5016201734542847]
    right(library, kldiv.js_div_with_logits, s, t, beta=0.99, temperature=0.7)
    right(library, kldiv.js_div_with_logits, t, s, beta=0.01, temperature=0.7)


END = {
    "a mask beside 1e38": ([1e38, -INF, 0, 1], [1e38, -INF, 0, 2], 1.0),
    "the teacher alone": ([0.3, -INF, 1.5, 1], [1e38, -INF, 0, 2], 1.0),
    "1e38 lower": ([-1e38, -1e38, 0.5, 0.2], [0.1, -1e38, 0.3, 0.2], 1.0),
    "opposite ends": ([-3.4e38, 3.4e38, 0, 1], [3.4e38, -3.4e38, 0, -INF], 1.0),
    "a warm one": ([2e38, -2e38, -INF, 0.5], [-2e38, 2e38, -INF, 0.5], 1.7),
    "a cold one": ([1e38, -INF, 0.2, 1], [0.2, -INF, 0.3, 2], 1e-5),
    "cold by a power of two": ([-1e38, 0.1, 0.2, -INF], [-1e38, 0.3, 0.1, -INF], 2.0**-20),
    "cold and masked": ([0.1, 0.11, -INF], [0.1, 0.105, -3.4e38], 1e-3),
}


@pytest.mark.parametrize("case", END)
@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_logits_near_the_end_of_float32(library, case):
    s, t, temperature = END[case]
    right(library, kldiv.js_div_with_logits, s, t, temperature=temperature)
    right(library, kldiv.js_div_with_logits, t, s, temperature=temperature)
    right(library, kldiv.kl_div_with_logits, s, t, temperature=temperature)


EVEN = [0.1 * place for place in range(16)]
NUMBERS = [Library.NUMPY, Library.TORCH, Library.STRICT]


def ends(dtype, share, *places):
    """Return logits at places in the unit of a share of the largest number."""
    return share * float(np.finfo(dtype).max) * np.array(places, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", NUMBERS)
def test_sums_over_classes_are_numbers_where_the_divergence_is(library, dtype):
    for share, temperature in ((0.088, 0.5), (-0.088, 1.0), (0.9, 2.0)):
        far = [ends(dtype, share, 1)[0], *EVEN[1:]]
        for s, t in ((far, EVEN), (EVEN, far)):
            right(library, kldiv.kl_div_with_logits, s, t, dtype, temperature=temperature)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_states_of_parts_stay_numbers_too(dtype):
    s, t = np.array(EVEN, dtype), np.array(EVEN, dtype)
    s[3], t[12] = ends(dtype, 0.3, 1, -1)
    first, *rest = (kldiv.KLState.from_logits(s[i : i + 4], t[i : i + 4]) for i in (0, 4, 8, 12))
    for other in rest:
        first = first + other
    np.testing.assert_allclose(first.kl(), exact(s, t).value, rtol=4 * unit(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", NUMBERS)
@pytest.mark.parametrize("loss", [kldiv.kl_div_with_logits, kldiv.cross_entropy_with_logits])
def test_slopes_of_a_divergence_beyond_the_numbers(loss, library, dtype):
    """Of p = ⅓ they are ⅓ (Σ p s − s)/T² and q − p: ±16/9 and 8/9 of the logits at T = ½."""
    s, t = ends(dtype, 0.45, 1, -1, -1), ends(dtype, 0.0, 1, 1, 1)
    value, slopes = kldiv.value_and_grad(partial(loss, temperature=0.5), (0, 1))(
        *map(library.from_numpy, (s, t))
    )
    assert float(value) == INF
    for found, wanted in zip(
        slopes, ([4, -2, -2] / np.array(3.0), -s * (np.array([16, 8, 8]) / 9)), strict=True
    ):
        np.testing.assert_allclose(library.numpy(found), wanted, rtol=4 * unit(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", NUMBERS)
def test_renyi_of_opposite_ends(library, dtype):
    """Of two classes: one has all of Q, or of w, or the steps from one to the other overflow."""
    equal, apart = ends(dtype, 0.0, 1, 1), ends(dtype, 0.97, 1, -1)
    cases = (
        # order, T, s, t, the value and both slopes
        (2, 2.0, apart, equal, apart[0], [0.5, -0.5], [-0.5, 0.5]),
        (2, 0.5, apart, equal, INF, [2, -2], [-2, 2]),
        (0.3, 0.5, apart / 4, -apart / 4, 3 / 7 * apart[0], [0, 0], [-6 / 7, 6 / 7]),
        (0.3, 0.5, apart, -apart, INF, [0, 0], [-6 / 7, 6 / 7]),
    )
    for order, temperature, s, t, *wanted in cases:
        loss = partial(kldiv.renyi_div_with_logits, alpha=order, temperature=temperature)
        arrays = map(library.from_numpy, (s, t))
        value, slopes = kldiv.value_and_grad(loss, (0, 1))(*arrays)
        for found, true in zip((value, *slopes), wanted, strict=True):
            np.testing.assert_allclose(library.numpy(found), true, rtol=4 * unit(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", NUMBERS)
def test_labels_and_sparse_teachers_of_opposite_ends(library, dtype):
    s = ends(dtype, 0.97, 1, -1, 0)
    of_label = kldiv.cross_entropy_with_logits(
        library.from_numpy(s), library.from_numpy(np.array(1)), temperature=2.0
    )
    np.testing.assert_allclose(library.numpy(of_label), s[0], rtol=unit(dtype))
    log_probs, places = np.log(np.array([0.5], dtype)), np.array([1])
    arrays = map(library.from_numpy, (s, log_probs, places))
    of_sparse = kldiv.topk_kl_div_with_logits(*arrays, temperature=2.0)
    np.testing.assert_allclose(library.numpy(of_sparse), s[0] / 2, rtol=4 * unit(dtype))
    found = kldiv.topk_log_probs(library.from_numpy(s), 3, temperature=2.0)
    np.testing.assert_allclose(
        library.numpy(found.log_probs),
        s[[1, 2, 1]] * [0, 0, 1] - s[[2, 0, 2]] / 2,
        rtol=unit(dtype),
    )


@pytest.mark.slow
def test_jax_computes_logits_near_the_end_of_float32():
    pytest.importorskip("jax")
    s, t, temperature = END["a mask beside 1e38"]
    right(Library.JAX, kldiv.kl_div_with_logits, s, t, temperature=temperature)
    right(Library.JAX, kldiv.js_div_with_logits, *APART["1e6"])
    right(Library.JAX, kldiv.kl_div_with_logits, [3e37, *EVEN[1:]], EVEN)


@pytest.mark.parametrize("temperature", [2.0**-120, 3e-30, 7e-25, 3e30, 2.0**120])
def test_temperatures_of_rows_near_the_ends_of_float32(temperature):
    """As an array they give what they give as a number."""
    t = np.array([[0.3, 0.1, 2.0]], np.float32) * np.float32(temperature)
    s = np.array([[1.0, 2.0, 0.5]], np.float32) * np.float32(temperature)
    of_rows = np.array([temperature], np.float32)
    for loss in (kldiv.kl_div_with_logits, kldiv.js_div_with_logits):
        (value, gradients), (wanted, true) = (
            kldiv.value_and_grad(partial(loss, temperature=heat), (0, 1))(s, t)
            for heat in (of_rows, float(of_rows[0]))
        )
        assert relative(value, wanted) <= 4 * 2.0**-24
        for gradient, other in zip(gradients, true, strict=True):
            assert relative(gradient, other) <= 4 * 2.0**-24


@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
@pytest.mark.parametrize("temperature", [2.0**k for k in (-120, -21, -20, 0, 20, 21, 126)] + [1e38])
def test_a_masked_class_counts_for_nothing_at_any_temperature(library, temperature):
    s, t = np.float32(temperature) * np.float32([[[1, 1.5, -1]], [[1.5, 0.5, 1]]])
    found = {}
    for masked in (False, True):
        rows = [np.insert(a, 1, -np.inf, axis=-1) if masked else a for a in (s, t)]
        both = kldiv.value_and_grad(kldiv.kl_div_with_logits, argnums=(0, 1))
        value, slopes = both(*map(library.array, rows), temperature=temperature)
        slopes = [np.asarray(each) for each in slopes]
        found[masked] = [float(value), *(np.delete(a, 1, -1) if masked else a for a in slopes)]
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-6, atol=0)


def test_a_state_of_blocks_near_the_end_of_float32_merges():
    s = np.array([-1e38, 0.2, 3e38, -INF, 1.0, 2.0], np.float32)
    t = np.array([3e38, 0.2, -1e38, -INF, 3e38, 2.0], np.float32)
    first, *rest = (kldiv.KLState.from_logits(s[i : i + 2], t[i : i + 2]) for i in (0, 2, 4))
    for other in rest:
        first = first + other
    # KL is log ½ + ½ (4e38 + 3e38), beyond the largest float32; swapped it is below 1e38's units.
    assert float(first.kl()) == INF
    same = kldiv.KLState.from_logits(s[:2], s[:2]) + kldiv.KLState.from_logits(s[2:], s[2:])
    assert float(same.kl()) == 0
