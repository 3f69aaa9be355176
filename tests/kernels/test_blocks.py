"""NumPy on blocks, beyond ``test_conformance.py``: which rows it leaves, threads, torch, words."""

from __future__ import annotations

import platform
from functools import partial

import numpy as np
import pytest
from f_divergences import exact
from processes import python

import kldiv
from kldiv.backends import get
from kldiv.kernels.blocks import BLOCKS, row_loss
from kldiv.kernels.cpu import CPU

OF_ROWS = [
    kldiv.kl_div_with_logits,
    partial(kldiv.f_div_with_logits, divergence=kldiv.divergences.Mixture(0.3, 0.2, 0.9)),
    partial(kldiv.f_div_with_logits, divergence=kldiv.divergences.Jeffreys(0.7, 0.4)),
    kldiv.js_div_with_logits,
    partial(kldiv.skew_kl_div_with_logits, alpha=0.1),
    kldiv.tv_div_with_logits,
    kldiv.hellinger_div_with_logits,
    kldiv.chi2_div_with_logits,
    *(partial(kldiv.alpha_div_with_logits, alpha=alpha) for alpha in (0.3, 0.97, 1.5, -1.5)),
    *(partial(kldiv.renyi_div_with_logits, alpha=alpha) for alpha in (0.3, 0.5, 2, 3, np.inf)),
]
BOUNDED = [
    OF_ROWS[1],
    kldiv.js_div_with_logits,
    kldiv.tv_div_with_logits,
    kldiv.hellinger_div_with_logits,
    *(partial(kldiv.alpha_div_with_logits, alpha=alpha) for alpha in (0.3, 0.8)),
    *(partial(kldiv.renyi_div_with_logits, alpha=alpha) for alpha in (0, 0.3)),
]
LOSSES = [partial(kldiv.kl_div, log_target=True), *OF_ROWS]


@pytest.fixture(autouse=True)
def base(monkeypatch):
    """Have no llvmlite, and blocks for small arrays too."""
    monkeypatch.setattr(CPU, "installed", False)
    monkeypatch.setattr(BLOCKS, "small", 0)
    monkeypatch.setattr("kldiv.backends.routing._places", {})


def logits(shape=(5, 7, 3000), distance=1.0):
    random = np.random.default_rng(4)
    t = random.normal(size=shape)
    return (t + distance * random.normal(size=shape)).astype("f4"), t.astype("f4")


def of(loss, *arrays):
    value, gradients = kldiv.value_and_grad(loss, (0, 1))(*arrays)
    return value, *gradients


@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_bits_for_any_number_of_threads(loss, monkeypatch):
    s, t = logits()
    t[0, 1:4] = s[0, 1:4] + 1e-5  # left to the formulas
    found = []
    for number in "123":
        monkeypatch.setenv("KLDIV_NUM_THREADS", number)
        found.append([np.asarray(each).tobytes() for each in of(loss, s[:, ::2], t[:, ::2])])
    assert found[1:] == found[:-1]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-6])
def test_agrees_with_the_formulas(loss, distance):
    arrays = logits((6, 900), distance)
    found = of(loss, *arrays)
    with kldiv.config_context(kernel="pure"):
        wanted = of(loss, *(each.astype("f8") for each in arrays))
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one - other).sum() <= 4e-7 * np.abs(other).sum()


@pytest.mark.parametrize("loss", OF_ROWS)
@pytest.mark.parametrize("distance", [3.0, 1e-3])
def test_no_row_of_a_usual_distance_is_left_to_the_formulas(loss, distance, monkeypatch):
    s, t = logits((10, 3000), distance)
    monkeypatch.delattr(row_loss.Rows, "_exactly")
    of(loss, s, t)


@pytest.mark.parametrize("loss", BOUNDED)
def test_nor_is_one_with_masks_where_the_divergence_is_finite(loss, monkeypatch):
    s, t = logits((10, 3000))
    s[:5, ::7], t[5:, ::5], s[3, 2], t[3, 2] = -np.inf, -np.inf, -np.inf, -np.inf
    monkeypatch.delattr(row_loss.Rows, "_exactly")
    assert np.isfinite(of(loss, s, t)[0])


def test_chi_squared_where_a_probability_has_few_digits():
    s, t = np.float32([0.0, -740.0]), np.float32([0.0, -370.0])
    with kldiv.config_context(kernel="blocks"):
        found = kldiv.chi2_div_with_logits(s, t)
    assert found == pytest.approx(exact(kldiv.divergences.ChiSquared(), s, t).value, rel=1e-6)


@pytest.mark.parametrize("order", [0, np.inf])
def test_the_outermost_orders_of_renyi(order):
    """Ties that a temperature may break, classes that both sides mask, hardly one in common."""
    s, t = np.round(4 * np.float32(logits((40, 9)))) / 4
    s[:9, 5] = 30
    t[::4] = 2 * s[::4]  # so that log(p/q) is as large nowhere as at the peak
    s[::2, 4], t[::2, 4], t[::3, 5] = -np.inf, -np.inf, -np.inf
    loss = partial(kldiv.renyi_div_with_logits, alpha=order, temperature=0.7, reduction="sum")
    found = of(loss, s, t)
    with kldiv.config_context(kernel="pure"):
        wanted = of(loss, s.astype("f8"), t.astype("f8"))
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one - other).sum() <= 1e-6 * np.abs(other).sum()


def test_signs_and_ties_that_rounding_decides_are_left_to_the_formulas():
    """p and q differ by less than float64 holds; two of log(p/q) are the largest, but for 1/T."""
    s = np.float32([[5.360086441040039, -20.677724838256836, -19.358932495117188]])
    t = np.float32([[14.08779239654541, -11.950019836425781, -10.6312255859375]])
    ties = np.float32(np.random.default_rng(0).normal(size=(200, 100)) * 100)
    losses = kldiv.tv_div_with_logits, partial(kldiv.renyi_div_with_logits, alpha=np.inf)
    for loss, rows in zip(losses, ((s, t), (ties + np.float32(524.7), ties)), strict=True):
        found = []
        for kernel, dtype in (("blocks", "f4"), ("pure", "f8")):
            with kldiv.config_context(kernel=kernel):
                arrays = [each.astype(dtype) for each in rows]
                found.append(of(partial(loss, temperature=0.37, reduction="sum"), *arrays))
        for one, other in zip(*(each[1:] for each in found), strict=True):
            assert np.abs(one - other).sum() <= 1e-6 * np.abs(other).sum()


def test_rows_that_are_near_to_equal_are_left_to_the_formulas(monkeypatch):
    s, t = logits((40, 50))
    s[7] = t[7] + np.float32(3e-5) * s[7]
    s[9], t[11, 3], s[13, 2] = t[9], np.nan, -np.inf
    rows, row_loss = [], pytest.importorskip("kldiv.kernels.blocks.row_loss")
    exactly = row_loss.Rows._exactly
    monkeypatch.setattr(
        row_loss.Rows,
        "_exactly",
        lambda self, arrays, *more: rows.append(arrays[0]) or exactly(self, arrays, *more),
    )
    kldiv.kl_div_with_logits(s, t)
    np.testing.assert_array_equal(rows, [s[[7, 9, 11, 13]]])


def test_one_row_alone_is_left_to_the_formulas_too():
    s, t = logits((50,), 1e-6)
    found = of(kldiv.kl_div_with_logits, s, t)
    wanted = of(kldiv.kl_div_with_logits, s[None], t[None])
    np.testing.assert_array_equal(
        np.hstack(found), np.hstack([wanted[0], *(g[0] for g in wanted[1:])])
    )


def test_torch_without_a_compiler_of_kernels():
    torch = pytest.importorskip("torch")
    s, t = (torch.from_numpy(each) for each in logits((40, 500)))
    s.requires_grad_()
    assert kldiv.explain(s, t, operation="kl_div_with_logits").kernel == "blocks"
    assert kldiv.explain(s.bfloat16(), t).kernel == "pure"
    (2.0 * kldiv.kl_div_with_logits(s, t)).backward()
    found = s.grad.clone()
    with kldiv.config_context(kernel="pure"):
        s.grad = None
        (2.0 * kldiv.kl_div_with_logits(s, t)).backward()
    torch.testing.assert_close(found, s.grad, rtol=1e-4, atol=1e-9)
    mapped = torch.func.vmap(kldiv.kl_div_with_logits)(s, t)
    torch.testing.assert_close(mapped.mean(), kldiv.kl_div_with_logits(s, t))


def test_huge_rows_are_computed_by_the_formulas_which_need_less_memory(monkeypatch):
    s, t = np.random.default_rng(0).normal(size=(2, 50, 1000)).astype("f4")
    loss = kldiv.value_and_grad(kldiv.kl_div_with_logits)
    assert kldiv.explain(s, t, operation="kl_div_with_logits").kernel == "blocks"
    others = loss(s, t)
    monkeypatch.setattr(row_loss, "MOST", 999)
    found = loss(s, t)
    with kldiv.config_context(kernel="pure"):
        wanted = loss(s, t)
    np.testing.assert_array_equal(found[1], wanted[1])
    assert (others[1] != wanted[1]).any()


def test_the_advice_is_given():
    advice = 'llvmlite is not installed; pip install "kldiv[cpu]" makes large losses 3 to 8 times'
    assert f"blocks in the cache, the fastest that applies; cpu: {advice}" in str(
        kldiv.explain(np.ones(9))
    )
    assert advice in get("numpy").status().kernel_problems["cpu"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's memory")
def test_buffers_of_a_call_are_those_of_the_one_before():
    """Not given back to the system, and faulted in again page by page."""
    code = """
import resource, numpy as np, kldiv
x, y = np.full((64, 32000), -1.0, "f4"), np.full((64, 32000), 0.5, "f4")
faults = []
with kldiv.config_context(kernel="blocks"):
    for _ in range(12):
        kldiv.kl_div(x, y, reduction="sum")
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print((faults[-1] - faults[1]) / 10)
"""
    assert float(python("-c", code, KLDIV_NUM_THREADS="2")) < 100
