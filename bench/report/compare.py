"""Two runs, cell by cell: SAME, FASTER, SLOWER or UNCLEAR.

Two runs on one machine differ for three reasons: the samples scatter; all times of some rounds
drift together; and each process has its own luck with memory and scheduling. The first shows in
the samples. The second is taken off by the *control*: cells that did not change between the runs
(peers of the same version, and the plain reading of memory), measured in the same rounds. The
scatter that is left among controls that should be equal is the third; it widens every interval.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final, Literal

from ..harness import estimates, machine
from ..harness.cells import FLOOR, OWN
from ..harness.peers import PEERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..harness.records import Results

    Record = dict[str, Any]

Verdict = Literal["SAME", "FASTER", "SLOWER", "UNCLEAR"]

MARGIN: Final = 0.05
"""Less than this is the same: nobody would notice."""
Z: Final = 1.96
LUCK: Final = 0.02
"""The scatter from process to process that is assumed where too few controls can tell."""
QUIET: Final = 0.01
"""The least that is believed of it."""
ENOUGH: Final = 3
"""Controls of a group that can tell its drift; all runs need twice as many to tell the luck."""
MEDIAN: Final = 1.2533
"""The standard error of a median, as a multiple of that of a mean."""
MAD: Final = 1.4826
"""From a median of absolute deviations to a standard deviation."""


@dataclass(frozen=True)
class Comparison:
    """The verdict on one cell; a ratio above 1 means that it takes longer now."""

    key: str
    verdict: Verdict
    ratio: float
    low: float
    high: float
    drift: float
    """By how much the controls of its group changed; taken off the ratio."""
    why: str = ""


@dataclass(frozen=True)
class Outcome:
    """The comparison of two runs."""

    cells: list[Comparison]
    only_before: list[str]
    only_after: list[str]
    luck: float
    """Standard deviation, in logs, that is left among the controls."""
    controls: int

    def count(self) -> dict[str, int]:
        """Return how many cells have each verdict."""
        words: tuple[Verdict, ...] = ("SAME", "FASTER", "SLOWER", "UNCLEAR")
        return {word: sum(cell.verdict == word for cell in self.cells) for word in words}

    def slower(self) -> list[Comparison]:
        """Return the cells of kldiv's own that are slower: a peer's are not its fault."""
        return [
            cell
            for cell in self.cells
            if cell.verdict == "SLOWER" and cell.key.partition(" | ")[2].startswith(OWN)
        ]


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """Return a comparison as JSON has it."""
    return {**asdict(outcome), "count": outcome.count()}


def refusal(before: Results, after: Results) -> str | None:
    """Return why two runs should not be compared, or None."""
    different = machine.unlike(before["machine"], after["machine"])
    if before["settings"].get("seed") != after["settings"].get("seed"):
        different.append("seed of the data")
    return "; ".join(different) or None


def compare(before: Results, after: Results) -> Outcome:
    """Compare every cell that both runs have measured."""
    old, new = ({cell["key"]: cell for cell in run["cells"]} for run in (before, after))
    both = [key for key in old if key in new and _timed(old[key]) and _timed(new[key])]
    logs = {key: estimates.log_ratio(old[key]["samples_s"], new[key]["samples_s"]) for key in both}
    unchanged = _unchanged(before["versions"], after["versions"])
    controls = [
        key
        for key in both
        if old[key]["who"] in unchanged and not old[key]["unstable"] and not new[key]["unstable"]
    ]
    groups: dict[str, list[str]] = {}
    for key in controls:
        groups.setdefault(_group(key), []).append(key)
    luck = _luck(groups, logs)
    found = []
    for key in both:
        others = [each for each in groups.get(_group(key), []) if each != key]
        found.append(_judge(key, old[key], new[key], logs, others, luck))
    return Outcome(
        found,
        sorted(old.keys() - new.keys()),
        sorted(new.keys() - old.keys()),
        luck,
        len(controls),
    )


def _timed(cell: Record) -> bool:
    return bool(cell["samples_s"])


def _group(key: str) -> str:
    return key.partition(" | ")[0]


def _unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Return who computes by the same code in both runs: nothing of kldiv's own does for sure."""
    found = {FLOOR}
    for name, peer in PEERS.items():
        needs = (*peer.needs, *([peer.version_of] if peer.version_of else []), "python")
        if all(before.get(need) == after.get(need) for need in needs):
            found.add(name)
    return found - {OWN}


def _luck(groups: Mapping[str, Sequence[str]], logs: Mapping[str, tuple[float, float]]) -> float:
    """Return the scatter of controls about their group's drift, beyond that of their samples."""
    rest, noise = [], []
    for keys in groups.values():
        for key in keys:
            others = [logs[each][0] for each in keys if each != key]
            drift = median(others) if len(others) >= ENOUGH else 0.0
            rest.append(abs(logs[key][0] - drift))
            noise.append(logs[key][1])
    if len(rest) < 2 * ENOUGH:
        return LUCK
    scatter = MAD * median(rest)
    # A robust scatter forgets the tails, which raise false alarms: look there too.
    tail = sorted(rest)[math.ceil(0.9 * len(rest)) - 1] / 1.645
    total = max(scatter, tail)
    return max(QUIET, math.sqrt(max(0.0, total**2 - median(noise) ** 2)))


def _judge(
    key: str,
    old: Record,
    new: Record,
    logs: Mapping[str, tuple[float, float]],
    controls: Sequence[str],
    luck: float,
) -> Comparison:
    change, error = logs[key]
    drift = 0.0
    if len(controls) >= ENOUGH:  # of fewer nobody knows whether it is their own luck
        drift = median(logs[each][0] for each in controls)
        error = math.hypot(error, MEDIAN * luck / math.sqrt(len(controls)))
    width = Z * math.hypot(error, luck)
    middle = change - drift
    low, high = math.exp(middle - width), math.exp(middle + width)
    verdict: Verdict = "UNCLEAR"
    why = ""
    if old["status"] != new["status"]:
        why = f"was {old['status']}, is {new['status']}"
    if low > 1 / (1 + MARGIN) and high < 1 + MARGIN:
        verdict = "SAME"
    elif low > 1:
        verdict = "SLOWER"
    elif high < 1:
        verdict = "FASTER"
    if old["samples_s"] == new["samples_s"]:
        return Comparison(key, "SAME", 1.0, 1.0, 1.0, 1.0, "one and the same measurement")
    if verdict != "UNCLEAR" and (old["unstable"] or new["unstable"]):
        verdict, why = "UNCLEAR", f"{verdict.lower()}, but unstable: measure again"
    return Comparison(key, verdict, math.exp(middle), low, high, math.exp(drift), why)
