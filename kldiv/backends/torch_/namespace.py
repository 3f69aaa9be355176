"""PyTorch's array-API namespace, as its compiler can follow it."""

from typing import Any

import torch
from array_api_compat.torch import *  # noqa: F403 - the namespace

clip = torch.clamp
"""Takes numbers that the compiler holds as symbols, of which nothing can ask whether they are NaN:
under ``dynamic=True`` these are all of a module's."""


def readable(numbers: Any) -> bool:  # noqa: ARG001
    """Return whether indices have values to look at, which they lack where a compiler traces."""
    return not torch.compiler.is_compiling()


globals().pop("classes", None)  # TorchScript's, which no inspection of a module survives
