"""How fast memory can be read and copied here, measured in the same run as everything else.

On a CPU by NumPy on every core: one thread a core, each on its own part. On a GPU by whichever of
torch, CuPy and JAX is there. `Floor` does the same for the bytes of one cell, interleaved with the
other candidates: the time that no implementation can beat, and the control of a comparison.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from . import machine
from .libraries import LIBRARIES
from .timer import Candidate, Effort, Timer

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES: Final = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Of each array that is read or copied: far beyond any cache."""
_SMALL: Final = 1 << 21  # below this many bytes a core, threads cost more than they save
_GPU: Final = ("torch", "cupy", "jax")


class Floor:
    """Arrays of given sizes, and calls that read the one and write the other."""

    def __init__(self, device: str, read: int, written: int, library: str | None = None) -> None:
        self.device = device
        library = library or ("numpy" if device == "cpu" else _gpu_library())
        self.library = LIBRARIES[library]
        arrays = [np.ones(max(1, size // 4), np.float32) for size in (read, written)]
        self._read, self._written = (self.library.put(each, device) for each in arrays)
        self._writes = written > 0

    def candidate(self) -> Candidate:
        """Return the call that moves the bytes, with its device's synchronisation."""
        return Candidate(
            self._on_cpu() if self.library.name == "numpy" else self._on_gpu(),
            lambda result: self.library.synchronise(result, self.device),
        )

    def _on_cpu(self) -> Callable[[], Any]:
        cores = machine.cores()
        if self._read.nbytes < _SMALL * cores:
            cores = 1
        source = np.array_split(self._read, cores)
        target = np.array_split(self._written, cores)
        copied = [part[: each.size] for part, each in zip(source, target, strict=True)]

        def work(k: int) -> None:
            # Written lines are read too; the others are only read.
            if self._writes:
                np.copyto(target[k][: copied[k].size], copied[k])
                source[k][copied[k].size :].max(initial=0)
            else:
                source[k].max()

        if cores == 1:
            return lambda: work(0)
        return lambda: list(_pool(cores).map(work, range(cores)))

    def _on_gpu(self) -> Callable[[], Any]:
        if self.library.name == "jax":
            return self._by_jax()
        copied = min(self._written.shape[0], self._read.shape[0])
        source, rest, target = self._read[:copied], self._read[copied:], self._written[:copied]

        def call() -> Any:
            if self._writes:
                target[:] = source
            return (rest if self._writes else self._read).sum()

        return call

    def _by_jax(self) -> Callable[[], Any]:
        copied = min(self._written.size, self._read.size) if self._writes else 0
        work = import_module("jax").jit(lambda x: (x[:copied] + 1, x[copied:].sum()))
        return lambda: work(self._read)


def _gpu_library() -> str:
    for name in _GPU:
        if LIBRARIES[name].problem("cuda") is None:
            return name
    raise LookupError("no library reaches a GPU here")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="bandwidth")


def measure(
    device: str, timer: Timer, size: int | None = None, rounds: int = 7
) -> dict[str, float]:
    """Return bytes a second, reading and copying; copying counts both ways."""
    size = size or BYTES[device]
    candidates = {
        "read": Floor(device, size, 0).candidate(),
        "copy": Floor(device, size // 2, size // 2).candidate(),
    }
    first = {name: timer.once(candidate)[0] for name, candidate in candidates.items()}
    effort = Effort(warmup=0.0, sample=0.005, rounds=(rounds, rounds), budget=1.0)
    timings = timer.rounds(candidates, effort, first)
    return {
        name: size / float(np.median(timing.samples))
        for name, timing in timings.items()
        if timing.failure is None and timing.samples
    }
