"""Moving an array from one library to another: no copy where none is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.backends.base import Backend


def move(array: Array, source: Backend, target: Backend, device: str | None) -> Array:
    """Return ``array`` in the target's library, on ``device``."""
    array = source.export(array)
    if source.dtype_name(array) == "bfloat16":  # not every library can exchange it
        return target.from_bits(_exchange(source.as_bits(array), source, target, device))
    return _exchange(array, source, target, device)


def _exchange(array: Array, source: Backend, target: Backend, device: str | None) -> Array:
    # Libraries refuse DLPack in many words: a read-only array, another device, a dtype.  A copy
    # through host memory is then the same values, only slower.
    try:
        return target.from_dlpack(array, device)
    except (BufferError, TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        return target.from_numpy(source.to_numpy(array), device)
