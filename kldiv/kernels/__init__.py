"""Fused implementations of operations, one folder a technology; only adapters import them.

``work`` says what is computed, ``technology`` what computes it, ``spelling`` which operations have
fused forms, ``layout`` what kernels are told of arrays. A technology's package is imported without
its compiler.
"""

from __future__ import annotations

from kldiv.kernels.technology import KernelError, Technology
from kldiv.kernels.work import Work

__all__ = ["KernelError", "Technology", "Work"]
