"""Tuples of numbers per row, packed side by side on the last axis of one array for an exchange."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace

    Evaluate = Callable[..., Array]
    """Evaluates an operation on the arrays that follow it."""


def packed(xp: Namespace, constants: Sequence[NamedTuple], others: Sequence[Array] = ()) -> Array:
    """Return tuples of one number per row, and others, as one array."""
    return xp.concat([*(field for one in constants for field in one), *others], axis=-1)


def width(kind: type[Any], number: int) -> int:
    """Return how long the last axis of that many packed tuples is."""
    return number * len(kind._fields)


def unpacked(kind: type[Any], array: Array) -> list[Any]:
    """Return the tuples that `packed` has joined."""
    fields = split(array)
    size = len(kind._fields)
    return [kind(*fields[start : start + size]) for start in range(0, len(fields), size)]


def split(array: Array) -> list[Array]:
    """Return the numbers on the last axis, each with an axis of length one."""
    return [array[..., index : index + 1] for index in range(array.shape[-1])]
