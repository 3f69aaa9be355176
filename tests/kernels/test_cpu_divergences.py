"""Divergences other than KL and Jensen-Shannon by the CPU kernels, and by NumPy on blocks."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from f_divergences import exact
from libraries import Library, require, unit

import kldiv
from kldiv.divergences import Alpha, ChiSquared, Hellinger, Jeffreys, Mixture, TotalVariation
from kldiv.formulas.interpolation import Interpolated
from kldiv.formulas.rows import RowLoss
from kldiv.kernels import Work
from kldiv.kernels.blocks import BLOCKS
from kldiv.kernels.cpu import CPU

pytest.importorskip("llvmlite")


of_technologies = pytest.mark.parametrize("technology", [CPU, BLOCKS], ids=["cpu", "blocks"])

XP = kldiv.backends.get("numpy").namespace()
RECORDS = (
    Jeffreys(0.7, 1.3),
    Jeffreys(0.0, 2.0),
    Jeffreys(1e-3, 1.0),
    Mixture(0.1, 1.0, 0.0),
    Mixture(0.99, 0.0, 1.0),
    Mixture(0.3, 0.2, 2.0),
    Mixture(0.3, 0.3, 0.7),
    Mixture(0.5, 0.5, 0.5),
    TotalVariation(),
    Hellinger(),
    ChiSquared(),
    Alpha(0.3),
    Alpha(-0.2),
)

FAR_RECORDS = (
    Mixture(0.5, 0.5, 0.5),
    Mixture(0.3, 0.3, 0.7),
    Mixture(0.3, 0.2, 2.0),
    Mixture(0.1, 1.0, 0.0),
    Mixture(0.9, 0.0, 1.0),
    Hellinger(),
)


def rows(dtype, distance):
    random = np.random.default_rng(3)
    t = 3 * random.normal(size=(6, 4000))
    s = t + distance * random.normal(size=t.shape)
    t[0, 5] = s[1, 7] = s[2, 9] = t[2, 9] = -np.inf
    t[3] += 100
    return s.astype(dtype), t.astype(dtype)


def assert_right(found, wanted, dtype):
    np.testing.assert_allclose(found[0], wanted[0], rtol=9 * unit(dtype))
    for one, other in zip(found[1], wanted[1], strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        error = np.nansum(abs(one - other), axis=-1)
        assert (error <= 9 * unit(dtype) * np.nansum(abs(other), axis=-1)).all()


@of_technologies
@pytest.mark.parametrize("divergence", RECORDS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "distance"), [("float32", 1e-3), ("float32", 20), ("float64", 1)]
)
def test_mixtures_and_jeffreys(technology, divergence, dtype, distance):
    # Powers overflow far apart, and magnify roundings of log(p/q).
    s, t = rows(dtype, min(distance, 2) if isinstance(divergence, Alpha | ChiSquared) else distance)
    plain, exchanged = divergence.canonical()
    if exchanged:
        s, t = t, s
        divergence = plain
    operation = RowLoss("none", dtype, dtype, dtype, plain, 0.8)
    work = Work(operation, XP, [s, t], 1, gradients=(0, 1))
    assert technology.refusal(work) is None
    loss = functools.partial(kldiv.f_div_with_logits, divergence=divergence, temperature=0.8)
    with kldiv.config_context(kernel="pure"), np.errstate(all="ignore"):
        wide = s.astype("f8"), t.astype("f8")
        value = loss(*wide, reduction="none")
        _, gradients = kldiv.value_and_grad(functools.partial(loss, reduction="sum"), (0, 1))(*wide)
    assert_right(technology.compute(work), (value, gradients), dtype)


@pytest.mark.parametrize(
    ("technology", "dtype"), [(CPU, "float32"), (CPU, "float64"), (BLOCKS, "float32")]
)
@pytest.mark.parametrize("m", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 0.7)], ids=["skew", "reverse"])
def test_a_single_gap(technology, m, weights, dtype):
    """A class of two has nearly all of a value: near p = q, at the end of series, far, lost."""
    far = [1e-4, 0.3, 0.7, 0.99, 1.01, 1.6, 4.0, 9.0, 40.0, 90.0, 700.0]
    t = np.array([[-0.5, 0.0]] * len(far) * 2, dtype)
    s = t + np.array([[sign * x, 0.0] for x in far for sign in (1, -1)], dtype)
    record = Mixture(m, *weights)
    for temperature in (0.1, 1.0, 20.0):
        operation = RowLoss("none", dtype, dtype, dtype, record, temperature)
        values, gradients = technology.compute(Work(operation, XP, [s, t], 1, gradients=(0, 1)))
        tiny = float(np.finfo(dtype).tiny)
        lost = 2 * tiny * (100 + 1 / m + 1 / (1 - m)) / temperature  # the gradient of a lost class
        for row in range(len(s)):
            wanted = exact(record, s[row].astype("f8"), t[row].astype("f8"), temperature)
            assert abs(values[row] - wanted.value) <= 8 * unit(dtype) * wanted.value + tiny
            for found, truth in zip(gradients, wanted[1:], strict=True):
                error, size = abs(found[row] - truth).sum(), abs(truth).sum()
                assert error <= 9 * unit(dtype) * size + lost


@pytest.mark.parametrize("lib", [Library.NUMPY, Library.TORCH], ids=str)
def test_public_records_run_on_the_kernel(lib, launches):
    require(lib)
    s, t = map(lib.from_numpy, rows("float32", 1))
    for divergence in RECORDS:
        kldiv.f_div_with_logits(s, t, divergence=divergence)
    assert len(launches) == len(RECORDS)


@of_technologies
@pytest.mark.parametrize("alpha", [0.501, 0.7, 0.3, 1.05])
def test_gradients_of_powers_far_apart(technology, alpha):
    """About p = q the student's v is constant but for one class, which has all of its square."""
    random = np.random.default_rng(6)
    s, t = (scale * random.normal(size=(6, 1500)).astype("f4") for scale in (40, 5))
    loss = functools.partial(kldiv.alpha_div_with_logits, alpha=alpha, reduction="sum")
    plain, exchanged = Alpha(alpha).canonical()
    both = (t, s) if exchanged else (s, t)
    operation = RowLoss("sum", "float32", "float32", "float32", plain)
    _, found = technology.compute(Work(operation, XP, list(both), 1, gradients=(0, 1)))
    with kldiv.config_context(kernel="pure"), np.errstate(all="ignore"):
        wide = s.astype("f8"), t.astype("f8")
        wanted = kldiv.value_and_grad(loss, (0, 1))(*wide)[1]
    for one, other in zip(found, wanted[::-1] if exchanged else wanted, strict=True):
        error, size = abs(one - other).sum(axis=-1), abs(other).sum(axis=-1)
        assert (error <= 50 * unit("float32") * size).all()


@pytest.mark.parametrize(("alpha", "most"), [(2.0, 60), (1.3, 30), (0.7, 12), (0.5, 12)])
@pytest.mark.parametrize("scale", [2, 3, 5])
def test_gradients_of_rows_with_nothing_in_common(alpha, most, scale):
    """The mean of the student's v is little, or much, beside its deviation."""
    s, t = (scale * np.random.default_rng(5).normal(size=(2, 20, 3000))).astype("f4")
    loss = functools.partial(kldiv.alpha_div_with_logits, alpha=alpha, reduction="sum")
    found = kldiv.value_and_grad(loss)(s, t)[1]
    with kldiv.config_context(kernel="pure"):
        wanted = kldiv.value_and_grad(loss)(s.astype("f8"), t.astype("f8"))[1]
    error, size = abs(found - wanted).sum(axis=-1), abs(wanted).sum(axis=-1)
    assert (error <= most * unit("float32") * size).all()


@of_technologies
@pytest.mark.parametrize("alpha", [2.0, 3.0, -2.0])
def test_a_divergence_beyond_the_largest_number_has_no_gradient(technology, alpha):
    s, t = np.zeros((2, 2, 40), np.float32)
    s[0, :3], t[0, :3] = [-95, -100, -98], [0, 1, 0.5]
    both = (t, s) if alpha < 0 else (s, t)
    loss = functools.partial(kldiv.alpha_div_with_logits, alpha=alpha, reduction="sum")
    with kldiv.config_context(kernel=technology.name):
        value, gradients = kldiv.value_and_grad(loss, (0, 1))(*both)
    assert value == np.inf
    for gradient in gradients:
        assert np.isnan(gradient[0]).all()
        assert not gradient[1].any()


@of_technologies
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_beta_of_rows(technology, dtype):
    """Rows are shared out among three kernels: both directions of KL, and Jensen-Shannon."""
    s, t = rows(dtype, 1)
    beta = np.array([0.0, 0.3, 1.0, 0.0, 1.0, np.nan])
    keep = np.array([True, True, True, False, True, True])
    weight = np.array([1.0, 2.0, 0.5, 1.0, 0.0, 1.0])
    operation = RowLoss("none", dtype, dtype, dtype, Interpolated(), 0.8)
    given = [s, t, beta.astype(dtype), keep]
    work = Work(operation, XP, given, 1, gradients=(0, 1), cotangent=weight.astype(dtype))
    assert technology.refusal(work) is None
    found = technology.compute(work)
    for row, place in enumerate(beta):
        if not 0 <= place <= 1:
            assert np.isnan(found[0][row])
            continue
        loss = functools.partial(
            kldiv.distillation_loss, beta=float(place), temperature=0.8, reduction="sum"
        )
        one = [a[row : row + 1].astype("f8") for a in (s, t)]
        with kldiv.config_context(kernel="pure"):
            value, gradients = kldiv.value_and_grad(loss, (0, 1))(*one)
        own = found[0][row : row + 1], [a[row : row + 1] for a in found[1]]
        factor = weight[row] * keep[row]
        gradients = [np.nan_to_num(a) * 0 if factor == 0 else a * factor for a in gradients]
        assert_right(own, (np.atleast_1d(value * keep[row]), gradients), dtype)


@pytest.mark.parametrize("temperature", [1.0, 0.37])
@pytest.mark.parametrize("divergence", FAR_RECORDS, ids=str)
def test_rows_hundreds_apart(divergence, temperature):
    """Powers of log(p/q) at an anchor are not those of its rounding, nor of a p that underflows."""
    random = np.random.default_rng(0)
    s, t = (300 * temperature * random.normal(size=(6, 6)) for _ in range(2))
    loss = functools.partial(
        kldiv.f_div_with_logits, divergence=divergence, temperature=temperature, reduction="sum"
    )
    with kldiv.config_context(kernel="cpu"):
        _, found = kldiv.value_and_grad(loss, (0, 1))(s, t)
    for row, pair in enumerate(zip(s, t, strict=True)):
        true = exact(divergence, *pair, temperature)
        for one, right in zip(found, true[1:], strict=True):
            np.testing.assert_allclose(one[row], right, rtol=16 * unit("float64"), atol=1e-250)


@pytest.mark.parametrize("kernel", ["pure", "cpu", "blocks"])
@pytest.mark.parametrize(
    ("dtype", "s", "t"),
    [
        ("float32", [17.04941, -0.044230916, 0.011244684], [-0.049657587, -0.17411196, 20.712671]),
        (
            "float64",
            [0.28995434687169463, 0.03085362972636268, 21.80775112377257],
            [-0.02510122497073916, -60.0, 0.19378424726527899],
        ),
    ],
)
def test_chi_squared_is_of_ratios(kernel, dtype, s, t):
    """A rounded log(p/q) of 20 would cost twenty units of p²/q."""
    s, t = (np.array(row, dtype) for row in (s, t))
    with kldiv.config_context(kernel=kernel):
        value, found = kldiv.value_and_grad(kldiv.chi2_div_with_logits, (0, 1))(s, t)
    true = exact(ChiSquared(), s, t)
    assert value == pytest.approx(true.value, rel=8 * unit(dtype), abs=0)
    for one, right in zip(found, true[1:], strict=True):
        np.testing.assert_allclose(one, right, rtol=8 * unit(dtype))
