"""The kernel: states of tiles of rows of logits, from one read of both.

A program has a tile: some short rows, or a part of one, so that few rows with many classes keep a
GPU busy too.  It calls `kldiv.formulas.state` itself.  XLA merges the parts of a row, of
which there are few.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from kldiv.formulas import state
from kldiv.formulas.blocks import flat
from kldiv.formulas.divergences import TEACHER
from kldiv.formulas.packing import packed
from kldiv.kernels.pallas import PALLAS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.shards import ShardState

TILE: Final = {"float32": 4096, "float64": 1024}
"""Elements of a tile, shared by the states that are found of it: 16 or 4 a thread, so that two
programs of 128 registers a thread fit a multiprocessor."""

NARROWEST: Final = 16
"""Classes of the narrowest tile; those beyond the row are masked."""

WARPS: Final = 8

_FIELDS: Final = len(state.State._fields)


class _Plan(NamedTuple):
    """The division of rows among programs."""

    height: int
    """Rows of a tile."""
    width: int
    """Classes of a tile; both are powers of two, as Triton has no others."""
    groups: int
    """Tiles for all rows."""
    parts: int
    """Tiles for all classes of a row."""
    states: int
    """States of each: Jensen-Shannon's gradients need two."""


class _Language:
    """jax.numpy, with functions that Pallas lowers in place of those that it does not."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name)

    @staticmethod
    def any(mask: Array, axis: int, *, keepdims: bool) -> Array:
        return jnp.max(mask.astype(jnp.int32), axis=axis, keepdims=keepdims) > 0


_language = _Language()


def check(operation: ShardState, arrays: Sequence[Array]) -> None:
    """Compile the kernel for a tile of such arrays."""
    if PALLAS.interpreted:
        return
    rows = [flat(jnp, array, arrays[0]) for array in arrays]
    tile = _plan(operation, rows)[:2]
    _compile(operation, *((tile[: array.ndim], array.dtype) for array in rows))


def run(operation: ShardState, arrays: Sequence[Array]) -> Array:
    """Return the packed states of rows."""
    found = _packed_states(operation, *(flat(jnp, array, arrays[0]) for array in arrays))
    return jnp.reshape(found, (*arrays[0].shape[:-1], found.shape[-1]))


@cache
def _compile(operation: ShardState, *arrays: tuple[tuple[int, ...], Any]) -> None:
    shapes = [jax.ShapeDtypeStruct(*each) for each in arrays]
    jax.jit(partial(_packed_states, operation)).lower(*shapes).compile()


def _packed_states(operation: ShardState, *arrays: Array) -> Array:
    kernel = partial(_by_kernel, operation)
    if PALLAS.interpreted:
        return kernel(*arrays)
    # Where a program runs is known when it is lowered: beside a GPU it may still be the CPU.
    formulas = partial(operation.elements, jnp)
    return jax.lax.platform_dependent(*arrays, cuda=kernel, rocm=kernel, default=formulas)


def _by_kernel(operation: ShardState, *arrays: Array) -> Array:
    plan = _plan(operation, arrays)
    fields = _parts(operation, plan, arrays)
    found = [state.State(*fields[i : i + _FIELDS]) for i in range(0, len(fields), _FIELDS)]
    if plan.parts > 1:
        temperature = operation.temperature_of(jnp, arrays[2:])
        found = [state.merge(jnp, [each], temperature) for each in found]
    return packed(jnp, found)


def _plan(operation: ShardState, arrays: Sequence[Array]) -> _Plan:
    rows, classes = arrays[0].shape
    states = len(operation.sides)
    tile = TILE[operation.compute] // states
    width = min(tile, max(NARROWEST, pl.next_power_of_2(classes)))
    # Short rows fill half a tile: each has numbers of its own.
    height = max(1, min(tile // (2 * width), pl.next_power_of_2(rows)))
    return _Plan(height, width, pl.cdiv(rows, height), pl.cdiv(classes, width), states)


def _parts(operation: ShardState, plan: _Plan, arrays: Sequence[Array]) -> Sequence[Array]:
    """Return the fields of the states of all parts of rows, for each an array [rows, parts]."""
    rows, _ = arrays[0].shape
    # Pallas' interpreter makes integers of booleans.
    arrays = [array.astype(jnp.int8) if array.dtype == bool else array for array in arrays]
    tile = pl.BlockSpec((plan.height, plan.width), lambda group, part: (group, part))
    result = pl.BlockSpec((plan.height, 1), lambda group, part: (group, part))
    number = pl.BlockSpec((plan.height,), lambda group, _: (group,))
    fields = plan.states * _FIELDS
    out = jax.eval_shape(partial(_result, operation.compute, (rows, plan.parts)), *arrays)
    return pl.pallas_call(
        partial(_states_of_tile, operation, plan, arrays[0].shape),
        grid=(plan.groups, plan.parts),
        in_specs=[tile, tile, *(number for _ in arrays[2:])],
        out_specs=[result] * fields,
        out_shape=[out] * fields,
        compiler_params=plgpu.CompilerParams(num_warps=WARPS),
        interpret=PALLAS.interpreted,
        name="kldiv_states",
    )(*arrays)


def _result(dtype: str, shape: tuple[int, ...], *arrays: Array) -> Array:
    """Return a result of that shape; in a shard_map it varies over the axes that the arrays do."""
    kinds = jnp.stack([jnp.zeros_like(array, dtype, shape=()) for array in arrays])
    return jnp.empty_like(kinds, shape=shape)


def _states_of_tile(
    operation: ShardState,  # the sides whose states are wanted, and the temperature
    plan: _Plan,  # sizes of a tile
    shape: tuple[int, int],  # rows and classes of the logits
    *references: Any,  # [height, width], s and t; [height], others; [height, 1], outputs: fields
) -> None:
    """Read a tile, and write its states."""
    fields = plan.states * _FIELDS
    inputs, outputs = references[:-fields], references[-fields:]
    row, column = (
        pl.program_id(axis) * size + jnp.arange(size, dtype=jnp.int32)
        for axis, size in enumerate((plan.height, plan.width))
    )
    there = row < shape[0]
    inside = there[:, None] & (column < shape[1])
    # A class that is −∞ on both sides takes no part.
    logits = [plgpu.load(each, mask=inside, other=-jnp.inf) for each in inputs[:2]]
    others = [plgpu.load(each, mask=there, other=1) for each in inputs[2:]]
    others = [each != 0 if each.dtype == jnp.int8 else each for each in others]
    (s, t), temperature, _ = operation.prepared(_language, (*logits, *others))
    pairs = [(s, t) if side == TEACHER else (t, s) for side in operation.sides]
    found = [state.block_state(_language, *pair, temperature) for pair in pairs]
    numbers = (number for each in found for number in each)
    for output, number in zip(outputs, numbers, strict=True):
        plgpu.store(output, number, mask=there[:, None])
