"""The CPU kernel of sparse teachers, against mpmath and against the formulas."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from f_divergences import RECORDS
from sparse_teachers import errors, exact, rows

import kldiv

pytest.importorskip("llvmlite")

loss = kldiv.topk_kl_div_with_logits


@pytest.mark.parametrize(
    ("name", "temperature", "given"),
    [("KL", 1.5, True), ("reverse KL", 1.0, True), ("JS", 1.5, False)],
)
def test_targets(name, temperature, given):
    found = rows("float32")
    extra = {"target_rest": found.rest} if given else {}
    own = partial(loss, divergence=RECORDS[name], temperature=temperature, **extra)
    arrays, wanted = found[1:4], (0, 1, 2) if given else (0, 1)
    with kldiv.config_context(kernel="cpu"):
        values = own(*arrays, reduction="none")
        _, gradients = kldiv.value_and_grad(partial(own, reduction="sum"), wanted)(*arrays)
    for row, each in enumerate(found.names):
        rest = found.rest[row] if given else None
        true = exact(RECORDS[name], *(array[row] for array in arrays), temperature, rest)
        off = errors(true, [values[row], *(gradient[row] for gradient in gradients)], "float32")
        assert max(off) <= 1, (each, off)


@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (4, 31), (2, 3, 1000)])
def test_layouts_ragged_rows_and_weights(torch, shape):
    random, given = np.random.default_rng(3), min(7, shape[-1])
    s, t = (3 * random.normal(size=(2, *shape))).astype("f4")
    log_probs, indices, rest, _ = kldiv.topk_log_probs(t, given)
    log_probs[0, ..., 1:], indices[0, ..., 1:] = -np.inf, 10**6
    log_probs[-1], rest = -np.inf, rest + np.float32(1e-3)
    keep, weight = random.random(shape[:-1]) < 0.7, random.random(shape[:-1])
    heat = 1 + random.random(shape[:-1])
    for options in (
        {"beta": 1.0, "where": keep, "target_rest": rest},
        {"temperature": heat.astype("f4"), "row_weight": weight.astype("f4"), "normalizer": 3.0},
    ):
        own = partial(loss, reduction="sum", **options)
        arrays = s, log_probs, indices
        wide = [a.astype("f8") if a.dtype == np.float32 else a for a in arrays]
        with kldiv.config_context(kernel="pure"):
            wanted = kldiv.value_and_grad(own, (0, 1))(*wide)
        with kldiv.config_context(kernel="cpu"):
            found = kldiv.value_and_grad(own, (0, 1))(*arrays)
            tensors = [torch.tensor(np.moveaxis(a, -1, 0)) for a in arrays]
            for tensor in tensors[:2]:
                tensor.requires_grad_()
            of_rows = {k: torch.tensor(v) for k, v in options.items() if np.ndim(v)}
            value = loss(*tensors, axis=0, reduction="sum", **{**options, **of_rows})
            value.backward()
        by_torch = [np.moveaxis(tensor.grad.numpy(), 0, -1) for tensor in tensors[:2]]
        for each in (found, (value.detach().numpy(), by_torch)):
            np.testing.assert_allclose(each[0], wanted[0], rtol=2e-6, atol=1e-9)
            for gradient, true in zip(each[1], wanted[1], strict=True):
                assert abs(gradient - true).sum() <= 2e-6 * abs(true).sum() + 1e-9


def test_why_not():
    """What has no kernel is left to the formulas, and is told so."""
    s, places = np.zeros((4, 5000)), np.zeros((4, 2), np.int64)
    why = kldiv.explain(s, np.zeros((4, 2)), operation="topk_kl_div_with_logits")
    assert why.kernel == "pure"
    narrow = s.astype("f4"), np.zeros((4, 2), "f4"), places
    assert kldiv.explain(*narrow, operation="topk_kl_div_with_logits").kernel == "cpu"


def test_a_dropped_row_may_hold_nan():
    s = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    teacher = kldiv.topk_log_probs(s + 0.5 * s[::-1], 8)
    s[1] = np.nan
    with kldiv.config_context(kernel="cpu"):
        value, gradient = kldiv.value_and_grad(loss)(
            s, teacher.log_probs, teacher.indices, where=np.array([True, False, True])
        )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.count_nonzero(gradient[1]) == 0 < np.count_nonzero(gradient[0])
