"""docs/accuracy.md says what its script measured, and the script measures rightly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from benchmark.suite import load
from processes import python
from reference import exact

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "accuracy.md"


@pytest.fixture(scope="module")
def accuracy():
    return load("studies.accuracy")


@pytest.fixture(scope="module")
def results():
    path = ROOT / "bench" / "results" / "accuracy.json"
    if not path.exists():
        pytest.skip("results of measurements are not part of a source distribution")
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_table_of_the_page_is_the_one_of_the_results(accuracy, results):
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("<!-- accuracy-table -->\n\n")[2]
    table = table.partition("\n\n<!-- /accuracy-table -->")[0]
    assert table == accuracy.page(results), f"paste this into the page:\n{accuracy.page(results)}"


def test_the_results_are_of_a_full_run_and_within_the_targets(accuracy, results):
    assert results["settings"] == {"sizes": [1000, 32000], "seeds": 10, "spread": 3.0}
    assert not results["skipped"]
    assert len(results["cells"]) == 2 * 2 * 9 * 13
    assert accuracy.beyond(results) == []


def test_the_picture_is_there_and_named_by_the_page():
    picture = ROOT / "docs" / "images" / "accuracy.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert "(images/accuracy.png)" in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_quick_run_meets_the_targets_skips_what_is_missing_and_draws(accuracy, tmp_path):
    pytest.importorskip("matplotlib")
    # A blocked library is not found, as if it were not installed.
    start = (
        "import runpy, sys\n"
        "sys.modules['optax'] = None\n"
        f"sys.argv = {['accuracy.py', '--quick', '--json', 'a.json', '--out', 'a/b.png']!r}\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "runpy.run_module('bench.studies.accuracy', run_name='__main__')\n"
    )
    printed = python("-W", "error", "-c", start, cwd=tmp_path)
    assert "optax: skipped, not installed" in printed
    assert "kldiv: all in target" in printed
    assert (tmp_path / "a" / "b.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.json"]

    results = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert {"kldiv", "numpy", "python"} <= set(results["versions"])
    assert "optax" in results["skipped"]
    own = [c for c in results["cells"] if c["method"].startswith("kldiv")]
    assert len([c for c in own if c["method"] == "kldiv, NumPy"]) == 2 * 2 * 9
    for cell in own:
        assert cell["worst"] <= {"float32": 1e-6, "float64": 2e-15}[cell["dtype"]], cell
        assert cell["not_positive"] == 0, cell
    textbook = [c for c in results["cells"] if c["method"] == "Keras' formula"]
    assert max(c["worst"] for c in textbook) > 100, "the peers lose everything somewhere"


@pytest.mark.parametrize("epsilon", [3.0, 1e-3, 1e-8])
def test_the_truth_of_the_script_is_that_of_the_tests(accuracy, epsilon):
    s, t = accuracy.pair(20, 1, epsilon, "float64")
    truth = accuracy.truth(s, t)
    for divergence, beta in (("KL", None), ("JS", 0.5)):
        expected = exact(s, t, beta=beta).value
        assert float(truth[divergence]) == pytest.approx(float(expected), rel=1e-15)


def test_a_nan_is_an_infinite_error_and_counts_as_not_positive(accuracy):
    error = accuracy.relative_error(math.nan, 1.0)
    cell = accuracy.cell(("KL", "x"), "float32", 10, 1.0, [(math.nan, error), (0.5, 0.5)])
    assert (cell["median"], cell["worst"], cell["not_positive"]) == (None, None, 1)
    cells = [{**cell, "epsilon": epsilon} for epsilon in accuracy.EPSILONS]
    assert "NaN" in accuracy.table({"cells": cells}, "float32", "KL")


def test_numbers_are_short(accuracy):
    shown = {1e-8: "1e-8", 1.26e-16: "1.3e-16", 0.012: "0.012", 0.5: "0.5", 1.0: "1", 16.4: "16"}
    shown |= {999.0: "999", 999.7: "1e3", 9.97: "10", 2.5e6: "2.5e6", math.inf: "NaN", 0.0: "0"}
    assert {x: accuracy.number(x) for x in shown} == shown
