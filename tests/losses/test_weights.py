"""`row_weight=` and `normalizer=` of every loss, against sums that are written out."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from libraries import Library

import kldiv
from kldiv.divergences import Jeffreys, Mixture
from kldiv.errors import DTypeError, OptionError, ShapeError

RNG = np.random.default_rng(11)
S, T = RNG.normal(size=(2, 6, 5))
WEIGHT = np.array([0.5, -2.0, 0.0, 3.0, 0.0, 1.5])
KEEP = np.array([True, True, True, False, True, True])
"""Of row 2 the weight is 0 and the value is not; row 3 is masked; row 4 is broken, of weight 0."""

LOSSES = {
    "kl": kldiv.kl_div_with_logits,
    "js": partial(kldiv.js_div_with_logits, beta=0.3),
    "jeffreys": partial(kldiv.f_div_with_logits, divergence=Jeffreys(1.0, 0.5)),
    "skew": partial(kldiv.f_div_with_logits, divergence=Mixture(0.1, 1.0, 0.0)),
}
SLOW = {Library.DASK, Library.STRICT, Library.STRICTEST}


def broken(array, rows=(3, 4)):
    """The array with NaN in rows that count for nothing."""
    array = array.copy()
    array[list(rows)] = np.nan
    return array


def written_out(loss, reduction, s=S, t=T, weight=WEIGHT, **options):
    """Value and gradients of weighted sums, by rows of whole arrays in float64."""
    factor = np.where(KEEP, weight, 0.0)
    factor = factor / (1 if reduction == "sum" else KEEP.sum())
    rows = loss(s, t, reduction="none", **options)
    each = []
    for index in (0, 1):
        gradient = kldiv.value_and_grad(partial(loss, reduction="sum", **options), argnums=index)
        each.append(gradient(s, t)[1] * factor[:, None])
    return (factor * rows).sum(), *each


@pytest.mark.slow_where(lambda lib, name: lib in SLOW and name in {"js", "skew"})
@pytest.mark.parametrize("name", LOSSES)
def test_weights(lib, name):
    loss = LOSSES[name]
    arrays = [lib.array(broken(each)) for each in (S, T)]
    mask, weight = lib.array(KEEP), lib.array(np.where(KEEP, WEIGHT, np.nan))
    compiles = lib in {Library.JAX, Library.JAX_X64}
    for reduction in ("batchmean",) if compiles else ("sum", "mean", "batchmean"):
        value, *gradients = written_out(loss, reduction)
        options = {"row_weight": weight, "where": mask, "reduction": reduction}
        weighted = partial(loss, **options)
        found, each = kldiv.value_and_grad(weighted, argnums=(0, 1))(*arrays)
        lib.assert_equal(found, value, ulps=64)
        lib.assert_equal(weighted(*arrays), value, ulps=64)
        for one, expected in zip(each, gradients, strict=True):
            lib.assert_equal(one, expected, ulps=64)
    total, *gradients = written_out(loss, "sum")
    for number in (8, lib.array(np.array(8))):
        weighted = partial(loss, row_weight=weight, where=mask, normalizer=number)
        found, one = kldiv.value_and_grad(weighted)(*arrays)
        lib.assert_equal(found, total / 8, ulps=64)
        lib.assert_equal(weighted(*arrays), total / 8, ulps=64)
        lib.assert_equal(one, gradients[0] / 8, ulps=64)
    each = loss(*arrays, row_weight=weight, where=mask, reduction="none")
    rows = np.where(KEEP, WEIGHT * loss(S, T, reduction="none"), 0.0)
    lib.assert_equal(each, rows, ulps=64)


def test_elements_have_weights_too(lib):
    x, y = np.log(np.abs(S) + 0.1), np.abs(T)
    weight = np.where(KEEP, WEIGHT, 1.0)
    arrays = [lib.array(broken(each, (4,))) for each in (x, y)]
    loss = partial(kldiv.kl_div, row_weight=lib.array(weight)[:, None], normalizer=3)
    value, gradients = kldiv.value_and_grad(loss, argnums=(0, 1))(*arrays)
    rows = weight[:, None] * kldiv.kl_div(x, y, reduction="none")
    lib.assert_equal(value, rows.sum() / 3, ulps=64)
    lib.assert_equal(loss(*arrays), rows.sum() / 3, ulps=64)
    lib.assert_equal(gradients[0], -weight[:, None] * y / 3, ulps=64)
    lib.assert_equal(gradients[1], weight[:, None] * (np.log(y) + 1 - x) / 3, ulps=64)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(lib, dtype, log_target):
    """One rounding, at the end."""
    s, t = (lib.array(broken(each), dtype) for each in (S, T))
    weight = lib.array(WEIGHT, "float32")
    options = {"row_weight": weight, "where": lib.array(KEEP), "normalizer": 7}
    if log_target:
        options |= {"row_weight": weight[:, None], "where": lib.array(KEEP[:, None])}
    loss = kldiv.kl_div if log_target else kldiv.kl_div_with_logits
    loss = partial(loss, **options, **({"log_target": True} if log_target else {}))
    wide = lib.numpy(loss(s, t, dtype="float32"))
    lib.assert_equal(loss(s, t), wide, dtype, ulps=1)
    value, gradient = kldiv.value_and_grad(loss)(s, t)
    lib.assert_equal(value, wide, dtype, ulps=1)
    lib.assert_like(gradient, S.shape, dtype)
    assert np.isfinite(lib.numpy(gradient)).all()


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # Dask's tasks have no context
@pytest.mark.parametrize("loss", [kldiv.kl_div_with_logits, kldiv.kl_div])
def test_normalizer(lib, loss):
    s, t = lib.array(S), lib.array(abs(T))
    nothing, every = (lib.array(np.full(S.shape[: 1 + (loss is kldiv.kl_div)], b)) for b in (0, 1))
    nothing, every = nothing != 0, every != 0
    total = lib.numpy(loss(s, t, reduction="sum"))
    for reduction in ("sum", "mean", "batchmean"):
        divided = loss(s, t, reduction=reduction, normalizer=5.0)
        lib.assert_equal(divided, total / 5, ulps=16)
    for number in (0, 3, lib.array(np.array(0.0)), lib.array(np.array(0))):
        empty = partial(loss, where=nothing, normalizer=number)
        value, gradient = kldiv.value_and_grad(empty)(s, t)
        lib.assert_equal(value, 0.0)
        lib.assert_equal(empty(s, t), 0.0)
        lib.assert_equal(gradient, np.zeros(S.shape))
    lib.assert_equal(loss(s, t, where=every, normalizer=0), np.inf * np.sign(total))
    lib.assert_equal(loss(s[:0, ...], t[:0, ...], normalizer=0), 0.0)


def test_wrong_options(lib):
    s, t = lib.array(S), lib.array(T)
    for loss in (kldiv.kl_div_with_logits, kldiv.kl_div):
        with pytest.raises(OptionError, match="normalizer divides a sum"):
            loss(s, t, reduction="none", normalizer=3)
        with pytest.raises(ShapeError, match=r"normalizer has shape \(6,\)"):
            loss(s, t, normalizer=lib.array(WEIGHT))
        with pytest.raises(DTypeError, match="normalizer has dtype bool"):
            loss(s, t, normalizer=lib.array(np.array(True)))
        with pytest.raises(DTypeError, match=r"row_weight has dtype bool; .* pass where="):
            loss(s, t, row_weight=lib.array(KEEP))
    with pytest.raises(ShapeError, match=r"row_weight has shape \(5,\), .* \(6,\)"):
        kldiv.kl_div_with_logits(s, t, row_weight=lib.array(S[0]))
    with pytest.raises(ShapeError, match=r"row_weight\[:, None\]"):
        kldiv.kl_div(s, t, row_weight=lib.array(WEIGHT))


# ---- two linear layers ---------------------------------------------------------------------------

HIDDEN, LAYER, WIDE, OTHER = (RNG.normal(size=size) for size in ((6, 3), (5, 3), (6, 4), (5, 4)))


def test_linear_layers(lib):
    factor = np.where(KEEP, WEIGHT, 0) / 7
    s, t = HIDDEN @ LAYER.T, WIDE @ OTHER.T
    rows = kldiv.kl_div_with_logits(s, t, reduction="none")
    slope = kldiv.value_and_grad(partial(kldiv.kl_div_with_logits, reduction="sum"))(s, t)[1]
    slope = slope * factor[:, None]
    value, gradients = (factor * rows).sum(), (slope @ LAYER, slope.T @ HIDDEN)
    arrays = [lib.array(each) for each in (broken(HIDDEN), LAYER, broken(WIDE), OTHER)]
    weight = lib.array(np.where(KEEP, WEIGHT, np.nan))
    options = {"row_weight": weight, "where": lib.array(KEEP), "normalizer": 7}
    loss = partial(kldiv.linear_kl_div, **options)
    lib.assert_equal(loss(*arrays), value, ulps=256)
    found, slopes = kldiv.value_and_grad(loss, argnums=(0, 1))(*arrays)
    lib.assert_equal(found, value, ulps=256)
    for one, wanted in zip(slopes, gradients, strict=True):
        lib.assert_equal(one, wanted, ulps=256)
    nothing = {"where": lib.array(np.zeros(6, bool)), "normalizer": 0}
    value, slope = kldiv.value_and_grad(partial(kldiv.linear_kl_div, **nothing))(*arrays)
    lib.assert_equal(value, 0.0)
    lib.assert_equal(slope, np.zeros(HIDDEN.shape))


def test_layers_of_infinite_rows_of_weight_0():
    bias = np.where(np.arange(5) == 2, -np.inf, 0.0)
    loss = partial(kldiv.linear_kl_div, bias=bias)
    both = kldiv.value_and_grad(partial(loss, row_weight=np.zeros(6)))
    assert loss(HIDDEN, LAYER, WIDE, OTHER) == np.inf
    assert both(HIDDEN, LAYER, WIDE, OTHER)[0] == 0


# ---- kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_kernels(library, name):
    """Arrays that are not small have the kernels, with the same weights."""
    lib = library
    s, t = RNG.normal(size=(2, 24, 1000)).astype(np.float32)
    weight = RNG.normal(size=24).astype(np.float32)
    weight[[3, 5]] = 0
    s[3], t[4] = np.nan, np.nan
    keep = np.ones(24, bool)
    keep[4] = False
    given = {"row_weight": lib.array(weight, "float32"), "where": lib.array(keep), "normalizer": 9}
    loss = partial(LOSSES[name], **given)
    results = []
    for kernel in ("cpu", "pure"):
        with kldiv.config_context(kernel=kernel):
            arrays = [lib.array(each, "float32") for each in (s, t)]
            value, gradients = kldiv.value_and_grad(loss, argnums=(0, 1))(*arrays)
            results.append([lib.numpy(each) for each in (value, *gradients)])
    for fast, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-9)


# ---- PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl", "jeffreys", "kl_div"])
def test_torch_derivatives(torch, name):
    loss = LOSSES.get(name, kldiv.kl_div)
    s, t = S, (T if name in LOSSES else abs(T))
    weight = WEIGHT if name in LOSSES else WEIGHT[:, None]
    keep = torch.tensor(KEEP if name in LOSSES else KEEP[:, None])
    number = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    given = [torch.tensor(each, requires_grad=True) for each in (broken(s), broken(t), weight)]
    total = loss(*given[:2], row_weight=given[2], where=keep, normalizer=number)
    gradients = torch.autograd.grad(total, given, create_graph=True)
    assert all(bool(each.isfinite().all()) for each in gradients)
    assert torch.autograd.grad(total, number, allow_unused=True, retain_graph=True) == (None,)
    rows = loss(s, t, reduction="none").reshape(6, -1).sum(axis=-1)
    of_weight = gradients[2].detach().reshape(6)
    np.testing.assert_allclose(of_weight[2:5], [rows[2] / 7, 0, 0], atol=1e-14)
    # The gradient is linear in the weight, also at 0: learned weights of examples start there.
    again = gradients[0].sum(dim=-1).square().sum() + gradients[0][2, 1]
    mixed = torch.autograd.grad(again, given, allow_unused=True)
    assert all(each is None or bool(each.isfinite().all()) for each in mixed)
    if name == "kl":
        ones = kldiv.value_and_grad(partial(loss, reduction="sum"))(s, t)[1]
        assert abs(mixed[2][2].item() - ones[2, 1] / 7) < 1e-14
