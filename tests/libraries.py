"""The array libraries that the suite runs on, each with what a test needs of it.

A test takes the fixture ``lib`` and so runs once for every member of `Library`. Members whose
package or device is missing skip with the reason; naming them in ``KLDIV_TEST_BACKENDS`` turns the
skip into a failure.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from enum import Enum
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import kldiv

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Library(Enum):
    """Array library × configuration."""

    NUMPY = "numpy"
    NUMPY_READONLY = "numpy-readonly"
    STRICT = "array-api-strict"
    STRICTEST = "array-api-strictest"
    TORCH = "torch"
    TORCH_FLOAT64 = "torch-float64"
    JAX = "jax"
    JAX_X64 = "jax-x64"
    DASK = "dask"
    CUPY = "cupy"
    TORCH_CUDA = "torch-cuda"
    JAX_GPU = "jax-gpu"
    MLX = "mlx"

    @property
    def root(self) -> str:
        """Top-level module of the library."""
        return "array_api_strict" if "strict" in self.value else self.value.partition("-")[0]

    @property
    def backend(self) -> str:
        """Name of the backend that serves the library."""
        return self.root

    @property
    def needs_gpu(self) -> bool:
        return self in {Library.CUPY, Library.TORCH_CUDA, Library.JAX_GPU}

    def problem(self) -> str | None:
        """Why the library cannot be tested here, or None."""
        try:
            module = import_module("mlx.core" if self is Library.MLX else self.root)
        except ImportError:
            return f"{self.root} is not installed"
        if self is Library.CUPY:
            return kldiv.backends.get("cupy").problem()
        if self is Library.TORCH_CUDA and not module.cuda.is_available():
            return "torch finds no CUDA device"
        if self is Library.JAX_GPU and module.default_backend() != "gpu":
            return "jax finds no GPU"
        return None

    @property
    def floats(self) -> tuple[str, ...]:
        """The dtypes that the library has here, widest last."""
        if self in {Library.JAX, Library.JAX_GPU}:
            return ("float16", "bfloat16", "float32")
        if self.root == "array_api_strict":
            return ("float32", "float64")
        if self.root in {"dask", "cupy"}:
            return ("float16", "float32", "float64")
        return FLOATS

    @property
    def widest(self) -> str:
        return self.floats[-1]

    @contextmanager
    def configured(self) -> Any:
        """The library's configuration that the member stands for."""
        with ExitStack() as stack:
            if self is Library.STRICTEST:
                strict = import_module("array_api_strict")
                stack.enter_context(
                    strict.ArrayAPIStrictFlags(
                        boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
                    )
                )
            if self is Library.JAX_X64:
                stack.enter_context(import_module("jax").enable_x64(True))
            if self is Library.TORCH_FLOAT64:
                torch = import_module("torch")
                stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(torch.float64)
            yield

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """An array of the library; floats become its widest dtype unless ``dtype`` names one."""
        host = np.asarray(values)
        if dtype is None and host.dtype.kind == "f":
            dtype = self.widest
        if dtype == "bfloat16":
            host = host.astype(import_module("ml_dtypes").bfloat16)
        elif dtype is not None:
            host = host.astype(dtype)
        return self.from_numpy(host)

    def from_numpy(self, host: np.ndarray[Any, Any]) -> Any:
        if self.root == "numpy":
            host = host.copy()
            host.setflags(write=self is not Library.NUMPY_READONLY)
            return host
        if self.root == "array_api_strict":
            strict = import_module("array_api_strict")
            # Not the default device, so that a stray array on the default one is refused.
            return strict.asarray(host, device=strict.Device("device1"))
        if self.root == "torch":
            torch = import_module("torch")
            if host.dtype.name == "bfloat16":
                tensor = torch.from_numpy(host.view(np.int16).copy()).view(torch.bfloat16)
            else:
                tensor = torch.from_numpy(host.copy())
            return tensor.cuda() if self is Library.TORCH_CUDA else tensor
        if self.root == "jax":
            return import_module("jax.numpy").asarray(host)
        if self.root == "dask":
            chunks = tuple(max(1, (size + 1) // 2) for size in host.shape)
            return import_module("dask.array").from_array(host, chunks=chunks)
        module = import_module(self.root) if self is not Library.MLX else None
        return module.asarray(host) if module else kldiv.backends.get("mlx").from_numpy(host, None)

    def numpy(self, array: Any) -> np.ndarray[Any, Any]:
        """The values of an array, as NumPy has them; bfloat16 as float32."""
        if self.root == "torch":
            tensor = array.detach().cpu()
            return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        if self.root == "array_api_strict":
            strict = import_module("array_api_strict")
            return np.asarray(array.to_device(strict.Device("CPU_DEVICE")))
        if self.root == "dask":
            return np.asarray(array.compute())
        if self is Library.MLX and str(array.dtype).endswith("bfloat16"):
            array = array.astype(import_module("mlx.core").float32)
        host = import_module("cupy").asnumpy(array) if self.root == "cupy" else np.asarray(array)
        return host.astype(np.float32) if host.dtype.name == "bfloat16" else host

    def assert_like(self, array: Any, shape: tuple[int, ...], dtype: str) -> None:
        """Assert that a result is the library's own, of this shape and dtype, where it belongs."""
        roots = {cls.__module__.partition(".")[0] for cls in type(array).__mro__}
        assert self.root in roots or (self.root == "jax" and "jaxlib" in roots), (
            f"expected an array of {self.root}, got {type(array)}"
        )
        assert tuple(array.shape) == shape
        assert kldiv.backends.find(array).dtype_name(array) == dtype
        if self.root == "array_api_strict":
            assert "device1" in str(array.device)
        if self is Library.TORCH_CUDA:
            assert array.is_cuda

    def assert_equal(
        self, array: Any, expected: Any, dtype: str | None = None, *, ulps: float = 8
    ) -> None:
        """Assert library, dtype, shape and value, to units of 1 and of the largest, if it is less.

        Infinities and NaN must match exactly.
        """
        wanted = np.asarray(expected, dtype=np.float64)
        dtype = dtype or self.widest
        self.assert_like(array, wanted.shape, dtype)
        found = self.numpy(array).astype(np.float64)
        largest = np.max(abs(wanted), initial=0.0, where=np.isfinite(wanted)) or 1.0
        rtol = ulps * unit(dtype)
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=rtol * min(largest, 1.0))


PAIRED = [
    (Library.NUMPY, "float64"),
    (Library.TORCH, "float32"),
    (Library.TORCH, "float64"),
    (Library.JAX, "float32"),
]
"""Where closed forms differ: the two precisions, and each way of differentiating."""


def unit(dtype: str) -> float:
    """Unit roundoff of a dtype."""
    return {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}[
        dtype
    ]


def demanded() -> set[str]:
    """Names in ``KLDIV_TEST_BACKENDS``."""
    return set(os.environ.get("KLDIV_TEST_BACKENDS", "").replace(",", " ").split())


def require(library: Library) -> None:
    """Skip the running test where the library is missing, or fail where it was demanded."""
    problem = library.problem()
    if problem is None:
        return
    if library.value in demanded():
        pytest.fail(f"KLDIV_TEST_BACKENDS demands {library.value}: {problem}", pytrace=False)
    pytest.skip(problem)
