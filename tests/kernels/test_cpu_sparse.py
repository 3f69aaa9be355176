"""The CPU kernel of sparse teachers, against mpmath and against the formulas."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from f_divergences import RECORDS
from sparse_teachers import Rows, assert_right, rows

import kldiv

pytest.importorskip("llvmlite")

loss = kldiv.topk_kl_div_with_logits


@pytest.mark.parametrize(
    ("name", "temperature", "given"),
    [
        ("KL", 1.5, True),
        ("reverse KL", 1.0, True),
        ("JS", 1.5, False),
        ("mixture", 0.1, True),
        ("own", 1.0, False),  # that the formulas compute between two calls of the kernel
    ],
)
def test_targets(name, temperature, given):
    _check(RECORDS[name], rows("float32"), temperature, given=given)


def _check(record, rows, temperature, *, given):
    """Check values and all gradients against mpmath."""
    extra = {"target_rest": rows.rest} if given else {}
    own = partial(loss, divergence=record, temperature=temperature, **extra)
    with kldiv.config_context(kernel="cpu"):
        total = kldiv.value_and_grad(partial(own, reduction="sum"), tuple(range(2 + given)))
        results = [own(*rows[1:4], reduction="none"), *total(*rows[1:4])[1]]
    assert_right(record, rows, results, "float32", target_rest=given, temperature=temperature)


@pytest.mark.parametrize(
    ("name", "s", "log_probs"),
    [
        # log p/q of the first is 1e-11, of the second 1e-30: rounded logits have other ones.
        ("mixture", [7.5, 2.5, -2.5, 5, -5, -7.5], [-1.3888002e-11, -50, -100, -25, -125]),
        ("KL", [-2.8946567, -0.74921703, 1.82374], [0, -72.52598, -78.46474]),
        ("KL", [-100, -100, -95, -102.5, -82.5, -92.5], [-147.88, -223.33447]),
        ("Hellinger", [10, 7.5, 10, 15, 10, -5], [-50, -125, -50, 0, -50]),
    ],
)
def test_logits_over_a_temperature_are_double_words(name, s, log_probs):
    arrays = np.array([s], "f4"), np.array([log_probs], "f4"), np.arange(len(log_probs))[None]
    _check(RECORDS[name], Rows(["row"], *arrays, np.zeros(1, "f4")), 0.1, given=True)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("name", ["KL", "reverse KL", "JS", "Hellinger", "own"])
def test_rows_of_any_kind(name, temperature, given):
    """Ties, gaps, far and masked logits, padding; one class given, or all; no mass, or little."""
    random = np.random.default_rng(round(10 * temperature))
    for width, likely in [(2, 1), (5, 5), (17, 1), (17, 9), (40, 12)]:
        scale = np.array([1e-3, 1, 5, 30, 100, 1e4])[:, None]
        s = random.normal(size=(6, width)) * scale
        s[1] = np.round(2 * s[1]) / 2
        s[2] += 100
        s[3, random.random(width) < 0.3] = -np.inf
        s = s.astype("f4")
        t = s.astype("f8") / temperature
        t += np.array([1e-6, 1e-3, 0, 0.1, 1, 30])[:, None] * random.normal(size=t.shape)
        t[3] = random.normal(size=width)
        teacher = kldiv.topk_log_probs(t, likely)
        log_probs, rest = (np.array(each, "f4") for each in (teacher.log_probs, teacher.rest))
        if likely > 1:
            log_probs[4, 1::2] = -np.inf
        rest[:3] *= np.array([1, 0, 1.1], "f4")
        own = Rows(range(6), s, log_probs, np.array(teacher.indices), rest)
        _check(RECORDS[name], own, temperature, given=given)


def test_rows_without_a_value():
    """NaN comes out where the formulas have it, and where nothing is wrong nothing else."""
    random = np.random.default_rng(0)
    s, t = (3 * random.normal(size=(2, 16, 37))).astype("f4")
    log_probs, indices, rest = (np.array(each) for each in kldiv.topk_log_probs(t, 6)[:3])
    other = np.array([np.setdiff1d(np.arange(37), row)[0] for row in indices])
    s[0, other[0]] = s[1, indices[1, 2]] = np.nan
    s[2, indices[2, 0]] = s[3, other[3]] = np.inf
    s[4, indices[4, 1]] = s[5, np.setdiff1d(np.arange(37), indices[5])] = -np.inf
    s[6] = s[7, indices[7]] = -np.inf
    log_probs[8:11] = -np.inf
    rest[9], rest[10] = 1.0, 0.0
    log_probs[11, 3] = rest[12] = np.nan
    rest[13], indices[14, 2], log_probs[15] = -0.1, indices[14, 0], 0.0
    beta = random.choice(np.array([0, 0.3, 1.0], "f4"), 16)
    weight = np.where(np.arange(16) % 5, 1.5, 0.0).astype("f4")
    for options in ({}, {"divergence": RECORDS["own"]}, {"beta": beta}, {"row_weight": weight}):
        own = partial(loss, target_rest=rest, reduction="sum", **options)
        each = partial(own, reduction="none")
        found = []
        for kernel in ("cpu", "pure"):
            with kldiv.config_context(kernel=kernel), np.errstate(all="ignore"):
                arrays = s, log_probs, indices
                found.append([each(*arrays), *kldiv.value_and_grad(own, (0, 1, 2))(*arrays)[1]])
        for result, wanted in zip(*found, strict=True):
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["KL", "own"])
def test_half_types(torch, name):
    random = np.random.default_rng(0)
    s, t = (3 * random.normal(size=(2, 61, 1003))).astype("f4")
    teacher = kldiv.topk_log_probs(t, 9)
    own = partial(loss, divergence=RECORDS[name])
    half = torch.tensor(s).bfloat16().requires_grad_()
    with kldiv.config_context(kernel="cpu"):
        arrays = map(torch.tensor, (teacher.log_probs, teacher.indices))
        own(half, *arrays, dtype="float32").backward()
        rounded = half.detach().float().numpy()
        _, gradient = kldiv.value_and_grad(own)(rounded, teacher.log_probs, teacher.indices)
    assert half.grad.dtype == torch.bfloat16
    np.testing.assert_allclose(half.grad.float().numpy(), gradient, rtol=2.0**-8, atol=1e-30)


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


@pytest.mark.parametrize("name", ["KL", "own"])
def test_a_dropped_row_may_hold_nan(torch, name):
    s = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    teacher = kldiv.topk_log_probs(s + 0.5 * s[::-1], 8)
    teacher.log_probs[2, 5:] = -np.inf
    s[1] = np.nan
    own, arrays = partial(loss, divergence=RECORDS[name]), (s, teacher.log_probs, teacher.indices)
    memory = np.full(s.size + 64, 7, np.float32)
    gradient = memory[: s.size].reshape(s.shape)
    with kldiv.config_context(kernel="cpu"):
        value, _ = kldiv.value_and_grad(own)(
            *arrays, where=np.array([True, False, True]), out=gradient
        )
        kept = own(*(array[::2] for array in arrays))
        tensors = [torch.tensor(array) for array in arrays]
        for tensor in tensors[:2]:
            tensor.requires_grad_()
        own(*tensors, reduction="none")[::2].sum().backward()
        given = torch.empty(s.shape)
        kldiv.value_and_grad(own)(*tensors, where=torch.tensor([True, False, True]), out=given)
    assert value == kept
    assert (memory[s.size :] == 7).all()
    assert np.array_equal(given.numpy(), gradient)
    for tensor in tensors[:2]:
        assert not tensor.grad[1].any()
        assert tensor.grad[0].any()
    assert np.count_nonzero(gradient[1]) == 0 < np.count_nonzero(gradient[0])
