"""Kernels run by several threads: OpenMP's, for PyTorch's tensors, or our own.

For some milliseconds after an operation PyTorch's threads wait for the next one without leaving
their cores: those of another pool would have to share these with them.
"""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.kernels import threads
from kldiv.kernels.cpu.code import I64, at_most, select
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.layout import words_of

if TYPE_CHECKING:
    from kldiv.kernels.cpu.code import Code
    from kldiv.kernels.layout import Buffer

_FRAME: Final = (
    "kernel",  # address of a function of words, room, the first and last unit, and further numbers
    "words",
    "rooms",  # addresses of each thread's room
    "units",
    "step",  # units that a thread takes at a time
    "parts",  # how often, all threads together
    "number",  # of threads that take part: there may be more
    "next",  # the first unit of the part that comes next; threads count it up
    "members",  # how many threads have come; likewise
    "helpers",  # how many have found a part to do; likewise
)

_AT_ONCE: Final = 1 << 12
"""Steps, a tenth of a second, between which Ctrl-C is answered."""

_STALL: Final = 2e-3
"""Seconds of a call after which a thread that found nothing to do was kept from its core."""

_PAUSES: Final = 8, 64
"""Calls by our own threads after a stall, and after many: other programs keep cores busy."""

_PROCESS: Final = os.getpid()


class _Pause:
    """How many calls are left to our own threads, which wait for none that has not begun."""

    left = 0
    length = 0

    def over(self) -> bool:
        """Return whether PyTorch's threads take the next call."""
        self.left = max(0, self.left - 1)
        return self.left == 0

    def after(self, *, stalled: bool) -> None:
        """Begin a pause after a stall, twice as long as the one before."""
        least, most = _PAUSES
        self.length = min(max(least, 2 * self.length), most) if stalled else 0
        self.left = self.length


_pause = _Pause()


def launch(
    kernel: Any,
    words: Buffer,
    room: int,
    units: int,
    library: int | None,
    *more: int,
    step: int = 1,
) -> None:
    """Call a kernel for all units, each thread with so many bytes of room.

    ``library`` is how many threads PyTorch uses, None for other arrays; ``more`` are further
    arguments. A thread takes ``step`` units at least.
    """
    number = min(threads.number(library), -(-units // step))
    # OpenMP waits without end for its parent's threads, which a forked child does not have: so does
    # PyTorch there, unless it has been told to use one.
    usable = library is not None and 1 < number <= library and os.getpid() == _PROCESS
    start = _starter() if usable and _pause.over() else None
    if start is None:
        _launch_ours(kernel, words, room, units, number, *more, step=step)
        return
    rooms = [_aligned(room) for _ in range(number)]
    addresses = np.array([address for _, address in rooms])
    given = {"kernel": kernel.address, "words": words, "rooms": addresses, "number": number}
    for first in range(0, units, _AT_ONCE * step):
        last = min(first + _AT_ONCE * step, units)
        taken = threads.at_a_time((last - first) // step, number) * step
        parts = -(-(last - first) // taken)
        frame = given | {"units": last, "step": taken, "parts": parts, "next": first}
        numbers = np.append(words_of(_FRAME, frame), np.array(more, np.int64))
        begun = time.perf_counter()
        # All of PyTorch's threads: those left out of a team end, and are started anew by the next.
        start(_member(len(more)).address, numbers.ctypes.data, 0, 0)
        late = numbers[_FRAME.index("helpers")] < min(number, parts)
        _pause.after(stalled=late and time.perf_counter() - begun > _STALL)
    del rooms  # held until here


def _launch_ours(
    kernel: Any, words: Buffer, room: int, units: int, number: int, *more: int, step: int
) -> None:
    def part(first: int, last: int) -> None:
        own, address = _aligned(room)
        kernel(words.ctypes.data, address, first * step, min(last * step, units), *more)
        del own

    threads.share(part, -(-units // step), number)


def _aligned(size: int) -> tuple[Buffer, int]:
    """Return memory, and the address in it from which it has so many bytes, a multiple of 64."""
    memory = np.empty(size + 64, np.uint8)
    return memory, -(-memory.ctypes.data // 64) * 64


@cache
def _starter() -> Any:
    """Return the function of GCC's OpenMP, or one like it, that starts threads; None without."""
    with suppress(AttributeError, OSError, TypeError):
        function = ctypes.CDLL(None).GOMP_parallel
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


@cache
def _member(count: int) -> Any:
    """Return the compiled function of one thread, for kernels with ``count`` further numbers."""

    def write(code: Code) -> None:
        (address,) = code.arguments
        more = tuple(f"more_{index}" for index in range(count))
        frame = code.frame(address, (*_FRAME, *more))
        coming, following, helping = (
            address + 8 * _FRAME.index(name) for name in ("members", "next", "helpers")
        )
        member = code.fetch_and_add(coming, 1)
        takes_part = member < frame["number"]
        room = code.load(I64, frame["rooms"], select(takes_part, member, 0))
        is_first = code.variable(code.whole(1))
        with code.loop(select(takes_part, frame["parts"], 0)):
            first = code.fetch_and_add(following, frame["step"])
            with code.when(first < frame["units"]):
                code.fetch_and_add(helping, is_first.get())
                is_first.set(code.whole(0))
                last = at_most(first + frame["step"], frame["units"])
                others = (frame[name] for name in more)
                code.call(frame["kernel"], frame["words"], room, first, last, *others)

    return compiled(f"team-{count}", 1, write)
