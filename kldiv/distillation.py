"""Distillation of language models: one loss as trainers know it; no mathematics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from kldiv import backends
from kldiv._arguments import as_number, broadcasts, fixed_temperature, setting
from kldiv._call import Call, SumOfCalls, check_reduction, differentiable
from kldiv._docstrings import options_of
from kldiv.backends.base import HALVES
from kldiv.divergences import KL
from kldiv.errors import OptionError
from kldiv.formulas import divergences as formulas
from kldiv.formulas.interpolation import Interpolated
from kldiv.formulas.reductions import cast
from kldiv.formulas.rows import RowLoss
from kldiv.label_losses import check_classes, kept_labels, prepare_labels
from kldiv.logit_losses import ReadOptions, kl_div_with_logits, prepare

if TYPE_CHECKING:
    from kldiv._types import Array, ArrayT, Reduction, SupportsArray
    from kldiv.formulas.divergences import Divergence

_NAMES = "student_logits", "teacher_logits"
_OF_DIVERGENCES = "temperature", "input_classes", "target_classes"
"""The options that the labels' cross entropy has not."""


class Options(ReadOptions, total=False):
    """The options of a loss of tokens: `kldiv.kl_div_with_logits` documents them."""

    row_weight: SupportsArray | None
    input_classes: Any
    target_classes: Any


@differentiable(2, RowLoss(divergence=formulas.JensenShannon()))
@options_of(kl_div_with_logits, without=["normalizer"])
def distillation_loss(
    student_logits: ArrayT,
    teacher_logits: ArrayT,
    labels: SupportsArray | None = None,
    *,
    beta: float | SupportsArray = 0.5,
    ignore_index: int = -100,
    reduction: Reduction = "batchmean",
    num_items_in_batch: float | SupportsArray | None = None,
    hard_weight: float = 0.0,
    scale_by_temperature: bool = False,
    **options: Unpack[Options],
) -> Call[ArrayT] | SumOfCalls[ArrayT]:
    r"""
    Loss of a student's logits beside a teacher's, forward KL, reverse KL or between, in nats.

    With P = softmax(teacher_logits/T), Q = softmax(student_logits/T) and M = βP + (1−β)Q, for each
    token βD(P‖M) + (1−β)D(Q‖M), and D(P‖Q) where β = 0, D(Q‖P) where β = 1: the generalised
    Jensen-Shannon divergence of on-policy distillation, as TRL's ``generalized_jsd_loss``, but
    exact. Differentiable in both.

    Parameters
    ----------
    student_logits : array
        Logits of the student; float16, bfloat16, float32 or float64. −∞ masks a class.
    teacher_logits : array
        Logits of the teacher, of the same shape.
    labels : array of int, optional
        A label for each token, as they stand: shift them before, as you shift the logits. Tokens of
        `ignore_index` are left out.
    beta : float or array, default 0.5
        Weight of the teacher in the mixture, from 0 (forward KL) to 1 (reverse KL); an array
        broadcasts over the tokens and is not differentiated in.
    temperature : float or array, default 1.0
        Divisor of both logits; an array broadcasts over the tokens, and is differentiable.
    ignore_index : int, default -100
        The label of tokens that do not count.
    reduction : {"batchmean", "mean", "sum", "none"}, default "batchmean"
        ``"batchmean"`` divides the sum by the number of tokens kept, without labels by the first
        dimension; ``"mean"`` by the number of tokens kept; ``"none"`` gives one number a token, 0
        where it is left out.
    num_items_in_batch : float or array, optional
        Divisor of the sum, whatever the reduction: with gradient accumulation the number of tokens
        of all micro-batches, as trainers pass it. Its value is not read.
    where : array of bool, optional
        Tokens to keep, besides those with labels.
    hard_weight : float, default 0.0
        Share h of the labels' cross entropy, at temperature 1: h·CE + (1 − h)·divergence.
    scale_by_temperature : bool, default False
        Whether to multiply the divergence by T², which keeps its gradients of one size.
    dtype : dtype or str, optional
        Dtype of the result; by default that of the logits, float32 for half-precision ones.
    input_classes : sequence or array of int, optional
        For vocabularies that are partly the same: the student's indices of the classes that both
        have. All other classes are one more, on either side.
    target_classes : sequence or array of int, optional
        The teacher's indices of the same classes, in the same order.

    Returns
    -------
    array
        Of the arguments' library and device. Where nothing is kept it is 0, with gradient 0.

    Raises
    ------
    DTypeError
        Labels are no integers.
    OptionError
        ``beta`` outside [0, 1], ``hard_weight`` outside [0, 1) or without labels.

    See Also
    --------
    kl_div_with_logits : Forward KL, and reverse KL with the arguments swapped.
    js_div_with_logits : The Jensen-Shannon divergence alone.
    kldiv.nn.DistillationLoss : The same with its options bound.

    Notes
    -----
    β as an array takes each of its rows by the formula that it belongs to, 0 and 1 too. Rows whose
    β would be an error as a number, neither 0 nor from 1e-30 to 1, are NaN.

    References
    ----------
    R. Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated
    Mistakes", ICLR 2024. G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural
    Network", arXiv:1503.02531 (2015).

    Examples
    --------
    Three tokens, of which the last does not count:

    >>> import numpy as np
    >>> import kldiv
    >>> student = np.array([[0.0, 1.0], [2.0, 0.0], [5.0, 0.0]])
    >>> teacher = np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 5.0]])
    >>> labels = np.array([1, 0, -100])
    >>> print(f"{kldiv.distillation_loss(student, teacher, labels):.6f}")
    0.018306
    >>> print(f"{kldiv.distillation_loss(student, teacher, labels, beta=0.0):.6f}")
    0.074869
    """
    hard_weight = checked_hard_weight(hard_weight, labels)
    own: dict[str, Any] = {**options}
    own |= of_tokens(
        student_logits,
        own.get("axis", -1),
        labels,
        ignore_index=ignore_index,
        reduction=reduction,
        num_items_in_batch=num_items_in_batch,
        where=own.get("where"),
    )
    own["dtype"] = _result(student_logits, teacher_logits, own.get("dtype"))
    of_labels = {name: value for name, value in own.items() if name not in _OF_DIVERGENCES}
    soft = 1.0 - hard_weight
    factors: tuple[float, ...] = (soft,)
    if scale_by_temperature:
        weight, temperature = own.get("row_weight"), own.get("temperature", 1.0)
        factors, own["row_weight"] = scaled(soft, weight, temperature)
    divergence, of_rows = divergence_of_beta(beta)
    call = prepare(divergence, student_logits, teacher_logits, names=_NAMES, beta=of_rows, **own)
    if not hard_weight:
        return call if factors == (1.0,) else SumOfCalls((factors, call, (0, 1)))
    named: dict[str, Any] = {"name": _NAMES[0], "ignore_index": ignore_index}
    hard = prepare_labels(student_logits, labels, **named, **of_labels)
    return SumOfCalls((factors, call, (0, 1)), ((hard_weight,), hard, (0,)))


def _result(student: Array, teacher: Array, dtype: Any) -> Any:
    """Return the dtype of the result: float32 where both have a half type."""
    caller = backends.resolve(_NAMES, student, teacher).caller
    half = all(caller.dtype_name(logits) in HALVES for logits in (student, teacher))
    return "float32" if dtype is None and half else dtype


def checked_hard_weight(hard_weight: float, labels: Array | None) -> float:
    """Return the labels' share; raise unless it is one, and there are labels."""
    hard_weight = setting("hard_weight", hard_weight)
    if not 0 <= hard_weight < 1:
        raise OptionError(
            f"hard_weight must be at least 0 and below 1; got {hard_weight!r}; without a teacher "
            "use cross_entropy_with_logits(student_logits, labels)"
        )
    if hard_weight and labels is None:
        raise OptionError("hard_weight is the share of the labels' cross entropy; pass labels")
    return hard_weight


def scaled(
    factor: float, weight: Array | None, temperature: float | Array
) -> tuple[tuple[float, ...], Array | None]:
    """Return the factors of all rows and the weights of each, with the square of T."""
    fixed = fixed_temperature(temperature)
    if fixed is not None:
        whole = factor * (fixed * fixed)
        # Of a number that float32 has not, one T after the other: their product with D may be one.
        return ((whole,) if 1e-30 < whole < 1e30 else (factor, fixed, fixed)), weight
    backend = backends.find(temperature)
    with backend.context(temperature):
        xp = backend.namespace(temperature)
        heat = in_single(backend, temperature)  # a half type would round the square
        # Rows of a temperature of 0 are NaN, which a weight of 0 would drop.
        square = xp.where(heat == 0, xp.ones_like(heat), heat * heat)
        return (factor,), square if weight is None else in_single(backend, weight) * square


def in_single(backend: backends.Backend, array: Array) -> Array:
    """Return an array in float32 where it has a half type."""
    half = backend.dtype_name(array) in HALVES
    return cast(backend.namespace(array), array, "float32") if half else array


def divergence_of_beta(beta: float | Array) -> tuple[Divergence, Array | None]:
    """Return the record of a β that is a number, or that of an array of them, and the array."""
    beta = as_number(beta)
    if not isinstance(beta, int | float):
        return Interpolated(), beta
    if beta in {0, 1}:
        return KL(reverse=bool(beta)), None
    if not formulas.LEAST <= beta < 1:
        raise OptionError(
            f"beta must be 0, 1 or between them, from {formulas.LEAST} on; got {beta!r}"
        )
    return formulas.JensenShannon(float(beta)), None


def of_tokens(
    logits: Array,
    axis: int,
    labels: Array | None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "batchmean",
    num_items_in_batch: float | Array | None = None,
    where: Array | None = None,
    name: str = _NAMES[0],
) -> dict[str, Any]:
    """Return a loss of tokens' reduction, mask and normalizer as those of a loss of rows."""
    check_reduction(reduction)
    if labels is not None:
        where = kept_labels(logits, labels, axis, ignore_index, where, name)
    if num_items_in_batch is not None:
        reduction = "sum"
    elif reduction in {"mean", "batchmean"}:
        by_row = reduction == "mean" or labels is not None
        reduction, num_items_in_batch = _divisor(logits, axis, where, by_row=by_row, name=name)
    return {"reduction": reduction, "where": where, "normalizer": num_items_in_batch}


def _divisor(
    logits: Array, axis: int, keep: Array | None, *, by_row: bool, name: str
) -> tuple[Reduction, float | Array | None]:
    """Return a reduction and a normalizer that divide by the number kept; of none the loss is 0."""
    check_classes(logits.shape, axis, name)
    caller = backends.resolve((name,), logits).caller
    rows = list(logits.shape)
    del rows[axis]
    if keep is None:
        return ("sum", 1) if 0 in rows else ("mean" if by_row else "batchmean", None)
    if not broadcasts(keep.shape, tuple(rows)):
        return "sum", 1  # the checks of the call refuse the mask
    xp = caller.namespace(logits)
    with caller.context(logits):
        kept = xp.broadcast_to(keep, tuple(rows))
        if not by_row and len(rows) > 1:
            kept = xp.any(kept, axis=tuple(range(1, len(rows))))
        return "sum", xp.count_nonzero(kept)
