"""Comparisons of runs whose truth is known, as they were made up."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmark.suite import cell, load, results
from click.testing import CliRunner

comparing = load("report.compare")
records = load("harness.records")
app = load("app").app

SEEDS = 200
N = 30
NOISE = 0.05
PEERS = ("torch eager", "NumPy, written out", "scipy rel_entr", "memory")


def samples(random, median=1.0, noise=NOISE, n=N):
    return median * np.exp(random.normal(0.0, noise, n))


def made_up(random, factor=1.0, drift=1.0, peers=(), group=0, noise=NOISE):
    """Cells of one group: kldiv's median is the factor times the drift, its peers' the drift."""
    own = cell(samples(random, factor * drift, noise), group=group)
    return [own, *(cell(samples(random, drift, noise), who=who, group=group) for who in peers)]


def verdicts(change, *, drift=1.0, peers=()):
    """Compare two runs for each seed; return the verdicts on the one cell of kldiv's."""
    found = []
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        before = results(*made_up(random, peers=peers))
        after = results(*made_up(random, change, drift, peers))
        found.append(comparing.compare(before, after).cells[0])
    assert {each.key for each in found} == {before["cells"][0]["key"]}
    return found


def share(found, *words):
    return sum(each.verdict in words for each in found) / len(found)


@pytest.mark.parametrize(
    ("change", "drift", "peers", "verdict", "least"),
    [
        (1.1, 1.0, (), "SLOWER", 0.95),
        (1 / 1.1, 1.0, (), "FASTER", 0.95),
        (1.15, 1.3, PEERS, "SLOWER", 0.9),  # though all got slower
    ],
)
def test_changes_are_found(change, drift, peers, verdict, least):
    assert share(verdicts(change, drift=drift, peers=peers), verdict) >= least


@pytest.mark.parametrize(("drift", "peers"), [(1.0, ()), (1.3, PEERS)])
def test_equal_runs_raise_hardly_a_false_alarm(drift, peers):
    found = verdicts(1.0, drift=drift, peers=peers)
    assert share(found, "SLOWER", "FASTER") <= 0.05
    if peers:
        assert np.median([each.drift for each in found]) == pytest.approx(drift, rel=0.02)


def test_what_is_equal_and_quiet_is_the_same():
    random = np.random.default_rng(0)
    runs = [
        results(
            *(
                each
                for group in range(6)
                for each in made_up(random, peers=PEERS, group=group, noise=0.002)
            )
        )
        for _ in range(2)
    ]
    outcome = comparing.compare(*runs)
    assert outcome.controls == 24
    assert outcome.count() == {"SAME": 30, "FASTER": 0, "SLOWER": 0, "UNCLEAR": 0}


def test_the_luck_of_processes_widens_the_intervals():
    random = np.random.default_rng(0)

    def run():
        cells = []
        for group in range(10):
            for who in ("kldiv", *PEERS):
                luck = np.exp(random.normal(0.0, 0.15))
                cells.append(cell(samples(random, luck, noise=0.01), who=who, group=group))
        return results(*cells)

    alarms = [
        each.verdict in {"SLOWER", "FASTER"}
        for _ in range(10)
        for each in comparing.compare(run(), run()).cells
    ]
    assert np.mean(alarms) <= 0.05


def test_a_peer_of_another_version_is_no_control():
    random = np.random.default_rng(0)
    cells = [cell(samples(random), who=who) for who in ("kldiv", *PEERS)]
    before = results(*cells)
    after = results(*cells, versions={**before["versions"], "torch": "9"})
    assert comparing.compare(before, before).controls == 4
    assert comparing.compare(before, after).controls == 3


def test_an_unstable_cell_is_unclear():
    random = np.random.default_rng(1)
    before = results(cell(samples(random, noise=0.02)))
    after = results(cell(samples(random, 5.0, noise=0.3)))
    assert after["cells"][0]["unstable"]
    (found,) = comparing.compare(before, after).cells
    assert found.verdict == "UNCLEAR"
    assert found.why == "slower, but unstable: measure again"


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    quick, slow = (samples(random, factor, noise=0.01) for factor in (1.0, 2.0))
    machine = {**results()["machine"], "cpu": "another CPU"}
    runs = {
        "before": results(cell(quick), cell(quick, who="torch eager")),
        "same": results(cell(quick), cell(quick, who="torch eager")),
        "slower": results(cell(slow), cell(quick, who="torch eager")),
        "peer": results(cell(quick), cell(slow, who="torch eager")),
        "other": results(cell(quick), machine=machine),
    }
    paths = {}
    for name, run in runs.items():
        paths[name] = tmp_path / f"{name}.json"
        records.write(paths[name], run)
    return paths


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.mark.parametrize(
    ("after", "flags", "code", "said"),
    [
        ("same", ["--fail-on-slower"], 0, ""),
        ("slower", [], 0, ""),
        ("slower", ["--fail-on-slower"], 1, ""),
        ("peer", ["--fail-on-slower"], 0, ""),  # a peer's regression is not kldiv's
        ("other", [], 4, "a CPU and another CPU"),
        ("other", [], 4, "--force"),
        ("other", ["--force"], 0, ""),
    ],
)
def test_exit_codes(files, after, flags, code, said):
    done = run(files["before"], files[after], *flags)
    assert done.exit_code == code, done.output
    assert said in done.output


def test_json(files):
    done = run(files["before"], files["slower"], "--json")
    found = json.loads(done.output)
    assert found["count"]["SLOWER"] == 1
    assert found["cells"][0]["low"] < found["cells"][0]["ratio"] < found["cells"][0]["high"]


def test_a_run_is_the_same_as_itself():
    shaky = cell([1.0, 2.0, 3.0, 9.0, 1.0])
    found = load("report.compare").compare(results(shaky), results(shaky))
    assert shaky["unstable"]
    assert [each.verdict for each in found.cells] == ["SAME"]


def test_the_first_line_is_a_sentence():
    sentence, shaky = load("report.show").sentence, [1.0, 2.0, 3.0, 9.0, 1.0]
    said = sentence([cell([1.0] * 5), cell([2.2] * 5, who="torch")])
    assert "2.2× as fast as torch" in said
    assert "Nothing can be ranked: 1 of 2 cells" in sentence([cell(shaky), cell([1.0] * 5)])
