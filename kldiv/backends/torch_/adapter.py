"""PyTorch: autograd to any order, forward mode, ``torch.func`` and ``torch.compile``."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import torch

from kldiv.backends import chunks
from kldiv.backends.base import FLOATS, Backend
from kldiv.backends.chunks import DEVICE_CHUNK_BYTES
from kldiv.backends.table import TABLE
from kldiv.backends.torch_ import linear, operators
from kldiv.backends.torch_.transforms import evaluate, is_symbolic, is_wrapped, transforming, whole
from kldiv.errors import LibraryError
from kldiv.kernels.cpu import CPU
from kldiv.kernels.technology import size_of
from kldiv.kernels.triton import TRITON

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from kldiv._types import Array, Namespace
    from kldiv.backends.base import Route, Spread
    from kldiv.formulas.linear import LinearLoss
    from kldiv.formulas.operation import Operation
    from kldiv.kernels.technology import Technology
    from kldiv.kernels.work import Found, Work


_NAMES = {getattr(torch, name): name for name in (*FLOATS, "bool")}
"""What `Backend.dtype_name` returns, which takes 1 µs."""


def _gradients(ctx: Any, cotangent: Array) -> tuple[Any, ...]:
    return _gradients_of(ctx, cotangent, ctx.saved_tensors)


def _gradients_of(ctx: Any, cotangent: Array, saved: Sequence[Array]) -> tuple[Any, ...]:
    """Return the gradients, given what was saved: torch.utils.checkpoint lets it be read once."""
    needed = ctx.needs_input_grad[2:]
    arrays, kept = saved[: len(needed)], saved[len(needed) :]
    wanted = [index for index, each in enumerate(needed) if each]
    found = None
    # Where gradients are enabled these will be differentiated again; a compiler allows just one
    # order, and enables them all the same.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        outputs = {"gradients": tuple(wanted), "cotangent": cotangent, "value": False}
        if kept:
            outputs["kept"] = kept[0]
        found = ctx.route.fused(ctx.operation, arrays, **outputs)
    if found is None:
        pullback = partial(ctx.operation.pullback, xp, ctx.route.run)
        gradients = [pullback(index, cotangent, *arrays) for index in wanted]
    else:
        gradients = found[1]
    given = iter(gradients)
    return (None, None, *(next(given) if each else None for each in needed))


def _kept_gradients(ctx: Any, cotangent: Array) -> tuple[Any, ...]:
    """Use up the gradients that a fused forward left; a second backward computes them anew."""
    kept, ctx.kept = getattr(ctx, "kept", None), None
    saved = ctx.saved_tensors  # raises where an argument has been changed since
    if kept is None or torch.is_grad_enabled():
        return _gradients_of(ctx, cotangent, saved)
    scaled = CPU.scaled(kept, cotangent) if _lie_on_cpu([*kept, cotangent]) else None
    if scaled is None:
        return _gradients_of(ctx, cotangent, saved)
    given = iter(scaled)
    return (None, None, *(next(given) if each else None for each in ctx.needs_input_grad[2:]))


class _Plain(torch.autograd.Function):
    """An operation with its reverse rule: the fast form, and the one ``torch.compile`` takes."""

    @staticmethod
    def forward(ctx: Any, operation: Operation, route: Route, *arrays: Array) -> Array:
        ctx.operation = operation
        ctx.route = route
        if route.kernel == TRITON.name or arrays[0].device.type != "cpu":
            # Gradients wait for the cotangent, whose value a GPU is not asked for.
            found = route.fused(operation, arrays, keep=True)
            value, kept = (route.compute(operation, *arrays), []) if found is None else found
            ctx.save_for_backward(*arrays, *kept)
            return value
        ctx.save_for_backward(*arrays)
        reduced = getattr(operation, "reduction", "none") != "none"
        if reduced and not torch.compiler.is_compiling():
            wanted = tuple([index for index, each in enumerate(ctx.needs_input_grad[2:]) if each])
            found = route.fused(operation, arrays, gradients=wanted)
            if found is not None:
                value, ctx.kept = found
                return value
        return route.compute(operation, *arrays)

    backward = staticmethod(_kept_gradients)


class _Transformable(torch.autograd.Function):
    """The same with forward mode and ``torch.func``, which cost 20 µs a call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operation: Operation, route: Route, *arrays: Array) -> Array:
        return route.compute(operation, *arrays)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:  # noqa: ARG004
        ctx.operation, ctx.route, *arrays = inputs
        ctx.save_for_backward(*arrays)
        ctx.save_for_forward(*arrays)

    backward = staticmethod(_gradients)

    @staticmethod
    def jvp(ctx: Any, _operation: None, _route: None, *tangents: Array | None) -> Array:
        operation = ctx.operation
        return operation.pushforward(
            xp, ctx.route.run, tangents[: operation.differentiable], *ctx.saved_tensors
        )


class _TransformableLinear(_Transformable):
    """The same of two linear layers' loss."""

    @staticmethod
    def forward(operation: LinearLoss, route: Route, *arrays: Array) -> Array:
        return chunks.value(route, operation, arrays)


def _differentiated(arrays: Sequence[Array]) -> tuple[bool, bool]:
    """Return whether autograd follows any of the tensors, and whether a transform is active."""
    transformed = transforming() and not torch.compiler.is_compiling()
    return torch.is_grad_enabled() and any(each.requires_grad for each in arrays), transformed


def _lie_in_memory(arrays: Sequence[Array]) -> bool:
    """Return whether the tensors are nothing but numbers in memory."""
    try:
        return all(
            type(array) in {torch.Tensor, torch.nn.Parameter}
            and not array.is_neg()
            and array.data_ptr()
            for array in arrays
        )
    except RuntimeError:  # the tensors of a transform have no memory
        return False


def _lie_on_cpu(arrays: Sequence[Array]) -> bool:
    return all(array.device.type == "cpu" for array in arrays) and _lie_in_memory(arrays)


def _plain(tensor: Array) -> bool:
    """Return whether a tensor is no DTensor, whose class is not imported for that."""
    return type(tensor).__name__ != "DTensor"


class TorchBackend(Backend):
    """Adapter of ``torch.Tensor`` and its subclasses."""

    name = "torch"
    module = "torch"
    roots, install, kernels = TABLE["torch"]
    technologies = (CPU, TRITON)
    numpy_float32 = False

    def namespace(self, array: Array | None = None) -> Namespace:  # noqa: ARG002
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
        for name, array in zip(names[1:], arrays[1:], strict=True):
            if array.device != place and array.ndim:  # PyTorch takes single numbers along
                raise LibraryError(
                    f"{names[0]} is on {place} and {name} on {array.device}; bring them together, "
                    f"for example by {name}.to({str(place)!r})"
                )

    def autocasts(self, array: Array) -> bool:
        return torch.is_autocast_enabled(array.device.type)

    def run(self, operation: Operation, route: Route, arrays: Sequence[Array]) -> Array:
        tracked, transformed = _differentiated(arrays)
        # Applying a Function costs as much as a small loss, so it is done only where it matters.
        if not (tracked or transformed):
            return route.compute(operation, *arrays)
        if operation.native:
            return operation.value(xp, *arrays)
        return (_Transformable if transformed else _Plain).apply(operation, route, *arrays)

    def run_linear(self, operation: LinearLoss, route: Route, arrays: Sequence[Array]) -> Array:
        if self.autocasts(arrays[0]):
            arrays = linear.autocast(operation, arrays)
        tracked, transformed = _differentiated(arrays)
        if not (tracked or transformed):
            return super().run_linear(operation, route, arrays)
        hook = _TransformableLinear if transformed else linear.InChunks
        return hook.apply(operation, route, *arrays)

    def is_small(self, arrays: Sequence[Array]) -> bool:
        first = arrays[0]
        # An entry that vmap shows may be small where all of them together are not.
        return first.numel() < CPU.small and first.device.type == "cpu" and not transforming()

    def size(self, arrays: Sequence[Array]) -> int:
        if not transforming() or torch.compiler.is_compiling():
            return int(arrays[0].numel())
        every = [whole(array) for array in arrays]
        return size_of(*(one for one in every if one is not None), arrays[0])

    def unreachable(
        self, technology: Technology, arrays: Sequence[Array], kernel: str
    ) -> str | None:
        place, refusal = "cpu", "the tensors are not in the CPU's memory"
        if technology is TRITON:
            place, refusal = "cuda", "the tensors are not on a CUDA device"
            # Interpreted it runs on a CPU, but not on its own.
            if kernel != "auto" and TRITON.interpreted and arrays[0].device.type == "cpu":
                place = "cpu"
        for array in arrays:
            if array.device.type != place:
                return refusal
        if torch.compiler.is_compiling():
            return None
        if transforming() and any(map(is_wrapped, arrays)):
            return refusal if any(whole(array) is None for array in arrays) else None
        return None if _lie_in_memory(arrays) else refusal

    def launch(self, technology: Technology, work: Work) -> Found:
        given = [*work.arrays, work.cotangent]
        if torch.compiler.is_compiling() or (transforming() and any(map(is_wrapped, given))):
            return operators.call(technology, work)
        return technology.compute(work._replace(threads=torch.get_num_threads()))

    by_formulas = staticmethod(evaluate)

    def in_chunks(
        self,
        operation: LinearLoss,
        arrays: Sequence[Array],
        route: Route,
        wanted: Sequence[int] = (),
        weight: Array | None = None,
    ) -> chunks.Found:
        if torch.compiler.is_compiling():
            return linear.compiled(operation, arrays, route.kernel, wanted, weight)
        if transforming():  # whose tensors cannot be written into others
            return operation.elements(xp, *arrays), []
        return linear.in_chunks(self, operation, arrays, route.kernel, wanted, weight)

    def chunk_bytes(self, array: Array) -> int:
        return super().chunk_bytes(array) if array.device.type == "cpu" else DEVICE_CHUNK_BYTES

    def kept_rows(self, keep: Array) -> Array | None:
        # A GPU would have to be waited for.
        return torch.nonzero(keep)[..., 0] if keep.device.type == "cpu" else None

    def spread(self, s: Array, t: Array, group: Any, axis_name: Any) -> Spread | None:
        if group is None and _plain(s) and _plain(t):
            return super().spread(s, t, None, axis_name)
        from kldiv.backends.torch_ import tensor_parallel  # noqa: PLC0415 - loads torch.distributed

        super().spread(s, t, None, axis_name)
        return tensor_parallel.spread(s, t, group)

    def context(self, array: Array) -> AbstractContextManager[Any]:  # noqa: ARG002
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
