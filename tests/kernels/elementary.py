"""The CPU kernels' own exp and log, over arrays."""

from __future__ import annotations

import numpy as np

from kldiv.kernels.cpu import compiling, elementary


@compiling.inline
def all_log(x, out):
    for i in range(x.size):
        out[i] = elementary.log(x[i])


@compiling.inline
def all_exp(x, out):
    for i in range(x.size):
        out[i] = elementary.exp(x[i])


def evaluate(name, x):
    out = np.empty_like(x)
    {"log": all_log, "exp": all_exp}[name](x, out)
    return out
