"""The losses of linear layers: document, check, resolve, run; no mathematics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from kldiv._call import (
    Call,
    LinearCall,
    Reducing,
    check_reduction,
    check_row_arrays,
    differentiable,
    dtypes,
    fixed_temperature,
    resolve_arrays,
    with_options_of,
)
from kldiv.backends.base import HALVES
from kldiv.distillation import (
    check_hard_weight,
    distillation_loss,
    divergence_of_beta,
    divisor_of_rows,
    scaled,
)
from kldiv.errors import OptionError, ShapeError
from kldiv.formulas.divergences import LEAST, Divergence, JensenShannon, KullbackLeibler
from kldiv.formulas.interpolation import Interpolated
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.linear import Layer, LinearLoss, Term
from kldiv.formulas.rows import RowLoss
from kldiv.formulas.sparse import BUCKET, TopKLoss
from kldiv.label_losses import check_range, kept_labels
from kldiv.sparse_losses import (
    SparseTeacher,
    check_indices,
    record_of,
    teacher_of,
    topk_kl_div_with_logits,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array, ArrayT, Reduction, SupportsArray
    from kldiv.backends.base import Route
    from kldiv.formulas.reductions import RowWise

    Shape = tuple[int, ...]
    Parts = tuple[float, Callable[[str], RowWise], tuple[str, ...]]
    """Of a term: its factor, its loss given the dtype of the logits, the names of its arrays."""

_STUDENT = "input", "weight", "bias"
_TEACHER = "target_input", "target_weight", "target_bias"


class Head(NamedTuple):
    """
    The hidden states and the last layer of a model: what its logits are made of.

    A logit is f(logit_scale·(hidden·weightᵀ + bias)), with f(x) = softcap·tanh(x/softcap), or x
    where there is no cap.

    Parameters
    ----------
    hidden : array
        Hidden states, (..., H).
    weight : array
        The layer, (V, H): V classes.
    bias : array, optional
        Its bias, (V,). −∞ masks a class, under a cap too.
    softcap : float, optional
        Where logits are bounded, as in Gemma 2.
    logit_scale : float, default 1.0
        Factor of the logits, as in Cohere's models; of Granite's ``logits_scaling`` pass 1 over it.

    See Also
    --------
    linear_distillation_loss : Takes one for the student, and one for the teacher.

    Notes
    -----
    The cap and the scale are settings, not arrays: under ``jax.jit`` make the record inside.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> hidden, weight = np.array([[1.0, 2.0]]), np.eye(2)
    >>> student = kldiv.Head(hidden, weight)
    >>> teacher = kldiv.Head(hidden, 2 * weight, softcap=30.0)
    >>> print(f"{kldiv.linear_kl_div(student, teacher):.6f}")
    0.064976
    """

    hidden: Array
    weight: Array
    bias: Array | None = None
    softcap: float | None = None
    logit_scale: float = 1.0


@differentiable(6, LinearLoss())
def linear_kl_div(
    input: ArrayT | Head,
    weight: ArrayT | Head | None = None,
    target_input: ArrayT | None = None,
    target_weight: ArrayT | None = None,
    *,
    bias: SupportsArray | None = None,
    target_bias: SupportsArray | None = None,
    softcap: float | None = None,
    target_softcap: float | None = None,
    logit_scale: float = 1.0,
    target_logit_scale: float = 1.0,
    temperature: float | SupportsArray = 1.0,
    reduction: Reduction = "mean",
    where: SupportsArray | None = None,
    row_weight: SupportsArray | None = None,
    normalizer: float | SupportsArray | None = None,
    dtype: Any = None,
) -> Call[ArrayT]:
    r"""
    Kullback-Leibler divergence of two linear layers' softmax, without their logits in memory.

    With the logits s = input·weightᵀ + bias and t = target_input·target_weightᵀ + target_bias this
    is ``kl_div_with_logits(s, t)``: D(P‖Q) in nats, P = softmax(t/T), Q = softmax(s/T). A chunk of
    rows at a time has logits, so that the memory taken does not grow with the number of rows.
    Differentiable in all arrays; gradients that nobody needs are not computed.

    Parameters
    ----------
    input : array or Head
        Hidden states of the student, of shape (..., H); float16, bfloat16, float32 or float64. Or
        a record of these, the layer and its settings, followed by that of the teacher.
    weight : array
        The student's layer, of shape (V, H): V classes, as ``torch.nn.Linear`` and embeddings have
        it.
    target_input : array
        Hidden states of the teacher, of shape (..., H'), with the same axes of rows.
    target_weight : array
        The teacher's layer, of shape (V, H').
    bias : array, optional
        The student's bias, of shape (V,). −∞ masks a class.
    target_bias : array, optional
        The teacher's bias, of shape (V,).
    softcap : float, optional
        Bound of the student's logits: these are c·tanh(logit/c).
    target_softcap : float, optional
        Bound of the teacher's logits.
    logit_scale : float, default 1.0
        Factor of the student's logits, before the cap and the temperature.
    target_logit_scale : float, default 1.0
        Factor of the teacher's logits.
    temperature : float or array, default 1.0
        Divisor of both logits; an array broadcasts over the rows, and is differentiable.
    reduction : {"mean", "batchmean", "sum", "none"}, default "mean"
        As in `kl_div_with_logits`.
    where : array of bool, optional
        Rows to keep: broadcasts to the shape of the result of ``"none"``. A dropped row is 0,
        gets zero gradient and leaks no NaN; means divide by the number kept.
    row_weight : array of float, optional
        A factor for each row, as in `kl_div_with_logits`.
    normalizer : float or array, optional
        Divisor of the sum, as in `kl_div_with_logits`.
    dtype : dtype or str, optional
        Dtype of the result; by default the widest of the arguments'. With ``"float64"`` the
        products are in float64 too.

    Returns
    -------
    array
        Of the arguments' library and device.

    Raises
    ------
    ShapeError
        Two of the arrays do not fit each other; the message names them and the remedy.
    DTypeError
        An argument is not real floating, or ``where`` is not bool.
    OptionError
        No such ``reduction``, or a temperature that is not positive and finite.
    LibraryError
        Not arrays, or arrays of two libraries.

    See Also
    --------
    kl_div_with_logits : From the logits themselves.
    linear_js_div : The Jensen-Shannon divergence likewise.
    linear_distillation_loss : KL either way or between, with labels.
    pad_classes : For vocabularies of different size.

    Notes
    -----
    The divergence is exact for the logits that are computed, and these are float32, or float64
    where an argument or ``dtype`` is. A product of H terms rounds each logit by about
    δ ≈ 2⁻²⁴·√H times the size of its products, and a divergence of the order of δ² cannot be told
    from 0.
    Half-precision arrays are multiplied exactly and summed in float32. Gradients of weights and
    biases are summed over the chunks in the dtype of the logits and rounded once.

    Reduced losses compute their gradients along with the value. Second derivatives, and PyTorch's
    ``torch.func``, form the logits of all rows.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> random = np.random.default_rng(0)
    >>> hidden, weight = random.normal(size=(6, 3)), random.normal(size=(5, 3))
    >>> wide, target_weight = random.normal(size=(6, 4)), random.normal(size=(5, 4))
    >>> loss = kldiv.linear_kl_div(hidden, weight, wide, target_weight)
    >>> same = kldiv.kl_div_with_logits(hidden @ weight.T, wide @ target_weight.T)
    >>> print(abs(loss - same) < 1e-14)
    True
    """
    return _of_two(
        KullbackLeibler(),
        _given(input, weight, target_input, target_weight),
        bias=bias,
        target_bias=target_bias,
        softcap=softcap,
        target_softcap=target_softcap,
        logit_scale=logit_scale,
        target_logit_scale=target_logit_scale,
        temperature=temperature,
        reduction=reduction,
        where=where,
        row_weight=row_weight,
        normalizer=normalizer,
        dtype=dtype,
    )


class Options(TypedDict, total=False):
    """The options of every loss of two layers: `linear_kl_div` documents them."""

    bias: SupportsArray | None
    target_bias: SupportsArray | None
    softcap: float | None
    target_softcap: float | None
    logit_scale: float
    target_logit_scale: float
    temperature: float | SupportsArray
    reduction: Reduction
    where: SupportsArray | None
    row_weight: SupportsArray | None
    normalizer: float | SupportsArray | None
    dtype: Any


_JS = LinearLoss(terms=(Term(1.0, RowLoss(divergence=JensenShannon()), (0, 1)),))


@with_options_of(linear_kl_div, _JS, arrays=6)
def linear_js_div(
    input: ArrayT | Head,
    weight: ArrayT | Head | None = None,
    target_input: ArrayT | None = None,
    target_weight: ArrayT | None = None,
    *,
    beta: float = 0.5,
    **options: Unpack[Options],
) -> Call[ArrayT]:
    r"""
    Jensen-Shannon divergence of two linear layers' softmax, without their logits in memory.

    As `linear_kl_div`, with M = βP + (1−β)Q and the value βD(P‖M) + (1−β)D(Q‖M) in nats.
    Differentiable in all arrays.

    Parameters
    ----------
    input : array or Head
        Hidden states of the student, of shape (..., H); float16, bfloat16, float32 or float64. Or
        a record, followed by that of the teacher.
    weight : array
        The student's layer, of shape (V, H).
    target_input : array
        Hidden states of the teacher, of shape (..., H'), with the same axes of rows.
    target_weight : array
        The teacher's layer, of shape (V, H').
    beta : float, default 0.5
        Weight of P in the mixture, between 0 and 1.
    **options
        Those of `linear_kl_div`.

    Returns
    -------
    array
        Of the arguments' library and device.

    Raises
    ------
    OptionError
        ``beta`` outside (0, 1).

    See Also
    --------
    js_div_with_logits : From the logits themselves.
    linear_kl_div : The limits, with the layers swapped for D(Q‖P).

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> random = np.random.default_rng(0)
    >>> hidden, weight = random.normal(size=(6, 3)), random.normal(size=(5, 3))
    >>> wide, target_weight = random.normal(size=(6, 4)), random.normal(size=(5, 4))
    >>> loss = kldiv.linear_js_div(hidden, weight, wide, target_weight, beta=0.1)
    >>> same = kldiv.js_div_with_logits(hidden @ weight.T, wide @ target_weight.T, beta=0.1)
    >>> print(abs(loss - same) < 1e-14)
    True
    """
    if not LEAST <= beta < 1:
        raise OptionError(
            f"beta must lie between 0 and 1, and be at least {LEAST}; got {beta!r}; its limits are "
            "linear_kl_div, D(P‖Q), and the same with student and teacher swapped, D(Q‖P)"
        )
    return _of_two(
        JensenShannon(float(beta)), _given(input, weight, target_input, target_weight), **options
    )


@with_options_of(
    distillation_loss,
    _JS,
    without=(
        *("axis", "group", "axis_name", "temperature", "dtype"),
        *("input_classes", "target_classes"),
    ),
    arrays=6,
)
def linear_distillation_loss(
    input: ArrayT | Head,
    weight: ArrayT | Head | SparseTeacher | None = None,
    target_input: ArrayT | None = None,
    target_weight: ArrayT | None = None,
    labels: SupportsArray | None = None,
    *,
    target_log_probs: SupportsArray | SparseTeacher | None = None,
    tail: str = BUCKET,
    bias: SupportsArray | None = None,
    target_bias: SupportsArray | None = None,
    softcap: float | None = None,
    target_softcap: float | None = None,
    logit_scale: float = 1.0,
    target_logit_scale: float = 1.0,
    temperature: float | SupportsArray = 1.0,
    normalizer: float | SupportsArray | None = None,
    dtype: Any = None,
    **options: Any,
) -> Call[ArrayT]:
    r"""
    Loss of a student's hidden states beside a teacher, without the logits in memory.

    As `distillation_loss` of the logits that `linear_kl_div` forms, a chunk of rows at a time, the
    labels' cross entropy of the same chunk. Differentiable in all floating arrays.

    Parameters
    ----------
    input : array or Head
        Hidden states of the student, of shape (..., H); float16, bfloat16, float32 or float64. Or
        a record of these, the layer and its settings; then the teacher, and the labels, follow.
    weight : array, Head or SparseTeacher
        The student's layer, of shape (V, H). After a record: the teacher.
    target_input : array, optional
        Hidden states of the teacher, of shape (..., H'), with the same axes of rows.
    target_weight : array, optional
        The teacher's layer, of shape (V, H').
    labels : array of int, optional
        A label for each row, as in `distillation_loss`.
    target_log_probs : array or SparseTeacher, optional
        A teacher without hidden states: log-probabilities or logits, of shape (..., V), or the
        likeliest classes alone, as in `topk_kl_div_with_logits`.
    tail : {"bucket", "renormalize"}, default "bucket"
        What becomes of the other classes of a sparse teacher.
    bias : array, optional
        The student's bias, of shape (V,). −∞ masks a class.
    target_bias : array, optional
        The teacher's bias, of shape (V,).
    softcap : float, optional
        Bound of the student's logits: these are c·tanh(logit/c).
    target_softcap : float, optional
        Bound of the teacher's logits.
    logit_scale : float, default 1.0
        Factor of the student's logits, before the cap and the temperature.
    target_logit_scale : float, default 1.0
        Factor of the teacher's logits.
    temperature : float or array, default 1.0
        Divisor of both logits; an array broadcasts over the rows, and is differentiable.
    normalizer : float or array, optional
        The same as ``num_items_in_batch``, by the name that other losses have for it.
    dtype : dtype or str, optional
        Dtype of the result; by default the widest of the arguments', float32 for half types.
    **options
        Those of `distillation_loss`.

    Returns
    -------
    array
        Of the arguments' library and device. Where nothing is kept it is 0, with gradient 0.

    Raises
    ------
    OptionError
        No teacher, or two of them; a setting both in a record and as an argument.

    See Also
    --------
    distillation_loss : From the logits themselves.
    Head : The record of a layer.
    linear_topk_kl_div : Of a sparse teacher, with any divergence.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> random = np.random.default_rng(0)
    >>> student = kldiv.Head(random.normal(size=(6, 3)), random.normal(size=(5, 3)))
    >>> teacher = kldiv.Head(random.normal(size=(6, 4)), random.normal(size=(5, 4)), softcap=30.0)
    >>> labels = np.array([1, 0, 4, 2, -100, -100])
    >>> loss = kldiv.linear_distillation_loss(student, teacher, labels, hard_weight=0.1)
    >>> s, t = student.hidden @ student.weight.T, teacher.hidden @ teacher.weight.T
    >>> same = kldiv.distillation_loss(s, 30 * np.tanh(t / 30), labels, hard_weight=0.1)
    >>> print(abs(loss - same) < 1e-14)
    True
    """
    if isinstance(input, Head) and labels is None and not isinstance(target_input, Head):
        labels, target_input = target_input, None
    student, teacher = _given(input, weight, target_input, target_weight, target_log_probs)
    heads = [_completed(student, _STUDENT, bias, softcap, logit_scale)]
    own = target_bias, target_softcap, target_logit_scale
    if isinstance(teacher, Head):
        heads.append(_completed(teacher, _TEACHER, *own))
        teacher = None
    elif own != (None, None, 1.0):
        raise OptionError(
            "target_bias, target_softcap and target_logit_scale are of a teacher's hidden states; "
            "log-probabilities have none"
        )
    return _distillation(
        heads,
        teacher,
        labels,
        tail=tail,
        temperature=temperature,
        normalizer=normalizer,
        dtype=dtype,
        **options,
    )


def _distillation(
    heads: list[Head],
    teacher: Array | SparseTeacher | None,
    labels: Array | None,
    *,
    tail: str,
    temperature: float | Array,
    normalizer: float | Array | None,
    dtype: Any,
    beta: float | Array = 0.5,
    ignore_index: int = -100,
    reduction: Reduction = "batchmean",
    num_items_in_batch: float | Array | None = None,
    where: Array | None = None,
    row_weight: Array | None = None,
    hard_weight: float = 0.0,
    scale_by_temperature: bool = False,
) -> Call[Any]:
    """Check the arguments of a distillation loss of layers and resolve its settings."""
    check_reduction(reduction)
    check_hard_weight(hard_weight, labels)
    if normalizer is not None:
        if num_items_in_batch is not None:
            raise OptionError("normalizer and num_items_in_batch are the same; pass one of them")
        num_items_in_batch = normalizer
    hidden = heads[0].hidden
    if labels is not None:
        where = kept_labels(hidden, labels, -1, ignore_index, where, "input")
    if num_items_in_batch is not None:
        reduction = "sum"
    elif reduction in {"mean", "batchmean"}:
        by_row = reduction == "mean" or labels is not None
        reduction, num_items_in_batch = divisor_of_rows(
            hidden, -1, where, by_row=by_row, name="input"
        )
    soft = 1.0 - hard_weight
    if scale_by_temperature:
        if hard_weight and fixed_temperature(temperature) is None:
            raise OptionError(
                "scale_by_temperature with hard_weight takes a temperature that is a number; pass "
                "hard_weight=0 and add the labels' cross entropy"
            )
        soft, row_weight = scaled(soft, row_weight, temperature)
    term, moved, others = _soft_term(soft, teacher, beta, temperature, tail)
    terms = [term]
    if hard_weight:
        others["labels"] = labels
        terms.append(_label_term(hard_weight, 1.0, entropic=False, names=("input", "labels")))
    return _prepare(
        heads,
        terms,
        moved,
        others,
        arguments=(
            *("input", "weight", "target_input" if len(heads) > 1 else "target_log_probs"),
            *("target_weight", "bias", "target_bias"),
        ),
        reduction=reduction,
        where=where,
        row_weight=row_weight,
        normalizer=num_items_in_batch,
        dtype=dtype,
        single=True,
    )


@with_options_of(topk_kl_div_with_logits, without=("axis", "group", "axis_name"), arrays=5)
def linear_topk_kl_div(
    input: ArrayT | Head,
    weight: ArrayT | SparseTeacher | None = None,
    target_log_probs: ArrayT | SparseTeacher | None = None,
    target_indices: SupportsArray | None = None,
    *,
    bias: SupportsArray | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    **options: Any,
) -> Call[ArrayT]:
    r"""
    Divergence of a linear layer's softmax from a teacher's likeliest classes, in nats.

    As `topk_kl_div_with_logits` of the logits input·weightᵀ + bias, which are formed a chunk of
    rows at a time. Differentiable in the hidden states, the layer, the log-probabilities and the
    rest.

    Parameters
    ----------
    input : array or Head
        Hidden states of the student, of shape (..., H); float16, bfloat16, float32 or float64. Or
        a record of these, the layer and its settings, followed by the teacher.
    weight : array
        The student's layer, of shape (V, H).
    target_log_probs : array or SparseTeacher
        Log-probabilities of K classes of each row, of shape (..., K); −∞ is padding. Or a record of
        these, the indices, the rest and their temperature.
    target_indices : array of int
        The class of each, of the same shape, none twice in a row.
    bias : array, optional
        The student's bias, of shape (V,). −∞ masks a class.
    softcap : float, optional
        Bound of the student's logits: these are c·tanh(logit/c).
    logit_scale : float, default 1.0
        Factor of the student's logits, before the cap and the temperature.
    **options
        Those of `topk_kl_div_with_logits`.

    Returns
    -------
    array
        Of the arguments' library and device.

    Raises
    ------
    OptionError
        A setting both in a record and as an argument, or no teacher.

    See Also
    --------
    topk_kl_div_with_logits : From the logits themselves.
    linear_distillation_loss : With labels.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> random = np.random.default_rng(0)
    >>> hidden, weight = random.normal(size=(6, 3)), random.normal(size=(5, 3))
    >>> teacher = kldiv.topk_log_probs(random.normal(size=(6, 5)), 2)
    >>> loss = kldiv.linear_topk_kl_div(hidden, weight, teacher)
    >>> same = kldiv.topk_kl_div_with_logits(hidden @ weight.T, teacher)
    >>> print(abs(loss - same) < 1e-14)
    True
    """
    teacher: Any = target_log_probs
    if isinstance(input, Head):
        if weight is not None:
            given: tuple[Any, ...] = weight, target_log_probs, target_indices
            teacher, target_indices = (each for each in (*given, None)[:2])
        student = input
    else:
        student = _layer_of(input, weight)
    head = _completed(student, _STUDENT, bias, softcap, logit_scale)
    return _topk(head, teacher, target_indices, **options)


def _topk(
    head: Head,
    log_probs: Array | SparseTeacher,
    indices: Array | None,
    *,
    tail: str = BUCKET,
    target_rest: Array | None = None,
    target_temperature: float | None = None,
    beta: float | Array = 0.0,
    divergence: Divergence | None = None,
    temperature: float | Array = 1.0,
    reduction: Reduction = "mean",
    where: Array | None = None,
    row_weight: Array | None = None,
    normalizer: float | Array | None = None,
    dtype: Any = None,
) -> Call[Any]:
    """Check the arguments of a sparse teacher's loss of a layer and resolve its settings."""
    if log_probs is None:
        raise OptionError("target_log_probs is missing: the teacher's, or a SparseTeacher")
    fixed = fixed_temperature(temperature)
    own = teacher_of(log_probs, indices, target_rest, target_temperature, fixed, tail)
    record, of_rows = record_of(beta, divergence), None
    if not isinstance(record, Divergence):
        record, of_rows = Interpolated(), record
    return _prepare(
        [head],
        [_sparse_term(1.0, record, fixed, tail, own)],
        {
            "target_log_probs": own[0],
            "target_rest": own[2],
            "temperature": None if fixed is not None else temperature,
        },
        {"beta": of_rows, "target_indices": own[1]},
        arguments=("input", "weight", "target_log_probs", "target_rest", "bias"),
        reduction=reduction,
        where=where,
        row_weight=row_weight,
        normalizer=normalizer,
        dtype=dtype,
    )


def linear_log_prob_and_entropy(
    input: ArrayT | Head,
    weight: ArrayT | None = None,
    labels: SupportsArray | None = None,
    *,
    bias: SupportsArray | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    temperature: float | SupportsArray = 1.0,
    ignore_index: int = -100,
    where: SupportsArray | None = None,
    dtype: Any = None,
) -> tuple[ArrayT, ArrayT]:
    """
    Log-probability of a label and entropy of a linear layer's softmax, in nats.

    As `log_prob_and_entropy_with_logits` of the logits input·weightᵀ + bias, which are formed a
    chunk of rows at a time. Differentiable in the hidden states and the layer.

    Parameters
    ----------
    input : array or Head
        Hidden states, of shape (..., H); float16, bfloat16, float32 or float64. Or a record of
        these, the layer and its settings, followed by the labels.
    weight : array
        The layer, of shape (V, H).
    labels : array of int
        The index of a class for each row.
    bias : array, optional
        The layer's bias, of shape (V,). −∞ masks a class.
    softcap : float, optional
        Bound of the logits: these are c·tanh(logit/c).
    logit_scale : float, default 1.0
        Factor of the logits, before the cap and the temperature.
    temperature : float or array, default 1.0
        Divisor of the logits; an array broadcasts over the rows, and is differentiable.
    ignore_index : int, default -100
        The label of rows that do not count: both results are 0.
    where : array of bool, optional
        Rows to keep, as in `kl_div_with_logits`.
    dtype : dtype or str, optional
        Dtype of the results; by default the widest of the arguments'.

    Returns
    -------
    log_prob : array
        log p(label) ≤ 0 of each row.
    entropy : array
        −Σ p log p ≥ 0 of each row.

    Raises
    ------
    ShapeError
        Two of the arrays do not fit each other.
    DTypeError
        Arrays are not real floating, labels no integers, or ``where`` is not bool.
    OptionError
        No labels, a temperature that is not positive and finite, or, of NumPy arrays, a label that
        is no class.
    LibraryError
        Not arrays, or arrays of two libraries.

    See Also
    --------
    log_prob_and_entropy_with_logits : From the logits themselves.

    Examples
    --------
    >>> import numpy as np
    >>> import kldiv
    >>> hidden, weight = np.array([[1.0, 2.0], [0.0, 1.0]]), np.eye(2)
    >>> log_prob, entropy = kldiv.linear_log_prob_and_entropy(hidden, weight, np.array([1, 0]))
    >>> print(log_prob.round(4), entropy.round(4))
    [-0.3133 -1.3133] [0.5822 0.5822]
    """
    if isinstance(input, Head):
        head = input
        labels = weight if labels is None else labels
    else:
        head = _layer_of(input, weight)
    if labels is None:
        raise OptionError("labels are missing: the index of a class for each row")
    where = kept_labels(head.hidden, labels, -1, ignore_index, where, "input")
    fixed = fixed_temperature(temperature)
    both: Any = _prepare(
        [_completed(head, _STUDENT, bias, softcap, logit_scale)],
        [_label_term(1.0, fixed, entropic=True, names=("input", "temperature", "labels"))],
        {"temperature": None if fixed is not None else temperature},
        {"labels": labels},
        arguments=("input", "weight", "bias"),
        reduction="none",
        where=where,
        dtype=dtype,
    ).value()
    return -both[..., 0], both[..., 1]


# ---- the arguments of all ------------------------------------------------------------------------


def _given(
    input: Array,
    weight: Array,
    target_input: Array,
    target_weight: Array,
    log_probs: Array | None = None,
) -> tuple[Head, Any]:
    """Return the student, and the teacher: a head, log-probabilities, or a sparse teacher."""
    if isinstance(input, Head):
        student, given = input, [weight, target_input, target_weight]
    else:
        student, given = _layer_of(input, weight), [target_input, target_weight]
    given = [each for each in given if each is not None]
    if log_probs is not None:
        if given:
            raise OptionError("target_log_probs is a teacher by itself; leave its layer out")
        return student, log_probs
    if len(given) == 1 and isinstance(given[0], Head | SparseTeacher):
        return student, given[0]
    if len(given) != 2:
        raise OptionError(
            "the teacher is missing; pass target_input and target_weight, its hidden states and "
            "layer, or a kldiv.Head of these"
        )
    return student, Head(*given)


def _layer_of(input: Array, weight: Array | None) -> Head:
    if weight is None:
        raise OptionError("weight is missing: the layer, of shape (classes, features)")
    return Head(input, weight)


def _completed(
    head: Head, names: tuple[str, ...], bias: Array | None, softcap: float | None, scale: float
) -> Head:
    """Return a head with the settings that are given besides it, checked."""
    prefix = names[0].removesuffix("input")
    if bias is not None:
        if head.bias is not None:
            raise OptionError(f"{names[2]} is in the Head as well; leave one of them out")
        head = head._replace(bias=bias)
    if softcap is not None:
        if head.softcap is not None:
            raise OptionError(f"{prefix}softcap is in the Head as well; leave one of them out")
        head = head._replace(softcap=softcap)
    if scale != 1:
        if head.logit_scale != 1:
            raise OptionError(f"{prefix}logit_scale is in the Head as well; leave one of them out")
        head = head._replace(logit_scale=scale)
    for name, value in (("softcap", head.softcap), ("logit_scale", head.logit_scale)):
        if value is None and name == "softcap":
            continue
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise OptionError(
                f"{prefix}{name} must be a number, positive and finite; got {value!r}"
            )
    return head


def _term(factor: float, divergence: Divergence, fixed: float | None) -> Parts:
    """Return the term of a divergence of logits."""
    divergence, swapped = divergence.canonical()
    names = "input", "teacher"
    return (
        factor,
        lambda compute: RowLoss(*_elementwise(compute), divergence, fixed),
        (*(names[::-1] if swapped else names), "temperature", "beta"),
    )


def _sparse_term(
    factor: float, record: Divergence, fixed: float | None, tail: str, own: Sequence[Any]
) -> Parts:
    """Return the term of a sparse teacher."""
    settings: Any = record, fixed, tail, own[2] is not None, own[3]
    names = "input", "target_log_probs", "target_rest", "temperature", "beta", "target_indices"
    return factor, lambda compute: TopKLoss(*_elementwise(compute), *settings), names


def _label_term(
    factor: float, fixed: float | None, *, entropic: bool, names: tuple[str, ...]
) -> Parts:
    """Return the term of labels."""
    return (
        factor,
        lambda compute: LabelLoss(*_elementwise(compute), fixed, labelled=True, entropic=entropic),
        names,
    )


def _soft_term(
    factor: float,
    teacher: Array | SparseTeacher | None,
    beta: float | Array,
    temperature: float | Array,
    tail: str,
) -> tuple[Parts, dict[str, Array | None], dict[str, Array | None]]:
    """Return the term of a teacher, and the arrays of rows: with a derivative, and others."""
    fixed = fixed_temperature(temperature)
    heat = {"temperature": None if fixed is not None else temperature}
    divergence, of_rows = divergence_of_beta(beta)
    if not isinstance(teacher, SparseTeacher):
        divergence = divergence if of_rows is None else Interpolated()
        term = _term(factor, divergence, fixed)
        return term, {"target_log_probs": teacher, **heat}, {"beta": of_rows}
    own = teacher_of(teacher, None, None, None, fixed, tail)
    record = record_of(beta) if of_rows is None else Interpolated()
    moved = {"target_log_probs": own[0], "target_rest": own[2], **heat}
    others = {"beta": of_rows, "target_indices": own[1]}
    return _sparse_term(factor, record, fixed, tail, own), moved, others


def _elementwise(compute: str) -> tuple[Reduction, str, str, str]:
    return "none", compute, compute, compute


def _of_two(
    divergence: Divergence,
    heads: tuple[Head, Any],
    *,
    bias: Array | None = None,
    target_bias: Array | None = None,
    softcap: float | None = None,
    target_softcap: float | None = None,
    logit_scale: float = 1.0,
    target_logit_scale: float = 1.0,
    temperature: float | Array = 1.0,
    **options: Any,
) -> Call[Any]:
    """Check the arguments of a loss of two layers and resolve its settings."""
    student, teacher = heads
    if not isinstance(teacher, Head):
        raise OptionError("for a sparse teacher use linear_topk_kl_div")
    fixed = fixed_temperature(temperature)
    return _prepare(
        [
            _completed(student, _STUDENT, bias, softcap, logit_scale),
            _completed(teacher, _TEACHER, target_bias, target_softcap, target_logit_scale),
        ],
        [_term(1.0, divergence, fixed)],
        {"temperature": None if fixed is not None else temperature},
        {},
        **options,
    )


_ARGUMENTS = "input", "weight", "target_input", "target_weight", "bias", "target_bias"


def _prepare(
    heads: Sequence[Head],
    terms: Sequence[Parts],
    moved: dict[str, Array | None],
    fixed: dict[str, Array | None],
    *,
    arguments: tuple[str, ...] = _ARGUMENTS,
    reduction: Reduction = "mean",
    where: Array | None = None,
    row_weight: Array | None = None,
    normalizer: float | Array | None = None,
    dtype: Any = None,
    single: bool = False,
) -> Call[Any]:
    """Check the arguments of a loss of layers and resolve its settings.

    ``moved`` are the arrays of rows that it is differentiable in, the teacher's first, ``fixed``
    the others; ``single`` makes a float32 result of half types.
    """
    sides = dict(zip((_STUDENT, _TEACHER), heads, strict=False))
    own = {name: array for names, head in sides.items() for name, array in zip(names, head[:2])}  # noqa: B905
    own |= {names[2]: head.bias for names, head in sides.items() if head.bias is not None}
    moved, fixed = (
        {name: array for name, array in arrays.items() if array is not None}
        for arrays in (moved, fixed)
    )
    floats = dict(own)
    if "target_log_probs" in moved:
        floats["target_log_probs"] = moved["target_log_probs"]
    others = {name: array for name, array in (moved | fixed).items() if name not in floats}
    reducing = Reducing.of(reduction, normalizer, **others, row_weight=row_weight, where=where)
    route, arrays, wide = resolve_arrays([*floats], [*floats.values()], **reducing.others)
    named = dict(zip(floats, arrays, strict=False))
    _check_shapes(named, [*sides])
    rows, classes = tuple(arrays[0].shape[:-1]), arrays[1].shape[0]
    found = reducing.named(route, arrays[len(floats) :])
    divisor = found.pop("normalizer", reducing.number)
    by_name = {name: named[name] for name in floats if name not in own} | _of_rows(
        route, found, rows, classes, named.get("target_log_probs")
    )
    if dtype is None and single and wide in HALVES:
        dtype = "float32"
    own_dtypes = dtypes(route, wide, dtype, arrays[0])
    # Without a layer of its own the teacher is the first array of rows, at the same place.
    places = {"input": 0, "teacher": 1} | {
        name: len(sides) + k for k, name in enumerate((*moved, *fixed))
    }
    layers = [
        Layer(
            head.bias is not None,
            None if head.softcap is None else float(head.softcap),
            float(head.logit_scale),
        )
        for head in heads
    ]
    losses = [
        Term(
            float(factor),
            loss(own_dtypes[0]),
            tuple([places[name] for name in names if name in places]),
        )
        for factor, loss, names in terms
    ]
    numbers = len(moved), len(fixed)
    operation = LinearLoss(reduction, *own_dtypes, tuple(layers), tuple(losses), *numbers)
    given = [*own, *by_name]
    return LinearCall(
        route,
        reducing.loss(operation),
        *(named[name] for name in own),
        *by_name.values(),
        normalizer=divisor,
        places=[given.index(name) if name in given else name for name in arguments],
    )


def _of_rows(
    route: Route,
    found: dict[str, Array],
    rows: Shape,
    classes: int,
    log_probs: Array | None,
) -> dict[str, Array]:
    """Return the arrays of rows, checked and broadcast to these."""
    whole = {name: found[name] for name in ("target_indices", "labels") if name in found}
    numbers = {name: array for name, array in found.items() if name not in whole}
    mend = "it masks whole rows, classes are masked by a bias of −inf"
    checked = dict(zip(numbers, check_row_arrays(route, numbers, rows, mend), strict=True))
    if log_probs is not None:
        _check_teacher(tuple(log_probs.shape), rows, classes, whole.get("target_indices"))
    if "target_indices" in whole:
        check_indices(route, log_probs, whole["target_indices"], classes)
    if "labels" in whole:
        check_range(route, whole["labels"], checked["where"], classes)
    if "beta" in checked:
        checked["beta"] = route.caller.constant(checked["beta"])
    return {name: whole[name] if name in whole else checked[name] for name in found}


def _check_teacher(shape: Shape, rows: Shape, classes: int, indices: Array | None) -> None:
    """Raise unless a teacher's log-probabilities fit the rows and the classes."""
    if indices is not None:
        if tuple(indices.shape) != shape:
            raise ShapeError(
                "target_indices has an entry for each log-probability; got "
                f"{tuple(indices.shape)} and target_log_probs {shape}"
            )
        if shape[:-1] != rows or not shape or not shape[-1]:
            raise ShapeError(
                f"target_log_probs has shape {shape}; expected (*{rows}, k), the rows of input"
            )
    elif shape != (*rows, classes):
        raise ShapeError(
            f"target_log_probs has shape {shape}; expected {(*rows, classes)}, the rows of input "
            f"and the classes of weight; where the last are padding cut them, [..., :{classes}]"
        )


def _check_shapes(arrays: dict[str, Array], sides: Sequence[tuple[str, ...]]) -> None:
    """Raise unless the arrays fit each other."""
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    for hidden, weight, _ in sides:
        _check_layer(hidden, shapes[hidden], weight, shapes[weight])
    classes = shapes["weight"][0]
    if len(sides) > 1:
        _check_pair(shapes)
    elif not classes:
        raise ShapeError(f"there are no classes: weight {shapes['weight']}")
    for *_, name in sides:
        if name in shapes and shapes[name] != (classes,):
            raise ShapeError(
                f"{name} has shape {shapes[name]}; expected {(classes,)}, a number for each of the "
                f"classes of {name.replace('bias', 'weight')}"
            )


def _check_pair(shapes: dict[str, Shape]) -> None:
    """Raise unless two layers have the same rows and classes."""
    rows, target_rows = shapes["input"][:-1], shapes["target_input"][:-1]
    if rows != target_rows:
        raise ShapeError(
            f"input and target_input must have the same rows; got {rows} and {target_rows}, of the "
            f"shapes {shapes['input']} and {shapes['target_input']}; only the last axis may differ"
        )
    classes, target_classes = shapes["weight"][0], shapes["target_weight"][0]
    if classes != target_classes:
        shorter = "weight" if classes < target_classes else "target_weight"
        bias = shorter.replace("weight", "bias")
        size, few = max(classes, target_classes), min(classes, target_classes)
        longer = "target_weight" if shorter == "weight" else "weight"
        raise ShapeError(
            f"weight and target_weight have {classes} and {target_classes} classes; where the last "
            f"of the longer are padding cut them, {longer}[:{few}], and those of its bias; where "
            f"they are real pad {shorter} with rows of zeros and its bias with −inf, never with 0: "
            f"{bias}=kldiv.pad_classes({bias}, {size}), a bias of zeros where there is none"
        )
    if not classes:
        raise ShapeError(
            f"there are no classes: weight {shapes['weight']}, target_weight "
            f"{shapes['target_weight']}"
        )


def _check_layer(hidden: str, shape: Shape, weight: str, layer: Shape) -> None:
    if not shape:
        raise ShapeError(f"{hidden} needs a last axis of features; got a single number")
    if len(layer) != 2:
        raise ShapeError(f"{weight} has shape {layer}; expected two axes, (classes, features)")
    if shape[-1] != layer[1]:
        mend = (
            f"pass its transpose, {weight}.T"
            if shape[-1] == layer[0]
            else f"the last axis of {hidden} and the last axis of {weight} must agree"
        )
        raise ShapeError(
            f"{hidden} of shape {shape} has {shape[-1]} features and {weight} of shape {layer} "
            f"takes {layer[1]}; {weight} is (classes, features): {mend}"
        )
