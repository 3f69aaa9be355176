"""Steady-state times of several calls, in interleaved rounds on one clock.

Every round takes one sample of every call, in an order shuffled anew, so that a machine whose speed
drifts slows all alike. A sample is as many calls as make it long enough to be read off the clock;
the device is synchronised before every reading. Clock and synchronisation are injected: the tests
bring their own.
"""

from __future__ import annotations

import gc
import math
import random
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

FEWEST: Final = 3
"""Samples of a candidate that alone takes longer than the budget."""
_SWITCH_S: Final = 0.02  # a call shorter than this runs once, unread, before each of its samples


@dataclass(frozen=True)
class Candidate:
    """A call to time, and how its device is waited for."""

    call: Callable[[], Any]
    synchronise: Callable[[Any], None] = lambda _result: None
    """Wait until the device is done; it is given the last result, or None before the first call."""
    each: bool = False
    """Whether to wait after every call rather than once a sample: where calls could overlap."""
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    """The context of every call; entered outside of the time that is read."""


@dataclass
class Timing:
    """The clock's readings for one candidate, in seconds a call."""

    first: float
    """The first call: with imports, compiling and cold caches."""
    calls: int = 1
    """Calls in a sample."""
    samples: list[float] = field(default_factory=list)
    """Steady state: the mean time of a call, one for each round."""
    failure: str | None = None


@dataclass(frozen=True)
class Effort:
    """How long to measure one group of candidates."""

    warmup: float
    """Seconds of warm-up for each candidate, at least three calls."""
    sample: float
    """Seconds that a sample should take at least."""
    rounds: tuple[int, int]
    """At least and at most."""
    budget: float
    """Seconds of rounds after which no round beyond the least number is begun; 0 sets no limit to
    a single candidate either."""

    def goes_on(self, timing: Timing) -> bool:
        """Return whether a candidate is sampled once more: not if it broke, or eats the budget."""
        spent = timing.calls * sum(timing.samples)
        few = len(timing.samples) < FEWEST
        return timing.failure is None and (few or not self.budget or spent < self.budget)

    def fraction(self, done: int, spent: float) -> float:
        """Return how much is done after some rounds and seconds."""
        least, most = self.rounds
        paid = spent / self.budget if self.budget else 1.0
        return min(1.0, max(done / most, min(done / least, paid)))


class Timer:
    """A clock with the steps around every reading of it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, seed: int = 0) -> None:
        self.clock = clock
        self._random = random.Random(seed)  # noqa: S311 - an order, not a secret

    def once(self, candidate: Candidate, calls: int = 1) -> tuple[float, Any]:
        """Return the seconds of one call, as the mean of ``calls``, and the last result."""
        result = None
        with candidate.context():
            candidate.synchronise(None)
            start = self.clock()
            for _ in range(calls):
                result = candidate.call()
                if candidate.each:
                    candidate.synchronise(result)
            candidate.synchronise(result)
            return (self.clock() - start) / calls, result

    def rounds(
        self,
        candidates: Mapping[str, Candidate],
        effort: Effort,
        first: Mapping[str, float],
        progress: Callable[[float], None] = lambda _done: None,
    ) -> dict[str, Timing]:
        """Return the steady state of candidates that have been called once already.

        Parameters
        ----------
        candidates
            By name.
        effort
            How long.
        first
            The seconds of each candidate's first call.
        progress
            Told the fraction that is done.
        """
        timings = {name: Timing(first[name]) for name in candidates}
        with _without_collector():
            for name, candidate in candidates.items():
                with _failing_into(timings[name]):
                    timings[name].calls = self._warm_up(candidate, effort)
            begin = self.clock()
            least, most = effort.rounds
            for done in range(most):
                spent = self.clock() - begin
                if done >= least and spent >= effort.budget:
                    break
                progress(effort.fraction(done, spent))
                order = [name for name in candidates if effort.goes_on(timings[name])]
                self._random.shuffle(order)
                for name in order:
                    with _failing_into(timings[name]):
                        self._sample(candidates[name], timings[name])
                gc.collect()  # between rounds, so that no sample pays for another's rubbish
        progress(1.0)
        return timings

    def _warm_up(self, candidate: Candidate, effort: Effort) -> int:
        """Call until warm; return how many calls make a sample."""
        begin, times = self.clock(), []
        while len(times) < FEWEST or self.clock() - begin < effort.warmup:
            times.append(self.once(candidate)[0])
            if len(times) >= 1 and self.clock() - begin > 3 * max(effort.warmup, effort.sample):
                break  # one call of this takes longer than all of the warm-up
        fastest = min(times)
        return max(1, math.ceil(effort.sample / fastest)) if fastest > 0 else 1000

    def _sample(self, candidate: Candidate, timing: Timing) -> None:
        calls = timing.calls
        # Earlier work has filled the caches and may leave threads spinning.
        if not timing.samples or timing.samples[-1] < _SWITCH_S:
            self.once(candidate)
        timing.samples.append(self.once(candidate, calls)[0])


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    sample: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda _done: None,
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round, once all have been called; raise if one fails.

    Parameters
    ----------
    calls
        By name; each returns when its device is done.
    rounds
        How many.
    sample
        Seconds that a sample should take at least; by default it is one call.
    clock
        Of the time that passes, or of the processor's.
    progress
        Told the fraction that is done.
    """
    timer, candidates = Timer(clock), {name: Candidate(call) for name, call in calls.items()}
    first = {name: timer.once(candidate)[0] for name, candidate in candidates.items()}
    effort = Effort(warmup=sample, sample=sample, rounds=(rounds, rounds), budget=0.0)
    timings = timer.rounds(candidates, effort, first, progress)
    for name, timing in timings.items():
        if timing.failure is not None:
            raise RuntimeError(f"{name}: {timing.failure}")
    return {name: timing.samples for name, timing in timings.items()}


@contextmanager
def _failing_into(timing: Timing) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a peer raises; the others go on
        timing.failure = brief(error)


def brief(error: BaseException) -> str:
    """Return an error as one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


@contextmanager
def _without_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def few_to_collect() -> Iterator[None]:
    """Keep objects that exist by now out of all collections: those of libraries take long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
