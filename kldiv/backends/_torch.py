"""PyTorch: autograd to any order, forward mode, ``torch.func`` and ``torch.compile``."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import torch
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from kldiv.backends import _torch_linear, _torch_ops, chunks
from kldiv.backends._kernels import KernelBackend
from kldiv.backends._table import TABLE
from kldiv.backends.base import DEVICE_CHUNK_BYTES
from kldiv.errors import LibraryError
from kldiv.formulas.linear import LinearLoss
from kldiv.formulas.reductions import RowWise
from kldiv.kernels import cpu, triton

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from kldiv._types import Array, Namespace
    from kldiv.backends.base import Spread
    from kldiv.backends.routing import Route
    from kldiv.formulas.operation import Operation
    from kldiv.kernels import Kernels


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
        options = {"kept": kept[0]} if kept else {}
        found = ctx.route.fused(ctx.operation, wanted, arrays, cotangent, value=False, **options)
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
    scaled = ctx.route.backend.scaled(kept, cotangent)
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
        if route.kernel == triton.NAME or arrays[0].device.type != "cpu":
            # A GPU computes gradients when their factor is known, to which it does not look.
            found = route.fused(operation, (), arrays, keep=True)
            value, kept = (route.compute(operation, *arrays), []) if found is None else found
            ctx.save_for_backward(*arrays, *kept)
            return value
        ctx.save_for_backward(*arrays)
        reduced = getattr(operation, "reduction", "none") != "none"
        if reduced and not torch.compiler.is_compiling():
            wanted = [index for index, each in enumerate(ctx.needs_input_grad[2:]) if each]
            found = route.fused(operation, wanted, arrays)
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


def _transforming() -> bool:
    """Return whether a ``torch.func`` transform or a forward-mode level is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0  # noqa: SLF001


def _is_wrapped(tensor: Array | None) -> bool:
    """Return whether a tensor is one of a ``torch.func`` transform's."""
    return tensor is not None and torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001


def _is_symbolic(tensor: Array) -> bool:
    """Return whether a tensor has no values, as inside ``torch.compile`` and ``torch.func``."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or _is_wrapped(tensor)


def _plain(tensor: Array) -> bool:
    """Return whether a tensor is no DTensor, whose class is not imported for that."""
    return type(tensor).__name__ != "DTensor"


class TorchBackend(KernelBackend):
    """Adapter of ``torch.Tensor`` and its subclasses."""

    name = "torch"
    module = "torch"
    roots, install, kernels = TABLE["torch"]
    technologies = (cpu, triton)
    numpy_float32 = False

    def namespace(self, array: Array | None = None) -> Namespace:  # noqa: ARG002
        return xp

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
        compiling = torch.compiler.is_compiling()
        transforming = not compiling and _transforming()
        linear = isinstance(operation, LinearLoss)
        if linear and self.autocasts(arrays[0]):
            arrays = _torch_linear.autocast(operation, arrays)  # type: ignore[arg-type]
        tracked = torch.is_grad_enabled() and any(array.requires_grad for array in arrays)
        # Applying a Function costs as much as a small loss, so it is done only where it matters.
        if not (tracked or transforming):
            return route.compute(operation, *arrays)
        if operation.native:
            return operation.value(xp, *arrays)
        plain = _torch_linear.InChunks if linear else _Plain
        return (_Transformable if transforming else plain).apply(operation, route, *arrays)

    def threads(self) -> int:
        return torch.get_num_threads()

    def unreachable(self, kernels: Kernels, arrays: Sequence[Array]) -> str | None:
        place, name = ("cpu", "in the CPU's memory")
        if kernels.NAME == triton.NAME:
            place, name = ("cuda", "on a CUDA device")
            if triton.interpreted() and not any(array.is_cuda for array in arrays):
                place = "cpu"
        try:
            if all(
                type(array) in {torch.Tensor, torch.nn.Parameter}
                and array.device.type == place
                and not array.is_neg()
                and array.data_ptr()
                for array in arrays
            ):
                return None
        except RuntimeError:  # the tensors of a transform have no memory
            pass
        return f"the tensors are not {name}"

    def _refusal(
        self,
        kernels: Kernels,
        operation: Operation,
        arrays: Sequence[Array],
        name: str,
        *,
        here: bool = True,
    ) -> str | None:
        # Arrays of another library go to the CPU unless a device is set.
        if name == "auto" and kernels.NAME == triton.NAME and not (here and arrays[0].is_cuda):
            return kernels.problem() or "the tensors are not on a CUDA device"
        return super()._refusal(kernels, operation, arrays, name, here=here)

    def compute(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> Array:
        small = arrays[0].numel() < cpu.SMALL and arrays[0].device.type == "cpu"
        # An entry that vmap shows may be small where all of them together are not.
        if kernel != "pure" and not (kernel == "auto" and small and not _transforming()):
            found = self.fused_slope(operation, arrays, kernel)
            if found is not None:
                return found
            found = self.fused(operation, arrays, kernel)
            if found is not None:
                return found[0]
        # Written out, since a context costs 1 µs, and torch.compile cannot trace NumPy's.
        if isinstance(operation, RowWise):
            return operation.gather(xp, self.by_rows(operation, xp, arrays), arrays)
        return operation.value(xp, *arrays)

    def fused(
        self, operation: Operation, arrays: Sequence[Array], kernel: str, *options: Any, **more: Any
    ) -> tuple[Array | None, list[Array]] | None:
        if torch.compiler.is_compiling():
            return _torch_ops.compiled(operation, arrays, kernel, *options, **more)
        if _transforming() and any(map(_is_wrapped, [*arrays, *options[1:]])):
            return _torch_ops.mapped(operation, arrays, kernel, *options, **more)
        return super().fused(operation, arrays, kernel, *options, **more)

    def in_chunks(
        self,
        operation: LinearLoss,
        arrays: Sequence[Array],
        route: Route,
        wanted: Sequence[int] = (),
        weight: Array | None = None,
    ) -> chunks.Found:
        if torch.compiler.is_compiling():
            return _torch_linear.compiled(operation, arrays, route.kernel, wanted, weight)
        if _transforming():  # whose tensors cannot be written into others
            return operation.elements(xp, *arrays), []
        return _torch_linear.in_chunks(self, operation, arrays, route.kernel, wanted, weight)

    def chunk_bytes(self, array: Array) -> int:
        return super().chunk_bytes(array) if array.device.type == "cpu" else DEVICE_CHUNK_BYTES

    def kept_rows(self, keep: Array) -> Array | None:
        # A GPU would have to be waited for.
        return torch.nonzero(keep)[..., 0] if keep.device.type == "cpu" else None

    def by_rows(self, operation: RowWise, xp: Namespace, arrays: Sequence[Array]) -> Array:
        # A compiler fuses the whole, and a transform's tensors cannot be written into others.
        if torch.compiler.is_compiling() or _transforming():
            return operation.elements(xp, *arrays)
        return super().by_rows(operation, xp, arrays)

    def spread(self, s: Array, t: Array, group: Any, axis_name: Any) -> Spread | None:
        if group is None and _plain(s) and _plain(t):
            return super().spread(s, t, None, axis_name)
        from kldiv.backends import _torch_spread  # noqa: PLC0415 - loads torch.distributed

        super().spread(s, t, None, axis_name)
        return _torch_spread.spread(self, s, t, group)

    def context(self, array: Array) -> AbstractContextManager[Any]:  # noqa: ARG002
        return nullcontext()

    def devices(self) -> tuple[str, ...]:
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            found.append("mps:0")
        return tuple(found)

    def export(self, array: Array) -> Array:
        if _is_symbolic(array):
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
