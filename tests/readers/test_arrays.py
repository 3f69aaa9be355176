"""Arrays of files and callers as numbers: masks, wide floats, foreign byte order."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

from kldiv import readers, streaming
from kldiv.errors import InputError, LibraryError

HIDDEN, WEIGHT = np.random.default_rng(0).normal(size=(2, 5, 3))
MASKED = np.ma.array(HIDDEN, mask=HIDDEN > 0)
WIDE = np.finfo(np.longdouble).max > np.finfo(np.float64).max


@pytest.mark.parametrize(
    "call",
    [
        lambda: readers.linear_logits(MASKED, WEIGHT),
        lambda: readers.linear_logits(HIDDEN, MASKED),
        lambda: readers.linear_logits(readers.Table(MASKED), WEIGHT),
        lambda: streaming.pairwise(MASKED, form="logits"),
        lambda: streaming.pairwise(readers.Table(MASKED), form="logits"),
        lambda: streaming.compare(
            HIDDEN,
            WEIGHT,
            form="logits",
            quantization=True,
            next_tokens=np.ma.array([0] * 5, mask=[1] * 5),
        ),
    ],
)
def test_no_mask_is_lost(call):
    with pytest.raises(LibraryError, match="masked array, whose mask would be lost"):
        call()


@pytest.mark.parametrize(
    ("hidden", "weight", "dtype"),
    [
        ("f4", "f2", "f4"),
        (">f8", "f4", "f8"),
        ("f4", ">f8", "f8"),
        (">f4", ">f2", "f4"),
        ("i4", "f4", "f8"),
        ("i2", "f4", "f4"),
        (np.longdouble, "f4", "f8"),
    ],
)
def test_logits_of_a_layer_are_wide_enough(hidden, weight, dtype):
    states, rows = (1000 * HIDDEN).astype(hidden), WEIGHT.astype(weight)
    array = readers.linear_logits(states, rows).array
    assert array.dtype == np.dtype(dtype)
    exact = states.astype("f8") @ rows.astype("f8").T
    assert abs(array[array.whole] - exact).max() < 1e5 * np.finfo(dtype).eps


def test_logits_of_some_classes_of_a_layer(monkeypatch):
    two = 2 * HIDDEN.shape[-1] * 8  # classes at once
    monkeypatch.setattr(sys.modules["kldiv.readers.linear_logits"], "_WIDENED", two)
    array = readers.linear_logits(HIDDEN, WEIGHT).array
    rows, classes = slice(1, 3), slice(2, len(WEIGHT))
    np.testing.assert_allclose(array[rows, classes], HIDDEN[rows] @ WEIGHT[classes].T, rtol=1e-12)


@pytest.mark.skipif(not WIDE, reason="long double is float64 here")
@pytest.mark.parametrize("number", ["1e4000", "1e-4000", "-1e4000"])
def test_numbers_beyond_float64_are_refused(tmp_path, number, monkeypatch):
    path, form = tmp_path / "p.npy", {"form": "logits"}
    array = np.array([1, 2, np.longdouble(number)])
    np.save(path, array)
    for stored in (1 << 24, 1):
        monkeypatch.setattr(readers.sources, "STORED", stored)
        for call in (
            lambda: streaming.compare(path, path, **form),
            lambda: streaming.compare(array, array, **form),
            lambda: streaming.pairwise(path, path, **form),
            lambda: readers.read_samples(path),
        ):
            with pytest.raises(
                InputError, match=r"the number -?1e.?4000, which float64 does not hold"
            ):
                call()


@pytest.mark.skipif(not WIDE, reason="long double is float64 here")
def test_wide_numbers_within_float64_are_taken():
    p, q = np.array([[0.25, 0.75, 0.0], [np.inf, 0, 0]], np.longdouble)[:1], np.full((1, 3), 1 / 3)
    plain = streaming.compare(p.astype("f8"), q)
    assert streaming.compare(p, q).mean == plain.mean
    assert streaming.pairwise(p, q).divergences["kl"][0, 1] == pytest.approx(plain.mean, rel=1e-15)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_other_processes_can_read_columns(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "csv":
        path.write_text("age,height\n31,1.5\n45,1.75\n")
    else:
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(
            arrow.table({"age": [31, 45], "height": [1.5, 1.75]}), path
        )
    columns = pickle.loads(pickle.dumps(readers.open_samples(path)))  # noqa: S301 - its own bytes
    assert {name: list(read().values) for name, read in columns.items()} == {
        "age": [31, 45],
        "height": [1.5, 1.75],
    }
