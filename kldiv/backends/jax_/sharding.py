"""JAX on many devices: operations that the compiler partitions, classes over a named axis.

The compiler would shard the formulas by itself, but with a dozen all-reduces for a loss, and it
would gather rows that are worked on in blocks.  So it is told how operations on rows are
partitioned: rows apart from each other, classes by states that are merged.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from kldiv.backends.base import Spread
from kldiv.errors import LibraryError
from kldiv.formulas import ranks, shards
from kldiv.formulas.blocks import flat, is_shared_evenly, rows_at_a_time
from kldiv.formulas.rows import Constants, RowGradient, RowLoss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kldiv._types import Array, Namespace
    from kldiv.formulas.reductions import RowWise
    from kldiv.formulas.rows import RowOperation

Partitioned = RowLoss | RowGradient | Constants
"""Operations that the compiler is told how to partition."""

BLOCK_BYTES = 8388608
"""8 MiB: XLA fuses, so a block has few temporaries, and each needs work for all cores."""


def is_sized(shape: Sequence[Any]) -> bool:
    """Return whether a shape is all numbers; ``jax.export`` has symbols too."""
    return all(isinstance(size, int) for size in shape)


def gather(array: Array, axis_name: str) -> Array:
    """Return the array of each device along a mesh axis, along a new first axis."""
    return jax.lax.all_gather(array, axis_name)


def in_blocks(operation: RowWise, *arrays: Array, xp: Namespace = jnp) -> Array:
    """Compute the elements of an operation on rows, a block at a time."""
    if not is_sized(arrays[0].shape):
        return operation.elements(xp, *arrays)
    most = rows_at_a_time(arrays[0].shape, operation.compute, BLOCK_BYTES)
    rows = tuple(flat(jnp, array, arrays[0]) for array in arrays)
    if len(rows[0]) <= most:
        return operation.elements(xp, *arrays)

    def fill(result: Array, start: Array) -> tuple[Array, None]:
        block = [jax.lax.dynamic_slice_in_dim(array, start, most) for array in rows]
        part = flat(jnp, operation.elements(xp, *block), block[0])
        return jax.lax.dynamic_update_slice_in_dim(result, part, start, 0), None

    # Written block by block into one array: XLA does it in place, and copies nothing else.
    shape = operation.shape(arrays)
    # In a shard_map an array must be known to vary over an axis if parts written into it do.
    kind = jnp.stack([jnp.zeros_like(array, operation.compute, shape=()) for array in rows])
    empty = jnp.empty_like(kind, shape=(len(rows[0]), *shape[len(arrays[0].shape[:-1]) :]))
    # JAX moves the last block back until it fits: it covers rows a second time.
    result, _ = jax.lax.scan(fill, empty, jnp.arange(0, len(rows[0]), most))
    return jnp.reshape(result, shape)


class AxisRanks(ranks.Ranks):
    """The collectives of named axes of a mesh; their results are the same on every device."""

    xp = jnp

    def __init__(self, axis_name: Any) -> None:
        self.axis_name = axis_name
        try:
            self.size = int(jax.lax.psum(1, axis_name))
        except NameError:
            raise LibraryError(
                f"no mesh axis is called {axis_name!r} here; call this inside jax.shard_map over a "
                "mesh that has it, or leave axis_name out: jax.jit shards whole arrays by itself"
            ) from None
        self.place = jax.lax.axis_index(axis_name)

    def add(self, array: Array) -> Array:
        """Return the sum of all devices' arrays."""
        return jax.lax.psum(array, self.axis_name)

    def extent(self, array: Array) -> tuple[Any, Any]:
        """Return how many classes the devices before have, and all together."""
        return ranks.even_extent(array.shape[-1], self.place, self.size)

    def gathered(self, array: Array) -> Array:
        """Return the array of every device."""
        # An all-gather's result counts as varying from device to device, that of a sum does not.
        alone = jnp.zeros((self.size, *array.shape), array.dtype).at[self.place].set(array)
        return jax.lax.psum(alone, self.axis_name)

    def exchanged(self, parts: Array) -> Array:
        """Return the parts that all devices have for this one."""
        return jax.lax.all_to_all(parts, self.axis_name, 0, 0)


# ---- classes over a named axis, inside shard_map -------------------------------------------------


class AxisSpread(Spread):
    """Classes sharded over the devices of a named axis."""

    def __init__(self, axis_name: Any) -> None:
        self.axis_name = axis_name

    def value(self, operation: RowLoss, arrays: Sequence[Array]) -> Array:
        """Return the loss of all classes together."""
        values = _row_values(operation, self.axis_name, *arrays)
        return operation.finish(jnp, values, operation.keep(arrays))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _row_values(loss: RowLoss, axis_name: Any, *arrays: Array) -> Array:
    own = AxisRanks(axis_name)
    return shards.of_rank(jnp, in_blocks, own, loss, arrays, gradients=False).forward()[0]


@partial(_row_values.defjvp, symbolic_zeros=True)
def _row_values_jvp(
    loss: RowLoss, axis_name: Any, primals: Sequence[Array], tangents: Sequence[Any]
) -> tuple[Array, Array]:
    own = AxisRanks(axis_name)
    values, known = shards.of_rank(jnp, in_blocks, own, loss, primals).forward()
    given = [
        None if isinstance(tangent, SymbolicZero) else tangent
        for tangent in tangents[: loss.differentiable]
    ]
    once = shards.of_rank(jnp, _once(in_blocks), own, loss, primals)
    return values, once.tangent(given, known)


def _once(evaluate: Callable[..., Array]) -> Callable[..., Array]:
    """Return ``evaluate`` with results that refuse to be differentiated again."""

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def once(operation: RowOperation, *arrays: Array) -> Array:
        return evaluate(operation, *arrays)

    @once.defjvp
    def refuse(*_: Any) -> Any:
        raise LibraryError(
            "logits that are spread over an axis_name are differentiated once; for higher orders "
            "shard whole arrays by jax.sharding.NamedSharding, without shard_map"
        )

    return once


# ---- partitioning by the compiler ----------------------------------------------------------------


def by_the_compiler(function: Callable[..., Array], arrays: Sequence[Array]) -> Array:
    """Call a function of arrays, whose sharding is left to the compiler.

    On mesh axes of type Explicit the arrays' types have it, and JAX asks it of every step between.
    """
    mesh = jax.typeof(arrays[0]).sharding.mesh
    if not mesh.explicit_axes:
        return function(*arrays)
    axes = _most_spread(jax.typeof(array).sharding.spec for array in arrays[:2])
    plain = (jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)
    ndim = len(jax.eval_shape(function, *plain).shape)
    with jax.sharding.use_abstract_mesh(mesh):
        place = NamedSharding(mesh, PartitionSpec(*axes[:ndim]))
        return jax.sharding.auto_axes(function, out_sharding=place)(*arrays)


def by_rows(
    operation: RowWise,
    xp: Namespace,
    arrays: Sequence[Array],
    evaluate: Callable[..., Array] = in_blocks,
) -> Array:
    """Compute the elements of an operation on rows, sharded or not.

    ``evaluate`` computes them on one device.
    """
    # One device needs no partition, which some of JAX's own tools, such as export, cannot take.
    if jax.device_count() > 1 and isinstance(operation, Partitioned):
        return _batched(operation, evaluate)(*arrays)
    return evaluate(operation, *arrays, xp=xp)


def _batched(operation: Partitioned, evaluate: Callable[..., Array]) -> Callable[..., Array]:
    """Return the partitioned operation with a rule for vmap: one more axis of rows."""

    @custom_vmap
    def run(*arrays: Array) -> Array:
        return _partitioned(operation, evaluate, *arrays)

    @run.def_vmap
    def rule(size: int, batched: Sequence[bool], *arrays: Array) -> tuple[Array, bool]:
        wide = (
            array if has else jnp.broadcast_to(array, (size, *array.shape))
            for array, has in zip(arrays, batched, strict=True)
        )
        return run(*wide), True

    return run


@partial(custom_partitioning, static_argnums=(0, 1))
def _partitioned(operation: Partitioned, evaluate: Callable[..., Array], *arrays: Array) -> Array:
    return evaluate(operation, *arrays)


def _partition(
    operation: Partitioned,
    evaluate: Callable[..., Array],
    mesh: Any,
    args: Sequence[Any],
    _result: Any,
) -> Any:
    *rows, classes = _spec(mesh, args)
    *placed, out = (
        NamedSharding(mesh, PartitionSpec(*axes))
        for axes in _named(operation, args, rows, classes, None)
    )

    def lower(*arrays: Array) -> Array:
        if classes is None:
            return evaluate(operation, *arrays)
        return shards.part(jnp, evaluate, AxisRanks(classes), operation, arrays)

    return mesh, lower, out, tuple(placed)


def _named(
    operation: RowOperation, args: Sequence[Any], rows: Sequence[Any], classes: Any, packed: Any
) -> list[Sequence[Any]]:
    """Return the axis names of the arrays and of the result, given the name of each kind of axis.

    The logits come first; other arrays have a number per row, or several, packed on the last axis.
    """
    whole = (*rows, classes)
    others = [(*rows, packed) if len(one.shape) == len(whole) else rows for one in args[2:]]
    result: Sequence[Any] = rows
    if operation.keeps_classes:
        result = whole
    elif isinstance(operation, Constants):
        result = (*rows, packed)
    return [whole, whole, *others, result]


def _spec(mesh: Any, args: Sequence[Any]) -> list[Any]:
    """Return the mesh axes of each axis of the logits, from the more sharded of the two."""
    shape = args[0].shape
    axes = _most_spread(
        [*one.sharding.spec, *(None for _ in shape)][: len(shape)] for one in args[:2]
    )
    return [
        axis if axis and is_shared_evenly(size, _devices(mesh, axis)) else None
        for axis, size in zip(axes, shape, strict=True)
    ]


def _most_spread(specs: Iterable[Sequence[Any]]) -> Sequence[Any]:
    """Return the first of the specs that name most axes of the mesh; all have one length."""
    first, *_ = sorted(specs, key=lambda spec: [*spec].count(None))
    return first


def _devices(mesh: Any, axis: Any) -> list[int]:
    """Return how many devices each of the named axes has."""
    return [mesh.shape[name] for name in (axis if isinstance(axis, tuple) else (axis,))]


def _infer(*given: Any) -> Any:
    """Return the sharding of the result, given the arguments of `_partition`."""
    return _partition(*given)[2]


def _rule(
    operation: Partitioned,
    _evaluate: Callable[..., Array],
    _mesh: Any,
    args: Sequence[Any],
    _results: Any,
) -> str:
    """Return the sharding rule, in Shardy's syntax: the axes that arguments and result share."""
    *rows, classes = (f"i{axis}" for axis in range(len(args[0].shape)))
    *words, result = _named(operation, args, rows, classes, "packed")
    # The packed axes of two arrays are two axes.
    words = [
        [f"{name}{place}" if name == "packed" else name for name in axes]
        for place, axes in enumerate(words)
    ]
    return f"{', '.join(' '.join(axes) for axes in words)} -> {' '.join(result)}"


_partitioned.def_partition(
    partition=_partition, infer_sharding_from_operands=_infer, sharding_rule=_rule
)
