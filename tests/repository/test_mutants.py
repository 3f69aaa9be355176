"""The mutation tester tells lines that tests watch from lines that they do not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest
from _pytest.mark.expression import Expression

pytest.importorskip("resource", reason="needs fork")
pytest.importorskip("cosmic_ray")

from click.testing import CliRunner

from tools.mutants import __main__ as command
from tools.mutants import judge, scope
from tools.mutants.judge import CannotJudgeError, Copy
from tools.mutants.source import mutants, sample

ROOT = Path(__file__).parents[2]
TOY = """
def watched(x):
    return 2 * x

def unwatched(x):
    return x - 3
"""
TEST = """
from kldiv.toy import watched

def test_it():
    assert watched(3) == 6
"""
STAGES = (("tests/test_toy.py",),)


@pytest.fixture
def toy(tmp_path):
    """A checkout of a package of one file."""
    for path, text in {
        "kldiv/__init__.py": "",
        "kldiv/toy.py": TOY,
        "tests/test_toy.py": TEST,
        "pyproject.toml": "",
    }.items():
        file = tmp_path / "checkout" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "checkout"


@pytest.fixture
def copy(toy):
    made = Copy(toy, libraries=())
    yield made
    made.close()


@pytest.mark.slow
def test_verdicts(copy, monkeypatch):
    monkeypatch.setattr(judge, "_TEST", 3)

    def verdict(old, new):
        return copy.judge("kldiv/toy.py", TOY.replace(old, new), STAGES)

    assert verdict("2 * x", "2 + x").verdict == "killed"
    assert verdict("2 * x", "2 + x").by == "tests/test_toy.py::test_it"
    assert verdict("x - 3", "x + 3").verdict == "survived"
    assert verdict("def", "deff").verdict == "killed"
    assert verdict("return 2", "while True: 2").verdict == "timeout"
    assert verdict("nothing", "changes").verdict == "survived"  # the file is as it was


def test_tests_that_fail_anyway_judge_nothing(toy):
    (toy / "tests/test_toy.py").write_text(TEST.replace("6", "7"), encoding="utf-8")
    copy = Copy(toy, libraries=())
    try:
        with pytest.raises(CannotJudgeError, match="test_it"):
            copy.judge("kldiv/toy.py", TOY, STAGES)
    finally:
        copy.close()


@pytest.mark.slow
def test_the_command_finds_what_is_not_watched_and_goes_on_from_there(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(scope, "_TESTS", {"kldiv/toy.py": STAGES})
    monkeypatch.setattr(command, "Copy", lambda root: Copy(root, libraries=()))
    results = tmp_path / "results.json"

    def run(sample, jobs=1):
        line = f"--sample {sample} --jobs {jobs} --root {toy} --results {results}"
        done = CliRunner().invoke(command.main, line.split(), catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    run(3)
    first = json.loads(results.read_text(encoding="utf-8"))
    assert len(first) == 3
    output = run(50, jobs=2)
    found = json.loads(results.read_text(encoding="utf-8"))
    assert len(found) > 3
    assert {key: found[key] for key in first} == first
    assert "-    return x - 3" in output
    assert "return 2 * x" not in output
    assert f"{len(found)} of {len(found)} mutants tested" in output
    assert (toy / "kldiv/toy.py").read_text(encoding="utf-8") == TOY
    survivors = {entry["mutant"] for entry in found.values() if entry["verdict"] == "survived"}
    # A new test lets what survived be judged again, and nothing else.
    more = (
        "\nfrom kldiv.toy import unwatched\n\ndef test_more():\n    assert unwatched(9.5) == 6.5\n"
    )
    (toy / "tests/test_toy.py").write_text(TEST + more, encoding="utf-8")
    run(50)
    now = json.loads(results.read_text(encoding="utf-8"))
    changed = {entry["mutant"] for key, entry in now.items() if entry != found[key]}
    assert changed == survivors
    assert not any(":6:" in e["mutant"] for e in now.values() if e["verdict"] == "survived")


def places(text, equal=()):
    return {
        mutant.place
        for place in mutants("x.py", dedent(text), equal, Counter())
        for mutant in place
    }


def test_what_no_test_could_tell_is_left_out():
    text = '''
    """A – B."""
    from typing import TYPE_CHECKING, TypeAlias
    if TYPE_CHECKING:
        ONE = 1
    Number: TypeAlias = int | float
    NEAR: int = 8 << 3
    @cache
    def f(x: int | None, /, *, y: float = 1) -> int | None:
        raise ValueError(f"é {x - 1}" + "z")
    '''
    assert {line for line, _ in places(text, {"NEAR"})} == {9}
    assert {line for line, _ in places(text)} == {7, 9}
    assert places("é = 'é'; x = 1 + y") == {(1, 13), (1, 15)}
    assert places("zip(x, y, strict=True)") == set()


def test_a_sample_follows_its_seed_and_takes_a_place_once():
    text = "x = 1 + 2\ny = x - 3 if x else -x\n"
    found = {"x.py": mutants("x.py", text, (), Counter())}
    drawn = sample(found, {"x.py": text}, 5, 1)
    assert drawn == sample(found, {"x.py": text}, 5, 1)
    assert drawn != sample(found, {"x.py": text}, 5, 2)
    assert len({mutant.place for mutant, _ in drawn}) == 5
    assert all(changed != text and compile(changed, "x.py", "exec") for _, changed in drawn)


def test_the_table_names_files_and_tests_that_exist():
    for pattern, stages in scope._TESTS.items():
        assert list(ROOT.glob(pattern)), pattern
        for stage in stages:
            for argument in stage[: stage.index("-k") if "-k" in stage else None]:
                assert (ROOT / argument).exists(), argument
    for path, names in scope._NO_RESULT.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in names:
            assert f"\n{name}" in text, name
    every = {path.as_posix() for path in (ROOT / "kldiv/formulas").glob("*.py")}
    mutated = {(ROOT / each.path).as_posix() for each in scope.scopes(ROOT)}
    assert every - mutated == {(ROOT / "kldiv/formulas/__init__.py").as_posix()}


@pytest.mark.slow
def test_every_stage_of_the_table_selects_tests():
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "tests"]
    listed = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [line for line in listed.splitlines() if "::" in line]
    for stage in {stage for stages in scope._TESTS.values() for stage in stages}:
        files, (_, chosen) = (stage[:-2], stage[-2:]) if "-k" in stage else (stage, ("", ""))
        expression = Expression.compile(chosen)
        assert any(
            name.startswith(files)
            and (not chosen or expression.evaluate(lambda word, name=name: word in name.lower()))
            for name in names
        ), stage
