"""`value_and_grad(…, out=)`: gradients in memory that is there."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import kldiv
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError

RANDOM = np.random.default_rng(3)
S, T = RANDOM.normal(size=(2, 4, 3, 5))
P, Q = (each / each.sum() for each in RANDOM.random((2, 5)))
LARGE = RANDOM.normal(size=(2, 6, 5000)).astype("f4")

LOSSES = {
    "elements": (partial(kldiv.kl_div, log_target=True), (S, T)),
    "logits": (partial(kldiv.kl_div_with_logits, normalizer=3.0), (S, T)),
    "axis": (partial(kldiv.f_div_with_logits, divergence=kldiv.divergences.KL(), axis=1), (S, T)),
    "exchanged": (
        partial(kldiv.f_div_with_logits, divergence=kldiv.divergences.Jeffreys(0.0, 1.0)),
        (S, T),
    ),
    "measure": (kldiv.js_divergence, (P, Q)),
    "layers": (kldiv.linear_kl_div, (S[0], T[0], S[1], T[1])),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_written_into_memory_that_is_there(lib, name):
    loss, arrays = LOSSES[name]
    both = kldiv.value_and_grad(loss, (0, 1))
    arrays = [lib.array(each) for each in arrays]
    out = tuple([lib.array(np.full(each.shape, np.nan)) for each in arrays[:2]])
    if lib.root in {"jax", "dask"}:
        with pytest.raises(LibraryError, match=r"out\[0\] cannot be written to: arrays of this"):
            both(*arrays, out=out)
        return
    if lib.value == "numpy-readonly":
        with pytest.raises(LibraryError, match=r"out\[0\] cannot be written to: it is read-only"):
            both(*arrays, out=out)
        return
    value, gradients = both(*arrays, out=out)
    wanted, expected = both(*arrays)
    lib.assert_equal(value, lib.numpy(wanted), ulps=0)
    for gradient, array, right in zip(gradients, out, expected, strict=True):
        assert gradient is array
        lib.assert_equal(gradient, lib.numpy(right), ulps=0)


@pytest.mark.parametrize("kernel", ["cpu", "blocks", "pure"])
@pytest.mark.parametrize("weighted", [False, True])
def test_kernels_write_there_themselves(kernel, weighted):
    if kernel == "cpu":
        pytest.importorskip("llvmlite")
    s, t = LARGE
    loss = partial(kldiv.kl_div_with_logits, axis=0)
    loss = partial(loss, row_weight=np.arange(5000.0)) if weighted else loss
    apart = np.full((6, 10_000), np.nan, "f4")[:, ::2]
    with kldiv.config_context(kernel=kernel):
        value, gradient = kldiv.value_and_grad(loss)(s, t, out=apart)
        wanted, expected = kldiv.value_and_grad(loss)(s, t)
    assert value == wanted
    assert gradient is apart
    np.testing.assert_array_equal(gradient, expected)


def test_memory_that_does_not_fit_is_refused():
    s, t = LARGE.copy()
    whole = np.empty((6, 10_000), "f4")
    one = kldiv.value_and_grad(kldiv.kl_div_with_logits)
    both = kldiv.value_and_grad(kldiv.kl_div_with_logits, (0, 1))
    with pytest.raises(ShapeError, match=r"out has shape \(6, 10000\); expected \(6, 5000\)"):
        one(s, t, out=whole)
    with pytest.raises(DTypeError, match="out has dtype float64; expected float32"):
        one(s, t, out=np.empty(s.shape))
    with pytest.raises(LibraryError, match="out cannot be written to: it shares memory with an"):
        one(s, t, out=t)
    with pytest.raises(LibraryError, match="out cannot be written to: its elements share memory"):
        one(s, t, out=np.lib.stride_tricks.as_strided(whole, s.shape, (0, 4)))
    with pytest.raises(LibraryError, match=r"out\[1\] cannot be written to: it shares memory"):
        both(s, t, out=(whole[:, :5000], whole[:, 1:5001]))
    with pytest.raises(OptionError, match=r"out must be a tuple of 2 arrays.*got ndarray"):
        both(s, t, out=whole)
    # Beside one another in one array, but apart.
    _, gradients = both(s, t, out=(whole[:, ::2], whole[:, 1::2]))
    assert all(np.isfinite(each).all() for each in gradients)


def test_torch_notices_what_is_written():
    torch = pytest.importorskip("torch")
    s, t = map(torch.from_numpy, LARGE.copy())
    out = torch.zeros_like(s)
    one = kldiv.value_and_grad(kldiv.kl_div_with_logits)
    with pytest.raises(LibraryError, match="out is an array of numpy; expected one of torch"):
        one(s, t, out=LARGE[0].copy())
    with pytest.raises(LibraryError, match="it requires a gradient"):
        one(s, t, out=torch.zeros_like(s).requires_grad_())
    factor = torch.ones_like(s).requires_grad_()
    product = (factor * out).sum()  # keeps ``out`` for its derivative
    assert one(s, t, out=out)[1] is out
    torch.testing.assert_close(out, one(s, t)[1], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
