"""Derivatives that are small beside what they are made of, against mpmath.

Peaked rows far apart have a divergence at its bound, whose slope in the temperature is what little
is left of it. Where P and Q agree on a class its gradient is what the others say. Where a sparse
teacher's likeliest class is one that the student rules out, slopes in the others are far below
their mean.
"""

from __future__ import annotations

from functools import partial

import mpmath
import numpy as np
import pytest
from f_divergences import measured, renyi
from libraries import unit
from mpmath import mp
from reference import softmax

import kldiv
from kldiv import divergences

DIGITS, STEP = 200, mpmath.mpf(10) ** -50
"""A second difference of that step is right to 1e-90, far below the least slope that is checked."""


@pytest.fixture(autouse=True)
def formulas():
    """Compute by the formulas: each kernel has tests of its own."""
    with kldiv.config_context(kernel="pure"):
        yield


DIVERGENCES = {
    "kl": kldiv.kl_div_with_logits,
    "js": kldiv.js_div_with_logits,
    "jeffreys": kldiv.jeffreys_div_with_logits,
    "hellinger": kldiv.hellinger_div_with_logits,
    "alpha:0.25": partial(kldiv.alpha_div_with_logits, alpha=0.25),
    "renyi:0.3": partial(kldiv.renyi_div_with_logits, alpha=0.3),
    "renyi:2": partial(kldiv.renyi_div_with_logits, alpha=2.0),
    "renyi:20": partial(kldiv.renyi_div_with_logits, alpha=20.0),
}
"""By the names under which `measured` knows them."""
LOST = {"js", "hellinger", "alpha:0.25"}
"""Their derivative in T and a logit is lost on the row "peak", where it is 1e-14 and less."""
ROWS = {
    "bound": ([-22.116851, -25.50859, 0.0630731], [7.0171723, -1.5168614, -3.1486229], 0.2202817),
    "peak": ([-0.0027937, 13.326218, -0.357924], [-2.222002, 1.3414319, 0.002468], 0.1929115),
    "near": ([-1.0, 0.5, 2.0], [-1.0001, 0.5002, 1.9999], 0.75),
    "overflow": ([0.0, -20.0, 0.25], [0.125, 20.0, -0.5], 0.15),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", ["each", pytest.param("one", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_derivatives_in_the_temperature(torch, name, given, dtype):
    """Of each row its own temperature, or one of all rows, of which there is one."""
    *arrays, heats = (np.array(each, dtype) for each in zip(*ROWS.values(), strict=True))
    if given == "each":
        found = derivatives(torch, DIVERGENCES[name], *arrays, heats)
    else:
        single = [
            derivatives(torch, DIVERGENCES[name], s[None], t[None], heat)
            for s, t, heat in zip(*arrays, heats, strict=True)
        ]
        found = np.concatenate(single, axis=-1)
    for row, s, t, heat, numbers in zip(ROWS, *arrays, heats, found.T, strict=True):
        largest = float(np.finfo(dtype).max)
        depth = sum(float(max(x) - min(x)) for x in (s, t)) / float(heat)
        # A step of u in a logit changes p by as much of itself as logits over T are apart.
        bound = 4 * unit(dtype) * (8 + depth)
        if name == "renyi:20":
            bound *= 20
        if row == "near":  # curvature is of the size of gradients there
            bound *= 1e4
        true = true_derivatives(name, s, t, heat)
        for place, number, right in zip(range(4), numbers, true, strict=True):
            if abs(right) < 1e-30 or abs(right) > largest:
                assert abs(number) <= 1e-29 or abs(right) > largest, row
                continue
            lost = 1e-14 if place > 1 and row == "peak" and name in LOST else 0
            assert number == pytest.approx(float(right), rel=bound, abs=lost), row


def derivatives(torch, loss, s, t, heat):
    """∂/∂T of each row, ∂²/∂T², and ∂²/∂T∂s₁ in both orders."""
    s, t, heat = (torch.tensor(a, requires_grad=True) for a in (s, t, heat))
    total = loss(s, t, temperature=heat, reduction="sum")
    slope, of_s = torch.autograd.grad(total, (heat, s), create_graph=True)
    twice, mixed = torch.autograd.grad(slope.sum(), (heat, s), retain_graph=True)
    (turned,) = torch.autograd.grad(of_s[:, 1].sum(), heat)
    found = slope, twice, mixed[:, 1], turned
    return np.array([each.detach().double().numpy().reshape(-1) for each in found])


def true_derivatives(name, s, t, heat):
    """What `derivatives` returns of a row, by differences."""
    s, t = ([mp.mpf(float(x)) for x in row] for row in (s, t))
    heat = mp.mpf(float(heat))

    def of(by_heat, by_logit):
        moved = [s[0], s[1] + by_logit, s[2]]
        q, p = (softmax([x / (heat + by_heat) for x in row])[0] for row in (moved, t))
        return measured(name, p, q)

    with mpmath.workdps(DIGITS):
        low, at, high = (of(step, 0) for step in (-STEP, 0, STEP))
        corners = (x * y * of(x * STEP, y * STEP) for x in (-1, 1) for y in (-1, 1))
        mixed = mpmath.fsum(corners) / (2 * STEP) ** 2
        return (high - low) / (2 * STEP), (high - 2 * at + low) / STEP**2, mixed, mixed


AGREED = {
    "two classes left": ([13.193484, -0.0016216, -0.001233], [0.0137233, -0.0069785, -0.356247]),
    "one class": ([1.4559521, -0.0090338, -16.845707], [0.0161592, 0.0038282, 4.6522326]),
    "ruled out": ([21.187456, -0.670585, -0.7219678], [-0.0018984, -0.0635189, 4.6612034]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", AGREED)
@pytest.mark.parametrize("order", [2, 20])
def test_gradients_of_classes_that_the_student_nearly_rules_out(torch, order, rows, dtype):
    s, t = (torch.tensor(a, dtype=getattr(torch, dtype), requires_grad=True) for a in AGREED[rows])
    found = torch.autograd.grad(kldiv.renyi_div_with_logits(s, t, alpha=float(order)), (s, t))
    with mpmath.workdps(60):
        q, p = (softmax([mp.mpf(float(x)) for x in a.detach()])[0] for a in (s, t))
        _, w = renyi(order, p, q)
        exact = [
            [y - x for x, y in zip(w, q, strict=True)],
            [mp.mpf(order) / (order - 1) * (x - y) for x, y in zip(w, p, strict=True)],
        ]
    for number, right in zip(found, exact, strict=True):
        # Logits of size 5, times the order, are rounded by as much.
        np.testing.assert_allclose(
            number.double().numpy(), np.array(right, float), rtol=(8 + 3 * order) * unit(dtype)
        )


SPARSE = {
    "alpha": ({"divergence": divergences.Alpha(1.5)}, partial(measured, "alpha:1.5")),
    "chi2": ({"divergence": divergences.Alpha(2.0)}, partial(measured, "alpha:2")),
    "reverse": ({"beta": 1.0}, lambda p, q: measured("kl", q, p)),
    "forward": ({"beta": 0.0}, partial(measured, "kl")),
    "JS": ({"beta": 0.5}, partial(measured, "js")),
}
TEACHERS = {
    "a likely class ruled out": ([0.3905, -27.6056, 5.5924, 0.4094], [-9.3905, -0.030623]),
    "a mask": ([13.88589, -0.003591, -27.888306, -0.0033528], [-39.776215, -3.716929]),
    "e^-100": ([0.1, 20.0, 0.2, 0.3], [-100.0, -0.5]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", TEACHERS)
@pytest.mark.parametrize("name", SPARSE)
def test_slopes_in_a_sparse_teacher(torch, name, rows, dtype):
    options, true = SPARSE[name]
    s, a = (torch.tensor(x, dtype=getattr(torch, dtype)) for x in TEACHERS[rows])
    a.requires_grad_(True)
    loss = kldiv.topk_kl_div_with_logits(s[None], a[None], torch.tensor([[0, 1]]), **options)
    (found,) = torch.autograd.grad(loss, a)
    q = [mp.mpf(float(x)) for x in s]
    at = [mp.mpf(float(x)) for x in a.detach()]

    def of(*logs):
        p, shares = [mp.exp(x) for x in logs], softmax(q)[0]
        return true([*p, 1 - mpmath.fsum(p)], [*shares[:2], mpmath.fsum(shares[2:])])

    with mpmath.workdps(DIGITS):
        steps = (STEP, 0), (0, STEP)
        wanted = [
            float((of(at[0] + x, at[1] + y) - of(at[0] - x, at[1] - y)) / (2 * STEP))
            for x, y in steps
        ]
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=60 * unit(dtype), atol=1e-36)
