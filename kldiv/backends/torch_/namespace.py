"""PyTorch's array-API namespace, as its compiler can follow it."""

import torch
from array_api_compat.torch import *  # noqa: F403 - the namespace

clip = torch.clamp
"""Takes numbers that the compiler holds as symbols, of which nothing can ask whether they are NaN:
under ``dynamic=True`` these are all of a module's."""

globals().pop("classes", None)  # TorchScript's, which no inspection of a module survives
