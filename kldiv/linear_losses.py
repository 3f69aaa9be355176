"""The losses of linear layers: document, check, resolve, run; no mathematics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Unpack, cast

from kldiv._arguments import fixed_temperature, setting, split_temperature
from kldiv._call import Call, differentiable
from kldiv._docstrings import options_of
from kldiv.distillation import (
    checked_hard_weight,
    distillation_loss,
    divergence_of_beta,
    of_tokens,
    scaled,
)
from kldiv.errors import OptionError
from kldiv.formulas.divergences import LEAST, Divergence, JensenShannon, KullbackLeibler
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.linear import LinearLoss
from kldiv.formulas.rows import RowLoss
from kldiv.formulas.sparse import BUCKET, TopKLoss
from kldiv.formulas.terms import Term
from kldiv.label_losses import kept_labels, log_prob_and_entropy_with_logits
from kldiv.layers import (
    STUDENT,
    TEACHER,
    Head,
    completed,
    heads_of,
    is_unset,
    layer_of,
    prepare_layers,
)
from kldiv.logit_losses import LossOptions, RowsOptions, kl_div_with_logits
from kldiv.sparse_losses import SparseTeacher, record_of, teacher_of, topk_kl_div_with_logits

if TYPE_CHECKING:
    from kldiv._types import Array, ArrayT, SupportsArray
    from kldiv.layers import Parts

    OfRows = dict[str, Array | None]

_CLASSES = "input_classes", "target_classes"
_WHOLE_ROWS = "axis", "group", "axis_name"
_TARGETS = "target_bias", "target_softcap", "target_logit_scale"


@differentiable(6, LinearLoss())
@options_of(kl_div_with_logits, without=(*_WHOLE_ROWS, *_CLASSES))
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
    **options: Unpack[LossOptions],
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
    Half-precision arrays are multiplied exactly and summed in float32. JAX multiplies float32 by
    all its digits on every device, unless ``jax.default_matmul_precision`` asks for fewer.
    Gradients of weights and biases are summed over the chunks in the dtype of the logits and
    rounded once.

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
        heads_of(input, weight, target_input, target_weight),
        bias=bias,
        target_bias=target_bias,
        softcap=softcap,
        target_softcap=target_softcap,
        logit_scale=logit_scale,
        target_logit_scale=target_logit_scale,
        **options,
    )


class HeadOptions(RowsOptions, total=False):
    """The options of all that is taken of a layer: `linear_kl_div` documents them."""

    bias: SupportsArray | None
    softcap: float | None
    logit_scale: float


class LayerOptions(LossOptions, HeadOptions, total=False):
    """Those of a loss."""


class Options(LayerOptions, total=False):
    """Those of a loss of two layers."""

    target_bias: SupportsArray | None
    target_softcap: float | None
    target_logit_scale: float


class DistillationOptions(Options, total=False):
    """Those of tokens with labels: `distillation_loss` documents them."""

    beta: float | SupportsArray
    ignore_index: int
    num_items_in_batch: float | SupportsArray | None
    hard_weight: float
    scale_by_temperature: bool


class SparseOptions(LayerOptions, total=False):
    """Those of a sparse teacher: `topk_kl_div_with_logits` documents them."""

    target_rest: SupportsArray | None
    target_temperature: float | None
    tail: str
    beta: float | SupportsArray
    divergence: Divergence | None


_JS = LinearLoss(terms=(Term(1.0, RowLoss(divergence=JensenShannon()), (0, 1)),))


@differentiable(6, _JS)
@options_of(linear_kl_div)
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
    beta : float, default 0.5
        Weight of P in the mixture, between 0 and 1.

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
    beta = setting("beta", beta)
    if not LEAST <= beta < 1:
        raise OptionError(
            f"beta must lie between 0 and 1, and be at least {LEAST}; got {beta!r}; its limits are "
            "linear_kl_div, D(P‖Q), and the same with student and teacher swapped, D(Q‖P)"
        )
    return _of_two(
        JensenShannon(float(beta)), heads_of(input, weight, target_input, target_weight), **options
    )


@differentiable(6, _JS)
@options_of(distillation_loss, linear_kl_div, without=(*_WHOLE_ROWS, *_CLASSES))
def linear_distillation_loss(
    input: ArrayT | Head,
    weight: ArrayT | Head | SparseTeacher | None = None,
    target_input: ArrayT | None = None,
    target_weight: ArrayT | None = None,
    labels: SupportsArray | None = None,
    *,
    target_log_probs: SupportsArray | SparseTeacher | None = None,
    tail: str = BUCKET,
    **options: Unpack[DistillationOptions],
) -> Call[ArrayT]:
    r"""
    Loss of a student's hidden states beside a teacher, without the logits in memory.

    As `distillation_loss` of the logits that `linear_kl_div` forms, a chunk of rows at a time, the
    labels' cross entropy of the same chunk. Differentiable in all floating arrays.

    Parameters
    ----------
    input : array or Head
        Hidden states of the student, of shape (..., H); float16, bfloat16, float32 or float64. Or
        a record of these, the layer and its settings; then the teacher, and the labels, follow;
        with ``target_log_probs`` the labels alone.
    weight : array, Head or SparseTeacher
        The student's layer, of shape (V, H). After a record: the teacher.
    target_input : array, optional
        Hidden states of the teacher, of shape (..., H'), with the same axes of rows.
    target_weight : array, optional
        The teacher's layer, of shape (V, H').
    target_log_probs : array or SparseTeacher, optional
        A teacher without hidden states: log-probabilities or logits, of shape (..., V), or the
        likeliest classes alone, as in `topk_kl_div_with_logits`.
    tail : {"bucket", "renormalize"}, default "bucket"
        How the other classes of a sparse teacher count.
    normalizer : float or array, optional
        The same as ``num_items_in_batch``, by the name that other losses have for it.
    dtype : dtype or str, optional
        Dtype of the result; by default the widest of the arguments', float32 for half types.

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
        alone = target_log_probs is not None and labels is None
        if alone and not isinstance(weight, Head | SparseTeacher):
            labels, weight = cast("Any", weight), None
    student, teacher = heads_of(input, weight, target_input, target_weight, target_log_probs)
    own: dict[str, Any] = {**options}
    heads = [completed(student, STUDENT, own)]
    if isinstance(teacher, Head):
        heads.append(completed(teacher, TEACHER, own))
        teacher = None
    elif not all(is_unset(name, own.pop(name, None)) for name in _TARGETS):
        raise OptionError(
            "target_bias, target_softcap and target_logit_scale are of a teacher's hidden states; "
            "log-probabilities have none"
        )
    normalizer = own.pop("normalizer", None)
    if normalizer is not None:
        if own.get("num_items_in_batch") is not None:
            raise OptionError("normalizer and num_items_in_batch are the same; pass one of them")
        own["num_items_in_batch"] = normalizer
    return _distillation(heads, teacher, labels, tail=tail, **own)


def _distillation(
    heads: list[Head],
    teacher: Array | SparseTeacher | None,
    labels: Array | None,
    *,
    tail: str,
    dtype: Any = None,
    beta: float | Array = 0.5,
    temperature: float | Array = 1.0,
    row_weight: Array | None = None,
    hard_weight: float = 0.0,
    scale_by_temperature: bool = False,
    **options: Any,
) -> Call[Any]:
    """Check the arguments of a distillation loss of layers and resolve its settings."""
    hard_weight = checked_hard_weight(hard_weight, labels)
    rows = of_tokens(heads[0].hidden, -1, labels, name="input", **options)
    soft = 1.0 - hard_weight
    if scale_by_temperature:
        if hard_weight and fixed_temperature(temperature) is None:
            raise OptionError(
                "scale_by_temperature with hard_weight takes a temperature that is a number; pass "
                "hard_weight=0 and add the labels' cross entropy"
            )
        factors, row_weight = scaled(soft, row_weight, temperature)
        soft = math.prod(factors)
    term, moved, others = _soft_term(soft, teacher, beta, temperature, tail)
    terms = [term]
    if hard_weight:
        others["labels"] = labels
        terms.append((hard_weight, LabelLoss(), ("input", "labels")))
    return prepare_layers(
        heads,
        terms,
        moved,
        others,
        arguments=(
            *("input", "weight", "target_input" if len(heads) > 1 else "target_log_probs"),
            *("target_weight", "bias", "target_bias"),
        ),
        row_weight=row_weight,
        dtype=dtype,
        single=True,
        **rows,
    )


@differentiable(5)
@options_of(topk_kl_div_with_logits, linear_kl_div, without=(*_WHOLE_ROWS, *_TARGETS))
def linear_topk_kl_div(
    input: ArrayT | Head,
    weight: ArrayT | SparseTeacher | None = None,
    target_log_probs: ArrayT | SparseTeacher | None = None,
    target_indices: SupportsArray | None = None,
    **options: Unpack[SparseOptions],
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
            if target_log_probs is not None and target_indices is not None:
                raise OptionError("weight is in the Head as well; leave one of them out")
            teacher = weight
            if target_log_probs is not None:
                target_indices = cast("Any", target_log_probs)
        student = input
    else:
        student = layer_of(input, weight)
    own: dict[str, Any] = {**options}
    head = completed(student, STUDENT, own)
    return _topk(head, teacher, target_indices, **own)


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
    **options: Any,
) -> Call[Any]:
    """Check the arguments of a sparse teacher's loss of a layer and resolve its settings."""
    if log_probs is None:
        raise OptionError("target_log_probs is missing: the teacher's, or a SparseTeacher")
    given = log_probs, indices, target_rest, target_temperature
    term, *of_rows = _sparse_term(1.0, given, beta, divergence, temperature, tail)
    arguments = "input", "weight", "target_log_probs", "target_rest", "bias"
    return prepare_layers([head], [term], *of_rows, arguments=arguments, **options)


@options_of(
    log_prob_and_entropy_with_logits,
    linear_kl_div,
    without=(*_WHOLE_ROWS, *_TARGETS, "reference", "reduction", "row_weight", "normalizer"),
)
def linear_log_prob_and_entropy(
    input: ArrayT | Head,
    weight: ArrayT | None = None,
    labels: SupportsArray | None = None,
    *,
    ignore_index: int = -100,
    **options: Unpack[HeadOptions],
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
    bias : array, optional
        The layer's bias, of shape (V,). −∞ masks a class.
    softcap : float, optional
        Bound of the logits: these are c·tanh(logit/c).
    logit_scale : float, default 1.0
        Factor of the logits, before the cap and the temperature.

    Returns
    -------
    log_prob : array
        log p(label) ≤ 0 of each row.
    entropy : array
        −Σ p log p ≥ 0 of each row.

    Raises
    ------
    OptionError
        No labels.

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
        if labels is None:
            weight, labels = None, weight
        if weight is not None:
            raise OptionError("weight is in the Head as well; leave one of them out")
    else:
        head = layer_of(input, weight)
    if labels is None:
        raise OptionError("labels are missing: the index of a class for each row")
    own: dict[str, Any] = {**options}
    where = kept_labels(head.hidden, labels, -1, ignore_index, own.pop("where", None), "input")
    fixed, heat = split_temperature(own.pop("temperature", 1.0))
    both: Any = prepare_layers(
        [completed(head, STUDENT, own)],
        [(1.0, LabelLoss(temperature=fixed, entropic=True), ("input", "temperature", "labels"))],
        {"temperature": heat},
        {"labels": labels},
        arguments=("input", "weight", "bias"),
        reduction="none",
        where=where,
        **own,
    ).value()
    return -both[..., 0], both[..., 1]


def _term(factor: float, divergence: Divergence, fixed: float | None) -> Parts:
    """Return the term of a divergence of logits."""
    divergence, swapped = divergence.canonical()
    sides = ("teacher", "input") if swapped else ("input", "teacher")
    loss = RowLoss(divergence=divergence, temperature=fixed)
    return factor, loss, (*sides, "temperature", "beta")


def _sparse_term(
    factor: float,
    given: tuple[Any, Any, Any, Any],
    beta: float | Array,
    divergence: Divergence | None,
    temperature: float | Array,
    tail: str,
) -> tuple[Parts, OfRows, OfRows]:
    """Return the term of a sparse teacher, given as for `teacher_of`, and its arrays of rows."""
    fixed, heat = split_temperature(temperature)
    log_probs, indices, rest, own = teacher_of(*given, fixed, tail)
    record, of_rows = record_of(beta, divergence)
    settings: Any = {"has_rest": rest is not None, "target_temperature": own}
    loss = TopKLoss(divergence=record, temperature=fixed, tail=tail, **settings)
    names = "input", "target_log_probs", "target_rest", "temperature", "beta", "target_indices"
    moved = {"target_log_probs": log_probs, "target_rest": rest, "temperature": heat}
    return (factor, loss, names), moved, {"beta": of_rows, "target_indices": indices}


def _soft_term(
    factor: float,
    teacher: Array | SparseTeacher | None,
    beta: float | Array,
    temperature: float | Array,
    tail: str,
) -> tuple[Parts, OfRows, OfRows]:
    """Return the term of a teacher, and the arrays of rows: with a derivative, and others."""
    if isinstance(teacher, SparseTeacher):
        given = teacher, None, None, None
        return _sparse_term(factor, given, beta, None, temperature, tail)
    if tail != BUCKET:
        raise OptionError(
            f"tail says how the other classes of a SparseTeacher count; got {tail!r} with a "
            "teacher of all classes: leave it out"
        )
    fixed, heat = split_temperature(temperature)
    divergence, of_rows = divergence_of_beta(beta)
    term = _term(factor, divergence, fixed)
    return term, {"target_log_probs": teacher, "temperature": heat}, {"beta": of_rows}


def _of_two(
    divergence: Divergence,
    heads: tuple[Head, Any],
    *,
    temperature: float | Array = 1.0,
    **options: Any,
) -> Call[Any]:
    """Check the arguments of a loss of two layers and resolve its settings."""
    student, teacher = heads
    if not isinstance(teacher, Head):
        raise OptionError("for a sparse teacher use linear_topk_kl_div")
    fixed, heat = split_temperature(temperature)
    return prepare_layers(
        [completed(student, STUDENT, options), completed(teacher, TEACHER, options)],
        [_term(1.0, divergence, fixed)],
        {"temperature": heat},
        {},
        **options,
    )
