"""The conformance suite that a backend runs, ours and third parties' alike."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv import backends
from kldiv.config import config_context
from kldiv.errors import BackendError
from kldiv.gradients import value_and_grad
from kldiv.losses import kl_div

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kldiv._types import Array
    from kldiv.backends import Backend

_INF, _NAN = np.inf, np.nan
_Host = np.ndarray[Any, np.dtype[Any]]

# One row an edge of the definition: log Q, P, the element, its slope in log Q, its slope in P.
_EDGES = np.array(
    [
        [-1.0, 0.25, 0.25 * (np.log(0.25) + 1.0), -0.25, np.log(0.25) + 2.0],
        [-0.5, 1.0, 0.5, -1.0, 1.5],
        [-1.0, 0.0, 0.0, 0.0, 0.0],
        [-_INF, 0.0, 0.0, 0.0, 0.0],
        [-_INF, 0.25, _INF, -0.25, _INF],
        [_NAN, 0.25, _NAN, -0.25, _NAN],
        [_NAN, 0.0, _NAN, 0.0, 0.0],
        [-1.0, -0.25, _NAN, 0.25, _NAN],
    ]
).T


def check_backend(backend: Backend | str) -> tuple[str, ...]:
    """
    Check that a backend keeps the promises that kldiv and its users rely on.

    Recognising, exchanging and naming arrays, devices and dtypes; values and gradients of `kl_div`
    at every edge; masks; settings that move arrays there and back.

    Parameters
    ----------
    backend : kldiv.backends.Backend or str
        The adapter, or the name of a known one; registered first where it is not known yet.

    Returns
    -------
    tuple of str
        Names of the checks that were made.

    Raises
    ------
    AssertionError
        A check failed; the message names it, with the actual and the expected value.
    BackendError
        The backend cannot be used here.

    Examples
    --------
    >>> from kldiv.testing import check_backend
    >>> check_backend("numpy")[:2]
    ('description', 'arrays float32')
    """
    if isinstance(backend, str):
        backend = backends.get(backend)
    elif backend.name not in backends.names():
        backends.register_backend(backend)
    problem = backend.problem()
    if problem is not None:
        raise BackendError(f"backend {backend.name!r} cannot be used here: {problem}")
    made = []
    for name, check in _checks(backend):
        try:
            check()
        except Exception as error:
            error.add_note(f"backend {backend.name!r} failed the check {name!r}")
            raise
        made.append(name)
    return tuple(made)


def _checks(backend: Backend) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "description", partial(_check_description, backend)
    for dtype in ("float32", "float64"):
        if _has(backend, dtype):
            yield f"arrays {dtype}", partial(_check_arrays, backend, dtype)
            yield f"values {dtype}", partial(_check_values, backend, dtype)
            yield f"gradients {dtype}", partial(_check_gradients, backend, dtype)
            yield f"masks {dtype}", partial(_check_masks, backend, dtype)
            yield f"settings {dtype}", partial(_check_settings, backend, dtype)
    yield "devices", partial(_check_devices, backend)


def _has(backend: Backend, dtype: str) -> bool:
    """Return whether the library has the dtype here: JAX has float64 only where it is enabled."""
    return backend.dtype_name(backend.from_numpy(np.ones(1, dtype), None)) == dtype


def _check_description(backend: Backend) -> None:
    assert backend.name.isidentifier(), f"name {backend.name!r} is no identifier"
    assert backend.roots, "roots names no module of the library's array types"
    assert backend.kernels[-1] == "pure", f"the last kernel is {backend.kernels[-1]!r}, not 'pure'"
    assert backends.get(backend.name) is backend, "its name finds another backend"
    assert backend.status().usable


def _check_arrays(backend: Backend, dtype: str) -> None:
    values = np.array([[0.0, 1.5, -_INF], [_NAN, -2.0, _INF]], dtype)
    array = backend.from_numpy(values, None)
    assert backends.find(array) is backend, f"{type(array)} is not recognised"
    assert backend.dtype_name(array) == dtype
    assert tuple(array.shape) == (2, 3)
    _compare(backend, array, values, dtype)
    mask = backend.from_numpy(np.array([True, False]), None)
    assert backend.dtype_name(mask) == "bool"
    assert backend.namespace(array) is not None


def _check_values(backend: Backend, dtype: str) -> None:
    x, y, elements, *_ = _edges(backend, dtype)
    _compare(backend, kl_div(x, y, reduction="none"), elements, dtype)
    finite = slice(0, 4)
    x, y = (backend.from_numpy(_EDGES[i, finite].astype(dtype), None) for i in (0, 1))
    total = _EDGES[2, finite].sum()
    for reduction, divisor in (("sum", 1), ("mean", 4), ("batchmean", 4)):
        result = kl_div(x, y, reduction=reduction)  # type: ignore[arg-type]
        _compare(backend, result, np.asarray(total / divisor), dtype)
    with np.errstate(divide="ignore"):
        log_y = backend.from_numpy(np.log(_EDGES[1, finite]).astype(dtype), None)
    _compare(backend, kl_div(x, log_y, reduction="none", log_target=True), _EDGES[2, finite], dtype)


def _check_gradients(backend: Backend, dtype: str) -> None:
    x, y, _, slope_x, slope_y = _edges(backend, dtype)
    _, gradients = value_and_grad(partial(kl_div, reduction="sum"), (0, 1))(x, y)
    _compare(backend, gradients[0], slope_x, dtype)
    _compare(backend, gradients[1], slope_y, dtype)


def _check_masks(backend: Backend, dtype: str) -> None:
    x, y, elements, slope_x, slope_y = _edges(backend, dtype)
    keep = np.isfinite(elements)
    loss = partial(kl_div, where=backend.from_numpy(keep, None))
    value, gradients = value_and_grad(loss, (0, 1))(x, y)
    count = keep.sum()
    _compare(backend, value, np.asarray(elements[keep].sum() / count), dtype)
    _compare(backend, gradients[0], np.where(keep, slope_x, 0.0) / count, dtype)
    _compare(backend, gradients[1], np.where(keep, slope_y, 0.0) / count, dtype)


def _check_settings(backend: Backend, dtype: str) -> None:
    x, y = (_EDGES[i].astype(dtype) for i in (0, 1))
    with config_context(backend=backend.name):
        result = kl_div(x, y, reduction="none")
    assert isinstance(result, np.ndarray), f"a NumPy call returned {type(result)}"
    np.testing.assert_allclose(result, _EDGES[2], rtol=_tolerance(dtype))
    x, y, elements, *_ = _edges(backend, dtype)
    with config_context(backend="numpy"):
        result = kl_div(x, y, reduction="none")
    _compare(backend, result, elements, dtype)


def _check_devices(backend: Backend) -> None:
    devices = backend.devices()
    assert devices, "there is no device"
    for device in devices:
        assert backend.find_device(device) == device
    array = backend.from_numpy(np.ones(2, np.float32), devices[0])
    assert backend.device(array) == devices[0]
    try:
        backend.find_device("no such device")
    except BackendError:
        return
    raise AssertionError("a device that does not exist was found")


def _edges(backend: Backend, dtype: str) -> list[Any]:
    x, y = (backend.from_numpy(row.astype(dtype), None) for row in _EDGES[:2])
    return [x, y, *_EDGES[2:]]


def _tolerance(dtype: str) -> float:
    return 8 * float(np.finfo(dtype).eps)


def _compare(backend: Backend, array: Array, expected: _Host, dtype: str) -> None:
    """Assert library, dtype, shape and values."""
    assert backends.find(array) is backend, (
        f"expected an array of {backend.name}, got {type(array)}"
    )
    assert backend.dtype_name(array) == dtype, f"expected {dtype}, got {array.dtype}"
    assert tuple(array.shape) == expected.shape
    found = backend.on_host(array)
    np.testing.assert_allclose(found, expected.astype(dtype), rtol=_tolerance(dtype))
