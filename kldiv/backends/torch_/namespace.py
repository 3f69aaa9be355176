"""PyTorch's array-API namespace, as its compiler can follow it."""

from typing import Any

import array_api_compat.torch
import torch
from array_api_compat.torch import *  # noqa: F403 - the namespace

clip = torch.clamp
"""Takes numbers that the compiler holds as symbols, of which nothing can ask whether they are NaN:
under ``dynamic=True`` these are all of a module's."""


def where(condition: torch.Tensor, x1: Any, x2: Any) -> torch.Tensor:
    """Return elements of either, without the time of a promotion where there is none."""
    if isinstance(x1, torch.Tensor) and isinstance(x2, torch.Tensor) and x1.dtype != x2.dtype:
        return array_api_compat.torch.where(condition, x1, x2)
    return torch.where(condition, x1, x2)


def constant(x: torch.Tensor) -> torch.Tensor:
    """Return an array that derivatives take for constant."""
    return x.detach()


def sign(x: torch.Tensor) -> torch.Tensor:
    """Return the sign, NaN of NaN, without the mask of places that `torch.func.vmap` refuses."""
    return torch.where(torch.isnan(x), x, torch.sign(x))


globals().pop("classes", None)  # TorchScript's, which no inspection of a module survives
