"""Calls of compiled kernels: their frames, their room, and threads that share the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.kernels import threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kldiv.kernels.layout import Buffer, Layout


def words_of(names: Sequence[str], frame: dict[str, Any]) -> Buffer:
    """Return a frame: integers in the order in which a kernel names them."""
    return np.array([int(frame[name]) for name in names])


def arrays_of(names: Iterable[str], layout: Layout) -> dict[str, int]:
    """Return what a frame has of arrays: their table, addresses, and what copies them."""
    names = tuple(names)
    return {
        "table": layout.table.ctypes.data,
        **dict(zip(names, layout.addresses, strict=True)),
        **dict(zip([f"move_{name}" for name in names], layout.movers, strict=True)),
    }


def launch(
    kernel: Any, words: Buffer, room: int, units: int, number: int, *more: int, step: int = 1
) -> None:
    """Call a kernel for all units, by a number of threads with so many bytes of room each.

    A thread takes ``step`` units at least; ``more`` are further arguments.
    """

    def part(first: int, last: int) -> None:
        scratch = np.empty(room + 64, np.uint8)
        aligned = -(-scratch.ctypes.data // 64) * 64
        kernel(words.ctypes.data, aligned, first * step, min(last * step, units), *more)

    threads.share(part, -(-units // step), number)
