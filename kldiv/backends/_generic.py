"""Any library with ``__array_namespace__`` that has no adapter of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv.backends.base import Backend

if TYPE_CHECKING:
    import numpy as np

    from kldiv._types import Array


class GenericBackend(Backend):
    """Adapter of the library whose top-level module is ``root``."""

    def __init__(self, root: str) -> None:
        self.name = self.module = root
        self.roots = (root,)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        # Only arrays of a library's default device are sure to be readable by NumPy.
        info = array.__array_namespace__().__array_namespace_info__()
        return super().to_numpy(array.to_device(info.default_device()))
