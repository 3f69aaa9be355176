"""Losses of logits and labels, and entropies: document, check, resolve, run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kldiv import backends
from kldiv._call import (
    Call,
    Reducing,
    broadcasts,
    check_axis,
    check_row_arrays,
    dtypes,
    fixed_temperature,
    resolve_arrays,
)
from kldiv.errors import DTypeError, OptionError, ShapeError
from kldiv.formulas.labels import LabelLoss

if TYPE_CHECKING:
    from kldiv._types import Array, Reduction


def prepare_labels(
    logits: Array,
    labels: Array | None,
    *,
    name: str = "input",
    entropic: bool = False,
    axis: int = -1,
    temperature: float | Array = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    where: Array | None = None,
    row_weight: Array | None = None,
    normalizer: float | Array | None = None,
    dtype: Any = None,
) -> Call:
    """Check the arguments of a loss of labels, of an entropy, or both, and resolve its settings."""
    if labels is not None:
        where = kept_labels(logits, labels, axis, ignore_index, where, name)
    fixed = fixed_temperature(temperature)
    heat = temperature if fixed is None else None
    others = {"temperature": heat, "labels": labels, "row_weight": row_weight, "where": where}
    reducing = Reducing.of(reduction, normalizer, **others)
    route, (s, *more), wide = resolve_arrays((name,), (logits,), **reducing.others)
    check_classes(s.shape, axis, name)
    if axis not in {-1, s.ndim - 1}:
        s = route.caller.namespace(s).moveaxis(s, axis, -1)
    given = reducing.named(route, more)
    divisor = given.pop("normalizer", reducing.number)
    places = [*given]
    own = given.pop("labels", None)
    mend = "it masks whole distributions, classes are masked by −inf"
    row_arrays = dict(zip(given, check_row_arrays(route, given, s.shape[:-1], mend), strict=True))
    if own is not None:
        _check_range(route, own, row_arrays["where"], s.shape[-1])
        row_arrays["labels"] = own
    operation: Any = LabelLoss(
        reduction, *dtypes(route, wide, dtype, s), fixed, labels is not None, entropic
    )
    arrays = [row_arrays[place] for place in places]
    place = -1 if axis in {-1, s.ndim - 1} else axis
    return Call(route, reducing.loss(operation), s, *arrays, axis=place, normalizer=divisor)


def check_classes(shape: tuple[int, ...], axis: int, name: str) -> None:
    """Raise unless logits of that shape have classes on that axis."""
    what = f"{name} of shape {tuple(shape)}"
    if not shape:
        raise ShapeError(f"logits need an axis of classes; got {what}: a single number")
    check_axis(axis, shape, what)
    if not shape[axis]:
        raise ShapeError(f"there are no classes on axis {axis}: {what}")


def kept_labels(
    logits: Array, labels: Array, axis: int, ignore_index: int, where: Array | None, name: str
) -> Array:
    """Return which rows count: those whose label is not ignored, of those that a mask keeps."""
    caller = backends.resolve((name, "labels"), logits, labels).caller
    check_classes(logits.shape, axis, name)
    dtype = caller.dtype_name(labels)
    if "int" not in dtype:
        raise DTypeError(
            f"labels has dtype {dtype}; expected integers, the index of a class for each row"
        )
    shape = list(logits.shape)
    del shape[axis]
    if tuple(labels.shape) != tuple(shape):
        raise ShapeError(
            f"labels has shape {tuple(labels.shape)}; expected one for each row of {name}, "
            f"{tuple(shape)}"
        )
    keep = labels != ignore_index
    if where is None:
        return keep
    if caller.dtype_name(where) == "bool" and broadcasts(where.shape, keep.shape):
        return keep & where
    return where  # which the checks of the call refuse


def _check_range(route: backends.Route, labels: Array, keep: Array, classes: int) -> None:
    """Raise where a label is no class, on NumPy; elsewhere reading labels would wait for them."""
    if route.caller.name != "numpy":
        return
    wrong = ((labels < 0) | (labels >= classes)) & keep
    if wrong.any():
        raise OptionError(
            f"labels has {int(labels[wrong][0])}, which is none of the {classes} classes, 0 to "
            f"{classes - 1}; rows without a label have ignore_index, or where= drops them"
        )
