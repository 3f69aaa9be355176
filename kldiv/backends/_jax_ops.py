"""The CPU kernels as a function that programs compiled by XLA call."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp

from kldiv.backends import _numpy
from kldiv.formulas.rows import RowLoss
from kldiv.kernels import Work, cpu, spelling

if TYPE_CHECKING:
    from kldiv._types import Array

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


@cache
def _register() -> Any:
    """Make the kernels known to XLA, once; what is returned must live as long as they do."""
    from kldiv.kernels.cpu import xla  # noqa: PLC0415 - for calls that are not small

    function = xla.handler(_run)
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(function), platform="cpu")
    return function


def call(work: Work) -> tuple[Array | None, list[Array]]:
    """Return what `kldiv.kernels.cpu.compute` does, of arrays that may be traced."""
    cpu.prepare(work)
    _register()
    operation, arrays = work.operation, list(work.arrays)
    results = [jax.ShapeDtypeStruct(arrays[i].shape, arrays[i].dtype) for i in work.gradients]
    if work.value:
        reduced = operation.reduction != "none"
        whole = arrays[0].shape[:-1] if isinstance(operation, RowLoss) else arrays[0].shape
        shape = () if reduced else whole
        results.insert(0, jax.ShapeDtypeStruct(shape, getattr(jnp, operation.result)))
    if work.cotangent is not None:
        arrays.append(work.cotangent)
    # More rows are one call, more sums are one call each.
    by_rows = isinstance(operation, RowLoss) and operation.reduction == "none"
    method = "broadcast_all" if by_rows else "sequential"
    words = [
        spelling.spelled(operation),
        str(int(work.cotangent is not None)),
        str(int(work.value)),
        *map(str, work.gradients),
    ]
    found = jax.ffi.ffi_call(_TARGET, results, vmap_method=method)(*arrays, words="\n".join(words))
    return (found[0], list(found[1:])) if work.value else (None, list(found))


def _run(words: str, arrays: list[Any], results: list[Any]) -> None:
    """Compute inside a compiled program."""
    text, cotangent, value, *gradients = words.split("\n")
    upstream = arrays.pop() if int(cotangent) else None
    into = results[1:] if int(value) else results
    work = Work(
        spelling.read(text),
        _numpy.xp,
        arrays,
        cpu.thread_number(None),
        bool(int(value)),
        tuple(map(int, gradients)),
        upstream,
        into,
    )
    found, _ = cpu.compute(work)
    if work.value:
        results[0][...] = found
