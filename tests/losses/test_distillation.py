"""`distillation_loss` against TRL's formula, against mpmath, and under what trainers do."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
from f_divergences import exact

import kldiv
from kldiv.divergences import KL, Mixture
from kldiv.errors import DTypeError, OptionError, ShapeError

RNG = np.random.default_rng(5)
S, T = RNG.normal(size=(2, 2, 3, 6))
LABELS = np.array([[1, 0, -100], [5, -100, -100]])
BETAS = np.array([[0.0, 0.3, 0.5], [1.0, 0.0, 0.7]])
KEPT = LABELS != -100


def trl(torch, s, t, labels=None, *, beta=0.5, temperature=1.0, reduction="batchmean", items=None):
    """`GKDTrainer.generalized_jsd_loss` of TRL, written out; `mean` is over the tokens."""
    functional = torch.nn.functional
    s, t = (functional.log_softmax(each / temperature, dim=-1) for each in (s, t))
    kl = partial(functional.kl_div, reduction="none", log_target=True)
    if beta == 0:
        loss = kl(s, t)
    elif beta == 1:
        loss = kl(t, s)
    else:
        share = torch.tensor(beta, dtype=s.dtype)
        mixture = torch.logsumexp(torch.stack([s + torch.log1p(-share), t + torch.log(share)]), 0)
        loss = share * kl(mixture, t) + (1 - share) * kl(mixture, s)
    if labels is not None:
        loss = loss[labels != -100]
    if items is not None:
        return loss.sum() / items
    if reduction == "batchmean":
        return loss.sum() / (len(s) if labels is None else (labels != -100).sum())
    return loss.sum(-1).mean() if reduction == "mean" else loss.sum()


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_trl(torch, beta):
    s, t = (torch.tensor(each, requires_grad=True) for each in (S, T))
    labels = torch.tensor(LABELS)
    for options in (
        {},
        {"labels": labels},
        {"labels": labels, "reduction": "sum", "temperature": 2.0},
        {"labels": labels, "reduction": "mean"},
        {"labels": labels, "items": 11},
    ):
        wanted = trl(torch, s, t, beta=beta, **options)
        if "items" in options:
            options["num_items_in_batch"] = options.pop("items")
        found = kldiv.distillation_loss(s, t, beta=beta, **options)
        array = kldiv.distillation_loss(s, t, beta=torch.full((3,), beta).double(), **options)
        slopes = [torch.autograd.grad(each, (s, t)) for each in (wanted, found, array)]
        for value, slope in zip((found, array), slopes[1:], strict=True):
            torch.testing.assert_close((value, *slope), (wanted, *slopes[0]))


@cache
def truth(temperature=1.0):
    """Values and gradients of every row at `BETAS`."""
    rows = [
        exact(record_of(beta), s, t, temperature)
        for s, t, beta in zip(S.reshape(-1, 6), T.reshape(-1, 6), BETAS.flat, strict=True)
    ]
    values, gs, gt = zip(*rows, strict=True)
    return np.reshape(values, (2, 3)), np.reshape(gs, S.shape), np.reshape(gt, S.shape)


def record_of(beta):
    return KL(reverse=bool(beta)) if beta in {0, 1} else Mixture(beta, beta, 1 - beta)


@pytest.mark.leave_out(lambda lib: lib.value == "jax" and "jax-x64 compiles the same for seconds")
def test_beta_of_rows(lib):
    """One call takes rows of both directions and those between, to the last digits."""
    s, t, labels = lib.array(S), lib.array(T), lib.array(LABELS)
    beta = lib.array(BETAS)
    values, gs, gt = truth()
    kept = np.where(KEPT, values, 0)
    loss = partial(kldiv.distillation_loss, beta=beta)
    lib.assert_equal(loss(s, t, reduction="none"), values, ulps=64)
    lib.assert_equal(loss(s, t, labels, reduction="none"), kept, ulps=64)
    value, gradients = kldiv.value_and_grad(loss, argnums=(0, 1))(s, t, labels)
    lib.assert_equal(value, kept.sum() / 3, ulps=64)
    for found, wanted in zip(gradients, (gs, gt), strict=True):
        lib.assert_equal(found, np.where(KEPT[..., None], wanted, 0) / 3, ulps=64)
    weight = lib.array(np.array([2.0, 0.5, 1.0]))
    loss = partial(loss, row_weight=weight, num_items_in_batch=4)
    value, gradients = kldiv.value_and_grad(loss, argnums=(0, 1))(s, t, labels)
    each = np.array([2.0, 0.5, 1.0]) / 4
    lib.assert_equal(value, (kept * each).sum(), ulps=64)
    wanted = np.where(KEPT[..., None], gt, 0) * each[:, None]
    lib.assert_equal(gradients[1], wanted, ulps=64)


def test_hard_labels_and_temperature(lib):
    s, t, labels = lib.array(S), lib.array(T), lib.array(LABELS)
    options = {"beta": 0.0, "hard_weight": 0.25, "scale_by_temperature": True}
    loss = partial(kldiv.distillation_loss, **options)
    log_q = S - np.log(np.exp(S).sum(-1, keepdims=True))
    hard = -np.take_along_axis(log_q, np.maximum(LABELS, 0)[..., None], -1)[..., 0]
    onehot = np.maximum(LABELS, 0)[..., None] == np.arange(6)
    soft = kldiv.kl_div_with_logits(S, T, temperature=2.0, reduction="none")
    slope = kldiv.value_and_grad(partial(kldiv.kl_div_with_logits, temperature=2.0))(S, T)[1] * 6
    wanted = np.where(KEPT, 0.75 * 4 * soft + 0.25 * hard, 0)
    gradient = np.where(KEPT[..., None], 3 * slope + 0.25 * (np.exp(log_q) - onehot), 0)
    for temperature in (2.0, lib.array(np.full((2, 3), 2.0))):
        tempered = partial(loss, temperature=temperature)
        lib.assert_equal(tempered(s, t, labels, reduction="none"), wanted, ulps=64)
        value, found = kldiv.value_and_grad(tempered)(s, t, labels)
        lib.assert_equal(value, wanted.sum() / 3, ulps=64)
        lib.assert_equal(found, gradient / 3, ulps=64)


def test_a_square_of_a_temperature_that_float32_has_not(lib):
    """D is ½·(2/T) where Q is sure of a class, and δ²/8 for logits that differ by δT."""
    for temperature, logit, wanted, slope in (
        (2.0**-100, 2.0, 2.0**-100, 2.0**-101),
        (2.0**66, 2.0**46, 2.0**89, 2.0**44),
    ):
        s, t = (lib.array(np.array([each, 0.0]), "float32") for each in (logit, 0.0))
        options = {"beta": 0.0, "temperature": temperature, "scale_by_temperature": True}
        loss = partial(kldiv.distillation_loss, reduction="sum", **options)
        value, found = kldiv.value_and_grad(loss)(s, t)
        for each in (value, loss(s, t)):
            lib.assert_equal(each, wanted, "float32", ulps=4)
        lib.assert_equal(found, [slope, -slope], "float32", ulps=4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_temperature_of_a_half_type_is_squared_in_float32(lib, dtype):
    s, t, heat = lib.array(S, "float32"), lib.array(T, "float32"), lib.array(np.full(3, 1.7), dtype)
    loss = partial(kldiv.distillation_loss, scale_by_temperature=True)
    number = float(lib.numpy(heat)[0])
    for weight in (None, lib.array(np.full((2, 3), 3.0), dtype)):
        found = loss(s, t, temperature=heat, row_weight=weight)
        same = loss(s, t, temperature=number, row_weight=weight)
        lib.assert_equal(found, lib.numpy(same), "float32", ulps=8)


def test_a_temperature_of_0_is_nan_unless_its_row_is_dropped(lib):
    s, t, heat = (lib.array(x) for x in (S, T, np.array([2.0, 1.0, 0.0])))
    loss = partial(kldiv.distillation_loss, s, t, temperature=heat, scale_by_temperature=True)
    found = lib.numpy(loss(reduction="none"))
    np.testing.assert_array_equal(np.isnan(found), [[False, False, True]] * 2)
    kept = np.array([True, True, False])
    wanted = found[:, kept].sum()
    for dropped in ({"where": lib.array(kept, "bool")}, {"row_weight": lib.array(kept * 1.0)}):
        np.testing.assert_allclose(lib.numpy(loss(reduction="sum", **dropped)), wanted, rtol=1e-5)


def test_micro_batches_add_up_to_the_batch(lib):
    """The number of tokens of all of them divides each; one may have none."""
    s, t = lib.array(S), lib.array(T)
    for labels in (LABELS, np.array([[1, 2, 3], [-100, -100, -100]])):
        whole = kldiv.distillation_loss(s, t, lib.array(labels))
        count = lib.array(np.array(int((labels != -100).sum())))
        parts = [
            kldiv.distillation_loss(
                s[k : k + 1, ...],
                t[k : k + 1, ...],
                lib.array(labels[k : k + 1]),
                num_items_in_batch=count,
                reduction="none",
            )
            for k in range(2)
        ]
        lib.assert_equal(parts[0] + parts[1], lib.numpy(whole), ulps=8)


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_nothing_kept_is_nothing(lib, reduction):
    s, t = lib.array(S), lib.array(T)
    nothing = lib.array(np.full((2, 3), -100))
    loss = partial(kldiv.distillation_loss, reduction=reduction, hard_weight=0.5)
    value, gradient = kldiv.value_and_grad(loss)(s, t, nothing)
    lib.assert_equal(value, 0.0)
    lib.assert_equal(gradient, np.zeros(S.shape))
    lib.assert_equal(kldiv.distillation_loss(s[:0, ...], t[:0, ...], reduction=reduction), 0.0)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types_give_float32(lib, half):
    s, t = lib.array(S, half), lib.array(T, half)
    value, gradient = kldiv.value_and_grad(kldiv.distillation_loss)(s, t)
    wide = kldiv.distillation_loss(lib.numpy(s).astype("f8"), lib.numpy(t).astype("f8"))
    lib.assert_equal(value, wide, "float32")
    lib.assert_like(gradient, S.shape, half)


def test_axis_and_where(lib):
    s, t = (lib.array(np.moveaxis(each, -1, 0)) for each in (S, T))
    keep = np.array([[True, False, True]])
    loss = partial(kldiv.distillation_loss, axis=0, where=lib.array(keep), beta=lib.array(BETAS))
    value, gradient = kldiv.value_and_grad(loss)(s, t, lib.array(LABELS))
    values, gs, _ = truth()
    both = KEPT & keep
    lib.assert_equal(value, values[both].sum() / both.sum(), ulps=64)
    wanted = np.moveaxis(np.where(both[..., None], gs, 0) / both.sum(), -1, 0)
    lib.assert_equal(gradient, wanted, ulps=64)


def test_wrong_options(lib):
    s, t = lib.array(S), lib.array(T)
    loss = kldiv.distillation_loss
    for wrong, error, words in (
        ({"beta": 1.5}, OptionError, "beta must be 0, 1 or between them"),
        ({"hard_weight": 1.0}, OptionError, "use cross_entropy_with_logits"),
        ({"hard_weight": 0.5}, OptionError, "pass labels"),
        ({"labels": lib.array(S)}, DTypeError, "expected integers"),
        ({"labels": lib.array(LABELS[0])}, ShapeError, r"expected one for each .* \(2, 3\)"),
        ({"beta": lib.array(S[0, 0])}, ShapeError, "beta has shape"),
    ):
        with pytest.raises(error, match=words):
            loss(s, t, **wrong)
    with pytest.raises(ShapeError, match="student_logits and teacher_logits have 6 and 5 classes"):
        loss(s, t[..., :5])
