"""The arguments of losses of linear layers: the record of a layer, checks, the call they make."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from kldiv._arguments import as_number, check_heat, check_row_arrays, setting
from kldiv._call import LinearCall, Reducing, dtypes, resolve_arrays
from kldiv.backends.base import HALVES
from kldiv.errors import OptionError, ShapeError
from kldiv.formulas.layers import Layer
from kldiv.formulas.linear import LinearLoss
from kldiv.formulas.terms import Term
from kldiv.label_losses import check_range
from kldiv.sparse_losses import SparseTeacher, check_indices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._call import Call
    from kldiv._types import Array, Reduction
    from kldiv.backends.routing import Route
    from kldiv.formulas.reductions import RowWise

    Shape = tuple[int, ...]
    Parts = tuple[float, RowWise, tuple[str, ...]]
    """Of a term: its factor, its loss in any dtype, the names of its arrays."""

STUDENT = "input", "weight", "bias"
TEACHER = "target_input", "target_weight", "target_bias"
_ARGUMENTS = "input", "weight", "target_input", "target_weight", "bias", "target_bias"


class Head(NamedTuple):
    """
    The hidden states and the last layer of a model, from which its logits follow.

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


def heads_of(
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
        student, given = layer_of(input, weight), [target_input, target_weight]
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


def layer_of(input: Array, weight: Array | None) -> Head:
    """Return the record of hidden states and their layer, which must be there."""
    if weight is None:
        raise OptionError("weight is missing: the layer, of shape (classes, features)")
    return Head(input, weight)


def is_unset(name: str, value: Any) -> bool:
    """Return whether a setting of a layer is left as it is without it."""
    value = as_number(value)  # a tensor of 1 is set: it may be differentiated in
    return value is None or (
        name.endswith("logit_scale") and isinstance(value, int | float) and value == 1
    )


def completed(head: Head, names: tuple[str, ...], options: dict[str, Any]) -> Head:
    """Return a head with its settings among the options, which are taken out of these, checked."""
    prefix = names[0].removesuffix("input")
    for name, usual in Head._field_defaults.items():
        value = options.pop(prefix + name, usual)
        if is_unset(name, value):
            continue
        if not is_unset(name, getattr(head, name)):
            raise OptionError(f"{prefix}{name} is in the Head as well; leave one of them out")
        head = head._replace(**{name: value})
    for name in ("softcap", "logit_scale"):
        value = getattr(head, name)
        if value is None and name == "softcap":
            continue
        number = setting(prefix + name, value)
        if not 0 < number < math.inf:
            raise OptionError(
                f"{prefix}{name} must be a number, positive and finite; got {value!r}"
            )
        head = head._replace(**{name: float(number)})
    return head


def prepare_layers(
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
    sides = dict(zip((STUDENT, TEACHER), heads, strict=False))
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
    of_rows = {**others, "row_weight": row_weight, "where": where}
    reducing = Reducing.of(reduction, normalizer, of_rows)
    route, arrays, wide = resolve_arrays([*floats], [*floats.values()], **reducing.others)
    named = dict(zip(floats, arrays, strict=False))
    _check_shapes(named, [*sides])
    rows, classes = tuple(arrays[0].shape[:-1]), arrays[1].shape[0]
    found, divisor = reducing.named(route, arrays[len(floats) :])
    if dtype is None and single and wide in HALVES:
        dtype = "float32"
    compute, total, result = dtypes(route, wide, dtype, arrays[0])
    by_name = {name: named[name] for name in floats if name not in own} | _of_rows(
        route, found, rows, classes, compute, named.get("target_log_probs")
    )
    # Without a layer of its own the teacher is the first array of rows, at the same place.
    places = {"input": 0, "teacher": 1} | {
        name: len(sides) + k for k, name in enumerate((*moved, *fixed))
    }
    layers = [Layer(head.bias is not None, head.softcap, head.logit_scale) for head in heads]
    losses = [
        Term(
            float(factor),
            replace(loss, compute=compute, total=compute, result=compute),
            tuple([places[name] for name in names if name in places]),
        )
        for factor, loss, names in terms
    ]
    for term in losses:
        for name in ("temperature", "target_temperature"):
            check_heat(getattr(term.loss, name, None), compute)
    numbers = len(moved), len(fixed)
    operation = LinearLoss(
        reduction, compute, total, result, tuple(layers), tuple(losses), *numbers
    )
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
    compute: str,
    log_probs: Array | None,
) -> dict[str, Array]:
    """Return the arrays of rows, checked and broadcast to these."""
    mend = "it masks whole rows, classes are masked by a bias of −inf"
    checked = check_row_arrays(route, found, rows, compute, mend)
    if log_probs is not None:
        _check_teacher(tuple(log_probs.shape), rows, classes, checked.get("target_indices"))
    if "target_indices" in checked:
        check_indices(route, log_probs, checked["target_indices"], classes)
    if "labels" in checked:
        check_range(route, checked["labels"], checked["where"], classes)
    return checked


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
