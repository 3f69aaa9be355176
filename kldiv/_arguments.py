"""Checks of arguments that several functions have."""

from __future__ import annotations

import math
import operator
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv import backends
from kldiv.backends.base import FLOATS
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError
from kldiv.formulas.divergences import LEAST
from kldiv.formulas.numbers import HEATS
from kldiv.formulas.reductions import cast

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kldiv._types import Array


def check_normalizer(route: backends.Route, normalizer: Array) -> None:
    """Raise unless a normalizer is one real number."""
    dtype, shape = route.caller.dtype_name(normalizer), tuple(normalizer.shape)
    if shape:
        raise ShapeError(
            f"normalizer has shape {shape}; expected a number, or an array of no axes: for the "
            "number of rows kept pass where.sum()"
        )
    if dtype not in FLOATS and "int" not in dtype:
        raise DTypeError(f"normalizer has dtype {dtype}; expected real numbers")


def different(
    first: tuple[int, ...], second: tuple[int, ...], names: tuple[str, str] = ("input", "target")
) -> ShapeError:
    """Return the error for two shapes that differ; it names the broadcasts that join them."""
    mend = "bring them to one shape first"
    wide = tuple(
        max(sizes) if 1 in sizes else sizes[0]
        for sizes in zip_longest(first[::-1], second[::-1], fillvalue=1)
    )[::-1]
    if broadcasts(first, wide) and broadcasts(second, wide):
        short = [name for name, shape in zip(names, (first, second), strict=True) if shape != wide]
        mend = "if you mean that pass " + " and ".join(
            f"broadcast_to({name}, {wide})" for name in short
        )
    return ShapeError(
        f"{names[0]} and {names[1]} must have the same shape; got {tuple(first)} and "
        f"{tuple(second)}; nothing is broadcast, as that is a known cause of wrong losses: {mend}"
    )


def check_axis(axis: Any, shape: tuple[int, ...], described: Callable[[], str]) -> None:
    """Raise unless ``axis`` is one whole number within the axes of ``shape``, which has some.

    Small calls would notice the time that a description takes, so it is made for an error alone.
    """
    if not _is_whole(axis):
        raise OptionError(f"axis must be one whole number; got {axis!r}; {_one_axis(axis, shape)}")
    if not shape:
        raise ShapeError(f"there is no axis of classes; got {described()}: a single number")
    if not -len(shape) <= axis < len(shape):
        raise ShapeError(
            f"axis {axis} is out of range for {described()}; expected {-len(shape)} to "
            f"{len(shape) - 1}"
        )


def _is_whole(number: Any) -> bool:
    """Return whether it is a whole number: True would be taken for axis 1 elsewhere."""
    if isinstance(number, int):
        return not isinstance(number, bool)
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def _one_axis(axis: Any, shape: tuple[int, ...]) -> str:
    """Return the advice that puts the classes on one axis."""
    axes = range(-len(shape), len(shape))
    if not isinstance(axis, tuple | list) or not axis or not all(one in axes for one in axis):
        return "pass that of the classes, for example -1, the last"
    if len(axis) == 1:
        return f"axis={axis[0]} is that one"
    wanted = [one % len(shape) for one in axis]
    rows = [size for place, size in enumerate(shape) if place not in wanted]
    array, last, note = "x", tuple(range(-len(wanted), 0)), ""
    if sorted(wanted) != [len(shape) + place for place in last]:
        array, note = f"moveaxis(x, {tuple(axis)}, {last})", "; in PyTorch it is movedim"
    return (
        "make one axis of them and leave axis out: for each array x pass "
        f"{array}.reshape({(*rows, -1)}){note}"
    )


def same_rows(first: Sequence[int], second: Sequence[int], axis: int) -> bool:
    """Return whether two shapes agree but for the axis of the classes."""
    if len(first) != len(second):
        return False
    classes = axis % len(first)
    sizes = enumerate(zip(first, second, strict=True))
    return all(own == other for place, (own, other) in sizes if place != classes)


def broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether an array of one shape broadcasts to another."""
    return len(shape) <= len(wanted) and all(
        size in (1, full)  # no set: hashing a size would fix it under torch.compile
        for size, full in zip(shape[::-1], wanted[::-1], strict=False)
    )


def check_mask(
    route: backends.Route,
    mask: Array,
    wanted: tuple[int, ...],
    mend: str = "for a mask of rows add an axis: where=mask[:, None]",
) -> None:
    """Raise unless ``mask`` is boolean and broadcasts to the shape ``wanted``."""
    dtype, shape = route.caller.dtype_name(mask), mask.shape
    if dtype != "bool":
        raise DTypeError(f"where has dtype {dtype}; expected bool; compare first: where=mask != 0")
    if not broadcasts(shape, wanted):
        raise ShapeError(
            f"where has shape {tuple(shape)}, which does not broadcast to {tuple(wanted)}; {mend}"
        )


def as_number(value: Any) -> Any:
    """Return a scalar of NumPy as the number that it is in Python, anything else as it is."""
    if isinstance(value, np.floating):
        return float(value)
    return int(value) if isinstance(value, np.integer) else value


def order_of(alpha: Any, *, finite: bool, of_logits: bool = False) -> float:
    """Return the order of a divergence, checked; from 0 to ∞ where it need not be finite.

    Of logits none is next to 0: it is multiplied by their differences, and divides probabilities.
    """
    order = constant(setting("alpha", alpha))
    if not (abs(order) < math.inf if finite else order >= 0):
        allowed = "a finite number" if finite else "a number from 0 to math.inf"
        raise OptionError(f"alpha must be {allowed}; got {alpha!r}")
    if of_logits and 0 < abs(order) < LEAST:
        raise OptionError(
            f"alpha must be 0, or {LEAST} from it at least, as float32 has no smaller parts; got "
            f"{alpha!r}; take 0, its limit"
        )
    return float(order)


def setting(name: str, given: Any) -> float:
    """Return an option that is one number; raise where it has a gradient, which would be lost.

    Arrays of one number are read, but for those that a compiler traces or PyTorch differentiates.
    """
    given = as_number(given)
    if isinstance(given, int | float):
        return given
    if not isinstance(given, str | bytes) and not _is_followed(given):
        with suppress(TypeError, ValueError, RuntimeError):  # JAX's tracers raise the first
            return float(given)
    raise OptionError(
        f"{name} must be a number, and no array that is differentiated in or traced; got {given!r}"
    )


def _is_followed(given: Any) -> bool:
    """Return whether it is an array that its library takes derivatives in."""
    try:
        follows = backends.find(given).follows
    except LibraryError:  # a fraction, say
        return False
    return follows is not None and follows(given)


def fixed_temperature(temperature: float | Array) -> float | None:
    """Return a temperature that is a number, checked; None for an array."""
    temperature = as_number(temperature)
    if not isinstance(temperature, int | float):
        return None
    if not 0 < temperature < math.inf:  # no isfinite: torch.compile cannot trace it
        raise OptionError(f"temperature must be positive and finite; got {temperature!r}")
    return float(temperature)


def split_temperature(temperature: float | Array) -> tuple[float | None, Array | None]:
    """Return a temperature as a number, checked, or as an array, and None for the other."""
    fixed = fixed_temperature(temperature)
    return fixed, temperature if fixed is None else None


def check_heat(temperature: float | None, compute: str) -> None:
    """Raise if a temperature has no place in the dtype to compute in."""
    least, most = HEATS[compute]
    if temperature is not None and not least <= temperature <= most:
        raise OptionError(
            f"temperature {temperature!r} is out of range: in {compute} it goes from {least:.1e} "
            f"to {most:.1e}; its limits are the largest logit alone, and all logits alike"
        )


def _in_range(route: backends.Route, heat: Array, compute: str) -> Array:
    """Return an array of temperatures, NaN for one that `check_heat` would refuse."""
    xp, (least, most) = route.caller.namespace(heat), HEATS[compute]
    with route.caller.context(heat):
        heat = cast(xp, heat, compute)
        found: Array = xp.where((heat >= least) & (heat <= most), heat, math.nan)
        return found


def constant(number: float) -> float:
    """Return a number that ``torch.compile(dynamic=True)`` takes for a constant, not for a symbol.

    A number computed from a symbol is a symbol too, and the compiler rounds it wrongly.
    """
    (found,) = {number}  # a number that is hashed is known
    return found


def check_numbers(
    route: backends.Route,
    name: str,
    array: Array,
    rows: tuple[int, ...],
    mend: str = "one number per distribution",
) -> None:
    """Raise unless an array of numbers is floating and broadcasts to the rows."""
    dtype, alone = route.caller.dtype_name(array), "a number, or " if name == "temperature" else ""
    if dtype not in FLOATS:
        raise DTypeError(
            f"{name} has dtype {dtype}; expected {alone}an array of one of {', '.join(FLOATS)}"
            + ("; for a mask pass where=" if dtype == "bool" else "")
        )
    if not broadcasts(array.shape, rows):
        raise ShapeError(
            f"{name} has shape {tuple(array.shape)}, which does not broadcast to {mend}, "
            f"{tuple(rows)}"
        )


def check_row_arrays(
    route: backends.Route,
    arrays: dict[str, Array],
    rows: tuple[int, ...],
    compute: str,
    mend: str = "it masks whole distributions, classes are masked by −inf",
) -> dict[str, Array]:
    """Return arrays by name, broadcast to one number per row; labels and indices as they are.

    A temperature that has no place in the dtype to compute in is NaN.
    """
    found = dict(arrays)
    for name, array in arrays.items():
        if name in {"labels", "target_indices"}:
            continue
        if name == "where":
            check_mask(route, array, rows, mend)
        else:
            check_numbers(route, name, array, rows)
        found[name] = route.caller.namespace(array).broadcast_to(array, rows)
    if "temperature" in found:
        found["temperature"] = _in_range(route, found["temperature"], compute)
    if "beta" in found:
        found["beta"] = route.caller.constant(found["beta"])
    return found
