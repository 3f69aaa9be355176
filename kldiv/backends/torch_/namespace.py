"""PyTorch's array-API namespace, as its compiler can follow it."""

import torch
from array_api_compat.torch import *  # noqa: F403 - the namespace

clip = torch.clamp
"""Takes numbers that the compiler holds as symbols, of which nothing can ask whether they are NaN:
under ``dynamic=True`` these are all of a module's."""


def constant(x: torch.Tensor) -> torch.Tensor:
    """Return an array that derivatives take for constant."""
    return x.detach()


def sign(x: torch.Tensor) -> torch.Tensor:
    """Return the sign, NaN of NaN, without the mask of places that `torch.func.vmap` refuses."""
    return torch.where(torch.isnan(x), x, torch.sign(x))


globals().pop("classes", None)  # TorchScript's, which no inspection of a module survives
