"""Tables, histograms and samples of real users: right numbers, or a question."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math

import numpy as np
import pytest

import kldiv

pytest.importorskip("click")
pytest.importorskip("rich")

RATINGS = "rating,n\n5,50\n3,30\n1,20\n", "rating,n\n1,50\n3,30\n5,20\n"
BINS = (
    "low,high,n\n10,20,10\n20,30,20\n30,40,30\n",
    "low,high,n\n10,15,30\n15,25,20\n25,40,10\n",
)
LETTERS = "l,n\na,1\nb,3\n", "l,n\na,2\nb,2\n"
KL_LETTERS = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    """Write P and Q and run the command on them; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(texts, *options, name="{}.csv", key=""):
        for each, text in zip("pq", texts, strict=True):
            data = text.encode() if isinstance(text, str) else text
            (tmp_path / name.format(each)).write_bytes(data)
        return command(*(name.format(each) + key for each in "pq"), *options)

    return run


@pytest.fixture
def compare(run):
    """Return the JSON of a comparison that must succeed."""

    def compare(texts, *options, **names):
        status, out, err = run(texts, *options, "--json", **names)
        assert status == 0, err
        return json.loads(out)

    return compare


def close(actual, expected, tolerance=1e-13):
    np.testing.assert_allclose(actual, expected, rtol=tolerance)


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "options", "said"),
    [
        ("", (), "column 'rating' may be labels: labels or values? --labels rating"),
        ("::n", (), "number 1 is '5' in P, '1' in Q. --align"),
        ("", ("--labels", "rating"), "number 1 is '5' in P, '1' in Q. --align"),
        ("", ("--labels", "none"), "'none'"),
    ],
)
def test_labels_that_are_numbers_are_asked_for(run, key, options, said):
    status, out, err = run(RATINGS, *options, key=key)
    assert (status, out) == (4, "")
    assert said in err


def test_labels_that_are_numbers(compare):
    found = compare(RATINGS, "--labels", "rating", "--align")
    close(found["kl_pq"], 0.3 * math.log(2.5))  # 0.2748872…
    close(compare(RATINGS, "--align", key="::n")["kl_pq"], 0.3 * math.log(2.5))
    found = compare(RATINGS, "--labels", "", "--values", "n")
    assert found["kl_pq"] == 0  # by position, as asked
    found = compare(RATINGS, "--from", "counts", key="::*")
    assert found["rows"]["count"] == 3  # a matrix, as asked


@pytest.mark.parametrize(
    "table",
    [
        ",l,n\n0,a,{}\n1,b,{}\n",  # pandas
        '"","l","n"\n"1","a",{}\n"2","b",{}\n',  # R
        ",l,n\n7,b,{1}\n3,a,{0}\n",  # a frame that was sorted
        "index,l,n\n1,b,{1}\n2,a,{0}\n",
    ],
)
def test_an_index_is_no_label(compare, table):
    found = compare((table.format(1, 3), LETTERS[1]), "--align")
    close(found["kl_pq"], KL_LETTERS)
    assert {each["class"] for each in found["contributors"]} == {"a", "b"}


@pytest.mark.parametrize("label", ["A", " a", "\uff41"])
def test_labels_of_another_form_are_asked_about(run, compare, label):
    texts = LETTERS[0], f"l,n\n{label},2\nb,2\n"
    status, _, err = run(texts, "--align")
    assert status == 4
    assert f"'a' in P and {label!r} in Q differ by case" in err
    assert "--fold matches" in err
    close(compare(texts, "--align", "--fold")["kl_pq"], KL_LETTERS)
    assert compare(texts, "--align", "--no-fold")["kl_pq"] == "inf"
    assert "--fold" in run(texts)[2]


def test_numbers_match_by_value_and_composed_letters_by_form(compare, run):
    texts = "l,n\n1,1\né,3\nx,0\n", "l,n\n1.0,2\ne\u0301,2\nx,0\n"
    close(compare(texts, "--align", "--fold")["kl_pq"], KL_LETTERS)
    status, _, err = run(("l,n\na,1\nA,3\n", LETTERS[1]), "--align", "--fold")
    assert status == 4
    assert "P has 'a' and 'A'" in err


def test_what_one_file_lacks_is_said(run):
    status, _, err = run(("l,n\na,1\nc,3\n", LETTERS[1]), "--align")
    assert status == 0
    assert "Q lacks 1 label of the other, 'c': taken as empty there" in err
    status, _, err = run(("l,n\nx,1\ny,3\n", LETTERS[1]), "--align")
    assert status == 4
    assert "no label is in both files: P has 'x', 'y', Q 'a', 'b'" in err


# --- histograms -----------------------------------------------------------------------------------


def test_bins_that_differ_are_refused_or_spread(run, compare):
    status, _, err = run(BINS)
    assert status == 4
    assert "the bins differ: P has 10–20, Q 10–15. --rebin" in err
    further = "low,high,n\n0,10,10\n10,20,30\n", "low,high,n\n0,10,5\n10,20,7\n20,35,8\n"
    assert "the bins differ: P has 10–20, Q 20–35. --rebin" in run(further)[2]
    found = compare(BINS, "--rebin")
    p = np.array([5, 5, 10, 10, 30]) / 60
    q = np.array([30, 10, 10, 10 / 3, 20 / 3]) / 60
    close(found["kl_pq"], np.sum(p * np.log(p / q)))  # 0.7280652…
    close(found["kl_pq"], 0.7280651923504888)
    assert found["p"]["form"] == "counts"
    assert {each["class"] for each in found["contributors"]} >= {"10–15", "25–30"}
    close(compare((BINS[0], BINS[0]))["kl_pq"], 0)


def test_edges_in_labels_or_other_columns(compare, run):
    intervals = 'bin,n\n"(10, 20]",10\n"(20, 30]",20\n"(30, 40]",30\n'
    close(compare((intervals, BINS[1]), "--rebin")["kl_pq"], 0.7280651923504888)
    odd = [text.replace("low,high", "u,v") for text in BINS]
    assert "--labels u" in run(odd)[2]
    options = "--labels", "u", "--labels", "v"
    assert "the bins differ" in run(odd, *options)[2]
    close(compare(odd, *options, "--rebin")["kl_pq"], 0.7280651923504888)
    assert "needs the edges" in run(LETTERS, "--rebin")[2]


def test_bins_with_gaps_and_beyond_one_another(compare):
    texts = "low,high,n\n0,10,10\n20,30,10\n", "low,high,n\n0,30,30\n"
    found = compare(texts, "--rebin")
    close(found["kl_pq"], math.log(1.5))
    assert found["kl_qp"] == "inf"  # Q has a third where P has nothing


# --- sums and signs -------------------------------------------------------------------------------


def test_per_cent_asks_to_be_normalised(run, compare):
    texts = "l,pct\na,60.5\nb,39.5\n", "l,pct\na,50.5\nb,49.5\n"
    status, out, err = run(texts)
    assert (status, out) == (4, "")
    assert "P sums to 100, not to 1. --normalize" in err
    p, q = np.array([0.605, 0.395]), np.array([0.505, 0.495])
    close(compare(texts, "--normalize")["kl_pq"], np.sum(p * np.log(p / q)))
    signs = tuple(text.replace(".5", ".5 %") for text in texts)
    close(compare(signs)["kl_pq"], np.sum(p * np.log(p / q)))


@pytest.mark.parametrize("form", ["probs", "log-probs", "counts"])
def test_no_divergence_is_negative(compare, tmp_path, form):
    if form == "counts":
        p, q = np.array([10**15 + 1, 10**15]), np.array([10**15, 10**15 + 1])
        expected = 5e-31, 5e-31, 1.25e-31
    else:
        p = np.random.default_rng(0).random((4, 2000)) + 0.5
        p /= p.sum(axis=1, keepdims=True)
        q = p * (1 + 1e-3 * np.random.default_rng(1).normal(size=p.shape))
        p, q = p.astype(np.float16), q.astype(np.float16)
        x, y = p.astype(np.float64), q.astype(np.float64)
        m = (x + y) / 2
        terms = [a * np.log(a / b) + b - a for a, b in ((x, y), (y, x), (x, m), (y, m))]
        means = [each.sum(axis=1).mean() for each in terms]
        expected = means[0], means[1], (means[2] + means[3]) / 2
        p, q = (p, q) if form == "probs" else (np.log(x), np.log(y))
    found = compare((saved(p), saved(q)), "--from", form, name="{}.npy")
    close(
        [found[name] for name in ("kl_pq", "kl_qp", "js")], expected, 2e-3 if len(p) == 2 else 1e-7
    )


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# --- what else is in tables -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("na", "q", "expected"),
    [
        ("drop", "l,n\na,2\nb,2\nc,7\n", KL_LETTERS),
        ("zero", "l,n\na,2\nb,2\nc,4\n", KL_LETTERS + math.log(2)),
    ],
)
def test_missing_numbers(run, compare, na, q, expected):
    texts = "l,n\na,1\nb,3\nc,NA\n", q
    status, _, err = run(texts)
    assert status == 4
    assert "line 4, column 'n': 'NA' is no number: it is missing. --na zero" in err
    found = compare(texts, "--na", na)
    close(found["kl_pq"], expected)
    dropped = [text for text in found["warnings"] if "left out of both" in text]
    assert len(dropped) == (na == "drop")


def test_options_reach_every_command_that_reads(run, command):
    texts = "a;1,5\nb;4,5\n", "a;1,5\nb;4,5\n"
    options = "--sep", ";", "--decimal", ",", "--no-header"
    assert run(texts, *options, "--normalize")[0] == 0
    status, out, _ = command("diagnose", "p.csv", "q.csv", *options, "--json")
    assert json.loads(out)["q"] == "q.csv"
    assert status == 0


def test_diagnose_says_what_it_took_files_for(run, command):
    run(LETTERS)
    out = command("diagnose", "p.csv", "q.csv")[1]
    assert out.count("taken as counts") == 2
    assert "log-probabilities" not in out


def test_standard_input_and_pipes(run, compare, tmp_path, monkeypatch, command):
    run(LETTERS)

    class Stdin:
        buffer = io.BytesIO(LETTERS[0].encode())

    monkeypatch.setattr("sys.stdin", Stdin)
    status, out, err = command("-", "q.csv", "--json")
    assert status == 0, err
    close(json.loads(out)["kl_pq"], KL_LETTERS)
    status, _, err = command("-", "q.csv")
    assert (status, "is empty" in err) == (4, True)


# --- samples --------------------------------------------------------------------------------------


def test_categories_are_counted(compare, run):
    texts = "city\na\nb\nb\nb\n", "city\na\nb\na\nb\nNA\n"
    assert "--from samples" in run(texts)[2]
    found = compare(texts, "--from", "samples")
    (column,) = found["columns"]
    close(column["kl_pq"], KL_LETTERS)
    close(column["psi"], 0.25 * math.log(3))
    close(column["psi"], column["kl_pq"] + column["kl_qp"])
    close(column["tv"], 0.25)
    assert column["missing"] == [0, 1]
    assert found["warnings"] == ["column city: 1 missing cell is left out"]


@pytest.mark.parametrize(("one", "other"), [("Rome", "rome "), ("Zürich", "Zu\u0308rich")])
def test_categories_of_two_spellings_are_said(compare, one, other):
    texts = f"city\n{one}\nOslo\n", f'city\n"{other}"\nOslo\n'
    (note,) = compare(texts, "--from", "samples")["warnings"]
    assert "differ by case, blanks or Unicode form alone, are two" in note
    assert compare((texts[0], "city\nBern\nOslo\n"), "--from", "samples")["warnings"] == []


def table(seed, shift):
    random = np.random.default_rng(seed)
    rows = zip(
        random.normal(shift, size=400).round(6),
        random.integers(1, 6, size=400),
        random.choice(["a", "b"], size=400),
        strict=True,
    )
    return "x,rate,city\n" + "\n".join(",".join(map(str, row)) for row in rows)


@pytest.mark.parametrize(
    ("classes", "size", "step"), [(5, 1000, 0.3), (20, 500, 0.3), (50, 10_000, 0)]
)
def test_intervals_of_counts_cover_the_truth(classes, size, step):
    """A plain percentile interval covers none of those of many classes: all draws are too large."""
    drift = pytest.importorskip("kldiv.cli.drift")
    random, covered = np.random.default_rng(1), 0
    for _ in range(60):
        p = random.dirichlet(np.full(classes, 5.0))
        q = p * np.exp(step * random.normal(size=classes))
        q /= q.sum()
        counts = [random.multinomial(size, each).astype(float) for each in (p, q)]
        found = kldiv.kl_divergence(*counts, normalize=True)
        interval, reverse = drift._resampled(counts, (float(found), math.inf))
        assert reverse is None
        covered += max(interval[0], 0.0) <= kldiv.kl_divergence(p, q) <= interval[1]
    assert covered >= 53  # 57 are expected


RECORDS = '[{"label": "a", "score": 0.25}, {"label": "b", "score": 0.75}]'
REVERSED = '[{"label": "b", "score": 0.75}, {"label": "a", "score": 0.25}]'
WRITTEN = {
    "records by number": ('{"0": {"l": "a", "n": 1}, "1": {"l": "b", "n": 3}}',) * 2,
    "split": (
        '{"columns": ["n"], "index": ["a", "b"], "data": [[1], [3]]}',
        '{"columns": ["n"], "index": ["b", "a"], "data": [[3], [1]]}',
    ),
    "split, of a series": (
        '{"name": "n", "index": ["a", "b"], "data": [1, 3]}',
        '{"name": "n", "index": ["b", "a"], "data": [3, 1]}',
    ),
    "records in a list": (f"[{RECORDS}]", REVERSED),
    "records below members": (f'{{"x": {{"y": {RECORDS}}}}}', f'{{"x": {{"y": {REVERSED}}}}}'),
    "a comma after the last cell": ("l,n\na,1,\nb,3,\n", "l,n\nb,3,\na,1,\n"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_tables_as_other_programs_write_them(compare, name):
    """Q has P's rows in another order, where there is one."""
    key = {"records below members": "::x::y", "a comma after the last cell": "::n"}.get(name, "")
    file = "{}.csv" if "comma" in name else "{}.json"
    found = compare(WRITTEN[name], "--align", name=file, key=key)
    assert (found["kl_pq"], found["kl_qp"], found["classes"]) == (0.0, 0.0, 2)
    assert {each["class"] for each in found["contributors"]} == {"a", "b"}


def test_an_index_of_pandas_is_labels(run, tmp_path, command):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    run(LETTERS)
    table = pa.table({"l": ["a", "b"], "year": [1, 2], "n": [1, 3]})
    note = {"pandas": json.dumps({"index_columns": ["l", "year"]})}
    parquet.write_table(table.replace_schema_metadata(note), tmp_path / "p.parquet")
    status, out, err = command("p.parquet", "p.parquet", "--json")
    assert status == 0, err
    assert [each["class"] for each in json.loads(out)["contributors"]] == ["a / 1", "b / 2"]


def test_a_label_that_is_there_twice_is_said(compare):
    found = compare(("l,n\na,1\na,3\n", "l,n\na,2\na,2\n"))
    close(found["kl_pq"], KL_LETTERS)
    assert any("2 classes are 'a', each by itself" in text for text in found["warnings"])


def test_each_file_may_have_its_own_encoding(compare):
    texts = tuple(
        text.replace("a", "中文").encode(e)
        for text, e in zip(LETTERS, ("gbk", "utf-8"), strict=True)
    )
    found = compare(texts, "--encoding", "gbk")
    close(found["kl_pq"], KL_LETTERS)


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("{}.csv", "l,n\na,1\nb,nan\nc,3\n", "line 3, column 'n': 'nan'"),
        ("{}.txt", "w n\na 1\nb NaN\nc 3\n", "line 3, column 'n': 'NaN'"),
        ("{}.json", '{"a": 1, "b": NaN, "c": 3}', "record 2, column 'value': 'nan'"),
        ("{}.json", "[1, NaN, 3]", "value 2 of 3: 'nan' is no number: it is missing"),
        ("{}.jsonl", '{"n": 1}\n{"n": NaN}\n{"n": 3}\n', "record 2, column 'n': 'nan'"),
    ],
)
def test_nan_is_a_missing_number_in_every_format(run, compare, name, text, place):
    status, out, err = run((text, text), name=name)
    assert (status, out) == (4, "")
    assert place in err
    found = compare((text, text.replace("3", "9")), "--na", "drop", name=name)
    close(found["kl_pq"], 0.25 * math.log(2.5) + 0.75 * math.log(0.75 / 0.9))
    zero = compare((text, text.replace("3", "9")), "--na", "zero", name=name)
    close(zero["kl_pq"], found["kl_pq"])


def test_a_report_of_drift(compare, run):
    texts = table(0, 0.0), table(1, 1.0) + "\n"
    columns = compare(texts, "--from", "samples")["columns"]
    assert next(each["column"] for each in columns) == "x"
    assert {each["column"]: each["kind"] for each in columns} == {
        "x": "numbers",
        "rate": "5 classes",
        "city": "2 classes",
    }
    low, high = columns[0]["kl_pq_interval"]
    assert low < 0.5 < high  # between normals of means 0 and 1
    for each in columns[1:]:  # of one distribution
        low, high = each["kl_pq_interval"]
        assert low < 0.005 < each["kl_pq"] + 0.005 < high + 0.02
    status, out, _ = run(texts, "--from", "samples")
    assert status == 0
    lines = out.splitlines()
    assert lines[3].split()[:3] == ["column", "D(P‖Q)", "95"]
    assert lines[4].startswith("x ")
    binned = compare(texts, "--from", "samples", "--bins", "4", "--values", "x")["columns"]
    assert binned[0]["kind"] == "numbers, 4 bins"
    assert 0.3 < binned[0]["kl_pq"] < 0.5  # bins lose some


def test_a_column_that_neighbours_do_not_serve_goes_by_bins(compare):
    ties = [f"{i % 4 + 0.5},{i / 7}" for i in range(80)]
    texts = ("x,y\n" + "\n".join(ties), "x,y\n" + "\n".join(ties[:60]))
    found = compare(texts, "--from", "samples")
    assert {each["column"]: each["kind"] for each in found["columns"]} == {
        "x": "numbers, 4 bins",
        "y": "numbers",
    }
    assert found["warnings"] == ["column x: by 10 bins, as neighbours do not serve"]


@pytest.mark.parametrize(
    ("texts", "options", "said"),
    [
        (("x\n1.5\n2.5\n", "x\n1.5\n2.5\n"), (), "nearest neighbours need 20"),
        (("x\na\nb\n", "x\n1.5\n2.5\n"), (), "categories in P and numbers"),
        (("x,y\na,b\n", "z,w\na,b\n"), (), "no column is in both"),
        (
            tuple(f"id\n{2**60 + i}\n{2**60 + i}\n" for i in (1, 2)),
            (),
            "column 'id' has whole numbers beyond 2**53",
        ),
        (LETTERS, ("--align",), "--align: not for samples"),
    ],
)
def test_samples_that_cannot_be_compared(run, texts, options, said):
    status, _, err = run(texts, "--from", "samples", *options)
    assert status in {2, 4}
    assert said in err


def test_an_estimate_below_0_is_said_in_words():
    from kldiv.cli.fit import _row
    from kldiv.estimators import Estimate
    from kldiv.fitting import Fit

    fit = Fit("Normal", {}, 0.0, 0.0, 0.0, Estimate(-0.0044, 0.01, -0.02, 0.011, 100))
    assert _row(fit, best=True)[3:6] == ["none seen", "0.0000", "0.0110"]


# --- files as strangers have them -----------------------------------------------------------------

AB = "l,n\na,5\nb,3\n"


def swapped(p, q):
    p, q = (np.array(each) / np.sum(each) for each in (p, q))
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize(
    ("texts", "options", "name", "expected"),
    [
        (("sep=;\r\nl;n\r\na;5\r\nb;3\r\n", AB), (), "{}.csv", 0.0),
        (("l,n,,\r\na,6,,\r\nb,2,,\r\n,,,\r\n", AB), (), "{}.csv", swapped([6, 2], [5, 3])),
        (('"";"n"\n"a";6\n"b";2\n', AB), (), "{}.csv", swapped([6, 2], [5, 3])),
        ((",0\n0,6\n1,2\n", ",0\n0,5\n1,3\n"), (), "{}.csv", swapped([6, 2], [5, 3])),
        ((gzip.compress(AB.encode()), AB), (), "{}.csv", 0.0),
        ((gzip.compress(AB.encode()),) * 2, (), "{}.gz", 0.0),
        (('w\tn\n"\t6\nthe\t2\n', 'w\tn\n"\t5\nthe\t3\n'), (), "{}.tsv", swapped([6, 2], [5, 3])),
        (('"Sales"\n\nl,n\na,5\nb,3\n', AB), ("--comment", "Sales"), "{}.csv", 0.0),
        (("l,n\né,5\n".encode("latin-1"), "l,n\né,4\n"), ("--encoding", "latin-1"), "{}.csv", 0.0),
        (("l,n\n\u200ba,5\nb,3\n", AB), ("--align", "--fold"), "{}.csv", 0.0),
        ((bz2.compress(AB.encode()),) * 2, (), "{}.csv.bz2", 0.0),
        ((lzma.compress(AB.encode()),) * 2, (), "{}.csv.xz", 0.0),
        ((",2023\na,5\nb,3\n",) * 2, (), "{}.csv", 0.0),
    ],
)
def test_a_file_that_a_stranger_has(compare, texts, options, name, expected):
    close(compare(texts, *options, name=name)["kl_pq"], expected, 1e-12)


@pytest.mark.parametrize(
    ("text", "options", "name", "said"),
    [
        ("l,n\na,5\nb,6\nTotal,11\n", (), "{}.csv", "--comment Total. It stays where --labels"),
        ("l,n\na,5\nb,6\n,11\n", (), "{}.csv", "P's class '' is the sum of all others"),
        ("l,n\na,5\nb,6\nSumme,11\n", (), "{}.csv", "--comment Summe"),
        ("id,l,n\n101,a,5\n102,b,6\n", (), "{}.csv", "'id' may be labels"),
        ("year,n\n2019,1\n2021,3\n", (), "{}.csv", "labels or values?"),
        ("#note\n#year,n\n1,1\n2,2\n", (), "{}.csv", "--labels year says labels"),
        ("price,n\n9.99,1\n3.5,3\n", (), "{}.csv", "labels or values?"),
        ("t,n\n-1,1\n1,3\n", (), "{}.csv", "labels or values?"),
        ("l,code,n\na,7,5\nb,3,6\n", (), "{}.csv", "'code' may be labels"),
        ("l,x,n\na,3,5\nb,6,6\nc,9,8\nd,12,1\n", (), "{}.csv", "'x' may be labels"),
        ("version https://git-lfs.github.com/spec/v1\n", (), "{}.csv", "git lfs pull"),
        (b"PK", (), "{}.zip", "Unpack it first"),
        ("l,n,m\na,50,3\nb,2,3\n", ("--from", "probs"), "{}.csv", "file::column takes one"),
        ("c,year,n\nA,2020,5\nA,2021,3\n", (), "{}.csv", "--labels c --labels year says labels"),
        ('w\tn\n"\t5\nthe\t9\n"\t2\n', (), "{}.tsv", "quotation mark in line 2"),
        ('l,n\n"a,5\nb,3\n', (), "{}.csv", "does not end"),
        ('n,l\n5,a\n3,"\n', (), "{}.csv", "does not end"),
        ("Sales of May\nl,n,m\na,5,3\n", (), "{}.csv", "--comment 'Sales of May'"),
        ("Sales\nl,n\na,5\nb,3\n", (), "{}.csv", "take out all above it: --comment Sales"),
        ("l,n\na,5\nb,3\nSource: us\n", (), "{}.csv", "--comment 'Source: us'"),
        ("l,n\na,$5\nb,$3\n", (), "{}.csv", "without a currency"),
        ("x,,\n1,2,3\n", (), "{}.csv", "column 2 has no name"),
        ("Region,Sales,\n,2023,2024\nN,10,20\n", (), "{}.csv", "--comment Region does"),
        ("l,v,v\nc,x,y\na,1,2\n", (), "{}.csv", "or leave it out by --comment"),
        ("| l | n |\n|---|---|\n| a | 6 |\n| b | 3 |\n", (), "{}.txt", "its start as --comment"),
        ("l\tn\na\t1\nb 3\n", (), "{}.tsv", "Blanks separate its cells"),
        ("[0.25, 0.75]\n", (), "{}.txt", "name it .json"),
        ('{"x": {"y": [{"l": "a", "n": 1}]}}', (), "{}.json", "p.json::x::y"),
        ("l,n\na,1e308\nb,1e308\n", (), "{}.csv", "sums to more than the largest number"),
        ("<!DOCTYPE html><html>", (), "{}.csv", "a web page"),
        (b"PK\x03\x04" + bytes(60), (), "{}.csv", "Name it .xlsx"),
        ("l,n\n", (), "{}.xlsx", "name it .csv"),
        (b"\xd0\xcf\x11\xe0" + bytes(60), (), "{}.xls", "a table as .csv or .xlsx"),
        ('{"a": 5, "a": 7, "b": 3}', (), "{}.json", "'a': stands twice"),
        ("word,n\na,5\nb,3\n", ("--labels", "wrod"), "{}.csv", "Did you mean 'word'"),
    ],
)
def test_a_file_that_is_asked_about(run, text, options, name, said):
    status, out, err = run((text, text), *options, name=name)
    assert (status, out) == (4, "")
    assert said in err


def test_labels_that_differ_by_a_blank_in_one_file_are_asked_about(run, compare):
    texts = "l,n\na,1\na ,2\nb,1\n", "l,n\na,1\nb,3\n"
    for pair, name in ((texts, "P"), (texts[::-1], "Q")):
        status, _, err = run(pair, "--align")
        assert status == 4
        assert f"{name} has 'a' and 'a ', which differ by blanks alone" in err
    assert compare(texts, "--align", "--no-fold")["kl_pq"] == "inf"


def test_members_of_json_are_columns_and_that_is_said(run):
    text = json.dumps({"p": {"a": 1, "b": 3}, "q": {"a": 2, "b": 2}})
    status, _, err = run((text, text), name="{}.json")
    assert status == 0
    assert "members of p.json are columns, and each of 'a', 'b' a row; --axis 0" in err


def test_a_ruled_line_is_left_out_as_said(compare):
    texts = [f"| l | n |\n|---|---|\n| a | {n} |\n| b | {8 - n} |\n" for n in (6, 5)]
    found = compare(texts, "--comment", "|---", name="{}.txt")
    close(found["kl_pq"], swapped([6, 2], [5, 3]))


def test_truth_values_are_labels_and_categories(compare, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = []
    for name, flags, numbers in (("p", [True, False], [6, 2]), ("q", [False, True], [3, 5])):
        buffer = io.BytesIO()
        parquet.write_table(pa.table({"flag": flags, "n": numbers}), buffer)
        texts.append(buffer.getvalue())
        rows = [{"flag": flag, "n": n} for flag, n in zip(flags, numbers, strict=True)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    expected = swapped([6, 2], [5, 3])
    close(compare(texts, "--align", name="{}.parquet")["kl_pq"], expected)
    json_texts = [(tmp_path / f"{name}.json").read_bytes() for name in "pq"]
    close(compare(json_texts, "--align", name="{}.json")["kl_pq"], expected)
    columns = compare(texts, "--from", "samples", name="{}.parquet", key="::flag")["columns"]
    assert columns[0]["kind"] == "2 classes"


def test_a_total_that_is_a_class_of_its_own_stays(compare):
    text = "l,n\na,5\nb,6\nTotal,11\n"
    assert compare((text, text), "--labels", "l")["classes"] == 3
    other = text.replace("11", "12")
    assert compare((other, other))["classes"] == 3


def test_a_column_of_parquet_is_a_sample(tmp_path, compare):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    words = pa.array(["a", None, "NA", "b", "a"]).dictionary_encode()
    whole = [1, 2, None, 2, 1]
    parquet.write_table(pa.table({"c": words, "x": whole, "y": [True] * 5, "z": whole}), file)
    data = file.getvalue()
    for options, names in (
        ((), {"c", "x", "y", "z"}),
        (("--values", "c", "--values", "x"), {"c", "x"}),
        (("--labels", "z"), {"c", "x", "y"}),
    ):
        found = compare((data, data), "--from", "samples", *options, name="{}.parquet")["columns"]
        assert {each["column"] for each in found} == names
    missing = {each["column"]: each["missing"] for each in found}
    assert missing == {"c": [2, 2], "x": [1, 1], "y": [0, 0]}


def test_many_numbers_go_by_bins_unless_asked(compare, monkeypatch):
    monkeypatch.setattr("kldiv.cli.drift._MANY", 30)
    texts = table(0, 0.0), table(1, 1.0)
    found = compare(texts, "--from", "samples", "--values", "x")
    assert found["columns"][0]["kind"] == "numbers, 10 bins"
    assert "--neighbours goes by" in found["warnings"][0]
    found = compare(texts, "--from", "samples", "--values", "x", "--neighbours")
    assert found["columns"][0]["kind"] == "numbers"


def test_bins_hold_equal_shares_of_both():
    from kldiv.cli.drift import _binned

    rng = np.random.default_rng(0)
    for _ in range(50):
        p, q = (rng.normal(size=size).round(1) for size in rng.integers(1, 40, 2))
        bins, both = int(rng.integers(2, 9)), np.sort(np.concatenate([p, q]))
        share = [(p <= v).mean() / 2 + (q <= v).mean() / 2 for v in both]
        first = [min(both[np.array(share) > k / bins - 1e-12]) for k in range(1, bins)]
        edges = sorted({*first} - {both[-1]})
        for found, each in zip(_binned(p, q, bins), (p, q), strict=True):
            expected = np.bincount(np.searchsorted(edges, each), minlength=len(edges) + 1)
            np.testing.assert_array_equal(found, expected)
