"""Logits with each its own way to go wrong, and how far a result is from the truth about them.

The targets are relative errors of 1e-6 in float32 and 2e-15 in float64: 17 and 18 roundings.
"""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
from reference import Truth, truth

import kldiv

TARGET = {"float32": 1e-6, "float64": 2e-15}
INF = math.inf


def families(size, seed=0):
    """Pairs of student and teacher logits, each with its own way to go wrong."""
    random = np.random.default_rng([size, seed])
    t, z = 3 * random.normal(size=size), random.normal(size=size)
    first = np.arange(size) < max(1, size // 3)
    low, high = int(np.argmin(t)), int(np.argmax(t))

    def changed(values, index, by):
        values = values.copy()
        values[index] += by
        return values

    pairs = {f"distance 1e-{k}": (t + 10.0**-k * z, t) for k in range(9)}
    for k in (1, 3, 5):
        pairs[f"teacher + 100, distance 1e-{k}"] = (t + 10.0**-k * z, t + 100)
        pairs[f"student - 50, distance 1e-{k}"] = (t + 10.0**-k * z - 50, t)
    pairs["t + 8, rounded"] = (t + 8, t)
    pairs["t + 100, rounded"] = (t + 100, t)
    peaked = changed(t, size // 2, 30)
    pairs["both peaked on one class"] = (peaked + 1e-3 * z, peaked)
    pairs["both peaked, farther apart"] = (peaked + z, peaked)
    pairs["peaks disagree by 30"] = (changed(t, 0, 30), peaked)
    pairs["peaks disagree by 12"] = (changed(t, 0, 12), changed(t, size - 1, 12))
    pairs["scale 20"] = (20 * z, 20 * random.normal(size=size))
    pairs["scale 20, shifted"] = (20 * z - 50, 20 * random.normal(size=size) + 100)
    pairs["scale 20, close"] = (20 * z, 20 * z + 1e-3 * t)
    pairs["sorted"] = (np.sort(t) + 1e-2 * z, np.sort(t))
    pairs["sorted, opposite"] = (np.sort(t)[::-1].copy(), np.sort(t))
    pairs["first block negligible"] = (t + 1e-2 * z - 130 * first, t - 130 * first)
    pairs["first block 130 lower for the teacher"] = (t + z, t - 130 * first)
    pairs["teacher underflows under the student"] = (t + 900 * first, t - 1000 * first)
    pairs["first block masked for the teacher"] = (t + z, np.where(first, -INF, t))
    pairs["last block masked for the teacher"] = (t + z, np.where(first[::-1], -INF, t))
    pairs["a class masked for the teacher"] = (t + 1e-2 * z, changed(t, -1, -INF))
    pairs["a class masked for both"] = (changed(t + 1e-3 * z, -1, -INF), changed(t, -1, -INF))
    pairs["first block masked for both"] = (
        np.where(first, -INF, t + 1e-3 * z),
        np.where(first, -INF, t),
    )
    pairs["a class masked for the student"] = (changed(t + 1e-3 * z, -1, -INF), t)
    pairs["the top class masked for the student"] = (changed(t + 1e-3 * z, high, -INF), t)
    pairs["an unlikely class 400 lower"] = (changed(t, low, -400), t)
    pairs["an unlikely class 40 lower"] = (changed(t + 1e-3 * z, low, -40), t)
    pairs["an unlikely class 400 higher"] = (changed(t + 1e-2 * z, low, 400), t)
    pairs["the top class 400 lower"] = (changed(t, high, -400), t)
    pairs["the top class 400 higher"] = (changed(t, high, 400), t)
    pairs["a finite mask"] = (changed(t, low, -1e9), t)
    half = np.arange(size) < size // 2
    pairs["hardly a class in common"] = (z - 60.0 * ~half, z[::-1] / 2 - 60.0 * half)
    pairs["little in common"] = (z - 15.0 * ~half, z[::-1] / 2 - 15.0 * half)
    pairs["KL about 2, teacher + 100"] = (t + 2 * z, t + 100)
    pairs["KL about 4, student - 50"] = (t + 3 * z - 50, t)
    pairs["a ramp"] = (t + np.linspace(-1, 1, size), t)
    pairs["tiny student"] = (1e-8 * z, np.full(size, 100.0))
    pairs["ties in rounding"] = (3.8147e-6 * (1 + 1e-3 * z), np.full(size, 100.0))
    pairs["few values"] = (np.round(4 * (t + z)) / 4, np.round(4 * t) / 4)
    pairs["one unit in the last place"] = (t, np.float32(changed(t, low, 7.63e-6) + 100))
    smooth = np.full(size, 0.1)
    pairs["label smoothing"] = (changed(smooth, 0, 10.2) + 1e-2 * z, changed(smooth, 0, 11.2))
    pairs["two values"] = (changed(smooth, 0, 5.3), changed(smooth, 0, 8.4))
    return pairs


def long_rows(size):
    """Pairs for large vocabularies: what blocks of classes, and their order, can do to a sum."""
    random = np.random.default_rng(size)
    t, z = 3 * random.normal(size=size), random.normal(size=size)
    place = np.arange(size)
    first, one = place < size // 3, place == 7
    sure, zipf = 12 * (place == 99), -1.1 * np.log(1 + place)
    return {
        "1": (t + z, t),
        "1e-7": (t + 1e-7 * z, t),
        "smooth": (np.where(one, 12.3, 0.1) - 1e-2 * z, 1.0 * one),
        "tempered": (t / 1.3, t),
        "hardly tempered": (t / 1.001, t),
        "sure of a class": (t + 0.1 * z + sure, t + sure),
        "Zipf": (zipf + 0.05 * z, zipf),
        "equal weights": (0.3 * np.sign(z) + 0.1, np.full(size, 0.7)),
        "far from 0": (t + 1e-4 * z - 90, t),
        "a far class": (t + 5 * (t == t.min()), t),
        "t + 8, rounded": (t + 8, t),
        "first block masked for the teacher": (t + z, np.where(first, -INF, t)),
        "teacher underflows under the student": (t + 900 * first, t - 1000 * first),
        "the last block 20 higher": (t + z, t + 20 * (place > size - 900)),
        "first block negligible": (t + 1e-2 * z - 130 * first, t - 130 * first),
        "scale 20": (20 * z, 20 * z + t),
        "sorted": (np.sort(t) + 1e-3 * z, np.sort(t) + 100),
        "a ramp": (t + np.linspace(-1, 1, size), t),
        "1e-3": (t + 1e-3 * z, t + 100),
    }


def _row(size, **changed):
    row = np.zeros(size)
    for place, value in changed.items():
        row[int(place[1:])] = value
    return row


def _nearly_good():
    """Rows on which a guess of the pivot is nearly good enough, or the shift is large: float32."""
    bits = float.fromhex
    t = _row(3000, _2500=21, _2501=21 + np.log(0.001)) - 5
    yield "a class against the bulk", t - _row(3000, _2500=-0.22, _2501=7.4), t, None
    t = _row(128, _70=9.179975509643555, _71=4.07564115524292) - 5.0 * (np.arange(128) > 71)
    yield "a class against the bulk, again", t - _row(128, _70=-0.25, _71=7.425), t, None
    t = _row(16, _0=bits("0x1.cc54dep+2"))
    s = _row(16, _0=bits("0x1.a3b1a0p+2"), _1=bits("-0x1.4519f4p-1"), _2=bits("-0x1.4519f4p-1"))
    yield "terms that cancel", s, t, 0.5
    t = _row(16, _0=bits("0x1.bc155ep+2"))
    yield "aside", _row(16, _0=bits("0x1.4cdd18p+3"), _1=bits("0x1.bb49a8p+1")), t, 0.99
    t, z = 3 * np.random.default_rng(7).normal(size=(2, 100))
    yield "far apart", z - 2e5, t + 1e5, None


NEARLY_GOOD = {
    name: (s.astype("float32"), t.astype("float32"), beta) for name, s, t, beta in _nearly_good()
}


@cache
def batch(size, dtype):
    """Names of the families, and their logits as rows."""
    pairs = families(size)
    s, t = (np.stack([pair[i] for pair in pairs.values()]).astype(dtype) for i in (0, 1))
    return list(pairs), s, t


@cache
def truths(size, dtype, temperature=1.0, beta=None):
    _, s, t = batch(size, dtype)
    return _by_row(truth(s, t, temperature=temperature, beta=beta))


def _by_row(found):
    return [Truth(*row) for row in zip(*found, strict=True)]


INDUCTOR = {"realize_opcount_threshold": 4, "realize_reads_threshold": 1}
"""Options of torch's compiler: what is used twice is computed once, in a third of the time.

The loops are the same but for that; by default it writes long expressions out wherever they are
used, and compiles each copy.
"""


def value_error(found, true, dtype):
    """Relative error; infinite where only the truth is not finite, or is exactly zero."""
    found = float(found)
    if not np.isfinite(true) or true == 0:
        return 0.0 if found == true or (np.isnan(found) and np.isnan(true)) else INF
    if not np.isfinite(found) or found < 0:
        return INF
    return float(abs(found - true) / max(true, np.finfo(dtype).tiny))


def gradient_error(found, true, dtype):
    """‖g − g*‖₁ relative to ‖g*‖₁, or to the smallest normal numbers."""
    found = found.astype(np.float64)
    if not np.isfinite(true).all():
        return 0.0 if (np.isnan(found) == np.isnan(true)).all() else INF
    scale = max(abs(true).sum(), len(true) * np.finfo(dtype).tiny)
    error = float(abs(found - true).sum() / scale)
    return error if error == error else INF


def assert_right(names, results, expected, dtype):
    """Assert value and gradients of every row, and name all the rows that are wrong."""
    expected = _by_row(expected) if isinstance(expected, Truth) else expected
    wrong = {}
    for i, (name, true) in enumerate(zip(names, expected, strict=True)):
        found = [result[i] for result in results]
        errors = (
            value_error(found[0], true.value, dtype),
            gradient_error(found[1], true.grad_input, dtype),
            gradient_error(found[2], true.grad_target, dtype),
        )
        if not max(errors) <= TARGET[dtype]:
            wrong[name] = errors
    assert wrong == {}


def rows_and_gradients(loss, s, t, **options):
    """The divergence of every row, and both gradients of their sum, as the library gives them."""
    total = kldiv.value_and_grad(partial(loss, reduction="sum", **options), argnums=(0, 1))
    return loss(s, t, reduction="none", **options), *total(s, t)[1]


def dtypes(lib):
    """The dtypes of a library that have a target."""
    return [dtype for dtype in lib.floats if dtype in TARGET]
