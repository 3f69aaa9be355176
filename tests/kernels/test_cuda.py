"""The CUDA kernels: the sources that run on a GPU, compiled for the CPU where there is none.

Each test runs twice: by a C++ compiler with ``cuda_on_cpu.h`` in the place of CUDA's primitives,
through the production launcher, and on a GPU by CuPy.  That NVRTC compiles the sources as they are
for GPUs is shown in ``test_cuda_sources.py``.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from kernels import cuda_on_cpu
from libraries import Library, require, unit
from logit_families import NEARLY_GOOD, assert_right, batch, truths
from reference import exact, extended

import kldiv
from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss
from kldiv.kernels import Work, cuda
from kldiv.kernels.cuda import compiling, row_loss

FLOATS = ["float32", "float64"]
HALVES = ["float16", "bfloat16"]
REDUCTIONS = ["none", "mean", "batchmean", "sum"]


class Machine:
    """Where kernels run: arrays in, arrays of NumPy out."""

    def __init__(self, name):
        self.name = name
        self.xp = kldiv.backends.get(name).namespace()

    def array(self, host):
        return host if self.name == "numpy" else import_module("cupy").asarray(host)

    def host(self, array):
        return np.asarray(array if self.name == "numpy" else import_module("cupy").asnumpy(array))

    def run(self, operation, *arrays, gradients=(0, 1), cotangent=None, changed=lambda a: a):
        """Value and gradients; ``changed`` gives the logits another layout where they are."""
        there = [changed(self.array(a)) for a in arrays[:2]]
        there += [self.array(a) for a in arrays[2:]]
        seed = None if cotangent is None else self.array(np.asarray(cotangent))
        work = Work(operation, self.xp, there, 1, True, gradients, seed)
        value, found = cuda.compute(work)
        return self.host(value), [self.host(g) for g in found]


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request, monkeypatch):
    monkeypatch.setattr(cuda, "_failure", None)
    if request.param == "gpu":
        require(Library.CUPY)
        return Machine("cupy")
    if problem := cuda_on_cpu.problem():
        pytest.skip(problem)
    monkeypatch.setattr(compiling, "load", cuda_on_cpu.function)
    return Machine("numpy")


def kind(dtype):
    return pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def loss(dtype="float32", divergence=None, reduction="none", temperature=1.0, result=None):
    wide = "float64" if "float64" in {dtype, result} else "float32"
    divergence = divergence or KullbackLeibler()
    return RowLoss(reduction, wide, wide, result or dtype, divergence, temperature)


def logits(shape, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    t = 3 * random.normal(size=shape)
    return (t + random.normal(size=shape)).astype(kind(dtype)), t.astype(kind(dtype))


# --- exact, however close or far apart ------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "dtype", "temperature"),
    [(3, "float32", 1.0), (3, "float64", 0.7), (3, "float32", 3.3), (100, "float32", 0.7)],
)
def test_kl_is_exact(machine, size, dtype, temperature):
    names, s, t = batch(size, dtype)
    value, gradients = machine.run(loss(dtype, temperature=temperature), s, t)
    assert_right(names, (value, *gradients), truths(size, dtype, temperature), dtype)


@pytest.mark.parametrize(
    ("size", "dtype", "beta"),
    [(3, "float32", 0.01), (3, "float64", 0.99), (3, "float32", 0.5), (100, "float32", 0.5)],
)
def test_js_is_exact(machine, size, dtype, beta):
    names, s, t = batch(size, dtype)
    value, gradients = machine.run(loss(dtype, JensenShannon(beta)), s, t)
    assert_right(names, (value, *gradients), truths(size, dtype, 1.0, beta), dtype)


@pytest.mark.parametrize("name", NEARLY_GOOD)
def test_guesses_that_are_nearly_good_enough(machine, name):
    s, t, beta = NEARLY_GOOD[name]
    divergence = KullbackLeibler() if beta is None else JensenShannon(beta)
    value, gradients = machine.run(loss("float32", divergence), s[None], t[None])
    assert_right([name], (value, *gradients), [exact(s, t, beta=beta)], "float32")


def many_classes(size, dtype, beta=None):
    random = np.random.default_rng(size)
    t, z = 3 * random.normal(size=size), random.normal(size=size)
    first = np.arange(size) < size // 3
    pairs = {
        "1": (t + z, t),
        "1e-3": (t + 1e-3 * z, t + 100),
        "1e-7": (t + 1e-7 * z, t),
        "sorted": (np.sort(t) + 1e-3 * z, np.sort(t) + 100),
        "scale 20": (20 * z, 20 * z + t),
        "smooth": (np.where(np.arange(size) == 7, 12.3, 0.1) - 1e-2 * z, np.eye(1, size, 7)[0]),
        "a ramp": (t + np.linspace(-1, 1, size), t),
        "first block negligible": (t + 1e-2 * z - 130 * first, t - 130 * first),
        "first block masked for the teacher": (t + z, np.where(first, -np.inf, t)),
        "teacher underflows under the student": (t + 900 * first, t - 1000 * first),
        "t + 8, rounded": (t + 8, t),
    }
    if beta is not None:
        # Hardly a class in common: gradients far below what long doubles tell from 0 here.
        del pairs["teacher underflows under the student"]
    s, t = (np.stack([pair[i] for pair in pairs.values()]).astype(dtype) for i in (0, 1))
    truth = [extended(a, b, beta=beta) for a, b in zip(s, t, strict=True)]
    return pairs, s, t, truth


@pytest.mark.parametrize("divergence", [KullbackLeibler(), JensenShannon(0.3)], ids=["kl", "js"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1000, 32000])
def test_many_classes_are_exact(machine, size, dtype, divergence):
    names, s, t, truth = many_classes(size, dtype, getattr(divergence, "beta", None))
    value, gradients = machine.run(loss(dtype, divergence), s, t)
    assert_right(names, (value, *gradients), truth, dtype)


@pytest.mark.parametrize("divergence", [KullbackLeibler(), JensenShannon(0.3)], ids=["kl", "js"])
def test_a_large_vocabulary_is_exact(machine, divergence):
    s, t = logits((1, 151936))
    s = (t + 1e-3 * (s - t)).astype("float32")
    value, gradients = machine.run(loss(divergence=divergence), s, t)
    truth = [extended(s[0], t[0], beta=getattr(divergence, "beta", None))]
    assert_right(["1e-3"], (value, *gradients), truth, "float32")


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_way_to_share_rows_out_is_exact(machine, dtype, monkeypatch):
    """Eight rows a block, a row a block, and a row for several blocks; G8."""
    names, s, t, truth = many_classes(32000, dtype)
    for team, parts in ((1, 1), (8, 1), (8, 5), (8, 40)):

        def shape(rows, classes, real, team=team, parts=parts):
            blocks = -(-rows * team // row_loss.WARPS)
            return row_loss.Shape(4 if real == "float64" else 8, team, parts, blocks)

        monkeypatch.setattr(row_loss, "shape_for", shape)
        value, gradients = machine.run(loss(dtype), s, t)
        assert_right(names, (value, *gradients), truth, dtype)


# --- as the formulas say --------------------------------------------------------------------------


def expected(operation, *arrays, gradients=(0, 1), cotangent=None):
    """What the formulas give in float64 for the numbers that the arrays hold."""
    xp = kldiv.backends.get("numpy").namespace()
    exact = [a if a.dtype == bool else a.astype("float64") for a in arrays]
    wide = type(operation)(
        operation.reduction, "float64", "float64", "float64", *_settings(operation)
    )
    with np.errstate(all="ignore"):
        value = wide.value(xp, *exact)
        seed = np.ones_like(value) if cotangent is None else np.asarray(cotangent, "float64")
        found = [
            wide.pullback(xp, lambda op, *a: op.value(xp, *a), index, seed, *exact)
            for index in gradients
        ]
    return value, found


def _settings(operation):
    if isinstance(operation, PointwiseLoss):
        return (operation.function,)
    return operation.divergence, operation.temperature


def assert_agree(found, wanted, dtype, result=None):
    """Within 8 units; of what may cancel, such as log y − x, in those of the largest."""
    expected = map(np.asarray, (wanted[0], *wanted[1]))
    for index, (a, b) in enumerate(zip((found[0], *found[1]), expected, strict=True)):
        assert a.shape == b.shape
        name = dtype if index or result is None else result
        scale = abs(b[np.isfinite(b)]).max(initial=0)
        floor = 1e-7 if name == "float16" else 0
        tolerance = 8 * unit(name)
        np.testing.assert_allclose(
            a.astype("f8"), b, rtol=tolerance, atol=tolerance * scale + floor
        )


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("size", [1, 2, 127, 128, 129, 1000, 32000])
def test_every_size(machine, size, rows):
    s, t = logits((rows, size), seed=size)
    for divergence in (KullbackLeibler(), JensenShannon(0.3)):
        operation = loss(divergence=divergence)
        cotangent = np.linspace(1, 2, rows)
        found = machine.run(operation, s, t, cotangent=cotangent)
        assert_agree(found, expected(operation, s, t, cotangent=cotangent), "float32")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("divergence", [KullbackLeibler(), JensenShannon(0.3)], ids=["kl", "js"])
@pytest.mark.parametrize("dtype", [*HALVES, "float32"])
def test_dtypes_masks_and_reductions(machine, dtype, divergence, masked, reduction):
    s, t = logits((3, 5, 100), dtype)
    others = []
    if masked:
        keep = np.arange(15).reshape(3, 5) % 4 != 2
        s[~keep] = np.nan
        others = [keep]
    s[0, 0, :3], t[0, 0, 1:5] = -np.inf, -np.inf
    operation = loss(dtype, divergence, reduction, result="float32")
    cotangent = np.full((3, 5) if reduction == "none" else (), 0.75)
    found = machine.run(operation, s, t, *others, cotangent=cotangent)
    wanted = expected(operation, s, t, *others, cotangent=cotangent)
    assert_agree(found, wanted, dtype, "float32")
    assert found[0].dtype == np.float32
    assert [g.dtype for g in found[1]] == [s.dtype, t.dtype]
    if masked:
        assert all(
            np.isfinite(g[keep & (np.arange(15).reshape(3, 5) > 0)].astype("f8")).all()
            and not g[~keep].any()
            for g in found[1]
        )


def test_mixed_dtypes(machine):
    s, _ = logits((4, 100), "float16")
    _, t = logits((4, 100), "float64")
    found = machine.run(loss("float64"), s, t)
    wanted = expected(loss("float64"), s, t)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-15)
    assert [g.dtype.name for g in found[1]] == ["float16", "float64"]
    np.testing.assert_array_equal(found[1][0], wanted[1][0].astype("float16"))  # rounded once
    np.testing.assert_allclose(found[1][1], wanted[1][1], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("divergence", [KullbackLeibler(), JensenShannon(0.3)], ids=["kl", "js"])
def test_a_temperature_of_each_row(machine, divergence):
    s, t = logits((6, 100))
    temperature = np.array([0.1, 0.7, 1, 2, 3.3, 50], "float32")
    operation = loss(divergence=divergence, temperature=None)
    found = machine.run(operation, s, t, temperature)
    assert_agree(found, expected(operation, s, t, temperature), "float32")
    for row, T in enumerate(temperature):
        alone = machine.run(loss(divergence=divergence, temperature=float(T)), s[row], t[row])
        assert alone[0] == found[0][row]


LAYOUTS = {
    "transposed": lambda a: a.transpose(2, 0, 1),
    "every other": lambda a: a[:, :, ::2],
    "backwards": lambda a: a[::-1, :, ::-1],
    "a part": lambda a: a[1:, 2:, 3:-1],
    "eight axes": lambda a: (
        a[:, :4, :96].reshape(6, 2, 2, 2, 2, 2, 2, 6)[::5].swapaxes(1, 3).swapaxes(4, 6)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(machine, layout):
    s, t = logits((6, 7, 130))
    y = abs(t)
    changed = LAYOUTS[layout]
    for operation, arrays in (
        (loss(), (s, t)),
        (PointwiseLoss("none"), (s, y)),
        (PointwiseLoss("sum"), (s, y)),
    ):
        found = machine.run(operation, *arrays, changed=changed)
        plain = [np.ascontiguousarray(changed(a)) for a in arrays]
        assert_agree(found, expected(operation, *plain), "float32")


@pytest.mark.parametrize("divergence", [KullbackLeibler(), JensenShannon(0.3)], ids=["kl", "js"])
def test_the_same_bits_every_time(machine, divergence):
    s, t = logits((3, 32000))
    first, second = (
        machine.run(loss(divergence=divergence, reduction="sum"), s, t) for _ in range(2)
    )
    assert first[0] == second[0]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first[1], second[1], strict=True))


def test_more_rows_than_teams(machine, monkeypatch):
    monkeypatch.setattr(row_loss, "MOST", 3)
    for size in (20, 1000):
        s, t = logits((70, size))
        keep = np.arange(70) % 5 != 3
        found = machine.run(loss(), s, t, keep)
        assert_agree(found, expected(loss(), s, t, keep), "float32")


@pytest.mark.parametrize("size", [20, 1000])
@pytest.mark.parametrize("divergence", [KullbackLeibler(), JensenShannon(0.3)], ids=["kl", "js"])
def test_rows_without_meaning(machine, divergence, size):
    s, t = logits((5, size))
    s[0] = -np.inf
    t[1] = -np.inf
    s[2, 5], t[3, 7] = np.nan, np.inf
    value, gradients = machine.run(loss(divergence=divergence), s, t)
    np.testing.assert_array_equal(np.isnan(value), [True, True, True, True, False])
    for gradient in gradients:
        assert np.isfinite(gradient[4]).all()
        assert np.isnan(gradient[:4]).any(axis=-1).all()


# --- pointwise ------------------------------------------------------------------------------------


def probabilities(shape, dtype, *, log_target=False):
    random = np.random.default_rng(1)
    x, y = np.log(random.random(shape) + 1e-9), random.random(shape)
    y.flat[::7] = 0
    if log_target:
        y = np.log(y + 1e-3)
    x, y = x.astype(kind(dtype)), y.astype(kind(dtype))
    x.flat[:3], y.flat[:3] = -np.inf, [-np.inf if log_target else 0, 0.5, 0]
    return x, y


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("mask", ["none", "rows", "elements"])
@pytest.mark.parametrize("dtype", [*HALVES, *FLOATS])
def test_kl_div_agrees_with_the_formulas(machine, dtype, mask, log_target, reduction):
    x, y = probabilities((7, 5, 90), dtype, log_target=log_target)
    others = {
        "none": [],
        "rows": [(np.arange(5) != 2)[:, None]],
        "elements": [np.random.default_rng(3).random(x.shape) < 0.8],
    }[mask]
    result = "float32" if dtype in HALVES else dtype
    function = KLLogTarget() if log_target else KL()
    operation = PointwiseLoss(reduction, result, result, result, function)
    cotangent = np.full(x.shape if reduction == "none" else (), 0.75, result)
    found = machine.run(operation, x, y, *others, cotangent=cotangent)
    wanted = expected(operation, x, y, *others, cotangent=cotangent)
    assert_agree(found, wanted, dtype, result)
    assert [g.dtype for g in found[1]] == [x.dtype, y.dtype]


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_elements_are_right_to_four_units(machine, dtype, log_target):
    x, y = probabilities((333, 101), dtype, log_target=log_target)
    function = KLLogTarget() if log_target else KL()
    found, _ = machine.run(PointwiseLoss("none", dtype, dtype, dtype, function), x, y, gradients=())
    total, _ = machine.run(
        PointwiseLoss("sum", dtype, dtype, dtype, function), x[1:], y[1:], gradients=()
    )
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    with np.errstate(all="ignore"):
        log, p = (
            (np.maximum(y, -1e4), np.exp(y)) if log_target else (np.log(np.maximum(y, 1e-300)), y)
        )
        true, size = p * (log - x), p * (abs(log) + abs(x))
    limit = (6 if log_target else 4) * unit(dtype) * size[1:]
    assert (abs(found[1:] - true[1:]) <= limit + np.finfo(dtype).tiny).all()
    assert abs(total - true[1:].sum()) <= 4 * unit(dtype) * abs(true[1:].sum())
