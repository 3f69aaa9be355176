"""Value and gradient of a loss on every library, by the operations' own derivatives."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from kldiv._call import Record
from kldiv.errors import LibraryError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._call import Call, SumOfCalls
    from kldiv._types import Array


def value_and_grad(
    loss: Callable[..., Array], argnums: int | tuple[int, ...] = 0
) -> Callable[..., tuple[Array, Array | tuple[Array, ...]]]:
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
        argument's shape, dtype, library and device.

    Raises
    ------
    TypeError
        ``loss`` is none of these.
    OptionError
        ``argnums`` names no differentiable argument.
    ShapeError
        When called: the loss is not a scalar (``reduction="none"``, a measure of several rows).

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

    def value_and_gradient(*args: Any, **kwargs: Any) -> tuple[Array, Array | tuple[Array, ...]]:
        call = prepare(*args, **kwargs)
        value, found = call.value_and_gradients(tuple([index + bound for index in wanted]))
        gradients = tuple(found)
        return value, gradients if isinstance(argnums, tuple) else gradients[0]

    return value_and_gradient


def _unwrap(loss: Any) -> tuple[Callable[..., Call | SumOfCalls], float, int]:
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
