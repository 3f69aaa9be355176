"""JAX: forward, reverse and higher order by one ``custom_jvp``, under ``jit`` and ``vmap``."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.scipy.special
from jax.custom_derivatives import SymbolicZero

from kldiv.backends import _jax_linear, _jax_ops, _jax_spread
from kldiv.backends._kernels import KernelBackend
from kldiv.backends._overlay import Overlay
from kldiv.backends._table import TABLE
from kldiv.backends.base import DEVICE_CHUNK_BYTES
from kldiv.backends.routing import Route
from kldiv.errors import LibraryError
from kldiv.formulas import shards
from kldiv.formulas.linear import LinearLoss
from kldiv.formulas.rows import RowGradient, RowLoss
from kldiv.kernels import cpu, pallas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from kldiv._types import Array, Namespace
    from kldiv.backends import chunks
    from kldiv.backends.base import Spread
    from kldiv.formulas.operation import Operation, Run
    from kldiv.formulas.reductions import RowWise
    from kldiv.kernels import Kernels, Work


def _missing(name: str) -> Any:
    """Return the special functions, which JAX keeps elsewhere."""
    if name != "special":
        raise AttributeError(name)
    return jax.scipy.special


xp = Overlay(jnp, _missing)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(operation: Operation, route: Route, *arrays: Array) -> Array:
    return route.compute(operation, *arrays)


@partial(_run.defjvp, symbolic_zeros=True)
def _run_jvp(
    operation: Operation, route: Route, primals: Sequence[Array], tangents: Sequence[Any]
) -> tuple[Array, Array]:
    if isinstance(operation, RowLoss) and not _is_fused(operation, route, primals):
        # One pass, and one exchange where classes are sharded, serves the value and all gradients.
        known = _constants(operation.settings(shards.Constants), route, *primals)
        return _value_jvp(operation, route, (known, *primals), (None, *tangents))
    value = _run(operation, route, *primals)
    return value, _pushed(operation, route.run, primals, tangents, value)


def _is_fused(operation: Operation, route: Route, arrays: Sequence[Array]) -> bool:
    """Return whether the CPU kernels compute, whose gradients are one pass without constants."""
    return route.backend is BACKEND and BACKEND.by_cpu(operation, arrays, route.kernel)


def _pushed(
    operation: Operation, run: Run, primals: Sequence[Array], tangents: Sequence[Any], value: Array
) -> Array:
    """Return the tangent of ``value``."""
    # A zero that is only symbolic takes no part: times an infinite slope it would be NaN.
    given = [
        None if isinstance(tangent, SymbolicZero) else tangent
        for tangent in tangents[: operation.differentiable]
    ]
    if all(tangent is None for tangent in given):
        return jnp.zeros_like(value)
    return operation.pushforward(jnp, run, given, *primals)


# ---- of rows of which the constants are known ----------------------------------------------------
# These follow from the other arrays, so all derivatives are taken in those.


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _constants(operation: RowWise, route: Route, *arrays: Array) -> Array:
    return route.compute(operation, *arrays)


@_constants.defjvp
def _constants_jvp(
    operation: RowWise, route: Route, primals: Sequence[Array], tangents: Sequence[Array]
) -> tuple[Array, Array]:
    # JAX forgets the rules below where it splits a loop, as in the Hessian of one, and then
    # differentiates through the constants; elsewhere nothing uses this, and it is not computed.
    del route
    return jax.jvp(partial(_jax_spread.in_blocks, operation), primals, tangents)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value(loss: RowLoss, route: Route, known: Array, *arrays: Array) -> Array:  # noqa: ARG001
    values = loss.settings(shards.ShardValues).elements(jnp, known, *arrays[2:])
    return loss.finish(jnp, values, loss.keep(arrays))


@partial(_value.defjvp, symbolic_zeros=True)
def _value_jvp(
    loss: RowLoss, route: Route, primals: Sequence[Any], tangents: Sequence[Any]
) -> tuple[Array, Array]:
    known, *arrays = primals

    def run(operation: Operation, *inputs: Array) -> Array:
        if isinstance(operation, RowGradient):
            return _gradient(operation, route, known, *inputs)
        return route.run(operation, *inputs)

    value = _value(loss, route, known, *arrays)
    return value, _pushed(loss, run, arrays, tangents[1:], value)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _gradient(operation: RowGradient, route: Route, known: Array, *arrays: Array) -> Array:
    slope = operation.settings(shards.ShardGradient, index=operation.index)
    return route.compute(slope, *arrays[:3], known, *arrays[3:])


@partial(_gradient.defjvp, symbolic_zeros=True)
def _gradient_jvp(
    operation: RowGradient, route: Route, primals: Sequence[Any], tangents: Sequence[Any]
) -> tuple[Array, Array]:
    known, *arrays = primals
    value = _gradient(operation, route, known, *arrays)
    return value, _pushed(operation, route.run, arrays, tangents[1:], value)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _value_and_gradients(
    loss: RowLoss, route: Route, indices: tuple[int, ...], *arrays: Array
) -> tuple[Array, list[Array]]:
    def run(*some: Array) -> Array:
        every = dict(enumerate(arrays)) | dict(zip(indices, some, strict=True))
        return _jax_spread.by_the_compiler(partial(_run, loss, route), [*every.values()])

    value, pull = jax.vjp(run, *(arrays[index] for index in indices))
    return value, list(pull(jnp.ones_like(value)))


def by_formulas(operation: Operation, *arrays: Array) -> Array:
    """Compute an operation without kernels, differentiably."""
    return _run(operation, Route(BACKEND, BACKEND, None, "pure", mixed=False), *arrays)


_run_compiled = jax.jit(_run, static_argnums=(0, 1))


class JaxBackend(KernelBackend):
    """Adapter of ``jax.Array``, concrete or traced."""

    name = "jax"
    module = "jax"
    roots, install, kernels = TABLE["jax"]
    technologies = (cpu, pallas)
    numpy_float32 = False

    def recognises(self, cls: type) -> bool:
        return issubclass(cls, jax.Array | jax.core.Tracer) or "ArrayImpl" in cls.__name__

    def namespace(self, array: Array | None = None) -> Namespace:  # noqa: ARG002
        return xp

    def register_container(
        self,
        cls: type,
        take_apart: Callable[[Any], tuple[tuple[Any, ...], tuple[Any, ...]]],
        put_together: Callable[[tuple[Any, ...], tuple[Any, ...]], Any],
    ) -> None:
        jax.tree_util.register_pytree_node(cls, take_apart, put_together)

    def run(self, operation: Operation, route: Route, arrays: Sequence[Array]) -> Array:
        if route.crosses and route.backend is not self:
            return route.compute(
                operation, *arrays
            )  # concrete arrays only: nothing to differentiate
        if operation.native:
            return route.compute(operation, *arrays)
        if isinstance(operation, LinearLoss):
            return _jax_linear.run(operation, route, *arrays)
        return _jax_spread.by_the_compiler(partial(_run_compiled, operation, route), arrays)

    def unreachable(self, kernels: Kernels, arrays: Sequence[Array]) -> str | None:  # noqa: ARG002
        return _jax_ops.problem() if kernels is cpu else None

    def by_cpu(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> bool:
        """Return whether the CPU kernels compute a call."""
        return (
            kernel in {"auto", cpu.NAME} and self._refusal(cpu, operation, arrays, kernel) is None
        )

    def launch(self, kernels: Kernels, work: Work) -> tuple[Array | None, list[Array]]:
        if kernels is cpu:
            return _jax_ops.call(work)
        return pallas.compute(work, _jax_spread.by_rows)

    def compute(self, operation: Operation, arrays: Sequence[Array], kernel: str) -> Array:
        if isinstance(operation, RowGradient):
            of_loss = [*arrays[:2], *arrays[3:]]
            found = None
            if self.by_cpu(operation.loss, of_loss, kernel):
                found = self.fused_slope(operation, arrays, kernel)
            if found is not None:
                return found
        return super().compute(operation, arrays, kernel)

    def fused(
        self,
        operation: Operation,
        arrays: Sequence[Array],
        kernel: str,
        gradients: Sequence[int] = (),
        cotangent: Array | None = None,
        *,
        value: bool = True,
        **options: Any,
    ) -> tuple[Array | None, list[Array]] | None:
        given = operation, arrays, kernel, gradients, cotangent
        if not gradients or cotangent is not None:
            return super().fused(*given, value=value, **options)
        found: Any = None
        if self.by_cpu(operation, arrays, kernel):
            found = super().fused(*given)
        if found is None and isinstance(operation, RowLoss):
            route = Route(self, self, None, kernel)
            found = _value_and_gradients(operation, route, tuple(gradients), *arrays)
        return found

    def in_chunks(
        self,
        operation: LinearLoss,
        arrays: Sequence[Array],
        route: Route,
        wanted: Sequence[int] = (),
        weight: Array | None = None,
    ) -> chunks.Found:
        budget = self.chunk_bytes(arrays[0])
        given = operation.elementwise(), route.kernel, tuple(wanted), budget, weight
        return _in_chunks(*given, *arrays)

    def chunk_bytes(self, array: Array) -> int:
        return super().chunk_bytes(array) if jax.default_backend() == "cpu" else DEVICE_CHUNK_BYTES

    def by_rows(self, operation: RowWise, xp: Namespace, arrays: Sequence[Array]) -> Array:
        return _jax_spread.by_rows(operation, xp, arrays)

    def spread(self, s: Array, t: Array, group: Any, axis_name: Any) -> Spread | None:
        if axis_name is None:
            return super().spread(s, t, group, None)
        super().spread(s, t, group, None)
        return _jax_spread.AxisSpread(axis_name)

    def device(self, array: Array) -> str:
        return _device_name(next(iter(array.devices())))

    def placed(self, array: Array) -> dict[str, Any]:  # noqa: ARG002
        return {}  # a tracer has no device, and placement follows the computation

    def devices(self) -> tuple[str, ...]:
        found: list[str] = []
        for platform in ("cpu", "gpu", "tpu"):
            try:
                found.extend(_device_name(device) for device in jax.devices(platform))
            except RuntimeError:
                continue
        return tuple(found)

    def receiving(self, dtypes: Sequence[str]) -> AbstractContextManager[Any]:
        # Without it JAX would quietly make float32 of another library's float64.
        return jax.enable_x64(True) if "float64" in dtypes else nullcontext()  # noqa: FBT003

    def random_key(self, seed: int) -> Array:
        """Return a key for samplers."""
        return jax.random.key(seed)

    def export(self, array: Array) -> Array:
        if isinstance(array, jax.core.Tracer):
            msg = (
                "a JAX tracer has no values to move to another backend; compute outside jax.jit, "
                "jax.grad and jax.vmap, or use backend='jax'"
            )
            raise LibraryError(msg)
        return array

    def from_dlpack(self, array: Array, device: str | None) -> Array:
        return self._put(jnp.from_dlpack(array), device)

    def from_numpy(self, array: np.ndarray[Any, Any], device: str | None) -> Array:
        return self._put(jnp.array(array), device)

    def _put(self, array: Array, device: str | None) -> Array:
        if device is None:
            return array
        platform, _, index = device.partition(":")
        return jax.device_put(array, jax.devices(platform)[int(index)])

    def as_bits(self, array: Array) -> Array:
        return jax.lax.bitcast_convert_type(array, jnp.int16)

    def from_bits(self, array: Array) -> Array:
        return jax.lax.bitcast_convert_type(array, jnp.bfloat16)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _in_chunks(
    operation: LinearLoss,
    kernel: str,
    wanted: tuple[int, ...],
    budget: int,
    weight: Array | None,
    *arrays: Array,
) -> chunks.Found:
    run = Route(BACKEND, BACKEND, None, kernel).run
    return _jax_linear.in_chunks(run, operation, arrays, wanted, weight, budget)


def _device_name(device: Any) -> str:
    return f"{device.platform}:{device.id}"


BACKEND = JaxBackend()
