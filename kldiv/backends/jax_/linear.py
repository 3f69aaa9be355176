"""JAX, two linear layers' loss: a scan over chunks of rows, differentiable to any order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from kldiv.backends import chunks
from kldiv.backends.jax_.namespace import xp
from kldiv.formulas.layers import Products
from kldiv.formulas.linear import Pass, added
from kldiv.formulas.terms import Tools

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.backends.routing import Route
    from kldiv.formulas.linear import LinearLoss
    from kldiv.formulas.operation import Run

_HALVES = (jnp.float16, jnp.bfloat16)


class _Products(Products):
    in_blocks = False  # an array cannot be written into

    def takes(self, array: Array) -> bool:
        return array.dtype in _HALVES and self.dtype == "float32"

    def __call__(self, a: Array, b: Array) -> Array:
        if a.dtype == b.dtype and self.takes(a):
            inner = ((1,), (0,)), ((), ())
            return jax.lax.dot_general(a, b, inner, preferred_element_type=jnp.float32)
        return super().__call__(a, b)


def _no_kernel(*_: Any) -> None:
    """Return None: no fused kernel computes a chunk."""


def in_chunks(run: Run, given: Pass, most_bytes: int) -> chunks.Found:
    """Compute as `Backend.in_chunks` does, by operations that JAX can differentiate."""
    operation, arrays, wanted, weight = given
    products = _Products(xp, operation.compute)
    tools = Tools(products, run, _no_kernel)
    flat = operation.flattened(jnp, arrays)
    rows, classes = len(flat[0]), len(flat[1])
    blocks = operation.chunks(rows, classes, wanted, most_bytes, fused=True)
    step = blocks[0].stop
    weights = [] if weight is None else [weight]
    per_row = [array for index, array in enumerate(flat) if operation.is_of_rows(index)]
    per_row.extend(weights)

    @jax.checkpoint  # derivatives form a chunk's logits again rather than keep all of them
    def of_chunk(picked: list[Array], whole: list[Array]) -> tuple[list[Array], list[Array]]:
        chunk, constant = iter(picked), iter(whole)
        own = [next(chunk if operation.is_of_rows(k) else constant) for k in range(len(flat))]
        values, of_rows, factors = operation.chunk(tools, own, wanted, next(chunk, None))
        return [values, *of_rows], [operation.in_total(products, factor) for factor in factors]

    whole = [array for index, array in enumerate(flat) if not operation.is_of_rows(index)]
    # The last chunk may be smaller. It comes first, so that the totals need no zeros.
    rest = blocks[-1].start
    results, totals = of_chunk([array[rest:] for array in per_row], whole)
    if len(blocks) > 1:

        def accumulate(carry: list[Array], picked: list[Array]) -> tuple[list[Array], list[Array]]:
            found, shares = of_chunk(picked, whole)
            return added(carry, shares), found

        stacked = [jnp.reshape(array[:rest], (-1, step, *array.shape[1:])) for array in per_row]
        totals, before = jax.lax.scan(accumulate, totals, stacked)
        results = [
            jnp.concatenate([jnp.reshape(first, (rest, *last.shape[1:])), last])
            for first, last in zip(before, results, strict=True)
        ]
    return operation.collected(jnp, arrays, wanted, results, totals)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _loss(operation: LinearLoss, route: Route, *arrays: Array) -> Array:
    return chunks.value(route, operation, arrays)


@partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(
    operation: LinearLoss, route: Route, primals: Sequence[Array], tangents: Sequence[Any]
) -> tuple[Array, Array]:
    moved = tangents[: operation.differentiable]
    wanted = [index for index, each in enumerate(moved) if not isinstance(each, SymbolicZero)]
    if not wanted:
        value = _loss(operation, route, *primals)
        return value, jnp.zeros_like(value)
    steps = [tangents[index] for index in wanted]
    if operation.reduction != "none":
        values, found = chunks.evaluate(route, Pass(operation, primals, wanted))
        value = operation.gather(jnp, values, primals)
        gradients = operation.scaled(jnp, found, primals, jnp.ones_like(value))
        return value, operation.contracted(jnp, gradients, steps)

    def rows(*given: Array) -> Array:
        # JAX adds up the chunks' gradients in the dtype of the weights, so that has to be wide.
        wide = [array.astype(operation.compute) for array in given]
        arrays = dict(enumerate(primals)) | dict(zip(wanted, wide, strict=True))
        return chunks.value(route, operation, [*arrays.values()])

    return jax.jvp(rows, [primals[index] for index in wanted], steps)


run = jax.jit(_loss, static_argnums=(0, 1))
"""Return the loss of (operation, route, *arrays), differentiably."""
