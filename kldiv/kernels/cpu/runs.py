"""Runs of elements in memory, seen as whole vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kldiv.kernels.cpu.code import select

if TYPE_CHECKING:
    from kldiv.kernels.cpu.code import Code, Real, Value

PAD: Final = 128
"""Bytes of a run's last vector."""


class Run:
    """A run of elements; the last vector, which they need not fill, has a place of its own."""

    def __init__(self, code: Code, real: Real, at: Value, n: Value, pad: Value) -> None:
        self.code, self.real, self.at, self.n, self.pad = code, real, at, n, pad
        self.whole = n // real.lanes
        self.count = (n + (real.lanes - 1)) // real.lanes

    def _address(self, k: Value) -> Value:
        return self.at + k * (self.real.lanes * self.real.size)

    def place(self, k: Value) -> Value:
        """Return the address of a vector."""
        return select(k == self.whole, self.pad, self._address(k))

    def fetch(self, k: Value, *, write: bool = False) -> None:
        """Fetch a vector, which may lie behind the last, into the cache."""
        self.code.fetch(self._address(k), write=write)

    def fill(self, nothing: float) -> None:
        """Copy the last elements to their place, and fill that up."""
        first = self._copy(self.at, self.pad)
        with self.code.loop(self.count * self.real.lanes, self.n) as k:
            self.code.store(self.pad, self.code.constant(self.real.scalar, nothing), k - first)

    def finish(self) -> None:
        """Copy the last elements from their place."""
        self._copy(self.pad, self.at)

    def _copy(self, source: Value, target: Value) -> Value:
        first = self.whole * self.real.lanes
        with self.code.loop(self.n, first) as k:
            inside = [k if each is self.at else k - first for each in (source, target)]
            value = self.code.load(self.real.scalar, source, inside[0])
            self.code.store(target, value, inside[1])
        return first

    def load(self, k: Value) -> Value:
        """Return a vector."""
        return self.code.load(self.real.vector, self.place(k))

    def store(self, k: Value, value: Value) -> None:
        """Write a vector."""
        self.code.store(self.place(k), value)
