"""The ranks among which the classes of rows are spread, and the merging of their states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace

GATHERED = 16
"""Up to so many ranks every one gets the states of all; beyond, each merges its share of the rows,
so that traffic and memory do not grow with the number of ranks."""


class Ranks:
    """The collectives of an engine; every rank calls the same ones, in the same order."""

    xp: Namespace
    size: int
    place: Any
    """The number of this rank."""

    def merge(self, function: Callable[..., Array], states: Array, *rows: Array) -> Array:
        """Return ``function`` of the list of all ranks' states, and of other arrays of rows."""
        if self.size <= GATHERED or 0 in states.shape:
            return function([*self.gathered(states)], *rows)
        # Each rank gets all states of its share of the rows, merges them, and tells the others.
        xp, shape = self.xp, states.shape[:-1]
        first, *others = (self._shared(array, len(shape)) for array in (states, *rows))
        own = (array[self.place, ...] for array in others)
        merged = function([*self.exchanged(first)], *own)
        whole = xp.reshape(xp.stack(self.gathered(merged)), (-1, merged.shape[-1]))
        return xp.reshape(whole[: math.prod(shape), :], (*shape, merged.shape[-1]))

    def _shared(self, array: Array, axes: int) -> Array:
        """Return the rows, on the first axes, in a part for each rank, the last filled by zeros."""
        xp, rows, last = self.xp, math.prod(array.shape[:axes]), array.shape[axes:]
        share = math.ceil(rows / self.size)
        flat = xp.reshape(array, (rows, *last))
        missing = xp.broadcast_to(flat[:1, ...], (self.size * share - rows, *last))
        whole = xp.concat([flat, xp.zeros_like(missing)], axis=0)
        return xp.reshape(whole, (self.size, share, *last))

    def gathered(self, array: Array) -> Sequence[Array]:
        """Return the array of every rank."""
        raise NotImplementedError

    def exchanged(self, parts: Array) -> Array:
        """Return the parts that all ranks have for this one, given its part for each of them."""
        raise NotImplementedError

    def add(self, array: Array) -> Array:
        """Return the sum of all ranks' arrays."""
        raise NotImplementedError

    def extent(self, array: Array) -> tuple[Any, Any]:
        """Return how many classes the ranks before have, and all together."""
        raise NotImplementedError


def extent_of(xp: Namespace, sizes: Array, place: int) -> tuple[Array, Array]:
    """Return how many classes the ranks before have, and all together, given those of each."""
    return xp.sum(sizes[:place]), xp.sum(sizes)


def even_extent(size: int, place: Any, number: int) -> tuple[Any, int]:
    """Return the same of so many ranks that have so many classes each."""
    return place * size, number * size
