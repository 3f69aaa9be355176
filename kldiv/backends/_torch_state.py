"""PyTorch, what a tensor or a call is in the middle of: compilation, a transform, forward mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from kldiv._types import Array

_functorch = torch._C._functorch  # noqa: SLF001 - it has no public place


def transforming() -> bool:
    """Return whether a ``torch.func`` transform or a forward-mode level is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0  # noqa: SLF001


def is_wrapped(tensor: Array | None) -> bool:
    """Return whether a tensor is one of a ``torch.func`` transform's."""
    return tensor is not None and _functorch.is_functorch_wrapped_tensor(tensor)


def is_symbolic(tensor: Array) -> bool:
    """Return whether a tensor has no values, as inside ``torch.compile`` and ``torch.func``."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or is_wrapped(tensor)


def whole(array: Array) -> Array | None:
    """Return the tensor of which ``vmap`` shows an entry; None inside another transform."""
    while is_wrapped(array):
        if not _functorch.is_batchedtensor(array):
            return None
        array = _functorch.get_unwrapped(array)
    return array
