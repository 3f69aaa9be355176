"""An operation on arrays, and the results that are wanted of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace

    Found: TypeAlias = tuple[Array | None, list[Array]]
    """The value, None where it is not wanted, and the gradients."""


class Work(NamedTuple):
    """An operation on arrays, and the results that are wanted of it."""

    operation: Any
    xp: Namespace
    arrays: Sequence[Array]
    threads: int | None = None
    """How many of a CPU's threads the library uses; None where it has no setting."""
    value: bool = True
    gradients: tuple[int, ...] = ()
    """Indices of the arrays to differentiate in."""
    cotangent: Array | None = None
    """The gradient in the result; None is 1."""
    into: Sequence[Array] | None = None
    """Where to write the gradients; None makes new arrays."""
    keep: bool = False
    """Whether to return, after the gradients, the array that a later call takes as ``kept``."""
    kept: Array | None = None
    """The array that an earlier call for the value returned, from which the gradients follow."""
