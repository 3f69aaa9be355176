"""The comparison itself: what two distributions, or rows of them, add up to, step by step."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

import kldiv
from kldiv.cli.arithmetic import Logits
from kldiv.cli.blocks import Sizes
from kldiv.cli.checkpoint import Checkpoint, uninterrupted
from kldiv.cli.forms import Distribution, held, scale_of
from kldiv.cli.inputs import read_pair
from kldiv.cli.progress import Progress
from kldiv.cli.rows import summary, worst
from kldiv.cli.runners import Cluster, Threads
from kldiv.cli.total import Total
from kldiv.cli.work import ONE, Work
from kldiv.errors import BackendError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kldiv.cli.arithmetic import Floats
    from kldiv.cli.blocks import Plan
    from kldiv.cli.forms import Held
    from kldiv.cli.inputs import Pair
    from kldiv.cli.request import Reduction, Request
    from kldiv.cli.rows import Summary
    from kldiv.cli.runners import Runner
    from kldiv.cli.sums import Holes
    from kldiv.explanation import Explanation

MEASURES: Final = ("kl_pq", "kl_qp", "js")


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one class adds to the divergences, and its mean probabilities."""

    label: str
    index: int
    p: float
    q: float
    kl_pq: float
    kl_qp: float
    js: float


@dataclass(frozen=True, slots=True)
class Zeros:
    """Classes to which one distribution gives no probability where the other gives some."""

    classes: int
    share: float
    """Their part of the other distribution."""
    labels: tuple[str, ...]
    """The labels of the largest."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two distributions, or rows of them, compared."""

    p: Distribution
    q: Distribution
    pair: Pair
    rows: dict[str, Floats]
    """The divergences of each row, by measure."""
    summaries: dict[str, Summary]
    worst: list[int]
    """The rows of largest D(P‖Q)."""
    contributions: tuple[Contribution, ...]
    zeros: dict[str, Zeros]
    """What makes ``kl_pq`` (zeros of Q) and ``kl_qp`` (zeros of P) infinite."""
    reduction: Reduction
    smoothing: float
    explanation: Explanation

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.pair.count

    def values(self, measure: str) -> Floats:
        """Return the divergence after the reduction: 0-d but for "none"."""
        return self.rows[measure] if self.reduction == "none" else np.asarray(self.overall(measure))

    def overall(self, measure: str) -> float:
        """Return one number for all rows: their mean where there is no reduction."""
        total: float = self.summaries[measure].total
        return total / divisor(self.pair.shape, self.reduction)

    @property
    def over(self) -> str:
        """What `overall` is, in words; nothing where there is one row only."""
        if not self.pair.shape:
            return ""
        words = {"sum": "sum over", "batchmean": "batch mean over"}
        return f"{words.get(self.reduction, 'mean over')} {self.count:,} rows"

    def summary(self, measure: str) -> dict[str, float]:
        """Return mean, median and maximum over the rows; NaN where any is."""
        told = self.summaries[measure]
        return {"mean": told.total / self.count, "median": told.median, "max": told.max}


def divisor(shape: tuple[int, ...], reduction: Reduction) -> int:
    """Return what the sum over rows is divided by, as in `kldiv.kl_div` of their divergences."""
    if reduction == "sum":
        return 1
    if reduction == "batchmean":
        return shape[0] if shape else 1
    return math.prod(shape)


def compare(request: Request) -> Comparison:
    """Read, check and compare two files under the settings that hold now."""
    scale = scale_of(request)
    # Before the files: a backend that cannot run should say so at once.
    kldiv.explain(np.zeros(1), np.ones(1), operation=scale.operation)
    pair = read_pair(request)
    elsewhere = request if request.scheduler is None else request.for_others()
    sizes = Sizes.usual()
    work = Work(elsewhere, pair, (False, False), sizes)
    explanation = _explained(work)
    checkpoint = Checkpoint(request, pair, sizes, explanation)
    saved = checkpoint.load()
    runner: Runner = Threads() if request.scheduler is None else Cluster(request.scheduler)
    with runner, Progress(_steps(request, work.plan)) as progress:
        holds = _look(request, work, runner, progress) if saved is None else saved[2]
        normalized = holds[0].normalized, holds[1].normalized
        work = Work(elsewhere, pair, normalized, sizes)
        total = Total(work, checkpoint.rows)
        if saved is not None:
            total.restore(*saved[:2])
        progress.begin(_done(work, total), (1 + work.two_reads) * len(work.plan.steps))
        try:
            for _ in _added(work, total, runner):
                progress.advance()
                checkpoint.save_now_and_then(total, holds)
        except KeyboardInterrupt:
            raise _interrupted(checkpoint, total, holds, progress) from None
    total.finish()
    both = (
        Distribution("P", pair.p, holds[0], total.seen[0]),
        Distribution("Q", pair.q, holds[1], total.seen[1]),
    )
    found = _told(request, pair, total, both, explanation)
    checkpoint.remove()
    return found


def _explained(work: Work) -> Explanation:
    """Return what computes a block."""
    plan, logits = work.plan, isinstance(work.scale, Logits)
    block = next(iter(plan.blocks(plan.steps[0][0])))
    size = block.count, block.classes.stop - block.classes.start
    sample = np.broadcast_to(np.zeros(()), size)
    explanation = kldiv.explain(sample, sample, operation=work.scale.operation)
    if plan.whole or not logits:
        return explanation
    if explanation.backend != "numpy":
        raise BackendError(
            f"rows of {work.pair.size:,} logits are too long for memory and read in parts, which"
            f" NumPy alone puts together, not {explanation.backend}. Leave out --backend"
        )
    return replace(explanation, kernel="pure")


def _steps(request: Request, plan: Plan) -> int:
    """Return how many steps there may be to look at the data, before any is computed."""
    return 2 * len(plan.steps) if request.form == "auto" else 0


def _look(request: Request, work: Work, runner: Runner, progress: Progress) -> list[Held]:
    """Decide what both files hold; only where that must be guessed is one looked at."""
    guess = request.form == "auto"
    return [
        held(name, request, counts=guess and _holds_counts(work, side, runner, progress))
        for side, name in enumerate("PQ")
    ]


def _holds_counts(work: Work, side: int, runner: Runner, progress: Progress) -> bool:
    """Return whether all numbers of a file are whole, but no one-hot rows, which are both."""
    sums = None if work.plan.whole else np.zeros(work.pair.shape)
    ones = True
    tasks = ((number, side) for number in range(len(work.plan.steps)))
    with closing(runner.run(work, "peek", tasks)) as found:
        for each in found:
            if each is None:
                return False
            for index, part in each:
                if sums is None:
                    ones = ones and bool(np.all(np.abs(part - 1.0) < ONE))
                else:
                    sums[index] += part.reshape(sums[index].shape)
            progress.advance()
    return not (ones if sums is None else bool(np.all(np.abs(sums - 1.0) < ONE)))


def _done(work: Work, total: Total) -> int:
    return total.done + (len(work.plan.steps) if work.two_reads and total.phase else 0)


def _added(work: Work, total: Total, runner: Runner) -> Iterator[None]:
    """Do all steps that are left, and yield whenever one has been added to the total."""
    steps = work.plan.steps
    if total.phase == 0:
        tasks = ((number,) for number in range(total.done, len(steps)))
        with closing(runner.run(work, "first", tasks)) as found:
            for told in found:
                with uninterrupted():
                    total.add_first(steps[total.done][0], told)
                yield
        with uninterrupted():
            total.phase, total.done = 1, 0
    knowing = ((number, total.known(steps[number][0])) for number in range(total.done, len(steps)))
    with closing(runner.run(work, "second", knowing)) as found:
        for part in found:
            with uninterrupted():
                total.add(part)
            _check_signs(work, total)
            yield


def _check_signs(work: Work, total: Total) -> None:
    pair, request = work.pair, work.job.request
    for name, table, seen in zip("PQ", (pair.p, pair.q), total.seen, strict=True):
        if seen.negative.count:
            kind = "counts" if request.form == "counts" else "probabilities"
            least = "" if total.done == len(work.plan.steps) else "at least "
            raise InputError(
                f"{name}, {table.path}, has {least}{seen.negative.count:,} negative numbers, the"
                f" first at {pair.place(seen.negative.first)}: they are no {kind}. For logarithms"
                " or scores say --from log-probs or --from logits"
            )


def _interrupted(
    checkpoint: Checkpoint, total: Total, holds: list[Held], progress: Progress
) -> KeyboardInterrupt:
    """Save what there is, and return an interrupt that says how to go on."""
    if checkpoint.path is None:
        return KeyboardInterrupt()
    with uninterrupted():
        checkpoint.save(total, holds)
    return KeyboardInterrupt(
        f"after {progress.share:.0%}, which {checkpoint.path} keeps. To go on, give the same"
        " command again"
    )


def _told(
    request: Request,
    pair: Pair,
    total: Total,
    both: tuple[Distribution, Distribution],
    explanation: Explanation,
) -> Comparison:
    weights = divisor(pair.shape, "mean"), divisor(pair.shape, request.reduction)
    best = total.best
    return Comparison(
        *both,
        pair,
        dict(zip(MEASURES, total.rows, strict=True)),
        {measure: summary(values) for measure, values in zip(MEASURES, total.rows, strict=True)},
        worst(total.rows, request.top),
        tuple(_contribution(each, pair, *weights) for each in best.best.T),
        {
            "kl_pq": _zeros(best.zeros_q, pair, best.masses[0]),
            "kl_qp": _zeros(best.zeros_p, pair, best.masses[1]),
        },
        request.reduction,
        request.smoothing,
        explanation,
    )


def _contribution(column: Floats, pair: Pair, count: int, weight: int) -> Contribution:
    index = int(column[0])
    p, q = (float(x) / count for x in column[1:3])
    kl_pq, kl_qp, js = (float(x) / weight for x in column[3:])
    return Contribution(pair.class_name(index), index, p, q, kl_pq, kl_qp, js)


def _zeros(holes: Holes, pair: Pair, mass: float) -> Zeros:
    labels = tuple(pair.class_name(index) for _, index in holes.largest)
    return Zeros(holes.count, holes.mass / mass if holes.count else 0.0, labels)
