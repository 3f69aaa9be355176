"""``kldiv compare``: the numbers, and everything that is said about them."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from reference import exact

import kldiv
from kldiv.cli.render import column
from kldiv.streaming import blocks
from kldiv.streaming.blocks import Piece, Plan, Sizes

P, Q = np.array([9, 12, 4]) / 25, np.full(3, 1 / 3)
KL_PQ, KL_QP = 0.0852996013183706, 0.0974550067853875
MEASURES = ("kl_pq", "kl_qp", "js")


def truth(p, q):
    """Return D(P‖Q), D(Q‖P) and JS along the last axis, by another formula."""
    with np.errstate(all="ignore"):
        m = (p + q) / 2

        def kl(a, b):
            return np.sum(np.where(a > 0, a * np.log(a / b), 0.0), axis=-1)

        return kl(p, q), kl(q, p), (kl(p, m) + kl(q, m)) / 2


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(work, command):
    """Run ``compare`` in this process; return its exit code, stdout and stderr."""
    return partial(command, "compare")


@pytest.fixture
def run_on(run):
    """Save P and Q, and run ``compare`` on them."""

    def run_on(p, q, *options):
        np.save("p.npy", p)
        np.save("q.npy", q)
        return run("p.npy", "q.npy", *options)

    return run_on


@pytest.fixture
def compare(run_on):
    """Save P and Q, compare them, and return the JSON; the call must succeed."""

    def compare(p, q, *options):
        status, out, err = run_on(p, q, "--json", *options)
        assert status == 0, err
        return json.loads(out, parse_constant=refuse)

    return compare


@pytest.fixture
def letters(pytestconfig):
    folder = pytestconfig.rootpath / "examples" / "letters"
    return lambda name: folder / f"{name}.csv"


def close(actual, expected, tolerance=1e-14):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=1e-15)


# --- numbers --------------------------------------------------------------------------------------


def test_the_numbers_of_two_distributions(compare):
    found = compare(P, Q)
    close([found["kl_pq"], found["kl_qp"]], [KL_PQ, KL_QP])
    close([found[m] for m in MEASURES], truth(P, Q))
    close([found["bits"][m] for m in MEASURES], np.array(truth(P, Q)) / math.log(2))
    assert found["units"] == "nats"
    assert found["warnings"] == []


def test_the_keys_stay(compare):
    found = compare(P, Q)
    assert " ".join(found) == (
        "kl_pq kl_qp js jeffreys generalised units bits reduction rows classes axis contributors"
        " zeros p q smoothing library backend device kernel version warnings"
    )
    assert list(found["rows"]) == ["count", *MEASURES, "worst"]
    assert list(found["contributors"][0]) == ["class", "index", "p", "q", *MEASURES]
    where = [found[k] for k in ("library", "backend", "device", "kernel")]
    assert where == ["numpy", "numpy", "cpu", "pure"]


def test_the_text(run_on):
    status, out, err = run_on(P, Q)
    assert (status, err) == (0, "")
    assert out.splitlines()[3:8] == [
        "                        nats           bits",
        "D(P‖Q)         0.08529960132  0.12306131181",
        "D(Q‖P)         0.09745500679  0.14059785500",
        "JS(P, Q)       0.02245986043  0.03240272926",
        "Jeffreys, PSI  0.18275460810  0.26365916681",
    ]
    assert "Computed by numpy on cpu, kernel pure." in out
    assert all(len(line) <= 80 and line == line.rstrip() for line in out.splitlines())


@pytest.mark.parametrize("backend", ["torch", "jax", "dask", "numpy"])
def test_another_backend_computes_the_same(compare, backend, monkeypatch):
    pytest.importorskip(backend)
    import kldiv

    rng = np.random.default_rng(1)
    p, q = softmax(rng.normal(size=(2, 7, 5)))
    q[2, 3] = 0.0
    expected = compare(p, q, "--normalize")
    used = []
    kl_div = kldiv.kl_div

    def spy(*args, **kwargs):
        used.append(kldiv.get_config()["backend"])
        return kl_div(*args, **kwargs)

    monkeypatch.setattr(kldiv, "kl_div", spy)
    found = compare(p, q, "--normalize", "--backend", backend)
    assert set(used) == {backend}
    assert (found["library"], found["backend"]) == ("numpy", backend)
    assert found["kl_pq"] == expected["kl_pq"] == "inf"
    for measure in ("kl_qp", "js"):
        close(found[measure], expected[measure], 1e-13)
    for one, other in zip(found["contributors"], expected["contributors"], strict=True):
        assert one["class"] == other["class"]
        close(one["js"], other["js"], 1e-12)


# --- what the files hold --------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [blocks.BUDGET, 8 * 16], ids=["whole", "split"])
@pytest.mark.parametrize("distance", [1e-3, 1e-7])
def test_logits_are_exact_at_any_distance(compare, monkeypatch, distance, budget):
    """By log-softmax in float64 all digits but two are lost at 1e-7."""
    monkeypatch.setattr(blocks, "BUDGET", budget)
    rng = np.random.default_rng(3)
    p = 3 * rng.normal(size=(3, 200)) + 40
    q = p + distance * rng.normal(size=p.shape)
    found = compare(p, q, "--from", "logits", "--reduction", "none")
    pairs = ((q, p), None), ((p, q), None), ((q, p), 0.5)
    for measure, (pair, beta) in zip(MEASURES, pairs, strict=True):
        expected = [float(exact(a, b, beta=beta).value) for a, b in zip(*pair, strict=True)]
        np.testing.assert_allclose(np.array(found[measure], float), expected, rtol=2e-15)
    assert found["backend"] == "numpy"


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "float64"])
def test_whole_numbers_are_counts_and_it_is_said(compare, dtype):
    found = compare(np.array([9, 12, 4], dtype=dtype), np.ones(3, dtype=dtype))
    close(found["kl_pq"], KL_PQ)
    assert found["p"]["form"] == found["q"]["form"] == "counts"
    assert len(found["warnings"]) == 1
    assert "P and Q are read as counts" in found["warnings"][0]
    for options in (["--normalize"], ["--from", "counts"]):
        assert compare([9, 12, 4], [1, 1, 1], *options)["warnings"] == []


def test_each_file_is_judged_by_itself(compare):
    found = compare([9, 12, 4], Q)
    close(found["kl_pq"], KL_PQ)
    assert (found["p"]["form"], found["q"]["form"]) == ("counts", "probs")
    assert "P is read as counts" in found["warnings"][0]


def test_one_hot_rows_are_distributions_already(compare):
    found = compare(np.eye(3), np.full((3, 3), 1 / 3))
    close(found["kl_pq"], math.log(3))
    assert (found["p"]["form"], found["p"]["normalized"]) == ("probs", False)
    assert all("counts" not in warning for warning in found["warnings"])


def test_nothing_is_normalised_silently(compare, run_on):
    status, out, err = run_on(P * 2, Q)
    assert (status, out) == (4, "")
    assert "P sums to 2, not to 1. --normalize" in err
    assert "generalised D(P‖Q)" in run_on(P * 2, Q, "--generalized")[1]
    found = compare(P * 2, Q, "--generalized")
    close(found["kl_pq"], float(np.sum(2 * P * np.log(2 * P / Q))) - 1)
    assert found["generalised"]
    assert "P sums to 2, not to 1: the divergence is the gen" in found["warnings"][0]
    again = compare(P * 2, Q, "--normalize")
    close(again["kl_pq"], KL_PQ)
    assert again["warnings"] == []


def test_logits_taken_for_log_probabilities(compare, run_on):
    given = np.log(P) + 1, np.log(Q), "--from", "log-probs"
    assert "--from logits" in run_on(*given)[2]
    found = compare(*given, "--generalized")
    close(found["kl_pq"], math.e * KL_PQ + 1, 1e-13)
    assert "exp(P) sums to 2.71828" in found["warnings"][0]
    assert "--from logits" in found["warnings"][0]
    close(compare(*given, "--normalize")["kl_pq"], KL_PQ)


def test_whole_numbers_said_to_be_probabilities_stay(compare):
    found = compare([9, 12, 4], [1, 1, 1], "--from", "probs", "--generalized")
    close(found["kl_pq"], float(np.sum([n * math.log(n) for n in (9, 12, 4)])) - 22)
    assert found["warnings"][0].startswith("P sums to 25")


@pytest.mark.parametrize("form", ["auto", "counts", "probs"])
def test_negative_numbers_are_no_probabilities(run_on, form):
    status, out, err = run_on(np.log([P, P]), [Q, Q], "--from", form)
    assert (status, out) == (4, "")
    assert "6 negative numbers, the first at row '0', class '0'" in err
    assert "--from log-probs or --from logits" in err


def test_smoothing_adds_to_every_class_before_normalising(compare):
    p, q = np.array([3, 0, 1]), np.array([0, 0, 5])
    smooth = (p + 0.5) / 5.5, (q + 0.5) / 6.5
    found = compare(p, q, "--smoothing", "0.5")
    close([found[m] for m in MEASURES], truth(*smooth))
    assert found["smoothing"] == 0.5
    assert found["warnings"] == []
    found = compare(P, [0.5, 0.5, 0.0], "--normalize", "--smoothing", "0.1")
    close(found["kl_pq"], truth((P + 0.1) / 1.3, np.array([0.6, 0.6, 0.1]) / 1.3)[0])


# --- edges ----------------------------------------------------------------------------------------


def test_zeros_make_it_infinite_and_are_named(compare):
    found = compare([0.5, 0.3, 0.2, 0.0], [0.0, 0.5, 0.0, 0.5])
    assert (found["kl_pq"], found["kl_qp"]) == ("inf", "inf")
    close(found["js"], truth(np.array([0.5, 0.3, 0.2, 0]), np.array([0, 0.5, 0, 0.5]))[2])
    zeros = found["zeros"]["kl_pq"]
    assert (zeros["count"], zeros["largest"]) == (2, ["0", "2"])
    close(zeros["share"], 0.7)
    assert found["zeros"]["kl_qp"]["largest"] == ["3"]
    assert (
        "D(P‖Q) is infinite: Q gives no probability to 2 classes, 0, 2, with 70 % of P"
        in (found["warnings"][0])
    )
    assert found["rows"]["kl_pq"] == {"mean": "inf", "median": "inf", "max": "inf"}


def test_zeros_of_both_are_no_trouble(compare):
    found = compare([0.5, 0.5, 0.0], [0.25, 0.75, 0.0])
    assert math.isfinite(found["kl_pq"])
    assert found["zeros"]["kl_pq"] == {"count": 0, "share": 0.0, "largest": []}
    found = compare([0.0, -np.inf], [0.0, -np.inf], "--from", "log-probs")
    assert [found[m] for m in MEASURES] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_an_error_that_names_it(work, run, compare, value):
    p = np.array([P, P])
    p[1, 2] = value
    found = compare(p, [Q, Q], "--reduction", "none")
    close(found["kl_pq"][0], KL_PQ)
    assert found["kl_pq"][1] == str(value)
    status, out, err = run("p.npy", "q.npy")
    assert (status, out) == (4, "")
    what = "NaN" if math.isnan(value) else "infinite"
    assert f"P, p.npy, has 1 number that is {what}, the first at row '1', class '2'" in err
    assert "--reduction 'none' keeps the other rows" in err
    if math.isnan(value):
        assert "--na drop" in err
        found = compare(p, [Q, Q], "--na", "drop", "--normalize")
        close(found["kl_pq"], truth(P[:2] / P[:2].sum(), np.full(2, 0.5))[0])
        close(
            compare([[0.0, np.nan, 1.0]], [[0.0, 0.5, 0.5]], "--na", "zero")["kl_pq"], math.log(2)
        )


def test_na_drops_classes_of_files_that_stay_on_disk(work, compare):
    p = np.full(1 << 21, 1.0)
    q = np.where(np.arange(len(p)) % 2, 2.0, 1.0)
    p[7] = np.nan
    kept = np.flatnonzero(np.arange(len(p)) != 7)
    found = compare(p, q, "--na", "drop", "--normalize")
    close(found["kl_pq"], truth(p[kept] / p[kept].sum(), q[kept] / q[kept].sum())[0], 1e-9)


@pytest.mark.parametrize("form", ["counts", "logits"])
def test_a_row_of_nothing_is_no_distribution(run, compare, form):
    nothing = 0.0 if form == "counts" else -np.inf
    pair = [[1.0, 2.0], [nothing] * 2], [[1.0, 1.0]] * 2
    found = compare(*pair, "--from", form, "--reduction", "none")
    assert found["kl_pq"][1] == "nan"
    said = "has no probability anywhere in 1 of 2 rows"
    assert any(said in w for w in found["warnings"])
    status, out, err = run("p.npy", "q.npy", "--from", form)
    assert (status, out) == (4, "")
    assert said in err


def test_a_single_number_is_one_class(compare):
    assert compare(np.array(1.0), np.array(1.0))["kl_pq"] == 0.0


def test_rows_of_one_class_are_not_compared(work, run):
    """A column saved as a matrix: normalised row by row, every divergence would be 0."""
    for name, numbers in (("p", [6, 3, 1]), ("q", [5, 3, 2])):
        np.save(work / f"{name}.npy", np.array(numbers)[:, None])
        np.save(work / f"{name}f.npy", np.array(numbers)[:, None] / 10)
    for arguments in (
        ("p.npy", "q.npy"),
        ("pf.npy", "qf.npy", "--normalize"),
        ("pf.npy", "qf.npy"),
    ):
        status, _, err = run(*arguments)
        assert status == 4
        assert "rows of one class each" in err
        assert "--axis 0 takes the column" in err
    status, out, _ = run("p.npy", "q.npy", "--axis", "0", "--json")
    true = 0.6 * math.log(6 / 5) + 0.1 * math.log(1 / 2)
    assert json.loads(out)["kl_pq"] == pytest.approx(true, rel=1e-14)
    status, _, err = run("p.npy", "q.npy", "--pairwise")
    assert status == 4
    assert "one class" in err
    status, out, _ = run("p.npy", "q.npy", "--pairwise", "--axis", "0", "--json")
    assert status == 0


# --- matrices -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matrices():
    rng = np.random.default_rng(3)
    return softmax(2 * rng.normal(size=(2, 5, 4, 6)))


def test_the_summary_of_rows(compare, matrices):
    p, q = matrices[:, :, 0]
    found = compare(p, q)
    for measure, values in zip(MEASURES, truth(p, q), strict=True):
        close(found[measure], values.mean())
        close(found["rows"][measure]["mean"], values.mean())
        close(found["rows"][measure]["median"], np.median(values))
        close(found["rows"][measure]["max"], values.max())
    assert found["rows"]["count"] == 5
    order = np.argsort(-truth(p, q)[0])
    assert [row["index"] for row in found["rows"]["worst"]] == order.tolist()
    assert found["rows"]["worst"][0]["row"] == str(order[0])
    assert [r["index"] for r in compare(p, q, "--top", "2")["rows"]["worst"]] == order[:2].tolist()


def test_all_rows_in_text(run_on, matrices):
    p, q = matrices[:, :, 0]
    out = run_on(p, q, "--reduction", "none")[1]
    lines = out[out.index("Rows, in nats") :].splitlines()
    rows = [line.split() for line in lines[2:7]]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    close(np.array(rows)[:, 1:].astype(float), np.transpose(truth(p, q)), 1e-9)


def test_rows_have_their_labels(work, run):
    (work / "p.csv").write_text("day,a,b,c\nmon,9,12,4\ntue,1,1,1\n", encoding="utf-8")
    (work / "q.csv").write_text("day,a,b,c\nmon,1,1,1\ntue,1,1,1\n", encoding="utf-8")
    status, out, _ = run("p.csv", "q.csv", "--json", "--from", "counts")
    assert status == 0
    found = json.loads(out)
    assert [row["row"] for row in found["rows"]["worst"]] == ["mon", "tue"]
    assert {each["class"] for each in found["contributors"]} == {"a", "b", "c"}
    close(found["kl_pq"], KL_PQ / 2)
    text = run("p.csv", "q.csv", "--from", "counts")[1]
    assert "3 classes in 2 rows" in text
    assert "\nmon  0.0853  0.0975    0.0225  ██" in text
    # The other way round, days are the classes.
    found = json.loads(run("p.csv", "q.csv", "--json", "--from", "counts", "--axis", "0")[1])
    assert {each["class"] for each in found["contributors"]} == {"mon", "tue"}
    assert {row["row"] for row in found["rows"]["worst"]} == {"a", "b", "c"}


# --- contributions --------------------------------------------------------------------------------


def test_contributions_are_the_elements(compare):
    found = compare(P, Q)
    elements = P * np.log(P / Q)
    order = np.argsort(-np.abs(elements)).tolist()
    assert [each["index"] for each in found["contributors"]] == order
    close([each["kl_pq"] for each in found["contributors"]], elements[order])
    close([each["p"] for each in found["contributors"]], P[order])
    close(sum(each["js"] for each in found["contributors"]), found["js"])


@pytest.mark.parametrize("top", [0, 1, 7])
def test_only_the_largest_are_kept(compare, top, monkeypatch):
    monkeypatch.setattr(blocks, "BUDGET", 8 * 5)
    p, q = softmax(np.random.default_rng(4).normal(size=(2, 50)))
    found = compare(p, q, "--top", top)
    order = np.argsort(-np.abs(p * np.log(p / q)))[:top]
    assert [each["index"] for each in found["contributors"]] == order.tolist()


def test_bars_point_to_either_side(run_on):
    out = run_on([0.6, 0.2, 0.2], [0.2, 0.4, 0.4])[1]
    first, *rest = out[out.index("\nclass") + 1 :].splitlines()[1:4]
    assert first.split()[3] == "+0.659"
    start = first.index("█")
    for line in rest:
        assert line.split()[3] == "-0.139"
        assert line.rindex("█") == start - 1  # they meet at a common line
    assert max(len(line) for line in out.splitlines()) <= 80


def test_zero_and_tiny_probabilities_look_different(run_on):
    assert column([1.5e-9, 0.25]) == ["1.50e-09", "2.50e-01"]
    out = run_on(*[[0.75, 0.25, 0.0, 1e-9]] * 2, "--from", "probs")[1]
    assert [line.split()[1] for line in out[out.index("\nclass") + 1 :].splitlines()[1:5]] == [
        *("0.75000", "0.25000", "0", "1.00e-09"),
    ]


def test_long_labels_are_cut_in_text_only(work, run):
    label = "a" * 100
    (work / "p.csv").write_text(f"class,n\n{label},1\n日本語,3\n", encoding="utf-8")
    (work / "q.csv").write_text(f"class,n\n{label},2\n日本語,3\n", encoding="utf-8")
    out = run("p.csv", "q.csv")[1]
    assert f"\n{'a' * 23}…" in out
    assert "\n日本語                  " in out
    found = json.loads(run("p.csv", "q.csv", "--json")[1])
    assert {each["class"] for each in found["contributors"]} == {label, "日本語"}


# --- labels ---------------------------------------------------------------------------------------


@pytest.fixture
def languages(work):
    (work / "p.csv").write_text("letter,n\na,9\nb,12\nc,4\n", encoding="utf-8")
    (work / "q.csv").write_text("letter,n\nc,2\na,2\nd,1\n", encoding="utf-8")
    return "p.csv", "q.csv"


def test_classes_are_aligned_on_request(run, languages):
    status, out, _ = run(*languages, "--align", "--json")
    assert status == 0
    found = json.loads(out)
    expected = truth(np.array([9, 12, 4, 0]) / 25, np.array([2, 0, 2, 1]) / 5)
    close(found["js"], expected[2])
    assert found["zeros"]["kl_pq"]["largest"] == ["b"]
    assert found["zeros"]["kl_qp"]["largest"] == ["d"]
    assert found["classes"] == 4


def test_rows_are_aligned_too(work, run):
    (work / "p.csv").write_text("day,a,b\nmon,1,3\ntue,1,1\n", encoding="utf-8")
    (work / "q.csv").write_text("day,b,a\ntue,3,1\nmon,1,1\n", encoding="utf-8")
    found = json.loads(run("p.csv", "q.csv", "--align", "--json", "--reduction", "none")[1])
    p, q = np.array([[1, 3], [1, 1]]), np.array([[1, 1], [1, 3]])
    rows = [m / m.sum(axis=1, keepdims=True) for m in (p, q)]
    for measure, values in zip(MEASURES, truth(*rows), strict=True):
        close(found[measure], values)
    # With days as the classes it is the columns that are put in order.
    found = json.loads(run("p.csv", "q.csv", "--align", "--json", "--axis", "0")[1])
    for measure, values in zip(
        MEASURES, truth(*((m / m.sum(axis=0)).T for m in (p, q))), strict=True
    ):
        close(found[measure], values.mean())
    assert {each["class"] for each in found["contributors"]} == {"mon", "tue"}
    assert {row["row"] for row in found["rows"]["worst"]} == {"a", "b"}
    (work / "q.csv").write_text("day,b,a\ntue,3,1\nwed,1,1\n", encoding="utf-8")
    status, _, err = run("p.csv", "q.csv", "--align")
    assert status == 4
    assert "row 'mon' is in one file only" in err


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("letter,n\nc,2\na,2\nd,1\n", (), "differ: number 1 is 'a' in P, 'c' in Q. --align"),
        ("letter,n\na,1\na,2\n", ("--align",), "'a' twice"),
        ("n\n1\n2\n", ("--align",), "needs labels"),
    ],
)
def test_what_is_not_aligned(work, run, languages, text, options, said):
    (work / "q.csv").write_text(text, encoding="utf-8")
    status, _, err = run(*languages, *options)
    assert status == 4
    assert said in err


# --- files ----------------------------------------------------------------------------------------


def test_members_and_keys(run):
    np.savez("both.npz", p=P, q=Q, other=np.ones(2))
    for arguments in (
        ["both.npz::p", "both.npz::q"],
        ["both.npz", "both.npz::q", "--key", "p"],
    ):
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        found = json.loads(out)
        close(found["kl_pq"], KL_PQ)
        assert (found["p"]["member"], found["q"]["member"]) == ("p", "q")
        assert found["p"]["path"] == "both.npz"


def test_the_letters_of_the_readme(run, letters):
    status, out, err = run(letters("english"), letters("german"))
    assert status == 0
    assert "D(P‖Q)         0.11302664792  0.16306298444" in out
    assert "D(Q‖P)                   inf            inf" in out
    assert "\no      0.07467  0.02753  +0.07450 " in out
    assert "read as counts" in err
    assert "D(Q‖P) is infinite: P gives no probability to 4 classes, ü, ä, ö, ß" in err
    assert "--smoothing 0.5" in err
    assert "inf" not in run(letters("english"), letters("german"), "--smoothing", "0.5")[1]


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["CC", "FF", "CF"])
@pytest.mark.parametrize("budget", [8, 24, 100, 10**6])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plan_covers_arrays_once(monkeypatch, order, budget, axis):
    monkeypatch.setattr(blocks, "BUDGET", budget)
    p, q = (np.zeros((3, 4, 5), order=each) for each in order)
    plan = Plan(p, q, axis, Sizes.within())
    seen, ended = np.zeros(p.shape), []
    for step in plan.steps:
        assert plan.whole or len(step) == 1
        for piece in step:
            assert math.prod(part.stop - part.start for part in piece.index) <= max(budget, 1)
            if not plan.whole:  # pieces of the same classes follow one another
                assert piece.classes.start not in ended[:-1]
                ended += [piece.classes.start] if piece.classes.start not in ended else []
            last = -1
            for block in plan.blocks(piece):
                assert block.classes == slice(0, p.shape[axis]) or not plan.whole
                most = max(budget // 8, p.shape[axis] if plan.whole else 1)
                assert block.read(Piece(p[piece.index], piece)).size <= most
                start = sum(part.start * s for part, s in zip(block.index, p.strides, strict=True))
                if plan.whole:
                    assert start > last  # as the file lies on disk
                last = start
                seen[block.index] += 1
    assert (seen == 1).all()
    assert plan.whole == (p.shape[axis] <= 2 * max(budget // 8, 1))


def test_the_place_of_the_first_oddity(compare, monkeypatch):
    monkeypatch.setattr(blocks, "BUDGET", 8 * 6)
    p = np.full((3, 4, 5), 0.25)
    p[2, 1, 3] = p[2, 3, 4] = np.nan
    found = compare(p, np.full((3, 4, 5), 0.25), "--axis", "1", "--reduction", "none")
    assert "2 numbers" in found["warnings"][0]
    assert "the first at row '(2, 3)', class '1'" in found["warnings"][0]


def test_one_fraction_anywhere_makes_probabilities(compare, monkeypatch):
    monkeypatch.setattr(blocks, "BUDGET", 8)
    assert compare([0.5, 3.0, 4.0], [1.0, 1.0, 1.0], "--generalized")["p"]["form"] == "probs"


# --- plot -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_picture(work, run, suffix, head):
    pytest.importorskip("matplotlib")
    (work / "p.csv").write_text("class,n\n$x^$,9\nü,12\n日,4\nd,0\n", encoding="utf-8")
    (work / "q.csv").write_text("class,n\n$x^$,1\nü,1\n日,0\nd,1\n", encoding="utf-8")
    status, _, err = run("p.csv", "q.csv", "--plot", f"x.{suffix}", "--from", "counts")
    assert status == 0
    assert err.count("\n") == 3  # the file, the two infinities, and nothing about fonts
    assert err.startswith(f"wrote x.{suffix}\n")
    assert (work / f"x.{suffix}").read_bytes().startswith(head)


def test_a_picture_that_cannot_be_written(run, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    def full(self, path, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    np.save("p.npy", P)
    status, _, err = run("p.npy", "p.npy", "--plot", "x.png")
    assert status == 4
    assert "x.png: cannot be written (No space left on device)" in err


def test_what_the_picture_shows(run, drawn):
    np.savez("x.npz", p=[P, P], q=[Q, [0.5, 0.0, 0.5]])
    assert run("x.npz::p", "x.npz::q", "--plot", "x.png")[0] == 0
    ((figure, path),) = drawn
    left, right = figure.axes
    assert path == "x.png"
    assert [label.get_text() for label in left.get_yticklabels()] == ["1", "2", "0"]
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "P  x.npz::p",
        "Q  x.npz::q",
    ]
    close([bar.get_width() for bar in left.patches[:3]], P[[1, 2, 0]])
    infinite, *others = right.patches
    assert infinite.get_hatch()
    assert [text.get_text() for text in right.texts] == ["∞"]
    parts = P[[2, 0]] * (np.log(P / Q)[[2, 0]] + np.log(P[[2, 0]] / 0.5)) / 2
    close([bar.get_width() for bar in others], parts)
    assert "D(P‖Q) = ∞" in figure.get_suptitle()
    assert "mean over 2 rows" in figure.get_suptitle()


def test_other_divergences_of_logits(run, run_on):
    p, q = np.random.default_rng(0).normal(size=(2, 6, 9))
    names = "tv", "renyi:2", "jeffreys:1,0.5", "js:0.25", "chi2"
    asked = [word for name in names for word in ("--divergence", name)]
    code, out, _ = run_on(p, q, "--from", "logits", *asked, "--json")
    found = json.loads(out)
    assert code == 0
    wanted = {
        "tv": kldiv.tv_div_with_logits(q, p),
        "renyi:2": kldiv.renyi_div_with_logits(q, p, alpha=2.0),
        "jeffreys:1,0.5": kldiv.jeffreys_div_with_logits(q, p, weights=(1.0, 0.5)),
        "js:0.25": kldiv.js_div_with_logits(q, p, beta=0.25),
        "chi2": kldiv.chi2_div_with_logits(q, p),
    }
    for name, value in wanted.items():
        assert math.isclose(found[name], value, rel_tol=1e-14)
    assert "tv" not in found["bits"]  # it has no unit
    assert "chi2" in run("p.npy", "q.npy", "--from", "logits", "--divergence", "chi2")[1]
    for words, message in {
        ("tvx",): "expected one of kl, js",
        ("alpha",): "needs its order",
        ("renyi:x",): "'x' is no number",
        ("tv:1",): "takes no number",
    }.items():
        code, _, err = run("p.npy", "q.npy", "--from", "logits", "--divergence", *words)
        assert code == 2
        assert message in err
    assert "--from logits" in run("p.npy", "q.npy", "--divergence", "tv")[2]
