"""A comparison that goes on a step at a time, can be stopped, kept and continued."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv
from kldiv.errors import BackendError, InputError, OptionError, ShapeError
from kldiv.streaming import members
from kldiv.streaming.blocks import Sizes
from kldiv.streaming.conclude import conclude
from kldiv.streaming.inputs import open_pair
from kldiv.streaming.logits import Logits
from kldiv.streaming.options import Options
from kldiv.streaming.resume import Checkpoint, identity_of, uninterrupted
from kldiv.streaming.runners import runner
from kldiv.streaming.totals import ONE, Total
from kldiv.streaming.work import Job, Work

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from kldiv.explanation import Explanation
    from kldiv.streaming.options import Held
    from kldiv.streaming.places import Places
    from kldiv.streaming.results import Comparison
    from kldiv.streaming.runners import Runner


class Run:
    """
    A comparison of `kldiv.streaming.compare`, a step at a time.

    Iterating does the steps that are left and yields the numbers of steps done and of all.  A loop
    may be left at any time: iterating again goes on, and so does another run, in another process,
    with the same arguments and a checkpoint that `save` wrote, to the same bits.

    Parameters
    ----------
    p, q : array, path or Table
        As in `kldiv.streaming.compare`.
    checkpoint : str or path-like, optional
        The file of the state: continued if it is there, written by `save`, removed by `result`.
    scheduler, next_tokens : optional
        As in `kldiv.streaming.compare`.
    memory : int, optional
        As in `kldiv.streaming.compare`.
    divergences : str or record, or several by name, optional
        As in `kldiv.streaming.compare`.
    **options : Any
        Its other options, but for ``progress``.

    See Also
    --------
    compare : The same in one call.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv import streaming
    >>> teacher, student = np.random.default_rng(0).normal(size=(2, 400, 1000))
    >>> run = streaming.Run(teacher, student, form="logits", memory=8 << 20)
    >>> for done, steps in run:
    ...     if done == 2:
    ...         break
    >>> run.result().mean == streaming.compare(
    ...     teacher, student, form="logits", memory=8 << 20
    ... ).mean
    True
    """

    def __init__(
        self,
        p: Any,
        q: Any,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        scheduler: str | None = None,
        memory: int | None = None,
        divergences: Any = None,
        next_tokens: Any = None,
        **options: Any,
    ) -> None:
        checked, sizes = Options(**options), Sizes.within(memory)
        self._members = members.checked(divergences, checked)
        # Before the files: a backend that cannot run should say so at once.
        kldiv.explain(np.zeros(1), np.ones(1), operation=checked.scale.operation)
        paths: tuple[str, str, str | None] = ("", "", None)
        if scheduler is not None:
            tokens = None if next_tokens is None else _elsewhere("`next_tokens`", next_tokens)
            paths = _elsewhere("P", p), _elsewhere("Q", q), tokens
        pair = open_pair(p, q, checked, next_tokens)
        job = Job(checked, tuple(kldiv.get_config().items()), sizes, paths, pair.declared)
        self._work = Work(job, pair)
        self._scheduler = scheduler
        self._explanation = _explained(self._work)
        # The form that "auto" stands for is decided by the numbers.
        guess = checked.form == "auto"
        self._held: list[Held] = [] if guess else [checked.held(n, counts=False) for n in "PQ"]
        self._total: Total | None = None
        self._turn: object = None
        self._result: Comparison | None = None
        self._checkpoint, saved = Checkpoint(None, {}), None
        if checkpoint is not None:
            identity = identity_of((p, q, next_tokens), pair, job, self._explanation)
            self._checkpoint = Checkpoint(Path(checkpoint), identity)
            saved = self._checkpoint.load()
        if saved is not None:
            arrays, facts, self._held = saved
            if arrays:
                self._begin().restore(arrays, facts)
        elif not guess:
            self._begin()

    @property
    def done(self) -> int:
        """The number of steps done, without those that look for counts."""
        if self._total is None:
            return 0
        phase = len(self._work.plan.steps) if self._work.two_reads and self._total.phase else 0
        return phase + self._total.done

    @property
    def steps(self) -> int:
        """The number of all steps; with "auto" it is known once the numbers were looked at."""
        return (1 + self._work.two_reads) * len(self._work.plan.steps)

    def __iter__(self) -> Generator[tuple[int, int]]:
        """Do the steps that are left, and yield the numbers of steps done and of all."""
        if self._result is not None:
            return
        turn = self._turn = object()  # a later loop takes over: an earlier one goes no further
        with runner(self._scheduler) as run, closing(self._places(run)) as places:
            for place in places:
                yield place
                if self._turn is not turn:
                    return

    def _places(self, run: Runner) -> Generator[tuple[int, int]]:
        """Do the steps that are left, and yield as iteration does."""
        for looked, _ in enumerate(self._look(run), 1):
            yield looked, 2 * len(self._work.plan.steps)
        for _ in self._add(self._total or self._begin(), run):
            yield self.done, self.steps

    def save(self) -> None:
        """Write the state to the checkpoint.

        Raises
        ------
        OptionError
            The run has no checkpoint.
        InputError
            It cannot be written.
        """
        if self._checkpoint.path is None:
            raise OptionError("save needs a file: make the run with checkpoint='some.state'")
        if self._result is None:
            with uninterrupted():
                self._checkpoint.save(self._total, self._held)

    def save_when_due(self) -> None:
        """Write the state to the checkpoint if there is one and 30 seconds or more have passed."""
        if self._checkpoint.path is not None and self._checkpoint.due:
            self.save()

    def result(self) -> Comparison:
        """Do the steps that are left, return the result and remove the checkpoint."""
        for _ in self:
            pass
        if self._result is None:
            total = self._total or self._begin()
            _check_signs(self._work, total)
            total.finish()
            found = conclude(self._work, total, self._held, self._explanation)
            others = members.measure(self._work, self._members)
            self._result = replace(found, divergences=others)
            self._checkpoint.remove()
        return self._result

    def _begin(self) -> Total:
        """Return a total of nothing, now that the forms of P and Q are known."""
        p, q = self._held
        _check_classes(self._work.pair.places, normalized=p.normalized or q.normalized)
        job = replace(self._work.job, normalized=(p.normalized, q.normalized))
        self._work = Work(job, self._work.pair)
        self._total = Total(self._work, self._checkpoint.rows)
        return self._total

    def _look(self, run: Runner) -> Iterator[None]:
        """Read the numbers of P and Q to guess their form, unless it is known."""
        for side in range(len(self._held), 2):
            counts = self._work.pair.whole[side]
            if counts is None:
                counts = yield from self._holds_counts(side, run)
            self._held.append(self._work.job.options.held("PQ"[side], counts=counts))

    def _holds_counts(self, side: int, run: Runner) -> Generator[None, None, bool]:
        """Return whether all numbers are whole, but no one-hot rows, which are both."""
        work = self._work
        sums = None if work.plan.whole else np.zeros(work.pair.places.shape)
        ones = True
        tasks = ((number, side) for number in range(len(work.plan.steps)))
        with closing(run(work, "peek", tasks)) as found:
            for each in found:
                if each is None:
                    return False
                for index, part in each:
                    if sums is None:
                        ones = ones and bool(np.all(np.abs(part - 1.0) < ONE))
                    else:
                        sums[index] += part.reshape(sums[index].shape)
                yield
        return not (ones if sums is None else bool(np.all(np.abs(sums - 1.0) < ONE)))

    def _add(self, total: Total, run: Runner) -> Iterator[None]:
        """Do all steps that are left, and yield whenever one has been added to the total."""
        work, steps = self._work, self._work.plan.steps
        if total.phase == 0:
            tasks = ((number,) for number in range(total.done, len(steps)))
            with closing(run(work, "first", tasks)) as found:
                for more in found:
                    with uninterrupted():
                        total.add_first(steps[total.done][0], more)
                    yield
            with uninterrupted():
                total.phase, total.done = 1, 0
        left = range(total.done, len(steps))
        knowing = ((number, total.known(steps[number][0])) for number in left)
        with closing(run(work, "second", knowing)) as found:
            for part in found:
                with uninterrupted():
                    total.add(part)
                    _check_signs(work, total)
                yield


def _check_classes(places: Places, *, normalized: bool) -> None:
    """Refuse rows of one class, which are all 1 when each is divided by its sum."""
    if normalized and places.size == 1 and places.count > 1:
        column = len(places.whole) == 2 and places.axis == 1
        mend = "axis=0 takes the column as one distribution" if column else "Choose another `axis`"
        raise ShapeError(
            f"P and Q have {places.count:,} rows of one class each, whose share is 1 in every row:"
            f" there is nothing to compare. {mend}"
        )


def _elsewhere(name: str, given: Any) -> str:
    """Return a path for other processes, which may be in another folder."""
    if not isinstance(given, str | os.PathLike):
        raise OptionError(
            f"`scheduler` takes paths, which its workers open; {name} is a"
            f" {type(given).__qualname__}. Save it to a file that they see"
        )
    # A file may be followed by ::key, which is no path.
    return os.path.join(os.getcwd(), given)  # noqa: PTH109, PTH118


def _explained(work: Work) -> Explanation:
    """Return who computes a block."""
    plan, logits = work.plan, isinstance(work.scale, Logits)
    block = next(plan.blocks(plan.steps[0][0]))
    size = block.count, block.classes.stop - block.classes.start
    sample = np.broadcast_to(np.zeros(()), size)
    explanation = kldiv.explain(sample, sample, operation=work.scale.operation)
    if plan.whole or not logits:
        return explanation
    if explanation.backend != "numpy":
        raise BackendError(
            f"rows of {work.pair.places.size:,} logits are too long for memory and read in parts,"
            f" which NumPy alone puts together, not {explanation.backend}. Leave out `backend`"
        )
    return replace(explanation, kernel="pure")


def _check_signs(work: Work, total: Total) -> None:
    pair, form = work.pair, work.job.options.form
    for name, table, seen in zip("PQ", pair.tables, total.seen, strict=True):
        if seen.negative.count:
            whose = name if table.path is None else f"{name}, {table.path},"
            least = "" if total.done == len(work.plan.steps) else "at least "
            noun = "number," if seen.negative.count == 1 else "numbers, the first"
            raise InputError(
                f"{whose} has {least}{seen.negative.count:,} negative {noun} at"
                f" {pair.places.element(seen.negative.first)}: they are no"
                f" {'counts' if form == 'counts' else 'probabilities'}. For logarithms or scores"
                " say form='log-probs' or form='logits'"
            )
