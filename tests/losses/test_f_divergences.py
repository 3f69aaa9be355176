"""Divergences from logits, and a user's class, against their definitions in mpmath."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import product

import mpmath
import numpy as np
import pytest
from f_divergences import RECORDS, exact, of_numbers, wrong_rows
from libraries import Library, unit
from logit_families import (
    INDUCTOR,
    INF,
    TARGET,
    assert_right,
    batch,
    dtypes,
    families,
    rows_and_gradients,
    value_error,
)
from logit_families import truths as fast_truths
from reference import numbers

import kldiv
from kldiv.divergences import KL, FDivergence, Jeffreys, Mixture, exp_rise, expm1
from kldiv.errors import OptionError

SIZE = {"KL": 100, "JS": 100}
"""Classes in the rows of those two; 12 in those of the others."""
FAST = {"KL": None, "JS": 0.3}
"""Those whose truth is known fast, by β."""
NEW = [name for name in RECORDS if name not in {"KL", "JS", "own"}]
"""Those that are no other loss by another name."""
EVERY = [*FAST, *NEW]
SLOW = {Library.JAX, Library.JAX_X64, Library.DASK}
ONCE = "compiled or made of tasks, each case for seconds: some are enough"
RNG = np.random.default_rng(3)
S, T = RNG.normal(size=(2, 4, 5))


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def loss_of(name, **options):
    if name == "KL":
        return partial(kldiv.kl_div_with_logits, **options)
    if name == "JS":
        return partial(kldiv.js_div_with_logits, beta=FAST[name], **options)
    return partial(kldiv.f_div_with_logits, divergence=RECORDS[name], **options)


def rows_of(name, dtype):
    """Names and logits of the rows that go wrong each in its own way."""
    return batch(SIZE.get(name, 12), dtype)


def assert_rows(name, found, dtype):
    """Assert the targets, times the condition; a user's class has them where log p/q is small."""
    if name in FAST:
        names = rows_of(name, dtype)[0]
        assert_right(names, found, fast_truths(SIZE[name], dtype, 1.0, FAST[name]), dtype)
        return
    wrong = wrong_rows(name, 12, dtype, found)
    if name == "own":
        far = ("400", "common", "scale 20", "top class", "disagree", "130", "sorted, opposite")
        wrong = {
            row: errors
            for row, errors in wrong.items()
            if "underflows" not in row  # p is 0, √(p q) is not
            and not (max(errors) <= 20 * TARGET[dtype] and any(word in row for word in far))
        }
    assert wrong == {}


# --- the targets ----------------------------------------------------------------------------------


@pytest.mark.leave_out(lambda lib, name: lib in SLOW and name not in {"KL", "skew"} and ONCE)
@pytest.mark.parametrize("name", [*EVERY, "own"])
def test_targets(lib, name):
    for dtype in dtypes(lib):
        _, s, t = rows_of(name, dtype)
        results = rows_and_gradients(loss_of(name), lib.from_numpy(s), lib.from_numpy(t))
        for result, shape in zip(results, (s.shape[:1], s.shape, s.shape), strict=True):
            lib.assert_like(result, shape, dtype)
        assert_rows(name, [lib.numpy(result) for result in results], dtype)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in ("KL", "JS", "mixture", "TV") for dtype in TARGET),
        *(("Jeffreys", "float32"), ("alpha", "float64")),
    ],
)
def test_targets_under_jit(jax, name, dtype):
    _, s, t = rows_of(name, dtype)
    loss = loss_of(name)
    with jax.enable_x64(dtype == "float64"):
        # Constants of the whole batch would be folded at compile time: they must be arguments.
        total = jax.value_and_grad(lambda s, t: loss(s, t, reduction="sum"), argnums=(0, 1))
        both = jax.jit(lambda s, t: (loss(s, t, reduction="none"), *total(s, t)[1]))
        found = [np.asarray(a) for a in both(jax.numpy.asarray(s), jax.numpy.asarray(t))]
    assert_rows(name, found, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "compiler"),  # the other divergences are made of these
    [("KL", "aot_eager"), *((name, "inductor") for name in ("KL", "JS", "Hellinger"))],
)
def test_targets_under_torch_compile(torch, name, compiler):
    """Inductor computes expm1(x) as exp(x) − 1, which would cost every digit near P = Q."""
    _, s, t = rows_of(name, "float32")
    torch.compiler.reset()
    options = INDUCTOR if compiler == "inductor" and name != "KL" else None
    loss = loss_of(name, reduction="none")
    compiled = torch.compile(loss, fullgraph=True, backend=compiler, options=options)
    tensors = [torch.tensor(a, requires_grad=True) for a in (s, t)]
    rows = compiled(*tensors)
    gradients = torch.autograd.grad(rows.sum(), tensors)
    assert_rows(name, [a.detach().numpy() for a in (rows, *gradients)], "float32")


@pytest.mark.parametrize("m", [1e-6, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 1.0), "Jensen-Shannon"])
def test_every_weight_of_the_mixture(m, weights):
    record = Mixture(m, *((m, 1 - m) if weights == "Jensen-Shannon" else weights))
    names, s, t = batch(3, "float64")
    found = rows_and_gradients(partial(kldiv.f_div_with_logits, divergence=record), s, t)
    rows = [row for row, name in enumerate(names) if "rounded" not in name and row % 3 == 0]
    expected = [exact(record, s[row], t[row]) for row in rows]
    assert_right([names[row] for row in rows], [a[rows] for a in found], expected, "float64")


@pytest.mark.leave_out(lambda lib, name: lib in SLOW and name not in {"KL", "skew"} and ONCE)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["KL", "JS", "Jeffreys", "skew", "Hellinger"])
def test_half_types(lib, name, half):
    """Right for the given logits in float32, rounded once where the result is of the half type."""
    finite = [p for p in families(20).values() if max(map(np.nanmax, map(abs, p))) < 100]
    ours = [lib.array(np.stack([pair[i] for pair in finite[::3]]), half) for i in (0, 1)]
    pairs = zip(*(lib.numpy(array).astype(np.float64) for array in ours), strict=True)
    expected = [exact(RECORDS[name], *pair) for pair in pairs]
    rows = loss_of(name)(*ours, reduction="none", dtype="float32")
    lib.assert_like(rows, (len(expected),), "float32")
    for found, true in zip(lib.numpy(rows), expected, strict=True):
        assert value_error(found, true.value, "float32") <= TARGET["float32"]
    rows, *gradients = rows_and_gradients(loss_of(name), *ours)
    lib.assert_like(rows, (len(expected),), half)
    tiny = 1e-7 if half == "float16" else 1e-38
    u = unit(half) * 1.001
    np.testing.assert_allclose(lib.numpy(rows), [e.value for e in expected], rtol=u, atol=tiny)
    for found, wanted in zip(gradients, ("grad_input", "grad_target"), strict=True):
        lib.assert_like(found, ours[0].shape, half)
        true = np.array([getattr(each, wanted) for each in expected])
        scale = abs(true).max(-1, keepdims=True)
        assert (abs(lib.numpy(found) - true) <= u * abs(true) + 1e-6 * scale + tiny).all()


@pytest.mark.leave_out(lambda lib, name: name in NEW and lib is not Library.NUMPY and "as of KL")
@pytest.mark.parametrize("name", EVERY)
def test_identical_and_shifted_logits_are_exactly_zero(lib, name):
    t = np.round(1024 * 3 * RNG.normal(size=(3, 50))) / 1024
    s = t + np.array([[0.0], [100.25], [-50.5]])
    for result in rows_and_gradients(loss_of(name), lib.array(s), lib.array(t)):
        assert (lib.numpy(result) == 0).all()


# --- other losses by another name -----------------------------------------------------------------

SAME = {
    "KL": (KL(), kldiv.kl_div_with_logits, False),
    "reverse KL": (KL(reverse=True), kldiv.kl_div_with_logits, True),
    "a mixture that is Q": (Mixture(0, 1, 0), kldiv.kl_div_with_logits, False),
    "a mixture that is P": (Mixture(1, 0, 1), kldiv.kl_div_with_logits, True),
    "one direction": (Jeffreys(0, 1), kldiv.kl_div_with_logits, True),
    "JS": (Mixture(0.3, 0.3, 0.7), partial(kldiv.js_div_with_logits, beta=0.3), False),
    "JS, 0.9": (Mixture(0.9, 0.9, 0.1), partial(kldiv.js_div_with_logits, beta=0.9), False),
}


@pytest.mark.leave_out(lambda lib, shape: lib in SLOW and shape != (4, 5) and ONCE)
@pytest.mark.slow_where(lambda lib, name: lib in SLOW and name != "JS")
@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("shape", [(4, 5), (64, 500)])
def test_the_same_loss(lib, name, shape):
    """To the last bit, as the same code computes it: kernels too."""
    record, other, exchanged = SAME[name]
    rng = np.random.default_rng(2)
    s, t = (lib.array(rng.normal(size=shape), lib.widest) for _ in range(2))
    options = {"temperature": 1.5, "reduction": "mean"}
    loss = partial(kldiv.f_div_with_logits, divergence=record, **options)
    value, (of_s, of_t) = kldiv.value_and_grad(loss, (0, 1))(s, t)
    first, second = (t, s) if exchanged else (s, t)
    wanted, slopes = kldiv.value_and_grad(partial(other, **options), (0, 1))(first, second)
    assert lib.numpy(value) == lib.numpy(wanted)
    for found, slope in zip((of_s, of_t), slopes[:: -1 if exchanged else 1], strict=True):
        np.testing.assert_array_equal(lib.numpy(found), lib.numpy(slope))
    alone = kldiv.value_and_grad(loss, 1)(s, t)[1]
    # On a GPU XLA contracts products and sums differently in another program.
    rtol = 16 * unit(lib.widest) if lib is Library.JAX_GPU else 0.0
    np.testing.assert_allclose(lib.numpy(alone), lib.numpy(of_t), rtol=rtol, atol=0)


def test_weights_scale_and_add():
    kl, back = (kldiv.kl_div_with_logits(*pair) for pair in ((S, T), (T, S)))
    for record, wanted in (
        (Mixture(0, 2.5, 1), 2.5 * kl),
        (Mixture(1, 1, 0.5), 0.5 * back),
        (Jeffreys(3, 0.25), 3 * kl + 0.25 * back),
    ):
        assert kldiv.f_div_with_logits(S, T, divergence=record) == pytest.approx(
            wanted, rel=1e-15, abs=0
        )


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 3.3])
@pytest.mark.parametrize("name", NEW)
def test_temperature(name, temperature):
    names, s, t = batch(3, "float64")
    plain = [row for row, each in enumerate(names) if "distance" in each or "about" in each]
    names, s, t = [names[row] for row in plain], s[plain], t[plain]
    pairs = [*zip(s, t, strict=True)]
    expected = [exact(RECORDS[name], *pair, temperature) for pair in pairs]
    found = rows_and_gradients(loss_of(name), s, t, temperature=temperature)
    assert_right(names, found, expected, "float64")
    each = np.full(len(s), temperature)
    for one, same in zip(
        rows_and_gradients(loss_of(name), s, t, temperature=each), found, strict=True
    ):
        np.testing.assert_allclose(one, same, rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", [300.0, 1.0, 1e-5])  # at 300 the student has lost classes
@pytest.mark.parametrize("name", RECORDS)
def test_derivative_in_the_temperature(torch, name, distance):
    rng = np.random.default_rng(2)
    t = 3 * rng.normal(size=(1, 9))
    s = t + distance * rng.normal(size=(1, 9))
    temperature = torch.tensor([1.7], dtype=torch.float64, requires_grad=True)
    loss = loss_of(name)(torch.tensor(s), torch.tensor(t), temperature=temperature)
    (found,) = torch.autograd.grad(loss, temperature)

    def value(T):
        return of_numbers(RECORDS[name], *(numbers(row, 1 / T) for row in (s[0], t[0])))[0]

    with mpmath.workdps(300):
        slope = mpmath.diff(value, mpmath.mpf(1.7))
    assert float(found[0]) == pytest.approx(float(slope), rel=1e-13, abs=0)


# name: s, t
BROKEN = {"NaN": ([0, np.nan], [0, 1]), "+∞": ([0, 1], [INF, 0]), "all −∞": ([-INF, -INF], [0, 1])}


def variation_slopes(s, t):
    """Return the gradients of total variation in s, for any sign of q − p where that is 0.

    The sums of two rows with the same classes in another order may differ by a rounding, which then
    decides.  Of two equal rows there is one.
    """
    q, p = (weights / weights.sum() for weights in map(np.exp, (s, t)))
    ties = (p > 0) & np.isclose(p, q, rtol=1e-12, atol=0) & (s != t).any()
    if not ties.any():
        return []
    signs = ((-1, 0, 1) if tie else (sign,) for tie, sign in zip(ties, np.sign(q - p), strict=True))
    return [0.5 * q * (each - q @ each) for each in map(np.array, product(*signs))]


@pytest.mark.leave_out(lambda lib, name: lib in SLOW and name not in {"KL", "skew"} and ONCE)
@pytest.mark.parametrize("name", EVERY)
def test_edges(lib, name):
    dtype, loss = lib.widest, loss_of(name)
    grid = np.array(np.meshgrid(*[[-INF, 0.0, 1.0]] * 6)).reshape(6, -1).T
    s, t = grid[:, :3], grid[:, 3:]
    alive = np.isfinite(s).any(-1) & np.isfinite(t).any(-1)
    found = rows_and_gradients(loss, lib.array(s, dtype), lib.array(t, dtype))
    rows, of_s, of_t = map(lib.numpy, found)
    assert (np.isnan(rows) == ~alive).all()
    np.testing.assert_array_equal(np.isnan(of_s[~alive]), True)
    for row in np.flatnonzero(alive)[::7]:
        true = exact(RECORDS[name], s[row], t[row])
        np.testing.assert_allclose(rows[row], true.value, atol=8 * unit(dtype), rtol=1e-6)
        pair = s[row], t[row]
        for one, wanted, sides in (
            (of_s, true.grad_input, pair),
            (of_t, true.grad_target, pair[::-1]),
        ):
            if name == "TV" and (slopes := variation_slopes(*sides)):
                assert any(np.allclose(one[row], each, 0, 8 * unit(dtype)) for each in slopes)
            elif np.isfinite(wanted).all():
                np.testing.assert_allclose(one[row], wanted, atol=8 * unit(dtype))
            else:
                np.testing.assert_array_equal(np.isnan(one[row]), np.isnan(wanted))


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("broken", BROKEN)
def test_broken_rows_stay_alone(name, broken):
    s, t = (np.array([row, [0.5, 1.0]], float) for row in BROKEN[broken])
    rows = loss_of(name)(s, t, reduction="none")
    assert np.isnan(rows[0])
    assert np.isfinite(rows[1])


CHUNKED = {
    **{name: loss_of(name) for name in ("Jeffreys", "skew", "Hellinger")},
    **{
        f"Rényi {alpha}": partial(kldiv.renyi_div_with_logits, alpha=alpha)
        for alpha in (0, 0.3, 2, INF)
    },
}


@pytest.mark.parametrize("distance", [1.0, 300.0])
@pytest.mark.parametrize("name", CHUNKED)
def test_classes_in_chunks(name, distance):
    """Sums of chunks, powers each in a unit of its own, merge to those of the row."""
    da = pytest.importorskip("dask.array")
    import dask

    s, t = np.random.default_rng(5).normal(size=(2, 3, 20)) * distance
    t[0, :9] = -INF
    both = kldiv.value_and_grad(CHUNKED[name], (0, 1))
    with dask.config.set(scheduler="synchronous"):
        value, slopes = dask.compute(*both(*(da.from_array(a, chunks=(2, 7)) for a in (s, t))))
    wanted, gradients = both(s, t)
    assert value == pytest.approx(wanted, rel=1e-13, abs=0)
    for one, other in zip(slopes, gradients, strict=True):
        largest = np.max(abs(other), initial=0.0, where=np.isfinite(other))
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-14 * largest)


def test_a_long_row():
    """More classes than a block holds are read in parts."""
    s, t = np.random.default_rng(4).normal(size=(2, 1, 150_001))
    for name in ("Jeffreys", "skew", "Hellinger"):
        loss = loss_of(name)
        order = np.random.default_rng(5).permutation(s.shape[-1])
        with kldiv.config_context(kernel="pure"):
            whole = rows_and_gradients(loss, s, t)
            mixed = rows_and_gradients(loss, s[:, order], t[:, order])
        np.testing.assert_allclose(mixed[0], whole[0], rtol=1e-14)
        for one, other in zip(mixed[1:], whole[1:], strict=True):
            assert abs(one - other[:, order]).sum() <= 1e-14 * abs(other).sum()


# --- second order ---------------------------------------------------------------------------------


def hessians(record, s, t):
    """The four blocks of the Hessian, by differences of exact gradients."""
    h = 1e-20
    blocks = np.zeros((2, 2, len(s), len(s)))
    with mpmath.workdps(60):
        for side in (0, 1):
            for place in range(len(s)):
                ends = []
                for sign in (1, -1):
                    moved = [numbers(row) for row in (s, t)]
                    moved[side][place] += sign * h
                    ends.append(of_numbers(record, *moved)[1:])
                for of in (0, 1):
                    difference = zip(ends[0][of], ends[1][of], strict=True)
                    blocks[of, side, :, place] = [float((a - b) / (2 * h)) for a, b in difference]
    return blocks


@pytest.mark.parametrize("distance", [1.0, 1e-4])
@pytest.mark.parametrize("name", EVERY)
def test_hessian_of_torch(torch, name, distance):
    t = RNG.normal(size=4)
    s = t + distance * RNG.normal(size=4)
    wanted = hessians(RECORDS[name], s, t)
    loss = loss_of(name)
    found = torch.func.hessian(loss, argnums=(0, 1))(torch.tensor(s), torch.tensor(t))
    by_autograd = torch.autograd.functional.hessian(loss, (torch.tensor(s), torch.tensor(t)))
    for blocks in (found, by_autograd):
        for of in (0, 1):
            for side in (0, 1):
                np.testing.assert_allclose(
                    blocks[of][side], wanted[of, side], rtol=1e-11, atol=1e-15
                )


# --- a class of one's own -------------------------------------------------------------------------


@dataclass(frozen=True)
class Pearson(FDivergence):
    """Σ (p − q)²/q: +∞ where a class has p > 0 = q."""

    unbounded = (True, False)

    def term(self, xp, p, q, ell):
        half = 0.5 * abs(ell)
        wide = xp.where(ell > 0, xp.maximum(p, q) * xp.exp(half) * xp.exp(half), xp.maximum(p, q))
        return wide * expm1(xp, -abs(ell)) ** 2

    def u(self, xp, at, step):
        return 2.0 * exp_rise(xp, 1.0, at, step)

    def v(self, xp, at, step):
        return -exp_rise(xp, 2.0, at, step)

    def slope(self, xp, p, q, ell):
        return 2.0 * p * xp.exp(ell)


def test_one_that_is_infinite_somewhere(lib):
    dtype = lib.widest
    s = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, -INF], [0.0, 1.0, 2.0], [0.0, 1.0, -INF]])
    t = np.array([[0.1, 1.2, 1.8], [0.0, 1.0, 2.0], [0.0, 1.0, -INF], [0.5, 1.0, -INF]])
    loss = partial(kldiv.f_div_with_logits, divergence=Pearson())
    found = rows_and_gradients(loss, lib.array(s, dtype), lib.array(t, dtype))
    rows, of_s, of_t = map(lib.numpy, found)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (t, s))
    with np.errstate(all="ignore"):
        terms = np.where((p == 0) & (q == 0), 0, (p - q) ** 2 / q)
    np.testing.assert_allclose(rows, terms.sum(-1), rtol=64 * unit(dtype))
    for gradient in (of_s, of_t):
        assert np.isnan(gradient[1]).all()
        assert np.isfinite(gradient[[0, 2, 3]]).all()
    by_p, by_q = (2 * (p[:1] - q[:1]) / q[:1], 1 - (p[:1] / q[:1]) ** 2)
    for found, own, slopes in ((of_t, p, by_p), (of_s, q, by_q)):
        wanted = own[:1] * (slopes - (own[:1] * slopes).sum(-1, keepdims=True))
        np.testing.assert_allclose(found[:1], wanted, rtol=128 * unit(dtype))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture(-0.1, 1, 1), "m must lie between 0 and 1"),
        (lambda: Mixture(math.nan, 1, 1), "m must lie between 0 and 1"),
        (lambda: Mixture(0.5, -1, 1), "a must be a finite number"),
        (lambda: Mixture(0.5, 1, INF), "b must be a finite number"),
        (lambda: Mixture(0.5, 0, 0), "one of a and b must not be 0"),
        (lambda: Mixture(0, 0, 1), "is 0 everywhere"),
        (lambda: Mixture(1, 1, 0), "is 0 everywhere"),
        (lambda: Mixture(np.full(2, 0.1), 1, 0), "m must be a number"),
        (lambda: Jeffreys(-1), "w must be a finite number"),
        (lambda: Jeffreys(0, 0), "one of w and r must not be 0"),
        (lambda: kldiv.f_div_with_logits(S, T, divergence="kl"), "record of kldiv.divergences"),
        (lambda: kldiv.f_div_with_logits(S, T, divergence=KL), "record of kldiv.divergences"),
    ],
)
def test_errors(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize("name", ["KL", "reverse KL", "Jeffreys", "skew"])
def test_second_derivative_in_the_temperature_of_a_dropped_row(torch, name):
    s, t = torch.tensor(np.random.default_rng(2).normal(size=(2, 3, 4)), requires_grad=True)
    temperature = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    keep = torch.tensor([True, False, True])
    loss = kldiv.f_div_with_logits(
        s, t, divergence=RECORDS[name], temperature=temperature, where=keep
    )
    (slope,) = torch.autograd.grad(loss, s, create_graph=True)
    (found,) = torch.autograd.grad((slope**2).sum(), temperature)
    assert torch.isfinite(found).all()
    assert found[1] == 0
    assert (found[[0, 2]] != 0).all()


def test_shares_too_small_for_float32_are_refused():
    for make in (lambda m: Mixture(m, 1, 0), lambda m: Mixture(m, m, 1 - m)):
        with pytest.raises(OptionError, match="m must be 0 or at least 1e-30"):
            make(1e-38)
    with pytest.raises(OptionError, match="at least 1e-30"):
        kldiv.js_div_with_logits(np.zeros(3), np.ones(3), beta=1e-38)
    a, b = np.array([[0, 2, 1]], "f4"), np.array([[-1, 0, 1]], "f4")
    least = partial(kldiv.f_div_with_logits, divergence=Mixture(1e-30, 1, 0))
    value, slope = kldiv.value_and_grad(least)(a, b)
    limit, whole = kldiv.value_and_grad(kldiv.kl_div_with_logits)(a, b)
    np.testing.assert_allclose(value, limit, rtol=1e-6)
    np.testing.assert_allclose(slope, whole, rtol=1e-6, atol=1e-7)


def test_named_losses_are_records(lib):
    """Each with the options of all losses; 1 − TV is what both distributions have in common."""
    s, t = lib.array(S), lib.array(T)
    options = {"temperature": 2.0, "row_weight": lib.array(np.array([1.0, 0.0, 2.0, 3.0]))}
    for named, record in (
        (partial(kldiv.skew_kl_div_with_logits, alpha=0.2), Mixture(0.2, 1.0, 0.0)),
        (partial(kldiv.jeffreys_div_with_logits, weights=(0.5, 2.0)), Jeffreys(0.5, 2.0)),
    ):
        wanted = kldiv.f_div_with_logits(s, t, divergence=record, **options)
        lib.assert_equal(named(s, t, **options), lib.numpy(wanted), ulps=0)
    turned = kldiv.skew_kl_div_with_logits(t, s, alpha=0.2, reverse=True, **options)
    same = kldiv.skew_kl_div_with_logits(s, t, alpha=0.2, **options)
    lib.assert_equal(turned, lib.numpy(same), ulps=0)
    p, q = (np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in (T, S))
    rows = kldiv.tv_div_with_logits(s, t, reduction="none")
    lib.assert_equal(rows, 1 - np.minimum(p, q).sum(-1), ulps=64)
    for alpha in (0.0, 1.0):
        with pytest.raises(OptionError, match="alpha must lie between 0 and 1"):
            kldiv.skew_kl_div_with_logits(s, t, alpha=alpha)


@pytest.mark.slow_where(lambda kernel: kernel == "cpu")
@pytest.mark.parametrize("kernel", ["pure", "cpu"])
def test_powers_of_what_underflows(kernel):
    """p²/q where p and q, or p alone, are 0 in float32; roots of p q likewise."""
    if kernel == "cpu":
        pytest.importorskip("llvmlite")
    t = np.array([[0, -110, -1], [0, -86, -1]], "float32")
    s = np.array([[0, -225, -1], [0, -176, -1.5]], "float32")
    low = (
        np.array([[-110, 0, -1], [-150, 0, -2]], "float32"),
        np.array([[0, -110, -1]] * 2, "float32"),
    )
    for loss, pair in (
        (kldiv.chi2_div_with_logits, (s, t)),
        (kldiv.hellinger_div_with_logits, low),
    ):
        with kldiv.config_context(kernel=kernel):
            found = rows_and_gradients(loss, *pair)
        wanted = rows_and_gradients(loss, *(a.astype("f8") for a in pair))
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=5e-5, atol=1e-37)
