"""What a backend is: the adapter between one array library and the formulas.

The methods of `Backend` serve any library of the array-API standard; a library's own adapter
overrides what only that library can do: its gradient hook, its devices, its kernels.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kldiv.backends import chunks
from kldiv.errors import BackendError, LibraryError
from kldiv.formulas.blocks import row_blocks
from kldiv.formulas.linear import Products
from kldiv.formulas.reductions import RowWise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from kldiv._types import Array, Namespace
    from kldiv.backends.routing import Route
    from kldiv.formulas.linear import LinearLoss
    from kldiv.formulas.operation import Operation
    from kldiv.formulas.rows import RowLoss


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what temporaries free, which makes blocks three times as fast.

    glibc gives free memory above 128 KiB back to the system, and every block would fault it in
    again, until it has seen a larger piece freed: twice the size of the largest is kept, of up to
    32 MiB.  Most programs free such a piece by themselves.
    """
    np.empty(16_777_216, np.uint8)


CHUNK_BYTES = 268_435_456
"""Of logits and their gradients on a CPU: rows enough for a matrix product to run at full speed."""

DEVICE_CHUNK_BYTES = 1_073_741_824
"""The same on a GPU."""

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Names of the dtypes that every operation takes, narrowest first."""

HALVES = FLOATS[:2]
"""Those that are computed in float32."""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can be used here, and if not, why and what helps."""

    name: str
    usable: bool
    version: str | None = None
    devices: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    reason: str | None = None
    install: str | None = None
    kernel_problems: Mapping[str, str] = field(default_factory=dict)
    """Why each of the other kernels cannot run here."""


class Spread(Protocol):
    """Rows of which each rank holds some classes, or none."""

    def value(self, operation: RowLoss, arrays: Sequence[Array]) -> Array:
        """Return the loss of all ranks' classes together, differentiably; the same on each rank."""
        ...


class Backend:
    """Adapter of one array library: derive from it, and override what the library does better."""

    name: str
    roots: tuple[str, ...]
    """Top-level modules that the library's array types are defined in."""
    module: str
    """What to import to have the library's array-API namespace."""
    install: str = ""
    """The line that installs it."""
    kernels: tuple[str, ...] = ("pure",)
    """Names of the kernels, the fastest first; ``pure`` is the array-API formula."""

    numpy_float32: bool = True
    """Whether the library's float32 is NumPy's, whose logarithm is up to 4.6 u off and whose sums
    lose up to 1e-5: kldiv then takes that logarithm, and sums, in float64."""

    in_blocks: bool = False
    """Whether operations run on a block of each array apart from the others."""

    # ---- recognising -----------------------------------------------------------------------------

    def recognises(self, cls: type) -> bool:
        """Return whether arrays of this type are the library's."""
        return any(base.__module__.partition(".")[0] in self.roots for base in cls.__mro__)

    def check(self, name: str, array: Array) -> None:
        """Raise if ``array`` is one of the library's that no operation can take."""

    def check_devices(self, names: Sequence[str], arrays: Sequence[Array]) -> None:
        """Raise if arrays are on devices that the library does not compute on together."""

    def namespace(self, array: Array | None = None) -> Namespace:
        """Return the array-API namespace, of ``array`` where the library has several."""
        if array is not None and hasattr(array, "__array_namespace__"):
            return array.__array_namespace__()
        return import_module(self.module)

    def dtype_name(self, array: Array) -> str:
        """Return the name of the array's dtype, as the array-API standard spells it."""
        return str(array.dtype).rpartition(".")[2]

    def autocasts(self, array: Array) -> bool:  # noqa: ARG002
        """Return whether a context is active in which losses of half types are float32."""
        return False

    # ---- computing -------------------------------------------------------------------------------

    def run(self, operation: Operation, route: Route, arrays: Sequence[Array]) -> Array:
        """Run ``operation`` inside the library's gradient hook; here there is none."""
        return route.compute(operation, *arrays)

    def spread(self, s: Array, t: Array, group: Any, axis_name: Any) -> Spread | None:  # noqa: ARG002
        """Return how rows are spread over ranks; None where every row is whole here."""
        for name, value, library in (
            ("group", group, "torch tensors"),
            ("axis_name", axis_name, "JAX arrays inside jax.shard_map"),
        ):
            if value is not None:
                msg = f"{name}= is for {library}; got arrays of {self.name}; leave it out"
                raise LibraryError(msg)
        return None

    def compute(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> Array:  # noqa: ARG002
        """Run ``operation`` on the library's own arrays by ``kernel``."""
        with self.context(arrays[0]):
            xp = self.namespace(arrays[0])
            if isinstance(operation, RowWise):
                return operation.gather(xp, self.by_rows(operation, xp, arrays), arrays)
            return operation.value(xp, *arrays)

    def fused(
        self,
        operation: Operation,  # noqa: ARG002
        arrays: Sequence[Array],  # noqa: ARG002
        kernel: str,  # noqa: ARG002
        gradients: Sequence[int] = (),  # noqa: ARG002
        cotangent: Array | None = None,  # noqa: ARG002
        *,
        value: bool = True,  # noqa: ARG002
        keep: bool = False,  # noqa: ARG002
        kept: Array | None = None,  # noqa: ARG002
    ) -> tuple[Array | None, list[Array]] | None:
        """Compute by a fused kernel, or return None where the formulas are to do it.

        Parameters
        ----------
        operation : Operation
            What to compute.
        arrays : sequence of array
            The library's own arrays.
        kernel : str
            What `choose_kernel` returned.
        gradients : sequence of int, optional
            Indices of the arrays to differentiate in, in the same pass.
        cotangent : array, optional
            The gradient in the result; by default 1.
        value : bool, default True
            Whether the value itself is wanted.
        keep : bool, default False
            Whether to return, after the gradients, what they follow from later, if anything does.
        kept : array, optional
            What an earlier call returned for that.

        Returns
        -------
        tuple or None
            The value, or None where it is not wanted, and the gradients.
        """
        return None

    def in_chunks(
        self,
        operation: LinearLoss,
        arrays: Sequence[Array],
        route: Route,
        wanted: Sequence[int] = (),
        weight: Array | None = None,
    ) -> chunks.Found:
        """Compute the rows of two linear layers' loss and gradients, a few rows at a time.

        Parameters
        ----------
        operation : LinearLoss
            What to compute.
        arrays : sequence of array
            The library's own arrays.
        route : Route
            The settings of the call; the arrays are where they are computed.
        wanted : sequence of int, optional
            Indices of the arrays to differentiate in.
        weight : array, optional
            What each row's gradient is multiplied by; by default 1.

        Returns
        -------
        tuple
            The value of each row, and gradients of their weighted sum, in the compute dtype.
        """
        with self.context(arrays[0]):
            products = Products(self.namespace(arrays[0]), operation.compute)
            return chunks.loop(self, products, operation, arrays, route.kernel, wanted, weight)

    def chunk_bytes(self, array: Array) -> int:  # noqa: ARG002
        """Return how many bytes of logits and their gradients may exist at a time."""
        return CHUNK_BYTES

    def kept_rows(self, keep: Array) -> Array | None:  # noqa: ARG002
        """Return where a mask of rows is True; None where only the device could tell."""
        return None

    def by_rows(self, operation: RowWise, xp: Namespace, arrays: Sequence[Array]) -> Array:
        """Compute the elements of an operation on rows, a block at a time, in place."""
        blocks = row_blocks(arrays[0].shape, operation.compute)
        keep_freed_memory()
        if len(blocks) == 1:
            return operation.elements(xp, *map(self.adjacent, arrays))
        result = None
        for block in blocks:
            parts = (self.adjacent(array[(*block, ...)]) for array in arrays)
            part = operation.elements(xp, *parts)
            if result is None:
                shape = operation.shape(arrays)
                result = xp.empty(shape, dtype=part.dtype, device=part.device)
            result[(*block, ...)] = part
        return result

    def adjacent(self, array: Array) -> Array:
        """Return the array, its last axis adjacent in memory where sums are exact only then."""
        return array

    def context(self, array: Array) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Return the context that formulas run in: a device, silenced warnings."""
        return np.errstate(all="ignore")  # many libraries compute by NumPy

    def choose_kernel(self, name: str) -> str:
        """Return the kernel to run, or say why the one asked for cannot."""
        if name == "auto":
            return self.kernels[0]
        if name in self.kernels:
            return name
        msg = (
            f"kernel {name!r} does not run on backend {self.name!r}, which has: "
            f"{', '.join(self.kernels)}; choose one of these or 'auto'"
        )
        raise BackendError(msg)

    def explain_kernel(
        self,
        name: str,
        operation: Operation,  # noqa: ARG002
        arrays: Sequence[Array],  # noqa: ARG002
    ) -> tuple[str, str]:
        """Return which kernel would run a call, given the one chosen for it, and why."""
        return name, "the array-API formula, the fastest that applies"

    def kernel_problems(self) -> dict[str, str]:
        """Return the kernels that cannot run here, and why."""
        return {}

    def register_container(
        self,
        cls: type,
        take_apart: Callable[[Any], tuple[tuple[Any, ...], tuple[Any, ...]]],
        put_together: Callable[[tuple[Any, ...], tuple[Any, ...]], Any],
    ) -> None:
        """Tell the library how its transformations find the arrays in objects of a class."""

    # ---- devices and exchange --------------------------------------------------------------------

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
            msg = f"backend {self.name!r} has no device {name!r} here; it has: {', '.join(devices)}"
            raise BackendError(msg)
        return found

    def receiving(self, dtypes: Sequence[str]) -> AbstractContextManager[Any]:  # noqa: ARG002
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

    def as_bits(self, array: Array) -> Array:  # noqa: ARG002
        """Return a bfloat16 array reinterpreted as 16-bit integers."""
        msg = (
            f"{self.name} arrays of dtype bfloat16 cannot be moved to another library; "
            "convert them to float32 first"
        )
        raise LibraryError(msg)

    def from_bits(self, array: Array) -> Array:  # noqa: ARG002
        """Return 16-bit integers reinterpreted as bfloat16."""
        msg = f"backend {self.name!r} has no bfloat16; pass dtype='float32' or convert the arrays"
        raise LibraryError(msg)

    # ---- what there is here ----------------------------------------------------------------------

    def problem(self) -> str | None:
        """Return why the backend cannot be used here, or None where it can."""
        try:
            import_module(self.module)
        except ImportError as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name in self.roots
            return "not installed" if missing else f"import fails: {error}"
        return None

    def version(self) -> str | None:
        """Return the library's version."""
        found = getattr(sys.modules.get(self.roots[0]), "__version__", None)
        return None if found is None else str(found)

    def status(self) -> BackendStatus:
        """Return whether the backend is usable here, and if not why."""
        reason = self.problem()
        problems = {} if reason else self.kernel_problems()
        return BackendStatus(
            self.name,
            reason is None,
            self.version(),
            () if reason else self.devices(),
            tuple([kernel for kernel in self.kernels if kernel not in problems]),
            reason,
            self.install or None,
            problems,
        )

    def __reduce__(self) -> str | tuple[Any, ...]:
        # Workers of a scheduler find their own instance by name.
        from kldiv.backends.registry import get  # noqa: PLC0415 - base is below the registry

        return get, (self.name,)
