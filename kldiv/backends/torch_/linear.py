"""PyTorch, two linear layers' loss: in chunks under autograd, an operator for a compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from kldiv.backends import chunks
from kldiv.backends.registry import get
from kldiv.backends.torch_ import namespace as xp
from kldiv.backends.torch_.autograd import in_places, wanted_of
from kldiv.formulas.layers import Products
from kldiv.formulas.linear import Pass
from kldiv.kernels import spelling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.backends.base import Backend
    from kldiv.formulas.linear import LinearLoss

_WIDE_RESULTS: Final = hasattr(torch.ops.aten.mm, "dtype")
"""Whether a GPU's product of half types can have a float32 result."""


class _Products(Products):
    def takes(self, array: Array) -> bool:
        half = array.dtype in {torch.float16, torch.bfloat16}
        return half and array.is_cuda and _WIDE_RESULTS and self.dtype == "float32"

    def __call__(self, a: Array, b: Array) -> Array:
        if a.dtype == b.dtype and self.takes(a):
            return torch.mm(a, b, out_dtype=torch.float32)
        return super().__call__(a, b)

    def accumulate(self, total: Array, a: Array, b: Array) -> None:
        if a.dtype == b.dtype == total.dtype:
            torch.addmm(total, a, b, out=total)
        else:
            super().accumulate(total, a, b)


def in_chunks(backend: Backend, given: Pass, kernel: str) -> chunks.Found:
    """Compute as `Backend.in_chunks` does, on tensors that have values."""
    device = given.arrays[0].device.type
    # The factors of products have autocast's dtype already: see `autocast`.
    with torch.no_grad(), torch.autocast(device, enabled=False):
        block_bytes = backend.block_bytes(given.arrays[0])
        products = _Products(xp, given.operation.compute, block_bytes)
        return chunks.loop(backend, products, given, kernel)


def autocast(operation: LinearLoss, arrays: Sequence[Array]) -> list[Array]:
    """Return the arrays with the factors of products in autocast's dtype, differentiably."""
    dtype = torch.get_autocast_dtype(arrays[0].device.type)
    factors = {index for side in operation.sides for index in side[:2]}
    return [
        array.to(dtype) if index in factors and array.dtype != torch.float64 else array
        for index, array in enumerate(arrays)
    ]


class InChunks(torch.autograd.Function):
    """The loss, its gradients computed along with it where it is reduced."""

    @staticmethod
    def forward(ctx: Any, operation: LinearLoss, route: Any, *arrays: Array) -> Array:
        ctx.operation, ctx.route, ctx.number = operation, route, len(arrays)
        wanted = wanted_of(ctx) if operation.reduction != "none" else ()
        values, found = chunks.evaluate(route, Pass(operation, arrays, wanted))
        ctx.kept = None
        if torch.compiler.is_compiling():
            ctx.save_for_backward(*arrays, *found)
        else:  # backward writes into these, and may not write into saved tensors
            ctx.save_for_backward(*arrays)
            ctx.kept = found
        return operation.gather(xp, values, arrays)

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Any, ...]:
        compiling = torch.compiler.is_compiling()
        operation, route, wanted = ctx.operation, ctx.route, wanted_of(ctx)
        saved = ctx.saved_tensors  # raises where an argument has been changed since
        kept, ctx.kept = ctx.kept, None
        if compiling and operation.reduction != "none":
            saved, kept = saved[: ctx.number], saved[ctx.number :]
        if torch.is_grad_enabled() and not compiling:
            # These will be differentiated again.
            gradients = [
                operation.pullback(xp, route.run, index, cotangent, *saved) for index in wanted
            ]
        elif operation.reduction == "none":
            weight = operation.row_weight(xp, cotangent, saved)
            _, found = chunks.evaluate(route, Pass(operation, saved, wanted, weight))
            gradients = operation.finished(xp, found, wanted, saved, None)
        else:
            if kept is None:  # a second time
                _, kept = chunks.evaluate(route, Pass(operation, saved, wanted))
            gradients = operation.finished(
                xp, kept, wanted, saved, cotangent, reuse=not (compiling or route.crosses)
            )
        return in_places(ctx, gradients)


# ---- inside torch.compile ------------------------------------------------------------------------

_SCHEMA: Final = "(Tensor[] arrays, str[] words, float[] numbers, Tensor? weight) -> Tensor[]"


def compiled(given: Pass, kernel: str) -> chunks.Found:
    """Compute as `Backend.in_chunks` does, by an operator that a compiler does not look into."""
    own = spelling.spelled((given.operation.elementwise(), (*given.wanted,), kernel))
    values, *gradients = _in_chunks([*given.arrays], *own, given.weight)
    return values, gradients


@torch.library.custom_op("kldiv::linear_in_chunks", mutates_args=(), schema=_SCHEMA)
def _in_chunks(
    arrays: list[Array], words: list[str], numbers: list[float], weight: Array | None
) -> list[Array]:
    operation, wanted, kernel = spelling.read(words, numbers)
    values, gradients = in_chunks(get("torch"), Pass(operation, arrays, wanted, weight), kernel)
    return [values, *gradients]


@_in_chunks.register_fake
def _shapes(
    arrays: list[Array], words: list[str], numbers: list[float], _weight: Array | None
) -> list[Array]:
    (operation, wanted, _), first = spelling.read(words, numbers), arrays[0]
    shapes = [operation.shape(arrays), *(arrays[index].shape for index in wanted)]
    return [first.new_empty(shape, dtype=getattr(torch, operation.compute)) for shape in shapes]
