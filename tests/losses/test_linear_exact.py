"""Losses of layers against mpmath, where the products of hidden states and layers are exact.

Layers are small multiples of 2⁻¹⁴ and hidden states of ½, so logits are not rounded. Gradients in
hidden states, layers and biases are sums of few products: they are judged beside the sum of the
sizes of these.
"""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module

import numpy as np
import pytest
from f_divergences import RECORDS
from label_rows import truth as truth_of_labels
from libraries import unit
from logit_families import TARGET
from reference import exact
from sparse_teachers import CONDITION
from sparse_teachers import exact as exact_sparse

import kldiv

LABELS = np.array([2, 5, -100, 0])
KEPT = np.flatnonzero(LABELS >= 0)
SHAPES = (9, 3), (9,)
CASES = {"near": (1.0, 2.0), "far": (0.5, 1.0), "masked": (0.0, 0.5)}
"""β and the temperature."""
RUNS = [
    (library, dtype, case)
    for library in ("numpy", "torch")
    for dtype in ("float32", "float64")
    for case in CASES
]


@cache
def layers(case):
    """Hidden states, layer and bias of the student, then of the teacher."""
    random = np.random.default_rng(len(case))
    hidden = random.integers(-2, 3, (len(LABELS), 3)) / 2
    weight, bias = (random.integers(-(2**15), 2**15, shape) * 2.0**-14 for shape in SHAPES)
    if case == "far":
        return hidden, weight, bias, -hidden, 8 * weight, 4 * bias
    steps = [random.integers(-3, 4, shape) * 2.0**-14 for shape in SHAPES]
    other, other_bias = weight + steps[0], bias + steps[1]
    if case == "masked":
        bias[4] = other_bias[4] = other_bias[7] = -np.inf
    return hidden, weight, bias, hidden, other, other_bias


def logits(hidden, weight, bias):
    return hidden @ weight.T + bias


def chained(slopes, hidden, weight):
    """Gradients in hidden states, layer and bias, each with the size of its terms."""
    terms = abs(slopes)
    return (
        (slopes @ weight, (terms @ abs(weight)).sum()),
        (slopes.T @ hidden, (terms.T @ abs(hidden)).sum()),
        (slopes.sum(0), terms.sum()),
    )


def place(library, array, dtype=None):
    """Return an array of a library."""
    array = array if dtype is None else array.astype(dtype)
    if library == "numpy":
        return array
    own = pytest.importorskip(library)
    return own.tensor(array) if library == "torch" else own.numpy.asarray(array)


def differentiated(library, dtype, loss, arrays, named, wanted):
    """Value and gradients, those in named arrays last, by the library's own means.

    ``wanted`` are their places where kldiv differentiates.
    """
    given = [place(library, array, dtype) for array in (*arrays, *named.values())]

    def called(*own):
        return loss(*own[: len(arrays)], **dict(zip(named, own[len(arrays) :], strict=True)))

    if library == "numpy":
        own = partial(loss, **dict(zip(named, given[len(arrays) :], strict=True)))
        return kldiv.value_and_grad(own, wanted)(*given[: len(arrays)])
    own = import_module(library)
    if library == "torch":
        leaves = [tensor.requires_grad_() for tensor in given]
        value = called(*leaves)
        return value.detach(), own.autograd.grad(value, leaves)
    return own.jit(own.value_and_grad(called, tuple(range(len(given)))))(*given)


def assert_right(found, value, gradients, dtype, slack=(0.0, 0.0)):
    """Each gradient comes with the size of its terms; value and gradients may miss ``slack``."""
    assert abs(float(found[0]) - value) <= TARGET[dtype] * value + slack[0]
    for index, (one, (true, size)) in enumerate(zip(found[1], gradients, strict=True)):
        error = abs(np.asarray(one, "f8") - true).sum()
        assert error <= TARGET[dtype] * size + slack[1], (index, error / size)


@pytest.mark.slow_where(lambda library: library == "jax")
@pytest.mark.parametrize(("library", "dtype", "case"), [*RUNS, ("jax", "float32", "near")])
def test_distillation(library, dtype, case):
    beta, temperature = CASES[case]
    hs, ws, bs, ht, wt, bt = layers(case)
    s, t = logits(hs, ws, bs), logits(ht, wt, bt)
    value, of_s, of_t, hard = 0.0, np.zeros_like(s), np.zeros_like(t), 0.25
    for row in KEPT:
        pair = (t[row], s[row]) if beta == 1 else (s[row], t[row])
        inside = {"beta": beta} if 0 < beta < 1 else {}
        soft, *slopes = exact(*pair, temperature=temperature, **inside)
        in_s, in_t = slopes[::-1] if beta == 1 else slopes
        cost, _, slope = truth_of_labels(s[row], LABELS[row], 1.0, (1.0, 0.0))
        value += ((1 - hard) * soft + hard * cost) / KEPT.size
        of_s[row] = ((1 - hard) * in_s + hard * slope) / KEPT.size
        of_t[row] = (1 - hard) * in_t / KEPT.size
    student, teacher = chained(of_s, hs, ws), chained(of_t, ht, wt)
    loss = partial(
        kldiv.linear_distillation_loss,
        labels=place(library, LABELS),
        beta=beta,
        temperature=temperature,
        hard_weight=hard,
        reduction="mean",
    )
    named = {"bias": bs, "target_bias": bt}
    found = differentiated(library, dtype, loss, (hs, ws, ht, wt), named, (0, 1, 2, 3, 4, 5))
    true = *student[:2], *teacher[:2], student[2], teacher[2]
    assert_right(found, value, true, dtype)


@pytest.mark.parametrize(("library", "dtype", "case"), RUNS)
def test_sparse_teachers(library, dtype, case):
    hs, ws, bs, *other = layers(case)
    s, temperature = logits(hs, ws, bs), CASES[case][1]
    teacher = kldiv.topk_log_probs(logits(*other), 4, temperature=temperature)
    log_probs, rest = (each.astype(dtype) for each in (teacher.log_probs, teacher.rest))
    value, of_s, of_a, slack = 0.0, np.zeros_like(s), np.zeros(log_probs.shape), np.zeros(2)
    for row in range(len(s)):
        given = s[row], log_probs[row], teacher.indices[row], temperature, rest[row]
        true = exact_sparse(RECORDS["KL"], *given)
        value, of_s[row], of_a[row] = value + true.value, true.student, true.log_probs
        slack += CONDITION * unit(dtype) * np.array([true.slack[0], sum(true.slack[1:3])])
    loss = partial(
        kldiv.linear_topk_kl_div,
        target_indices=place(library, teacher.indices),
        target_rest=place(library, rest),
        temperature=temperature,
        reduction="sum",
    )
    (h, w, b) = chained(of_s, hs, ws)
    named = {"target_log_probs": log_probs, "bias": bs}
    if library == "numpy":
        named = {"bias": bs}
        loss = partial(loss, target_log_probs=log_probs)
    found = differentiated(library, dtype, loss, (hs, ws), named, (0, 1, 4))
    true = (h, w, (of_a, abs(of_a).sum()), b) if library == "torch" else (h, w, b)
    assert_right(found, value, true, dtype, slack)


@pytest.mark.parametrize(("library", "dtype", "case"), [run for run in RUNS if run[0] == "torch"])
def test_log_probability_and_entropy(library, dtype, case):
    hidden, weight, bias = layers(case)[3:]
    s, temperature = logits(hidden, weight, bias), CASES[case][1]
    value, slopes = 0.0, np.zeros_like(s)
    for row in KEPT:
        true = truth_of_labels(s[row], LABELS[row], temperature, (1.0, 1.0))
        value, slopes[row] = value + sum(true[:2]), true[2]

    def loss(hidden, weight, *, bias):
        labels = place(library, LABELS)
        options = {"bias": bias, "temperature": temperature}
        found = kldiv.linear_log_prob_and_entropy(hidden, weight, labels, **options)
        return (found[1] - found[0]).sum()

    found = differentiated(library, dtype, loss, (hidden, weight), {"bias": bias}, ())
    assert_right(found, value, chained(slopes, hidden, weight), dtype)
