"""Results as tables of a notebook: well-formed, escaped, with the numbers that are printed."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pytest

import kldiv
from kldiv import fitting, metrics, readers, streaming
from kldiv._notebook import table

P, Q = np.array([[0.36, 0.48, 0.16]]), np.array([[0.3, 0.5, 0.2]])


def cells(result):
    """Return the texts of all cells; the table must be well-formed."""
    tree = ET.fromstring(f"<div>{result._repr_html_()}</div>")  # noqa: S314 - our own
    return ["".join(cell.itertext()) for cell in tree.iter("td")], "".join(tree.itertext())


def test_texts_are_escaped_and_numbers_shortened():
    found = table("a < b", ("<i>",), [("<script>", 1 / 3, 2)], ["x & y"])
    assert "<script>" not in found
    assert "&lt;script&gt;" in found
    assert ">0.333333</td>" in found
    assert found.endswith("<p>x &amp; y</p>")


def test_diagnosis_and_explanation():
    found, _ = cells(kldiv.diagnose(Q, P))
    assert found[:2] == ["error", "probabilities-as-input"]
    found, _ = cells(kldiv.explain(P))
    assert found[:2] == ["library", "numpy"]
    assert found[-3:-1] == ["kernel", "pure"]


def test_states():
    state = kldiv.KLState.from_logits(np.log(Q), np.log(P), temperature=2.0)
    assert cells(state)[0] == ["13 numbers a row; rows: (1,), temperature: 2.0, library: 'numpy'"]


def test_comparisons():
    labelled = [readers.Table(each[0], classes=("<a>", "b", "c")) for each in (P, Q)]
    found = streaming.compare(*labelled)
    numbers, everything = cells(found)
    assert numbers[1] == f"{found.kl_pq.value:.6g}"
    assert "1 rows of 3 classes" in everything
    assert f"{found.js.value:.6g}" in repr(found)


def test_metrics():
    metric = metrics.KLDivergence(form="probs")
    metric.update(Q, P)
    numbers, everything = cells(metric)
    assert numbers[0] == f"{metric.compute().mean:.6g}"
    assert "rows=1)" in everything


def test_rankings():
    pytest.importorskip("scipy")
    data = np.random.default_rng(0).gamma(3.0, 2.0, size=100)
    ranking = fitting.rank(data, ["Gamma", "Normal"])
    numbers, everything = cells(ranking)
    assert numbers[0] == ranking.best.family
    assert "100 points" in everything
