"""The losses of two linear layers: document, check, resolve, run; no mathematics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from kldiv._call import (
    Call,
    LinearCall,
    Reducing,
    check_row_arrays,
    differentiable,
    dtypes,
    fixed_temperature,
    resolve_arrays,
    with_options_of,
)
from kldiv.errors import OptionError, ShapeError
from kldiv.formulas.divergences import LEAST, JensenShannon, KullbackLeibler
from kldiv.formulas.linear import LinearLoss

if TYPE_CHECKING:
    from kldiv._types import Array, ArrayT, Reduction, SupportsArray
    from kldiv.formulas.divergences import Divergence

    Shape = tuple[int, ...]

_NAMES = ("input", "weight", "target_input", "target_weight")


@differentiable(4, LinearLoss())
def linear_kl_div(
    input: ArrayT,
    weight: ArrayT,
    target_input: ArrayT,
    target_weight: ArrayT,
    *,
    bias: SupportsArray | None = None,
    target_bias: SupportsArray | None = None,
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
    input : array
        Hidden states of the student, of shape (..., H); float16, bfloat16, float32 or float64.
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
    return _prepare(
        KullbackLeibler(),
        (input, weight, target_input, target_weight),
        bias=bias,
        target_bias=target_bias,
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
    temperature: float | SupportsArray
    reduction: Reduction
    where: SupportsArray | None
    row_weight: SupportsArray | None
    normalizer: float | SupportsArray | None
    dtype: Any


@with_options_of(linear_kl_div, LinearLoss(divergence=JensenShannon()), arrays=4)
def linear_js_div(
    input: ArrayT,
    weight: ArrayT,
    target_input: ArrayT,
    target_weight: ArrayT,
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
    input : array
        Hidden states of the student, of shape (..., H); float16, bfloat16, float32 or float64.
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
    layers = input, weight, target_input, target_weight
    return _prepare(JensenShannon(float(beta)), layers, **options)


def _prepare(
    divergence: Divergence,
    own: tuple[Array, ...],
    *,
    bias: Array | None = None,
    target_bias: Array | None = None,
    temperature: float | Array = 1.0,
    reduction: Reduction = "mean",
    where: Array | None = None,
    row_weight: Array | None = None,
    normalizer: float | Array | None = None,
    dtype: Any = None,
) -> Call[Any]:
    """Check the arguments of a loss of two layers and resolve its settings."""
    fixed = fixed_temperature(temperature)
    biases = {"bias": bias, "target_bias": target_bias}
    given = {name: array for name, array in biases.items() if array is not None}
    heat = temperature if fixed is None else None
    of_rows = {"temperature": heat, "row_weight": row_weight, "where": where}
    reducing = Reducing.of(reduction, normalizer, **of_rows)
    floats = (*own, *given.values())
    route, arrays, wide = resolve_arrays((*_NAMES, *given), floats, **reducing.others)
    _check_shapes(dict(zip((*_NAMES, *given), arrays, strict=False)))
    floats = arrays[: len(floats)]
    found = reducing.named(route, arrays[len(floats) :])
    divisor = found.pop("normalizer", reducing.number)
    row_arrays = check_row_arrays(
        route,
        found,
        arrays[0].shape[:-1],
        "it masks whole rows, classes are masked by a bias of −inf",
    )
    operation = LinearLoss(
        reduction,
        *dtypes(route, wide, dtype, arrays[0]),
        fixed,
        ("bias" in given, "target_bias" in given),
        divergence,
    )
    return LinearCall(route, reducing.loss(operation), *floats, *row_arrays, normalizer=divisor)


def _check_shapes(arrays: dict[str, Array]) -> None:
    """Raise unless the arrays fit each other."""
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    for hidden, weight in (_NAMES[:2], _NAMES[2:]):
        _check_layer(hidden, shapes[hidden], weight, shapes[weight])
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
    for name in ("bias", "target_bias"):
        if name in shapes and shapes[name] != (classes,):
            raise ShapeError(
                f"{name} has shape {shapes[name]}; expected {(classes,)}, a number for each of the "
                f"classes of {name.replace('bias', 'weight')}"
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
