"""Moving an array from one library to another: no copy where none is needed."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.errors import BackendError, LibraryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from kldiv._types import Array, Namespace


class Exchange:
    """The arrays of one library: namespace, dtypes, devices, and how they are moved."""

    name: str
    module: str
    """Name of the module that is the library's array-API namespace."""

    def namespace(self, array: Array | None = None) -> Namespace:
        """Return the array-API namespace, of ``array`` where the library has several."""
        if array is not None and hasattr(array, "__array_namespace__"):
            return array.__array_namespace__()
        return import_module(self.module)

    def dtype_name(self, array: Array) -> str:
        """Return the name of the array's dtype, as the array-API standard spells it."""
        return str(array.dtype).rpartition(".")[2]

    def context(self, array: Array) -> AbstractContextManager[Any]:
        """Return the context that formulas run in: a device, silenced warnings."""
        return np.errstate(all="ignore")  # many libraries compute by NumPy

    def device(self, array: Array) -> str:
        """Return the name of the device that ``array`` is on."""
        return str(getattr(array, "device", "cpu"))

    def placed(self, array: Array) -> dict[str, Any]:
        """Return the keywords that create another array where ``array`` is."""
        return {"device": array.device}

    def devices(self) -> tuple[str, ...]:
        """Return the names of the devices that the library has here."""
        info = getattr(self.namespace(), "__array_namespace_info__", None)
        return tuple(str(device) for device in info().devices() if device) if info else ("cpu",)

    def find_device(self, name: str) -> str:
        """Return the device's full name, or raise with those there are."""
        devices = self.devices()
        found = next((d for d in devices if d in {name, f"{name}:0"}), None)
        if found is None:
            raise BackendError(
                f"backend {self.name!r} has no device {name!r} here; it has: {', '.join(devices)}"
            )
        return found

    def receiving(self, dtypes: Sequence[str]) -> AbstractContextManager[Any]:
        """Return the context that another library's arrays are received and computed in."""
        return nullcontext()

    def export(self, array: Array) -> Array:
        """Return ``array`` as another library may read it: concrete, without gradient."""
        return array

    def from_dlpack(self, array: Array, device: str | None) -> Array:
        """Take an array of another library over, without a copy where possible."""
        return self.namespace().from_dlpack(array, device=self._device_object(device))

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the array's values in host memory."""
        return np.array(array)

    def on_host(self, array: Array) -> np.ndarray[Any, Any]:
        """Return the array's values, without its gradient, as NumPy's."""
        return np.asarray(self.to_numpy(self.export(array)))

    def from_numpy(self, array: np.ndarray[Any, Any], device: str | None) -> Array:
        """Copy a NumPy array into the library."""
        return self.namespace().asarray(array, device=self._device_object(device), copy=True)

    def _device_object(self, name: str | None) -> Any:
        """Return the device of that name, as the array-API standard hands devices out."""
        if name is None:
            return None
        devices = self.namespace().__array_namespace_info__().devices()
        return next(device for device in devices if str(device) == name)

    def deliver(self, array: Array) -> Array:
        """Return a result that was moved here as the library's own functions would return it."""
        return array

    def as_bits(self, array: Array) -> Array:
        """Return a bfloat16 array reinterpreted as 16-bit integers."""
        raise LibraryError(
            f"{self.name} arrays of dtype bfloat16 cannot be moved to another library; "
            "convert them to float32 first"
        )

    def from_bits(self, array: Array) -> Array:
        """Return 16-bit integers reinterpreted as bfloat16."""
        raise LibraryError(
            f"backend {self.name!r} has no bfloat16; pass dtype='float32' or convert the arrays"
        )


def move(array: Array, source: Exchange, target: Exchange, device: str | None) -> Array:
    """Return ``array`` in the target's library, on ``device``."""
    array = source.export(array)
    if source.dtype_name(array) == "bfloat16":  # not every library can exchange it
        return target.from_bits(_exchange(source.as_bits(array), source, target, device))
    return _exchange(array, source, target, device)


def _exchange(array: Array, source: Exchange, target: Exchange, device: str | None) -> Array:
    # Libraries refuse DLPack in many words: a read-only array, another device, a dtype.  A copy
    # through host memory is then the same values, only slower.
    try:
        return target.from_dlpack(array, device)
    except (BufferError, TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        return target.from_numpy(source.to_numpy(array), device)
