"""The command: ``python -m tools.fuzz``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tools.fuzz.packages import EVERY

_BUILD = Path(__file__).parents[2] / "build" / "fuzz"
_TOLD = re.compile(r"^#(\d+)\s.*\bcov: (\d+)")
_EXCEPTION = re.compile(r"=== Uncaught Python exception: ===|^==\d+== ERROR")
_WRITTEN = re.compile(r"Test unit written to (\S+)")


@dataclass
class Outcome:
    """How the process of a reader ended."""

    name: str
    code: int
    said: list[str]
    inputs: int = 0
    covered: int = 0

    @property
    def finding(self) -> str | None:
        """What was found, in words, and where its input is; None if nothing was."""
        if self.code == 0:
            return None
        start = next((i for i, line in enumerate(self.said) if _EXCEPTION.search(line)), 0)
        files = [found[1] for line in self.said if (found := _WRITTEN.search(line))]
        shown = "\n".join(self.said[start : start + 40] if start else self.said[-40:])
        return f"{self.name}: {shown}\ninput: {files[-1] if files else 'none was written'}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", default=10.0, show_default=True, help="In all, shared by the readers.")
@click.option("--reader", "names", multiple=True, type=click.Choice(list(EVERY)), help="Only it.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Readers at a time.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--corpus",
    type=click.Path(file_okay=False, path_type=Path),
    default=_BUILD / "corpus",
    help="Inputs that reached something new; the next run starts from them.",
)
@click.option(
    "--findings",
    type=click.Path(file_okay=False, path_type=Path),
    default=_BUILD / "findings",
    help="Where an input that breaks a reader is written.",
)
def main(
    minutes: float, names: tuple[str, ...], jobs: int, seed: int, corpus: Path, findings: Path
) -> None:
    """Feed every reader of kldiv with files that are nearly right, each in a process of its own.

    A reader may refuse a file by an error of kldiv's; any other exception, 30 seconds for one
    file, or memory beyond its budget is a finding. Exits with 1 where there is one.
    """
    chosen = names or tuple(EVERY)
    seconds = max(1, round(60 * minutes * min(jobs, len(chosen)) / len(chosen)))
    findings.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description:12}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[inputs]:,} inputs, {task.fields[covered]:,} branches"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(jobs) as pool:
        runs = []
        for name in chosen:
            (corpus / name).mkdir(parents=True, exist_ok=True)
            task = bar.add_task(name, total=seconds, start=False, inputs=0, covered=0)
            command = [name, str(seconds), str(corpus / name), str(findings), str(seed)]
            runs.append(pool.submit(_run, command, bar, task))
        outcomes = [run.result() for run in as_completed(runs)]
    found = [outcome.finding for outcome in outcomes if outcome.finding is not None]
    for outcome in sorted(outcomes, key=lambda outcome: chosen.index(outcome.name)):
        end = "a finding" if outcome.finding else "nothing found"
        click.echo(f"{outcome.name:12} {outcome.inputs:9,} inputs  {end}")
    for text in found:
        click.echo(f"\n{text}")
    sys.exit(1 if found else 0)


def _run(arguments: list[str], bar: Progress, task: TaskID) -> Outcome:
    command = [sys.executable, "-m", "tools.fuzz.engine", *arguments]
    outcome = Outcome(arguments[0], 0, [])
    bar.start_task(task)
    start = time.monotonic()
    with subprocess.Popen(  # noqa: S603 - this interpreter
        command,
        cwd=_BUILD.parents[1],
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        for line in process.stdout or ():
            told = _TOLD.match(line)
            if told:
                outcome.inputs, outcome.covered = int(told[1]), int(told[2])
                spent = time.monotonic() - start
                bar.update(task, completed=spent, inputs=outcome.inputs, covered=outcome.covered)
            else:
                outcome.said.append(line.rstrip())
    outcome.code = process.returncode
    bar.update(task, completed=bar.tasks[task].total)
    return outcome


if __name__ == "__main__":
    main()
