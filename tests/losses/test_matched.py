"""Vocabularies of which some classes are the same: all others are one class more."""

from __future__ import annotations

from functools import partial

import mpmath
import numpy as np
import pytest
from libraries import unit
from second_derivatives import hessian_error, mixed

import kldiv
from bench.studies.targets.rows import softmax
from kldiv.divergences import KL, Alpha, ChiSquared
from kldiv.errors import DTypeError, KLDivError

RNG = np.random.default_rng(3)
ROWS, OWN, OTHER = 5, [1, 2, 6, 0], [0, 5, 1, 2]
T = 3 * RNG.normal(size=(ROWS, 6))
BASE = np.concatenate([T[:, [2, 0, 1]], RNG.normal(size=(ROWS, 3)), T[:, [1]]], 1)
BASE[:, 2] = T[:, 5]
CASES = {
    "far": (kldiv.kl_div_with_logits, {}),
    "temperature": (kldiv.kl_div_with_logits, {"temperature": 0.5 + np.arange(5) / 4}),
    "between": (kldiv.js_div_with_logits, {"beta": 0.25}),
    "reverse": (partial(kldiv.f_div_with_logits, divergence=KL(reverse=True)), {}),
    "chi²": (partial(kldiv.f_div_with_logits, divergence=ChiSquared()), {}),
    "rows": (kldiv.distillation_loss, {"beta": np.array([0, 1, 0.25, 0.5, 1.0])}),
}


def grouped(logits, classes, heat):
    """Log-probabilities of the classes, and of all others together, in many digits."""
    found = []
    for row, temperature in zip(logits, heat, strict=True):
        e = [mpmath.exp(mpmath.mpf(float(x)) / mpmath.mpf(float(temperature))) for x in row]
        rest = mpmath.fsum(x for k, x in enumerate(e) if k not in classes)
        total = mpmath.fsum(e)
        found.append([mpmath.log(e[k] / total) for k in classes] + [mpmath.log(rest / total)])
    return found


@pytest.mark.leave_out(lambda lib: "it is lazy" if lib.root == "dask" else None)
@pytest.mark.parametrize("distance", [1.0, 1e-5])
def test_exact_however_near(lib, distance):
    """The truth is the divergence of the few classes; the others' logarithm is not rounded."""
    dtype = lib.widest
    s = BASE + distance * RNG.normal(size=BASE.shape)
    # All others together nearly alike too.
    s[:, 3:6] += np.log(np.exp(T[:, 3:5]).sum(1) / np.exp(s[:, 3:6]).sum(1))[:, None] + distance
    s, t = (array.astype(dtype) for array in (s, T))
    with mpmath.workdps(60):
        ones = np.ones(ROWS)
        q, p = grouped(s, OWN, ones), grouped(t, OTHER, ones)
        wanted = [
            float(mpmath.fsum(mpmath.exp(a) * (a - b) for a, b in zip(*pair, strict=True)))
            for pair in zip(p, q, strict=True)
        ]
    found = kldiv.kl_div_with_logits(
        lib.array(s), lib.array(t), input_classes=OWN, target_classes=OTHER, reduction="none"
    )
    # A sum of weights is right to a few u, and so is its logarithm.
    rest = [float(mpmath.exp(a[-1]) * abs(a[-1] - b[-1])) for a, b in zip(p, q, strict=True)]
    allowed = 8 * unit(dtype) * (np.array(wanted) + np.array(rest))
    assert np.all(np.abs(lib.numpy(found) - wanted) <= allowed)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_differences(case):
    loss, options = CASES[case]
    arrays = [BASE + 0.5 * RNG.normal(size=BASE.shape), T]
    loss = partial(loss, input_classes=OWN, target_classes=OTHER, **options)
    _, slopes = kldiv.value_and_grad(loss, (0, 1))(*arrays)
    for k, slope in enumerate(slopes):
        step = 1e-6 * RNG.normal(size=arrays[k].shape)
        ahead, behind = ([*arrays] for _ in range(2))
        ahead[k], behind[k] = arrays[k] + step, arrays[k] - step
        difference = (loss(*ahead) - loss(*behind)) / 2
        assert abs(difference - (slope * step).sum()) <= 1e-8 * np.abs(slope * step).sum() + 1e-15


def given_classes(s, t, heat, **options):
    a, indices = t.log_softmax(-1)[:, :2], t.new_tensor([[0, 2], [3, 0]]).long()
    return kldiv.topk_kl_div_with_logits(s, a, indices, temperature=heat, **options)


SECONDS = {
    "matched": lambda s, t, heat: kldiv.distillation_loss(
        s, t, temperature=heat, beta=0.25, input_classes=[0, 2], target_classes=[1, 0]
    ),
    "given, mixture": partial(given_classes, beta=0.25),
    "given, power": partial(given_classes, divergence=Alpha(0.5)),
}


@pytest.mark.parametrize("masked", [0, 1, 2])
@pytest.mark.parametrize("name", SECONDS)
def test_second_derivatives_beside_a_masked_class_are_those_beside_a_far_one(torch, name, masked):
    # A temperature below 1 makes the quotient of the lowest number infinite.
    t, heat = [[0.3, -0.9, 1.1], [0.2, 0.8, -0.4]], [0.7, 1.6]
    results = []
    for lowest in (-np.inf, -100.0):
        s = np.array([[-0.4, 0.8, 0.3, -1.3], [0.5, 1.2, -0.1, -0.4]])
        s[0, masked] = lowest
        given = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (s, t, heat)]
        gradients = torch.autograd.grad(SECONDS[name](*given), given, create_graph=True)
        found = [torch.autograd.grad((g**2).sum(), given, retain_graph=True) for g in gradients]
        results.append([a for each in found for a in each])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-13)


LIKELIEST = {
    "one that matches": ([0.4, 60.0, -0.2, 1.1], [0.3, 30.0, -2.0, 1.0]),
    "others": ([0.001, -28.7, -0.015, 0.006], [0.001, -28.7, 60.0, 60.6]),
    "one, and another": ([0.4, 60.0, -0.2, 1.1], [0.3, -0.5, 30.0, 1.0]),
}


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("case", LIKELIEST)
def test_second_derivatives_in_the_likeliest_class(torch, case, beta):
    """Its own are those of the others: 1 − p, of which they have a factor, rounds to 0."""

    def exact(x):
        q, p = (softmax(half) for half in (x[:4], x[4:]))
        return mixed(*([*side[:2], side[2] + side[3]] for side in (p, q)), beta)

    s, t = LIKELIEST[case]
    classes = {"input_classes": [0, 1], "target_classes": [0, 1]}
    found = torch.autograd.functional.hessian(
        lambda x: kldiv.distillation_loss(x[:4], x[4:], beta=beta, **classes),
        torch.tensor(s + t, dtype=torch.float64),
    )
    assert hessian_error(found.tolist(), exact, s + t) < 60 * unit("float64")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "dynamic", "backend"),
    [("list", False, "aot_eager"), ("torch", True, "eager"), ("numpy", False, "eager")],
)
def test_torch_compiles_it(torch, kind, dynamic, backend):
    make = {"list": list, "numpy": np.array, "torch": torch.tensor}[kind]
    own, other = make(OWN), make(OTHER)

    def loss(s, t):
        return kldiv.kl_div_with_logits(s, t, input_classes=own, target_classes=other)

    torch.compiler.reset()
    arrays = [torch.tensor(array, requires_grad=True) for array in (BASE + 0.5, T)]
    for tensor in arrays:  # whose sizes as symbols take three quarters of the time
        torch._dynamo.mark_static(tensor)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=backend)
    wanted, value = loss(*arrays), compiled(*arrays)
    torch.testing.assert_close(value, wanted, rtol=1e-14, atol=0)
    slopes = (torch.autograd.grad(each, arrays) for each in (value, wanted))
    for slope, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_jax_compiles_it_with_classes_that_it_traces(jax):
    wanted = kldiv.kl_div_with_logits(BASE, T, input_classes=OWN, target_classes=OTHER)

    @jax.jit
    def loss(s, t, own, other):
        return kldiv.kl_div_with_logits(s, t, input_classes=own, target_classes=other)

    with jax.enable_x64(True):
        found = loss(*map(jax.numpy.asarray, (BASE, T, OWN, OTHER)))
        again = jax.jit(partial(kldiv.kl_div_with_logits, input_classes=OWN, target_classes=OTHER))(
            *map(jax.numpy.asarray, (BASE, T))
        )
    np.testing.assert_allclose([found, again], float(wanted), rtol=1e-13)


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        (OWN, None, "target_classes is missing"),
        (OWN, OTHER[:2], "got 4 and 2 of them"),
        ([1, 2, 7, 0], OTHER, "input_classes has 7, which is none of the 7 classes"),
        (OWN, [0, 0, 1, 2], "target_classes has a class twice"),
        (OWN, [0.5], "a list of integers"),
        ([], [], "a list of integers"),
    ],
)
def test_classes_that_do_not_fit(own, other, message):
    with pytest.raises((KLDivError, DTypeError), match=message):
        kldiv.kl_div_with_logits(BASE, T, input_classes=own, target_classes=other)


def test_the_error_of_unlike_vocabularies_names_the_cut_first():
    with pytest.raises(KLDivError, match=r"cut them, input\[\.\.\., :6\];.*input_classes="):
        kldiv.kl_div_with_logits(BASE, T)
