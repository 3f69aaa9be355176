"""CuPy: NVIDIA and AMD GPUs; every call enters the device that its arrays are on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import array_api_compat.cupy
import cupy
import numpy as np

from kldiv.backends.base import FLOATS, Backend
from kldiv.backends.chunks import DEVICE_CHUNK_BYTES
from kldiv.backends.overlay import Overlay
from kldiv.backends.table import TABLE
from kldiv.errors import LibraryError
from kldiv.formulas.blocks import DEVICE_BLOCK_BYTES
from kldiv.formulas.pairs import PairMeasure
from kldiv.kernels.cuda import CUDA

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from kldiv._types import Array, Namespace
    from kldiv.formulas.operation import Operation
    from kldiv.kernels.technology import Technology
    from kldiv.kernels.work import Found, Work


def _missing(name: str) -> Any:
    """Return the special functions, or bfloat16 from CuPy 14 on: its namespace has neither."""
    if name == "special":
        import cupyx.scipy.special  # noqa: PLC0415 - few calls need it

        return cupyx.scipy.special
    if name != "bfloat16":
        raise AttributeError(name)
    try:
        import ml_dtypes  # noqa: PLC0415 - optional
    except ImportError:
        raise LibraryError(
            "CuPy has bfloat16 from version 14 on and with ml_dtypes; install these, or use float32"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


xp = Overlay(array_api_compat.cupy, _missing)


class CuPyBackend(Backend):
    """Adapter of ``cupy.ndarray``."""

    name = "cupy"
    module = "cupy"
    roots, install, kernels = TABLE["cupy"]
    technologies = (CUDA,)
    numpy_float32 = False

    def namespace(self, array: Array | None = None) -> Namespace:
        return xp

    def context(self, array: Array) -> AbstractContextManager[Any]:
        # CuPy computes on the current device, whatever device its arrays are on.
        return array.device

    def launch(self, technology: Technology, work: Work) -> Found:
        with self.context(work.arrays[0]):
            return technology.compute(work)

    def unreachable(
        self, technology: Technology, arrays: Sequence[Array], kernel: str
    ) -> str | None:
        if any(self.dtype_name(array) not in {*FLOATS, "bool"} for array in arrays):
            return "the kernels have no such dtype"
        if len({array.device.id for array in arrays}) > 1:
            return "the arrays are on several GPUs"
        return None

    def by_formulas(self, operation: Operation, arrays: Sequence[Array]) -> Array:
        if isinstance(operation, PairMeasure):
            operation = replace(operation, block_bytes=DEVICE_BLOCK_BYTES)
        return super().by_formulas(operation, arrays)

    def chunk_bytes(self, array: Array) -> int:
        return DEVICE_CHUNK_BYTES

    def device(self, array: Array) -> str:
        return f"cuda:{array.device.id}"

    def devices(self) -> tuple[str, ...]:
        return tuple(f"cuda:{i}" for i in range(cupy.cuda.runtime.getDeviceCount()))

    def from_dlpack(self, array: Array, device: str | None) -> Array:
        with self._at(device):
            received = cupy.from_dlpack(array)
            # An array of another GPU arrives as it is; copying it here moves it.
            return received if device in {None, self.device(received)} else cupy.array(received)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return cupy.asnumpy(array)

    def from_numpy(self, array: np.ndarray[Any, Any], device: str | None) -> Array:
        with self._at(device):
            return cupy.asarray(array)

    def _at(self, device: str | None) -> AbstractContextManager[Any]:
        return cupy.cuda.Device(None if device is None else int(device.partition(":")[2]))

    def problem(self) -> str | None:
        # CuPy imports without a GPU and fails at its first allocation: ask the driver.
        try:
            if cupy.cuda.runtime.getDeviceCount() > 0:
                return None
        except cupy.cuda.runtime.CUDARuntimeError as error:
            return f"no GPU can be used: {error}"
        return "no GPU was found"


BACKEND = CuPyBackend()
