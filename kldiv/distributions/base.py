"""The base of distributions: a small immutable holder of parameters, on any array library."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kldiv._types import Array

Spec: TypeAlias = tuple[Any, ...]
"""A distribution without its arrays: hashable, so that a compiler can cache on it."""

_as_pytree: set[type] = set()


@dataclass(frozen=True, eq=False)
class Distribution:
    """Base of all holders: parameters are arrays of one library, or numbers, and broadcast.

    Values are never looked at: a number that is no parameter of the family gives NaN.
    """

    support: ClassVar[str] = ""
    """Where the family has mass: a name that `kldiv.distributions.supports` knows."""
    event_axes: ClassVar[dict[str, int]] = {}
    """How many of a parameter's last axes belong to one event, where there are any."""
    options: ClassVar[tuple[str, ...]] = ()
    """Parameters that are no arrays: they are part of the structure."""
    counts: ClassVar[tuple[str, ...]] = ()
    """Parameters that formulas get as the Python number that they are, where they are one."""
    one_of: ClassVar[tuple[str, ...]] = ()
    """Parameters of which exactly one is given."""
    parts: ClassVar[tuple[str, ...]] = ()
    """Parameters that are distributions."""

    def __post_init__(self) -> None:
        given = [name for name in self.one_of if getattr(self, name) is not None]
        if self.one_of and len(given) != 1:
            raise OptionError(
                f"{type(self).__name__} takes exactly one of {', '.join(self.one_of)}; got "
                f"{', '.join(given) or 'none'}"
            )
        for name, value in self.parameters():
            if name in self.parts and not isinstance(value, Distribution):
                raise LibraryError(
                    f"{name} of {type(self).__name__} must be one of kldiv.distributions; got "
                    f"{type(value).__name__}; kldiv.distributions.convert({name!r}, …) gives one "
                    "of another library's distribution"
                )
            if not _is_parameter(value):
                raise DTypeError(
                    f"{name} of {type(self).__name__} must be a number or an array; got "
                    f"{type(value).__name__}; convert it, for example by numpy.asarray"
                )
        if "jax" in sys.modules:
            _register_pytree(type(self))

    def parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield the names and values of the parameters that are arrays, numbers or distributions.

        Yields
        ------
        tuple of str and object
            Name and value.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in self.options and value is not None:
                yield field.name, value

    def label(self) -> str:
        """Return the family's name, with the names of its parts."""
        inner = [v.label() for _, v in self.parameters() if isinstance(v, Distribution)]
        return type(self).__name__ + (f"({', '.join(inner)})" if inner else "")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch: the common shape of the parameters, without the axes of an event."""
        shapes = []
        for name, value in self.parameters():
            shape = value.batch_shape if isinstance(value, Distribution) else _shape(value)
            axes = self.event_axes.get(name, 0)
            if len(shape) < axes:
                raise ShapeError(
                    f"{name} of {type(self).__name__} needs {axes} axes for an event; got shape "
                    f"{shape}"
                )
            shapes.append(shape[: len(shape) - axes])
        return broadcast(type(self).__name__, *shapes)


def exp(value: Any) -> Any:
    """Return eˣ of a parameter: an array of any library, or a number."""
    if not hasattr(value, "dtype"):
        return math.exp(value)
    from kldiv import backends  # noqa: PLC0415 - a holder itself needs none

    return backends.find(value).namespace(value).exp(value)


def _is_parameter(value: Any) -> bool:
    array = hasattr(value, "shape") and hasattr(value, "dtype")
    return array or isinstance(value, int | float | Distribution)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def broadcast(what: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that shapes broadcast to."""
    wide: list[int] = []
    for shape in shapes:
        wide = [1] * (len(shape) - len(wide)) + wide
        for place, size in enumerate(shape[::-1], 1):
            if size != 1 and wide[-place] not in (1, size):
                raise ShapeError(
                    f"parameters of {what} must broadcast; got "
                    f"{' and '.join(str(tuple(s)) for s in shapes)}"
                )
            wide[-place] = size if wide[-place] == 1 else wide[-place]
    return tuple(wide)


# --- taking apart and putting together ------------------------------------------------------------


def flatten(distribution: Distribution, leaves: list[Any]) -> Spec:
    """Append the arrays and numbers of a distribution to ``leaves``; return the rest of it."""
    parts: list[tuple[str, str, Any]] = []
    for field in fields(distribution):
        value = getattr(distribution, field.name)
        if field.name in distribution.counts and isinstance(value, (int, np.integer)):
            parts.append((field.name, "option", int(value)))
        elif field.name in distribution.options or value is None:
            parts.append((field.name, "option", value))
        elif isinstance(value, Distribution):
            parts.append((field.name, "distribution", flatten(value, leaves)))
        else:
            parts.append((field.name, "leaf", len(leaves)))
            leaves.append(value)
    return type(distribution), tuple(parts)


def rebuild(spec: Spec, leaves: list[Array]) -> Any:
    """Return the distribution of a `flatten`, with other arrays in its place."""
    cls, parts = spec
    values: dict[str, Any] = {}
    for name, kind, value in parts:
        if kind == "leaf":
            values[name] = leaves[value]
        else:
            values[name] = rebuild(value, leaves) if kind == "distribution" else value
    return restore(cls, values)


def changed(distribution: Distribution, change: Callable[[str, Any], Any]) -> Any:
    """Return a distribution of the same family, each parameter replaced by ``change`` of it."""
    values = {field.name: getattr(distribution, field.name) for field in fields(distribution)}
    values.update({name: change(name, value) for name, value in distribution.parameters()})
    return restore(type(distribution), values)


def restore(cls: type, values: dict[str, Any]) -> Any:
    """Return a distribution of any values, without a check: compilers put placeholders in."""
    made: Any = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def _register_pytree(cls: type[Distribution]) -> None:
    """Tell JAX how to take a family apart: by its adapter, once, and only where JAX is imported."""
    if cls in _as_pytree:
        return
    _as_pytree.add(cls)
    names = [field.name for field in fields(cls)]
    data = [name for name in names if name not in cls.options]
    rest = [name for name in names if name in cls.options]

    def take_apart(made: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(made, n) for n in data), tuple(getattr(made, n) for n in rest)

    def put_together(options: tuple[Any, ...], children: tuple[Any, ...]) -> Any:
        values = {**dict(zip(data, children, strict=True)), **dict(zip(rest, options, strict=True))}
        return restore(cls, values)

    from kldiv import backends  # noqa: PLC0415 - only where there is JAX

    backends.get("jax").register_container(cls, take_apart, put_together)


Formula: TypeAlias = "Callable[[Any, Any, Any], Array]"
"""A closed form: takes the namespace, P and Q with arrays of one dtype; returns D(P‖Q)."""
