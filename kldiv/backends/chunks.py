"""The loss of two linear layers, a chunk of rows at a time: the loop and its callers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kldiv._heap import keep_freed_memory
from kldiv.backends.exchange import Exchange, move
from kldiv.formulas.layers import Products
from kldiv.formulas.linear import Pass
from kldiv.formulas.terms import Tools
from kldiv.kernels.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.linear import LinearLoss
    from kldiv.formulas.operation import Operation

    Found = tuple[Array, list[Array]]
    """The value of each row, and gradients in the dtype of the logits, not yet reduced."""


CHUNK_BYTES = 268_435_456
"""Bytes of a chunk's logits and gradients on a CPU: rows enough for matrix products' full speed."""

BLOCK_BYTES = 4_194_304
"""Bytes of a chunk's products whose losses are computed at a time on a CPU: the half dozen arrays
of a block are together below the 32 MiB that the C library keeps for the next one."""

DEVICE_CHUNK_BYTES = 1_073_741_824
"""The same on a GPU."""


class InChunks(Exchange):
    """The methods of an adapter that two linear layers' loss uses."""

    def run_linear(self, operation: LinearLoss, route: Any, arrays: Sequence[Array]) -> Array:
        """Run two linear layers' loss inside the library's gradient hook; here there is none."""
        return value(route, operation, arrays)

    def in_chunks(self, given: Pass, route: Any) -> Found:
        """Compute the rows of two linear layers' loss and gradients, a few rows at a time.

        The arrays are the library's own, where they are computed. The results are the value of each
        row, and gradients of their weighted sum, in the compute dtype.
        """
        first = given.arrays[0]
        with self.context(first):
            own = given.operation.compute, self.block_bytes(first)
            return loop(self, Products(self.namespace(first), *own), given, route.kernel)

    def chunk_bytes(self, array: Array) -> int:
        """Return how many bytes of logits and their gradients may exist at a time."""
        return CHUNK_BYTES

    def block_bytes(self, array: Array) -> int | None:
        """Return how many bytes of products gradients are written over at a time.

        None, where new memory is cheap or nothing can be written into: these are new arrays.
        """
        return None

    def kept_rows(self, keep: Array) -> Array | None:
        """Return the indices where a mask of rows is True; None where that waits for the device."""
        return None


# ---- by the settings of a call -------------------------------------------------------------------


def evaluate(route: Any, given: Pass) -> Found:
    """Compute as `Backend.in_chunks` does, with results in the caller's library."""
    caller, backend, (_, arrays, _, weight) = route.caller, route.backend, given
    if caller.in_blocks or not route.moves:
        return caller.in_chunks(given, route)
    every = [*arrays] if weight is None else [*arrays, weight]
    with backend.receiving([caller.dtype_name(array) for array in every]):
        moved = [move(array, caller, backend, route.device) for array in every]
        there = None if weight is None else moved.pop()
        values, gradients = backend.in_chunks(given._replace(arrays=moved, weight=there), route)
        home = caller.device(arrays[0])
        value, *others = (move(array, backend, caller, home) for array in (values, *gradients))
    return value, others


def value(route: Any, operation: LinearLoss, arrays: Sequence[Array]) -> Array:
    """Return the loss, without a gradient hook."""
    values, _ = evaluate(route, Pass(operation, arrays))
    with route.caller.context(values):
        xp = route.caller.namespace(values)
        return route.caller.deliver(operation.gather(xp, values, arrays))


def value_and_gradients(
    route: Any,
    operation: LinearLoss,
    wanted: Sequence[int],
    arrays: Sequence[Array],
    cotangent: Array | None = None,
) -> Found:
    """Return a reduced loss and its gradients from one pass, times a cotangent."""
    values, gradients = evaluate(route, Pass(operation, arrays, wanted))
    with route.caller.context(values):
        xp = route.caller.namespace(values)
        loss = operation.gather(xp, values, arrays)
        ones = xp.ones_like(loss) if cotangent is None else cotangent
        own = not route.crosses  # arrays from elsewhere may be read-only
        finished = operation.finished(xp, gradients, wanted, arrays, ones, reuse=own)
        return route.caller.deliver(loss), finished


# ---- the loop ------------------------------------------------------------------------------------


def tools(backend: Any, products: Products, kernel: str) -> Tools:
    """Return the functions that compute a chunk on the backend's own arrays."""

    def run(operation: Operation, *arrays: Array) -> Array:
        return backend.compute(operation, arrays, kernel)

    def fused(
        operation: Operation, arrays: Sequence[Array], sides: Sequence[int], weight: Array | None
    ) -> Any:
        work = Work(operation, products.xp, arrays, gradients=tuple(sides), cotangent=weight)
        return backend.fused(work, kernel)

    return Tools(products, run, fused)


def loop(backend: Any, products: Products, given: Pass, kernel: str) -> Found:
    """Compute one chunk after another, writing into the results.

    Rows that the mask drops are left out where the library knows without waiting which these are.
    """
    xp, (operation, arrays, wanted, weight) = products.xp, given
    flat = operation.flattened(xp, arrays)
    keep = operation.keep(flat)
    kept = None if keep is None else backend.kept_rows(keep)
    if kept is not None:
        flat.pop()
    number = flat[0].shape[0] if kept is None else kept.shape[0]
    budget = backend.chunk_bytes(arrays[0])
    over = products.block_bytes is not None
    if over:
        keep_freed_memory()
    blocks = operation.chunks(number, flat[1].shape[0], wanted, budget, over=over)
    evaluate_rows = partial(operation.chunk, tools(backend, products, kernel), wanted=wanted)
    results: list[Array] = []
    totals: list[Array] = []
    for block in blocks:
        rows = block if kept is None else kept[block]
        own = None if weight is None else weight[rows]
        values, of_rows, factors = evaluate_rows(operation.picked(flat, rows), weight=own)
        parts = [values, *of_rows]
        if not results:
            create = xp.empty if kept is None else xp.zeros
            results = [
                create(
                    (flat[0].shape[0], *part.shape[1:]), dtype=part.dtype, **backend.placed(part)
                )
                for part in parts
            ]
        for result, part in zip(results, parts, strict=True):
            result[(rows, ...)] = part
        if totals:
            operation.add_to(products, totals, factors)
        else:
            totals = [operation.in_total(products, factor) for factor in factors]
        del parts, of_rows, factors  # before the next chunk
    return operation.collected(xp, arrays, wanted, results, totals)
