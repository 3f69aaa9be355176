"""PyTorch, tensor-parallel: classes spread over a process group, as local shards or as DTensors.

Collectives are plain ones inside one autograd function.  The differentiable ones of
``torch.distributed.nn`` would add up the gradients of all ranks' copies of the same loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from kldiv.backends.base import Spread
from kldiv.backends.torch_ import namespace as xp
from kldiv.backends.torch_.transforms import elements, transforming
from kldiv.errors import LibraryError
from kldiv.formulas import shards
from kldiv.formulas.blocks import shared_out

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array
    from kldiv.formulas.rows import RowLoss

GATHERED = 16
"""Up to so many ranks every one gathers the states of all; beyond, each merges its share of the
rows, so that traffic and memory do not grow with the number of ranks."""


def gather(value: Any, group: Any) -> list[Any]:
    """Return the value of each process, in the order of ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        raise LibraryError(
            "sync needs the processes of torch.distributed: call init_process_group first"
        )
    values: list[Any] = [None for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(values, value, group=group)
    return values


class GroupRanks:
    """The collectives of a process group, on tensors whose first axes are rows."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self._extent: tuple[Any, Any] | None = None

    def merge(self, function: Callable[..., Array], states: Array, *rows: Array) -> Array:
        """Return ``function`` of the list of all ranks' states, and of other tensors of rows."""
        if self.size == 1 or not states.numel():
            return function([states], *rows)
        if self.size <= GATHERED:
            return function(self._gathered(states), *rows)
        # Each rank gets all states of its share of the rows, merges them, and tells the others.
        shape = states.shape[:-1]
        flat = [
            array.reshape(shape.numel(), *array.shape[len(shape) :]) for array in (states, *rows)
        ]
        share, parts = shared_out(shape.numel(), self.size)
        mine = parts[dist.get_rank(self.group)]
        first, *others = (_padded(array, parts[-1].stop) for array in flat)
        received = torch.empty_like(first)
        dist.all_to_all_single(received, first, group=self.group)
        merged = function(list(received.split(share)), *(array[mine] for array in others))
        whole = torch.cat(self._gathered(merged))[: shape.numel()]
        return whole.reshape(*shape, whole.shape[-1])

    def add(self, array: Array) -> Array:
        """Return the sum of all ranks' tensors."""
        result = array.contiguous().clone()
        if self.size > 1 and array.numel():
            dist.all_reduce(result, group=self.group)
        return result

    def extent(self, array: Array) -> tuple[Any, Any]:
        """Return how many classes the ranks before have, and all together."""
        if self._extent is None:
            sizes = torch.cat(self._gathered(torch.tensor([array.shape[-1]], device=array.device)))
            # Tensors, for which nothing waits.
            self._extent = shards.extent_of(xp, sizes, dist.get_rank(self.group))
        return self._extent

    def _gathered(self, array: Array) -> list[Array]:
        gathered = [array.new_empty(array.shape) for _ in range(self.size)]
        dist.all_gather(gathered, array.contiguous(), group=self.group)
        return gathered


def _padded(array: Array, length: int) -> Array:
    """Return the rows, padded with zeros to ``length``."""
    result = array.new_zeros(length, *array.shape[1:])
    result[: len(array)] = array
    return result


class _RowValues(torch.autograd.Function):
    """The divergence of each row, the same on all ranks, with the gradient of the own shard."""

    @staticmethod
    def forward(ctx: Any, loss: RowLoss, ranks: GroupRanks | None, *arrays: Array) -> Array:
        ctx.loss, ctx.ranks = loss, ranks or shards.Alone()
        wanted = any(ctx.needs_input_grad)
        own = shards.of_rank(xp, elements, ctx.ranks, loss, arrays, gradients=wanted)
        values, known = own.forward()
        ctx.save_for_backward(known, *arrays)
        return values

    @staticmethod
    def backward(ctx: Any, cotangent: Array) -> tuple[Array | None, ...]:
        if torch.is_grad_enabled():
            raise LibraryError(
                "logits that are spread over ranks are differentiated once; leave create_graph out"
            )
        known, *arrays = ctx.saved_tensors
        own = shards.of_rank(xp, elements, ctx.ranks, ctx.loss, arrays)
        gradients = [
            own.backward(index, cotangent, known) if needed else None
            for index, needed in enumerate(ctx.needs_input_grad[2:])
        ]
        return None, None, *gradients


class GroupSpread(Spread):
    """Plain tensors: each rank of a group has its shard."""

    def __init__(self, group: Any) -> None:
        self.ranks = GroupRanks(group)

    def value(self, operation: RowLoss, arrays: Sequence[Array]) -> Array:
        """Return the loss of all classes together."""
        values = _RowValues.apply(operation, self.ranks, *arrays)
        return operation.finish(xp, values, operation.keep(arrays))


class MeshSpread(Spread):
    """DTensors: their placements say which mesh dimension has the classes, and which rows."""

    def value(self, operation: RowLoss, arrays: Sequence[Array]) -> Array:
        """Return the loss as a DTensor: replicated if reduced, else spread as the rows are."""
        from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415

        s, *others = self.placed(arrays)
        mesh, placements = s.device_mesh, s.placements
        last = range(s.ndim)[-1]
        where = [place.is_shard(last) for place in placements]
        if where.count(True) > 1:
            raise LibraryError(
                f"the classes lie on {where.count(True)} dimensions of the mesh, placements "
                f"{placements}; redistribute the logits so that one of them has the classes"
            )
        group = mesh.get_group(where.index(True)) if any(where) else None
        ranks = None if group is None else GroupRanks(group)
        local = [array.to_local() for array in (s, *others)]
        values = _RowValues.apply(operation, ranks, *local)
        shape = torch.empty(operation.shape([s]), device="meta")
        values = DTensor.from_local(
            values, mesh, _of_rows(s), run_check=False, shape=shape.shape, stride=shape.stride()
        )
        loss = operation.finish(xp, values, operation.keep((s, *others)))
        if operation.reduction == "none":
            return loss
        return loss.redistribute(mesh, [Replicate() for _ in placements])

    def placed(self, arrays: Sequence[Array]) -> list[Array]:
        """Return the arrays, those of rows as DTensors placed as the rows are."""
        s = arrays[0]
        mesh, rows = s.device_mesh, _of_rows(s)
        return [
            each if each.shape == s.shape else _replicated(each, mesh).redistribute(mesh, rows)
            for each in arrays
        ]

    def replicated(self, like: Array, array: Array) -> Array:
        """Return a tensor as a DTensor that is whole on each rank of a mesh."""
        from torch.distributed.tensor import Replicate  # noqa: PLC0415

        mesh = like.device_mesh
        return _replicated(array, mesh).redistribute(mesh, [Replicate() for _ in like.placements])


def _of_rows(logits: Array) -> list[Any]:
    """Return the placements of numbers of rows: whole along the mesh's dimension of classes."""
    from torch.distributed.tensor import Replicate  # noqa: PLC0415

    last = range(logits.ndim)[-1]
    return [Replicate() if place.is_shard(last) else place for place in logits.placements]


def _replicated(array: Array, mesh: Any) -> Array:
    """Return a tensor of rows as a DTensor; a plain one is the same on every rank."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415

    return array if isinstance(array, DTensor) else DTensor.from_local(array, mesh, run_check=False)


def spread(s: Array, t: Array, group: Any) -> Spread:
    """Return how the logits are sharded; raise where group, placements and types do not fit."""
    from torch.distributed.tensor import DTensor  # noqa: PLC0415 - only where it is asked for

    if transforming() or torch.compiler.is_compiling():
        raise LibraryError(
            "logits that are spread over ranks are differentiated by loss.backward() only; compute "
            "the loss outside torch.func, forward mode and torch.compile"
        )
    kinds = [isinstance(array, DTensor) for array in (s, t)]
    if not any(kinds):
        if not isinstance(group, dist.ProcessGroup):
            raise LibraryError(
                f"group must be a torch.distributed.ProcessGroup that this rank belongs to; got "
                f"{group!r}; for all ranks pass torch.distributed.group.WORLD"
            )
        return GroupSpread(group)
    if group is not None:
        raise LibraryError("a DTensor's placements say how it is spread; leave group= out")
    if not all(kinds):
        names = ["a DTensor" if kind else "a plain tensor" for kind in kinds]
        raise LibraryError(
            f"input is {names[0]}, target {names[1]}; make both DTensors, of the same placements"
        )
    if (s.device_mesh, s.placements) != (t.device_mesh, t.placements):
        raise LibraryError(
            f"input has placements {s.placements} on {s.device_mesh}, target {t.placements} on "
            f"{t.device_mesh}; redistribute one: "
            "target.redistribute(input.device_mesh, input.placements)"
        )
    if any(place.is_partial() for place in s.placements):
        raise LibraryError(
            f"input and target have placements {s.placements}: partial sums are no logits yet; "
            "redistribute them to Shard or Replicate first"
        )
    return MeshSpread()
