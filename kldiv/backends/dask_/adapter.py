"""Dask: lazy, a block at a time; each block is computed in its own library or in the chosen one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import array_api_compat.dask.array
import dask.array as da
import numpy as np

from kldiv.backends import numpy_
from kldiv.backends.base import Backend
from kldiv.backends.choice import check_kernel
from kldiv.backends.dask_ import linear, stages
from kldiv.backends.overlay import Overlay
from kldiv.backends.registry import find, get
from kldiv.backends.routing import Route
from kldiv.backends.table import TABLE
from kldiv.errors import ShapeError
from kldiv.formulas.operation import Composite
from kldiv.formulas.pairs import PairMeasure
from kldiv.formulas.reductions import RowWise
from kldiv.formulas.rows import RowLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.backends import chunks
    from kldiv.formulas.linear import Pass
    from kldiv.formulas.reductions import Loss
    from kldiv.kernels.work import Found, Work


# Dask names no half types, but its blocks have them.
xp = Overlay(array_api_compat.dask.array, partial(getattr, numpy_.xp))


def _compute_block(
    operation: Loss, backend: str | None, device: str | None, kernel: str, *blocks: Array
) -> Array:
    """Compute one block's elements under the settings of the call that built the graph."""
    return _block_route(backend, device, kernel, blocks[0]).compute(operation, *blocks)


def _block_route(backend: str | None, device: str | None, kernel: str, block: Array) -> Route:
    caller = find(block)
    chosen = caller if backend is None else get(backend)
    return Route(caller, chosen, device, check_kernel(chosen, kernel))


def _block(route: Route, operation: Loss) -> Callable[..., Array]:
    """Return a function that computes an operation on blocks under a call's settings."""
    other = None if route.caller is route.backend else route.backend.name
    return partial(_compute_block, operation, other, route.device, route.kernel)


def _axes(array: Array) -> tuple[int, ...]:
    """Return names for the array's axes, counted from the last so that fewer axes broadcast."""
    return tuple(reversed(range(array.ndim)))


def _whole_rows(
    operation: RowWise, arrays: Sequence[Array]
) -> tuple[list[Array], list[tuple[int, ...]], tuple[int, ...], dict[int, int] | None]:
    """Return the arrays with all classes in each block, names of their axes and of the result's.

    The last maps the result's last axis to its length; None where the result is one number per row.
    """
    full = _axes(arrays[0])
    rows = full[:-1]
    # Of a sparse teacher the last axis is another one, with a name below all others.
    every = {arrays[0].shape[-1]: full}
    named = [
        every.setdefault(array.shape[-1], (*rows, ~array.shape[-1]))
        if array.ndim == len(full)
        else rows
        for array in arrays
    ]
    whole = [
        array if names is rows else array.rechunk({-1: -1})
        for array, names in zip(arrays, named, strict=True)
    ]
    shape = operation.shape(arrays)
    if len(shape) < len(full):
        return whole, named, rows, None
    return whole, named, full, {full[-1]: shape[-1]}


class DaskBackend(Backend):
    """Adapter of ``dask.array.Array``; its blocks are NumPy's or CuPy's."""

    name = "dask"
    module = "dask.array"
    roots, install, kernels = TABLE["dask"]
    in_blocks = True

    def check(self, name: str, array: Array) -> None:
        if any(np.isnan(size) for size in array.shape):
            msg = (
                f"{name} has a size that is not known yet, shape {array.shape}; call its "
                "compute_chunk_sizes() first"
            )
            raise ShapeError(msg)

    def namespace(self, array: Array | None = None) -> Namespace:
        return xp

    def dtype_name(self, array: Array) -> str:
        return str(array.dtype.name)

    def unwritable(self, array: Array, others: Sequence[Array]) -> str | None:
        return "arrays of this library cannot be changed"

    def run(self, operation: Loss, route: Route, arrays: Sequence[Array]) -> Array:  # type: ignore[override]
        if isinstance(operation, Composite):
            return operation.composed(xp, route.run, *arrays)
        block = partial(_block, route)
        if isinstance(operation, PairMeasure):
            a, b = (array.rechunk({-1: -1}) for array in arrays)
            meta = da.utils.meta_from_array(a._meta, 2, operation.result)  # noqa: SLF001
            given = a, "ik", b, "jk"
            own = replace(operation, symmetric=False)  # of two blocks
            return da.blockwise(
                block(own), "ij", *given, dtype=operation.result, meta=meta, concatenate=True
            )
        elements = operation.elementwise()
        plan = stages.plan_for(elements, arrays)
        if plan is not None:
            return operation.gather(xp, stages.elements(plan, arrays, block), arrays)
        sizes = None
        if isinstance(elements, RowWise):
            arrays, named, out, sizes = _whole_rows(elements, arrays)
        else:
            named, out = [_axes(array) for array in arrays], _axes(arrays[0])
        values = da.blockwise(
            block(elements),
            out,
            *(part for pair in zip(arrays, named, strict=True) for part in pair),
            dtype=elements.result,
            meta=da.utils.meta_from_array(arrays[0]._meta, len(out), elements.result),  # noqa: SLF001
            concatenate=True,
            adjust_chunks=sizes,
        )
        return operation.gather(xp, values, arrays)

    def compute(self, operation: Loss, arrays: Sequence[Array], kernel: str) -> Array:  # type: ignore[override]
        return self.run(operation, Route(self, self, None, kernel), arrays)

    def fused(self, work: Work, kernel: str) -> Found | None:
        # The value's graph shares its stages with the gradients'.
        operation, arrays = work.operation, work.arrays
        if not isinstance(operation, RowLoss) or work.cotangent is not None:
            return None
        elements = operation.elementwise()
        plan = stages.plan_for(elements, arrays, differentiated=True)
        if plan is None:
            return None
        route = Route(self, self, None, kernel)
        rows = stages.elements(plan, arrays, partial(_block, route))
        loss = operation.gather(xp, rows, arrays)
        ones = xp.ones_like(loss)
        return loss, [
            operation.pullback(xp, route.run, index, ones, *arrays) for index in work.gradients
        ]

    def in_chunks(self, given: Pass, route: Route) -> chunks.Found:
        other = None if route.backend is self else route.backend.name
        of_block = partial(_block_route, other, route.device, route.kernel)
        return linear.in_chunks(xp, of_block, given)

    def device(self, array: Array) -> str:
        return "cpu"

    def placed(self, array: Array) -> dict[str, Any]:
        return {}  # blocks are where they are

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array.compute())

    def from_dlpack(self, array: Array, device: str | None) -> Array:
        msg = "a Dask array is built from a NumPy one"
        raise BufferError(msg)

    def from_numpy(self, array: np.ndarray[Any, Any], device: str | None) -> Array:
        return da.from_array(array)


BACKEND = DaskBackend()
