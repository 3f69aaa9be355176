"""The fused kernels as an operator of torch's own, which ``torch.compile`` calls as it is.

A compiler cannot look into a kernel, so what it needs to know is said here: the results' shapes,
and what ``vmap`` does. An operation is spelled out in words and numbers, which is all that an
operator takes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import array_api_compat.torch as xp
import torch

from kldiv.backends import _torch_mapped
from kldiv.backends._kernels import warn_of
from kldiv.formulas.pointwise import KL, KLLogTarget, PointwiseLoss
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss
from kldiv.kernels import KernelError, Work, cpu, triton

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.formulas.operation import Operation

_SCHEMA: Final = (
    "(Tensor[] arrays, str kernel, str loss, str[] names, float beta, float? temperature, "
    "int[] gradients, Tensor? cotangent, bool value, bool keep, Tensor? kept) -> Tensor[]"
)

# Known when the adapter is loaded, as a compiler cannot look for a package.
_CPU: Final = cpu.problem() is None
_TRITON: Final = triton.installed()
_INTERPRETED: Final = triton.interpreted()


def compiled(
    operation: Operation,
    arrays: Sequence[Array],
    kernel: str,
    gradients: Sequence[int] = (),
    cotangent: Array | None = None,
    *,
    value: bool = True,
    keep: bool = False,
    kept: Array | None = None,
    small: bool | None = None,
) -> tuple[Array | None, list[Array]] | None:
    """Do inside ``torch.compile``, and ``vmap``, what `Backend.fused` does outside."""
    if any(index > 1 for index in gradients):
        return None
    small = _is_small(arrays[0]) if small is None else small
    chosen = _technology(arrays, kernel, small=small)
    words = _spelled(operation)
    if chosen is None or words is None:
        return None
    found = _fused([*arrays], chosen, *words, [*gradients], cotangent, value, keep, kept)
    return (found[0], found[1:]) if value else (None, found)


def mapped(
    operation: Operation,
    arrays: Sequence[Array],
    kernel: str,
    gradients: Sequence[int] = (),
    cotangent: Array | None = None,
    **more: Any,
) -> tuple[Array | None, list[Array]] | None:
    """Do inside ``vmap`` what `Backend.fused` does outside."""
    given = [*arrays] if cotangent is None else [*arrays, cotangent]
    every = [_torch_mapped.whole(array) for array in given]
    if any(array is None for array in every):
        return None
    small = all(_is_small(array) for array in every)
    return compiled(operation, arrays, kernel, gradients, cotangent, small=small, **more)


def _is_small(array: Array) -> bool:
    return bool(array.numel() < cpu.SMALL)


def _technology(arrays: Sequence[Array], kernel: str, *, small: bool) -> str | None:
    """Return whose kernels take arrays under the setting ``kernel``."""
    places = {array.device.type for array in arrays}
    if places == {"cuda"} or (places == {"cpu"} and kernel == triton.NAME and _INTERPRETED):
        return triton.NAME if _TRITON and kernel in {"auto", triton.NAME} else None
    if places != {"cpu"} or not _CPU or kernel not in {"auto", cpu.NAME}:
        return None
    return None if small else cpu.NAME


def _spelled(operation: Any) -> tuple[str, list[str], float, float | None] | None:
    """Return an operation in words and numbers, or None for one that has no kernel."""
    beta, temperature = 0.5, None
    if isinstance(operation, RowLoss):
        temperature = operation.temperature
        if isinstance(operation.divergence, JensenShannon):
            loss, beta = "Jensen-Shannon of logits", operation.divergence.beta
        elif isinstance(operation.divergence, KullbackLeibler):
            loss = "Kullback-Leibler of logits"
        else:
            return None
    elif isinstance(operation, PointwiseLoss) and isinstance(operation.function, KL):
        loss = "of probabilities"
    elif isinstance(operation, PointwiseLoss) and isinstance(operation.function, KLLogTarget):
        if operation.function.order:
            return None
        loss = "of logarithms"
    else:
        return None
    names = [operation.reduction, operation.compute, operation.total, operation.result]
    return loss, names, beta, temperature


def _operation(loss: str, names: Sequence[Any], beta: float, temperature: float | None) -> Any:
    """Return the operation that was spelled."""
    reduction, compute, total, result = names
    if loss in {"Kullback-Leibler of logits", "Jensen-Shannon of logits"}:
        kind = JensenShannon(beta) if loss == "Jensen-Shannon of logits" else KullbackLeibler()
        return RowLoss(reduction, compute, total, result, kind, temperature)
    function = KL() if loss == "of probabilities" else KLLogTarget()
    return PointwiseLoss(reduction, compute, total, result, function)


@torch.library.custom_op("kldiv::fused", mutates_args=(), schema=_SCHEMA)
def _fused(  # noqa: PLR0913, PLR0917 - an operator's arguments have their order
    arrays: list[Array],
    kernel: str,
    loss: str,
    names: list[str],
    beta: float,
    temperature: float | None,
    gradients: list[int],
    cotangent: Array | None,
    value: bool,  # noqa: FBT001 - an operator's arguments have their order
    keep: bool,  # noqa: FBT001 - likewise
    kept: Array | None,
) -> list[Array]:
    """Compute value and gradients by a kernel, or by the formulas where it fails."""
    operation = _operation(loss, names, beta, temperature)
    kernels = triton if kernel == triton.NAME else cpu
    threads = cpu.thread_number(torch.get_num_threads()) if kernels is cpu else 1
    arrays = [array.resolve_neg() for array in arrays]
    if cotangent is not None:
        cotangent = cotangent.resolve_neg()
    wanted = tuple(gradients)
    work = Work(operation, xp, arrays, threads, value, wanted, cotangent, keep=keep, kept=kept)
    try:
        if kernels.problem():
            return _by_formulas(work, kernel)
        found, of_arrays = kernels.compute(work)
    except KernelError as error:
        warn_of(kernels, error)
        return _by_formulas(work, kernel)
    return [found, *of_arrays] if value else of_arrays


def _by_formulas(work: Work, kernel: str) -> list[Array]:
    from kldiv.backends._torch import BACKEND  # noqa: PLC0415 - which imports this module

    def run(operation: Operation, *arrays: Array) -> Array:
        return BACKEND.compute(operation, arrays, "pure")

    operation, arrays = work.operation, work.arrays
    results = [run(operation, *arrays)] if work.value else []
    pullback = partial(operation.pullback, xp, run)
    for index in work.gradients:
        gradient = pullback(index, work.cotangent, *arrays)
        results.append(torch.empty_like(arrays[index]).copy_(gradient))
    # Once a kernel has failed the gradients come from the formulas too, which need nothing kept.
    return [*results, *(each.zero_() for each in _kept(operation, arrays[0], kernel, work.keep))]


def _kept(operation: Operation, first: Array, kernel: str, keep: bool) -> list[Array]:  # noqa: FBT001
    """Return a tensor, or none, like what a forward kernel keeps for its gradients."""
    if not keep or kernel != triton.NAME or not isinstance(operation, RowLoss):
        return []
    rows = first.new_empty((*first.shape[:-1], triton.KEPT), dtype=torch.float64)
    return [rows.reshape(-1, triton.KEPT)]


@_fused.register_fake
def _shapes(  # noqa: PLR0913, PLR0917 - the operator's
    arrays: list[Array],
    kernel: str,
    loss: str,
    names: list[str],
    beta: float,
    temperature: float | None,
    gradients: list[int],
    cotangent: Array | None,  # noqa: ARG001 - an operator's arguments
    value: bool,  # noqa: FBT001 - see above
    keep: bool,  # noqa: FBT001
    kept: Array | None,  # noqa: ARG001
) -> list[Array]:
    operation, first = _operation(loss, names, beta, temperature), arrays[0]
    dtype = getattr(torch, operation.result)
    results = []
    if value and operation.reduction != "none":
        results = [first.new_empty((), dtype=dtype)]
    elif value and isinstance(operation, RowLoss):
        results = [first.new_empty(first.shape[:-1], dtype=dtype)]
    elif value:
        results = [torch.empty_like(first, dtype=dtype)]
    gradient = [torch.empty_like(arrays[index]) for index in gradients]
    return [*results, *gradient, *_kept(operation, first, kernel, keep)]


@_fused.register_vmap
def _mapped(
    info: Any,
    in_dims: tuple[Any, ...],
    arrays: list[Array],
    kernel: str,
    *words: Any,
) -> tuple[list[Array], list[int]]:
    """Compute all entries in one call, or one after another."""
    *spelled, gradients, cotangent, value, keep, kept = words
    operation, size = _operation(*spelled), info.batch_size
    where, of_cotangent, of_kept = in_dims[0], in_dims[7], in_dims[10]
    if kernel == cpu.NAME and _torch_mapped.is_one_call(operation, arrays, where):

        def run(changed: Any, every: Sequence[Array], upstream: Array | None) -> list[Array]:
            again = _spelled(changed)
            assert again is not None  # noqa: S101 - only the reduction and a dtype differ
            return _fused([*every], kernel, *again, gradients, upstream, value, keep, kept)

        upstream = cotangent, of_cotangent
        results = _torch_mapped.together(run, operation, size, arrays, where, upstream, value=value)
        return results, [0 for _ in results]
    parts = []
    for entry in range(size):
        own = [_entry(array, axis, entry) for array, axis in zip(arrays, where, strict=True)]
        of_entry, constants = _entry(cotangent, of_cotangent, entry), _entry(kept, of_kept, entry)
        parts.append(_fused(own, kernel, *spelled, gradients, of_entry, value, keep, constants))
    results = [torch.stack(each) for each in zip(*parts, strict=True)]
    return results, [0 for _ in results]


def _entry(array: Array | None, axis: int | None, entry: int) -> Array | None:
    return array if array is None or axis is None else array.select(axis, entry)
