"""MLX, on its CPU device; values by the formulas, derivatives by ``mx.custom_function``.

Formulas run on the CPU device wherever arrays were made: memory is one, and only the CPU has
float64, in which kldiv adds.  `mx.compile` and `mx.vmap` trace them like any other function.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from kldiv.backends.base import Backend
from kldiv.backends.overlay import Overlay
from kldiv.backends.table import TABLE
from kldiv.formulas.reductions import sum_in_pairs
from kldiv.formulas.special import exp_by_expm1

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from kldiv._types import Array, Namespace
    from kldiv.backends.routing import Route
    from kldiv.formulas.operation import Operation


class _Bridge(Overlay):
    """``mlx.core`` as the array-API standard has it."""

    def __init__(self) -> None:
        super().__init__(mx, bool=mx.bool_)

    def exp(self, x: Array) -> Array:
        """Return e^x, of which MLX's own is up to 63 units off, in float64 too."""
        return exp_by_expm1(self, x)

    def sum(
        self,
        x: Array,
        *,
        axis: int | tuple[int, ...] | None = None,
        dtype: Any = None,
        keepdims: bool = False,
    ) -> Array:
        """Return sums, which MLX would add up one by one."""
        given = x if dtype is None else x.astype(dtype)
        return sum_in_pairs(mx, given, axis, keepdims=keepdims)

    def __getattr__(self, name: str) -> Any:
        if name == "topk":  # MLX's returns no places
            raise AttributeError(name)
        value = super().__getattr__(name)
        if callable(value) and not isinstance(value, type | mx.Dtype):
            value = _bridged(value)
            setattr(self, name, value)
        return value


def _bridged(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes the keywords ``device`` and ``dtype`` as the standard says."""

    @wraps(function)
    def call(*given: Any, device: Any = None, dtype: Any = None, **options: Any) -> Any:  # noqa: ARG001 - memory is one
        if dtype is None:
            return function(*given, **options)
        try:
            return function(*given, dtype=dtype, **options)
        except TypeError:  # reductions have none
            first, *others = given
            return function(first.astype(dtype), *others, **options)

    return call


xp = _Bridge()


class MLXBackend(Backend):
    """Adapter of ``mlx.core.array``."""

    name = "mlx"
    module = "mlx.core"
    roots, install, kernels = TABLE["mlx"]

    def namespace(self, array: Array | None = None) -> Namespace:
        return xp

    def context(self, array: Array) -> AbstractContextManager[Any]:
        return mx.stream(mx.cpu)

    def version(self) -> str | None:
        return str(mx.__version__)

    # ---- computing -------------------------------------------------------------------------------

    def run(self, operation: Operation, route: Route, arrays: Sequence[Array]) -> Array:
        """Run an operation as a function of MLX with the operation's own derivatives."""

        @mx.custom_function
        def function(*arrays: Array) -> Array:
            return route.compute(operation, *arrays)

        @function.vjp
        def pullback(primals: Any, cotangent: Array, _: Array) -> Any:
            given = _listed(primals)
            with self.context(given[0]):
                found = [
                    operation.pullback(xp, route.run, index, cotangent, *given)
                    if index < operation.differentiable
                    else mx.zeros_like(array)
                    for index, array in enumerate(given)
                ]
            return tuple(found) if len(found) > 1 else found[0]

        @function.jvp
        def pushforward(primals: Any, tangents: Any) -> Array:
            given, moved = _listed(primals), _listed(tangents)
            with self.context(given[0]):
                return operation.pushforward(
                    xp, route.run, moved[: operation.differentiable], *given
                )

        return function(*arrays)

    def by_formulas(self, operation: Operation, arrays: Sequence[Array]) -> Array:
        with self.context(arrays[0]):
            return operation.value(xp, *arrays)

    def constant(self, array: Array) -> Array:
        return mx.stop_gradient(array)

    # ---- exchange --------------------------------------------------------------------------------

    def placed(self, array: Array) -> dict[str, Any]:
        return {}

    def export(self, array: Array) -> Array:
        return mx.stop_gradient(array)

    def from_dlpack(self, array: Array, device: str | None) -> Array:
        raise NotImplementedError("MLX takes float64 for float32 here: a copy knows")

    def from_numpy(self, array: np.ndarray[Any, Any], device: str | None) -> Array:
        # MLX makes float64 float32 unless it is told.
        return mx.array(array, dtype=getattr(xp, array.dtype.name))

    def as_bits(self, array: Array) -> Array:
        return array.view(mx.int16)

    def from_bits(self, array: Array) -> Array:
        return array.view(mx.bfloat16)


def _listed(arrays: Any) -> list[Array]:
    """Return the arguments of a rule, which MLX hands over bare where there is one."""
    return [*arrays] if isinstance(arrays, tuple | list) else [arrays]


BACKEND = MLXBackend()
