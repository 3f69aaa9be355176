"""Fused implementations of operations, one folder a technology; only adapters import them.

``work`` is a call, ``technology`` the base class of those that compute it, ``spelling`` the list of
operations that have fused forms, ``layout`` the description of arrays for kernels. A technology's
package is imported without its compiler.
"""

from __future__ import annotations

from kldiv.kernels.technology import KernelError, Technology
from kldiv.kernels.work import Work

__all__ = ["KernelError", "Technology", "Work"]
