"""What the tests of the Triton kernels share.

Without a GPU Triton interprets them, on the CPU's tensors (``tests/conftest.py``); where there is
one, the same tests run on it.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import kldiv

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

MARKS = [
    *([pytest.mark.gpu] if GPU else []),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, in the interpreter
    pytest.mark.filterwarnings("ignore:.*ndim > 0 to a scalar:DeprecationWarning"),
]

LOSSES = {
    "kl_div": kldiv.kl_div,
    "log_target": functools.partial(kldiv.kl_div, log_target=True),
    "logits": kldiv.kl_div_with_logits,
    "js": functools.partial(kldiv.js_div_with_logits, beta=0.3),
}


def pure():
    return kldiv.config_context(kernel="pure")


def tensors(*arrays):
    return [torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE) for array in arrays]


def pair(loss, shape, dtype=torch.float32, seed=0):
    """What a loss takes: log-probabilities or logits, and the target for them."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if loss in {"kl_div", "log_target"}:
        x, y = x.log_softmax(-1), (y.softmax(-1) if loss == "kl_div" else y.log_softmax(-1))
    return [array.to(DEVICE, dtype).requires_grad_() for array in (x, y)]


def of(loss, *arrays, wanted=(0, 1)):
    """Value and gradients, the upstream gradient not 1."""
    value = loss(*arrays)
    upstream = 0.5 + torch.arange(value.numel(), device=value.device).reshape(value.shape)
    found = torch.autograd.grad(value, [arrays[i] for i in wanted], upstream.to(value.dtype))
    return [value.detach(), *found]


def agree(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        a, b = one.detach().double(), other.detach().double()
        scale = b[b.isfinite()].abs().amax() if b.isfinite().any() else 0.0
        atol = float(tolerance * scale)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=atol, equal_nan=True)
