"""Run the steps of a comparison: on threads here, or on the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event
from typing import Any, Final, TypeAlias

from kldiv.errors import InputError, OptionError
from kldiv.streaming.work import Work, do, do_elsewhere

Runner: TypeAlias = Callable[[Work, str, Iterable[tuple[Any, ...]]], Generator[Any]]
"""Yields the result of a kind of step for each task, in their order, while later ones run."""

_MOST: Final = 4  # threads: each has its pieces in memory, and more would wait for the disk
_PATIENCE: Final = 5  # seconds for a scheduler to answer


def runner(scheduler: str | None) -> AbstractContextManager[Runner]:
    """Open the cluster of a Dask scheduler, or the threads of this process."""
    return nullcontext(_on_threads) if scheduler is None else _cluster(scheduler)


class _Stopped(Exception):  # noqa: N818 - no error: nobody waits for the result any more
    pass


def _on_threads(work: Work, kind: str, tasks: Iterable[tuple[Any, ...]]) -> Generator[Any]:
    """Run a step on each thread: one reads while another computes."""
    stop, count = Event(), min(_cores(), _MOST)

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    if len(work.plan.steps) == 1:  # a thread would only cost time
        for task in tasks:
            yield do(work, kind, task, check)
        return
    with ThreadPoolExecutor(count) as pool:
        try:
            yield from _in_order(
                lambda task: pool.submit(do, work, kind, task, check), tasks, count
            )
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _cluster(address: str) -> Iterator[Runner]:
    """Connect to a scheduler such as ``tcp://10.0.0.1:8786``; its workers open files by path."""
    try:
        import distributed  # noqa: PLC0415 - optional
    except ImportError as error:
        raise OptionError(
            '`scheduler` needs Dask: pip install "kldiv[dask]" distributed'
        ) from error
    try:
        connect: Any = distributed.Client
        client = connect(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"scheduler='{address}': no Dask scheduler answers there"
            f" ({' '.join(str(error).split())[:200]}). Give the address that it printed when it"
            " started"
        ) from error
    try:
        count = sum(client.nthreads().values())
        if not count:
            raise InputError(f"scheduler='{address}': it has no workers. Start some first")

        def run(work: Work, kind: str, tasks: Iterable[tuple[Any, ...]]) -> Generator[Any]:
            def start(task: tuple[Any, ...]) -> Any:
                return client.submit(do_elsewhere, work.job, kind, task, pure=False)

            try:
                yield from _in_order(start, tasks, 2 * count)
            except ImportError as error:
                raise InputError(
                    f"a worker of the cluster lacks {error.name}; install kldiv on all machines"
                ) from error

        yield run
    finally:
        client.close()


def _in_order(
    start: Callable[[Any], Future[Any]], tasks: Iterable[Any], ahead: int
) -> Generator[Any]:
    """Yield results in order, with so many tasks under way; cancel them where nobody waits."""
    running: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            running.append(start(task))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1
