"""How far a long command has come."""

from __future__ import annotations

import sys
import time
from typing import Any, Final, Self

_PATIENCE: Final = 1.0  # seconds without a progress bar


class Progress:
    """A bar on stderr, only on a terminal, and only once a second has passed.

    Parameters
    ----------
    title : str
        The work, as the bar names it.
    """

    def __init__(self, title: str = "Comparing") -> None:
        self._title = title
        self._start = time.monotonic()
        self._bar: Any = None

    def reach(self, done: int, total: int) -> None:
        """Show how many steps of how many are done."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)
        elif sys.stderr.isatty() and time.monotonic() - self._start > _PATIENCE:
            self._show(done, total)

    def _show(self, done: int, total: int) -> None:
        from rich.console import Console  # noqa: PLC0415 - most runs need no bar
        from rich.progress import Progress as Bar  # noqa: PLC0415

        # Steps are long, and several end together: the speed is that of the last minutes.
        self._bar = Bar(console=Console(stderr=True), transient=True, speed_estimate_period=300)
        self._bar.add_task(self._title, total=total, completed=done)
        self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
