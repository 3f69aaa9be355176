"""Series and data frames, matched by their labels."""

import numpy as np
import pytest

import kldiv
from kldiv import frames
from kldiv.errors import DTypeError, OptionError

P, Q = np.array([[0.2, 0.8], [0.5, 0.5]]), np.array([[0.4, 0.6], [0.5, 0.5]])


def test_pandas_is_matched_by_index_and_columns():
    pd = pytest.importorskip("pandas")
    p, q = pd.Series([50, 30, 20], index=[5, 3, 1]), pd.Series([50, 30, 20], index=[1, 3, 5])
    assert kldiv.kl_divergence(p, q, normalize=True) == pytest.approx(0.27488722, rel=1e-7)
    p, q = (pd.DataFrame(each, ["r", "s"], ["x", "y"]) for each in (P, Q))
    for axis in (0, 1):
        right = kldiv.js_divergence(P, Q, P, axis=axis)
        assert kldiv.js_divergence(p, q.iloc[::-1, ::-1], p, axis=axis).tolist() == right.tolist()
    for bad, said in ((["A", "y"], "case"), (["y", "z"], "alone has 'x'"), (["x", "x"], "twice")):
        with pytest.raises(OptionError, match=said):
            kldiv.tv_divergence(
                p, q.set_axis([b.lower() for b in bad], axis=1).rename(columns={"a": "X"})
            )
    with pytest.raises(DTypeError, match="column 'x'"):
        kldiv.tv_divergence(p.astype({"x": str}), q)


def test_polars_is_matched_by_columns():
    pl = pytest.importorskip("polars")
    p, q = (pl.DataFrame(dict(zip("xy", each.T, strict=True))) for each in (P, Q))
    right = kldiv.kl_divergence(P, Q).tolist()
    assert kldiv.kl_divergence(p, q.select("y", "x")).tolist() == right
    with pytest.raises(DTypeError, match="column 'l'"):
        kldiv.kl_divergence(p.with_columns(l=pl.lit("a")), q)


@pytest.mark.parametrize(
    ("label", "same"), [("5", "5.0"), (" 0.50", ".5"), ("1E2", "100"), ("a B", "A  b")]
)
def test_spellings_of_one_label(label, same):
    assert frames.folded(label) == frames.folded(same)


@pytest.mark.parametrize(
    ("label", "other"), [(10**17 + 1, 10**17 + 2), ("1e400", "1e401"), ("snan", 5)]
)
def test_numbers_that_float64_does_not_tell_apart_are_labels_of_their_own(label, other):
    assert frames.folded(str(label)) != frames.folded(str(other))
