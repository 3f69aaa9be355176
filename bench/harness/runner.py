"""From a plan to results: each group is prepared, proved right, measured, and written down."""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from kldiv.errors import BackendError

from . import bandwidth, estimates, machine, memory, records
from .cells import FLOOR, OWN, Plan
from .libraries import LIBRARIES, settings
from .operations import OPERATIONS, half_the_digits, make
from .peers import PEERS
from .timer import Candidate, Effort, Timer, Timing, brief, few_to_collect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .cells import Cell, Group
    from .libraries import Library
    from .operations import Data
    from .records import Results

QUICK: Final = Effort(warmup=0.02, sample=0.002, rounds=(5, 15), budget=1.2)
FULL: Final = Effort(warmup=0.1, sample=0.005, rounds=(9, 31), budget=20.0)


@dataclass
class Prepared:
    """A cell that is ready to be timed."""

    cell: Cell
    candidate: Candidate
    raw: Callable[[Any, Any], Any] | None = None
    """The function before its arguments were bound."""
    arguments: tuple[Any, Any] | None = None
    first: float | None = None
    error: float | None = None
    gradient_error: float | None = None
    memory: dict[str, int] = field(default_factory=dict)
    failure: str | None = None
    status: str = "failed"
    """The status of the cell after a failure."""


class Runner:
    """Measures the groups of a plan, one after the other."""

    def __init__(
        self,
        plan: Plan,
        effort: Effort,
        options: dict[str, Any],
        timer: Timer | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.plan = plan
        self.effort = effort
        self.seed = seed
        self.timer = timer or Timer(seed=seed)
        self.results = _fresh(plan, options, effort, seed)
        self.enough: Callable[[], bool] = lambda: False
        """Asked before each group whether to stop here."""

    def resume(self, before: Results) -> None:
        """Take over the cells that an interrupted run has measured; refuse another run's."""
        mine = self.results
        different = machine.unlike(before["machine"], mine["machine"])
        different += [
            f"{name}: {before[name]} and {mine[name]}"
            for name in ("versions", "revision", "settings")
            if before[name] != mine[name]
        ]
        if different:
            raise records.ResultsError(
                "this is not the run to resume; it differs in " + "; ".join(different)
            )
        mine["cells"] = list(before["cells"])
        mine["bandwidth"] = before["bandwidth"]
        mine["started"] = before["started"]

    def left(self) -> dict[Group, list[Cell]]:
        """Return the groups that are not measured in full."""
        done = {cell["key"] for cell in self.results["cells"]}
        return {
            group: cells
            for group, cells in self.plan.groups.items()
            if any(cell.key not in done for cell in cells)
        }

    def run(self, path: Path, progress: Callable[[float, str], None]) -> Results:
        """Measure the cells that are left, and write the file after every group."""
        device = next(iter(self.plan.groups)).device if self.plan.groups else "cpu"
        if self.plan.groups and device not in self.results["bandwidth"]:
            progress(0.0, "memory bandwidth")
            with few_to_collect():
                self.results["bandwidth"][device] = bandwidth.measure(device, self.timer)
        left = self.left()
        for index, (group, cells) in enumerate(left.items()):
            if self.enough():
                break
            told = partial(_tell, progress, index, len(left), group.key)
            self._replace(self.measure(group, cells, told))
            records.write(path, self.results)
        self.results["complete"] = not self.left()
        records.write(path, self.results)
        progress(1.0, "done")
        return self.results

    def _replace(self, records: list[Results]) -> None:
        keys = {record["key"] for record in records}
        kept = [cell for cell in self.results["cells"] if cell["key"] not in keys]
        self.results["cells"] = kept + records

    # ---- one group -------------------------------------------------------------------------------

    def measure(
        self, group: Group, cells: list[Cell], progress: Callable[[float], None]
    ) -> list[Results]:
        """Measure the cells of one group side by side."""
        data = make(OPERATIONS[group.operation], group.dtype, group.shape, self.seed)
        ready = []
        for index, cell in enumerate(cells):
            progress(0.4 * index / len(cells))
            ready.append(self._prepare(cell, data))
        with few_to_collect():
            records = self._time(ready, progress)
        del ready, data
        _tidy()
        return records

    def _time(self, ready: list[Prepared], progress: Callable[[float], None]) -> list[Results]:
        """Take the times of cells that have been called once, and their memory."""
        able = {each.cell.key: each for each in ready if each.failure is None}
        timings = self.timer.rounds(
            {key: each.candidate for key, each in able.items()},
            self.effort,
            {key: each.first or 0.0 for key, each in able.items()},
            lambda done: progress(0.4 + 0.55 * done),
        )
        for key, each in able.items():
            each.failure = timings[key].failure
            if each.failure is None and each.arguments is not None:
                each.memory = self._memory(each)
        records = [self._record(each, timings.get(each.cell.key)) for each in ready]
        _compare_with_peers(records)
        return records

    def _prepare(self, cell: Cell, data: Data) -> Prepared:
        group = cell.group
        if cell.who == FLOOR:
            read, written = data.operation.traffic(group.part, group.dtype, group.shape)
            prepared = Prepared(cell, bandwidth.Floor(group.device, read, written).candidate())
            prepared.first, _ = self.timer.once(prepared.candidate)
            return prepared
        library = LIBRARIES[cell.library]
        context = partial(settings, library, group.dtype, cell.kernel)
        prepared = Prepared(cell, Candidate(lambda: None))
        try:
            with context():
                raw, arguments = _function(cell, library, data)
            prepared.raw, prepared.arguments = raw, arguments
            prepared.candidate = Candidate(
                lambda: raw(*arguments),
                lambda result: library.synchronise(result, group.device),
                library.each(group.device),
                context,
            )
            prepared.first, result = self.timer.once(prepared.candidate)
            prepared.error, prepared.gradient_error = _errors(cell, library, data, result)
        except Exception as error:  # noqa: BLE001 - whatever a library raises; the others go on
            prepared.failure = brief(error)
            if isinstance(error, BackendError):
                prepared.status = "unavailable"
        return prepared

    def _memory(self, each: Prepared) -> dict[str, int]:
        cell, arguments, raw = each.cell, each.arguments, each.raw
        library = LIBRARIES[cell.library]
        assert arguments is not None  # noqa: S101 - for type checkers
        assert raw is not None  # noqa: S101

        def call() -> None:
            library.synchronise(raw(*arguments), cell.group.device)

        call.lower = getattr(raw, "lower", None)  # type: ignore[attr-defined]
        with each.candidate.context():
            return memory.peaks(call, library.memory, cell.group.device, arguments)

    def _record(self, each: Prepared, timing: Timing | None) -> Results:
        cell, group = each.cell, each.cell.group
        operation = OPERATIONS[group.operation]
        read, written = operation.traffic(group.part, group.dtype, group.shape)
        record: Results = {
            **cell.record(),
            "status": each.status,
            "reason": each.failure,
            "first_s": each.first,
            "calls": 0 if timing is None else timing.calls,
            "samples_s": [],
            **dict.fromkeys(("compile_s", "median_s", "q25_s", "q75_s", "iqr_s")),
            "n": 0,
            "outliers": 0,
            "unstable": False,
            "bytes": {"read": read, "written": written},
            **dict.fromkeys(("bytes_per_s", "of_bandwidth")),
            "memory": each.memory,
            "error": each.error,
            "gradient_error": each.gradient_error,
            "ratios": {},
        }
        if each.failure is not None or timing is None or not timing.samples:
            record["reason"] = each.failure or "no sample was taken"
            return record
        summary = estimates.summarise(timing.samples)
        rate = (read + written) / summary.median
        roof = self.results["bandwidth"][group.device]["copy" if written else "read"]
        record |= {
            "status": "ok",
            "samples_s": timing.samples,
            "median_s": summary.median,
            "q25_s": summary.q25,
            "q75_s": summary.q75,
            "iqr_s": summary.iqr,
            "n": summary.n,
            "outliers": summary.outliers,
            "unstable": summary.unstable,
            "bytes_per_s": rate,
            "of_bandwidth": rate / roof,
        }
        if cell.mode in {"jit", "compile"} and each.first is not None:
            record["compile_s"] = max(0.0, each.first - summary.median)
        wrong = _wrong(each, group.dtype)
        if wrong is not None:
            record |= {"status": "wrong", "reason": wrong}
        return record


def _function(
    cell: Cell, library: Library, data: Data
) -> tuple[Callable[[Any, Any], Any], tuple[Any, Any]]:
    """Return the function that a cell calls, and its arrays."""
    group = cell.group
    host = (data.input, data.target)
    if cell.who == OWN:
        function = library.own(data.operation, group.part, cell.mode)
    else:
        peer = PEERS[cell.who]
        function = peer.formula(group.operation, group.part)
        if peer.prepare is not None:
            host = peer.prepare(*host)
    x, y = (library.put(each, group.device) for each in host)
    return function, (x, y)


def _errors(cell: Cell, library: Library, data: Data, result: Any) -> tuple[float, float | None]:
    value, gradient = result if cell.group.part == "gradient" else (result, None)
    return data.errors(library.get(value), None if gradient is None else library.get(gradient))


def _wrong(each: Prepared, dtype: str) -> str | None:
    limit = half_the_digits(dtype)
    for name, error in (("value", each.error), ("gradient", each.gradient_error)):
        if error is not None and error > limit:
            return f"the {name} is wrong by {error:.1e}, beyond {limit:.0e} in {dtype}"
    return None


def _compare_with_peers(records: list[Results]) -> None:
    """Give every cell of kldiv its ratio to each peer of its group, from the same rounds."""
    peers = [each for each in records if each["who"] != OWN and each["status"] == "ok"]
    for own in records:
        if own["who"] != OWN or not own["samples_s"]:
            continue
        for peer in peers:
            found = estimates.paired_ratio(own["samples_s"], peer["samples_s"], own["key"])
            own["ratios"][peer["who"]] = {
                "ratio": found.ratio,
                "low": found.low,
                "high": found.high,
            }


def _tell(
    progress: Callable[[float, str], None], index: int, count: int, name: str, done: float
) -> None:
    progress((index + done) / count, name)


def _tidy() -> None:
    """Clear the caches that libraries have of finished functions."""
    torch = sys.modules.get("torch")
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
    gc.collect()
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def nothing() -> Results:
    """Return the results of a run that measured nothing."""
    return _fresh(Plan(), {}, QUICK, 0)


def _fresh(plan: Plan, options: dict[str, Any], effort: Effort, seed: int) -> Results:
    for library in {cell.library for cell in plan.cells} & LIBRARIES.keys():
        LIBRARIES[library].problem("cpu")  # imports it, so that its threads are known
    machine.describe.cache_clear()
    return {
        "schema": records.SCHEMA,
        "version": records.VERSION,
        "complete": False,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {
            **options,
            "seed": seed,
            "effort": {
                "warmup_s": effort.warmup,
                "sample_s": effort.sample,
                "rounds": list(effort.rounds),
                "budget_s": effort.budget,
            },
        },
        "machine": {**machine.describe(), "load": machine.load()},
        "versions": machine.versions(),
        "revision": machine.revision(),
        "bandwidth": {},
        "missing": plan.missing,
        "cells": [],
    }
