"""Log-probabilities of labels, entropies and cross entropies from logits, against mpmath."""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec

import mpmath
import numpy as np
import pytest
from label_rows import cross_entropy
from label_rows import truth as of_label
from libraries import unit
from logit_families import families
from reference import numbers

import kldiv
from kldiv.errors import DTypeError, OptionError, ShapeError

INF = np.inf
compiled_for_seconds = pytest.mark.slow_where(lambda lib: lib.root == "jax")
RNG = np.random.default_rng(7)
ROWS = {
    "near": RNG.normal(size=6),
    "peaked": np.array([0.0, 80.0, 1.0, 2.0, 30.0, -9.0]),
    "two peaks": np.array([50.0, 50.0, 1.0, 2.0, 3.0, 4.0]),
    "masked": np.array([0.5, -INF, 2.0, -INF, 1.0, 0.0]),
    "one class": np.array([-INF, 3.0, -INF, -INF, -INF, -INF]),
    "far below": np.array([-9e4, -9e4 + 1, -9.1e4, -9e4, -9e4, -9e4]),
    "uniform": np.zeros(6),
    "label masked": np.array([1.0, -INF, 2.0, 0.0, 0.0, 0.0]),
}
S = np.stack([*ROWS.values()])
LABELS = np.array([2, 1, 1, 0, 1, 0, 5, 1])


@cache
def truth(dtype, temperature=1.0):
    """log p(label) and H of each row, and their gradients, of the logits in that dtype."""
    found = []
    for row, label in zip(S.astype(dtype), LABELS, strict=True):
        cost, entropy, one = of_label(row, label, temperature, (-1.0, 0.0))
        found.append((-cost, entropy, one, of_label(row, label, temperature, (0.0, 1.0))[2]))
    return [np.array(each) for each in zip(*found, strict=True)]


def assert_close(lib, found, wanted, dtype, units):
    """Relative to each number; far below the largest only to that."""
    lib.assert_like(found, np.shape(wanted), dtype)
    size = np.max(np.abs(np.where(np.isfinite(wanted), wanted, 0)), axis=-1, keepdims=True)
    scale = 0.0 if np.ndim(wanted) < 2 else 2.0**-20
    tiny = 1e-37 if dtype == "float32" else 1e-300
    np.testing.assert_array_less(
        np.abs(np.nan_to_num(lib.numpy(found) - wanted, nan=0.0)),
        units * unit(dtype) * (np.abs(np.nan_to_num(wanted, neginf=0)) + scale * size) + tiny,
    )
    np.testing.assert_array_equal(np.isfinite(lib.numpy(found)), np.isfinite(wanted))


def test_the_entropy_of_many_classes_that_are_alike():
    """All but one are as far below it as the mean is, to within the rounding of that distance."""
    s = 1e-6 * RNG.normal(size=(1, 32000)).astype("f4")
    s[0, 5] = 1.0
    slopes = kldiv.value_and_grad(kldiv.entropy_with_logits)
    with kldiv.config_context(kernel="pure"):
        found, wanted = slopes(s)[1], slopes(s.astype("f8"))[1]
    assert abs(found - wanted).sum() <= 1e-6 * abs(wanted).sum()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # ∞ − ∞ of two infinite results
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_and_gradients(lib, dtype):
    s, labels = lib.array(S, dtype), lib.array(LABELS)
    log_p, entropy, one, two = truth(dtype)
    for found, wanted in zip(
        kldiv.log_prob_and_entropy_with_logits(s, labels), (log_p, entropy), strict=True
    ):
        assert_close(lib, found, wanted, dtype, 8)
    total = {"reduction": "sum"}
    cross = partial(kldiv.cross_entropy_with_logits, **total)
    assert_close(lib, cross(s, labels, reduction="none"), -log_p, dtype, 8)
    assert_close(lib, kldiv.value_and_grad(cross)(s, labels)[1], -one, dtype, 16)
    own = partial(kldiv.entropy_with_logits, **total)
    assert_close(lib, own(s, reduction="none"), entropy, dtype, 8)
    value, gradient = kldiv.value_and_grad(own)(s)
    lib.assert_equal(value, entropy.sum(), dtype, ulps=32)
    assert_close(lib, gradient, two, dtype, 32)


@compiled_for_seconds
def test_temperature_labels_and_weights(lib):
    s, labels = lib.array(S[:4]), lib.array(np.array([2, 1, -100, 0]))
    heat = lib.array(np.full(4, 3.0))
    log_p, entropy, one, _ = (each[:4] for each in truth("float64", 3.0))
    keep = np.array([True, True, False, True])
    for temperature in (3.0, heat):
        loss = partial(kldiv.cross_entropy_with_logits, temperature=temperature)
        value, gradient = kldiv.value_and_grad(loss)(s, labels)
        lib.assert_equal(value, -log_p[keep].sum() / 3, ulps=64)
        lib.assert_equal(gradient, np.where(keep[:, None], -one, 0) / 3, ulps=64)
        weight = np.array([2.0, 0.0, 1.0, -1.0])
        loss = partial(loss, row_weight=lib.array(weight), normalizer=5)
        value, gradient = kldiv.value_and_grad(loss)(s, labels)
        lib.assert_equal(value, -(weight * keep * log_p).sum() / 5, ulps=64)
        lib.assert_equal(gradient, -one * (weight * keep)[:, None] / 5, ulps=64)
        both = kldiv.log_prob_and_entropy_with_logits(s, labels, temperature=temperature)
        lib.assert_equal(both[0], np.where(keep, log_p, 0), ulps=64)
        lib.assert_equal(both[1], np.where(keep, entropy, 0), ulps=64)


def teachers(dtype):
    """Return pairs of rows as the dtype holds them: all but those that are infinitely apart."""
    pairs = {name: pair for name, pair in families(40).items() if "for the student" not in name}
    flat = np.array([1e-3, 2e-3, -1e-3])
    pairs["the student is flat"] = flat, np.array([9.0, 1.0, -7.0])
    pairs["the student's bulk is far below its top"] = flat - [0, 1e3, 1e3], flat - [90, 0, 0]
    with np.errstate(over="ignore"):
        return [[row.astype(dtype).astype("f8") for row in pair] for pair in pairs.values()]


@cache
def exact_teachers(dtype):
    """Return the pairs of rows of each number of classes, and the truth about them."""
    pairs = teachers(dtype)
    sizes = {len(s) for s, _ in pairs}
    rows = [[pair for pair in pairs if len(pair[0]) == size] for size in sizes]
    with mpmath.workdps(60):
        true = [[cross_entropy(*map(numbers, pair)) for pair in each] for each in rows]
    true = [[[np.array(part, float) for part in row] for row in each] for each in true]
    return list(zip(rows, true, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_teachers_gradients(lib, dtype):
    """That in the teacher is its own, not the sum of those of the entropy and the divergence."""
    loss = kldiv.value_and_grad(
        partial(kldiv.cross_entropy_with_logits, reduction="sum"), argnums=(0, 1)
    )
    for rows, exact in exact_teachers(dtype):
        arrays = [lib.array(np.stack(side), dtype) for side in zip(*rows, strict=True)]
        value, found = loss(*arrays)
        lib.assert_equal(value, sum(value for value, *_ in exact), dtype, ulps=16)
        for gradient, *true in zip(found, *((s, t) for _, s, t in exact), strict=True):
            off = abs(lib.numpy(gradient).astype("f8") - np.stack(true)).sum(-1)
            whole = np.maximum(abs(np.stack(true)).sum(-1), 40 * np.finfo(dtype).tiny)
            assert (off <= 16 * unit(dtype) * whole).all()


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_types(lib, half):
    s, labels = lib.array(S[:4], half), lib.array(LABELS[:4])
    wide = kldiv.entropy_with_logits(lib.numpy(s).astype("f8"), reduction="none")
    lib.assert_equal(kldiv.entropy_with_logits(s, reduction="none"), wide, half, ulps=1)
    gradient = kldiv.value_and_grad(kldiv.cross_entropy_with_logits)(s, labels)[1]
    lib.assert_like(gradient, (4, 6), half)


def test_rows_that_are_no_distribution(lib):
    bad = np.array([[np.nan, 0.0], [INF, 0.0], [-INF, -INF], [0.0, 0.0]])
    log_p, entropy = kldiv.log_prob_and_entropy_with_logits(
        lib.array(bad), lib.array(np.zeros(4, np.int64))
    )
    for found in (log_p, entropy):
        assert list(np.isnan(lib.numpy(found))) == [True, True, True, False]
    keep = lib.array(np.isfinite(bad).all(-1))
    value, gradient = kldiv.value_and_grad(kldiv.entropy_with_logits)(lib.array(bad), where=keep)
    lib.assert_equal(value, np.log(2))
    lib.assert_equal(gradient, np.zeros((4, 2)))


def test_a_byte_is_not_taken_for_the_index_to_ignore(lib):
    rows = np.random.default_rng(0).normal(size=(3, 200))
    labels = np.array([156, 7, 156])  # −100, as a byte
    wanted = kldiv.cross_entropy_with_logits(rows, labels)
    found = kldiv.cross_entropy_with_logits(lib.array(rows), lib.array(labels.astype(np.uint8)))
    lib.assert_equal(found, wanted, lib.widest, ulps=16)


def test_wrong_labels(lib):
    s, loss = lib.array(S), kldiv.cross_entropy_with_logits
    with pytest.raises(ShapeError, match=r"labels has shape \(2,\); expected one for each row"):
        loss(s, lib.array(LABELS[:2]))
    with pytest.raises(OptionError, match="ignore_index is a label, 0, and target has dtype float"):
        kldiv.cross_entropy_with_logits(lib.array(S), lib.array(S), ignore_index=0)
    with pytest.raises(DTypeError, match="labels has dtype float"):
        kldiv.log_prob_and_entropy_with_logits(s, s[:, 0])
    for temperature in (1.0, lib.array(np.ones(len(S)))):
        with pytest.raises(OptionError, match="argnums 1 is target, which holds labels"):
            kldiv.value_and_grad(loss, 1)(s, lib.array(LABELS), temperature=temperature)
    wrong = lib.array(np.where(LABELS == 5, 6, LABELS))
    if lib.root == "numpy":
        with pytest.raises(OptionError, match="labels has 6, which is none of the 6 classes"):
            loss(s, wrong)
        return
    both = kldiv.log_prob_and_entropy_with_logits(s, wrong)
    for found, broken in zip(both, (LABELS == 5, [False] * len(S)), strict=True):
        np.testing.assert_array_equal(np.isnan(lib.numpy(found)), broken)
    kernels = ["pure", *["cpu"] * (lib.backend in {"torch", "jax"} and bool(find_spec("llvmlite")))]
    for kernel in kernels:
        with kldiv.config_context(kernel=kernel):
            value, gradient = kldiv.value_and_grad(loss)(s, wrong)
        assert np.isnan(lib.numpy(value))
        broken = np.isnan(lib.numpy(gradient))
        np.testing.assert_array_equal(broken, np.repeat((LABELS == 5)[:, None], S.shape[1], 1))


def test_a_reference_policy_adds_the_exact_kl(lib):
    s, r = RNG.normal(size=(2, 3, 6))
    labels = np.array([1, -100, 4])
    keep = labels >= 0
    for heat in (1.5, np.array([0.5, 1.5, 3.0])):
        options = {"temperature": heat if isinstance(heat, float) else lib.array(heat)}
        found = kldiv.log_prob_and_entropy_with_logits(
            lib.array(s), lib.array(labels), reference=lib.array(r), **options
        )
        wanted = kldiv.kl_div_with_logits(r, s, where=keep, temperature=heat, reduction="none")
        lib.assert_equal(found[2], wanted, ulps=8)
        plain = kldiv.log_prob_and_entropy_with_logits(lib.array(s), lib.array(labels), **options)
        for one, other in zip(found[:2], plain, strict=True):
            np.testing.assert_array_equal(lib.numpy(one), lib.numpy(other))


@pytest.mark.slow
def test_a_reference_policy_compiles_without_a_kernel():
    """Its parts are then computed one by one."""
    torch = pytest.importorskip("torch")
    s, r = (torch.tensor(each, requires_grad=True) for each in RNG.normal(size=(2, 3, 6)))
    loss = partial(kldiv.log_prob_and_entropy_with_logits, labels=torch.tensor([1, -100, 4]))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(s, reference=r), loss(s, reference=r), strict=True):
        torch.testing.assert_close(one, other)
        slopes = [torch.autograd.grad(each.sum(), s, retain_graph=True) for each in (one, other)]
        torch.testing.assert_close(*slopes)
