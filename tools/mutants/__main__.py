"""The command: ``python -m tools.mutants``."""

from __future__ import annotations

import difflib
import hashlib
import json
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax

from kldiv._files import replacing
from tools.mutants.judge import CannotJudgeError, Copy, Judgement
from tools.mutants.scope import Scope, scopes
from tools.mutants.source import Mutant, mutants, sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Results = dict[str, dict[str, Any]]

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class _Case:
    """A mutant with all that its verdict depends on."""

    mutant: Mutant
    scope: Scope
    source: str
    changed: str

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(
            self.source.splitlines(),
            self.changed.splitlines(),
            f"a/{self.mutant.path}",
            f"b/{self.mutant.path}",
            lineterm="",
            n=2,
        )
        return "\n".join(lines)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sample", "number", default=120, show_default=True, help="Mutants to draw.")
@click.option("--seed", default=0, show_default=True, help="Another one draws others.")
@click.option("--jobs", default=2, show_default=True, help="Mutants tested at a time.")
@click.option("--only", default="*", help="A pattern of paths, say 'readers/*.py'.")
@click.option("--minutes", type=float, help="Start no mutant after these; run again to go on.")
@click.option(
    "--results",
    type=click.Path(dir_okay=False, path_type=Path),
    default=_ROOT / "build" / "mutants.json",
    help="Where verdicts are kept; those that still hold are not found again.",
)
@click.option(
    "--root",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=_ROOT,
    hidden=True,
    help="Another checkout.",
)
def main(
    number: int, seed: int, jobs: int, only: str, minutes: float | None, results: Path, root: Path
) -> None:
    """Change one place of kldiv at a time, at random, and see whether the tests notice.

    Each mutant is tested in a temporary copy of the checkout. What survives is shown: it lacks a
    test, or no test could tell it from the original.
    """
    console = Console(stderr=True)
    known: Results = json.loads(results.read_text("utf-8")) if results.exists() else {}
    cases = _drawn(root, only, number, seed, console)
    tests = _digest(*(p.read_text("utf-8") for p in sorted((root / "tests").rglob("*.py"))))
    keys = [_digest(case.source, case.changed) for case in cases]
    todo = {
        key: case
        for key, case in zip(keys, cases, strict=True)
        # What one test has killed stays dead; a new test may kill what has survived.
        if key not in known
        or (known[key]["verdict"] == "survived" and known[key]["tests"] != tests)
    }
    deadline = time.monotonic() + 60 * minutes if minutes is not None else None
    try:
        for key, judged in _judged(root, todo, jobs, deadline, console):
            known[key] = {
                "mutant": todo[key].mutant.name,
                "diff": todo[key].diff,
                "tests": tests,
                **asdict(judged),
            }
            results.parent.mkdir(parents=True, exist_ok=True)
            with replacing(results) as file:
                file.write(json.dumps(known, indent=1, ensure_ascii=False).encode())
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
    except CannotJudgeError as error:
        console.print(f"without a mutant these tests fail:\n{error}", markup=False)
        sys.exit(2)
    _report([known[key] for key in keys if key in known], len(cases))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


def _drawn(root: Path, only: str, number: int, seed: int, console: Console) -> list[_Case]:
    left_out = Counter[str]()
    chosen = {scope.path: scope for scope in scopes(root, only)}
    sources = {path: (root / path).read_text("utf-8") for path in chosen}
    with console.status("looking for places to mutate"):
        found = {
            path: mutants(path, sources[path], scope.equal, left_out)
            for path, scope in chosen.items()
        }
        drawn = sample(found, sources, number, seed)
    console.print(f"{sum(map(len, found.values())):,} places in {len(found)} files; not counted:")
    for why, count in left_out.most_common():
        console.print(f"{count:7,} {why}")
    return [
        _Case(mutant, chosen[mutant.path], sources[mutant.path], changed)
        for mutant, changed in drawn
    ]


def _judged(
    root: Path, todo: dict[str, _Case], jobs: int, deadline: float | None, console: Console
) -> Iterator[tuple[str, Judgement]]:
    """Yield verdicts as they come, from copies that work side by side."""
    if not todo:
        return
    copies = SimpleQueue[Copy]()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    opened: list[Copy] = []
    stopped = False

    def judge(key: str) -> tuple[str, Judgement | None]:
        if stopped or (deadline is not None and time.monotonic() > deadline):
            return key, None
        copy = copies.get()
        try:
            case = todo[key]
            return key, copy.judge(case.mutant.path, case.changed, case.scope.stages)
        finally:
            copies.put(copy)

    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("", total=len(todo))
        verdicts = Counter[str]()
        try:
            for _ in range(min(jobs, len(todo))):
                opened.append(Copy(root))
                copies.put(opened[-1])
            for future in as_completed([pool.submit(judge, key) for key in todo]):
                key, judged = future.result()
                bar.advance(task)
                if judged is not None:
                    verdicts[judged.verdict] += 1
                    so_far = ", ".join(f"{count} {name}" for name, count in verdicts.items())
                    bar.update(task, description=so_far)
                    yield key, judged
        finally:
            stopped = True
            for copy in opened:
                copy.close()


def _report(found: Sequence[dict[str, Any]], number: int) -> None:
    """Print what survived, and how many did not."""
    out = Console(soft_wrap=True)
    counts = Counter(entry["verdict"] for entry in found)
    for entry in found:
        if entry["verdict"] == "survived":
            out.print(f"\n{entry['mutant']} survived", markup=False, style="bold")
            out.print(Syntax(entry["diff"], "diff", background_color="default"))
    noticed = counts["killed"] + counts["timeout"]
    out.print(
        f"\n{len(found)} of {number} mutants tested: {counts['killed']} killed,"
        f" {counts['timeout']} timeout, {counts['survived']} survived"
        + (f"; {noticed / len(found):.1%} noticed" if found else "")
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the copies are removed then too
    main()
