"""The fused CPU kernels beyond ``test_conformance.py``: blocks, threads, compilers, and where not.

Small arrays are left to the formulas; here they are not, so that every path of a kernel is taken.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from libraries import unit
from logit_families import assert_right
from reference import truth

import kldiv
from kldiv.divergences import Jeffreys
from kldiv.formulas.divergences import JensenShannon
from kldiv.formulas.rows import RowLoss
from kldiv.kernels import Work
from kldiv.kernels.cpu import CPU

pytest.importorskip("llvmlite")

from kldiv.kernels import layout
from kldiv.kernels.cpu.row import SEGMENT

FLOATS = ["float32", "float64"]
LABELS = kldiv.cross_entropy_with_logits
LOSSES = [kldiv.kl_div, kldiv.kl_div_with_logits, kldiv.js_div_with_logits]

pytestmark = pytest.mark.usefixtures("small_too")


# --- elements -------------------------------------------------------------------------------------


LAYOUTS = {
    "backwards": lambda a: a[::-1, :, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "read-only": lambda a: a.view() if a.setflags(write=False) is None else a,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_layouts_of_numpy(dtype, layout):
    x, y = np.random.default_rng(0).random((2, 6, 7, 50))
    x, y = np.log(x + 1e-9).astype(dtype), y.astype(dtype)
    changed_x, changed_y = LAYOUTS[layout](x), LAYOUTS[layout](y)
    for loss in LOSSES:
        for mixed in ((changed_x, changed_y), (changed_x, changed_y.copy())):
            vg = kldiv.value_and_grad(functools.partial(loss, dtype="float32"), (0, 1))
            value, gradients = vg(*mixed)
            wanted, expected = vg(*map(np.ascontiguousarray, mixed))
            np.testing.assert_allclose(value, wanted, rtol=1e-6)
            for a, b in zip(gradients, expected, strict=True):
                np.testing.assert_allclose(
                    a, b, rtol=1e-2 if dtype == "float16" else 1e-5, atol=1e-7
                )


# --- logits ---------------------------------------------------------------------------------------


def masks(size):
    """Pairs of student and teacher logits with masked classes, in many blocks of the kernels."""
    random = np.random.default_rng([size, 7])
    t, z = 3 * random.normal(size=size), random.normal(size=size)
    place, some = np.arange(size), random.random(size) < 0.4

    def gone(values, where):
        return np.where(where, -np.inf, values)

    last, first, few = place >= size - 700, place < 2500, random.random(size) < 0.999
    return {
        "last for both": (gone(t + z, last), gone(t, last)),
        "last for both, close": (gone(t + 1e-4 * z, last), gone(t + 60, last)),
        "last for both, 1e-7": (gone(t + 1e-7 * z, last), gone(t, last)),
        "last for both, alike": (gone(t, last), gone(t, last)),
        "last for the teacher": (t + z, gone(t, last)),
        "last for the teacher, close": (t + 1e-3 * z - 90, gone(t, last)),
        "last for the student": (gone(t + z, last), t),
        "first for both": (gone(t + z, first), gone(t, first)),
        "first for the teacher": (t + z, gone(t, first)),
        "first for the teacher, student + 60": (t + z + 60, gone(t, first)),
        "first for the teacher, likely there": (t + z + 30 * first, gone(t, first)),
        "some for both": (gone(t + z, some), gone(t, some)),
        "some for both, close": (gone(t + 1e-3 * z, some), gone(t, some)),
        "some for the teacher": (t + z, gone(t, some)),
        "more for the teacher": (gone(t + z, some & last), gone(t, some)),
        "most for both": (gone(t + z, few), gone(t, few)),
        "most for the teacher": (t + z, gone(t, few)),
        "one class left": (t + z, gone(t, place != size // 2)),
        "tempered": (gone(t / 1.3, last), gone(t, last)),
        "all for both": (gone(t, place >= 0), gone(t, place >= 0)),
        "all for the teacher": (t, gone(t, place >= 0)),
        "all for the student": (gone(t, place >= 0), t),
        "NaN in the teacher": (gone(t, last), np.where(last, np.nan, t)),
        "NaN in the student": (np.where(last, np.nan, t), gone(t, last)),
        "infinity in the teacher": (gone(t, last), np.where(last, np.inf, t)),
        "infinity in the student": (np.where(last, np.inf, t), gone(t, last)),
    }


@pytest.mark.parametrize(("dtype", "tops"), [("float32", (65, 75, 85)), ("float64", (400, 690))])
def test_blocks_far_below_the_largest_class(dtype, tops):
    """Down to the smallest normal numbers nothing underflows before a probability does."""
    rng = np.random.default_rng(8)
    t = 0.7 * rng.normal(size=(len(tops), 4100))
    t[:, 5] += tops
    s, t = (t + 0.05 * rng.normal(size=t.shape)).astype(dtype), t.astype(dtype)
    wide = [array.astype("float64") for array in (s, t)]
    for beta in (None, 0.3):
        loss = (
            kldiv.kl_div_with_logits
            if beta is None
            else partial(kldiv.js_div_with_logits, beta=beta)
        )
        total = kldiv.value_and_grad(partial(loss, reduction="sum"), (0, 1))
        with kldiv.config_context(kernel="pure"):
            expected = loss(*wide, reduction="none"), *total(*wide)[1]
        with kldiv.config_context(kernel="cpu"):
            found = loss(s, t, reduction="none"), *total(s, t)[1]
        for one, other in zip(found, expected, strict=True):
            each = one.reshape(len(tops), -1).astype("float64")
            other = other.reshape(len(tops), -1)  # noqa: PLW2901
            error = abs(each - other).sum(-1) / abs(other).sum(-1)
            assert (error < (1e-6 if dtype == "float32" else 4e-15)).all()


@pytest.mark.parametrize("temperature", [1.0, 3.3, 16.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_divergence_that_is_nearly_the_largest_number(dtype, temperature):
    """A class that a number masks counts as its probability times that number."""
    largest = float(np.finfo(dtype).max)
    s, t = np.array([[0.5, -largest]], dtype), np.array([[0.0, 3.0]], dtype)
    p = 1 / (1 + np.exp(-3.0 / temperature))
    with kldiv.config_context(kernel="cpu"):
        found = kldiv.kl_div_with_logits(s, t, temperature=temperature)
        back = kldiv.f_div_with_logits(
            t, s, divergence=Jeffreys(0.25, 0.5), temperature=temperature
        )
    wanted = p * (largest / temperature)
    assert float(found) == pytest.approx(wanted, rel=4 * unit(dtype))
    assert float(back) == pytest.approx(0.5 * wanted, rel=4 * unit(dtype))


@pytest.mark.parametrize(
    ("dtype", "beta"), [("float32", 0.01), ("float32", 0.99), ("float64", 0.5)]
)
def test_gradients_that_few_classes_make(dtype, beta):
    """Where a class is far below on one side, or some are gone there, and all others are alike."""
    t = 0.3 * np.random.default_rng(4).normal(size=(2, 1000))
    s = t.copy()
    s[0, 3] -= 35
    s[1, np.argsort(t[1])[-9:]] = -np.inf
    s, t = s.astype(dtype), t.astype(dtype)
    operation = RowLoss("none", dtype, dtype, dtype, JensenShannon(beta))
    xp = kldiv.backends.get("numpy").namespace()
    value, gradients = CPU.compute(Work(operation, xp, [s, t], 1, gradients=(0, 1)))
    assert_right(["far below", "gone"], (value, *gradients), truth(s, t, beta=beta), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1900, 5001])
def test_masked_classes_are_exact(size, dtype):
    pairs = masks(size)
    s, t = (np.stack([pair[i] for pair in pairs.values()]).astype(dtype) for i in (0, 1))
    operation = RowLoss("none", dtype, dtype, dtype)
    xp = kldiv.backends.get("numpy").namespace()
    value, gradients = CPU.compute(Work(operation, xp, [s, t], 1, gradients=(0, 1)))
    for wanted in ((), (0,), (1,)):
        alone, found = CPU.compute(Work(operation, xp, [s, t], 1, gradients=wanted))
        np.testing.assert_array_equal(alone, value)
        np.testing.assert_array_equal(found, [gradients[which] for which in wanted])
    assert_right(pairs, (value, *gradients), truth(s, t), dtype)
    assert value[list(pairs).index("last for both, alike")] == 0


@pytest.mark.parametrize("loss", [kldiv.kl_div_with_logits, kldiv.js_div_with_logits])
@pytest.mark.parametrize("classes", [40, (1 << 16) + 40])
@pytest.mark.parametrize(
    ("dtype", "tops"),
    [
        ("float32", (3e20, -7e25)),
        ("float32", (1e30, -2.5e30)),
        ("float32", (3.4e38, -3.4e38)),
        ("float32", (2e12, 1e30)),
        ("float64", (float(np.finfo("f4").min), 0.3)),
        ("float64", (1e100, -3e200)),
        ("float64", (1.7e308, -1.7e308)),
    ],
)
def test_largest_logits_far_apart(dtype, tops, classes, loss):
    """Of either row a few classes are alike, and the others so low that they do not count."""
    low = float(np.finfo(dtype).min)
    s, t, near_s, near_t = (np.full((1, classes), low, dtype) for _ in range(4))
    for row, near, top, end in ((s, near_s, tops[0], 5), (t, near_t, tops[1], 2)):
        row[0, :end], near[0, :end] = top, 0
    with kldiv.config_context(kernel="pure"):
        expected = (loss(near_s, near_t), *kldiv.value_and_grad(loss, (0, 1))(near_s, near_t)[1])
    value, gradients = kldiv.value_and_grad(loss, (0, 1))(s, t)
    for found, true in zip((value, *gradients), expected, strict=True):
        assert abs(found - true).sum() <= 8 * unit(dtype) * abs(true).sum()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_far_class_that_the_teacher_lacks_in_a_long_row(dtype):
    """The others keep their gradients in every part of the row."""
    t, z = np.random.default_rng(0).normal(size=(2, 1, 2 * SEGMENT + 40))
    s = t + z
    s[0, SEGMENT + 3], t[0, SEGMENT + 3] = 3e17, -np.inf
    s, t = s.astype(dtype), t.astype(dtype)
    loss = kldiv.value_and_grad(kldiv.kl_div_with_logits, (0, 1))
    value, gradients = loss(s, t)
    with kldiv.config_context(kernel="pure"):
        expected, slopes = loss(s, t)
    assert value == pytest.approx(expected, rel=4 * unit(dtype), abs=0)
    for found, true in zip(gradients, slopes, strict=True):
        assert abs(found - true).sum() <= 8 * unit(dtype) * abs(true).sum()


@pytest.mark.parametrize("dtype", FLOATS)
def test_blocks_that_are_masked_for_one_side(dtype):
    random = np.random.default_rng(4)
    s, t = (random.normal(size=(2, 4500)).astype(dtype) for _ in range(2))
    s[0, :2500] = t[1, 2000:] = -np.inf
    vg = kldiv.value_and_grad(functools.partial(kldiv.js_div_with_logits, reduction="sum"), (0, 1))
    value, gradients = vg(s, t)
    true = truth(s, t, beta=0.5)
    assert value == pytest.approx(true.value.sum(), rel=8 * unit(dtype), abs=0)
    assert_right(range(2), (true.value, *gradients), true, dtype)


@pytest.mark.parametrize("classes", [2048, 5003])
@pytest.mark.parametrize("loss", [kldiv.kl_div_with_logits, kldiv.alpha_div_with_logits, LABELS])
def test_rows_that_are_copied_are_computed_as_those_in_place(loss, classes):
    """Half types and strides are converted a block at a time, and nothing is lost between."""
    random = np.random.default_rng(4)
    s, t = (3 * random.normal(size=(2, 5, classes))).astype("f2")
    s[1, 7] = t[2, 7] = t[2, 9] = -np.inf
    other = [np.array([0, 1, 2047, classes - 1, 3])] if loss is LABELS else [t]
    more = {"alpha": 0.7} if loss is kldiv.alpha_div_with_logits else {}
    run = kldiv.value_and_grad(partial(loss, reduction="sum", **more))
    plain = [a.astype("f4") if a.dtype == "f2" else a for a in (s, *other)]
    value, gradient = run(*plain)
    for given in ((s, *other), (np.asfortranarray(plain[0]), *plain[1:])):
        found = run(*given)
        assert found[0] == np.asarray(value, found[0].dtype)
        np.testing.assert_array_equal(found[1], gradient.astype(found[1].dtype))


# --- where kernels do not run ---------------------------------------------------------------------


def test_small_arrays_are_left_to_the_formulas(monkeypatch):
    monkeypatch.setattr(CPU, "small", 100)
    small, large = np.ones(99), np.ones(100)
    assert kldiv.explain(small).kernel == "pure"
    assert kldiv.explain(large).kernel == "cpu"
    with kldiv.config_context(kernel="cpu"):
        assert kldiv.explain(small).kernel == "cpu"


def test_a_failing_compiler_is_told_once(monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(CPU, "failure", None)
    monkeypatch.setattr("kldiv.kernels.cpu.pointwise_loss.compile_for", fail)
    x, y = np.zeros(9), np.ones(9)
    with pytest.warns(RuntimeWarning, match="compiling it fails: OSError: disk full"):
        assert kldiv.kl_div(x, y) == 0
    assert kldiv.kl_div(x, y) == 0
    assert "disk full" in str(kldiv.explain(x, y))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    code = """
import numpy as np, kldiv
x = np.zeros(10**5)
assert kldiv.kl_div(x, x + 1) == 0
print(kldiv.explain(x).kernel)
"""
    environment = {**os.environ, "KLDIV_CACHE_DIR": str(file / "below")}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout == "blocks\n"
    assert run.stderr.count("RuntimeWarning") == 1


@pytest.mark.parametrize("whole_rows", [False, True])
@pytest.mark.parametrize("shape", [(2,), (1, 5), (5, 1), (3, 4), (2, 3, 4), (2, 1, 4), (1, 1, 6)])
def test_arrays_without_gaps_are_laid_out_as_others(shape, whole_rows, monkeypatch):
    arrays = [np.ones(shape, dtype) for dtype in ("float32", "float64", "bool")]
    places = [*map(layout.memory, arrays), None]
    found = layout.table(places, whole_rows=whole_rows)
    monkeypatch.setattr(layout, "_is_packed", lambda _: False)
    assert found.tolist() == layout.table(places, whole_rows=whole_rows).tolist()
