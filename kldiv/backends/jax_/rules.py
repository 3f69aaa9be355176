"""JAX, derivatives: one ``custom_jvp`` for all operations, and those of rows with constants.

* `run` is the hook that every operation goes through. Its rule pushes tangents forward by further
  operations, which go through it again: so every order is there, forward and reverse.
* Of a loss of rows the rule finds the rows' constants once (`_constants`), in one pass and one
  exchange where classes are sharded; the value (`_value`) and the gradients follow from these, by
  rules that differentiate in the arrays and not the constants.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from kldiv.backends.choice import choose
from kldiv.backends.jax_.sharding import by_the_compiler, in_blocks
from kldiv.backends.registry import get
from kldiv.backends.routing import Route
from kldiv.formulas.divergences import ALL
from kldiv.formulas.rows import Constants, RowGradient, RowLoss, run_given
from kldiv.kernels.cpu import CPU
from kldiv.kernels.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation, Run
    from kldiv.formulas.pairs import PairMeasure
    from kldiv.formulas.reductions import RowWise


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(operation: Operation, route: Route, *arrays: Array) -> Array:
    return route.compute(operation, *arrays)


@partial(_run.defjvp, symbolic_zeros=True)
def _run_jvp(
    operation: Operation, route: Route, primals: Sequence[Array], tangents: Sequence[Any]
) -> tuple[Array, Array]:
    if isinstance(operation, RowLoss) and not _is_fused(operation, route, primals):
        # One pass, and one exchange where classes are sharded, serves the value and all gradients.
        known = _constants(operation.settings(Constants), route, *primals)
        return _value_jvp(operation, route, (known, *primals), (None, *tangents))
    value = _run(operation, route, *primals)
    return value, _pushed(operation, route.run, primals, tangents, value)


def _is_fused(operation: Operation, route: Route, arrays: Sequence[Array]) -> bool:
    """Return whether the CPU kernels compute, whose gradients are one pass without constants."""
    if route.crosses:
        return False
    work = Work(operation, jnp, arrays)
    return choose(route.backend, route.kernel, work).technology is CPU


def _pushed(
    operation: Operation, run: Run, primals: Sequence[Array], tangents: Sequence[Any], value: Array
) -> Array:
    """Return the tangent of ``value``."""
    # A zero that is only symbolic takes no part: times an infinite slope it would be NaN.
    given = [
        None if isinstance(tangent, SymbolicZero) else tangent
        for tangent in tangents[: operation.differentiable]
    ]
    if isinstance(operation, RowGradient) and operation.given:
        given[operation.own] = None  # that of the constants is part of those of the logits
    if all(tangent is None for tangent in given):
        return jnp.zeros_like(value)
    return operation.pushforward(jnp, run, given, *primals)


@partial(jax.jit, static_argnums=0)
def pairs(operation: PairMeasure, a: Array, b: Array) -> Array:
    """Compute a measure of all pairs of rows by the formulas, a row of the first array at a time.

    Derivatives compute that anew: to keep it takes as much as all pairs' classes.
    """
    one = operation.of_rows()

    def row(own: Array) -> Array:
        return by_formulas(one, jnp.broadcast_to(own, b.shape), b)

    return jax.lax.map(jax.checkpoint(row), a)


# ---- rows, given their constants -----------------------------------------------------------------
# Constants follow from the other arrays, so all derivatives are taken in those.


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
    return jax.jvp(partial(in_blocks, operation), primals, tangents)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _value(loss: RowLoss, route: Route, known: Array, *arrays: Array) -> Array:  # noqa: ARG001
    return replace(loss, given=ALL).value(jnp, known, *arrays[2:])


@partial(_value.defjvp, symbolic_zeros=True)
def _value_jvp(
    loss: RowLoss, route: Route, primals: Sequence[Any], tangents: Sequence[Any]
) -> tuple[Array, Array]:
    known, *arrays = primals
    run = partial(run_given, route.run, ALL, known)
    value = _value(loss, route, known, *arrays)
    return value, _pushed(loss, run, arrays, tangents[1:], value)


# ---- concrete arrays: rows in one program, their reduction in another ----------------------------
# The program of rows takes longest to compile, and serves every reduction and result dtype.


def are_concrete(arrays: Sequence[Array]) -> bool:
    """Return whether no transformation of JAX traces the arrays."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def rows_of(operation: Operation, route: Route, arrays: Sequence[Array]) -> Any:
    """Return the operation on rows that a loss of concrete rows reduces, or None."""
    if not isinstance(operation, RowLoss) or not are_concrete(arrays):
        return None
    rows = operation.elementwise()
    # The CPU kernels reduce by themselves, in float64.
    return None if rows == operation or _is_fused(operation, route, arrays) else rows


@partial(jax.jit, static_argnums=0)
def finish(loss: RowLoss, values: Array, keep: Array | None) -> Array:
    """Reduce the values of rows."""
    return loss.finish(jnp, values, keep)


@partial(jax.jit, static_argnums=0)
def _weight(loss: RowLoss, values: Array, keep: Array | None) -> Array:
    """Return the gradient of the reduced loss in each row's value."""
    one = loss.weight(jnp, jnp.ones((), values.dtype), values.shape, keep)
    return jnp.broadcast_to(one, values.shape)


def value_and_gradients(
    loss: RowLoss, route: Route, indices: tuple[int, ...], arrays: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """Return a loss of rows and its gradients."""
    keep = loss.keep(arrays)
    weight = _weight(loss, jnp.empty(arrays[0].shape[:-1], loss.compute), keep)
    values, gradients = _rows_and_gradients(loss.elementwise(), route, indices, weight, *arrays)
    return finish(loss, values, keep), gradients


@partial(jax.jit, static_argnums=(0, 1, 2))
def _rows_and_gradients(
    loss: RowLoss, route: Route, indices: tuple[int, ...], weight: Array, *arrays: Array
) -> tuple[Array, list[Array]]:
    def run(*some: Array) -> Array:
        every = dict(enumerate(arrays)) | dict(zip(indices, some, strict=True))
        return by_the_compiler(partial(_run, loss, route), [*every.values()])

    values, pull = jax.vjp(run, *(arrays[index] for index in indices))
    return values, list(pull(weight))


def by_formulas(operation: Operation, *arrays: Array) -> Array:
    """Compute an operation without kernels, differentiably."""
    backend = get("jax")
    route = Route(backend, backend, None, "pure")
    return (
        route.compute(operation, *arrays) if operation.native else _run(operation, route, *arrays)
    )


run = jax.jit(_run, static_argnums=(0, 1))
"""Return the value of (operation, route, *arrays), differentiably."""
