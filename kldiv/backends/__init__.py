"""The adapters between array libraries and the formulas, and how one is chosen.

A call goes this way:

1. ``routing.resolve`` finds the adapter of the arrays' library (``registry``), and the backend,
   device and kernel that the settings name: a `Route`.
2. `Route.run` runs the operation inside the library's gradient hook (`Backend.run`), which computes
   by `Route.compute`, on arrays that ``exchange`` moves where another library computes.
3. `Backend.compute` asks ``choice`` which technology of kernels computes, and without one
   evaluates the formulas. The route keeps the choice: a later call like this one goes to the
   kernel's launch at once.

``base`` defines an adapter, ``table`` has the built-in ones' names and kernels, ``chunks`` has the
loop of two linear layers' loss. Nothing here imports a framework until an array of it appears, or
its name is asked for.
"""

from __future__ import annotations

from kldiv.backends.base import Backend, BackendStatus
from kldiv.backends.choice import compile_kernels
from kldiv.backends.registry import available_backends, find, get, register_backend
from kldiv.backends.routing import Route, gather, resolve
from kldiv.backends.table import kernel_names, names

__all__ = [
    "Backend",
    "BackendStatus",
    "Route",
    "available_backends",
    "compile_kernels",
    "find",
    "gather",
    "get",
    "kernel_names",
    "names",
    "register_backend",
    "resolve",
]
