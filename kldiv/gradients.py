"""Value and gradient of a loss on every library, by the operations' own derivatives."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, overload

from kldiv import backends
from kldiv._call import Record
from kldiv.errors import DTypeError, LibraryError, OptionError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._call import Call, SumOfCalls
    from kldiv._types import Array, ArrayT


class WithGradient(Protocol):
    """A loss that returns its gradient in one array too."""

    def __call__(
        self, array: ArrayT, /, *args: Any, out: ArrayT | None = None, **options: Any
    ) -> tuple[ArrayT, ArrayT]:
        """Return value and gradient."""


class WithGradients(Protocol):
    """A loss that returns its gradients in several arrays too."""

    def __call__(
        self, array: ArrayT, /, *args: Any, out: tuple[Any, ...] | None = None, **options: Any
    ) -> tuple[ArrayT, tuple[ArrayT, ...]]:
        """Return value and gradients."""


@overload
def value_and_grad(loss: Callable[..., Any], argnums: int = 0) -> WithGradient: ...
@overload
def value_and_grad(loss: Callable[..., Any], argnums: tuple[int, ...]) -> WithGradients: ...
def value_and_grad(loss: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Any:
    """
    Return a function that computes a loss and its gradient, on every library alike.

    NumPy and CuPy have no automatic differentiation; here the gradient comes from the loss' own
    derivative, the same rule that the gradient hooks of PyTorch and JAX use.

    Parameters
    ----------
    loss : callable
        A loss or a measure of kldiv, a ``functools.partial`` of one, or a `KLDivLoss`.
    argnums : int or tuple of int, default 0
        Which argument to differentiate in: 0 is ``input`` (or ``p``), 1 is ``target`` (``q``), of
        `linear_kl_div` 0 to 3, of `topk_kl_div_with_logits` 2 is ``target_rest``; a tuple gives a
        tuple of gradients.

    Returns
    -------
    callable
        Takes the loss' arguments; returns the pair (value, gradient), the gradient of the
        argument's shape, dtype, library and device. With ``out=`` the gradient is written into an
        array that is there, of a library whose arrays can be changed: new memory costs a large
        gradient more time than computing it. Of a tuple of ``argnums`` it is a tuple too.

    Raises
    ------
    TypeError
        ``loss`` is none of these.
    OptionError
        ``argnums`` names no differentiable argument.
    ShapeError
        When called: the loss is not a scalar (``reduction="none"``, a measure of several rows), or
        ``out`` has another shape than the argument.
    DTypeError, LibraryError
        When called: ``out`` has another dtype, library or device than the argument, or cannot be
        written to: read-only, of JAX or Dask, in memory that an argument has too.

    Examples
    --------
    >>> import functools
    >>> import numpy as np
    >>> import kldiv
    >>> p, log_q = np.array([0.5, 0.5]), np.log([0.25, 0.75])
    >>> loss = functools.partial(kldiv.kl_div, reduction="sum")
    >>> value, gradient = kldiv.value_and_grad(loss)(log_q, p)
    >>> round(float(value), 6), gradient
    (0.143841, array([-0.5, -0.5]))

    Memory that is used again from step to step:

    >>> gradient = np.empty_like(log_q)
    >>> value, same = kldiv.value_and_grad(loss)(log_q, p, out=gradient)
    >>> same is gradient, gradient
    (True, array([-0.5, -0.5]))
    """
    prepare, most, bound = _unwrap(loss)
    wanted = argnums if isinstance(argnums, tuple) else (argnums,)
    for index in wanted:
        if type(index) is not int or not 0 <= index + bound < most:
            raise OptionError(
                "argnums must be 0 (the first array), 1 (the second; linear_kl_div and "
                "js_divergence have more) or a tuple of these; got "
                f"{argnums!r}"
            )
    if len(set(wanted)) < len(wanted):
        raise OptionError(f"argnums names an array twice; got {argnums!r}")

    def value_and_gradient(
        *args: Any, out: Array | tuple[Array, ...] | None = None, **kwargs: Any
    ) -> tuple[Array, Array | tuple[Array, ...]]:
        call, places = prepare(*args, **kwargs), tuple([index + bound for index in wanted])
        given = None
        if out is not None:
            given = _checked(call, places, out, several=isinstance(argnums, tuple))
        value, found = call.value_and_gradients(places, given)
        gradients = tuple(found)
        return value, gradients if isinstance(argnums, tuple) else gradients[0]

    return value_and_gradient


def _checked(
    call: Call[Any] | SumOfCalls[Any], places: tuple[int, ...], out: Any, *, several: bool
) -> list[Array]:
    """Return arrays for gradients, each fit for its own."""
    given = [*out] if several and isinstance(out, tuple | list) else [out]
    if len(given) != len(places) or (several and not isinstance(out, tuple | list)):
        raise OptionError(
            f"out must be a tuple of {len(places)} arrays, one for each of argnums; "
            f"got {type(out).__name__}" + (f" of {len(out)}" if isinstance(out, tuple) else "")
        )
    for index, (place, array) in enumerate(zip(places, given, strict=True)):
        name = f"out[{index}]" if several else "out"
        argument = call.argument(place)
        caller = call.route.caller
        if backends.find(array) is not caller:
            found = backends.find(array).name
            raise LibraryError(f"{name} is an array of {found}; expected one of {caller.name}")
        if array.shape != argument.shape:
            shapes = f"{tuple(array.shape)}; expected {tuple(argument.shape)}"
            raise ShapeError(f"{name} has shape {shapes}, that of the argument")
        dtype, expected = map(caller.dtype_name, (array, argument))
        if dtype != expected:
            raise DTypeError(f"{name} has dtype {dtype}; expected {expected}, the argument's")
        if caller.device(array) != caller.device(argument):
            devices = f"{caller.device(array)}; expected {caller.device(argument)}"
            raise LibraryError(f"{name} is on {devices}, where the argument is")
        problem = caller.unwritable(array, [*call.arrays, *given[:index]])
        if problem:
            raise LibraryError(f"{name} cannot be written to: {problem}")
    return given


def _unwrap(loss: Any) -> tuple[Callable[..., Call[Any] | SumOfCalls[Any]], float, int]:
    """Return the function that prepares ``loss``, its number of arrays, and how many are bound."""
    if isinstance(loss, partial):
        prepare, most, bound = _unwrap(loss.func)
        return partial(prepare, *loss.args, **loss.keywords), most, bound + len(loss.args)
    record = getattr(loss, "record", None)
    if isinstance(record, Record):
        return record.prepare, record.arrays, 0
    raise LibraryError(
        "value_and_grad takes a loss of kldiv, a functools.partial of one, or a KLDivLoss; got "
        f"{loss!r}; for a function of your own use the library's automatic differentiation"
    )
