"""Ctrl-C that is answered at once, even while a compiler runs on another thread."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE: Final = 0.5  # seconds for a tidy end
_INTERRUPTED: Final = 130
_keeping = threading.Event()


def keep_state() -> None:
    """Have an interrupt wait until a checkpoint is written; a second one does not."""
    _keeping.set()


@contextmanager
def prompt_interrupt() -> Iterator[None]:
    """End the process soon after Ctrl-C, whatever still computes."""
    _keeping.clear()
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    timers: list[threading.Timer] = []

    def interrupted(number: int, frame: Any) -> None:
        if timers or not _keeping.is_set():
            timer = threading.Timer(_PATIENCE, _end)
            timer.daemon = True
            timer.start()
            timers.append(timer)
        _keeping.clear()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for timer in timers:
            timer.cancel()


def _end() -> None:
    sys.stderr.write("Interrupted\n")
    sys.stderr.flush()
    os._exit(_INTERRUPTED)
