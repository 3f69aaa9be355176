"""JAX: forward, reverse and higher order by one ``custom_jvp``, under ``jit`` and ``vmap``."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kldiv.backends.base import Backend
from kldiv.backends.chunks import DEVICE_CHUNK_BYTES
from kldiv.backends.jax_ import cpu_kernels, linear, rules, sharding
from kldiv.backends.jax_.namespace import xp
from kldiv.backends.routing import Route
from kldiv.backends.table import TABLE
from kldiv.errors import LibraryError
from kldiv.formulas.linear import Pass
from kldiv.formulas.pairs import PairMeasure
from kldiv.formulas.reductions import RowWise
from kldiv.formulas.rows import RowLoss
from kldiv.kernels.cpu import CPU
from kldiv.kernels.pallas import PALLAS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    import numpy as np

    from kldiv._types import Array, Namespace
    from kldiv.backends import chunks
    from kldiv.backends.base import Spread
    from kldiv.formulas.linear import LinearLoss
    from kldiv.formulas.operation import Operation
    from kldiv.kernels.technology import Technology
    from kldiv.kernels.work import Found, Work


class JaxBackend(Backend):
    """Adapter of ``jax.Array``, concrete or traced."""

    name = "jax"
    module = "jax"
    roots, install, kernels = TABLE["jax"]
    technologies = (CPU, PALLAS)
    numpy_float32 = False

    def recognises(self, cls: type) -> bool:
        return issubclass(cls, jax.Array | jax.core.Tracer) or "ArrayImpl" in cls.__name__

    def namespace(self, array: Array | None = None) -> Namespace:
        return xp

    def register_container(
        self,
        cls: type,
        take_apart: Callable[[Any], tuple[tuple[Any, ...], tuple[Any, ...]]],
        put_together: Callable[[tuple[Any, ...], tuple[Any, ...]], Any],
    ) -> None:
        jax.tree_util.register_pytree_node(cls, take_apart, put_together)

    def unwritable(self, array: Array, others: Sequence[Array]) -> str | None:
        return "arrays of this library cannot be changed"

    def run(self, operation: Operation, route: Route, arrays: Sequence[Array]) -> Array:
        # Only concrete arrays cross, of which there is nothing to differentiate.
        if route.crosses or operation.native or isinstance(operation, PairMeasure):
            return route.compute(operation, *arrays)
        rows = rules.rows_of(operation, route, arrays)
        found = sharding.by_the_compiler(partial(rules.run, rows or operation, route), arrays)
        return found if rows is None else rules.finish(operation, found, rows.keep(arrays))

    def run_linear(self, operation: LinearLoss, route: Route, arrays: Sequence[Array]) -> Array:
        if route.crosses:
            return super().run_linear(operation, route, arrays)
        if not sharding.is_sized(arrays[0].shape):  # there is no number of chunks
            return operation.by_logits(xp, route.run, *arrays)
        return linear.run(operation, route, *arrays)

    def is_small(self, operation: Operation, arrays: Sequence[Array]) -> bool:
        # An exported program may have sizes that are not known yet.
        return not sharding.is_sized(arrays[0].shape) or super().is_small(operation, arrays)

    def unreachable(
        self, technology: Technology, arrays: Sequence[Array], kernel: str
    ) -> str | None:
        if not sharding.is_sized(arrays[0].shape):
            return "an exported program holds no kernels"
        return cpu_kernels.problem() if technology is CPU else None

    def launch(self, technology: Technology, work: Work) -> Found:
        if technology is CPU:
            return cpu_kernels.call(work)
        return PALLAS.compute(work, sharding.by_rows)

    def fused(self, work: Work, kernel: str) -> Found | None:
        found = super().fused(work, kernel)
        if found is not None or not work.gradients or work.cotangent is not None:
            return found
        if not isinstance(work.operation, RowLoss):
            return None
        return rules.value_and_gradients(
            work.operation, Route(self, self, None, kernel), tuple(work.gradients), work.arrays
        )

    def in_chunks(self, given: Pass, route: Route) -> chunks.Found:
        operation, arrays, wanted, weight = given
        budget = self.chunk_bytes(arrays[0])
        settings = operation.elementwise(), route.kernel, tuple(wanted), budget
        return _in_chunks(*settings, weight, *arrays)

    def chunk_bytes(self, array: Array) -> int:
        return super().chunk_bytes(array) if jax.default_backend() == "cpu" else DEVICE_CHUNK_BYTES

    def by_formulas(self, operation: Operation, arrays: Sequence[Array]) -> Array:
        if isinstance(operation, PairMeasure):
            return rules.pairs(operation, *arrays)
        if rules.are_concrete(arrays):
            return _by_formulas(operation, *arrays)
        with self.context(arrays[0]):
            if isinstance(operation, RowWise):
                elements = sharding.by_rows(operation, xp, arrays)
                return operation.gather(xp, elements, arrays)
            return operation.value(xp, *arrays)

    def spread(self, s: Array, t: Array, group: Any, axis_name: Any) -> Spread | None:
        whole = super().spread(s, t, group, None)
        return whole if axis_name is None else sharding.AxisSpread(axis_name)

    def constant(self, array: Array) -> Array:
        return jax.lax.stop_gradient(array)

    def device(self, array: Array) -> str:
        return _device_name(next(iter(array.devices())))

    def placed(self, array: Array) -> dict[str, Any]:
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

    def readable(self, array: Any) -> bool:
        return not isinstance(array, jax.core.Tracer)

    def export(self, array: Array) -> Array:
        if isinstance(array, jax.core.Tracer):
            raise LibraryError(
                "a JAX tracer has no values to move to another backend; compute outside jax.jit, "
                "jax.grad and jax.vmap, or use backend='jax'"
            )
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
    return linear.in_chunks(run, Pass(operation, arrays, wanted, weight), budget)


@partial(jax.jit, static_argnums=0)
def _by_formulas(operation: Operation, *arrays: Array) -> Array:
    return BACKEND.by_formulas(operation, arrays)


def _device_name(device: Any) -> str:
    return f"{device.platform}:{device.id}"


BACKEND = JaxBackend()
