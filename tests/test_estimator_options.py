"""Estimators where terms overflow, with clips and importance weights, and of whole counts."""

from __future__ import annotations

import math
from functools import partial

import mpmath
import numpy as np
import pytest
from libraries import unit

import kldiv
from kldiv.errors import DTypeError
from kldiv.estimators import kl_by_sequence, kl_estimate, monte_carlo_kl, plug_in_kl

RNG = np.random.default_rng(23)
OVERFLOW = {"float32": -100.0, "float64": -800.0}
"""log p − log q from where on e^(log q − log p) is more than the dtype holds."""


def both_gradients(loss, *arrays):
    return kldiv.value_and_grad(loss, argnums=(0, 1))(*arrays)


# --- terms that are infinite ----------------------------------------------------------------------


@pytest.mark.parametrize("log_q", [-1.0, 0.0, 0.3])
def test_a_term_beyond_the_largest_number_is_infinite_and_so_is_its_slope(lib, log_q):
    for dtype in {*OVERFLOW} & {*lib.floats}:
        p, q = ([log_q + OVERFLOW[dtype], -1.0], [log_q, -1.0])
        arrays = lib.array(p, dtype), lib.array(q, dtype)
        value, (of_p, of_q) = both_gradients(partial(kl_estimate, reduction="sum"), *arrays)
        assert lib.numpy(value) == math.inf
        assert lib.numpy(of_p).tolist() == [-math.inf, 0.0]
        assert lib.numpy(of_q).tolist() == [math.inf, 0.0]
        value, (of_p, _) = both_gradients(partial(kl_estimate, unbiased_gradient=True), *arrays)
        assert lib.numpy(value) == math.inf
        assert np.isfinite(lib.numpy(of_p)).all()


def test_infinite_logarithms(lib):
    never, sure = lib.array([-math.inf]), lib.array([-1.0])
    value, (of_p, of_q) = both_gradients(kl_estimate, never, sure)
    assert (lib.numpy(value), lib.numpy(of_p)[0], lib.numpy(of_q)[0]) == (
        math.inf,
        -math.inf,
        math.inf,
    )
    value, (of_p, of_q) = both_gradients(kl_estimate, sure, never)
    assert (lib.numpy(value), lib.numpy(of_p)[0], lib.numpy(of_q)[0]) == (math.inf, 1.0, -1.0)
    assert np.isnan(lib.numpy(kl_estimate(never, never)))


def test_terms_just_below_the_largest_number_are_right(lib):
    for dtype, ratio in {"float32": -88.7, "float64": -709.7}.items():
        if dtype not in lib.floats:
            continue
        p, q = (np.asarray([number], dtype) for number in (ratio - 0.1, -0.1))
        found = lib.numpy(kl_estimate(lib.from_numpy(p), lib.from_numpy(q)))
        with mpmath.workdps(50):
            x = mpmath.mpf(float(p[0])) - mpmath.mpf(float(q[0]))
            exact = mpmath.exp(-x) - 1 + x
            # Its condition is |x|: an exponential's rounding of x counts as often.
            assert abs(mpmath.mpf(float(found)) - exact) <= 2 * abs(ratio) * unit(dtype) * exact


# --- the clip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_a_clip_bounds_the_value_and_passes_the_gradient(lib, kind):
    log_p = np.array([-1.0, -3.0, -9.0, -2.0, -math.inf])
    log_q = np.array([-1.5, -1.0, -1.0, -9.0, -1.0])
    x = np.array([0.5, -2.0, -3.0, 3.0, -3.0])  # with a clip of 3
    terms = {"k1": x, "k2": x**2 / 2, "k3": np.exp(-x) - 1 + x}[kind]
    slopes = {"k1": np.ones(5), "k2": x, "k3": 1 - np.exp(-x)}[kind]
    loss = partial(kl_estimate, kind=kind, log_ratio_clip=3.0)
    arrays = lib.array(log_p), lib.array(log_q)
    lib.assert_equal(loss(*arrays, reduction="none"), terms, ulps=64)
    value, (of_p, of_q) = both_gradients(partial(loss, reduction="sum"), *arrays)
    lib.assert_equal(value, terms.sum(), ulps=64)
    lib.assert_equal(of_p, slopes, ulps=64)
    lib.assert_equal(of_q, -slopes, ulps=64)
    unbiased = partial(loss, reduction="sum", unbiased_gradient=True)
    lib.assert_equal(both_gradients(unbiased, *arrays)[1][0], x, ulps=64)


def test_samples_within_the_clip_are_as_without(lib):
    log_p, log_q = RNG.normal(size=(2, 20))
    arrays = lib.array(log_p), lib.array(log_p + 1e-5 * log_q)
    found = kl_estimate(*arrays, log_ratio_clip=1.0, reduction="none")
    np.testing.assert_array_equal(
        lib.numpy(found), lib.numpy(kl_estimate(*arrays, reduction="none"))
    )


# --- importance weights ---------------------------------------------------------------------------


def test_weights_multiply_and_means_divide_by_samples(lib):
    log_p, log_q = RNG.normal(size=(2, 3, 4))
    weight, keep = RNG.gamma(1.0, size=(3, 4)), RNG.random((3, 4)) > 0.3
    x = log_p - log_q
    terms, slopes = weight * (np.exp(-x) - 1 + x), weight * (1 - np.exp(-x))
    loss = partial(kl_estimate, weight=lib.array(weight))
    arrays = lib.array(log_p), lib.array(log_q)
    lib.assert_equal(loss(*arrays), terms.mean(), ulps=64)
    lib.assert_equal(loss(*arrays, reduction="none"), terms, ulps=64)
    masked = partial(loss, where=lib.array(keep))
    value, (of_p, of_q) = both_gradients(masked, *arrays)
    lib.assert_equal(value, terms[keep].mean(), ulps=64)
    lib.assert_equal(of_p, np.where(keep, slopes, 0.0) / keep.sum(), ulps=64)
    lib.assert_equal(of_q, np.where(keep, -slopes, 0.0) / keep.sum(), ulps=64)
    rows = kl_estimate(*arrays, weight=lib.array(weight[:, :1]), reduction="sum")
    lib.assert_equal(rows, (terms / weight * weight[:, :1]).sum(), ulps=128)


def test_a_weight_of_zero_hides_whatever_is_there(lib):
    log_p, log_q = lib.array([-math.inf, math.nan, -1.0]), lib.array([0.0, 0.0, -1.5])
    loss = partial(kl_estimate, weight=lib.array([0.0, 0.0, 2.0]), reduction="sum")
    value, (of_p, of_q) = both_gradients(loss, log_p, log_q)
    lib.assert_equal(value, 2 * (math.exp(-0.5) - 0.5), ulps=64)
    slope = 2 * (1 - math.exp(-0.5))
    lib.assert_equal(of_p, [0.0, 0.0, slope], ulps=64)
    lib.assert_equal(of_q, [0.0, 0.0, -slope], ulps=64)


def weighted_arrays():
    return [*RNG.normal(size=(2, 6)), RNG.gamma(1.0, size=6)]


def test_torch_differentiates_in_the_weight_too():
    torch = pytest.importorskip("torch")
    arrays = [torch.tensor(array, requires_grad=True) for array in weighted_arrays()]

    def loss(log_p, log_q, weight):
        return kl_estimate(log_p, log_q, weight=weight, reduction="none")

    assert torch.autograd.gradcheck(loss, arrays, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, arrays, fast_mode=True)


def test_torch_differentiates_the_clip_straight_through_twice():
    torch = pytest.importorskip("torch")
    arrays = [torch.tensor(2 * array, requires_grad=True) for array in RNG.normal(size=(2, 6))]
    x = arrays[0] - arrays[1]
    x = x + (x.clip(-1, 1) - x).detach()
    found = kl_estimate(*arrays, log_ratio_clip=1.0, reduction="none")
    for terms in (found, torch.exp(-x) - 1 + x):
        (slope,) = torch.autograd.grad(terms.sum(), arrays[0], create_graph=True)
        (second,) = torch.autograd.grad((slope**2).sum(), arrays[0])
        if terms is found:
            first = slope, second
    torch.testing.assert_close(first[0], slope)
    torch.testing.assert_close(first[1], second)


@pytest.mark.slow
def test_torch_compiles_clips_and_weights():
    torch = pytest.importorskip("torch")
    arrays = [torch.tensor(array, requires_grad=True) for array in weighted_arrays()]

    def loss(log_p, log_q, weight):
        return kl_estimate(log_p, log_q, weight=weight, log_ratio_clip=1.0)

    plain = torch.autograd.grad(loss(*arrays), arrays)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*arrays), arrays), plain)


def test_jax_traces_clips_and_weights():
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        arrays = [jax.numpy.asarray(array) for array in weighted_arrays()]

        def loss(log_p, log_q, weight):
            return kl_estimate(log_p, log_q, weight=weight, log_ratio_clip=1.0)

        def straight(log_p, log_q, weight):
            x = log_p - log_q
            x = x + jax.lax.stop_gradient(jax.numpy.clip(x, -1, 1) - x)
            return (weight * (jax.numpy.exp(-x) - 1 + x)).mean()

        for transform in (partial(jax.grad, argnums=(0, 1, 2)), partial(jax.hessian, argnums=0)):
            found, wanted = (jax.jit(transform(f))(*arrays) for f in (loss, straight))
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


def test_with_weights_and_their_gradient_k3_trains_the_right_direction():
    """Over all samples of a behaviour policy b: the exact expectation of the gradient."""
    torch = pytest.importorskip("torch")
    logits = torch.tensor(RNG.normal(size=5), requires_grad=True)
    log_q, log_b = torch.tensor(RNG.normal(size=(2, 5))).log_softmax(-1)
    log_p = logits.log_softmax(0)
    terms = kl_estimate(log_p, log_q, weight=(log_p - log_b).exp(), reduction="none")
    (found,) = torch.autograd.grad((log_b.exp() * terms).sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), logits)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


# --- whole counts ---------------------------------------------------------------------------------


P_COUNTS, Q_COUNTS = [12, 9, 11, 0], [10, 20, 9, 3]


def test_counts_that_are_integers_are_taken(lib):
    p, q = lib.array(np.array(P_COUNTS)), lib.array(np.array(Q_COUNTS))
    floats = lib.array(np.array(P_COUNTS, float)), lib.array(np.array(Q_COUNTS, float))
    for function in (plug_in_kl, partial(kldiv.kl_divergence, normalize=True)):
        lib.assert_equal(function(p, q), lib.numpy(function(*floats)))
    lib.assert_equal(plug_in_kl(p, floats[1]), lib.numpy(plug_in_kl(*floats)))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64"])
def test_integers_of_every_size_are_normalised_by_every_measure(dtype):
    p, q = np.array(P_COUNTS, dtype), np.array(Q_COUNTS, dtype)
    for measure in (
        kldiv.kl_divergence,
        kldiv.js_divergence,
        kldiv.jeffreys_divergence,
        kldiv.cross_entropy,
        partial(kldiv.renyi_divergence, alpha=2.0),
    ):
        found = measure(p, q, normalize=True)
        assert found.dtype == np.float64
        assert found == measure(p.astype(float), q.astype(float), normalize=True)
    assert kldiv.entropy(p, normalize=True) == kldiv.entropy(p.astype(float), normalize=True)


def test_integers_are_counts_only_where_they_are_normalised():
    with pytest.raises(DTypeError, match="p has dtype int64"):
        kldiv.kl_divergence(np.array(P_COUNTS), np.array(Q_COUNTS))


def test_large_counts_keep_their_difference():
    p, q = np.array([10**15 + 1, 10**15]), np.array([10**15, 10**15 + 1])
    d = mpmath.mpf(1) / (2 * 10**15 + 1)
    exact = float(d * mpmath.log((1 + d) / (1 - d)))  # about 5e-31
    assert plug_in_kl(p, q, correction=None) >= 0
    # The frequencies are rounded, to a part in 10¹⁶.
    assert kldiv.kl_divergence(p, q, normalize=True) == pytest.approx(exact, abs=1e-31)


# --- doubts about an interval ---------------------------------------------------------------------


def normal_logs(mean, n=1000):
    """Log-densities of N(0, 1) and N(mean, 1) at samples of the first."""
    x = np.random.default_rng(4).normal(size=n)
    return -(x**2) / 2, -((x - mean) ** 2) / 2


def test_an_interval_of_k3_far_apart_comes_with_a_note():
    near, far = (monte_carlo_kl(*normal_logs(mean)) for mean in (0.5, 3.0))
    assert near.note == ""
    assert "kind='k1'" in far.note
    assert not far.low < 4.5 < far.high
    plain = monte_carlo_kl(*normal_logs(3.0), kind="k1")
    assert plain.note == ""
    assert plain.low < 4.5 < plain.high


def test_a_tail_that_was_never_drawn_is_seen_in_the_ratios():
    # Without the samples that make the mean nothing stands out, but its mean is far below 1.
    log_p, log_q = normal_logs(4.0)
    kept = np.argsort(log_q - log_p)[:-150]
    found = monte_carlo_kl(log_p[kept], log_q[kept])
    assert "the mean of q/p is 1, but 0.0" in found.note


def test_one_sample_that_makes_the_variance_is_named():
    log_p, log_q = np.zeros(200), np.full(200, -0.1)
    log_q[::2], log_q[0] = 0.1, 5.0
    assert "one of 200 samples makes 99% of the variance" in monte_carlo_kl(log_p, log_q).note


def test_estimates_of_infinite_terms_say_why():
    for (log_p, log_q), value, low, note in [
        (([-800.0, -1.0], [0.0, -1.0]), math.inf, math.nan, "q/p is beyond"),
        (([-1.0, -1.0], [-math.inf, -1.0]), math.inf, math.inf, "probability 0 under Q"),
        (([math.nan, -1.0], [0.0, -1.0]), math.nan, math.nan, "NaN"),
    ]:
        found = monte_carlo_kl(np.array(log_p), np.array(log_q))
        np.testing.assert_equal((found.value, found.low), (value, low))
        assert note in found.note


# --- names, and sequences -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("kl", "k1"), ("mse", "k2"), ("low_var_kl", "k3"), ("k3", "k3")]
)
def test_other_names_of_the_kinds(name, kind):
    log_p, log_q = RNG.normal(size=(2, 7))
    value, gradient = kldiv.value_and_grad(partial(kl_estimate, kind=name))(log_p, log_q)
    same, own = kldiv.value_and_grad(partial(kl_estimate, kind=kind))(log_p, log_q)
    assert value == same
    np.testing.assert_array_equal(gradient, own)
    value, gradient = kldiv.value_and_grad(partial(kl_estimate, kind=f"{name}+"))(log_p, log_q)
    assert value == same
    np.testing.assert_allclose(gradient, (log_p - log_q) / 7, rtol=1e-15)
    assert monte_carlo_kl(log_p, log_q, kind=name) == monte_carlo_kl(log_p, log_q, kind=kind)


@pytest.mark.parametrize("average", [False, True])
def test_sequences(lib, average):
    log_p, log_q = RNG.normal(size=(2, 3, 5))
    keep = np.array([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    log_p[0, 4] = np.nan  # padding
    weight = RNG.random((3, 1))
    for dtype in {"float16", lib.widest} & {*lib.floats}:
        p, q = (lib.array(each, dtype) for each in (log_p, log_q))
        options = {"weight": lib.array(weight, dtype), "log_ratio_clip": 1.5, "kind": "k3+"}
        found = kl_by_sequence(p, q, where=lib.array(keep), average=average, **options)
        p, q, w = (lib.numpy(each).astype(float) for each in (p, q, options["weight"]))
        x = np.clip(p - q, -1.5, 1.5)
        terms = np.where(keep, w * (np.expm1(-x) + x), 0.0)
        expected = terms.sum(axis=-1) / (np.maximum(keep.sum(axis=-1), 1) if average else 1)
        lib.assert_equal(found, expected, dtype, ulps=32 if dtype == "float32" else 8)


def test_sequences_are_of_the_wider_dtype_and_rounded_once():
    log_p = RNG.normal(size=(64, 300)).astype("float32")
    log_q = log_p + RNG.normal(scale=0.1, size=log_p.shape).astype("float32")
    exact = kl_by_sequence(log_p, log_q)
    assert exact.dtype == kl_by_sequence(log_p.astype("float16"), log_q).dtype == "float32"
    narrow = kl_by_sequence(log_p, log_q, dtype="float16")
    np.testing.assert_array_equal(narrow, exact.astype("float16"))


def test_sequences_train():
    torch = pytest.importorskip("torch")
    log_p, log_q = (torch.from_numpy(each) for each in RNG.normal(size=(2, 3, 5)))
    keep = torch.tensor([[True] * 5, [True, True, False, False, False], [True] + [False] * 4])
    gradients = []
    for loss in (
        lambda p: kl_by_sequence(p, log_q, where=keep).mean(),
        lambda p: kl_estimate(p, log_q, where=keep, reduction="batchmean"),
    ):
        p = log_p.clone().requires_grad_()
        loss(p).backward()
        gradients.append(p.grad)
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=0)
