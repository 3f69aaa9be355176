"""The CPU kernels as a function that programs compiled by XLA call.

It is a primitive of JAX's own kind, with its rules for derivatives and ``vmap``: those of a
``custom_jvp`` are forgotten where JAX splits a loop, as in the Hessian of one.
"""

from __future__ import annotations

import json
from functools import cache, partial, reduce
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from kldiv.backends import numpy_
from kldiv.backends.jax_.rules import by_formulas, pairs
from kldiv.formulas.pairs import PairMeasure
from kldiv.formulas.reductions import RowWise
from kldiv.kernels import spelling
from kldiv.kernels.cpu import CPU
from kldiv.kernels.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array
    from kldiv.kernels.work import Found

_TARGET: Final = "kldiv_cpu"


@cache
def problem() -> str | None:
    """Return why XLA cannot call the kernels here, or None."""
    if not hasattr(jax, "ffi"):
        return "this JAX has no jax.ffi; upgrade it"
    devices = jax.devices()
    if len(devices) > 1 or devices[0].platform != "cpu":
        # Inside jit nothing says on which device a program will run, or how its arrays are spread.
        return "JAX has other devices than one CPU"
    return None


def call(work: Work) -> Found:
    """Compute as `Cpu.compute` does, on arrays that may be traced."""
    CPU.prepare(work)
    _register()
    upstream = [] if work.cotangent is None else [work.cotangent]
    found = _fused.bind(*work.arrays, *upstream, words=_words(work))
    return (found[0], list(found[1:])) if work.value else (None, list(found))


def _words(work: Work) -> str:
    outputs = work.cotangent is not None, work.value, work.gradients
    return json.dumps([*spelling.spelled(work.operation), *outputs])


# ---- a call in words -----------------------------------------------------------------------------


class _Wanted(NamedTuple):
    operation: Any
    upstream: bool
    value: bool
    gradients: tuple[int, ...]

    def split(self, arrays: Sequence[Any]) -> tuple[list[Any], Any]:
        """Return the operation's arrays, and the cotangent if there is one."""
        return (list(arrays[:-1]), arrays[-1]) if self.upstream else (list(arrays), None)


@cache
def _wanted(words: str) -> _Wanted:
    *spelled, upstream, value, gradients = json.loads(words)
    return _Wanted(spelling.read(*spelled), upstream, value, tuple(gradients))


def _run(words: str, arrays: list[Any], results: list[Any]) -> None:
    """Compute inside a compiled program."""
    wanted = _wanted(words)
    own, upstream = wanted.split(arrays)
    into = results[1:] if wanted.value else results
    outputs = wanted.value, wanted.gradients, upstream, into
    found, _ = CPU.compute(Work(wanted.operation, numpy_.xp, own, None, *outputs))
    if wanted.value:
        results[0][...] = found


@cache
def _register() -> Any:
    """Register the kernels with XLA, once; the cache keeps the handler alive, as they need it."""
    from kldiv.kernels.cpu import xla  # noqa: PLC0415 - for calls that are not small

    function = xla.handler(_run)
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(function), platform="cpu")
    return function


# ---- the primitive -------------------------------------------------------------------------------

_fused = jax.extend.core.Primitive("kldiv_fused")
_fused.multiple_results = True


def _shapes(words: str, arrays: Sequence[Any]) -> list[tuple[tuple[int, ...], Any]]:
    """Return the shape and dtype of each result."""
    operation, _, value, gradients = _wanted(words)
    results = [(arrays[index].shape, arrays[index].dtype) for index in gradients]
    if value:
        shape = operation.shape(arrays) if operation.reduction == "none" else ()
        results.insert(0, (shape, jnp.dtype(operation.result)))
    return results


@_fused.def_abstract_eval
def _abstract(*arrays: Any, words: str) -> list[Any]:
    return [jax.core.ShapedArray(*each) for each in _shapes(words, arrays)]


@partial(jax.jit, static_argnames="words")
def _by_xla(*arrays: Array, words: str) -> list[Array]:
    results = [jax.ShapeDtypeStruct(*each) for each in _shapes(words, arrays)]
    return list(jax.ffi.ffi_call(_TARGET, results)(*arrays, words=words))


def _by_formulas(*arrays: Array, words: str) -> list[Array]:
    operation, _, value, gradients = wanted = _wanted(words)
    own, upstream = wanted.split(arrays)
    if isinstance(operation, PairMeasure):
        found, pull = jax.vjp(partial(pairs, operation), *own)
        slopes = [pull(upstream)[index] for index in gradients]
        return [found, *slopes] if value else slopes
    results = [by_formulas(operation, *own)] if value or upstream is None else []
    if upstream is None:
        upstream = jnp.ones_like(results[0])
    slopes = [operation.pullback(jnp, by_formulas, index, upstream, *own) for index in gradients]
    return [*results, *slopes] if value else slopes


_with_kernels = mlir.lower_fun(_by_xla, multiple_results=True)
_without = mlir.lower_fun(_by_formulas, multiple_results=True)


def _on_cpu(context: Any, *arrays: Any, words: str) -> Any:
    """Lower for this process; an exported program runs where there are no kernels."""
    exported = getattr(context.module_context.lowering_parameters, "for_export", False)
    return (_without if exported else _with_kernels)(context, *arrays, words=words)


_fused.def_impl(_by_xla)
mlir.register_lowering(_fused, _on_cpu, platform="cpu")
mlir.register_lowering(_fused, _without)  # other platforms, for which a CPU can lower too


def _jvp(
    primals: Sequence[Array], tangents: Sequence[Any], *, words: str
) -> tuple[list[Array], list[Array]]:
    """Differentiate the formulas."""
    moving = [index for index, each in enumerate(tangents) if not isinstance(each, ad.Zero)]
    operation, upstream, *_ = _wanted(words)
    if isinstance(operation, PairMeasure) and not upstream:
        moved = [
            _moved_pairs.bind(*primals, tangents[index], words=words, index=index)
            for index in moving
        ]
        return _fused.bind(*primals, words=words), [reduce(ad.add_tangents, moved)]

    def formulas(*moved: Array) -> list[Array]:
        every = dict(enumerate(primals)) | dict(zip(moving, moved, strict=True))
        return _by_formulas(*every.values(), words=words)

    at, towards = ([each[index] for index in moving] for each in (primals, tangents))
    return _fused.bind(*primals, words=words), jax.jvp(formulas, at, towards)[1]


ad.primitive_jvps[_fused] = _jvp


def _batched(
    arrays: Sequence[Array], axes: Sequence[int | None], *, words: str
) -> tuple[list[Array], list[int]]:
    """Compute mapped rows in one call; a loss with a sum, or of elements, one entry a call."""
    operation = _wanted(words).operation
    mapped, front = _in_front(arrays, axes)
    if isinstance(operation, RowWise) and operation.reduction == "none":
        size = front[mapped[0]].shape[0]
        every = [
            array if at in mapped else jnp.broadcast_to(array, (size, *array.shape))
            for at, array in enumerate(front)
        ]
        results = _fused.bind(*every, words=words)
    else:
        results = _one_by_one(lambda *every: _fused.bind(*every, words=words), front, mapped)
    return results, [0 for _ in results]


def _in_front(arrays: Sequence[Array], axes: Sequence[int | None]) -> tuple[list[int], list[Array]]:
    """Return which arrays are mapped, and all with the mapped axis first."""
    mapped = [at for at, axis in enumerate(axes) if axis is not None]
    front = [
        array if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    return mapped, front


def _one_by_one(function: Callable[..., Any], front: list[Array], mapped: list[int]) -> Any:
    """Call a function for each entry of the mapped arrays, along their first axes."""

    def entry(some: list[Array]) -> Any:
        every = dict(enumerate(front)) | dict(zip(mapped, some, strict=True))
        return function(*every.values())

    return jax.lax.map(entry, [front[at] for at in mapped])


batching.primitive_batchers[_fused] = _batched


# ---- the tangent of all pairs of rows ------------------------------------------------------------
# By the formulas, a row at a time: its transpose is a gradient, which has a kernel.

_moved_pairs = jax.extend.core.Primitive("kldiv_moved_pairs")


def _moved_by_formulas(*arrays: Array, words: str, index: int) -> Array:
    *own, tangent = arrays

    def moved(array: Array) -> Array:
        every = dict(enumerate(own)) | {index: array}
        return pairs(_wanted(words).operation, *every.values())

    return jax.jvp(moved, (own[index],), (tangent,))[1]


@_moved_pairs.def_abstract_eval
def _moved_abstract(*arrays: Any, words: str, index: int) -> Any:
    del index
    return jax.core.ShapedArray(*_shapes(words, arrays[:2])[0])


_moved_pairs.def_impl(jax.jit(_moved_by_formulas, static_argnames=("words", "index")))
mlir.register_lowering(_moved_pairs, mlir.lower_fun(_moved_by_formulas, multiple_results=False))


def _moved_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], *, words: str, index: int
) -> tuple[Array, Array]:
    towards = [ad.instantiate_zeros(each) for each in tangents]
    function = partial(_moved_by_formulas, words=words, index=index)
    found: tuple[Array, Array] = jax.jvp(function, primals, towards)
    return found


def _transposed(
    cotangent: Any, a: Array, b: Array, tangent: Any, *, words: str, index: int
) -> list[Any]:
    if isinstance(cotangent, ad.Zero):
        return [None, None, ad.Zero(tangent.aval)]
    work = Work(_wanted(words).operation, jnp, (a, b), None, False, (index,), cotangent)  # noqa: FBT003
    return [None, None, *call(work)[1]]


def _moved_batched(
    arrays: Sequence[Array], axes: Sequence[int | None], *, words: str, index: int
) -> tuple[Array, int]:
    mapped, front = _in_front(arrays, axes)
    function = partial(_moved_pairs.bind, words=words, index=index)
    return _one_by_one(function, front, mapped), 0


ad.primitive_jvps[_moved_pairs] = _moved_jvp
ad.primitive_transposes[_moved_pairs] = _transposed
batching.primitive_batchers[_moved_pairs] = _moved_batched
