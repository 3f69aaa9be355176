"""The timer on a fake clock and a fake device; what the estimates say of its samples."""

from __future__ import annotations

import numpy as np
import pytest
from benchmark.suite import cell, load

timing = load("harness.timer")
estimates = load("harness.estimates")
show = load("report.show")

EFFORT = timing.Effort(warmup=0.0, sample=0.0, rounds=(5, 9), budget=1e9)


class Device:
    """A clock and an asynchronous device: work is queued at once, and done when waited for."""

    def __init__(self):
        self.now = 0.0
        self.queue = 0.0
        self.log = []

    def clock(self):
        self.log.append("clock")
        return self.now

    def candidate(self, name, seconds, **options):
        durations = iter(seconds) if hasattr(seconds, "__iter__") else None

        def call():
            self.log.append(name)
            self.queue += next(durations) if durations else seconds
            return name

        return timing.Candidate(call, self.synchronise, **options)

    def synchronise(self, result):
        self.log.append(f"sync {result}")
        self.now += self.queue
        self.queue = 0.0


@pytest.fixture
def device():
    return Device()


def test_calls_in_turns_are_timed_once_a_round():
    now, log = [0.0], []

    def call(name, seconds):
        log.append(name)
        now[0] += seconds

    calls = {"a": lambda: call("a", 2.0), "b": lambda: call("b", 3.0)}
    told = []
    times = timing.in_turns(calls, 4, clock=lambda: now[0], progress=told.append)
    assert times == {"a": [2.0] * 4, "b": [3.0] * 4}
    assert log[:2] == ["a", "b"]
    assert all(set(log[i : i + 2]) == {"a", "b"} for i in range(len(log) - 6, len(log), 2))
    assert told[-1] == 1.0


def test_a_call_that_fails_in_its_turn_is_named():
    with pytest.raises(RuntimeError, match=r"b: ZeroDivisionError"):
        timing.in_turns({"a": lambda: 1, "b": _once_only().__next__}, 3)


def _once_only():
    yield 1
    yield 1 / 0


def test_the_device_is_waited_for_before_each_reading_of_the_clock(device):
    timer = timing.Timer(device.clock)
    seconds, result = timer.once(device.candidate("work", 0.25), 3)
    assert (seconds, result) == (0.25, "work")
    assert device.log == ["sync None", "clock", *["work"] * 3, "sync work", "clock"]


def test_calls_that_could_overlap_are_waited_for_one_by_one(device):
    timing.Timer(device.clock).once(device.candidate("work", 0.1, each=True), 2)
    assert device.log.count("sync work") == 3


def test_rounds_are_interleaved_and_shuffled(device):
    names = "abcd"
    candidates = {name: device.candidate(name, 1.0) for name in names}
    timings = timing.Timer(device.clock).rounds(candidates, EFFORT, dict.fromkeys(names, 2.0))
    assert {name: len(each.samples) for name, each in timings.items()} == dict.fromkeys(names, 9)
    assert all(each.first == 2.0 for each in timings.values())
    calls = [entry for entry in device.log if entry in candidates][-32:]
    rounds = ["".join(calls[k : k + 4]) for k in range(0, 32, 4)]
    assert all(sorted(each) == list(names) for each in rounds)
    assert len(set(rounds)) > 1


def test_drift_of_all_cancels_in_the_paired_ratio(device):
    drift = [1.0 + 0.5 * k for k in range(40)]
    own, peer = np.array(drift) * 0.1, np.array(drift) * 0.3
    found = estimates.paired_ratio(own, peer, "seed")
    assert found.ratio == pytest.approx(3.0)
    assert found.low == pytest.approx(3.0)
    assert found.high == pytest.approx(3.0)
    assert estimates.summarise(own).unstable


def test_a_sample_is_as_long_as_was_asked(device):
    effort = timing.Effort(warmup=0.0, sample=1.0, rounds=(5, 5), budget=0.0)
    found = timing.Timer(device.clock).rounds(
        {"short": device.candidate("short", 0.125)}, effort, {"short": 1.0}
    )
    assert found["short"].calls == 8
    assert found["short"].samples == [0.125] * 5


def test_the_budget_ends_the_rounds_but_not_before_the_least_number(device):
    effort = timing.Effort(warmup=0.0, sample=0.0, rounds=(5, 100), budget=7.0)
    found = timing.Timer(device.clock).rounds(
        {name: device.candidate(name, 0.5) for name in "ab"}, effort, dict.fromkeys("ab", 1.0)
    )
    # The first round takes two seconds: each first sample follows a call that is not read.
    assert [len(each.samples) for each in found.values()] == [6, 6]


def test_one_slow_candidate_does_not_hold_up_the_others(device):
    effort = timing.Effort(warmup=0.0, sample=0.0, rounds=(9, 9), budget=3.0)
    candidates = {"slow": device.candidate("slow", 10.0), "fast": device.candidate("fast", 0.1)}
    found = timing.Timer(device.clock).rounds(candidates, effort, dict.fromkeys(candidates, 1.0))
    assert len(found["slow"].samples) == timing.FEWEST
    assert len(found["fast"].samples) == 9


def test_what_breaks_is_named_and_the_others_go_on(device):
    def broken():
        raise ValueError("no  such\nkernel")

    candidates = {"bad": timing.Candidate(broken), "good": device.candidate("good", 1.0)}
    found = timing.Timer(device.clock).rounds(candidates, EFFORT, dict.fromkeys(candidates, 1.0))
    assert found["bad"].failure == "ValueError: no such kernel"
    assert not found["bad"].samples
    assert len(found["good"].samples) == 9


def test_progress_never_goes_back(device):
    told = []
    effort = timing.Effort(warmup=0.0, sample=0.0, rounds=(2, 8), budget=3.5)
    timing.Timer(device.clock).rounds(
        {"work": device.candidate("work", 1.0)}, effort, {"work": 1.0}, told.append
    )
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("samples", "unstable", "outliers"),
    [
        ([1.0, 1.01, 0.99, 1.02], False, 0),
        ([1.0, 1.01, 1.02, 0.99, 0.98, 1.0, 9.0], False, 1),
        ([1.0, 1.3, 0.8, 1.2, 0.9], True, 0),
        ([1.0, 1.0], True, 0),  # nobody knows
    ],
)
def test_an_iqr_beyond_a_tenth_of_the_median_is_unstable(samples, unstable, outliers):
    found = estimates.summarise(samples)
    assert (found.unstable, found.outliers) == (unstable, outliers)


def test_what_is_unstable_or_wrong_is_never_ranked():
    fastest = cell([0.1, 0.2, 0.3, 0.1])
    wrong = cell([0.01] * 5, status="wrong", reason="the value is wrong")
    stable = cell([1.0] * 5)
    assert [show.standing(each) for each in (fastest, wrong, stable)] == ["unstable", "wrong", ""]
    assert show.order([fastest, wrong, stable])[0] is stable
    own = cell([2.0, 2.0, 2.0])
    for loser in (fastest, wrong):
        assert show.order([own, loser])[0] is own


def test_the_interval_of_a_ratio_holds_the_truth():
    inside = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        own = np.exp(random.normal(0.0, 0.05, 25))
        peer = 2.0 * np.exp(random.normal(0.0, 0.05, 25))
        found = estimates.paired_ratio(own, peer, str(seed))
        inside += found.low <= 2.0 <= found.high
    assert inside >= 90
