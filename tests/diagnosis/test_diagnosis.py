"""`diagnose` names every common mistake, counts right, and keeps quiet about correct data."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import Library, require

import kldiv
from kldiv.diagnosis import Diagnosis, Finding, diagnose, walking
from kldiv.errors import DTypeError, LibraryError, ShapeError

LETTERS = Path(__file__).parents[2] / "examples/letters"


def log_softmax(logits, axis=-1):
    shifted = logits - np.max(logits, axis=axis, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def softmax(logits, axis=-1):
    return np.exp(log_softmax(logits, axis))


def codes(found, *severities):
    return [f.code for f in found.findings if f.severity in (severities or ("error", "warning"))]


def finding(found, code):
    (one,) = [f for f in found.findings if f.code == code]
    return one


_rng = np.random.default_rng(2)
STUDENT, TEACHER = 2 * _rng.normal(size=(8, 10)), 2 * _rng.normal(size=(8, 10))
X, T = log_softmax(STUDENT), softmax(TEACHER)
ONE_HOT = np.eye(10)[[3, 1, 4, 1, 5, 9, 2, 6]]
WIDE = log_softmax(np.tile(STUDENT, 1000))
WIDE_ONE_HOT = np.eye(8, 10_000)


def put(array, *places):
    array = array.copy()
    for index, value in places:
        array[index] = value
    return array


NEGATIVE = put(T, ((3, 4), -0.1), ((3, 5), T[3, 5] + T[3, 4] + 0.1))

with np.errstate(all="ignore"):
    # The codes that are errors or warnings: the mistakes by name, as input, target and log_target.
    MISTAKES_BY_CODES = {
        "probabilities-as-input": {
            "no log": (np.exp(X), T),
            "no log, log target": (np.exp(X), np.log(T), True),
            "sigmoid": (1 / (1 + np.exp(-STUDENT)), T),
        },
        "wrong-axis probabilities-as-input": {
            "no log, no softmax over the right axis": (softmax(STUDENT, 0), T),
        },
        "logits-as-input": {
            "logits": (STUDENT, T),
            "negative logits": (-1 - np.abs(STUDENT), T),
            "counts as input": (np.round(T * 100), T),
        },
        "log-of-log-probabilities": {"log twice": (np.log(X), T)},
        "wrong-axis": {
            "log_softmax over the wrong axis": (log_softmax(STUDENT, 0), T),
            "softmax over the wrong axis": (X, softmax(TEACHER, 0)),
            "softmax over everything": (X, softmax(TEACHER.ravel()).reshape(8, 10)),
        },
        "wrong-axis wrong-axis": {
            "both over the wrong axis": (log_softmax(STUDENT, 0), softmax(TEACHER, 0)),
        },
        "log-probabilities-as-target": {"log target": (X, np.log(T))},
        "probabilities-as-log-target": {"target without log": (X, T, True)},
        "logits-as-target": {
            "target logits": (X, TEACHER),
            "target logits for log P": (X, TEACHER, True),
        },
        "arguments-swapped": {"swapped": (T, X)},
        "probabilities-as-input probabilities-as-log-target": {
            "no logs at all": (np.exp(X), T, True),
        },
        "zeros-in-q row-sums": {"zeros in Q": (put(X, ((2, 3), -np.inf)), T)},
        "zeros-in-q": {"one-hot Q": (np.log(ONE_HOT), T)},
        "probabilities-as-input zeros-in-q": {"zeros in Q, no log": (ONE_HOT, T)},
        "clipped": {
            "Q clipped": (np.log(np.clip(ONE_HOT, 1e-8, 1)), T),
            "Q clipped in one place": (np.log([[0.6, 0.4, 1e-8]]), np.array([[0.5, 0.4, 0.1]])),
            "Q clipped and normalised again": (np.log((ONE_HOT + 1e-6) / (1 + 1e-5)), T),
            "Q plus a little": (np.log(ONE_HOT + 1e-7), T),
            "Q clamped at epsilon": (np.log(np.maximum(ONE_HOT, 2.0**-23)), T),
            "log Q clamped": (np.maximum(np.log(ONE_HOT), -100.0), T),
            "log Q filled": (np.where(ONE_HOT > 0, 0.0, -1e9), T),
            "P clipped": (WIDE, np.clip(WIDE_ONE_HOT, 1e-6, 1)),
        },
        "nan": {
            "NaN in input": (put(X, ((5, 1), np.nan), ((2, 3), np.nan)), T),
            "NaN in target": (X, put(T, ((5, 1), np.nan), ((2, 3), np.nan))),
            "NaN rows in target": (X, put(T, (slice(1, 7), np.nan))),
        },
        "row-sums": {
            "unnormalised rows": (X, put(T, (2, 1.3 * T[2]), (5, 0.0))),
            "counts": (X, np.round(T * 100)),
            "log-probabilities that lost mass": (X - 0.5, T),
            "log-probabilities that won mass": (X + 0.04, T),
        },
        "negative-probabilities": {"negative probability": (X, NEGATIVE)},
        "negative-probabilities row-sums": {
            "noise below zero": (X, put(0.9 * T, ((0, 0), -1e-9))),
        },
        "infinite": {
            "infinite P": (X, put(T, ((3, 4), np.inf))),
            "infinite log Q": (put(X, ((3, 4), np.inf)), T),
        },
    }
MISTAKES = {
    name: (x, t, bool(log_target), found.split())
    for found, cases in MISTAKES_BY_CODES.items()
    for name, (x, t, *log_target) in cases.items()
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named_by_its_code(lib, mistake):
    x, t, log_target, expected = MISTAKES[mistake]
    found = diagnose(lib.array(x), lib.array(t), log_target=log_target)
    assert found
    assert sorted(codes(found)) == sorted(expected)
    assert all(f.message and f.mend for f in found.findings)


def test_correct_data_is_quiet_on_every_library(lib):
    for dtype in lib.floats:
        x, t = lib.array(X, dtype), lib.array(T, dtype)
        for found in (
            diagnose(x, t),
            diagnose(x, lib.array(log_softmax(TEACHER), dtype), log_target=True),
            diagnose(x, lib.array(ONE_HOT, dtype)),
        ):
            assert not found
            assert codes(found, "note") == ["mean-over-elements"]
            assert found.input == "log-probabilities"


def test_every_severity_has_its_meaning():
    found = diagnose(X, T)
    assert (bool(found), codes(found, "note")) == (False, ["mean-over-elements"])
    assert bool(diagnose(X, put(T, (5, 0.0))))
    assert {f.severity for f in diagnose(X, put(T, (5, 0.0))).findings} == {"warning", "note"}
    found = diagnose(STUDENT, put(T, (5, 0.0)))
    assert [f.severity for f in found.findings] == ["error", "warning", "note"]


# ---- correct data --------------------------------------------------------------------------------


@st.composite
def correct_arguments(draw):
    shape = [*draw(st.lists(st.integers(1, 4), max_size=2)), draw(st.integers(1, 40))]
    axis = draw(st.integers(0, len(shape) - 1))
    shape[axis], shape[-1] = shape[-1], shape[axis]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0]))
    x = log_softmax(scale * rng.normal(size=shape), axis)
    kept = rng.random(size=shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    logits = np.where(kept, scale * rng.normal(size=shape), -np.inf)
    np.put_along_axis(logits, rng.integers(shape[axis], size=[1] * len(shape)), 0.0, axis)
    logits = np.where(np.any(np.isfinite(logits), axis=axis, keepdims=True), logits, 0.0)
    with np.errstate(all="ignore"):
        log_p = log_softmax(logits, axis)
    log_target = draw(st.booleans())
    dtypes = [draw(st.sampled_from(["float16", "float32", "float64"])) for _ in "xt"]
    # Float32 results held in float64 are common, and no mistake.
    middle = draw(st.sampled_from(["float32", "float64"]))
    t = (log_p if log_target else np.exp(log_p)).astype(middle)
    return x.astype(middle).astype(dtypes[0]), t.astype(dtypes[1]), axis, log_target


@given(correct_arguments())
@settings(deadline=None, derandomize=True, database=None)
def test_correct_data_gives_no_warning(arguments):
    x, t, axis, log_target = arguments
    found = diagnose(x, t, axis=axis, log_target=log_target)
    assert not found, str(found)
    assert found.input == "log-probabilities"
    assert found.target == ("log-probabilities" if log_target else "probabilities")


@pytest.mark.parametrize("library", [Library.TORCH, Library.JAX])
@pytest.mark.parametrize("classes", [2, 1000, 50257])
def test_softmax_of_a_library_in_its_own_dtypes_gives_no_warning(library, classes):
    require(library)
    if library is Library.TORCH:
        from torch import log_softmax as library_log_softmax
        from torch import softmax as library_softmax
    else:
        from jax.nn import log_softmax as library_log_softmax
        from jax.nn import softmax as library_softmax
    rng = np.random.default_rng(0)
    for dtype in library.floats:
        for scale in (0.1, 4.0, 30.0):
            x, t = (library.array(scale * rng.normal(size=(4, classes)), dtype) for _ in "xt")
            found = diagnose(library_log_softmax(x, -1), library_softmax(t, -1))
            assert not found, f"{dtype}, scale {scale}: {found}"


def letters(language):
    with (LETTERS / f"{language}.csv").open(encoding="utf-8", newline="") as file:
        counts = np.asarray([float(row["count"]) for row in csv.DictReader(file)])
    return counts / counts.sum()


MEANT = {
    "one-hot target": (X, ONE_HOT),
    "identical": (np.log(T), T),
    "label smoothing over a large vocabulary": (
        np.full((2, 100_000), -math.log(100_000)),
        np.where(np.arange(100_000) == [[3], [5]], 0.9 + 1e-6, 1e-6),
    ),
    "relative frequencies": (np.log(letters("german") / 2 + 1 / 96), letters("english")),
    "frequencies of ten million words": (
        np.full((1, 2000), -math.log(2000)),
        np.asarray([[1e7 - 2999, *[1.0] * 999, *[2.0] * 1000]]) / 1e7,
    ),
    "frequencies of a million words against another text's": (
        np.log(np.asarray([[1e6 - 4500, *[2.0] * 1500, *[1.0] * 1500]]) / 1e6),
        np.asarray([[1e6 - 4500, *[1.0] * 1500, *[2.0] * 1500]]) / 1e6,
    ),
    "a small probability beside zeros": (
        np.asarray([[*np.log([0.6, 0.4, 1e-8]), -np.inf]]),
        np.asarray([[0.5, 0.4, 0.1, 0.0]]),
    ),
    "classes masked by −inf": (np.where(ONE_HOT > 0, 0.0, -np.inf), ONE_HOT),
    "classes masked by a large number": (np.where(ONE_HOT > 0, 0.0, -1e9), ONE_HOT),
    "rounded to four decimals": (X, np.round(T, 4)),
    "one class": (np.zeros((5, 1)), np.ones((5, 1))),
    "one distribution": (X[0], T[0]),
    "three dimensions": (X.reshape(2, 4, 10), T.reshape(2, 4, 10)),
    "a number": (X[0, 0], T[0, 0]),
    "no rows": (X[:0], T[:0]),
    "no classes": (X[:, :0], T[:, :0]),
}


@pytest.mark.parametrize("case", MEANT)
def test_what_is_meant_gives_no_warning(case):
    found = diagnose(*MEANT[case])
    assert not found, str(found)


def test_little_rounding_is_a_note_and_more_is_a_warning():
    assert codes(diagnose(X, T * 1.00005), "note") == ["mean-over-elements"]
    assert codes(diagnose(X, T * 1.005), "note") == ["row-sums", "mean-over-elements"]
    assert codes(diagnose(X, T * 1.02)) == ["row-sums"]
    # What bfloat16 leaves when it is widened again.
    torch = pytest.importorskip("torch")
    x, t = (torch.from_numpy(a).bfloat16() for a in (X, T))
    assert codes(diagnose(x, t), "note") == ["mean-over-elements"]
    assert not diagnose(x.float(), t.float())


# ---- the numbers in the messages -----------------------------------------------------------------


def test_nan_is_counted_and_placed(lib):
    t = put(T, ((5, 1), np.nan), ((2, 3), np.nan), ((2, 7), np.nan))
    message = finding(diagnose(lib.array(X), lib.array(t)), "nan").message
    assert "target holds 3 NaN among 80 entries, first at [2, 3]" in message


def test_zeros_in_q_say_where_and_how_much_mass(lib):
    x = put(X, ((2, 3), -np.inf), ((6, 0), -np.inf), ((6, 1), -np.inf))
    t = put(ONE_HOT, (2, T[2]))  # in row 6 only class 2 has mass
    message = finding(diagnose(lib.array(x), lib.array(t)), "zeros-in-q").message
    assert "1 entry" in message
    assert "first at [2, 3]" in message
    assert f"{T[2, 3] / 8:.4g} of P's mass" in message


def test_row_sums_name_the_worst_row_and_the_empty_ones(lib):
    t = put(T, (2, 1.3 * T[2]), (5, 0.0))
    message = finding(diagnose(lib.array(X), lib.array(t)), "row-sums").message
    assert "2 of 8 rows of target do not sum to 1" in message
    assert "the worst is [5, :], which sums to 0; 1 has no mass at all" in message
    message = finding(diagnose(X, put(T, (2, 1.3 * T[2]))), "row-sums").message
    assert "1 of 8 rows of target does not sum to 1; the worst is [2, :], which sums to 1.3" in (
        message
    )
    message = finding(diagnose(X.T, put(T, (2, 1.3 * T[2])).T, axis=0), "row-sums").message
    assert "the worst is [:, 2]" in message


def test_logits_are_told_with_what_they_sum_to():
    message = finding(diagnose(STUDENT, T), "logits-as-input").message
    middle = np.median(np.sum(np.exp(STUDENT), axis=-1))
    assert f"from {STUDENT.min():.4g} to {STUDENT.max():.4g}" in message
    assert f"exp of a row sums to {middle:.4g}" in message
    message = finding(diagnose(put(STUDENT, ((0, 0), np.nan)), T), "logits-as-input").message
    assert "nan" not in message
    message = finding(
        diagnose(put(STUDENT, ((slice(None), 0), np.nan)), T), "logits-as-input"
    ).message
    assert "sums" not in message


def test_negative_probabilities_and_infinities_are_counted_and_placed():
    message = finding(diagnose(X, NEGATIVE), "negative-probabilities").message
    assert "1 negative probability, first at [3, 4], least -0.1" in message
    t = put(T, ((3, 4), np.inf), ((7, 9), np.inf))
    assert "2 +inf, first at [3, 4]" in finding(diagnose(X, t), "infinite").message


def test_clipping_of_q_says_what_a_lower_floor_would_do():
    clipped = diagnose(np.log(np.clip(ONE_HOT, 1e-8, 1)), T)
    lower = diagnose(np.log(np.clip(ONE_HOT, 1e-9, 1)), T)
    value, more = (
        kldiv.kl_div(np.log(np.clip(ONE_HOT, floor, 1)), T, reduction="batchmean")
        for floor in (1e-8, 1e-9)
    )
    message = finding(clipped, "clipped").message
    assert "72 of 80 entries of input lie on the floor log(1e-08)" in message
    assert f"the divergence is {value:.4g} per row" in message
    assert f"would add {more - value:.4g} to it" in message
    assert f"the divergence is {more:.4g} per row" in finding(lower, "clipped").message


def test_floors_are_named_as_they_were_written():
    for mistake, floor in (
        ("Q clamped at epsilon", "floor log(1.192e-07), "),
        ("log Q filled", "floor -1e+09, "),
        ("P clipped", "floor 1e-06, "),
    ):
        x, t = MISTAKES[mistake][:2]
        assert floor in finding(diagnose(x, t), "clipped").message


def test_clipping_of_p_says_what_the_floor_makes():
    x, t = MISTAKES["P clipped"][:2]
    with_floor, without = (
        kldiv.kl_div(x, target, reduction="batchmean") for target in (t, WIDE_ONE_HOT)
    )
    message = finding(diagnose(x, t), "clipped").message
    assert f"the floor makes {with_floor - without:.4g} of it" in message


def test_clipping_that_changes_nothing_is_at_most_a_note():
    x = np.log(np.clip(ONE_HOT, 1e-8, 1))
    # Where Q is clipped P has no mass.
    assert codes(diagnose(x, ONE_HOT), "note") == ["mean-over-elements"]
    assert not diagnose(X, np.clip(ONE_HOT, 1e-12, 1))
    tiny = put(0 * T, (slice(None), 1e-7 * T)) + (1 - 1e-7) * ONE_HOT
    found = diagnose(x, tiny)
    assert not found
    assert "clipped" in codes(found, "note")


def test_mean_is_compared_with_the_divergence_of_a_distribution():
    mean, per_row = (kldiv.kl_div(X, T, reduction=r) for r in ("mean", "batchmean"))
    note = finding(diagnose(X, T), "mean-over-elements")
    assert f"{mean:.4g} instead of {per_row:.4g}" in note.message
    assert "10 times smaller" in note.message
    assert "batchmean" in note.mend
    note = finding(diagnose(X, np.log(T), log_target=True), "mean-over-elements")
    assert f"{mean:.4g} instead of {per_row:.4g}" in note.message


@pytest.mark.parametrize(
    ("shape", "axis", "mend"),
    [
        ((8, 10), -1, "reduction='batchmean'"),
        ((80,), -1, "reduction='sum'"),
        ((2, 4, 10), -1, "divide by the number of distributions, 8"),
        ((1, 80), -1, "reduction='sum'"),
        ((8, 10), 0, "divide by the number of distributions, 10"),
        ((8, 10, 1), 1, "reduction='batchmean'"),
        ((8, 8), 0, "divide by the number of distributions, 8"),
    ],
)
def test_the_reduction_that_is_advised_gives_the_divergence(shape, axis, mend):
    size = math.prod(shape)
    x = log_softmax(STUDENT.ravel()[:size].reshape(shape), axis)
    t = softmax(TEACHER.ravel()[:size].reshape(shape), axis)
    note = finding(diagnose(x, t, axis=axis), "mean-over-elements")
    assert note.mend.endswith(mend)
    per_row = np.mean(np.sum(t * (np.log(t) - x), axis=axis))
    reduction = "batchmean" if "batchmean" in mend else "sum"
    value = kldiv.kl_div(x, t, reduction=reduction) / (
        x.size // x.shape[axis] if "divide" in mend else 1
    )
    assert value == pytest.approx(per_row)
    assert f"instead of {per_row:.4g}" in note.message


# ---- how it reads arrays -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reading"),
    [
        (T, "probabilities"),
        (X, "log-probabilities"),
        (X - 1, "unnormalised log-probabilities"),
        (np.round(50 * T), "unnormalised probabilities"),
        (TEACHER, "logits"),
        (softmax(TEACHER, 0), "probabilities over axis 0"),
        (log_softmax(TEACHER, 0), "log-probabilities over axis 0"),
        (softmax(TEACHER.ravel()).reshape(8, 10), "probabilities over all axes together"),
        (np.full((8, 10), np.nan), "nothing but NaN"),
        (np.zeros((8, 10)), "probabilities"),  # nothing but padding
        (put(T, ((slice(None), 3), np.nan)), "probabilities"),
        (put(X, ((slice(None), 3), np.nan)), "log-probabilities"),
        (put(X, ((slice(None), 3), np.inf)), "log-probabilities"),
        (put(TEACHER, ((slice(None), 3), np.nan)), "logits"),
        (put(T, (slice(1, 6), 0.0)), "probabilities"),  # rows of zeros pad a batch
    ],
)
def test_readings(values, reading):
    assert diagnose(X, values).target == reading


def test_wrong_axis_of_both_is_a_warning_as_the_classes_may_lie_there():
    x, t = log_softmax(STUDENT, 0), softmax(TEACHER, 0)
    assert {f.severity for f in diagnose(x, t).findings} == {"warning", "note"}
    assert finding(diagnose(x, T), "wrong-axis").severity == "error"
    assert not diagnose(x, t, axis=0)
    images = np.random.default_rng(0).normal(size=(2, 2, 5, 4, 3))
    x, t = log_softmax(images[0], 1), softmax(images[1], 1)
    messages = [f.message for f in diagnose(x, t).findings if f.code == "wrong-axis"]
    assert [message.count("sums to 1 over axis 1, not over axis 3") for message in messages] == [
        1,
        1,
    ]
    assert not diagnose(x, t, axis=1)
    assert not diagnose(x, t, axis=-3)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_findings_do_not_depend_on_how_arrays_are_cut(monkeypatch, mistake):
    x, t, log_target, _ = MISTAKES[mistake]
    whole = diagnose(x, t, log_target=log_target)
    for block in (1, 7, 24):
        monkeypatch.setattr(walking, "BLOCK", max(1, block * x.size // 80))
        parts = diagnose(x, t, log_target=log_target)
        assert [str(f) for f in parts.findings] == [str(f) for f in whole.findings]
        turned = diagnose(x.T, t.T, axis=0, log_target=log_target)
        assert codes(turned) == codes(whole)


def test_arrays_are_looked_at_in_blocks(monkeypatch):
    monkeypatch.setattr(walking, "BLOCK", 20)
    sizes = []
    backend = type(kldiv.backends.get("numpy"))
    original = backend.to_numpy
    monkeypatch.setattr(
        backend, "to_numpy", lambda self, part: sizes.append(part.size) or original(self, part)
    )
    assert not diagnose(X, T)
    assert set(sizes) == {20}
    assert len(sizes) == 4 * 4


def test_dask_computes_every_block_once_in_each_of_two_passes(monkeypatch):
    da = pytest.importorskip("dask.array")
    seen = []

    def look(block):
        seen.append(block.shape)
        return block

    monkeypatch.setattr(walking, "BLOCK", 30)  # three rows, which would cut through chunks
    x = da.from_array(X, chunks=(2, 5)).map_blocks(look, meta=X[:0, :0])
    assert not diagnose(x, da.from_array(T, chunks=(2, 5)))
    assert len(seen) == 2 * 8


def test_input_is_left_alone(lib):
    x, t = lib.array(X), lib.array(T)
    diagnose(x, t)
    np.testing.assert_array_equal(lib.numpy(x), X.astype(lib.widest))
    np.testing.assert_array_equal(lib.numpy(t), T.astype(lib.widest))


# ---- the result ----------------------------------------------------------------------------------


def test_diagnosis_prints_as_a_report_and_goes_into_json():
    found = diagnose(np.exp(X), T)
    assert str(found).startswith("input reads as probabilities, target as probabilities\nerror: ")
    assert "\n  mend: " in str(found)
    assert max(map(len, str(diagnose(put(X, ((0, 0), np.nan)), T)).splitlines())) <= 84
    assert "; nothing looks wrong" in str(diagnose(X, T))
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain) == ["wrong", "input", "target", "findings"]
    assert plain["wrong"] is True
    assert list(plain["findings"][0]) == ["code", "severity", "message", "mend"]
    with pytest.raises(FrozenInstanceError):
        found.input = "logits"
    assert Diagnosis((Finding("a", "note", "b", "c"),), "logits", "logits") == Diagnosis(
        (Finding("a", "note", "b", "c"),), "logits", "logits"
    )


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "t"),
    [
        (X, T[:, :5]),
        (X, T[0]),
        (np.ones((2, 3), dtype=int), T[:2, :3]),
        (X, ONE_HOT > 0),
        (X.tolist(), T),
        (X, None),
    ],
)
def test_arguments_raise_what_kl_div_raises(x, t):
    with pytest.raises((ShapeError, DTypeError, LibraryError)) as theirs:
        kldiv.kl_div(x, t)
    with pytest.raises(type(theirs.value)) as ours:
        diagnose(x, t)
    assert str(ours.value) == str(theirs.value)


def test_two_libraries_raise_unless_a_backend_takes_both():
    torch = pytest.importorskip("torch")
    with pytest.raises(LibraryError, match="libraries"):
        diagnose(X, torch.from_numpy(T))
    with kldiv.config_context(backend="numpy"):
        assert not diagnose(X, torch.from_numpy(T))


@pytest.mark.parametrize("axis", [2, -3])
def test_axis_is_checked(axis):
    said = rf"axis {axis} is out of range for shape \(8, 10\); expected -2 to 1"
    with pytest.raises(ShapeError, match=said):
        diagnose(X, T, axis=axis)


def test_torch_tensors_without_values_raise():
    torch = pytest.importorskip("torch")
    x, t = torch.from_numpy(X), torch.from_numpy(T)

    def loss(x, t):
        diagnose(x, t)
        return kldiv.kl_div(x, t)

    with pytest.raises(LibraryError, match=r"input \(Tensor\) has none"):
        torch.func.grad(loss)(x, t)
    with pytest.raises(LibraryError, match="has none"):
        torch.func.vmap(loss)(x, t)
    with pytest.raises(LibraryError, match="has none"):
        diagnose(x.to("meta"), t.to("meta"))
    with pytest.raises(LibraryError, match=r"outside jax\.jit, jax\.grad, torch\.compile"):
        torch.compile(loss, backend="eager")(x, t)
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"kldiv\.diagnose looks at values"):
        torch.compile(loss, fullgraph=True, backend="eager")(x, t)
    assert not diagnose(x.requires_grad_(), t)


def test_jax_tracers_raise():
    jax = pytest.importorskip("jax")
    x, t = jax.numpy.asarray(X), jax.numpy.asarray(T)

    def loss(x):
        diagnose(x, t)
        return kldiv.kl_div(x, t)

    for transformed in (jax.jit(loss), jax.grad(loss)):
        with pytest.raises(LibraryError, match=r"input \(.*Tracer\) has none; call it on concrete"):
            transformed(x)
