"""Text as people write it: separators, marks, encodings, comments; asked for where in doubt."""

from __future__ import annotations

import numpy as np
import pytest

from kldiv.errors import InputError, OptionError
from kldiv.readers import Reading, read, read_samples, text_files

AB = (("a", "b"), [1.5, 2.25])


@pytest.fixture
def found(tmp_path):
    """Return the labels and numbers of a text."""

    def found(text, *, name="p.csv", key=None, **options):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        table = read(path, key=key, reading=Reading(**options))
        return table.classes, table.array.tolist()

    return found


@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.txt"])
def test_the_separator_that_makes_a_table(found, sep, name):
    assert found("l,n\na,1.5\nb,2.25\n".replace(",", sep), name=name) == AB


def test_a_table_may_be_wider_than_what_is_looked_at(found, monkeypatch):
    monkeypatch.setattr("kldiv.readers.cells._SAMPLE_CELLS", 1)
    assert found("l,n\na,1.5\nb,2.25\n") == AB


def test_blanks_separate_in_txt(found):
    assert found("l   n\n a 1.5\nb\t 2.25  \n", name="p.txt") == AB
    assert found("0.5 0.5\n0.25 0.75\n", name="p.txt") == (None, [[0.5, 0.5], [0.25, 0.75]])
    assert found('"l" "n"\n"1" "a" 1.5\n"2" "b" 2.25\n', name="p.txt") == AB  # R: write.table
    assert found("a b,1.5\nc d,2.25\n", name="p.txt", header=False) == (("a b", "c d"), AB[1])


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        (("1,5", "2,25"), [1.5, 2.25]),
        (("1.500,5", "2.250"), [1500.5, 2250]),
        (("1,234.5", "2,250"), [1234.5, 2250]),
        (("1,234", "1,000,000"), [1234, 10**6]),
        (("1 234", "5"), [1234, 5]),
        (("1\u202f234,5", "5"), [1234.5, 5]),
        (("1'234.50", "5"), [1234.5, 5]),
        (("12,5 %", "87.5%".replace(".", ",")), [0.125, 0.875]),
        (("0,125", "5"), [0.125, 5]),
        (("1,5e-3", "\u22122"), [1.5e-3, -2]),
        (("0.1%", "0.7%"), [0.001, 0.007]),
    ],
)
def test_numbers_that_can_be_read_in_one_way(found, cells, numbers):
    assert found(f"l;n\na;{cells[0]}\nb;{cells[1]}\n") == (("a", "b"), numbers)
    assert found(f'l,n\na,"{cells[0]}"\nb,"{cells[1]}"\n') == (("a", "b"), numbers)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "l;n\na;1,234\nb;2,250\n",
            "'1,234' in line 2 may be a fraction or thousands: decimal='.'",
        ),
        ("l;n\na;1.234\nb;2.250\n", "'1.234' in line 2 may be a fraction or thousands"),
        ('l,n\na,"1,234"\nb,5\n', "may be a fraction or thousands"),
        ("l;n\na;0,5\nb;0.5\n", "'0.5' in line 3 has a decimal point, '0,5' in line 2 a decimal"),
        ("l,n\na,50%\nb,50\n", "column 'n' has % in 1 of 2 cells"),
        ("n\n0,5\n0,25\n", "'0,5' may be one number or two cells: decimal=','"),
        ("a|b,c\nx|1,2\ny|3,4\n", "separated in 2 ways: say sep=',' or sep='|'"),
        ("l,n\na,1\n# x,y\n", "line 3 starts with #: comment='#'"),
        ("l,n\na,1\nb,\n", "line 3, column 'n': '' is no number: it is missing. na='zero'"),
        ("l,n\na,1\nb,#N/A\n", "'#N/A' is no number: it is missing"),
        ("a,10\nb,20\n", "has the numbers ['10']. header=False"),
        ("0,5;0,5\n0,3;0,7\n", "has the numbers ['0,5', '0,5']"),
        ("5\n3\n", "header=False"),
        ("l,n\nä,1\n".encode("cp1252"), "line 2: byte 0xe4 is not UTF-8"),
        ("l,n\nä,1\n".encode("utf-16-le"), "encoding='utf-16-le' reads it"),
        ("id,l,n\n1,a,5\n2,b,7\nx,c,9\n", "line 4, column 'id'"),
        ("group,l,n\n1,a,5\n2,b,7\n", "column 'group' counts the rows: a number of the row"),
        ("rating,n\n5,50\n3,30\n", "column 'rating' may be labels: labels or values?"),
        ("n,rating\n20,5\n20,3\n", "column 'rating' may be labels"),
        ("l,n\na,0,5\nb,0,75\n", "line 2: '0,5' may be one number or two cells: a number with it"),
        ("l,n\na,1,234\nb,2,345\n", "'1,234' may be one number or two cells"),
        ("l,n,m\na,2,0,5\nb,3,0,25\n", "'2,0' may be one number or two cells"),
        ("year,n\n2020,5\n2020,5\n2021,8\n", "column 'year' may be labels"),
        (f"id,n\n{10**17 + 1},5\n{10**17 + 2},5\n", "column 'id' may be labels"),
        ("l,n,share\na,10,40%\nb,15,60%\n", "column 'share' has %, column 'n' has none"),
    ],
)
def test_what_is_in_doubt_is_asked_for(found, text, said):
    with pytest.raises(InputError) as caught:
        found(text)
    assert said in str(caught.value)


def test_thousands_between_blanks_are_asked_for(found):
    with pytest.raises(InputError, match=r"'1 234' may be one number or two cells.*sep=' ' says"):
        found("l n\na 1 234\nb 2 345\n", name="p.txt")
    assert found("l n\na 1 34\nb 2 45\n", name="p.txt")[1] == [[1, 34], [2, 45]]


@pytest.mark.parametrize(
    ("text", "options", "result"),
    [
        ("l;n\na;1,500\nb;2,250\n", {"decimal": ","}, AB),
        ("l;n\na;1,500\nb;2,250\n", {"decimal": "."}, (("a", "b"), [1500, 2250])),
        ("l;n\na;1.500\nb;2.250\n", {"decimal": "."}, AB),
        ("n\n0,5\n0,25\n", {"decimal": ","}, (None, [0.5, 0.25])),
        ("n\n0,5\n0,25\n", {"sep": ","}, (("0", "0"), [5, 25])),
        ("a,1.5\nb,2.25\n", {"header": False}, AB),
        ("l,2020\na,1.5\nb,2.25\n", {"header": True}, AB),
        ("1,2\n1,2\n", {"header": False}, (None, [[1, 2], [1, 2]])),
        ("l,n,m\na,1.5,7\nb,2.25,8\n", {"values": "n"}, AB),
        ("l,n,m\na,1,7\nb,2,8\n", {"values": ("m", "n")}, (("m", "n"), [[7, 1], [8, 2]])),
        ("n,l,k\n1.5,a,x\n2.25,b,y\n", {"labels": "l"}, AB),
        ("n,l\n1.5,a\n2.25,b\n", {"labels": ""}, (None, AB[1])),
        ("l,n\nä,1\n".encode("cp1252"), {"encoding": "cp1252"}, (("ä",), [1])),
        ("\ufeffl,n\na,1\n", {"encoding": "UTF8", "labels": "l"}, (("a",), [1])),
        ('l,n\n"a",1\n'.encode("cp037"), {"encoding": "cp037"}, (("a",), [1])),
        ("l,n\nä,1\n".encode("utf-16"), {}, (("ä",), [1])),
        ("l,n\n% x\na,1.5\nb,2.25\n", {"comment": "%"}, AB),
        ("# made\n# y, z\nl,n\na,1.5\n# end\nb,2.25\n", {}, AB),
        ("l,n\n#,1.5\n#tag,2.25\n", {}, (("#", "#tag"), AB[1])),
        ("l,n\n#,1.5\na,2.25\n", {"comment": "#"}, (("a",), [2.25])),
        ("# l,n\na,1.5\nb,2.25\n", {}, AB),
        ("l,n\na,1.5\nb,NA\n", {"na": "zero"}, (("a", "b"), [1.5, 0])),
        ("l,n\na,0,5\nb,0,7\n", {"sep": ","}, (("l", "n"), [[0, 5], [0, 7]])),
        ('"l","n"\n"a",0,5\n"b",0,7\n', {}, (("l", "n"), [[0, 5], [0, 7]])),  # R: an index
        ("low,high,n\n0,10,40%\n10,20,60%\n", {}, (("0–10", "10–20"), [0.4, 0.6])),
        ("l,n\na,0.5,5.5\nb,0.5,7.5\n", {}, (("l", "n"), [[0.5, 5.5], [0.5, 7.5]])),
        (
            f"id,n\n{10**17 + 1},5\n{10**17 + 2},5\n",
            {"labels": "id"},
            ((str(10**17 + 1), str(10**17 + 2)), [5, 5]),
        ),
    ],
)
def test_what_was_asked_for_is_done(found, text, options, result):
    assert found(text, **options) == result


@pytest.mark.parametrize(
    "text", ["0,1\n5,7\n", ",0.25\na,0.75\n", ",2019,2021\na,5,7\n", "a;0,5;1\n1;0,25;3\n"]
)
def test_a_header_of_numbers_is_said(tmp_path, text):
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    assert "is taken for names of columns; header=False" in read(path).notes[0]
    for sure in (",0,1\na,5,7\n", "id,2019,2021\n3.5,5,7\n"):  # pandas; and words
        path.write_text(sure, encoding="utf-8")
        assert read(path).notes == ()


@pytest.mark.parametrize(
    ("text", "options"),
    [("0,25\n0,75\n", {}), ("0,5\n", {"header": False}), ("1 234\n2 345\n", {})],
)
def test_numbers_without_a_header_may_have_a_mark(found, text, options):
    """They were taken for rows of two numbers."""
    with pytest.raises(InputError, match="may be one number or two cells"):
        found(text, name="p.txt", **options)
    sep = "," if "," in text else " "
    numbers = found(text, name="p.txt", key="*", sep=sep, **options)[1]
    assert numbers == [[float(cell) for cell in row.split(sep)] for row in text.splitlines()]
    if sep == ",":
        numbers = found(text, name="p.txt", decimal=",", header=False)[1]
        assert numbers == [float(row.replace(",", ".")) for row in text.splitlines()]


def test_a_known_decimal_point_is_no_comma(found):
    """0,5 is then two cells; 1,234 may still be thousands."""
    assert found("0,25\n0,75\n", name="p.txt", key="*", decimal=".") == (None, [[0, 25], [0, 75]])
    assert found("n\n0,5\n0,25\n", decimal=".") == (("0", "0"), [5, 25])
    for text, name in (("n\n1,234\n2,345\n", "p.csv"), ("1 234\n2 345\n", "p.txt")):
        with pytest.raises(InputError, match="may be one number or two cells: a number with it is"):
            found(text, name=name, decimal=".")


def test_separators_that_end_lines_without_a_header_are_no_label(found):
    assert found("a\t1.5\t\nb\t2.25\t\n", name="p.tsv", header=False) == AB


def test_separators_that_end_lines_hide_no_cells_far_below(found):
    text = "1,2,\n" * 1005
    assert len(found(text, header=False)[1]) == 1005
    for header in ("a,b,\n", ""):
        with pytest.raises(InputError):
            found(f"{header}{text}3,4,5\n", header=bool(header))


def test_missing_numbers_are_nan_where_their_classes_are_to_go(found):
    labels, numbers = found("l,n\na,1.5\nb,-\n", na="drop")
    assert labels == ("a", "b")
    np.testing.assert_array_equal(numbers, [1.5, np.nan])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sep": ""}, "one character"),
        ({"decimal": ";"}, "'.' or ','"),
        ({"sep": ",", "decimal": ","}, "must differ"),
        ({"na": "mean"}, "'zero' or 'drop'"),
        ({"encoding": "utf-99"}, "no such encoding"),
    ],
)
def test_options_that_do_not_exist(options, said):
    with pytest.raises(OptionError, match=said):
        Reading(**options)


@pytest.mark.parametrize("piece", [1, 7, 1 << 18])
def test_quoted_columns_are_what_rows_are(tmp_path, monkeypatch, piece):
    random, plain = np.random.default_rng(piece), text_files._is_plainly_quoted
    monkeypatch.setattr(text_files, "_PIECE", piece)
    odd = ['"a\nb"', '"a,b"', '"a""b"', '""', '"', 'a"b', '"a"b', '"a" ', '"#x"', '"é"', "NA", ""]
    taken = 0
    for _ in range(150):
        width, end = random.integers(1, 3), random.choice(["\n", "\r\n", "\r"])
        lines = ['"l","n"'[: 4 * width - 1]]
        for _ in range(random.integers(1, 9)):
            cells = [random.choice(['"a"', "b", '"x y"', '"1"', "2"]) for _ in range(width)]
            if random.random() < 0.06:
                cells[random.integers(width)] = random.choice(odd)
            lines.append(",".join(cells))
        path = tmp_path / "p.csv"
        path.write_bytes((end.join(lines) + random.choice(["", end])).encode())
        found = []
        for each in (plain, lambda *_: False):
            monkeypatch.setattr(text_files, "_is_plainly_quoted", each)
            try:
                found.append(repr(read_samples(path)))
            except InputError as error:
                found.append(str(error))
        assert found[0] == found[1], path.read_bytes()
        text = path.read_text(encoding="utf-8") + "\n"
        taken += plain(text, ",") and "error" not in found[0]
    assert taken > 20


@pytest.mark.parametrize(("name", "text"), [("p.csv", "a\nb\na\n"), ("p.txt", "the\ncat\n")])
def test_the_first_of_some_words_is_asked_about(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="header=True says that it is the name"):
        read_samples(tmp_path / name)
    for header in (True, False):
        (words,) = read_samples(tmp_path / name, reading=Reading(header=header))
        assert words.values == tuple(text.split()[header:])


def test_samples_keep_their_columns(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(",age,city\n0,31,Rome\n1,NA,Oslo\n2,7,\n", encoding="utf-8")
    age, city = read_samples(path)
    assert (age.name, age.values.tolist(), age.missing) == ("age", [31, 7], 1)
    assert (city.values, city.missing) == (("Rome", "Oslo"), 1)
    np.save(tmp_path / "p.npy", [[1.0, 2.0], [np.nan, 3.0]])
    one, two = read_samples(tmp_path / "p.npy")
    assert (one.name, one.values.tolist(), one.missing) == ("0", [1], 1)
    assert two.values.tolist() == [2, 3]


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 18])
def test_columns_are_what_rows_are(tmp_path, monkeypatch, piece):
    """Text is cut into columns at once where it can be; row by row it gives the same."""
    random, cut = np.random.default_rng(piece), text_files._cut
    monkeypatch.setattr(text_files, "_PIECE", piece)
    odd = ["", "#x", "NA", "é", " a", "nan", "\x0b", "\u2028", "1_0"]
    for _ in range(60):
        sep, end = random.choice([",", ";", "\t"]), random.choice(["\n", "\r\n", "\r"])
        lines = [f"l{sep}n"]
        for _ in range(random.integers(1, 9)):
            cells = random.choice(["a", "b", "x y"]), str(random.integers(99))
            if random.random() < 0.1:
                cells = random.choice(odd), random.choice([*odd, "7"])
            lines.append(sep.join(cells))
        if random.random() < 0.4:
            extra = ["", "# note", sep, f"#a{sep}1", f"a{sep}1{sep}2", "x"]
            lines.insert(random.integers(len(lines) + 1), random.choice(extra))
        path = tmp_path / "p.csv"
        path.write_bytes((end.join(lines) + random.choice(["", end, 2 * end])).encode())
        found = []
        for each in (cut, lambda *_, **__: None):
            monkeypatch.setattr(text_files, "_cut", each)
            try:
                table = read(path)
                found.append(repr((table.array.tolist(), table.classes, table.rows)))
            except InputError as error:
                found.append(str(error))
        assert found[0] == found[1], path.read_bytes()
