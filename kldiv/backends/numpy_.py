"""NumPy: the default, on the CPU; bfloat16 where ``ml_dtypes`` is installed."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.backends.base import Backend
from kldiv.backends.chunks import BLOCK_BYTES
from kldiv.backends.numpy_namespace import FUNCTIONS
from kldiv.backends.overlay import Overlay
from kldiv.backends.table import TABLE
from kldiv.errors import LibraryError
from kldiv.kernels.blocks import BLOCKS
from kldiv.kernels.cpu import CPU
from kldiv.kernels.layout import shared

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Operation
    from kldiv.kernels.technology import Technology


def special() -> Any:
    """Return SciPy's special functions."""
    try:
        import scipy.special  # noqa: PLC0415 - optional
    except ImportError:
        raise LibraryError(
            "NumPy has no special functions of its own, which this pair of distributions needs; "
            'pip install "kldiv[scipy]"'
        ) from None
    return scipy.special


def _scattered(array: Array, places: Array, values: Array) -> Array:
    """Return an array with values at places on its last axis, written in place."""
    np.put_along_axis(array, places, values, axis=-1)
    return array


def _astype(array: Array, dtype: Any) -> Array:
    """Return an array in another dtype, in half the time of NumPy's own function.

    A scalar, as reductions give it, takes a tenth of the time by the dtype's own type, which rounds
    alike but for types that others bring.
    """
    if isinstance(array, np.generic) and getattr(dtype, "isbuiltin", 0) == 1:
        return dtype.type(array)
    return array.astype(dtype)


def _missing(name: str) -> Any:
    """Return a name that NumPy lacks, of those that others bring: special functions, bfloat16."""
    if name == "special":
        return special()
    if name != "bfloat16":
        raise AttributeError(name)
    try:
        import ml_dtypes  # noqa: PLC0415 - optional
    except ImportError:
        raise LibraryError(
            "NumPy has no bfloat16 of its own; pip install ml_dtypes, or use float32"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


# Dtypes are compared in a tenth of the time of classes.
_DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64")}

xp = Overlay(np, _missing, scattered=_scattered, astype=_astype, **FUNCTIONS, **_DTYPES)


@cache
def _name(dtype: np.dtype[Any]) -> str:
    """Return the name of a dtype, which NumPy puts together in 2 µs each time."""
    return dtype.name


class NumPyBackend(Backend):
    """Adapter of NumPy arrays and scalars."""

    name = "numpy"
    module = "numpy"
    roots, install, kernels = TABLE["numpy"]
    technologies = (CPU, BLOCKS)

    def recognises(self, cls: type) -> bool:
        if issubclass(cls, np.ma.MaskedArray | np.matrix):
            raise LibraryError(
                f"numpy.{cls.__name__} gives its own meaning to arithmetic; pass a plain array: "
                "for a masked array its .filled() with where=~mask, for a matrix numpy.asarray"
            )
        return issubclass(cls, np.ndarray | np.generic)

    def namespace(self, array: Array | None = None) -> Namespace:
        return xp

    def dtype_name(self, array: Array) -> str:
        return _name(array.dtype)

    def facts(self, arrays: Sequence[Array]) -> Hashable | None:
        return tuple([(type(array), array.dtype, array.flags.aligned) for array in arrays])

    def is_small(self, operation: Operation, arrays: Sequence[Array]) -> bool:
        size = arrays[0].size  # asked in every call, of scalars too: without a generator
        return not operation.lengthy and all([size < each.small for each in self.technologies])  # noqa: C419

    def size(self, arrays: Sequence[Array]) -> int:
        return int(arrays[0].size)

    def unreachable(
        self, technology: Technology, arrays: Sequence[Array], kernel: str
    ) -> str | None:
        if all(
            isinstance(array, np.ndarray) and array.dtype.isnative and array.flags.aligned
            for array in arrays
        ):
            return None
        return "the arrays are not in the CPU's own byte order, or not aligned"

    def unwritable(self, array: Array, others: Sequence[Array]) -> str | None:
        if not isinstance(array, np.ndarray) or not array.flags.writeable:
            return "it is read-only"
        return shared([array, *(each for each in others if isinstance(each, np.ndarray))])

    def block_bytes(self, array: Array) -> int:
        return BLOCK_BYTES

    def kept_rows(self, keep: Array) -> Array | None:
        return np.flatnonzero(keep)

    def adjacent(self, array: Array) -> Array:
        # NumPy adds pairwise along an axis that is adjacent in memory, along others one by one:
        # of 50,000 numbers in float32 that is 200 units off.
        strided = array.ndim and array.strides[-1] != array.itemsize
        return np.ascontiguousarray(array) if strided and array.itemsize < 8 else array

    def export(self, array: Array) -> Array:
        # Scalars have no DLPack, no other library reads foreign byte orders, and PyTorch ends the
        # process where a stride is negative.
        array = np.asarray(array)
        if not array.dtype.isnative:
            return array.astype(array.dtype.newbyteorder("="))
        return array.copy() if any(stride < 0 for stride in array.strides) else array

    def from_dlpack(self, array: Array, device: str | None) -> Array:
        return np.from_dlpack(array)

    def from_numpy(self, array: np.ndarray[Any, Any], device: str | None) -> Array:
        return array

    def deliver(self, array: Array) -> Array:
        # NumPy's reductions return scalars, and its functions arrays that can be written to.
        return array[()] if array.flags.writeable or not array.ndim else array.copy()

    def as_bits(self, array: Array) -> Array:
        return array.view(np.int16)

    def from_bits(self, array: Array) -> Array:
        return array.view(xp.bfloat16)


BACKEND = NumPyBackend()
