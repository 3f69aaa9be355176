"""The array libraries that kldiv runs on, as the benchmark needs them: each in this one place.

Which kernels a library has is asked of kldiv (`kldiv.available_backends`), never written here.
To add a library, derive from `Library` and add it to `LIBRARIES`.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from .operations import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from .operations import Operation, Pass

    Host = np.ndarray[Any, Any]
    Call = Callable[[Any, Any], Any]
    """From input and target to the value, or to the pair of value and gradient."""


# By default JAX takes most of a GPU's memory for itself, and the others would be left with little.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


class Library:
    """An array library that computes on NumPy arrays at once; the others override its methods."""

    name: ClassVar = "numpy"
    modes: ClassVar[tuple[str, ...]] = ("eager",)
    """How its users call a function: as it is, or compiled."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    dtypes: ClassVar[tuple[str, ...]] = ("float16", "bfloat16", "float32", "float64")
    memory: ClassVar = "tracemalloc"
    """The tool that sees its allocations; see ``memory.py``."""

    def problem(self, device: str) -> str | None:
        """Return why the library cannot be measured on the device, or None."""
        if device not in self.devices:
            return f"{self.name} has no device {device}"
        status = _backends().get(self.name)
        if status is None:
            return f"kldiv has no backend {self.name!r}"
        if not status.usable:
            return str(status.reason)
        return None if device == "cpu" else self.device_problem(device)

    def device_problem(self, device: str) -> str | None:
        """Return why an installed library cannot use a device that it knows."""

    def install(self) -> str | None:
        """Return the line that installs it."""
        status = _backends().get(self.name)
        return status.install if status else None

    def kernels(self) -> tuple[str, ...]:
        """Return the kernels that kldiv has for it."""
        return tuple(_backends()[self.name].kernels)

    def context(self, dtype: str) -> AbstractContextManager[Any]:
        """Return the context that arrays of the dtype are made and computed in."""
        del dtype
        return nullcontext()

    def put(self, host: Host, device: str) -> Any:
        """Return a host array as the library's, where possible without a copy."""
        del device
        return host

    def get(self, array: Any) -> Host:
        """Return the array's values in host memory."""
        return np.asarray(array)

    def synchronise(self, result: Any, device: str) -> None:
        """Wait until the device is done."""

    def each(self, device: str) -> bool:
        """Return whether to wait after each call, since calls may overlap otherwise."""
        del device
        return False

    def own(self, operation: Operation, part: Pass, mode: str) -> Call:
        """Return kldiv's operation as a user of the library calls it."""
        loss = operation.loss()
        return self.compile(loss if part == "value" else self.differentiate(loss), mode)

    def differentiate(self, loss: Call) -> Call:
        """Return a loss, kldiv's or a peer's, that gives its gradient in the input too."""
        import kldiv  # a library without derivatives has those of kldiv's losses

        return kldiv.value_and_grad(loss)  # type: ignore[no-any-return]

    def compile(self, function: Call, mode: str) -> Call:
        """Return a function compiled as the mode says."""
        del mode
        return function


class Torch(Library):
    """PyTorch, eagerly and under torch.compile."""

    name = "torch"
    modes = ("eager", "compile")
    devices = ("cpu", "cuda")
    memory = "torch"

    def device_problem(self, device: str) -> str | None:
        """Return why torch has no such device here."""
        found = import_module("torch").cuda.is_available()
        return None if found else f"torch finds no device for {device}"

    def put(self, host: Host, device: str) -> Any:
        """Return a tensor."""
        torch = import_module("torch")
        if host.dtype.name == "bfloat16":  # torch cannot read ml_dtypes' arrays
            return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16).to(device)
        return torch.from_numpy(host).to(device)

    def get(self, array: Any) -> Host:
        """Return the values; bfloat16 as float32."""
        tensor = array.detach().cpu()
        return np.asarray(tensor.float() if tensor.dtype.itemsize == 2 else tensor)

    def synchronise(self, result: Any, device: str) -> None:
        """Wait for the device; on a CPU torch returns when it is done."""
        del result
        if device == "cuda":
            import_module("torch").cuda.synchronize()

    def differentiate(self, loss: Call) -> Call:
        """Return a function that takes the gradient by autograd."""
        torch = import_module("torch")

        def forward_and_backward(x: Any, y: Any) -> Any:
            x = x.detach().requires_grad_()
            value = loss(x, y)
            (gradient,) = torch.autograd.grad(value, x)
            return value.detach(), gradient

        forward_and_backward.loss = loss  # type: ignore[attr-defined]
        return forward_and_backward

    def compile(self, function: Call, mode: str) -> Call:
        """Compile the loss, as users do, not the backward pass around it."""
        if mode != "compile":
            return function
        torch = import_module("torch")
        inner = getattr(function, "loss", None)
        if inner is not None:
            return self.differentiate(self.compile(inner, mode))

        def traced(x: Any, y: Any) -> Any:
            return function(x, y)

        # Dynamo keeps with the code what it compiled under the first settings.
        traced.__code__ = traced.__code__.replace()
        return torch.compile(traced, fullgraph=True, dynamic=False)  # type: ignore[no-any-return]


class Jax(Library):
    """JAX under jit, the only way in which it is fast."""

    name = "jax"
    modes = ("jit",)
    devices = ("cpu", "cuda")
    memory = "xla"

    def device_problem(self, device: str) -> str | None:
        """Return why JAX has no GPU here."""
        jax = import_module("jax")
        try:
            jax.devices("gpu")
        except RuntimeError:
            return f"jax finds no GPU for device {device}"
        return None

    @contextmanager
    def _wide(self) -> Iterator[None]:
        jax = import_module("jax")
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)  # noqa: FBT003 - its signature
        try:
            yield
        finally:
            jax.config.update("jax_enable_x64", before)

    def context(self, dtype: str) -> AbstractContextManager[Any]:
        """Allow float64 where it is asked for."""
        return self._wide() if dtype == "float64" else nullcontext()

    def put(self, host: Host, device: str) -> Any:
        """Return an array on the device."""
        jax = import_module("jax")
        kind = "gpu" if device == "cuda" else "cpu"
        with self.context(host.dtype.name):
            return jax.device_put(host, jax.devices(kind)[0])

    def synchronise(self, result: Any, device: str) -> None:
        """Wait for the result: dispatch is asynchronous on every device."""
        del device
        if result is not None:
            import_module("jax").block_until_ready(result)

    def each(self, device: str) -> bool:
        """On a CPU independent calls would run side by side."""
        return device == "cpu"

    def differentiate(self, loss: Call) -> Call:
        """Return jax.value_and_grad of the loss."""
        return import_module("jax").value_and_grad(loss)  # type: ignore[no-any-return]

    def compile(self, function: Call, mode: str) -> Call:
        """Compile by XLA."""
        del mode
        return import_module("jax").jit(function)  # type: ignore[no-any-return]


class CuPy(Library):
    """CuPy, on a GPU only."""

    name = "cupy"
    devices = ("cuda",)
    dtypes = ("float16", "float32", "float64")
    memory = "cupy"

    def put(self, host: Host, device: str) -> Any:
        """Return an array on the GPU."""
        del device
        return import_module("cupy").asarray(host)

    def get(self, array: Any) -> Host:
        """Copy to the host."""
        return import_module("cupy").asnumpy(array)  # type: ignore[no-any-return]

    def synchronise(self, result: Any, device: str) -> None:
        """Wait for the device."""
        del result, device
        import_module("cupy").cuda.Device().synchronize()


class Dask(Library):
    """Dask with its threads, in as many blocks of rows as there are cores."""

    name = "dask"
    dtypes = ("float16", "float32", "float64")
    memory = "tracemalloc"

    def put(self, host: Host, device: str) -> Any:
        """Return a lazy array over the host's."""
        del device
        from .machine import cores

        rows = max(1, -(-host.shape[0] // cores()))
        return import_module("dask.array").from_array(host, chunks=(rows, *host.shape[1:]))

    def own(self, operation: Operation, part: Pass, mode: str) -> Call:
        """Return the loss, computed at once."""
        lazy = super().own(operation, part, mode)
        compute = import_module("dask").compute

        def call(x: Any, y: Any) -> Any:
            found = compute(lazy(x, y))[0]
            return tuple(found) if isinstance(found, list) else found

        return call


LIBRARIES: Final[dict[str, Library]] = {
    library.name: library for library in (Library(), Torch(), Jax(), CuPy(), Dask())
}


@cache
def _backends() -> dict[str, Any]:
    import kldiv

    return dict(kldiv.available_backends(unusable=True))


@contextmanager
def settings(library: Library, dtype: str, kernel: str | None) -> Iterator[None]:
    """Compute as a cell says: its kernel, the library's own context."""
    import kldiv

    with ExitStack() as stack:
        stack.enter_context(library.context(dtype))
        if kernel is not None:
            stack.enter_context(kldiv.config_context(kernel=kernel))
        yield


def supports(library: Library, dtype: str) -> str | None:
    """Return why the library has no such dtype, or None."""
    if dtype not in library.dtypes:
        return f"{library.name} has no {dtype}"
    try:
        numpy_dtype(dtype)
    except ImportError:
        return "bfloat16 in host memory needs ml_dtypes"
    return None
