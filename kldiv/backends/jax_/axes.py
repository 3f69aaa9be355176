"""Small arrays of all devices along a mesh axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

if TYPE_CHECKING:
    from kldiv._types import Array


def gather(array: Array, axis_name: str) -> Array:
    """Return the array of each device, along a new first axis."""
    return jax.lax.all_gather(array, axis_name)
