"""What users and release machinery rely on: versions, extras, pins, typing marker, example data."""

import ast
import csv
import re
import tomllib
from pathlib import Path

import pytest

import kldiv

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
LETTERS = sorted((ROOT / "examples/letters").glob("*.csv"))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read_letters(path):
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["letter", "count"]
    return [letter for letter, _ in rows], [int(count) for _, count in rows]


def test_version_has_one_source():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "kldiv/__init__.py"
    source = (ROOT / "kldiv/__init__.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.*)"$', source, re.MULTILINE) == [kldiv.__version__]


def test_changelog_and_citation_agree_with_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    releases = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert releases[:2] == ["Unreleased", kldiv.__version__]
    for release in releases:
        assert f"\n[{release}]: https://" in changelog
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [kldiv.__version__]


def test_wheel_carries_the_typing_marker_and_the_licence():
    assert (ROOT / "kldiv/py.typed").is_file()
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["kldiv"]
    parts = {path.name for path in (ROOT / "bench").iterdir() if path.name != "__pycache__"}
    parts -= {"README.md", "results"}
    assert wheel["force-include"] == {f"bench/{name}": f"kldiv/_bench/{name}" for name in parts}
    assert "Typing :: Typed" in PYPROJECT["project"]["classifiers"]
    assert PYPROJECT["project"]["license"] == "BSD-3-Clause"
    for name in PYPROJECT["project"]["license-files"]:
        assert (ROOT / name).is_file()


def test_the_benchmark_imports_its_own_files_relatively():
    """It is called ``bench`` here and ``kldiv._bench`` in the wheel."""
    paths = sorted((ROOT / "bench").rglob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            roots = {name.partition(".")[0] for name in names}
            assert "bench" not in roots, f"{path.name} imports {names}"
            assert not any(name.startswith("kldiv._bench") for name in names), path.name


def test_sdist_lists_only_what_exists():
    listed = PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
    assert [name for name in listed if not (ROOT / name).exists()] == []


def test_extras_are_those_that_the_documentation_names():
    runtime = {"cpu", "torch", "jax", "cuda12", "cuda13", "dask", "files", "scipy", "zarr", "cli"}
    runtime |= {"metrics", "mlx"}
    assert set(EXTRAS) == runtime | {"bench", "clients", "test", "docs", "dev", "all"}
    assert EXTRAS["all"] == [f"kldiv[{','.join(sorted(runtime - {'cuda12', 'cuda13', 'mlx'}))}]"]


def test_base_dependencies_are_few():
    names = [re.match(r"[\w-]+", line)[0] for line in PYPROJECT["project"]["dependencies"]]
    assert names == ["numpy", "array-api-compat", "platformdirs"]


def test_only_the_tests_pin_torch():
    pins = {
        extra: line
        for extra, lines in EXTRAS.items()
        for line in lines
        if line.startswith("torch") and "==" in line
    }
    assert pins == {"test": "torch==2.13.0"}
    assert "kldiv[test]" in EXTRAS["dev"]


def test_no_requirement_has_an_upper_bound_for_users():
    for extra in EXTRAS.keys() - {"clients", "test", "dev"}:
        bare = [line.partition(";")[0] for line in EXTRAS[extra]]
        assert [line for line in bare if re.search(r"<|==|~=", line)] == []
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"


@pytest.mark.skipif(not WORKFLOWS, reason="workflows are not in a source distribution")
def test_workflow_actions_are_pinned_by_commit():
    used = [
        line.strip().removeprefix("- ")
        for path in WORKFLOWS
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(- )?uses:", line)
    ]
    pinned = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    assert used
    assert [line for line in used if not pinned.fullmatch(line)] == []


def test_at_least_five_languages_have_letter_counts():
    assert len(LETTERS) >= 5
    assert {"english.csv", "german.csv"} <= {path.name for path in LETTERS}


@pytest.mark.parametrize("path", LETTERS, ids=lambda path: path.stem)
def test_letter_counts_share_one_alphabet(path):
    alphabet, _ = read_letters(LETTERS[0])
    letters, counts = read_letters(path)
    assert letters == alphabet
    assert len(set(letters)) == len(letters)
    assert min(counts) >= 0
    assert sum(counts) > 0


def test_letter_counts_are_the_published_ones():
    letters, counts = read_letters(ROOT / "examples/letters/english.csv")
    english = dict(zip(letters, counts, strict=True))
    assert [english[letter] for letter in "eta"] == [529117365, 390965105, 374061888]
    text = (ROOT / "examples/letters/README.md").read_text(encoding="utf-8")
    for path in LETTERS:
        _, counts = read_letters(path)
        row = f"| `{path.name}` | {sum(counts):,} | {sum(c > 0 for c in counts)} |"
        assert row.replace(",", " ") in text
