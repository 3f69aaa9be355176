"""PyTorch: autograd to any order, forward mode, ``torch.func`` and ``torch.compile``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from kldiv.backends.base import FLOATS, Backend
from kldiv.backends.chunks import BLOCK_BYTES, DEVICE_CHUNK_BYTES
from kldiv.backends.table import TABLE
from kldiv.backends.torch_ import linear, operators
from kldiv.backends.torch_ import namespace as xp
from kldiv.backends.torch_.autograd import Plain, Transformable, TransformableLinear, differentiated
from kldiv.backends.torch_.transforms import (
    evaluate,
    exporting,
    follows,
    is_symbolic,
    is_wrapped,
    lie_in_memory,
    lie_on_cpu,
    transforming,
    whole,
)
from kldiv.errors import LibraryError
from kldiv.formulas.pairs import PairMeasure
from kldiv.formulas.sparse import TopKOperation
from kldiv.kernels.blocks import BLOCKS
from kldiv.kernels.cpu import CPU
from kldiv.kernels.layout import shared
from kldiv.kernels.technology import size_of
from kldiv.kernels.triton import TRITON

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from kldiv._types import Array, Namespace
    from kldiv.backends import chunks
    from kldiv.backends.base import Spread
    from kldiv.backends.routing import Route
    from kldiv.formulas.linear import LinearLoss, Pass
    from kldiv.formulas.operation import Operation
    from kldiv.kernels.technology import Technology
    from kldiv.kernels.work import Found, Work


_NAMES = {getattr(torch, name): name for name in (*FLOATS, "bool")}
"""Names of dtypes, as `Backend.dtype_name` returns them in 1 µs."""


def _plain(tensor: Array) -> bool:
    """Return whether a tensor is not a DTensor, without importing that class."""
    return type(tensor).__name__ != "DTensor"


class TorchBackend(Backend):
    """Adapter of ``torch.Tensor`` and its subclasses."""

    name = "torch"
    module = "torch"
    roots, install, kernels = TABLE["torch"]
    technologies = (CPU, TRITON, BLOCKS)
    numpy_float32 = False
    threads = staticmethod(torch.get_num_threads)
    follows = staticmethod(follows)

    def namespace(self, array: Array | None = None) -> Namespace:
        return xp

    def dtype_name(self, array: Array) -> str:
        return _NAMES.get(array.dtype) or super().dtype_name(array)

    def check(self, name: str, array: Array) -> None:
        if array.layout is not torch.strided:
            raise LibraryError(
                f"{name} is a tensor of layout {array.layout}; expected a dense one: "
                f"{name}.to_dense()"
            )

    def check_devices(self, names: Sequence[str], arrays: Sequence[Array]) -> None:
        place = arrays[0].device
        for name, array in zip(names, arrays, strict=True):
            if array.device != place and array.ndim:  # PyTorch takes single numbers along
                raise LibraryError(
                    f"{names[0]} is on {place} and {name} on {array.device}; bring them together, "
                    f"for example by {name}.to({str(place)!r})"
                )

    def constant(self, array: Array) -> Array:
        return xp.constant(array)

    def readable(self, array: Any) -> bool:
        if isinstance(array, torch.Tensor):
            return not is_symbolic(array)
        return not torch.compiler.is_compiling()

    def unwritable(self, array: Array, others: Sequence[Array]) -> str | None:
        if array.requires_grad:
            return "it requires a gradient; pass its .detach()"
        if is_symbolic(array) or not lie_in_memory([array]):
            return None
        problem = shared([array, *(each for each in others if lie_in_memory([each]))])
        if problem is None:  # autograd sees no pointers
            torch.autograd.graph.increment_version(array)
        return problem

    def autocasts(self, array: Array) -> bool:
        return torch.is_autocast_enabled(array.device.type)

    def run(self, operation: Operation, route: Route, arrays: Sequence[Array]) -> Array:
        tracked, transformed = differentiated(arrays)
        if transformed or torch.compiler.is_compiling():
            own = getattr(operation, "loss", operation)
            if isinstance(own, TopKOperation | PairMeasure):
                # Their kernels read values, which tensors have outside of compilers and transforms.
                route = route.by_formulas()
        # Applying a Function costs as much as a small loss, so it is done only where it matters.
        if not (tracked or transformed) or exporting():
            return route.compute(operation, *arrays)
        if operation.native:
            if isinstance(operation, PairMeasure):
                return evaluate(operation, arrays)
            return operation.value(xp, *arrays)
        # Nor of few elements, where autograd's own rules are right.
        plain = not (transformed or route.moves or torch.compiler.is_compiling())
        small = plain and route.is_small(operation, arrays)
        if small and operation.native_in_first and not differentiated(arrays[1:])[0]:
            return evaluate(operation, arrays)
        return (Transformable if transformed else Plain).apply(operation, route, *arrays)

    def run_linear(self, operation: LinearLoss, route: Route, arrays: Sequence[Array]) -> Array:
        if not all(map(_plain, arrays)):
            raise LibraryError(
                "a layer's weight, bias or hidden states are a DTensor; losses of layers take "
                "whole tensors: of frozen ones pass .full_tensor(), of those trained on other "
                "rows by each rank .full_tensor(grad_placements=[Partial('avg')]), with Partial of "
                "torch.distributed.tensor; inside the module's own forward FSDP has gathered them"
            )
        if self.autocasts(arrays[0]):
            arrays = linear.autocast(operation, arrays)
        tracked, transformed = differentiated(arrays)
        if not (tracked or transformed) or exporting():
            return super().run_linear(operation, route, arrays)
        hook = TransformableLinear if transformed else linear.InChunks
        return hook.apply(operation, route, *arrays)

    def is_small(self, operation: Operation, arrays: Sequence[Array]) -> bool:
        if exporting():
            return True  # an exported program serves every size
        first = arrays[0]
        least = CPU.small if torch.compiler.is_compiling() or not operation.lengthy else 0
        # An entry that vmap shows may be small where all of them together are not.
        return first.numel() < least and first.device.type == "cpu" and not transforming()

    def size(self, arrays: Sequence[Array]) -> int:
        if not transforming() or torch.compiler.is_compiling():
            return int(arrays[0].numel())
        every = [whole(array) for array in arrays]
        return size_of(*(one for one in every if one is not None), arrays[0])

    def unreachable(
        self, technology: Technology, arrays: Sequence[Array], kernel: str
    ) -> str | None:
        if exporting():
            return "an exported program holds no kernels"
        place, refusal = "cpu", "the tensors are not in the CPU's memory"
        if technology is TRITON:
            place, refusal = "cuda", "the tensors are not on a CUDA device"
            # Interpreted it runs on a CPU, but only where it is asked for by name.
            if kernel != "auto" and TRITON.interpreted and arrays[0].device.type == "cpu":
                place = "cpu"
        for array in arrays:
            if array.device.type != place:
                return refusal
        traced = torch.compiler.is_compiling()
        if technology is BLOCKS and (traced or transforming()):
            return "a compiler and a transform take the formulas only"
        if traced:
            return None
        if transforming() and any(map(is_wrapped, arrays)):
            return refusal if any(whole(array) is None for array in arrays) else None
        return None if lie_in_memory(arrays) else refusal

    def facts(self, arrays: Sequence[Array]) -> Hashable | None:
        if torch.compiler.is_compiling() or transforming() or not lie_on_cpu(arrays):
            return None
        return tuple([array.dtype for array in arrays])

    def launch(self, technology: Technology, work: Work) -> Found:
        given = [*work.arrays, work.cotangent]
        if torch.compiler.is_compiling() or (transforming() and any(map(is_wrapped, given))):
            return operators.call(technology, work)
        return technology.compute(work._replace(threads=self.threads()))

    by_formulas = staticmethod(evaluate)

    def in_chunks(self, given: Pass, route: Route) -> chunks.Found:
        compiling = torch.compiler.is_compiling()
        # Nothing can be written into the tensors of a transform.
        if exporting() or (transforming() and not compiling):
            return given.operation.elements(xp, *given.arrays), []
        if compiling:
            return linear.compiled(given, route.kernel)
        return linear.in_chunks(self, given, route.kernel)

    def chunk_bytes(self, array: Array) -> int:
        return super().chunk_bytes(array) if array.device.type == "cpu" else DEVICE_CHUNK_BYTES

    def block_bytes(self, array: Array) -> int | None:
        return BLOCK_BYTES if array.device.type == "cpu" else None

    def kept_rows(self, keep: Array) -> Array | None:
        # A GPU would have to be waited for.
        return torch.nonzero(keep)[..., 0] if keep.device.type == "cpu" else None

    def spread(self, s: Array, t: Array, group: Any, axis_name: Any) -> Spread | None:
        if group is None and _plain(s) and _plain(t):
            return super().spread(s, t, None, axis_name)
        from kldiv.backends.torch_ import tensor_parallel  # noqa: PLC0415 - loads torch.distributed

        super().spread(s, t, None, axis_name)
        return tensor_parallel.spread(s, t, group)

    def context(self, array: Array) -> AbstractContextManager[Any]:
        return nullcontext()

    def devices(self) -> tuple[str, ...]:
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            found.append("mps:0")
        return tuple(found)

    def export(self, array: Array) -> Array:
        if is_symbolic(array):
            raise LibraryError(
                "a torch tensor inside torch.compile or torch.func.vmap has no values to move to "
                "another backend; compute outside it, or use backend='torch'"
            )
        return array.detach().resolve_conj().resolve_neg()

    def from_dlpack(self, array: Array, device: str | None) -> Array:
        tensor = torch.from_dlpack(array)
        return tensor if device is None else tensor.to(device)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return array.cpu().numpy().copy()

    def from_numpy(self, array: np.ndarray[Any, Any], device: str | None) -> Array:
        return torch.from_numpy(array.copy()).to(device)

    def as_bits(self, array: Array) -> Array:
        return array.view(torch.int16)

    def from_bits(self, array: Array) -> Array:
        return array.view(torch.bfloat16)


BACKEND = TorchBackend()
