"""The choice of backend, device and kernel for a call, with reasons: `explain`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kldiv import (
    backends,
    config,
    distillation,
    label_losses,
    linear_losses,
    logit_losses,
    losses,
    sparse_losses,
)
from kldiv._call import Record
from kldiv._notebook import table
from kldiv.backends.choice import choose
from kldiv.errors import OptionError
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.linear import LinearLoss
from kldiv.kernels.work import Work

if TYPE_CHECKING:
    from kldiv._types import Array
    from kldiv.formulas.operation import Operation

OPERATIONS = {
    name: function.record.operation
    for module in (losses, logit_losses, label_losses, distillation, linear_losses, sparse_losses)
    for name, function in vars(module).items()
    if isinstance(getattr(function, "record", None), Record) and function.record.operation
} | {"log_prob_and_entropy_with_logits": LabelLoss(entropic=True)}  # whose value is a tuple
"""An operation of each function, as it would be run."""


@dataclass(frozen=True)
class Explanation:
    """The backend, device and kernel of an operation, with the reason of each choice.

    Attributes
    ----------
    operation : str
        The function.
    library : str
        The arrays' library.
    backend : str
        The backend.
    device : str
        The device.
    kernel : str
        The kernel.
    reasons : tuple of str
        The reason of each choice, a sentence each.
    """

    operation: str
    library: str
    backend: str
    device: str
    kernel: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"{self.operation}:", *(f"  {reason}" for reason in self.reasons)))

    def _repr_html_(self) -> str:
        rows = [
            (*choice.split(" ", 1), why)
            for choice, _, why in (reason.partition(": ") for reason in self.reasons)
        ]
        return table(self.operation, ("", "choice", "reason"), rows)


def explain(*arrays: Array, operation: str = "kl_div") -> Explanation:
    """
    Explain which backend, device and kernel the current settings choose for these arrays.

    Parameters
    ----------
    *arrays : array
        The arrays of the call, the first of them deciding the library.  Nothing is computed.
    operation : str, default "kl_div"
        Name of the function that would be called.

    Returns
    -------
    Explanation
        ``library``, ``backend``, ``device``, ``kernel`` and ``reasons``; prints readably.

    Raises
    ------
    OptionError
        No array, or no such operation.
    LibraryError
        Not arrays, or arrays of two libraries.
    BackendError
        The backend, device or kernel that is set cannot be used here, and why.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> print(kldiv.explain(np.ones(3)))
    kl_div:
      library numpy: the type of the first array, numpy.ndarray
      backend numpy: the arrays' own library (backend='auto')
      device cpu: where the first array is (device='auto')
      kernel pure: the array-API formula, the fastest that applies: arrays of fewer than 16384
        elements (kernel='auto')
    """
    if operation not in OPERATIONS:
        raise OptionError(
            f"operation must be one of {', '.join(map(repr, OPERATIONS))}; got {operation!r}"
        )
    if not arrays:
        raise OptionError("explain needs the arrays of the call; got none: explain(input, target)")
    route = backends.resolve(("the arrays",), *arrays)
    origin = config.origins()
    here = route.backend.devices()[0] if route.crosses else route.caller.device(arrays[0])
    device, kind = route.device or here, type(arrays[0])
    named = f"{kind.__module__}.{kind.__qualname__}"
    kernel, why = _kernel(route, device, *_computed(route, operation, arrays))
    place = "the first that the backend has" if route.crosses else "where the first array is"
    refused = origin["kernel"] != "default" and route.kernel not in {"auto", kernel}
    refusal = f" to {route.kernel!r}, which does not compute this: {why}" if refused else ""
    reasons = (
        f"library {route.caller.name}: the type of the first array, {named}",
        f"backend {route.backend.name}: "
        + _why("backend", origin, "the arrays' own library (backend='auto')"),
        f"device {device}: " + _why("device", origin, f"{place} (device='auto')"),
        f"kernel {kernel}: " + _why("kernel", origin, f"{why} (kernel='auto')") + refusal,
    )
    return Explanation(operation, route.caller.name, route.backend.name, device, kernel, reasons)


def _kernel(
    route: backends.Route, device: str, operation: Operation, arrays: tuple[Array, ...]
) -> tuple[str, str]:
    """Return which kernel would compute an operation, and why."""
    if route.backend.in_blocks and route.kernel == "auto":
        return "auto", "in each block the fastest of its own library that applies"
    moves = route.moves or route.mixed
    work = Work(operation, None, arrays)
    choice = choose(route.backend, route.kernel, work, device if moves else None)
    refusal = choice.refusals().get(route.kernel)  # of one that is named
    return choice.kernel if route.backend.technologies else route.kernel, refusal or choice.reason


def _computed(
    route: backends.Route, operation: str, arrays: tuple[Array, ...]
) -> tuple[Operation, tuple[Array, ...]]:
    """Return the operation that a kernel would compute, and arrays like those it would get."""
    found = OPERATIONS[operation]
    if not isinstance(found, LinearLoss):
        return found, arrays
    if len(arrays) < 4:
        raise OptionError(
            "explain needs the arrays of the call: explain(input, weight, target_input, "
            f"target_weight, operation='linear_kl_div'); got {len(arrays)}"
        )
    hidden, weight, *_ = arrays
    xp = route.caller.namespace(hidden)
    rows = math.prod(hidden.shape[:-1])
    chunk = found.chunks(rows, weight.shape[0], (), route.backend.chunk_bytes(hidden))[0]
    logits = xp.broadcast_to(xp.reshape(hidden, (-1,))[:1], (chunk.stop, weight.shape[0]))
    return found.terms[0].loss, (logits, logits)


def _why(name: str, origin: dict[str, str], automatic: str) -> str:
    return automatic if origin[name] == "default" else f"set by {origin[name]}"
