"""The CPU kernels' own functions of a number, over arrays."""

from __future__ import annotations

from functools import cache

import numpy as np

from kldiv.kernels.cpu import compiling, elementary
from kldiv.kernels.cpu.code import REALS

LANES = 16


@cache
def kernel(name, dtype):
    real = REALS[dtype]

    def write(code):
        x, out, count = code.arguments
        with code.loop(count) as k:
            value = code.load(real.vector, x, k * real.lanes)
            found = getattr(elementary, name)(value)
            if name == "log1p_near":
                _, found = found
            code.store(out, found, k * real.lanes)

    return compiling.compiled(f"test-{name}-{dtype}", 3, write)


def evaluate(name, x):
    padded = np.zeros(-(-x.size // LANES) * LANES, x.dtype)
    padded[: x.size] = x.ravel()
    out = np.empty_like(padded)
    lanes = REALS[str(x.dtype)].lanes
    kernel(name, str(x.dtype))(padded.ctypes.data, out.ctypes.data, padded.size // lanes)
    return out[: x.size].reshape(x.shape)
