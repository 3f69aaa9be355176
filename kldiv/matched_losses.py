"""Losses of unlike vocabularies: check, resolve, and put the logits of classes that match apart."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv._arguments import check_axis, constant, same_rows
from kldiv._call import Call
from kldiv._rows import Rows
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError
from kldiv.formulas.matched import MatchedLoss
from kldiv.formulas.sparse import put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array
    from kldiv.backends.routing import Route
    from kldiv.formulas.divergences import Divergence


class _Call(Call[Any]):
    """A call of which each side has two arrays: the classes that match, and all others."""

    __slots__ = ("sides", "swapped")

    def __init__(
        self, *args: Any, sides: Sequence[tuple[Array, Array, Array]], swapped: bool, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.sides = sides
        """The logits of each of the caller's, which classes match, and their indices."""
        self.swapped = swapped

    def argument(self, index: int) -> Array:
        return self._turned(self.sides[index][0], back=True)

    def _value_and_gradients(
        self, wanted: tuple[int, ...], into: Sequence[Array] | None
    ) -> tuple[Array, list[Array]]:
        del into  # gradients are put together
        places = [2 * (1 - index if self.swapped else index) for index in wanted]
        every = tuple([place + k for place in places for k in (0, 1)])
        value, found = super()._value_and_gradients(every, None)
        xp, gradients = self.route.caller.namespace(value), []
        with self.route.caller.context(value):
            for k, index in enumerate(wanted):
                own, others = found[2 * k : 2 * k + 2]
                _, match, classes = self.sides[index]
                where = xp.broadcast_to(classes, own.shape)
                whole = put(xp, xp.zeros_like(others), where, own)
                gradients.append(xp.where(match, whole, others))
        return value, gradients


def prepare_matched(
    divergence: Divergence,
    arrays: tuple[Array, Array],
    classes: tuple[Any, Any],
    names: tuple[str, str],
    *,
    beta: Array | None,
    exchanged: bool,
    **options: Any,
) -> Call[Any]:
    """Check the arguments of a loss of logits of which some classes match, and resolve it."""
    check = partial(_check_shapes, names=names)
    rows = Rows(names, arrays, check, after={"beta": beta}, **options)
    route, (s, t) = rows.route, rows.arrays
    if rows.spread is not None:
        raise LibraryError(
            "input_classes and target_classes take whole rows; gather logits that are spread"
        )
    if route.caller.in_blocks or route.moves:
        raise LibraryError(
            "input_classes and target_classes take arrays of numbers where they are computed; "
            "leave backend and device at 'auto', and call the loss on each block"
        )
    divergence, swapped = divergence.canonical()
    operation = MatchedLoss(*rows.settings, divergence, rows.temperature)
    xp = route.caller.namespace(s)
    with route.caller.context(s):
        sides = _sides(route, (s, t), classes)
        pairs = [
            (xp.take(array, own, axis=-1), xp.where(match, -xp.inf, array))
            for array, match, own in sides
        ]
    swapped = swapped != exchanged
    first, second = pairs[::-1] if swapped else pairs
    rows.arrays = *first, *second
    return rows.call(operation, _Call, sides=sides, swapped=swapped)


def _check_shapes(
    first: tuple[int, ...],
    second: tuple[int, ...],
    axis: int,
    names: tuple[str, str],
    *,
    empty: bool,
) -> bool:
    """Raise unless the shapes agree but for the classes; return whether these are last."""
    del empty  # no rank is without classes
    first, second = tuple(first), tuple(second)
    both = f"{names[0]} {first} and {names[1]} {second}"
    check_axis(axis, first, lambda: both)
    if not same_rows(first, second, axis):
        raise ShapeError(f"rows differ: {both}; only the axis of the classes, {axis}, may")
    if not (first[axis] and second[axis]):
        raise ShapeError(f"there are no classes on axis {axis}: {both}")
    return axis in {-1, len(first) - 1}


def _sides(
    route: Route, logits: tuple[Array, Array], classes: tuple[Any, Any]
) -> list[tuple[Array, Array, Array]]:
    """Return for both sides the logits, which classes match, and their indices."""
    found, xp = [], route.caller.namespace(logits[0])
    for array, (match, own) in zip(logits, _places(route, logits, classes), strict=True):
        place = route.caller.placed(array)
        indices = xp.asarray(own, **place)
        if match is None:  # of classes that nobody knows yet
            there = xp.ones(own.shape, dtype=xp.bool, **place)
            which = put(xp, xp.zeros(array.shape[-1:], dtype=xp.bool, **place), indices, there)
        else:
            which = xp.asarray(match, **place)
        found.append((array, which, indices))
    return found


def _places(
    route: Route, logits: tuple[Array, Array], classes: tuple[Any, Any]
) -> list[tuple[Any, Any]]:
    """Return for both sides which classes match, and their indices, checked where they are known.

    Of indices that a compiler traces there are no values: only their dtype and shape are checked.
    """
    for each, name in zip(classes, _NAMES, strict=True):
        if each is None:
            raise OptionError(
                f"{name} is missing: input_classes and target_classes come together, the indices "
                "of the same classes in both vocabularies"
            )
    own = route.caller.readable
    readable = [own is None or own(each) for each in classes]
    given = [
        each if hasattr(each, "shape") else tuple([constant(index) for index in each])
        for each in classes
    ]
    if all(readable) or not any(hasattr(each, "shape") for each in given):
        sizes = tuple([constant(array.shape[-1]) for array in logits])
        known = _known((given[0], given[1]), sizes)
        if all(readable):
            return known
    found = []
    for each, array, name in zip(given, logits, _NAMES, strict=True):
        xp = route.caller.namespace(array)
        indices = xp.asarray(each, **route.caller.placed(array))
        _check_indices(route.caller.dtype_name(indices), tuple(indices.shape), name)
        found.append((None, indices))
    _check_sizes(*[indices.shape[0] for _, indices in found])
    return found


def _known(classes: tuple[Any, Any], sizes: tuple[float, ...]) -> list[tuple[Any, Any]]:
    """Return which classes match on either side, and their indices, as NumPy arrays."""
    places = []
    for each, name in zip(classes, _NAMES, strict=True):
        try:
            own = np.asarray(each.tolist() if hasattr(each, "tolist") else each)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DTypeError(f"{name} must be numbers that are known; got {each!r}") from error
        _check_indices(str(own.dtype), own.shape, name)
        places.append(own.astype(np.int64))
    _check_sizes(*map(len, places))
    found = []
    for own, many, name in zip(places, sizes, _NAMES, strict=True):
        if own.min() < 0 or own.max() >= many:
            wrong = own[(own < 0) | (own >= many)][0]
            raise OptionError(f"{name} has {wrong}, which is none of the {many} classes")
        match = np.zeros(int(many), np.bool_)
        match[own] = True
        if match.sum() != own.size:
            raise OptionError(f"{name} has a class twice; each matches one class at most")
        found.append((match, own))
    return found


# Known indices are a setting, which torch.compile checks while it traces.
_known._dynamo_marked_constant = True  # type: ignore[attr-defined] # noqa: SLF001


_NAMES = "input_classes", "target_classes"


def _check_sizes(first: int, second: int) -> None:
    """Raise unless there are as many classes on one side as on the other."""
    if first != second:
        raise ShapeError(
            "input_classes and target_classes name the same classes in both vocabularies, one "
            f"after the other; got {first} and {second} of them"
        )


def _check_indices(dtype: str, shape: tuple[int, ...], name: str) -> None:
    """Raise unless they are indices: integers, one after the other."""
    if "int" not in dtype or len(shape) != 1 or not shape[0]:
        raise DTypeError(
            f"{name} must be indices of classes, a list of integers; got {dtype} of shape {shape}"
        )
