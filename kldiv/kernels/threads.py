"""Work shared among threads: serial kernels without the interpreter's lock, over one pool.

The calling thread takes part itself and never waits for a helper that has not begun, so that calls
may nest and come from many threads at once. Work is cut into units that do not depend on the number
of threads, and each writes its own part of the results: these are the same bit for bit, however
many threads there are.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

from kldiv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future


VARIABLE = "KLDIV_NUM_THREADS"

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_size = 0


def number(library: int | None = None) -> int:
    """Return how many threads to use: the environment's number, the library's, or the cores'."""
    asked = os.environ.get(VARIABLE)
    if asked:
        if not asked.isascii() or not asked.isdigit() or int(asked) < 1:
            raise ConfigError(f"{VARIABLE} must be a whole number of at least 1; got {asked!r}")
        return int(asked)
    return cores() if library is None else library


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(work: Callable[[int, int], None], units: int, threads: int) -> None:
    """Call ``work(first, last)`` for ranges that cover a number of units, ``last`` not included.

    At most so many ``threads`` take part, this one included.
    """
    threads = min(threads, units)
    if threads <= 1:
        if units:
            work(0, units)
        return
    step = at_a_time(units, threads)
    starts = iter(range(0, units, step))
    helpers = _start(lambda: _take(work, starts, units, step), threads - 1)
    try:
        _take(work, starts, units, step)
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
        errors = [helper.exception() for helper in begun]
    for error in filter(None, errors):
        raise error


def at_a_time(units: int, threads: int) -> int:
    """Return how many units a thread takes at a time.

    It comes several times: a thread that the system interrupts does not keep the others waiting.
    """
    return max(1, units // (8 * threads))


def _take(work: Callable[[int, int], None], starts: Iterator[int], units: int, step: int) -> None:
    for start in starts:  # an iterator over a range is safe among threads
        work(start, min(start + step, units))


def _start(task: Callable[[], None], count: int) -> list[Future[None]]:
    """Hand a task to ``count`` helpers; fewer, or none, where the interpreter is shutting down."""
    started: list[Future[None]] = []
    try:
        pool = _helpers(count)
        for _ in range(count):
            started.append(pool.submit(task))  # noqa: PERF401 - known where an error follows
    except RuntimeError:
        pass
    return started


def _helpers(count: int) -> ThreadPoolExecutor:
    global _pool, _size
    with _lock:
        if _pool is None or _size < count:
            # The old pool, if any, ends once its threads have nothing left to do.
            _pool, _size = ThreadPoolExecutor(count, thread_name_prefix="kldiv"), count
        return _pool


def _forget() -> None:
    """Forget the parent's threads: a forked child does not have them."""
    global _pool, _size, _lock
    _pool, _size, _lock = None, 0, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
