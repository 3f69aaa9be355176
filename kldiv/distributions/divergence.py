"""D(P‖Q) of two distributions: convert, find the closed form, resolve, run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kldiv import backends
from kldiv._call import dtypes, wider
from kldiv.backends.base import FLOATS
from kldiv.distributions import numerical
from kldiv.distributions.base import Distribution, broadcast, flatten, rebuild
from kldiv.distributions.foreign import convert, unknown
from kldiv.distributions.integrable import has_density, with_density
from kldiv.distributions.outcomes import check_outcomes
from kldiv.distributions.registry import NoClosedFormError, closed_form, find, no_closed_form
from kldiv.distributions.wrappers import Bijection, anonymous, cancel, event_rank
from kldiv.errors import DTypeError, LibraryError, OptionError
from kldiv.formulas.reductions import Loss, cast

if TYPE_CHECKING:
    from kldiv._types import Array, Namespace
    from kldiv.distributions.base import Spec

METHODS = ("quadrature", "monte_carlo")
_NUMPY = (np.ndarray, np.generic)  # no unions: torch.compile cannot make them
_PLAIN = (*_NUMPY, int, float)


def divergence(p: Any, q: Any, *, unit: float = 1.0, method: str | None = None) -> Any:
    """Return D(p‖q) of two distributions, in units of ``unit`` nats."""
    if method is not None and method not in METHODS:
        raise OptionError(
            f"method must be one of {', '.join(map(repr, METHODS))}, or None for the closed form; "
            f"got {method!r}"
        )
    given = p, q
    p, q = convert("p", p), convert("q", q)
    shape = broadcast("p and q together", p.batch_shape, q.batch_shape)
    check_outcomes(p, q)
    if method is not None:
        p, q = map(with_density, (p, q), given)
        return numerical.estimate(p, q, method, unit)
    try:
        return _closed_form(p, q, shape, unit)
    except NoClosedFormError as error:
        points = [numerical.concentrated(d) for d in (p, q)]
        if any(points):
            p, q = (point or d for point, d in zip(points, (p, q), strict=True))
            return _closed_form(p, q, shape, unit)
        raise NoClosedFormError(f"{error}; {_mend(p, q, given)}") from None


def _closed_form(p: Distribution, q: Distribution, shape: tuple[int, ...], unit: float) -> Any:
    if find(type(p), type(q)) is None or unknown(p) or unknown(q):
        raise no_closed_form(p, q)
    p, q = cancel(p, q)
    leaves: list[Any] = []
    seen: dict[Bijection, int] = {}
    spec_p, spec_q = (flatten(anonymous(d, seen), leaves) for d in (p, q))
    route, arrays, (_, compute, result) = _resolve(leaves)
    if route.caller.in_blocks:
        _check_elementwise(p, q)
        xp = route.caller.namespace(arrays[0])
        arrays = [xp.broadcast_to(array, shape) for array in arrays]
    operation = ClosedForm("none", compute, compute, result, spec_p, spec_q, unit, len(arrays))
    return route.run(operation, *arrays)


def _mend(p: Distribution, q: Distribution, given: tuple[Any, Any]) -> str:
    """Return the methods that work for a pair without a closed form, in words."""
    dense = [has_density(d) for d in map(with_density, (p, q), given)]
    ways = []
    if all(dense) and event_rank(p) in (0, None) and event_rank(q) in (0, None):
        ways.append("method='quadrature' (integrates the densities)")
    if all(dense):
        ways.append("method='monte_carlo' (averages over samples of P)")
    own = "a closed form of your own can be added by kldiv.register_kl"
    if ways:
        return f"an estimate with its standard error is returned by {', '.join(ways)}; {own}"
    return f"their densities, unlike SciPy's and PyTorch's, cannot be used here; {own}"


@dataclass(frozen=True)
class ClosedForm(Loss):
    """The closed form of a pair of distributions; arrays: the parameters of P, then of Q."""

    p: Spec = ()
    q: Spec = ()
    unit: float = 1.0
    number: int = 0

    name: ClassVar[str] = "kl_divergence"

    @property
    def differentiable(self) -> int:
        """All parameters."""
        return self.number

    @property
    def native(self) -> bool:
        """Whether a library's own differentiation is right: closed forms are written for it."""
        return True

    def keep(self, arrays: Any) -> None:
        """Return no mask."""

    def elements(self, xp: Namespace, *arrays: Array) -> Array:
        """Evaluate the closed form for each batch entry."""
        leaves = [cast(xp, array, self.compute) for array in arrays]
        p, q = rebuild(self.p, leaves), rebuild(self.q, leaves)
        value = closed_form(xp, p, q)
        return value if self.unit == 1.0 else value / self.unit


def _resolve(leaves: list[Any]) -> tuple[backends.Route, list[Array], tuple[str, str, str]]:
    """Return the route, all parameters as arrays of its caller, and the dtypes to use."""
    leaves = _as_numbers(leaves)
    given = tuple(leaf for leaf in leaves if hasattr(leaf, "dtype"))
    if not given:
        leaves = [np.asarray(leaf, dtype=np.float64) for leaf in leaves]
        given = tuple(leaves)
    route = backends.resolve(("the parameters of p and q",), *given)
    found = backends.gather(route, given) if route.mixed else given
    caller, first = route.caller, found[0]
    wide: str | None = None
    for array in found:
        caller.check("a parameter", array)
        name = caller.dtype_name(array)
        if name in FLOATS:
            wide = name if wide is None else wider(wide, name)
        elif not name.startswith(("int", "uint")):
            raise DTypeError(
                f"a parameter has dtype {name}; expected an integer or one of {', '.join(FLOATS)}"
            )
    xp = caller.namespace(first)
    if wide is None:  # integers only: as the library converts them
        wide = caller.dtype_name(xp.asarray(0.0))
    names = dtypes(route, wide, None, first)
    numbers = getattr(xp, names[1])
    rest = iter(found)
    with caller.context(first):
        arrays = [
            next(rest)
            if hasattr(leaf, "dtype")
            else xp.asarray(float(leaf), dtype=numbers, **caller.placed(first))
            for leaf in leaves
        ]
    return route, arrays, names


def _as_numbers(leaves: list[Any]) -> list[Any]:
    """Return NumPy's scalars, beside arrays of another library, as the numbers that they are."""
    if all(isinstance(leaf, _PLAIN) for leaf in leaves):
        return leaves
    return [leaf.item() if isinstance(leaf, _NUMPY) and not leaf.shape else leaf for leaf in leaves]


def _check_elementwise(p: Distribution, q: Distribution) -> None:
    """Raise where arrays that are computed in blocks cannot be cut for these families."""
    for d in (p, q):
        if d.event_axes or any(isinstance(value, Distribution) for _, value in d.parameters()):
            raise LibraryError(
                f"{type(d).__name__} has events with axes, which lazy arrays cannot be cut along; "
                "call compute() on its parameters first"
            )
