"""The registry of adapters, by name and by array type, which begins with the table's.

An array's type decides its library, once per type.  The table's adapters come first, so that a
registered one never takes over arrays that a built-in one serves.
"""

from __future__ import annotations

import copyreg
from importlib import import_module
from typing import TYPE_CHECKING

from kldiv.backends import table
from kldiv.backends.base import Backend, BackendStatus
from kldiv.backends.generic import GenericBackend
from kldiv.backends.table import GROUP, TABLE, names
from kldiv.errors import BackendError, ConfigError, LibraryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kldiv._types import Array

_loaded: dict[str, Backend] = {}
_registered: dict[str, Backend] = {}
_by_type: dict[type, Backend] = {}
on_registration: list[Callable[[], None]] = []
"""Functions that clear other caches of types when a backend is registered."""


def get(name: str) -> Backend:
    """Return the backend of that name, loading it at first use."""
    if name in TABLE and name not in _loaded:
        backend = _load(name)
        if isinstance(backend, str):
            raise unusable(name, backend, TABLE[name].install)
        _loaded[name] = _pickled_by_name(backend)
    if name not in _loaded and name not in _registered:
        _load_entry_points(name)
    found = _loaded.get(name) or _registered.get(name)
    if found is None:
        raise ConfigError(f"no backend is called {name!r}; known: {', '.join(names())}")
    return found


def _pickled_by_name(backend: Backend) -> Backend:
    """Pickle a backend by its name, so that a scheduler's workers use their own; return it."""
    copyreg.pickle(type(backend), lambda each: (get, (each.name,)))
    return backend


def _load(name: str) -> Backend | str:
    """Return the adapter of a built-in backend, or why its library cannot be imported."""
    try:
        return import_module(f"kldiv.backends.{name}_").BACKEND
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name in TABLE[name].roots
        return f"{name} is not installed" if missing else f"importing {name} fails: {error}"


def unusable(name: str, reason: str, install: str) -> BackendError:
    """Return the error for a backend that cannot be used here."""
    mend = f"; install it: {install}" if install else ""
    return BackendError(f"backend {name!r} cannot be used here: {reason}{mend}")


def register_backend(backend: Backend) -> None:
    """
    Make a third-party backend known, by its name and for its library's arrays.

    Parameters
    ----------
    backend : kldiv.backends.Backend
        An adapter of a library that no built-in backend serves. Installed packages can offer
        theirs by the entry-point group ``kldiv.backends`` instead, which is loaded when its name is
        asked for; installing one changes no result on its own.

    Raises
    ------
    TypeError
        Not an instance of `kldiv.backends.Backend`.
    ConfigError
        The name is taken.

    See Also
    --------
    kldiv.testing.check_backend : The conformance suite that a backend should pass.

    Examples
    --------
    >>> import kldiv
    >>> from kldiv.backends import Backend
    >>> class Mine(Backend):
    ...     name, roots, module = "mine", ("mine",), "mine"
    >>> kldiv.register_backend(Mine())
    """
    if not isinstance(backend, Backend):
        raise LibraryError(
            "register_backend expects an instance of kldiv.backends.Backend, got "
            f"{type(backend).__name__}; derive your adapter from it and pass an instance"
        )
    if backend.name in {*TABLE, "auto"} or backend.name in _registered:
        raise ConfigError(f"a backend called {backend.name!r} exists already; choose another name")
    _registered[backend.name] = _pickled_by_name(backend)
    table.registered[backend.name] = backend.kernels
    _by_type.clear()
    for forget in on_registration:
        forget()


def _load_entry_points(name: str) -> None:
    from importlib.metadata import entry_points  # noqa: PLC0415 - only an unknown name needs it

    for point in entry_points(group=GROUP, name=name):
        backend = point.load()
        register_backend(backend() if isinstance(backend, type) else backend)


def available_backends(*, unusable: bool = False) -> dict[str, BackendStatus]:
    """
    Return the backends that can be used here.

    Parameters
    ----------
    unusable : bool, default False
        List those too that cannot be used here, with the reason and the line that installs them.

    Returns
    -------
    dict of str to BackendStatus
        Name, version, devices and kernels of each.  Asking imports every installed library.

    Examples
    --------
    >>> import kldiv
    >>> kldiv.available_backends()["numpy"].devices
    ('cpu',)
    """
    found = {name: _status(name) for name in names()}
    return {name: status for name, status in found.items() if status.usable or unusable}


def _status(name: str) -> BackendStatus:
    if name in TABLE and name not in _loaded:
        backend = _load(name)
        if isinstance(backend, str):
            return BackendStatus(name, usable=False, reason=backend, install=TABLE[name].install)
    return get(name).status()


def find(array: Array) -> Backend:
    """Return the adapter of the array's library."""
    return find_type(type(array))


def find_type(cls: type) -> Backend:
    """Return the adapter of the library that defines the array type ``cls``."""
    if cls not in _by_type:
        _by_type[cls] = _recognise(cls)
    return _by_type[cls]


def _recognise(cls: type) -> Backend:
    roots = {base.__module__.partition(".")[0] for base in cls.__mro__}
    for name, entry in TABLE.items():
        if roots.intersection(entry.roots) and get(name).recognises(cls):
            return get(name)
    for backend in _registered.values():
        if backend.recognises(cls):
            return backend
    if hasattr(cls, "__array_namespace__"):
        root = cls.__module__.partition(".")[0]
        return _loaded.setdefault(root, _pickled_by_name(GenericBackend(root)))
    mend = "convert it, for example by numpy.asarray"
    if hasattr(cls, "toarray"):
        mend = "convert it, for example by its own toarray()"
    elif cls.__name__ == "KerasTensor":
        mend = "call the loss in a layer, by its call method or keras.layers.Lambda"
    raise LibraryError(
        "expected an array of NumPy, PyTorch, JAX, CuPy, Dask or another library of the Python "
        f"array API, got {cls.__module__}.{cls.__qualname__}; {mend}"
    )
