"""What a backend is: the adapter between one array library and the formulas.

The methods of `Backend` serve any library of the array-API standard; a library's own adapter
overrides what only that library can do: its gradient hook, its devices, its kernels.
"""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kldiv.backends import choice, chunks
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
    from kldiv.kernels.technology import Technology
    from kldiv.kernels.work import Found, Work


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what temporaries free, which makes blocks three times as fast.

    glibc gives free memory above 128 KiB back to the system, and every block would fault it in
    again, until it has seen a larger piece freed: twice the size of the largest is kept, of up to
    32 MiB.  Most programs free such a piece by themselves.
    """
    np.empty(16_777_216, np.uint8)


def in_row_blocks(
    operation: RowWise,
    xp: Namespace,
    arrays: Sequence[Array],
    prepared: Callable[[Array], Array] | None = None,
) -> Array:
    """Compute the elements of an operation on rows, a block at a time, in place."""
    blocks = row_blocks(arrays[0].shape, operation.compute)
    keep_freed_memory()
    if len(blocks) == 1:
        return operation.elements(xp, *(map(prepared, arrays) if prepared else arrays))
    result = None
    for block in blocks:
        parts = [array[(*block, ...)] for array in arrays]
        part = operation.elements(xp, *(map(prepared, parts) if prepared else parts))
        if result is None:
            shape = operation.shape(arrays)
            result = xp.empty(shape, dtype=part.dtype, device=part.device)
        result[(*block, ...)] = part
    return result


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
    technologies: tuple[Technology, ...] = ()
    """What has these kernels, in the same order; ``pure`` needs nothing."""

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

    def run_linear(self, operation: LinearLoss, route: Route, arrays: Sequence[Array]) -> Array:
        """Run two linear layers' loss likewise."""
        return chunks.value(route, operation, arrays)

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

    def compute(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> Array:
        """Return the value of ``operation`` on the library's own arrays, with no gradient hook."""
        if self.technologies and kernel != "pure":
            value = choice.value(self, kernel, operation, arrays)
            if value is not None:
                return value
        return self.by_formulas(operation, arrays)

    def by_formulas(self, operation: Operation, arrays: Sequence[Array]) -> Array:
        """Evaluate the formulas of ``operation``."""
        with self.context(arrays[0]):
            xp = self.namespace(arrays[0])
            if isinstance(operation, RowWise):
                return operation.gather(xp, self.by_rows(operation, xp, arrays), arrays)
            return operation.value(xp, *arrays)

    def fused(self, work: Work, kernel: str) -> Found | None:
        """Compute value and gradients in one pass, or return None where there is no such pass."""
        return choice.fused(self, kernel, work)

    def is_small(self, arrays: Sequence[Array]) -> bool:
        """Return whether the formulas are as fast as any kernel that could read the arrays."""
        size = self.size(arrays)
        return all(size < technology.small for technology in self.technologies)

    def size(self, arrays: Sequence[Array]) -> int:
        """Return how many elements a kernel would compute."""
        return math.prod(arrays[0].shape)

    def unreachable(
        self, technology: Technology, arrays: Sequence[Array], kernel: str
    ) -> str | None:
        """Return why kernels cannot read the arrays where and as they lie in memory, or None."""
        raise NotImplementedError

    def launch(self, technology: Technology, work: Work) -> Found:
        """Have a technology compute work that it takes."""
        return technology.compute(work)

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
        """Compute the elements of an operation on rows."""
        return in_row_blocks(operation, xp, arrays, self.adjacent)

    def adjacent(self, array: Array) -> Array:
        """Return the array, its last axis adjacent in memory where sums are exact only then."""
        return array

    def context(self, array: Array) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Return the context that formulas run in: a device, silenced warnings."""
        return np.errstate(all="ignore")  # many libraries compute by NumPy

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
        problems = {} if reason else choice.kernel_problems(self)
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
