"""One call of a loss: checked, resolved, ready to give its value and its gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar, cast

from kldiv import backends
from kldiv._arguments import as_number, check_normalizer, different
from kldiv.backends import chunks
from kldiv.backends.base import FLOATS, HALVES, Backend
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError
from kldiv.formulas.linear import Pass
from kldiv.formulas.operation import Composite
from kldiv.formulas.reductions import REDUCTIONS
from kldiv.formulas.reductions import cast as in_dtype
from kldiv.formulas.rows import Constants, RowLoss
from kldiv.formulas.weighting import Weighted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kldiv._types import Array, Reduction
    from kldiv.backends.base import Spread
    from kldiv.formulas.operation import Run

_WIDER = {
    (a, b): "float32" if {a, b} == {"float16", "bfloat16"} else FLOATS[max(i, j)]
    for i, a in enumerate(FLOATS)
    for j, b in enumerate(FLOATS)
}

PAIR = "input", "target"
"""Names of the arrays of most losses."""

P = ParamSpec("P")
Result_co = TypeVar("Result_co", covariant=True)
"""The type of the result of a call."""


class Call(Generic[Result_co]):
    """An operation with its arrays and the route that computes it."""

    __slots__ = ("arrays", "axis", "divisor", "exchanged", "operation", "route", "spread")

    def __init__(
        self,
        route: backends.Route,
        operation: Any,
        *arrays: Array,
        axis: int = -1,
        spread: Spread | None = None,
        exchanged: bool = False,
        normalizer: float | Array | None = None,
    ) -> None:
        self.divisor = None
        """The divisor of the sum, and the dtype of the quotient."""
        if normalizer is not None:
            self.divisor = normalizer, operation.result
            operation = replace(operation, reduction="sum", result=operation.total)
        if exchanged:
            first, second, *others = arrays
            arrays = second, first, *others
            if route.moves:
                route = replace(route, first=1)
        self.route = route
        self.operation = operation
        self.arrays = arrays
        self.exchanged = exchanged
        """Whether the operation takes the caller's second array first."""
        self.axis = axis
        """Where the caller has the axis that is the last one here."""
        self.spread = spread
        """How rows are spread over ranks, if they are."""

    def value(self) -> Array:
        """Return the loss."""
        return self._finished(self.reduced())

    def reduced(self) -> Array:
        """Return the loss, still to be divided by a normalizer."""
        if self.spread is not None:
            return self._of_ranks(self.operation, *self.arrays)
        return self.route.run(self.operation, *self.arrays)

    def _of_ranks(self, operation: Any, *arrays: Array) -> Array:
        """Return the loss of rows that are spread over ranks."""
        assert self.spread is not None  # noqa: S101 - the caller has asked
        if isinstance(operation, Weighted):
            arrays = tuple(self.spread.placed(arrays))
            found = self._natively(operation, self._of_ranks, arrays)
            reduced = operation.reduction != "none"
            return self.spread.replicated(arrays[0], found) if reduced else found
        if isinstance(operation, Composite):
            xp = self.route.caller.namespace(arrays[0])
            return operation.composed(xp, self._of_ranks, *arrays)
        return self.spread.value(operation, arrays)

    def _natively(self, operation: Weighted, run: Run, arrays: Sequence[Array]) -> Array:
        """Return a weighted loss by operations that the library differentiates, and ``run``."""
        caller = self.route.caller
        twice = caller.name == "jax"  # whose rows keep their NaN whatever they are times
        with caller.context(arrays[0]):
            xp = caller.namespace(arrays[0])
            return operation.natively(xp, run, caller.constant, arrays, twice=twice)

    def _finished(self, value: Array) -> Array:
        """Return the loss, divided by a normalizer where there is one."""
        return value if self.divisor is None else self._divided(value, self.divisor[1])

    def _divided(self, total: Array, result: str | None = None) -> Array:
        """Return a sum over the normalizer, as it is where the mask keeps nothing."""
        assert self.divisor is not None  # noqa: S101 - both callers have asked
        normalizer, caller = self.divisor[0], self.route.caller
        xp, keep = caller.namespace(total), self.operation.keep(self.arrays)
        with caller.context(total):
            if not isinstance(normalizer, int | float):
                number = in_dtype(xp, caller.constant(normalizer), self.operation.total)
                if self.spread is not None:
                    number = self.spread.replicated(self.arrays[0], number)
            else:
                number = xp.full_like(total, float(normalizer))
            if keep is not None:
                some = xp.any(keep)
                if self.spread is not None:
                    some = self.spread.replicated(self.arrays[0], some)
                number = xp.where(some, number, 1.0)
            elif 0 in self.operation.shape(self.arrays):
                number = xp.ones_like(total)
            quotient = total / number
            return quotient if result is None else in_dtype(xp, quotient, result)

    def argument(self, index: int) -> Array:
        """Return an array as the caller gave it."""
        array = self.arrays[1 - index if self.exchanged else index]
        return self._turned(array, back=True)

    def _turned(self, array: Array, *, back: bool = False) -> Array:
        """Return an array with the caller's axis of classes last, or where the caller has it.

        An array of rows has no such axis, and stays as it is.
        """
        if self.axis == -1 or array.ndim < self.arrays[0].ndim:
            return array
        ends = (-1, self.axis) if back else (self.axis, -1)
        return self.route.caller.namespace(array).moveaxis(array, *ends)

    def value_and_gradients(
        self, wanted: tuple[int, ...], out: Sequence[Array] | None = None
    ) -> tuple[Array, list[Array]]:
        """Return the loss, which must be a scalar, and its gradients in the arrays wanted.

        Gradients are written into ``out``, where it is given.
        """
        into = None if out is None else [self._turned(array) for array in out]
        value, gradients = self._value_and_gradients(wanted, into)
        if out is None or into is None:
            return value, [self._turned(gradient, back=True) for gradient in gradients]
        with self.route.caller.context(value):
            for array, view, gradient in zip(out, into, gradients, strict=True):
                if gradient is not view:
                    array[...] = self._turned(gradient, back=True)
        return value, [*out]

    def _value_and_gradients(
        self, wanted: tuple[int, ...], into: Sequence[Array] | None
    ) -> tuple[Array, list[Array]]:
        if self.spread is not None:
            raise LibraryError(
                "value_and_grad takes whole rows; for logits that are spread over ranks use the "
                "library's own differentiation: loss.backward(), jax.grad"
            )
        operation = self.operation
        if self.exchanged:
            wanted = tuple([1 - index for index in wanted])
        found = None
        if getattr(operation, "reduction", "none") != "none":
            found = self.fused(wanted, into)
        if found is None:
            value, run = self._value_and_run(wanted)
            if value.shape != ():
                raise ShapeError(
                    f"value_and_grad needs a scalar loss; got one of shape {tuple(value.shape)}; "
                    "use reduction='sum', 'mean' or 'batchmean', for a measure one row at a time"
                )
            found = value, [self.gradient(index, value, run) for index in wanted]
        value, gradients = found
        return self._finished(value), gradients

    def fused(
        self, wanted: tuple[int, ...], into: Sequence[Array] | None = None
    ) -> tuple[Array | None, list[Array]] | None:
        """Return the loss and its gradients from one pass, or None where there is no such pass."""
        asked: dict[str, Any] = {"gradients": wanted, "into": into}
        if self.divisor is not None:
            asked["cotangent"] = self._divided(self._one())
        return self.route.fused(self.operation, self.arrays, **asked)

    def _one(self) -> Array:
        """Return the number 1 in the dtype of sums, as an array of the caller's."""
        caller = self.route.caller
        xp = caller.namespace(self.arrays[0])
        with caller.context(self.arrays[0]):
            dtype = getattr(xp, self.operation.total)
            return xp.ones((), dtype=dtype, **caller.placed(self.arrays[0]))

    def _value_and_run(self, wanted: tuple[int, ...]) -> tuple[Array, Run]:
        """Return the loss, and a function that runs the operations of its gradients."""
        route, operation = self.route, self.operation
        # A library's own differentiation must see the operations as they are.
        if route.hooked or route.moves or not isinstance(operation, RowLoss):
            return self.reduced(), route.run
        results = operation.shared(wanted)
        if not results:
            return self.reduced(), route.run
        known = route.compute(operation.settings(Constants, wanted=results), *self.arrays)
        with route.caller.context(known):
            xp = route.caller.namespace(known)
            return operation.with_constants(xp, route.run, results, known, self.arrays)

    def gradient(self, index: int, value: Array, run: Run) -> Array:
        """Return the gradient of the scalar ``value`` in the array of that index."""
        caller = self.route.caller
        xp = caller.namespace(value)
        with caller.context(value):
            ones = xp.ones_like(value)
            if self.divisor is not None:
                ones = self._divided(ones)
            return self.operation.pullback(xp, run, index, ones, *self.arrays)


class SumOfCalls(Generic[Result_co]):
    """Calls of losses of the same arrays, added up, each times numbers, one after another."""

    __slots__ = ("terms",)

    def __init__(self, *terms: tuple[Sequence[float], Call[Any], tuple[int, ...]]) -> None:
        self.terms = terms
        """Factors, call, and which of the arrays it has, in its order."""

    def value(self) -> Array:
        """Return the loss."""
        values = [self._times(factors, call.value()) for factors, call, _ in self.terms]
        return sum(values[1:], values[0])

    def argument(self, index: int) -> Array:
        """Return an array as the caller gave it."""
        return next(
            call.argument(places.index(index)) for _, call, places in self.terms if index in places
        )

    @property
    def route(self) -> backends.Route:
        """The route of the calls."""
        return self.terms[0][1].route

    @property
    def arrays(self) -> list[Array]:
        """All arrays."""
        return [array for _, call, _ in self.terms for array in call.arrays]

    def value_and_gradients(
        self, wanted: tuple[int, ...], out: Sequence[Array] | None = None
    ) -> tuple[Array, list[Array]]:
        """Return the loss, which must be a scalar, and its gradients in the arrays wanted.

        Gradients are written into ``out``, where it is given.
        """
        values: list[Array] = []
        gradients: dict[int, Array] = {}
        for factors, call, places in self.terms:
            own = [index for index in wanted if index in places]
            value, found = call.value_and_gradients(tuple(map(places.index, own)))
            values.append(self._times(factors, value))
            for index, gradient in zip(own, found, strict=True):
                share = self._times(factors, gradient)
                gradients[index] = gradients[index] + share if index in gradients else share
        found = [gradients[index] for index in wanted]
        for array, gradient in zip(out or (), found, strict=out is not None):
            array[...] = gradient
        return sum(values[1:], values[0]), found if out is None else [*out]

    @staticmethod
    def _times(factors: Sequence[float], array: Array) -> Array:
        for factor in factors:
            array = array if factor == 1 else array * factor
        return array


class LinearCall(Call[Any]):
    """A call of linear layers' loss, which adapters run a chunk of rows at a time."""

    __slots__ = ("places",)

    def __init__(
        self, *args: Any, places: Sequence[int | str] = (0, 1, 2, 3), **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.places = places
        """Where the caller's arguments are among the arrays; of one that is not given, its name."""

    def argument(self, index: int) -> Array:
        return self.arrays[self._place(index)]

    def _place(self, index: int) -> int:
        place = self.places[index]
        if isinstance(place, str):
            raise OptionError(f"argnums {index} is {place}, which is not given")
        return place

    def _value_and_gradients(
        self, wanted: tuple[int, ...], into: Sequence[Array] | None
    ) -> tuple[Array, list[Array]]:
        return super()._value_and_gradients((*map(self._place, wanted),), into)

    def reduced(self) -> Array:
        if isinstance(self.operation, Weighted):
            return self._natively(self.operation, self._run_linear, self.arrays)
        return self._run_linear(self.operation, *self.arrays)

    def _run_linear(self, operation: Any, *arrays: Array) -> Array:
        return self.route.caller.run_linear(operation, self.route, arrays)

    def fused(
        self, wanted: tuple[int, ...], into: Sequence[Array] | None = None
    ) -> tuple[Array | None, list[Array]] | None:
        cotangent = None if self.divisor is None else self._divided(self._one())
        if isinstance(self.operation, Weighted):
            return self._weighted(cotangent, wanted)
        return chunks.value_and_gradients(
            self.route, self.operation, wanted, self.arrays, cotangent
        )

    def _weighted(
        self, cotangent: Array | None, wanted: tuple[int, ...]
    ) -> tuple[Array, list[Array]]:
        """Return the loss of weighted rows and its gradients, from one pass."""
        operation, arrays, caller = self.operation, self.arrays, self.route.caller
        xp = caller.namespace(arrays[0])
        with caller.context(arrays[0]):
            weight, factors = operation.factors(xp, cotangent, arrays)
            rows, own = operation.loss, operation.without_weights(arrays)
            weights = rows.row_weight(xp, factors, own)
            values, gradients = chunks.evaluate(self.route, Pass(rows, own, wanted, weights))
            values = xp.where(weight == 0, 0.0, values)
            loss = operation.finish(xp, weight * values, operation.keep(arrays))
            return caller.deliver(loss), rows.finished(xp, gradients, wanted, own, None)


@dataclass(frozen=True)
class Record:
    """The facts of a public function, for code that lists functions."""

    prepare: Callable[..., Call[Any] | SumOfCalls[Any]]
    """Checks the arguments and resolves the settings."""
    arrays: float
    """How many arrays it can be differentiated in."""
    operation: Any = None
    """The operation that it runs, with some settings, where `kldiv.explain` knows it."""


def record_of(function: Callable[..., Any]) -> Record:
    """Return the record of a public function."""
    return cast("Record", cast("Any", function).record)


def differentiable(
    arrays: float, operation: Any = None
) -> Callable[[Callable[P, Call[Result_co] | SumOfCalls[Result_co]]], Callable[P, Result_co]]:
    """Make a function that prepares a call into the public one, which returns its value.

    So each list of options stands once. `kldiv.value_and_grad` takes the functions made here, and
    `kldiv.explain` those that are given an operation; both arguments are fields of `Record`.
    """

    def public(
        prepare: Callable[P, Call[Result_co] | SumOfCalls[Result_co]],
    ) -> Callable[P, Result_co]:
        @wraps(prepare)
        def call(*args: P.args, **kwargs: P.kwargs) -> Result_co:
            try:
                prepared = prepare(*args, **kwargs)
            except TypeError as error:
                for advice in _advice(call, kwargs):
                    error.add_note(advice)
                raise
            value: Result_co = prepared.value()
            return value

        found = cast("Any", call)
        found.__annotations__ = {**prepare.__annotations__, "return": "Array"}
        found.__signature__ = signature(prepare).replace(return_annotation="Array")
        found.record = Record(prepare, arrays, operation)
        return call

    return public


def _advice(call: Any, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the mend of an option that other libraries have, or other functions here."""
    own = call.__signature__.parameters
    for name in ("dim", "axis"):
        if name in options and name not in own:
            if "axis" in own:
                yield f"{call.__name__}: for {name}= say axis=, as NumPy and the array API do"
            else:
                yield (
                    f"{call.__name__} is of elements and has no {name}=: take reduction='none' and"
                    " sum over axes, or kl_divergence(p, q, axis=...) of probabilities"
                )


def resolve_arrays(
    names: Sequence[str], floats: Sequence[Array], **others: Array
) -> tuple[backends.Route, tuple[Array, ...], str]:
    """Resolve floating arrays of those names, and others; return route, arrays, common dtype."""
    arrays: tuple[Array, ...] = (*floats, *others.values())
    route = backends.resolve((*names, *others), *arrays)
    if route.mixed:
        arrays = backends.gather(route, arrays)
    caller = route.caller
    if route.checks:
        if not route.moves:
            caller.check_devices((*names, *others), arrays)
        for name, array in zip(names, arrays, strict=False):
            caller.check(name, array)
    wide = ""
    for name, array in zip(names, arrays, strict=False):
        dtype = caller.dtype_name(array)
        if dtype not in FLOATS:
            raise DTypeError(
                f"{name} has dtype {dtype}; expected one of {', '.join(FLOATS)}; convert it first, "
                "for example to float32"
            )
        if dtype != wide:
            wide = _WIDER[wide, dtype] if wide else dtype
    return route, arrays, wide


def resolve_same_shape(
    input: Array, target: Array, **others: Array
) -> tuple[backends.Route, tuple[Array, ...], str]:
    """Resolve two arrays of one shape, and others, which are not checked."""
    route, arrays, wide = resolve_arrays(PAIR, (input, target), **others)
    if input.shape != target.shape:
        raise different(input.shape, target.shape)
    return route, arrays, wide


class Reducing(NamedTuple):
    """The options that say how rows become a number, and the arrays among them."""

    others: dict[str, Array]
    """Arrays of rows by name, in the order of an operation's, then the normalizer."""
    number: float | None
    """A normalizer that is no array."""

    @classmethod
    def of(
        cls,
        reduction: Reduction,
        normalizer: float | Array | None,
        of_rows: Mapping[str, Array | None],
    ) -> Reducing:
        """Check the options as far as they are no arrays."""
        check_reduction(reduction)
        others = {name: array for name, array in of_rows.items() if array is not None}
        if normalizer is None:
            return cls(others, None)
        if reduction == "none":
            raise OptionError(
                "normalizer divides a sum, and reduction='none' has none; leave one of them out"
            )
        normalizer = as_number(normalizer)
        if isinstance(normalizer, int | float):
            return cls(others, normalizer)
        return cls({**others, "normalizer": normalizer}, None)

    def named(
        self, route: backends.Route, arrays: Sequence[Array]
    ) -> tuple[dict[str, Array], float | Array | None]:
        """Return the arrays of rows by name, as they were resolved, and the normalizer."""
        if not self.others:
            return {}, self.number
        found = dict(zip(self.others, arrays, strict=True))
        if "normalizer" in found:
            check_normalizer(route, found["normalizer"])
        divisor = found.pop("normalizer", self.number)
        return found, divisor

    def loss(self, operation: Any) -> Any:
        """Return the operation with weights, if there are any."""
        return Weighted.of(operation) if "row_weight" in self.others else operation


def integers_in_float64(names: Sequence[str], arrays: Sequence[Array]) -> tuple[Array, ...]:
    """Return the arrays, integers converted to float64, by JAX to its default float dtype."""
    arrays = tuple(arrays)
    route = backends.resolve(names, *arrays)
    if route.mixed:
        arrays = backends.gather(route, arrays)
    return tuple([_in_float64(route.caller, array) for array in arrays])


def _in_float64(caller: Backend, array: Array) -> Array:
    if "int" not in caller.dtype_name(array):
        return array
    if caller.name == "jax":
        return array * 1.0  # float32 unless float64 is enabled, when a cast would only warn
    xp = caller.namespace(array)
    with caller.context(array):
        return xp.astype(array, xp.float64)


def dtypes(route: backends.Route, wide: str, dtype: Any, array: Array) -> tuple[str, str, str]:
    """Return the names of the dtypes to compute in, to sum in, and to return."""
    if dtype is not None:
        result = _dtype_name(dtype)
    elif wide in HALVES and route.caller.autocasts(array):
        result = "float32"
    else:
        result = wide
    compute = _WIDER[wide, result]
    if compute in HALVES:
        compute = "float32"
    # The caller applies the upstream gradient itself, so it must have float64 as well.
    wider = route.backend.numpy_float32 and route.caller.numpy_float32
    return compute, "float64" if wider else compute, result


def wider(first: str, second: str) -> str:
    """Return the name of the dtype that holds both."""
    return _WIDER[first, second]


def check_reduction(reduction: Reduction) -> None:
    """Raise unless ``reduction`` is one of the four names."""
    if reduction not in REDUCTIONS:
        raise OptionError(
            f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}; got {reduction!r}"
        )


def _dtype_name(dtype: Any) -> str:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None)
    name = name or getattr(dtype, "__name__", None) or str(dtype).rpartition(".")[2]
    if name not in FLOATS:
        raise DTypeError(
            f"dtype must be one of {', '.join(FLOATS)}, by name or as the library's own; "
            f"got {dtype!r}"
        )
    return name
