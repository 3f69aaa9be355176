"""The fused CPU kernels: their elementary functions, their agreement with the formulas and beyond.

Small arrays are left to the formulas; here they are not, so that every path of a kernel is taken.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from libraries import unit
from logit_families import NEARLY_GOOD, assert_right, batch, truths
from reference import Truth, exact, extended

import kldiv
from kldiv.errors import BackendError, ConfigError
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss
from kldiv.kernels import Work, cpu

pytest.importorskip("numba")

from kldiv.kernels.cpu import compiling, elementary, passes, quick, state, threads
from kldiv.kernels.cpu.memory import address_of

FLOATS = ["float32", "float64"]
REDUCTIONS = ["none", "mean", "batchmean", "sum"]


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Give small arrays to the kernels too."""
    monkeypatch.setattr(cpu, "SMALL", 0)


def pure():
    return kldiv.config_context(kernel="pure")


# --- exp and log ----------------------------------------------------------------------------------


@compiling.inline
def all_log(x, out):
    for i in range(x.size):
        out[i] = elementary.log(x[i])


@compiling.inline
def all_exp(x, out):
    for i in range(x.size):
        out[i] = elementary.exp(x[i])


def applied(function, x):
    out = np.empty_like(x)
    function(x, out)
    return out


def worst(found, true):
    """Largest error in units of the last place of the true values."""
    with np.errstate(all="ignore"):
        rounded = true.astype(found.dtype)
        finite = np.isfinite(rounded)
        np.testing.assert_array_equal(found[~finite], rounded[~finite])
        ulp = np.spacing(abs(rounded[finite])).astype(np.longdouble)
        return float(np.max(abs(found[finite].astype(np.longdouble) - true[finite]) / ulp))


wide = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="a long double is a double")


@wide
@pytest.mark.parametrize("dtype", FLOATS)
def test_log_is_right_to_an_ulp(dtype):
    random = np.random.default_rng(1)
    bits = {"float32": np.int32, "float64": np.int64}[dtype]
    top = int(np.array(np.inf, dtype).view(bits))
    x = random.integers(0, top + 1, 1_500_000).astype(bits).view(dtype)  # all exponents alike
    near = (1 + random.normal(size=500_000) * 10.0 ** random.integers(-8, 0, 500_000)).astype(dtype)
    x = np.concatenate([x, near[near > 0], np.array([0, -0.0, np.inf, np.nan, -1, -np.inf], dtype)])
    with np.errstate(all="ignore"):
        true = np.log(x.astype(np.longdouble))
    assert worst(applied(all_log, x), true) <= 1


@wide
@pytest.mark.parametrize("dtype", FLOATS)
def test_exp_is_right_to_an_ulp(dtype):
    random = np.random.default_rng(2)
    low, high = {"float32": (-104.5, 89.5), "float64": (-746.5, 710.5)}[dtype]
    x = np.concatenate(
        [
            random.uniform(low, high, 1_500_000),
            random.normal(size=500_000) * 10.0 ** random.integers(-10, 1, 500_000),
            [0, -0.0, np.inf, -np.inf, np.nan, 1e300, -1e300, 5e-324],
        ]
    )
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
        true = np.exp(x.astype(np.longdouble))
    assert worst(applied(all_exp, x), true) <= 1.2


@pytest.mark.parametrize("function", [all_log, all_exp])
@pytest.mark.parametrize("dtype", FLOATS)
def test_loops_become_vectors(function, dtype):
    applied(function, np.ones(3, dtype))
    code = [text for key, text in function.inspect_asm().items() if dtype in str(key[0].dtype)]
    packed = {"float32": ("mulps", "fmla"), "float64": ("mulpd", "fmla")}[dtype]
    packed += ("213ps", "231ps", "132ps") if dtype == "float32" else ("213pd", "231pd", "132pd")
    assert any(word in code[0] for word in packed)


# --- pointwise ------------------------------------------------------------------------------------


def probabilities(shape, seed=0):
    random = np.random.default_rng(seed)
    x = np.log(random.random(shape) + 1e-9)
    y = random.random(shape)
    y.flat[::7] = 0
    return x, y


def elements(x, y, *, log_target):
    """The truth, in long doubles."""
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    with np.errstate(all="ignore"):
        if log_target:
            y = np.maximum(y, -1e4)  # e^y is 0 there too
            return np.exp(y) * (y - x), np.exp(y) * (abs(x) + abs(y))
        log = np.log(np.where(y > 0, y, 1))
        return y * (log - x), y * (abs(log) + abs(x))


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_elements_are_right_to_four_units(dtype, log_target):
    x, y = (a.astype(dtype) for a in probabilities((333, 1001)))
    if log_target:
        with np.errstate(divide="ignore"):
            y = np.log(y)
    found = kldiv.kl_div(x, y, reduction="none", log_target=log_target)
    assert kldiv.explain(x, y).kernel == "cpu"
    true, size = elements(x, y, log_target=log_target)
    limit = (6 if log_target else 4) * unit(dtype) * size
    assert (abs(found - true) <= limit + np.finfo(dtype).tiny).all()


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_are_right(dtype, log_target):
    x, y = (a.astype(dtype) for a in probabilities((333, 10001)))
    if log_target:
        y = np.log(y + np.finfo(dtype).tiny)
    for data in ((x, y), (x, np.full_like(y, 0.1 if not log_target else -0.1))):
        true = elements(*data, log_target=log_target)[0].sum()
        found = kldiv.kl_div(*data, reduction="sum", log_target=log_target)
        assert abs(found - true) <= 4 * unit(dtype) * abs(true)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("mask", ["none", "rows", "elements"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_kl_div_agrees_with_the_formulas(dtype, mask, log_target, reduction):
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    x, y = probabilities((7, 5, 300))
    x, y = x.astype(kind), (np.log(y + 1e-3) if log_target else y).astype(kind)
    x[0, 0, :3], y[0, 0, :3] = -np.inf, [-np.inf if log_target else 0, 0.5, 0]
    where = {
        "none": None,
        "rows": np.arange(5)[:, None] != 2,
        "elements": np.random.default_rng(3).random(x.shape) < 0.8,
    }[mask]
    loss = functools.partial(
        kldiv.kl_div, reduction=reduction, log_target=log_target, where=where, dtype="float64"
    )
    found = loss(x, y)
    with pure():
        wanted = loss(x.astype("float64"), y.astype("float64"))
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-15)
    assert type(found) is type(wanted)
    if reduction != "none":
        loss = functools.partial(loss, dtype=None)
        gradients = kldiv.value_and_grad(loss, (0, 1))(x, y)[1]
        with pure():
            expected = kldiv.value_and_grad(loss, (0, 1))(x.astype("f8"), y.astype("f8"))[1]
        for a, b in zip(gradients, expected, strict=True):
            assert (a.dtype, a.shape) == (x.dtype, x.shape)
            scale = abs(b[np.isfinite(b)]).max()  # log y + 1 and x may cancel
            tolerance = 8 * unit(dtype)
            atol = tolerance * scale + (1e-7 if dtype == "float16" else 0)
            np.testing.assert_allclose(a.astype("f8"), b, rtol=tolerance, atol=atol)


LAYOUTS = {
    "transposed": lambda a: a.transpose(2, 0, 1),
    "every other": lambda a: a[:, :, ::2],
    "backwards": lambda a: a[::-1, :, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "read-only": lambda a: a.view() if a.setflags(write=False) is None else a,
    "a part": lambda a: a[1:, 2:, 3:-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_layout(dtype, layout):
    x, y = (a.astype(dtype) for a in probabilities((6, 7, 500)))
    changed_x, changed_y = LAYOUTS[layout](x), LAYOUTS[layout](y)
    for loss in (kldiv.kl_div, kldiv.kl_div_with_logits, kldiv.js_div_with_logits):
        for mixed in ((changed_x, changed_y), (changed_x, changed_y.copy())):
            vg = kldiv.value_and_grad(functools.partial(loss, dtype="float32"), (0, 1))
            value, gradients = vg(*mixed)
            wanted, expected = vg(np.ascontiguousarray(mixed[0]), np.ascontiguousarray(mixed[1]))
            np.testing.assert_allclose(value, wanted, rtol=1e-6)
            for a, b in zip(gradients, expected, strict=True):
                np.testing.assert_allclose(
                    a, b, rtol=1e-2 if dtype == "float16" else 1e-5, atol=1e-7
                )


# --- logits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.3])
@pytest.mark.parametrize(("size", "dtype"), [(3, "float32"), (3, "float64"), (100, "float32")])
def test_kl_of_logits_is_exact(size, dtype, temperature):
    names, s, t = batch(size, dtype)
    expected = truths(size, dtype, temperature)
    operation = RowLoss("none", dtype, dtype, dtype, temperature=temperature)
    xp = kldiv.backends.get("numpy").namespace()
    value, gradients = cpu.compute(Work(operation, xp, [s, t], 1, gradients=(0, 1)))
    assert_right(names, (value, *gradients), expected, dtype)


@pytest.mark.parametrize("beta", [0.01, 0.5, 0.99])
@pytest.mark.parametrize(("size", "dtype"), [(3, "float32"), (3, "float64"), (100, "float32")])
def test_js_of_logits_is_exact(size, dtype, beta):
    names, s, t = batch(size, dtype)
    operation = RowLoss("none", dtype, dtype, dtype, JensenShannon(beta))
    xp = kldiv.backends.get("numpy").namespace()
    value, gradients = cpu.compute(Work(operation, xp, [s, t], 1, gradients=(0, 1)))
    assert_right(names, (value, *gradients), truths(size, dtype, 1.0, beta), dtype)


@pytest.mark.parametrize("name", NEARLY_GOOD)
def test_guesses_that_are_nearly_good_enough(name):
    s, t, beta = NEARLY_GOOD[name]
    divergence = KullbackLeibler() if beta is None else JensenShannon(beta)
    operation = RowLoss("none", "float32", "float32", "float32", divergence)
    xp = kldiv.backends.get("numpy").namespace()
    work = Work(operation, xp, [s[None], t[None]], 1, gradients=(0, 1))
    value, gradients = cpu.compute(work)
    assert_right([name], (value, *gradients), [exact(s, t, beta=beta)], "float32")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1025, 4099, 32000])
def test_kl_of_many_classes_is_exact(size, dtype):
    random = np.random.default_rng(size)
    t, z = 3 * random.normal(size=size), random.normal(size=size)
    pairs = {
        "1": (t + z, t),
        "1e-3": (t + 1e-3 * z, t + 100),
        "1e-7": (t + 1e-7 * z, t),
        "sorted": (np.sort(t) + 1e-3 * z, np.sort(t) + 100),
        "scale 20": (20 * z, 20 * z + t),
        "smooth": (np.where(np.arange(size) == 7, 12.3, 0.1) - 1e-2 * z, np.eye(1, size, 7)[0]),
        "a ramp": (t + np.linspace(-1, 1, size), t),
        "tempered": (t / 1.3, t),
        "hardly tempered": (t / 1.001, t),
        "sure of a class": (
            t + 0.1 * z + 12 * (np.arange(size) == 99),
            t + 12 * np.eye(1, size, 99)[0],
        ),
        "Zipf": (
            -1.1 * np.log(np.arange(1, size + 1)) + 0.05 * z,
            -1.1 * np.log(np.arange(1, size + 1)),
        ),
        "equal weights": (0.3 * np.sign(z) + 0.1, np.full(size, 0.7)),
        "far from 0": (t + 1e-4 * z - 90, t),
        "a far class": (t + 5 * (t == t.min()), t),
        "the last block 20 higher": (t + z, t + 20 * (np.arange(size) > size - 900)),
    }
    s, t = (np.stack([pair[i] for pair in pairs.values()]).astype(dtype) for i in (0, 1))
    value, gradients = kldiv.value_and_grad(
        functools.partial(kldiv.kl_div_with_logits, reduction="sum"), (0, 1)
    )(s, t)
    rows = kldiv.kl_div_with_logits(s, t, reduction="none")
    assert abs(value - rows.sum()) <= 1e-6 * value
    assert_right(
        pairs, (rows, *gradients), [extended(a, b) for a, b in zip(s, t, strict=True)], dtype
    )


def masks(size):
    """Pairs of student and teacher logits with masked classes, in many blocks of the kernels."""
    random = np.random.default_rng([size, 7])
    t, z = 3 * random.normal(size=size), random.normal(size=size)
    place, some = np.arange(size), random.random(size) < 0.4

    def gone(values, where):
        return np.where(where, -np.inf, values)

    last, first, few = place >= size - 700, place < 2500, random.random(size) < 0.999
    return {
        "last for both": (gone(t + z, last), gone(t, last)),
        "last for both, close": (gone(t + 1e-4 * z, last), gone(t + 60, last)),
        "last for both, 1e-7": (gone(t + 1e-7 * z, last), gone(t, last)),
        "last for both, alike": (gone(t, last), gone(t, last)),
        "last for the teacher": (t + z, gone(t, last)),
        "last for the teacher, close": (t + 1e-3 * z - 90, gone(t, last)),
        "last for the student": (gone(t + z, last), t),
        "first for both": (gone(t + z, first), gone(t, first)),
        "first for the teacher": (t + z, gone(t, first)),
        "first for the teacher, student + 60": (t + z + 60, gone(t, first)),
        "first for the teacher, likely there": (t + z + 30 * first, gone(t, first)),
        "some for both": (gone(t + z, some), gone(t, some)),
        "some for both, close": (gone(t + 1e-3 * z, some), gone(t, some)),
        "some for the teacher": (t + z, gone(t, some)),
        "more for the teacher": (gone(t + z, some & last), gone(t, some)),
        "most for both": (gone(t + z, few), gone(t, few)),
        "most for the teacher": (t + z, gone(t, few)),
        "one class left": (t + z, gone(t, place != size // 2)),
        "tempered": (gone(t / 1.3, last), gone(t, last)),
        "all for both": (gone(t, place >= 0), gone(t, place >= 0)),
        "all for the teacher": (t, gone(t, place >= 0)),
        "all for the student": (gone(t, place >= 0), t),
        "NaN in the teacher": (gone(t, last), np.where(last, np.nan, t)),
        "NaN in the student": (np.where(last, np.nan, t), gone(t, last)),
        "infinity in the teacher": (gone(t, last), np.where(last, np.inf, t)),
        "infinity in the student": (np.where(last, np.inf, t), gone(t, last)),
    }


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1900, 9001])
def test_masked_classes_are_exact(size, dtype):
    pairs = masks(size)
    s, t = (np.stack([pair[i] for pair in pairs.values()]).astype(dtype) for i in (0, 1))
    operation = RowLoss("none", dtype, dtype, dtype)
    xp = kldiv.backends.get("numpy").namespace()
    value, gradients = cpu.compute(Work(operation, xp, [s, t], 1, gradients=(0, 1)))
    alone, _ = cpu.compute(Work(operation, xp, [s, t], 1))
    np.testing.assert_array_equal(alone, value)
    assert_right(pairs, (value, *gradients), [truth(*row) for row in zip(s, t, strict=True)], dtype)
    assert value[list(pairs).index("last for both, alike")] == 0


def truth(s, t):
    """What `extended` says, of logits that may be masked."""
    shared = ~((s == -np.inf) & (t == -np.inf))
    if not all((row < np.inf).all() and np.isfinite(row).any() for row in (s, t)):
        return Truth(np.nan, np.full(s.size, np.nan), np.full(s.size, np.nan))
    lost = (s == -np.inf) & (t > -np.inf)
    found = extended(np.where(lost, -1e4, s)[shared], t[shared])  # e^-1e4 is 0 there too
    gradients = np.zeros((2, s.size), np.longdouble)
    gradients[:, shared] = found.grad_input, found.grad_target
    if not lost.any():
        return Truth(found.value, *gradients)
    gradients[1] = np.where(t > -np.inf, np.nan, 0)
    return Truth(np.longdouble(np.inf), *gradients)


@compiling.inline
def quickly(t, s, a, temperature, kept):
    """Whether the quick way takes a block."""
    kind = np.empty(1, np.float32)
    guess = np.empty(quick.GUESSES)
    places = address_of(t), address_of(s), t.size, True, address_of(kept)
    return quick.state(*places, temperature, state.heat(temperature, kind), guess, a)


def test_masked_classes_are_taken_quickly():
    for name, pair in masks(1900).items():
        s, t = (each.astype("float32") for each in pair)
        done = quickly(t, s, np.empty(state.FIELDS), 1.0, np.empty(3 * passes.SIZE, np.float32))
        slow = name.endswith("for the student") or name == "one class left"
        assert done or slow or name.startswith(("NaN", "infinity")), name


@pytest.mark.parametrize("size", [1, 5, 2048, 5000])
def test_gradients_are_the_same_one_by_one(size):
    random = np.random.default_rng(size)
    t = 3 * random.normal(size=(9, size)).astype("float32")
    s = (t + random.normal(size=(9, 1)) * random.normal(size=(9, size))).astype("float32")
    both = kldiv.value_and_grad(kldiv.kl_div_with_logits, (0, 1))(s, t)
    for which in (0, 1):
        value, gradient = kldiv.value_and_grad(kldiv.kl_div_with_logits, which)(s, t)
        assert value == both[0]
        np.testing.assert_array_equal(gradient, both[1][which])


@pytest.mark.parametrize("loss", [kldiv.kl_div_with_logits, kldiv.js_div_with_logits])
def test_a_masked_row_leaks_nothing(loss):
    s, t = np.zeros((4, 300)), np.ones((4, 300)) * np.arange(300)
    s[1] = np.nan
    keep = np.array([True, False, True, True])
    vg = kldiv.value_and_grad(functools.partial(loss, where=keep), (0, 1))
    value, gradients = vg(s, t)
    assert value == loss(s[keep], t[keep])
    assert all(np.isfinite(g).all() and (g[1] == 0).all() for g in gradients)


@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_that_are_masked_for_one_side(dtype):
    random = np.random.default_rng(4)
    s, t = (random.normal(size=(2, 4500)).astype(dtype) for _ in range(2))
    s[0, :2500] = t[1, 2000:] = -np.inf
    vg = kldiv.value_and_grad(functools.partial(kldiv.js_div_with_logits, reduction="sum"), (0, 1))
    value, gradients = vg(s, t)
    with pure():
        wanted, expected = vg(s.astype("f8"), t.astype("f8"))
    assert value == pytest.approx(wanted, rel=8 * unit(dtype))
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(
            a, b, rtol=1e4 * unit(dtype), atol=16 * unit(dtype) * abs(b).max()
        )


@pytest.mark.parametrize("loss", [kldiv.kl_div_with_logits, kldiv.js_div_with_logits])
def test_rows_without_meaning_have_no_gradient(loss):
    s, t = np.random.default_rng(5).normal(size=(2, 5, 20))
    s[0] = t[1] = -np.inf
    s[2, 5], t[3, 7] = np.nan, np.inf
    _, gradients = kldiv.value_and_grad(functools.partial(loss, reduction="sum"), (0, 1))(s, t)
    for gradient in gradients:
        np.testing.assert_array_equal(np.isnan(gradient).all(axis=-1), [True] * 4 + [False])


# --- threads --------------------------------------------------------------------------------------


def large():
    random = np.random.default_rng(8)
    return (random.normal(size=(64, 20000)).astype("float32") for _ in range(2))


def of(loss, s, t):
    value, gradients = kldiv.value_and_grad(loss, (0, 1))(s, t)
    return [float(value), *(g.tobytes() for g in gradients)]


LOSSES = [kldiv.kl_div, kldiv.kl_div_with_logits, kldiv.js_div_with_logits]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_bits_for_any_number_of_threads(loss, monkeypatch):
    s, t = large()
    t = abs(t) if loss is kldiv.kl_div else t
    results = []
    for number in ("1", "2", "3", "2"):
        monkeypatch.setenv("KLDIV_NUM_THREADS", number)
        results.append(of(loss, s, t))
    assert results[1:] == results[:-1]


@pytest.mark.parametrize("longest", [1 << 20, 0])  # what is kept for gradients: all, nothing
@pytest.mark.parametrize("dtype", FLOATS)
def test_threads_share_long_rows(dtype, longest, monkeypatch):
    monkeypatch.setattr(quick, "LONGEST", longest)
    random = np.random.default_rng(9)
    t = 3 * random.normal(size=(3, 150_001))
    s = t + random.normal(size=t.shape)
    t[0, 60_000:140_000] = s[0, 130_000:140_000] = -np.inf
    t[1] *= 20  # not done quickly
    keep, temperature = np.array([True, True, False]), np.array([1.0, 0.7, 1.3])
    arrays = [s.astype(dtype), t.astype(dtype), temperature, keep]
    operation = RowLoss("sum", dtype, dtype, dtype, temperature=None)
    xp = kldiv.backends.get("numpy").namespace()
    shared, share = [], threads.share

    def counted(work, units, number):
        shared.append(units)
        share(work, units, number)

    monkeypatch.setattr(threads, "share", counted)
    results = []
    for number in (1, 4, 5):
        value, gradients = cpu.compute(Work(operation, xp, arrays, number, gradients=(0, 1)))
        results.append([float(value), *(each.tobytes() for each in gradients)])
    assert results[1:] == results[:-1]
    assert shared == [3, *[9, 3, 9] * 2]
    with pure():
        loss = functools.partial(kldiv.kl_div_with_logits, temperature=temperature, where=keep)
        loss = functools.partial(loss, reduction="sum")
        wanted, expected = kldiv.value_and_grad(loss, (0, 1))(s.astype(dtype), t.astype(dtype))
    assert value == pytest.approx(wanted, rel=40 * unit(dtype))
    for a, b in zip(gradients, expected, strict=True):
        assert abs(a - b).sum() <= 40 * unit(dtype) * abs(b).sum()


def test_many_threads_call_at_once(monkeypatch):
    monkeypatch.setenv("KLDIV_NUM_THREADS", "2")
    s, t = large()
    wanted = of(kldiv.kl_div_with_logits, s, t)
    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(of, kldiv.kl_div_with_logits, s, t) for _ in range(12)]:
            assert future.result() == wanted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_forked_child_computes():
    code = """
import os, sys, numpy as np, kldiv
x, y = np.zeros((64, 20000), 'float32'), np.full((64, 20000), 0.5, 'float32')
before = kldiv.kl_div(x, y, reduction='sum')
child = os.fork()
if child == 0:
    os._exit(0 if kldiv.kl_div(x, y, reduction='sum') == before else 1)
sys.exit(os.waitpid(child, 0)[1])
"""
    environment = {**os.environ, "KLDIV_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


def test_an_error_in_a_helper_is_raised():
    def work(first, _):
        if first:
            raise ValueError("of a helper")

    with pytest.raises(ValueError, match="of a helper"):
        threads.share(work, 100, 2)


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_a_number_of_threads_that_is_none(monkeypatch, value):
    monkeypatch.setenv("KLDIV_NUM_THREADS", value)
    with pytest.raises(ConfigError, match="KLDIV_NUM_THREADS must be a whole number"):
        threads.number()


def test_the_number_of_threads_follows_the_library(monkeypatch):
    monkeypatch.delenv("KLDIV_NUM_THREADS", raising=False)
    assert threads.number() == threads.cores()
    assert threads.number(3) == 3


# --- where kernels do not run ---------------------------------------------------------------------


def test_small_arrays_are_left_to_the_formulas(monkeypatch):
    monkeypatch.setattr(cpu, "SMALL", 100)
    small, large = np.ones(99), np.ones(100)
    assert kldiv.explain(small).kernel == "pure"
    assert kldiv.explain(large).kernel == "cpu"
    with kldiv.config_context(kernel="cpu"):
        assert kldiv.explain(small).kernel == "cpu"


def test_explained_where_another_library_computes(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(cpu, "SMALL", 100)
    with kldiv.config_context(backend="torch"):
        assert kldiv.explain(np.ones(99)).kernel == "pure"
        assert kldiv.explain(np.ones(100)).kernel == "cpu"
        assert kldiv.kl_div(np.zeros(100), np.ones(100)) == 0


def test_without_numba(monkeypatch):
    monkeypatch.setattr(cpu, "_installed", lambda: False)
    monkeypatch.setattr("kldiv.backends.routing._places", {})
    assert kldiv.explain(np.ones(9)).kernel == "pure"
    with kldiv.config_context(kernel="cpu"), pytest.raises(BackendError, match="pip install"):
        kldiv.kl_div(np.ones(9), np.ones(9))


COMPILED = {
    "kl_div": (kldiv.kl_div, {}),
    "log_target": (kldiv.kl_div, {"log_target": True, "reduction": "sum"}),
    "logits": (kldiv.kl_div_with_logits, {"temperature": 1.7}),
    "js": (kldiv.js_div_with_logits, {"beta": 0.3, "reduction": "batchmean"}),
    "rows": (kldiv.kl_div_with_logits, {"reduction": "none"}),
    "elements": (kldiv.kl_div, {"reduction": "none"}),
}


@pytest.fixture
def compiled_calls(monkeypatch):
    """Count what the kernels compute."""
    torch = pytest.importorskip("torch")
    torch.compiler.reset()
    calls, compute = [], cpu.compute

    def counted(work):
        calls.append(work)
        return compute(work)

    monkeypatch.setattr(cpu, "compute", counted)
    return calls


torch_warns = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:.*torch.jit.*is deprecated:DeprecationWarning",
)


@torch_warns
@pytest.mark.parametrize("name", COMPILED)
def test_torch_compile_calls_the_kernel(compiled_calls, name):
    import torch

    loss, options = COMPILED[name]
    loss = functools.partial(loss, **options)
    s = torch.randn(6, 50, requires_grad=True)
    t = torch.randn(6, 50)
    t = t.softmax(-1) if loss.func is kldiv.kl_div and "log_target" not in options else t
    t.requires_grad_()
    expected = loss(s, t)
    gradients = torch.autograd.grad(expected.sum(), (s, t))
    eager = len(compiled_calls)
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(s, t)
    found = torch.autograd.grad(value.sum(), (s, t))
    assert len(compiled_calls) >= eager + 2  # forward and backward
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-7, atol=1e-12)


@torch_warns
def test_torch_compile_does_not_compile_anew_for_every_batch(compiled_calls):
    import torch
    from torch._dynamo.utils import counters

    counters.clear()
    compiled = torch.compile(kldiv.kl_div_with_logits, fullgraph=True, backend="aot_eager")
    for size in (3, 4, 5, 9):
        s = torch.randn(size, 20, requires_grad=True)
        torch.autograd.grad(compiled(s, torch.randn(size, 20)), s)
    assert counters["stats"]["unique_graphs"] <= 2
    assert len(compiled_calls) == 8


@torch_warns
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_operator_is_what_torch_expects(compiled_calls, reduction):
    torch = pytest.importorskip("torch")
    from kldiv.backends._torch_ops import _fused

    s, t = torch.randn(2, 4, 30)
    upstream = torch.ones(4 if reduction == "none" else ())
    names = [reduction, "float32", "float32", "float32"]
    for arrays in ([s, t], [s.T.contiguous().T, t]):
        words = ("cpu", "Kullback-Leibler of logits", names, 0.5, 1.0)
        arguments = (arrays, *words, [0, 1], upstream, True, False, None)
        assert set(torch.library.opcheck(_fused, arguments).values()) == {"SUCCESS"}


@torch_warns
def test_vmap_inside_torch_compile(compiled_calls):
    torch = pytest.importorskip("torch")
    s, t = torch.randn(2, 3, 4, 20)

    def mapped(s, t):
        return torch.func.vmap(kldiv.kl_div_with_logits)(s, t)

    found = torch.compile(mapped, fullgraph=True, backend="aot_eager")(s, t)
    expected = torch.stack([kldiv.kl_div_with_logits(a, b) for a, b in zip(s, t, strict=True)])
    torch.testing.assert_close(found, expected, rtol=2e-7, atol=0)


@torch_warns
@pytest.mark.filterwarnings("ignore:kldiv computes by its array-API formulas:RuntimeWarning")
def test_a_failing_compiler_leaves_compiled_code_to_the_formulas(monkeypatch):
    torch = pytest.importorskip("torch")
    torch.compiler.reset()

    def fail(work):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(cpu, "_failure", None)
    monkeypatch.setattr("kldiv.kernels.cpu.row_loss.compile_for", fail)
    s, t = torch.randn(6, 50, requires_grad=True), torch.randn(6, 50)
    value = torch.compile(kldiv.kl_div_with_logits, fullgraph=True, backend="aot_eager")(s, t)
    (found,) = torch.autograd.grad(value, s)
    with pure():
        expected = kldiv.kl_div_with_logits(s, t)
        (gradient,) = torch.autograd.grad(expected, s)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, gradient)
    assert cpu.problem() is not None


def test_a_failing_compiler_is_told_once(monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(cpu, "_failure", None)
    monkeypatch.setattr("kldiv.kernels.cpu.pointwise_loss.compile_for", fail)
    x, y = np.zeros(9), np.ones(9)
    with pytest.warns(RuntimeWarning, match="compiling it fails: OSError: disk full"):
        assert kldiv.kl_div(x, y) == 0
    assert kldiv.kl_div(x, y) == 0
    assert "disk full" in str(kldiv.explain(x, y))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    code = """
import numpy as np, kldiv
x = np.zeros(10**5)
assert kldiv.kl_div(x, x + 1) == 0
print(kldiv.explain(x).kernel)
"""
    environment = {**os.environ, "KLDIV_CACHE_DIR": str(file / "below")}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout == "pure\n"
    assert run.stderr.count("RuntimeWarning") == 1


def test_second_order_is_left_to_the_formulas():
    torch = pytest.importorskip("torch")
    s, t = (torch.randn(3, 40, dtype=torch.float64, requires_grad=True) for _ in range(2))
    (gradient,) = torch.autograd.grad(kldiv.kl_div_with_logits(s, t), s, create_graph=True)
    with pure():
        (wanted,) = torch.autograd.grad(kldiv.kl_div_with_logits(s, t), s, create_graph=True)
    found, expected = (torch.autograd.grad(g.square().sum(), s)[0] for g in (gradient, wanted))
    torch.testing.assert_close(found, expected)


def test_a_second_backward_on_torch_computes_anew():
    torch = pytest.importorskip("torch")
    s, t = torch.randn(3, 400, requires_grad=True), torch.randn(3, 400)
    loss = kldiv.kl_div_with_logits(s, t)
    first, second = (torch.autograd.grad(3 * loss, s, retain_graph=True)[0] for _ in range(2))
    size = first.abs().sum()  # elements near zero have errors of their neighbours' size
    assert torch.is_nonzero(size)
    assert (first - second).abs().sum() <= 1e-6 * size
