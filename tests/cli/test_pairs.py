"""``kldiv compare --pairwise``: numbers, names, questions, and the picture."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import kldiv
from kldiv import readers, streaming
from kldiv.errors import OptionError

TABLE = "word,a,b,c\nx,1,2,3\ny,4,5,6\nz,0,1,1\n"
COLUMNS = np.array([[1, 4, 0], [2, 5, 1], [3, 6, 1]])
FILES = {
    "t.csv": TABLE,
    "one.csv": "word,n\nx,1\ny,4\n",
    "two.csv": "word,n\ny,3\nz,5\n",
    "three.csv": "word,n\nX,2\ny,2\n",
    "probs.csv": "word,n\nx,0.25\ny,0.75\n",
    "far.csv": "word,n\nx,0.5\ny,0.75\n",
    "negative.csv": "word,n\nx,-1\ny,2\n",
    "nothing.csv": "word,n\nx,0\ny,0\n",
    "huge.csv": "word,n\nx,1e308\ny,1e308\n",
    "lost.csv": "word,n\nx,-inf\ny,-inf\n",
}


@pytest.fixture
def run(tmp_path, monkeypatch, command):
    """Run the command in a folder of files; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return lambda *arguments: command("compare", *arguments, "--pairwise")


@pytest.fixture
def matrix(run):
    """Return the names and the only matrix of a run that must succeed."""

    def matrix(*arguments):
        status, out, err = run(*arguments, "--json")
        assert status == 0, err
        found = json.loads(out)
        ((_, one),) = found["divergences"].items()
        return found["labels"], np.array(one["matrix"], float)

    return matrix


def test_the_columns_and_the_rows_of_a_table(matrix, run):
    for axis, names, rows in (
        ("0", ["a", "b", "c"], COLUMNS),
        ("-2", ["a", "b", "c"], COLUMNS),
        ("-1", ["x", "y", "z"], COLUMNS.T),
    ):
        labels, found = matrix("t.csv", "--axis", axis)
        assert labels == names
        np.testing.assert_allclose(found, kldiv.pairwise(rows, normalize=True), rtol=1e-15)
    _, logits = matrix("t.csv", "--axis", "0", "--from", "logits", "--divergence", "renyi:2")
    softmax = np.exp(COLUMNS * 1.0)
    wanted = kldiv.pairwise(softmax, divergence="renyi:2", normalize=True)
    np.testing.assert_allclose(logits, wanted, rtol=1e-13, atol=1e-16)
    status, out, err = run("t.csv", "--axis", "0")
    assert status == 0
    assert [line.split() for line in out.splitlines()[3:6]] == [
        ["a", "b", "c"],
        ["a", "0.000000", "0.152859", "0.149053"],
        ["b", "inf", "0.000000", "0.007826"],
    ]
    assert "--from counts or --normalize says so" in err
    assert "2 of 6 pairs have an infinite kl" in err


def test_several_files_by_label(matrix, run):
    labels, found = matrix("one.csv", "two.csv", "probs.csv", "--align", "--smoothing", "0")
    assert labels == ["one", "two", "probs"]
    rows = np.array([[0.2, 0.8, 0], [0, 3 / 8, 5 / 8], [0.25, 0.75, 0]])
    np.testing.assert_allclose(found, kldiv.pairwise(rows), rtol=1e-15)
    smooth = ("one.csv", "two.csv", "--align", "--smoothing", "0.5", "--divergence", "chi2")
    rows = np.array([[1.5, 4.5, 0.5], [0.5, 3.5, 5.5]])
    wanted = kldiv.pairwise(rows, divergence="chi2", normalize=True)
    np.testing.assert_allclose(matrix(*smooth)[1], wanted, rtol=1e-15)
    assert matrix("one.csv", "three.csv", "--align", "--fold")[1].max() == pytest.approx(
        kldiv.pairwise(np.array([[1, 4], [2, 2]]), normalize=True).max()
    )
    assert matrix("t.csv::a", "t.csv::c")[0] == ["a", "c"]
    assert matrix("t.csv::a", "t.csv::a")[0] == ["t.csv::a", "t.csv::a"]
    assert matrix("one.csv", "t.csv::a", "--align")[0] == ["one", "t.csv::a"]
    assert matrix("one.csv", "t.csv", "--axis", "0", "--align")[0] == [
        *("one", "t::a", "t::b", "t::c")
    ]
    _, _, err = run("one.csv", "probs.csv", "--align")
    assert "one.csv: read as counts (all numbers are whole)" in err
    assert "read as counts" not in run("probs.csv", "probs.csv", "--align")[2]
    status, out, _ = run(
        *("one.csv", "probs.csv", "--csv", "--divergence", "tv", "--divergence", "js")
    )
    assert status == 0
    lines = [line.split(",") for line in out.splitlines()]
    assert lines[0] == ["divergence", "", "one", "probs"]
    assert float(lines[1][3]) == pytest.approx(0.05)
    assert [line[0] for line in lines[1:]] == ["tv", "tv", "js", "js"]


def test_a_matrix_that_is_too_wide(run):
    rows = np.random.default_rng(0).dirichlet(np.ones(4), 20)
    np.save("wide.npy", rows)
    status, out, _ = run("wide.npy", "--divergence", "js", "--top", "4")
    assert status == 0
    found = kldiv.pairwise(rows, divergence="js")
    furthest = np.unravel_index(found.argmax(), found.shape)
    lines = [line.split() for line in out.splitlines()]
    assert sorted(map(int, lines[5][:2])) == sorted(map(int, furthest))
    assert len(lines) == 12
    assert "--csv and --json print the whole matrix" in out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("one.csv",), 4, "one.csv holds one distribution"),
        (("one.csv", "two.csv"), 4, "'x' in one.csv, 'y' in two.csv. --align"),
        (("one.csv", "three.csv", "--align"), 4, "Q is three.csv"),
        (("one.csv", "far.csv"), 4, "far sums to 1.25, not to 1. --normalize"),
        (("one.csv", "negative.csv"), 4, "negative has -1"),
        (("one.csv", "nothing.csv"), 4, "nothing has no probability anywhere"),
        (("one.csv", "huge.csv"), 4, "huge sums to more than the largest number"),
        (("one.csv", "lost.csv", "--from", "logits"), 4, "lost has no probability anywhere"),
        (("one.csv", "none.csv"), 4, "none.csv: no such file"),
        (("one.csv", "probs.csv", "--divergence", "tvv"), 2, "expected one of kl"),
        (("one.csv", "probs.csv", "--smoothing", "1"), 2, "--normalize"),
        (("one.csv", "one.csv", "--from", "samples"), 2, "not samples"),
        (("one.csv", "one.csv", "--rebin"), 2, "--rebin: not with --pairwise"),
        (("one.csv", "one.csv", "--fold"), 2, "--align"),
        (("-", "-"), 2, "standard input"),
        (("one.csv", "one.csv", "--json", "--csv"), 2, "choose one"),
    ],
)
def test_what_cannot_be_done(run, arguments, status, said):
    code, out, err = run(*arguments)
    assert code == status
    assert said in err
    assert not out


def test_three_files_are_pairs_only_if_asked(run, command):
    status, _, err = command("compare", "one.csv", "two.csv", "three.csv")
    assert status == 2
    assert "--pairwise compares all pairs of more" in err
    status, _, err = command("compare", "one.csv", "two.csv", "--csv")
    assert status == 2
    assert "say --pairwise" in err
    assert command("t.csv", "--pairwise")[0] == 0  # without the word compare


def test_the_picture(run, drawn):
    rows = np.array([[8, 1, 1], [0, 5, 5], [9, 1, 1], [1, 5, 6]])
    np.save("x.npy", rows)
    assert run("x.npy", "--plot", "x.png", "--divergence", "kl")[0] == 0
    ((figure, path),) = drawn
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    texts = [text.get_text() for text in axes.texts]
    assert path == "x.png"
    assert texts.count("∞") == 3
    assert "red: infinite" in figure.get_suptitle()
    try:
        import scipy.cluster  # noqa: F401
    except ImportError:
        assert names == ["0", "1", "2", "3"]
    else:
        assert abs(names.index("0") - names.index("2")) == 1
        assert abs(names.index("1") - names.index("3")) == 1
    assert run("x.npy", "--plot", "x.png", "--divergence", "kl", "--divergence", "tv")[0] == 2


def test_compare_draws_what_makes_a_direction_infinite(run, command, drawn):
    assert command("compare", "two.csv", "one.csv", "--align", "--plot", "x.png")[0] == 0
    ((figure, _),) = drawn
    said = figure.get_supxlabel().splitlines()
    assert said == ["D(P‖Q) = ∞: Q lacks z (62.5 % of P)", "D(Q‖P) = ∞: P lacks x (20 % of Q)"]
    assert "D(Q‖P) ∞" in [text.get_text() for text in figure.axes[1].texts]
    assert math.isfinite(figure.get_figheight())


def test_the_picture_of_a_drift_report(run, command, drawn, tmp_path):
    random = np.random.default_rng(0)
    for name, shift in (("p", 0.0), ("q", 2.0)):
        cells = zip(
            random.normal(size=60), random.normal(shift, size=60), ["a", "b$"] * 30, strict=True
        )
        lines = "".join(f"{x},{y},{word},{i % 3}\n" for i, (x, y, word) in enumerate(cells))
        (tmp_path / f"{name}.csv").write_text(f"same,moved,word,few\n{lines}", encoding="utf-8")
    arguments = ("compare", "p.csv", "q.csv", "--from", "samples", "--plot", "x.png")
    assert command(*arguments)[0] == 0
    panels = [axes for axes in drawn[0][0].axes if axes.get_visible()]
    titles = [axes.get_title(loc="left").splitlines()[0] for axes in panels]
    assert titles[:2] == ["moved", "same"]
    assert sorted(titles[2:]) == ["few", "word"]
    word = panels[titles.index("word")]
    assert [label.get_text() for label in word.get_xticklabels()] == ["a", "b$"]
    assert [bar.get_height() for bar in word.patches] == [0.5] * 4
    assert command(*arguments, "--top", "1")[0] == 0
    assert len(drawn[1][0].axes) == 1


def test_a_picture_of_a_drift_report_reads_each_column_once(run, command, monkeypatch):
    pytest.importorskip("matplotlib")
    parquet = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    for name, shift in (("p", 0.0), ("q", 2.0)):
        numbers = np.random.default_rng(0).normal(shift, size=60)
        parquet.write_table(pa.table({"x": numbers, "y": numbers}), f"{name}.parquet")
    read, seen = readers.read_samples, []
    monkeypatch.setattr(readers, "read_samples", lambda *a, **k: seen.append(a) or read(*a, **k))
    arguments = ("compare", "p.parquet", "q.parquet", "--from", "samples", "--plot", "x.png")
    assert command(*arguments)[0] == 0
    assert len(seen) == 4


def test_what_is_missing_is_asked_about(matrix, run, tmp_path):
    np.save(tmp_path / "x.npy", [[1.0, 3.0, np.nan], [2.0, 2.0, 2.0]])
    status, _, err = run("x.npy")
    assert status == 4
    assert "0 has nan: it is missing. --na zero" in err
    for na, p, q in (("drop", [1, 3], [2, 2]), ("zero", [1, 3, 0], [2, 2, 2])):
        _, found = matrix("x.npy", "--na", na, "--normalize")
        wanted = kldiv.kl_divergence(np.array(p), np.array(q), normalize=True)
        np.testing.assert_allclose(found[0, 1], wanted, rtol=1e-14)
        assert matrix("x.npy", "--na", na)[1].tolist() == found.tolist()  # counts, but for a hole


def test_shards_follow_one_another_along_the_rows(tmp_path):
    rows = np.random.default_rng(0).dirichlet(np.ones(4), 5)
    for number, part in enumerate(np.split(rows, [2])):
        np.save(tmp_path / f"part-{number}.npy", part)
    found = streaming.pairwise(tmp_path, form="probs").divergences["kl"]
    np.testing.assert_allclose(found, kldiv.pairwise(rows), rtol=1e-14)


@pytest.mark.parametrize("form", ["counts", "logits"])
@pytest.mark.parametrize("text", ["skew:7", "renyi:-1", "mixture"])
def test_a_bad_divergence_is_refused_before_any_file_is_read(text, form):
    with pytest.raises(OptionError):
        streaming.pairwise("missing.csv", divergences=text, form=form)
