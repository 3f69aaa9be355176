"""PyTorch: whether a compiler or a transform is at work, and the formulas, which depend on it."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from kldiv.backends.base import in_row_blocks
from kldiv.backends.torch_ import namespace as xp
from kldiv.formulas import state
from kldiv.formulas.blocks import DEVICE_BLOCK_BYTES
from kldiv.formulas.pairs import PairMeasure
from kldiv.formulas.reductions import RowWise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation

_functorch = torch._C._functorch  # noqa: SLF001 - it has no public place


def transforming() -> bool:
    """Return whether a ``torch.func`` transform or a forward-mode level is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0  # noqa: SLF001


def exporting() -> bool:
    """Return whether ``torch.export`` traces, whose programs run where there are no kernels."""
    # PyTorch 2.11's torch.compile takes is_exporting() itself for True; 2.6 has neither.
    return getattr(torch.compiler, "_is_exporting_flag", False)


def is_wrapped(tensor: Array | None) -> bool:
    """Return whether a tensor is one of a ``torch.func`` transform's."""
    return tensor is not None and _functorch.is_functorch_wrapped_tensor(tensor)


def is_symbolic(tensor: Array) -> bool:
    """Return whether a tensor has no values, as inside ``torch.compile`` and ``torch.func``."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or is_wrapped(tensor)


def follows(tensor: Array) -> bool:
    """Return whether autograd, forward mode or a ``torch.func`` transform follows a tensor."""
    if tensor.requires_grad or torch.compiler.is_compiling():  # that cannot ask for the others
        return bool(tensor.requires_grad)
    return is_wrapped(tensor) or forward_ad.unpack_dual(tensor).tangent is not None


def whole(array: Array) -> Array | None:
    """Return the tensor of which ``vmap`` shows an entry; None inside another transform."""
    while is_wrapped(array):
        if not _functorch.is_batchedtensor(array):
            return None
        array = _functorch.get_unwrapped(array)
    return array


def evaluate(operation: Operation, arrays: Sequence[Array]) -> Array:
    """Return the value of an operation."""
    if isinstance(operation, RowWise):
        return operation.gather(xp, elements(operation, *arrays), arrays)
    if isinstance(operation, PairMeasure):
        if torch.compiler.is_compiling() or transforming():
            return operation.at_once(xp, *arrays)
        if arrays[0].device.type != "cpu":
            operation = replace(operation, block_bytes=DEVICE_BLOCK_BYTES)
    return operation.value(xp, *arrays)


def elements(operation: RowWise, *arrays: Array) -> Array:
    """Return the elements of an operation on rows."""
    # A compiler fuses the whole, and a transform's tensors cannot be written into others.
    if torch.compiler.is_compiling() or transforming():
        return operation.elements(xp, *arrays)
    return in_row_blocks(operation, xp, arrays)


def lie_in_memory(arrays: Sequence[Array]) -> bool:
    """Return whether the tensors are plain ones, whose memory holds their values."""
    try:
        return all(
            type(array) in {torch.Tensor, torch.nn.Parameter}
            and not array.is_neg()
            and array.data_ptr()
            for array in arrays
        )
    except RuntimeError:  # the tensors of a transform have no memory
        return False


def lie_on_cpu(arrays: Sequence[Array]) -> bool:
    """Return whether the tensors are numbers in the CPU's memory."""
    return all(array.device.type == "cpu" for array in arrays) and lie_in_memory(arrays)


def _number(temperature: float) -> Array | float:
    """Return a temperature that a compiler may find changed; 1 has a program of its own.

    A number's arithmetic is simplified as if nothing were rounded, that of a tensor is not.
    """
    zero = torch.zeros((), dtype=torch.float64)
    return 1.0 if temperature == 1.0 else state.as_array(zero, temperature)


if hasattr(torch.compiler, "substitute_in_graph"):  # older ones keep numbers constant
    torch.compiler.substitute_in_graph(state.number)(_number)


def _keep_constants() -> None:
    """Make the compiler take the numbers of kldiv's own modules for constants.

    Under ``dynamic=True`` it makes a symbol of each: then a graph takes ten times as long, and one
    of two losses fails, since the second finds the symbols of the first one's function.
    """
    builder = import_module("torch._dynamo.variables.builder")
    usual = getattr(builder, "is_constant_source", None)
    if usual is None:
        return

    def is_constant_source(source: Any) -> bool:
        name = source.name() if callable(source.name) else source.name
        return usual(source) or name.startswith("G['__import_kldiv_dot_")

    builder.is_constant_source = is_constant_source  # type: ignore[attr-defined]


_keep_constants()
