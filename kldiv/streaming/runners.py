"""Run the steps of a comparison: on threads here, or on the workers of a Dask cluster."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from kldiv.errors import InputError, OptionError
from kldiv.streaming.work import do, do_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from types import TracebackType

    from kldiv.streaming.work import Work

_MOST: Final = 4  # threads: each has its pieces in memory, and more would wait for the disk
_PATIENCE: Final = 5  # seconds for a scheduler to answer


class Runner(Protocol):
    """Anything that runs steps."""

    def run(self, work: Work, kind: str, tasks: Iterable[tuple[Any, ...]]) -> Generator[Any]:
        """Yield the result of each task, in their order, while later ones run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class _Stopped(Exception):  # noqa: N818 - no error: nobody waits for the result any more
    pass


class Threads:
    """Threads of this process, a step each: one reads while another computes."""

    def __init__(self) -> None:
        self._count = min(_cores(), _MOST)

    def run(self, work: Work, kind: str, tasks: Iterable[tuple[Any, ...]]) -> Generator[Any]:
        """Yield the result of each task, in their order."""
        stop = Event()

        def check() -> None:
            if stop.is_set():
                raise _Stopped

        if len(work.plan.steps) == 1:  # a thread would only cost time
            for task in tasks:
                yield do(work, kind, task, lambda: None)
            return
        with ThreadPoolExecutor(self._count) as pool:
            try:
                yield from _in_order(
                    lambda task: pool.submit(do, work, kind, task, check), tasks, self._count
                )
            finally:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Cluster:
    """The workers of a Dask cluster; each opens the files by their paths.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``tcp://10.0.0.1:8786``.
    """

    def __init__(self, address: str) -> None:
        try:
            import distributed  # noqa: PLC0415 - optional
        except ImportError as error:
            raise OptionError(
                '`scheduler` needs Dask: pip install "kldiv[dask]" distributed'
            ) from error
        try:
            client: Any = distributed.Client
            self._client = client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"scheduler='{address}': no Dask scheduler answers there"
                f" ({' '.join(str(error).split())[:200]}). Give the address that it printed when it"
                " started"
            ) from error
        self._count = sum(self._client.nthreads().values())
        if not self._count:
            self._client.close()
            raise InputError(f"scheduler='{address}': it has no workers. Start some first")

    def run(self, work: Work, kind: str, tasks: Iterable[tuple[Any, ...]]) -> Generator[Any]:
        """Yield the result of each task, in their order."""

        def start(task: tuple[Any, ...]) -> Any:
            return self._client.submit(do_elsewhere, work.job, kind, task, pure=False)

        try:
            yield from _in_order(start, tasks, 2 * self._count)
        except ImportError as error:
            raise InputError(
                f"a worker of the cluster lacks {error.name}; install kldiv on all machines"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


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
