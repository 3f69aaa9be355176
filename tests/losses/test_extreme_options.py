"""Options at the ends of what a dtype holds, and as scalars of NumPy: right, or refused."""

from __future__ import annotations

from functools import partial

import f_divergences
import mpmath
import numpy as np
import pytest
from libraries import Library
from reference import exact as kl_of_row

import kldiv
from kldiv.divergences import Alpha, Jeffreys, Mixture
from kldiv.errors import OptionError

INF = np.inf
S, T = np.random.default_rng(5).normal(size=(2, 3, 6))
LABELS = np.array([1, 0, 5])
KERNELS = ["pure", "cpu"]


@pytest.fixture(params=KERNELS)
def kernel(request):
    if request.param == "cpu":
        pytest.importorskip("llvmlite")
    with kldiv.config_context(kernel=request.param):
        yield request.param


# --- temperatures ---------------------------------------------------------------------------------

ENDS = {"float32": (2.0**-123, 0.7 * 2.0**120), "float64": (2.0**-1019, 0.7 * 2.0**980)}
HEAD = kldiv.Head(S, np.eye(6))
TEACHER = kldiv.topk_log_probs(T, 3)
LOSSES = {
    "KL": lambda **own: kldiv.kl_div_with_logits(S, T, **own),
    "matched": lambda **own: kldiv.kl_div_with_logits(
        S, T, input_classes=[0, 1], target_classes=[2, 4], **own
    ),
    "Renyi": lambda **own: kldiv.renyi_div_with_logits(S, T, alpha=3, **own),
    "entropy": lambda **own: kldiv.entropy_with_logits(S, **own),
    "labels": lambda **own: kldiv.cross_entropy_with_logits(S, LABELS, **own),
    "policy": lambda **own: sum(
        kldiv.log_prob_and_entropy_with_logits(S, LABELS, reference=T, **own)
    ),
    "top k": lambda **own: kldiv.topk_kl_div_with_logits(
        S, TEACHER, target_temperature=own["temperature"], **own
    ),
    "distillation": lambda **own: kldiv.distillation_loss(S, T, beta=np.array([0, 0.3, 1]), **own),
    "layers": lambda **own: kldiv.linear_kl_div(HEAD, HEAD, **own),
    "layers of labels": lambda **own: sum(
        kldiv.linear_log_prob_and_entropy(HEAD, labels=LABELS, **own)
    ),
    "state": lambda **own: kldiv.KLState.from_logits(S, T, **own).kl(),
    "likeliest": lambda **own: kldiv.topk_log_probs(S, 3, **own).log_probs,
}


@pytest.mark.parametrize("name", LOSSES)
def test_temperatures_beyond_the_dtype_are_refused(name):
    least, most = ENDS["float64"]
    for wrong in (least / 2, 5e-324, most * 2):
        with pytest.raises(
            OptionError, match=r"out of range: in float64 it goes from 1\.8e-307 to"
        ):
            LOSSES[name](temperature=wrong)
    if name in {"top k", "state", "likeliest"}:  # a number alone
        return
    heat = np.array([least / 2, 1.0, most * 2])
    options = {} if name in {"policy", "layers of labels"} else {"reduction": "none"}
    found = LOSSES[name](temperature=heat, **options)
    np.testing.assert_array_equal(np.isnan(found), [True, False, True])


@pytest.mark.parametrize(
    ("loss", "student"), [(kldiv.topk_kl_div_with_logits, S), (kldiv.linear_topk_kl_div, HEAD)]
)
def test_a_temperature_of_a_sparse_teacher_beyond_the_dtype_is_refused(loss, student):
    with pytest.raises(OptionError, match="out of range: in float64"):
        loss(student, TEACHER, target_temperature=5e-324, tail="renormalize")


@pytest.mark.parametrize("dtype", ENDS)
def test_the_least_and_the_largest_temperature(dtype, kernel):
    """Also of logits as large, whose weights are neither 0 nor equal."""
    for heat in ENDS[dtype]:
        s, t = ((heat * x).astype(dtype) for x in (S, T))
        truths = [kl_of_row(*row, temperature=heat) for row in zip(s, t, strict=True)]
        for given in (heat, np.full(3, heat, dtype)):
            loss = partial(kldiv.kl_div_with_logits, temperature=given)
            found = loss(s, t, reduction="none")
            np.testing.assert_allclose(found, [row.value for row in truths], rtol=1e-6)
            _, (slope,) = kldiv.value_and_grad(partial(loss, reduction="sum"), argnums=(0,))(s, t)
            wanted = np.array([row.grad_input for row in truths]) * heat
            np.testing.assert_allclose(slope * dtype_of(slope)(heat), wanted, rtol=1e-5, atol=1e-6)
        entropy = kldiv.entropy_with_logits(s, temperature=heat)
        np.testing.assert_allclose(entropy, kldiv.entropy_with_logits(S), rtol=1e-6)


def dtype_of(array):
    return array.dtype.type


def test_a_square_of_a_temperature_is_not_rounded_to_a_half_type(torch):
    s, t = (torch.tensor(x, dtype=torch.float32) for x in (S, T))
    heat = torch.tensor([3.3125, 300.0, 0.7], dtype=torch.bfloat16)
    loss = partial(
        kldiv.distillation_loss, s, t, scale_by_temperature=True, reduction="none", beta=0.0
    )
    for weight in (None, torch.tensor([1.0, 2.0, 3.0]).bfloat16()):
        found = loss(temperature=heat, row_weight=weight)
        torch.testing.assert_close(found, loss(temperature=heat.float(), row_weight=weight))


# --- shares and orders ----------------------------------------------------------------------------


def test_a_share_that_alone_is_an_error_is_nan_in_an_array(kernel):
    beta = np.array([1e-31, 1e-30, 0.0])
    with pytest.raises(OptionError, match="from 1e-30 on"):
        kldiv.distillation_loss(S, T, beta=1e-31)
    found = kldiv.distillation_loss(S, T, beta=beta, reduction="none")
    least = [kldiv.distillation_loss(S[k], T[k], beta=beta[k], reduction="none") for k in (1, 2)]
    np.testing.assert_allclose(found, [np.nan, *least], rtol=1e-13)


def test_orders_next_to_0_are_refused():
    for order in (1e-31, 1e-300, 5e-324):
        for loss in (kldiv.renyi_div_with_logits, kldiv.alpha_div_with_logits):
            with pytest.raises(OptionError, match="0, or 1e-30 from it at least"):
                loss(S, T, alpha=order)
        with pytest.raises(OptionError, match="0, or 1e-30 from it at least"):
            Alpha(-order)


@pytest.mark.parametrize("order", [1e39, -1e39, 1e300])
def test_orders_that_float32_does_not_hold(order, kernel):
    s, t = S.astype("f4"), T.astype("f4")
    loss = partial(kldiv.alpha_div_with_logits, alpha=order)
    assert loss(s, t) == INF
    value, slopes = kldiv.value_and_grad(loss, argnums=(0, 1))(s, s)
    assert value == 0
    assert not np.any(slopes)


@pytest.mark.parametrize("order", [1e38, 1e39, -1e39, 1e300])
def test_orders_of_probabilities_that_float32_does_not_hold(lib, order):
    p, q = (lib.array(np.array(x), "float32") for x in ([0.2, 0.8], [0.4, 0.6]))
    assert float(kldiv.alpha_divergence(p, q, alpha=order)) == INF
    assert float(kldiv.alpha_divergence(p, p, alpha=order)) == 0


MASKED = np.array([[0.3, -INF, 1.0, 0.2, -0.5], [0.3, -1e30, 1.0, 0.2, -0.5]])


def of_order(order, s, t):
    """The α-divergence of a row, and Rényi's where there is one."""
    with mpmath.workdps(80):
        q, p = (f_divergences.softmax(f_divergences.numbers(x))[0] for x in (s, t))
        power = mpmath.fsum(
            f_divergences.definition(Alpha(order), *pair)[0] for pair in zip(p, q, strict=True)
        )
        renyi = f_divergences.renyi(order, p, q)[0] if order > 0 else None
    return power, renyi


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", [1e-30, -1e-30, 1e-29, 1e-25, 1 - 2.0**-53, 1 + 2.0**-52])
def test_orders_as_near_to_0_and_1_as_they_may_be(order, dtype, kernel):
    """Masks too: of P, of Q, and by a finite number."""
    plain = np.array([0.1, -0.2, 0.5, 0.0, 1.0])
    near = 3e-6 if dtype == "float32" else 1e-13
    for row in (*MASKED, plain + 0.5 * np.arange(5)):
        for pair in ((plain, row), (row, plain)):
            s, t = (np.tile(x, (4, 1)).astype(dtype) for x in pair)
            losses = kldiv.alpha_div_with_logits, kldiv.renyi_div_with_logits
            for loss, wanted in zip(losses, of_order(order, s[0], t[0]), strict=True):
                if wanted is not None:
                    found = loss(s, t, alpha=order, reduction="none")
                    limit = INF if wanted > np.finfo(dtype).max else float(wanted)
                    np.testing.assert_allclose(found, limit, rtol=near)


@pytest.mark.parametrize("order", [0.3, 1 + 2.0**-52, 1.5, 2, 20, 1e6])
def test_renyi_beside_the_least_logit(order, kernel):
    """The logarithm of the power is no number then, the divergence is."""
    least = np.finfo("f4").min
    s = np.tile(np.array([[0.3, least, 1.0, 0.2], [0.3, 0.5, 1.0, least]], "f4"), (2, 1))
    t = np.tile(np.array([0.1, -0.2, 0.5, 0.0], "f4"), (4, 1))
    found = kldiv.renyi_div_with_logits(s, t, alpha=order, reduction="none")
    wanted = [float(of_order(order, *row)[1]) for row in zip(s, t, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    joined = kldiv.renyi_div_with_logits(np.tile(s, 3000), np.tile(t, 3000), alpha=order)
    np.testing.assert_allclose(joined, np.mean(wanted), rtol=2e-6)


@pytest.mark.parametrize("order", [0, 1e-30, 0.3])
def test_renyi_where_hardly_a_common_class_is_left(order, kernel):
    """Q's mass on the support of P is no number then, its logarithm is; in a long row too."""
    s = np.array([[-250.0, 0.1, 50.0, -251.0]] * 2, "f4")
    t = np.array([[0.2, -INF, -INF, 0.3]] * 2, "f4")
    wanted = -250 + np.logaddexp(0.0, -1.0) - np.logaddexp(0.1, 50.0)
    if order == 0.3:
        p, q = (np.exp(x - np.logaddexp(*x)) for x in ([0.2, 0.3], [0.0, -1.0]))
        wanted += np.log((p**0.3 * q**0.7).sum()) / 0.7
    loss = partial(kldiv.renyi_div_with_logits, alpha=order)
    found, (slope,) = kldiv.value_and_grad(partial(loss, reduction="sum"), argnums=(0,))(s, t)
    np.testing.assert_allclose(found, -2 * wanted, rtol=1e-6)
    w = np.array([1.0, 0, 0, np.exp(-1.0)]) if order != 0.3 else p**0.3 * q**0.7
    w = w / w.sum() if order != 0.3 else np.array([w[0], 0, 0, w[1]]) / w.sum()
    np.testing.assert_allclose(slope, [np.array([0, 0, 1.0, 0]) - w] * 2, rtol=1e-5, atol=1e-20)
    long = (np.concatenate([x, *[x[:, 1:3]] * 4000], -1) for x in (s, t))
    np.testing.assert_allclose(loss(*long), -wanted + np.log(4001), rtol=1e-6)


def test_the_gradient_of_a_mixture_with_hardly_a_share_of_p(kernel):
    s, t = np.array([[0.3, -INF, -1.0, 0.2]] * 2, "f4"), np.array([[0.1, 0.5, -INF, 0.2]] * 2, "f4")
    for record in (Mixture(1e-25, 1e-25, 1.0), Mixture(1e-30, 1.0, 0.0)):
        loss = partial(kldiv.f_div_with_logits, divergence=record, reduction="sum")
        value, slopes = kldiv.value_and_grad(loss, argnums=(0, 1))(s, t)
        truth = f_divergences.exact(record, s[0], t[0])
        np.testing.assert_allclose(value, 2 * truth.value, rtol=1e-5)
        for found, true in zip(slopes, truth[1:], strict=True):
            np.testing.assert_allclose(found, [true] * 2, rtol=1e-5, atol=1e-6 * abs(true).max())


@pytest.mark.parametrize("alpha", [1e-3, 1e-10, 1e-20])
def test_the_reverse_skew_divergence_of_a_small_share(alpha, kernel):
    """D(Q‖(1−α)P + αQ): finite where P masks a class, and no digit of α is lost to 1 − α."""
    s, t = np.array([0.1, 0.5, -1.0, 0.0]), np.array([0.3, -INF, 1.0, 0.2])
    with mpmath.workdps(60):
        q, p = (f_divergences.softmax(f_divergences.numbers(x))[0] for x in (s, t))
        a = mpmath.mpf(alpha)
        wanted = mpmath.fsum(
            x * mpmath.log(x / ((1 - a) * y + a * x)) for x, y in zip(q, p, strict=True)
        )
    found = kldiv.skew_kl_div_with_logits(s, t, alpha=alpha, reverse=True)
    np.testing.assert_allclose(found, float(wanted), rtol=4e-16)


# --- scalars of NumPy -----------------------------------------------------------------------------


@pytest.mark.parametrize("library", [Library.NUMPY, Library.TORCH])
def test_scalars_of_numpy_are_numbers(library):
    s, t = (library.from_numpy(x) for x in (S, T))
    labels = library.from_numpy(LABELS)
    teacher = kldiv.topk_log_probs(t, 3)
    p, q = (library.from_numpy(np.exp(x) / np.exp(x).sum(-1, keepdims=True)) for x in (S, T))
    head = kldiv.Head(s, library.from_numpy(np.eye(6)))
    calls = {
        "temperature": lambda x: kldiv.kl_div_with_logits(s, t, temperature=x),
        "of labels": lambda x: kldiv.cross_entropy_with_logits(s, labels, temperature=x),
        "beta": lambda x: kldiv.js_div_with_logits(s, t, beta=x),
        "beta of tokens": lambda x: kldiv.distillation_loss(s, t, beta=x),
        "share": lambda x: kldiv.skew_kl_div_with_logits(s, t, alpha=x),
        "alpha": lambda x: kldiv.alpha_div_with_logits(s, t, alpha=x),
        "order": lambda x: kldiv.renyi_div_with_logits(s, t, alpha=x),
        "mixture": lambda x: kldiv.f_div_with_logits(s, t, divergence=Mixture(x, 1, x)),
        "Jeffreys": lambda x: kldiv.f_div_with_logits(s, t, divergence=Jeffreys(x, 1)),
        "record": lambda x: kldiv.f_div_with_logits(s, t, divergence=Alpha(x)),
        "of labels and a teacher": lambda x: kldiv.distillation_loss(
            s, t, labels, hard_weight=x, temperature=x, scale_by_temperature=True
        ),
        "top k": lambda x: kldiv.topk_kl_div_with_logits(s, teacher, beta=x),
        "layers": lambda x: kldiv.linear_kl_div(
            head, head, softcap=x, target_logit_scale=x, temperature=x
        ),
        "normalizer": lambda x: kldiv.kl_div_with_logits(s, t, normalizer=x),
        "measure": lambda x: kldiv.alpha_divergence(p, q, alpha=x),
        "measure's order": lambda x: kldiv.renyi_divergence(p, q, alpha=x),
    }
    for name, call in calls.items():
        for kind in (np.float32, np.float16, np.float64):
            scalar = kind(0.3)
            found, wanted = call(scalar), call(float(scalar))
            np.testing.assert_array_equal(found, wanted, err_msg=name)
        base = kldiv.kl_divergence(p, q, base=kind(2))
        np.testing.assert_array_equal(base, kldiv.kl_divergence(p, q, base=2.0))
    whole = kldiv.kl_div_with_logits(s, t, temperature=np.int64(2))
    assert float(whole) == float(kldiv.kl_div_with_logits(s, t, temperature=2))
