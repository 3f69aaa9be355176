"""Which closed form serves which pair of families: the most specific one, as in PyTorch."""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from kldiv.distributions.base import Distribution, broadcast
from kldiv.distributions.supports import never_covers
from kldiv.errors import LibraryError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array, Namespace
    from kldiv.distributions.base import Formula

    F = TypeVar("F", bound="Callable[..., Any]")

REGISTRY: dict[tuple[type[Distribution], type[Distribution]], Formula] = {}
"""The closed forms, by the types of P and Q."""


class NoClosedFormError(OptionError, NotImplementedError):
    """A pair of distributions for which no closed form is known."""


def register_kl(p: Any, q: Any) -> Callable[[F], F]:
    """
    Register a closed form of D(P‖Q) for a pair of families; a decorator.

    Parameters
    ----------
    p : type
        The family of P, a subclass of `kldiv.distributions.Distribution`.
    q : type
        The family of Q.

    Returns
    -------
    callable
        Takes a function ``f(xp, p, q)`` and gives it back. It is called with the array-API
        namespace and the two distributions, whose parameters are arrays of one floating dtype that
        broadcast, and returns one number for each batch entry, in nats. ``xp.special`` has special
        functions by the names of ``scipy.special``. A pair that is registered already is replaced.

    Raises
    ------
    TypeError
        Not subclasses of `kldiv.distributions.Distribution`.

    See Also
    --------
    kl_divergence : Takes the closed form of the most specific pair.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from typing import Any
    >>> import kldiv
    >>> from kldiv.distributions import Distribution
    >>> @dataclass(frozen=True, eq=False)
    ... class Rayleigh(Distribution):
    ...     scale: Any
    >>> @kldiv.register_kl(Rayleigh, Rayleigh)
    ... def rayleigh(xp, p, q):
    ...     ratio = (p.scale / q.scale) ** 2
    ...     return ratio - 1 - xp.log(ratio)
    >>> round(float(kldiv.kl_divergence(Rayleigh(1.0), Rayleigh(2.0))), 6)
    0.636294
    """
    for cls in (p, q):
        if not (isinstance(cls, type) and issubclass(cls, Distribution)):
            raise LibraryError(
                "register_kl takes two subclasses of kldiv.distributions.Distribution; got "
                f"{cls!r}; derive the family from it, as a frozen dataclass of its parameters"
            )

    def register(formula: F) -> F:
        REGISTRY[p, q] = formula
        _found.clear()
        return formula

    return register


_found: dict[tuple[type, type], Formula | None] = {}


def find(p: type[Distribution], q: type[Distribution]) -> Formula | None:
    """Return the closed form for two families, or None."""
    if (p, q) not in _found:
        import_module("kldiv.distributions.closed_forms")
        _found[p, q] = _most_specific(p, q) or (
            infinite if never_covers(q.support, p.support) else None
        )
    return _found[p, q]


def _most_specific(p: type[Distribution], q: type[Distribution]) -> Formula | None:
    fitting = [pair for pair in REGISTRY if issubclass(p, pair[0]) and issubclass(q, pair[1])]
    if not fitting:
        return None
    of_p, of_q = p.__mro__.index, q.__mro__.index
    left = min(fitting, key=lambda pair: (of_p(pair[0]), of_q(pair[1])))
    right = min(fitting, key=lambda pair: (of_q(pair[1]), of_p(pair[0])))
    if REGISTRY[left] is not REGISTRY[right]:
        names = (f"({a.__name__}, {b.__name__})" for a, b in (left, right))
        warnings.warn(
            f"for D({p.__name__}‖{q.__name__}) the closed forms of {' and '.join(names)} are "
            "equally specific; the first is taken: register one for the pair itself",
            RuntimeWarning,
            stacklevel=4,
        )
    return REGISTRY[left]


def infinite(xp: Namespace, p: Distribution, q: Distribution) -> Array:
    """Return +∞, or NaN where a parameter is NaN."""
    return blank(xp, p) + blank(xp, q) + math.inf


def blank(xp: Namespace, d: Distribution) -> Array:
    """Return 0 for each entry of the batch, NaN where a parameter is NaN."""
    total: Any = 0.0
    for name, value in d.parameters():
        if not isinstance(value, Distribution) and not hasattr(value, "dtype"):
            continue  # a count
        if isinstance(value, Distribution):
            part = blank(xp, value)
            axes = max(0, len(value.batch_shape) - len(d.batch_shape))
        else:
            part = 0.0 * xp.where(xp.isnan(value), value, 0.0)
            axes = d.event_axes.get(name, 0)
        total = total + (xp.sum(part, axis=tuple(range(-axes, 0))) if axes else part)
    return total


def closed_form(xp: Namespace, p: Any, q: Any) -> Array:
    """Return D(P‖Q) of two prepared distributions, for formulas that build on others."""
    formula = find(type(p), type(q))
    if formula is None:
        raise no_closed_form(p, q)
    value = formula(xp, p, q)
    shape = broadcast("p and q together", p.batch_shape, q.batch_shape)
    return value if tuple(value.shape) == shape else xp.broadcast_to(value, shape)


def no_closed_form(p: Any, q: Any) -> NoClosedFormError:
    """Return the error for a pair without a closed form; the caller adds the mend."""
    return NoClosedFormError(f"no closed form is known for D({p.label()}‖{q.label()})")
