"""What every technology must compute: the truth, however near or far, and what the formulas say."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
from f_divergences import RECORDS, condition, of_row, wrong_rows
from f_divergences import exact as of_definition
from kernels.conformance import AVAILABLE, FLOATS, HALVES, TECHNOLOGIES, each, formulas, kind
from libraries import demanded, unit
from logit_families import (
    NEARLY_GOOD,
    TARGET,
    assert_right,
    batch,
    gradient_error,
    long_rows,
    truths,
    value_error,
)
from reference import doubles, exact, losses, truth

import kldiv
from kldiv.formulas.divergences import JensenShannon, KullbackLeibler
from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss
from kldiv.formulas.rows import RowLoss

BETAS = [None, 0.3]
REDUCTIONS = ["none", "mean", "batchmean", "sum"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[
                *each.marks(),
                *([pytest.mark.skip(reason=f"{name}: {each.problem()}")]
                  if each.problem() and each.library.value not in demanded() else []),
            ],
        )
        for name, each in TECHNOLOGIES.items()
    ],
)  # fmt: skip
def test_it_runs_here(name):
    assert name in AVAILABLE, TECHNOLOGIES[name].problem()


def of_rows(dtype="float32", beta=None, reduction="none", temperature=1.0, result=None):
    wide = "float64" if "float64" in {dtype, result} else "float32"
    divergence = KullbackLeibler() if beta is None else JensenShannon(beta)
    return RowLoss(reduction, wide, wide, result or dtype, divergence, temperature)


def pointwise(dtype="float32", reduction="none", *, log_target=False, result=None):
    result = result or dtype
    function = KLLogTarget() if log_target else KL()
    return PointwiseLoss(reduction, result, result, result, function)


def logits(shape, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    t = 3 * random.normal(size=shape)
    return (t + random.normal(size=shape)).astype(kind(dtype)), t.astype(kind(dtype))


def probabilities(shape, dtype="float32", *, log_target=False):
    random = np.random.default_rng(1)
    x, y = np.log(random.random(shape) + 1e-9), random.random(shape)
    y.flat[::7] = 0
    if log_target:
        y = np.log(y + 1e-3)
    x, y = x.astype(kind(dtype)), y.astype(kind(dtype))
    x.flat[:3], y.flat[:3] = -np.inf, [-np.inf if log_target else 0, 0.5, 0]
    return x, y


OPERATIONS = {
    "kl_div": (pointwise(reduction="sum"), probabilities),
    "log_target": (
        pointwise(reduction="sum", log_target=True),
        functools.partial(probabilities, log_target=True),
    ),
    "elements": (pointwise(), probabilities),
    "KL": (of_rows(reduction="mean"), logits),
    "JS": (of_rows(beta=0.3), logits),
}


def of_operations(technology):
    return list(OPERATIONS) if technology.pointwise else ["KL"]


def of_the_others(technology):
    return [] if technology.pointwise else ["JS"]


def assert_agree(found, wanted, dtype, result=None):
    """Within 16 units, or of what may cancel, such as log y − x, in those of the largest."""
    wanted = map(np.asarray, (wanted[0], *wanted[1]))
    for index, (a, b) in enumerate(zip((found[0], *found[1]), wanted, strict=True)):
        assert a.shape == b.shape
        name = dtype if index or result is None else result
        scale = abs(b[np.isfinite(b)]).max(initial=0)
        floor = 1e-7 if name == "float16" else 0
        tolerance = 16 * unit(name)
        atol = tolerance * scale + floor
        np.testing.assert_allclose(a.astype("f8"), b, rtol=tolerance, atol=atol)


# --- elementary functions -------------------------------------------------------------------------


def arguments(name, dtype):
    """All exponents alike, and where the result is small."""
    random = np.random.default_rng(1)
    steps = random.normal(size=20_000) * 10.0 ** random.integers(-8, 1, 20_000)
    edges = [0, -0.0, np.inf, -np.inf, np.nan]
    if name == "log":
        bits = {"float32": np.int32, "float64": np.int64}[dtype]
        top = int(np.array(np.inf, dtype).view(bits))
        found = random.integers(0, top + 1, 100_000).astype(bits).view(dtype)
        more = [*(1 + steps[steps > -1]), *edges, -1]
    else:
        low, high = {"float32": (-104.5, 89.5), "float64": (-746.5, 710.5)}[dtype]
        found = random.uniform(low, high, 100_000).astype(dtype)
        more = [*steps, *edges, 1e300, -1e300, 5e-324]
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([found, np.array(more).astype(dtype)])


@each(
    "function dtype",
    lambda technology: [(name, dtype) for name in technology.functions for dtype in FLOATS],
)
def test_functions_are_right_to_an_ulp(technology, function, dtype):
    x = arguments(function, dtype)
    found = technology.function(function, x)
    with np.errstate(all="ignore"):
        true = getattr(doubles, function)(x.astype(np.float64))
        plain = getattr(np, function)(x.astype(np.float64)).astype(dtype)
        inside = np.isfinite(plain) & (abs(plain.astype(np.float64)) > 1e-300)
        np.testing.assert_array_equal(found[~np.isfinite(plain)], plain[~np.isfinite(plain)])
        ulp = np.spacing(abs(plain)).astype(np.float64)
        error = abs((found - true.high) - true.low) / ulp
        small = np.isfinite(plain) & ~inside
        assert (abs(found - plain)[small] <= 2 * ulp[small]).all()
    assert error[inside].max() <= (1 if function == "log" else 1.2)


SERIES = {
    "phi_near": lambda x: mpmath.expm1(-x) + x,
    "log1p_near": lambda y: y - mpmath.log1p(y),
}


@each(
    "function dtype",
    lambda technology: (
        [(name, dtype) for name in SERIES for dtype in FLOATS] if technology.functions else []
    ),
)
def test_series_are_right_to_a_few_ulps_up_to_their_ends(technology, function, dtype):
    low, high = (-0.5, 1) if function == "log1p_near" else (-technology.near, technology.near)
    x = np.linspace(low, high, 300).astype(dtype)
    found = technology.function(function, x)
    with mpmath.workdps(60):
        true = [SERIES[function](mpmath.mpf(float(a))) for a in x]
        errors = [abs(mpmath.mpf(float(a)) / b - 1) for a, b in zip(found, true, strict=True)]
    assert max(errors) <= 5 * unit(dtype)


# --- rows against the truth -----------------------------------------------------------------------


@each(
    "size dtype temperature",
    [(3, "float32", 1.0), (3, "float64", 0.7), (3, "float32", None), (100, "float32", 3.3)],
    more=[
        *((3, dtype, T) for dtype in FLOATS for T in (0.7, 3.3)),
        *((100, "float32", T) for T in (1.0, 0.7)),
        (3, "float64", 1.0),
        (100, "float64", 1.0),
    ],
)
def test_kl_of_logits_is_exact(technology, size, dtype, temperature):
    rows = technology.some(size, dtype, temperature)
    names, s, t = (each[rows] for each in batch(size, dtype))
    if temperature is None:
        warm = np.resize(np.array([0.1, 0.7, 1, 2, 3.3, 50], "float32"), len(names))
        value, gradients = technology.run(of_rows(dtype, temperature=None), s, t, warm)
        expected = truth(s, t, temperature=warm.astype("float64"))
    else:
        value, gradients = technology.run(of_rows(dtype, temperature=temperature), s, t)
        expected = truths(size, dtype, temperature)[rows]
    assert_right(names, (value, *gradients), expected, dtype)


@each(
    "size dtype beta",
    [(3, "float32", 0.01), (3, "float64", 0.99), (100, "float32", 0.6)],
    more=[
        *((3, dtype, beta) for dtype in FLOATS for beta in (0.01, 0.5, 0.99)),
        *((100, "float32", beta) for beta in (0.01, 0.5, 0.99)),
        (100, "float64", 0.01),
    ],
)
def test_js_of_logits_is_exact(technology, size, dtype, beta):
    rows = technology.some(size, dtype, beta)
    names, s, t = (each[rows] for each in batch(size, dtype))
    value, gradients = technology.run(of_rows(dtype, beta), s, t)
    assert_right(names, (value, *gradients), truths(size, dtype, 1.0, beta)[rows], dtype)


def apart(technology):
    return technology.apart


def of_record(name, technology, s, t, *rest, dtype="float32", **settings):
    """Value and gradients of a record, of which the equal divergence may take (t, s)."""
    divergence, exchanged = RECORDS[name].canonical()
    operation = replace(of_rows(dtype, **settings), divergence=divergence)
    pair = (t, s) if exchanged else (s, t)
    value, gradients = technology.run(operation, *pair, *rest)
    return value, gradients[::-1] if exchanged else gradients


@each(
    "size dtype name",
    [
        *((12, "float32", name) for name in ("TV", "Hellinger", "mixture", "Jeffreys", "chi2")),
        *((12, "float64", name) for name in ("Hellinger", "skew", "alpha")),
    ],
    more=[
        *((12, "float64", name) for name in ("TV", "mixture", "Jeffreys", "chi2")),
        *((12, "float32", name) for name in ("skew", "alpha")),
        *(
            (12, dtype, name)
            for dtype in FLOATS
            for name in ("skew, reverse", "Jeffreys, weighed", "reverse KL")
        ),
    ],
    only=apart,
)
def test_divergences_are_exact(technology, size, dtype, name):
    rows = technology.some(dtype, name)
    _, s, t = (each[rows] for each in batch(size, dtype))
    value, gradients = of_record(name, technology, s, t, dtype=dtype)
    assert wrong_rows(name, size, dtype, (value, *gradients), rows) == {}


@each(
    "name",
    ["TV", "mixture", "Jeffreys, weighed"],
    more=["Hellinger", "skew", "Jeffreys", "chi2", "alpha"],
    only=apart,
)
def test_divergences_of_many_classes_with_masks_and_temperatures(technology, name):
    s, t = logits((4, 1030))
    s[0, 3] = t[1, 5] = s[2, 7] = t[2, 7] = -np.inf
    s[3] = t[3]
    keep = np.array([True, True, True, True, False])
    s, t = (np.concatenate([each, np.full_like(each[:1], np.nan)]) for each in (s, t))
    warm = np.array([0.4, 1.0, 3.0, 1.0, 1.0], "float32")
    settings = {"temperature": None, "reduction": "mean"}
    found = of_record(name, technology, s, t, warm, keep, **settings)
    _, exchanged = RECORDS[name].canonical()
    pair = (t, s) if exchanged else (s, t)
    operation = replace(of_rows(**settings), divergence=RECORDS[name].canonical()[0])
    value, gradients = formulas(operation, *pair, warm, keep)
    np.testing.assert_allclose(found[0], value, rtol=4 * unit("float32"))
    for one, other in zip(found[1], gradients[::-1] if exchanged else gradients, strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        error = abs(one - other).sum(axis=-1)
        assert (error <= 9 * unit("float32") * abs(other).sum(axis=-1))[~np.isnan(error)].all()


EDGES = np.stack(np.meshgrid(*[[-np.inf, 0.0, 1.0]] * 3, *[[-np.inf, 0.0, 1.5]] * 3), -1)
# No probability is the same on both sides but in equal rows: total variation has no slope there.
EDGES = EDGES.reshape(-1, 2, 3) + np.outer([0, 1], [0.0, 0.3, 0.7])
"""All pairs of a student and a teacher of three classes, which may be masked."""

AT_EDGES = {
    "float32": ("KL", "JS", "TV", "mixture", "Jeffreys"),
    "float64": ("Hellinger", "skew", "alpha", "chi2"),
}


SHARED_AT_EDGES = {("float64", "KL"), ("float32", "JS"), ("float64", "chi2")}


@each(
    "dtype name how",
    lambda technology: [
        (dtype, name, None)
        for dtype, names in AT_EDGES.items()
        for name in names
        if technology.apart or name == "KL"
    ],
    more=lambda technology: [
        (dtype, name, how)
        for dtype in FLOATS
        for name in (*AT_EDGES["float32"], *AT_EDGES["float64"], "Jeffreys, weighed")
        for how in (None, *technology.splits)
        if technology.apart or name in {"KL", "JS"}
        if (how is None and not technology.interpreted) or (dtype, name) in SHARED_AT_EDGES
    ],
)
def test_edges(technology, dtype, name, how, monkeypatch):
    """Masked classes, at any temperature, in rows that are left out and in shared ones too."""
    times = 1
    rows = EDGES[::7][technology.some(dtype, name)]
    if how is not None:
        technology.split(monkeypatch, how)
        rows, times = EDGES[::53][technology.some(dtype, how)], 200
    keep, warm = np.arange(len(rows)) % 5 != 3, np.resize([1.0, 0.25, 3.0], len(rows))
    s, t = (np.repeat(rows[:, side], times, axis=1).astype(dtype) for side in (0, 1))
    value, gradients = of_record(
        name, technology, s, t, warm.astype(dtype), keep, dtype=dtype, temperature=None
    )
    wrong = {}
    for k, (pair, T) in enumerate(zip(rows, warm, strict=True)):
        found = [each[k] for each in (value, *gradients)]
        if not keep[k]:
            right = not any(each.any() for each in found)
        elif not np.isfinite(pair).any(-1).all():
            right = all(np.isnan(each).all() for each in found)
        else:
            true = of_row(RECORDS[name], *pair, T)
            allowed = condition(RECORDS[name], *(pair / T), true)
            true = [true.value, *(np.repeat(each / times, times) for each in true[1:])]
            errors = [
                error(one, other, dtype) / most
                for error, one, other, most in zip(
                    (value_error, gradient_error, gradient_error), found, true, allowed, strict=True
                )
            ]
            right = max(errors) <= TARGET[dtype]
        if not right:
            wrong[str(pair), T] = found
    assert wrong == {}


@each("name", NEARLY_GOOD)
def test_guesses_that_are_nearly_good_enough(technology, name):
    s, t, beta = (part if k == 2 else part[None] for k, part in enumerate(NEARLY_GOOD[name]))
    value, gradients = technology.run(of_rows(beta=beta), s, t)
    assert_right([name], (value, *gradients), truth(s, t, beta=beta), "float32")


MANY = {
    False: [
        *((size, "float32", beta, 0) for size in (127, 128, 1000, 1025) for beta in BETAS),
        (1025, "float64", 0.4, 0),
        (32000, "float32", None, 2),
        (32000, "float64", 0.3, 1),
    ],
    True: [  # where both losses share out a row in the same way, one of them shows it
        *((size, "float32", BETAS[k % 2], 0) for k, size in enumerate((127, 128, 1000, 1025))),
        (1025, "float64", 0.4, 3),
        (9001, "float64", 0.3, 1),
    ],
}
"""How many classes, by whether the technology is interpreted."""


@functools.cache
def of_many_classes(size, dtype, beta, rows):
    pairs = long_rows(size)
    names = list(pairs)[-rows:] if rows else list(pairs)
    if beta is not None:
        names = [name for name in names if name != "teacher underflows under the student"]
    s, t = (np.stack([pairs[name][i] for name in names]).astype(dtype) for i in (0, 1))
    return names, s, t, truth(s, t, beta=beta)


@each(
    "size dtype beta rows",
    [
        (129, "float32", None, 0),
        (1000, "float64", 0.4, 3),
        (1025, "float32", 0.4, 3),  # beyond a tile of Triton's
        (1025, "float64", None, 3),
        (4099, "float64", None, 2),
    ],
    more=lambda technology: [
        *MANY[technology.interpreted],
        *((4099, dtype, None, 9) for dtype in FLOATS),
        (32000 if technology.interpreted else 151936, "float32", None, 1),
    ],
)
def test_many_classes_are_exact(technology, size, dtype, beta, rows):
    names, s, t, expected = of_many_classes(size, dtype, beta, rows)
    value, gradients = technology.run(of_rows(dtype, beta), s, t)
    assert_right(names, (value, *gradients), expected, dtype)


@each("size beta", [(1, None), (2, 0.3)], more=[(1, 0.3), (2, None)])
def test_one_and_two_classes(technology, size, beta):
    s, t = logits((5, size))
    value, gradients = technology.run(of_rows(beta=beta), s, t)
    if size == 1:
        assert not any(each.any() for each in (value, *gradients))
    assert_right(range(5), (value, *gradients), truth(s, t, beta=beta), "float32")


@each(
    "how beta every times",
    lambda technology: [(how, None, 16, 5) for how in technology.splits[-1:]],
    more=lambda technology: [
        *((how, BETAS[k % 2 - 1], 5, 11) for k, how in enumerate(technology.splits)),
        *(
            (how, beta, 1, 11)
            for how in technology.splits
            for beta in BETAS
            if not technology.interpreted
        ),
    ],
)
def test_any_sharing_of_rows_is_exact(technology, how, beta, every, times, monkeypatch):
    """Rows of many parts, whose parts are worked on together or not, stay within the targets."""
    names, s, t = (each[::every][technology.some("shares", how)] for each in batch(100, "float32"))
    s, t = (np.repeat(each, times, axis=1) for each in (s, t))
    technology.split(monkeypatch, how)
    value, gradients = technology.run(of_rows(beta=beta), s, t)
    assert_right(names, (value, *gradients), truth(s, t, beta=beta), "float32")


@each("dtype beta", [("float16", 0.3), ("bfloat16", None)])
def test_half_types_are_exact(technology, dtype, beta):
    s, t = logits((3, 1500), dtype, seed=5)
    value, gradients = technology.run(of_rows(beta=beta), s, t)
    assert [a.dtype for a in (value, *gradients)] == [np.float32, s.dtype, t.dtype]
    true = truth(s.astype("f8"), t.astype("f8"), beta=beta)
    for k in range(3):
        assert value_error(value[k], true.value[k], "float32") <= 1e-6
        for gradient, expected in zip(gradients, true[1:], strict=True):
            assert gradient_error(gradient[k], expected[k], "float16") <= 2 * unit(dtype)


@each()
def test_a_class_that_is_as_far_as_numbers_are(technology):
    """Sums over the classes that are that far from it overflow; the divergence is a number."""
    s, t = logits((2, 1500), seed=6) / np.float32(10)
    s[0, 3], s[1, 700] = 3e37, -3e37
    value, gradients = technology.run(of_rows(), s, t)
    assert_right(["high", "low"], (value, *gradients), truth(s, t), "float32")


MILD, OTHER = (0.5, -1.2, 0.3), (0.3, 1.7, -0.4)
FAR_AWAY = {  # rows of which one has a class that is far above all others, or is far below
    "no class of the other": ((*MILD, -math.inf), (*OTHER, 1)),
    "a class of the other": ((*MILD, -60.0), (*OTHER, 1)),
    "below": ((*MILD, -math.inf), (*OTHER, -1)),
    "of both, unlike": ((*MILD, 1), (1, *OTHER)),
    "beside a low row": ((-1, -1, -1, -math.inf), (*OTHER, 1)),
    "beside a high row": ((1, 1, 1, -math.inf), (*OTHER, 1)),
    "beside a row and low": ((1, 1, 1, -math.inf), (*OTHER, -1)),
    "the whole row": ((-1, -1, -1, -1), (*OTHER, -0.2)),
}
"""Pairs of rows of which an integer, ±1, stands for so many times what is far."""


@each(
    "dtype name",
    lambda technology: [
        ("float32", "KL"),
        *(("float64", name) for name in ("Jeffreys", "Hellinger") if technology.apart),
    ],
    more=lambda technology: [
        (dtype, name)
        for dtype in FLOATS
        for name in ("KL", "JS", "Jeffreys, weighed", "TV", "skew", "mixture")
        if technology.apart or name in {"KL", "JS"}
    ],
)
def test_classes_far_away_leave_the_others_their_digits(technology, dtype, name):
    """However far one class is, of either side each of the others keeps its own gradient."""
    cases = [(1.0, 1e13), (0.1, 3.3e17), (37.0, 1e30), *[(9.0, 3e38)] * technology.whole_range]
    for temperature, far in cases:
        pairs = [pair[::order] for pair in FAR_AWAY.values() for order in (1, -1)]
        rows = [
            [[far * x if isinstance(x, int) else x for x in row] for row in pair] for pair in pairs
        ]
        s, t = np.array(rows, dtype).swapaxes(0, 1)
        value, gradients = of_record(name, technology, s, t, dtype=dtype, temperature=temperature)
        for row, pair in enumerate(zip(s, t, strict=True)):
            true = of_definition(RECORDS[name], *pair, temperature)
            for found, one in zip((value, *gradients), true, strict=True):
                np.testing.assert_allclose(
                    found[row], one, 64 * unit(dtype), 1e8 * np.finfo(dtype).tiny, err_msg=str(pair)
                )


@each("beta cotangent", [(None, 1e-25)], more=[(0.3, 1e25)])
def test_gradients_of_any_size(technology, beta, cotangent):
    s, t = logits((1, 3000))
    t[0, 2500] += 21  # beyond the first tile
    s = t + np.float32(0.1) * s
    _, gradients = technology.run(of_rows(beta=beta), s, t, cotangent=np.full(1, cotangent, "f4"))
    for gradient, true in zip(gradients, truth(s, t, beta=beta)[1:], strict=True):
        assert gradient_error(gradient[0], true[0] * cotangent, "float32") <= 1e-6


MASKED_BY_A_NUMBER = {  # of p and a student whose other class is as low as can be
    "the largest": (1.0, 1.0),
    "over a low temperature": (0.3, 1e-9),
    "over a high one": (1.7, 1.0),
}


@each(
    "case beta",
    [("the largest", None)],
    more=lambda technology: [(case, beta) for case in MASKED_BY_A_NUMBER for beta in BETAS],
)
def test_a_class_that_the_largest_number_masks(technology, case, beta):
    """Neither its difference of logits nor that over T, which overflows, is cut."""
    temperature, p = MASKED_BY_A_NUMBER[case]
    t, s = (np.zeros((1, 40), np.float32) for _ in range(2))
    t[0, 7] = temperature * math.log(p)
    s[0, 7] = np.finfo(np.float32).min
    s[0, 9] = t[0, 9] = -np.inf
    found = technology.run(of_rows(beta=beta, temperature=temperature), s, t)
    expected = exact(
        s[0], t[0], temperature=temperature, **({} if beta is None else {"beta": beta})
    )
    assert abs(float(found[0][0]) - expected.value) <= 1e-6 * expected.value
    for gradient, numbers in zip(found[1], expected[1:], strict=True):
        true = np.array(numbers, float)
        assert abs(gradient[0] - true).sum() <= 1e-6 * abs(true).sum()


MASKED_ROWS = {  # the other row, and which of the two is −∞ where
    "many": (np.linspace(-1, 1, 37), {"both": slice(5, 6)}),
    "two": (np.array([0.36, -0.9]), {}),
    "the other row": (np.linspace(-1, 1, 37), {"other": 3}),
    "the same row": (np.linspace(-1, 1, 37), {"same": 3}),
}


@each(
    "row name",
    lambda technology: [
        *((row, name) for row in MASKED_ROWS for name in ("KL", "JS")),
        *(("two", name) for name in ("Jeffreys", "mixture") if technology.apart),
    ],
    more=lambda technology: [
        (row, name)
        for row in MASKED_ROWS
        for name in ("Jeffreys", "mixture", "TV", "Hellinger", "chi2")
        if technology.apart
    ],
)
def test_a_row_that_the_largest_number_masks(technology, row, name):
    """What is as low as can be is alike; what fills up a tile, or is −∞, has no part in it."""
    other, gone = MASKED_ROWS[row]
    s = other.astype(np.float32)[None]
    t = np.full_like(s, np.finfo(np.float32).min)
    for side, place in gone.items():
        for masked in {"other": [s], "same": [t], "both": [s, t]}[side]:
            masked[0, place] = -np.inf
    even = np.where(t > -np.inf, np.float32(0), t)
    for pair, alike in (((s, t), (s, even)), ((t, s), (even, s))):
        expected = of_definition(RECORDS[name], *(each[0] for each in alike))
        found = of_record(name, technology, *pair)
        results = [each[0] for each in (found[0], *found[1])]
        errors = value_error, gradient_error, gradient_error
        for error, result, true in zip(errors, results, expected, strict=True):
            assert error(result, true, "float32") <= 1e-6


# --- rows as the formulas say ---------------------------------------------------------------------


@each(
    "dtype beta reduction masked temperature",
    [
        ("float32", None, "none", True, None),
        ("float32", 0.3, "mean", True, 0.7),
        ("bfloat16", 0.3, "sum", False, 1.0),
        ("float16", None, "batchmean", True, 0.7),
        ("float64", 0.3, "none", True, None),
    ],
    more=[
        *(("float32", None, reduction, True, 1.0) for reduction in REDUCTIONS),
        ("float16", 0.3, "none", False, 1.0),
        ("bfloat16", None, "none", True, None),
    ],
)
def test_reductions_masks_and_temperatures(technology, dtype, beta, reduction, masked, temperature):
    s, t = logits((3, 3, 40), dtype)
    s[0, 0, :3], t[0, 0, 1:5], t[2, 0, :2] = -np.inf, -np.inf, -np.inf
    result = "float64" if dtype == "float64" else "float32"
    others = [np.array([0.5, 1, 3], result) * np.ones((3, 1), result)]
    others = others[: temperature is None]
    keep = np.arange(9).reshape(3, 3) % 4 != 2
    if masked:
        s[~keep] = np.nan
        others.append(keep)
    operation = of_rows(dtype, beta, reduction, temperature, result)
    cotangent = np.full((3, 3) if reduction == "none" else (), 0.75, result)
    found = technology.run(operation, s, t, *others, cotangent=cotangent)
    wanted = formulas(operation, s, t, *others, cotangent=cotangent)
    assert_agree(found, wanted, dtype, result)
    assert [a.dtype for a in (found[0], *found[1])] == [np.dtype(result), s.dtype, t.dtype]
    if masked:
        assert not any(gradient[~keep].any() for gradient in found[1])


LAYOUTS = {
    "transposed": lambda a: a.swapaxes(0, 1).swapaxes(0, 2),
    "every other": lambda a: a[:, :, ::2],
    "a part": lambda a: a[1:, :-1, 3:-1],
    "in four axes apart": lambda a: a.reshape(2, 3, 7, 60)[:, :, :-1, :-1].swapaxes(0, 2),
}


@each(
    "layout name",
    lambda technology: list(zip(LAYOUTS, [*of_operations(technology), "KL"], strict=False)),
    more=lambda technology: [
        (layout, name)
        for layout in LAYOUTS
        for name in of_operations(technology) + of_the_others(technology)
    ],
)
def test_any_layout(technology, layout, name):
    operation, make = OPERATIONS[name]
    arrays = make((6, 7, 60))
    arrays[0][arrays[0] == -np.inf] = -9
    changed = LAYOUTS[layout]
    found = technology.run(operation, *arrays, changed=changed)
    plain = [np.ascontiguousarray(changed(a)) for a in arrays]
    assert_agree(found, formulas(operation, *plain), "float32")


@each("beta size", [(None, 20), (0.3, 40)], more=[(None, 1100), (0.3, 1100)])
def test_rows_without_meaning(technology, beta, size):
    s, t = logits((9, size))
    s[0], t[1], s[2, 3], t[3, 4] = -np.inf, -np.inf, np.inf, np.nan
    s[4, 5], t[5, 6], s[6, 7], t[6, 7] = -np.inf, -np.inf, -np.inf, -np.inf
    t[7] = s[7] + 5
    value, gradients = technology.run(of_rows(beta=beta), s, t)
    np.testing.assert_array_equal(np.isnan(value), [True] * 4 + [False] * 5)
    assert np.isinf(value[4]) == (beta is None)
    assert_right(range(9), (value, *gradients), truth(s, t, beta=beta), "float32")


@each("name", of_operations, of_the_others)
def test_the_same_bits_every_time_and_nothing_modified(technology, name):
    operation, make = OPERATIONS[name]
    arrays = make((2, 1100))
    before = [a.tobytes() for a in arrays]
    first, second = (technology.run(operation, *arrays) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert [a.tobytes() for a in first[1]] == [a.tobytes() for a in second[1]]
    assert before == [a.tobytes() for a in arrays]


@each("name", of_operations, of_the_others)
def test_gradients_one_by_one(technology, name):
    operation, make = OPERATIONS[name]
    arrays = make((3, 40))
    value, both = technology.run(operation, *arrays)
    for wanted in ((0,), (1,), ()):
        one, found = technology.run(operation, *arrays, gradients=wanted)
        assert_agree((one, found), (value, [both[k] for k in wanted]), "float32")


DIFFERENTIATED = {
    "kl_div": kldiv.kl_div,
    "KL": kldiv.kl_div_with_logits,
    "JS": functools.partial(kldiv.js_div_with_logits, beta=0.3),
    "KL, T": lambda s, t, T: kldiv.kl_div_with_logits(s, t, temperature=T),
    "JS, T": lambda s, t, T: kldiv.js_div_with_logits(s, t, beta=0.3, temperature=T),
}


@each("name", list(DIFFERENTIATED)[:4], more=["JS, T"], only=lambda technology: technology.autograd)
def test_second_order_and_temperatures_are_left_to_the_formulas(technology, name):
    x, y = np.random.default_rng(2).normal(size=(2, 3, 50))
    arrays = [x, np.exp(y) if name == "kl_div" else y]
    arrays += [np.array([0.5, 1.0, 3.0])] * name.endswith("T")
    wanted = range(len(arrays))
    found = technology.derivatives(DIFFERENTIATED[name], *arrays, wanted=wanted)
    with kldiv.config_context(kernel="pure"):
        expected = technology.derivatives(DIFFERENTIATED[name], *arrays, wanted=wanted)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * abs(b).max())


# --- elements -------------------------------------------------------------------------------------

MASKS = {
    "none": lambda shape: [],
    "rows": lambda shape: [(np.arange(shape[-2]) != 2)[:, None]],
    "elements": lambda shape: [np.random.default_rng(3).random(shape) < 0.8],
}


@each(
    "dtype mask log_target reduction",
    [
        ("float32", "none", False, "none"),
        ("float64", "rows", True, "mean"),
        ("float16", "elements", False, "batchmean"),
        ("bfloat16", "elements", True, "sum"),
    ],
    more=[
        ("float64", "elements", False, "none"),
        ("float32", "elements", True, "none"),
        ("float16", "none", True, "none"),
        ("bfloat16", "rows", False, "none"),
        *(("float32", "rows", False, reduction) for reduction in REDUCTIONS),
    ],
    only=lambda technology: technology.pointwise,
)
def test_kl_div_agrees_with_the_formulas(technology, dtype, mask, log_target, reduction):
    x, y = probabilities((4, 3, 90), dtype, log_target=log_target)
    others = MASKS[mask](x.shape)
    result = "float32" if dtype in HALVES else dtype
    operation = pointwise(dtype, reduction, log_target=log_target, result=result)
    cotangent = np.full(x.shape if reduction == "none" else (), 0.75, result)
    found = technology.run(operation, x, y, *others, cotangent=cotangent)
    wanted = formulas(operation, x, y, *others, cotangent=cotangent)
    assert_agree(found, wanted, dtype, result)
    assert [a.dtype for a in (found[0], *found[1])] == [np.dtype(result), x.dtype, y.dtype]


@each(
    "dtype log_target",
    [(dtype, log_target) for dtype in FLOATS for log_target in (False, True)],
    only=lambda technology: technology.pointwise,
)
def test_elements_are_right_to_four_units(technology, dtype, log_target):
    x, y = probabilities((9, 1001), dtype, log_target=log_target)
    settings = {"log_target": log_target}
    found, _ = technology.run(pointwise(dtype, **settings), x, y, gradients=())
    x, y = x[1:], y[1:]
    total, _ = technology.run(pointwise(dtype, "sum", **settings), x, y, gradients=())
    p, true = losses.terms(x.astype("f8"), y.astype("f8"), **settings)
    log = y if log_target else np.log(np.where(y > 0, y, 1))
    limit = (6 if log_target else 4) * unit(dtype) * p.high * (abs(log) + abs(x))
    error = abs((found[1:] - true.high) - true.low)
    assert (error <= limit + np.finfo(dtype).tiny).all()
    wanted = losses.kl_div(x.astype("f8"), y.astype("f8"), **settings).value
    assert abs(total - wanted) <= 4 * unit(dtype) * abs(wanted)
