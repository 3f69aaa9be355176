"""The adapters between array libraries and the formulas, and how one is chosen.

``_table`` names the built-in ones, ``registry`` finds the adapter of a name or an array,
``routing`` resolves the settings of a call, ``base`` is what an adapter is, ``exchange`` moves
arrays between them. Nothing here imports a framework until an array of it appears, or its name is
asked for.
"""

from __future__ import annotations

from kldiv.backends._kernels import compile_kernels
from kldiv.backends.base import Backend, BackendStatus
from kldiv.backends.registry import (
    available_backends,
    find,
    get,
    kernel_names,
    names,
    register_backend,
)
from kldiv.backends.routing import Route, resolve

__all__ = [
    "Backend",
    "BackendStatus",
    "Route",
    "available_backends",
    "compile_kernels",
    "find",
    "get",
    "kernel_names",
    "names",
    "register_backend",
    "resolve",
]
