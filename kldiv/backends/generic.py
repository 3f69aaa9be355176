"""Any library with ``__array_namespace__`` that has no adapter of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kldiv.backends.base import Backend
from kldiv.backends.overlay import Overlay

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from kldiv._types import Array, Namespace


class GenericBackend(Backend):
    """Adapter of the library whose top-level module is ``root``."""

    def __init__(self, root: str) -> None:
        self.name = self.module = root
        self.roots = (root,)
        self._overlays: dict[str, Overlay] = {}

    def namespace(self, array: Array | None = None) -> Namespace:
        xp = super().namespace(array)
        if xp.__name__ not in self._overlays:
            self._overlays[xp.__name__] = Overlay(xp, self._missing)
        return self._overlays[xp.__name__]

    def _missing(self, name: str) -> Any:
        """Return SciPy's special functions on the library's arrays."""
        if name != "special":
            raise AttributeError(name)
        return _Special(self)

    def adjacent(self, array: Array) -> Array:
        # A library on top of NumPy adds as NumPy does; of strides it says nothing.
        xp = self.namespace(array)
        return xp.reshape(xp.reshape(array, (-1,)), array.shape)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        # Only arrays of a library's default device are sure to be readable by NumPy.
        info = array.__array_namespace__().__array_namespace_info__()
        return super().to_numpy(array.to_device(info.default_device()))


class _Special:
    """SciPy's special functions, computed on the host."""

    def __init__(self, backend: GenericBackend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Callable[..., Array]:
        from kldiv.backends.numpy_ import special  # noqa: PLC0415 - only where it is needed

        return partial(self._on_host, getattr(special(), name))

    def _on_host(self, function: Callable[..., Any], *arrays: Array) -> Array:
        first = arrays[-1]
        host = [self._backend.to_numpy(a) if hasattr(a, "dtype") else a for a in arrays]
        xp = self._backend.namespace(first)
        return xp.asarray(function(*host), dtype=first.dtype, device=first.device)
