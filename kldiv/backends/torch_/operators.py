"""The fused kernels as an operator of torch's own, which ``torch.compile`` calls as it is.

A compiler cannot look into a kernel, so the results' shapes and the rule for ``vmap`` are given
here. An operation is spelled as words and numbers, since an operator takes nothing else but
tensors.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from kldiv.backends.choice import warn_of
from kldiv.backends.torch_ import namespace as xp
from kldiv.backends.torch_ import vmap
from kldiv.backends.torch_.transforms import evaluate
from kldiv.formulas.reductions import RowWise
from kldiv.formulas.rows import RowLoss
from kldiv.formulas.state import as_array
from kldiv.kernels import spelling
from kldiv.kernels.cpu import CPU
from kldiv.kernels.technology import KernelError
from kldiv.kernels.triton import TRITON
from kldiv.kernels.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation
    from kldiv.kernels.technology import Technology
    from kldiv.kernels.work import Found

_SCHEMA: Final = (
    "(Tensor[] arrays, str[] words, float[] numbers, Tensor? cotangent, Tensor? kept, "
    "Tensor? temperature) -> Tensor[]"
)
_TECHNOLOGIES: Final = {CPU.name: CPU, TRITON.name: TRITON}


class Asked(NamedTuple):
    """The part of work that is no tensor, spelled for an operator."""

    kernel: str
    operation: Any
    gradients: tuple[int, ...]
    value: bool
    keep: bool


def call(technology: Technology, work: Work) -> Found:
    """Compute as `Technology.compute` does, inside ``torch.compile`` or ``vmap``."""
    operation, temperature = work.operation, None
    fixed = getattr(operation, "temperature", None)
    if not (fixed is None or fixed == 1.0):  # no set: hashing a number makes it a constant
        # A tensor, so that a schedule of temperatures is one program: numbers are constants of it.
        temperature = as_array(torch.zeros((), dtype=torch.float64), fixed)
        operation = replace(operation, temperature=1.0)
    asked = Asked(technology.name, operation, work.gradients, work.value, work.keep)
    words, numbers = spelling.spelled(asked)
    found = _fused([*work.arrays], words, numbers, work.cotangent, work.kept, temperature)
    return (found[0], found[1:]) if work.value else (None, found)


@torch.library.custom_op("kldiv::fused", mutates_args=(), schema=_SCHEMA)
def _fused(
    arrays: list[Array],
    words: list[str],
    numbers: list[float],
    cotangent: Array | None,
    kept: Array | None,
    temperature: Array | None,
) -> list[Array]:
    """Compute value and gradients by a kernel, or by the formulas where it fails."""
    kernel, operation, gradients, value, keep = spelling.read(words, numbers)
    technology = _TECHNOLOGIES[kernel]
    if temperature is not None:
        operation = replace(operation, temperature=temperature.item())
    work = Work(
        operation,
        xp,
        [array.resolve_neg() for array in arrays],
        torch.get_num_threads(),
        value,
        gradients,
        None if cotangent is None else cotangent.resolve_neg(),
        keep=keep,
        kept=kept,
    )
    try:
        if technology.problem():
            return _by_formulas(work, technology)
        found, of_arrays = technology.compute(work)
    except KernelError as error:
        warn_of(technology, error)
        return _by_formulas(work, technology)
    return [found, *of_arrays] if value else of_arrays


def _by_formulas(work: Work, technology: Technology) -> list[Array]:
    def run(operation: Operation, *arrays: Array) -> Array:
        return evaluate(operation, arrays)

    operation, arrays = work.operation, work.arrays
    results = [run(operation, *arrays)] if work.value else []
    pullback = partial(operation.pullback, xp, run)
    for index in work.gradients:
        gradient = pullback(index, work.cotangent, *arrays)
        results.append(torch.empty_like(arrays[index]).copy_(gradient))
    # Once a kernel has failed the gradients come from the formulas too, which need nothing kept.
    kept = _kept(operation, arrays[0], technology, work.keep)
    return [*results, *(each.zero_() for each in kept)]


def _kept(operation: Operation, first: Array, technology: Technology, keep: bool) -> list[Array]:  # noqa: FBT001
    """Return an uninitialised tensor for the constants that a forward kernel keeps, or none."""
    if not keep or not technology.kept or not isinstance(operation, RowLoss):
        return []
    rows = first.new_empty((*first.shape[:-1], technology.kept), dtype=torch.float64)
    return [rows.reshape(-1, technology.kept)]


@_fused.register_fake
def _shapes(
    arrays: list[Array], words: list[str], numbers: list[float], *_: Array | None
) -> list[Array]:
    kernel, operation, gradients, value, keep = spelling.read(words, numbers)
    first, dtype = arrays[0], getattr(torch, operation.result)
    results = []
    if value and operation.reduction != "none":
        results = [first.new_empty((), dtype=dtype)]
    elif value and isinstance(operation, RowWise):
        results = [first.new_empty(operation.shape(arrays), dtype=dtype)]
    elif value:
        results = [torch.empty_like(first, dtype=dtype)]
    gradient = [torch.empty_like(arrays[index]) for index in gradients]
    return [*results, *gradient, *_kept(operation, first, _TECHNOLOGIES[kernel], keep)]


@_fused.register_vmap
def _mapped(
    info: Any,
    in_dims: tuple[Any, ...],
    arrays: list[Array],
    words: list[str],
    numbers: list[float],
    *tensors: Any,
) -> tuple[list[Array], list[int]]:
    """Compute all entries in one call, or one after another."""
    asked, size, where = spelling.read(words, numbers), info.batch_size, in_dims[0]
    cotangent, kept, temperature = tensors
    if asked.kernel == CPU.name and vmap.is_one_call(asked.operation, arrays, where):

        def run(changed: Any, every: Sequence[Array], upstream: Array | None) -> list[Array]:
            again = spelling.spelled(asked._replace(operation=changed))
            return _fused([*every], *again, upstream, kept, temperature)

        upstream = cotangent, in_dims[3]
        value, operation = asked.value, asked.operation
        results = vmap.together(run, operation, size, arrays, where, upstream, value=value)
        return results, [0 for _ in results]
    parts = []
    for index in range(size):
        own = [vmap.entry(array, axis, index) for array, axis in zip(arrays, where, strict=True)]
        of_entry = (vmap.entry(*each, index) for each in zip(tensors, in_dims[3:], strict=True))
        parts.append(_fused(own, words, numbers, *of_entry))
    results = [torch.stack(each) for each in zip(*parts, strict=True)]
    return results, [0 for _ in results]
