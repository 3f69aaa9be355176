"""Which backend serves which array: a table of names, and the registry that grows from it.

The table holds strings, so nothing heavy is imported until an array of a library appears, or its name is
asked for.  An array's type decides its library, once per type: `_ADAPTERS` remembers it.  The adapters of
the table come first, so that a registered backend never changes what already works.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from kldiv import config
from kldiv.backends._generic import GenericBackend
from kldiv.backends.base import Backend, BackendStatus, Route
from kldiv.errors import BackendError, ConfigError, LibraryError

if TYPE_CHECKING:
    from kldiv._types import Array

__all__ = [
    "Backend",
    "BackendStatus",
    "Route",
    "available_backends",
    "find",
    "get",
    "kernel_names",
    "names",
    "register_backend",
    "resolve",
]

_TABLE: Final = {
    "numpy": ("numpy", "ml_dtypes"),
    "torch": ("torch",),
    "jax": ("jax", "jaxlib"),
    "cupy": ("cupy",),
    "dask": ("dask",),
}
"""Each built-in backend with the top-level modules that its array types are defined in."""

_GROUP: Final = "kldiv.backends"

_loaded: dict[str, Backend] = {}
_registered: dict[str, Backend] = {}
_adapters: dict[type, Backend] = {}
_routes: list[Route] = []
_places: dict[tuple[config.Settings, tuple[type, ...]], int] = {}


def get(name: str) -> Backend:
    """Return the backend of that name, loading it at first use."""
    if name in _loaded:
        return _loaded[name]
    if name in _TABLE:
        _loaded[name] = import_module(f"kldiv.backends._{name}").BACKEND
        return _loaded[name]
    if name not in _registered:
        _load_entry_points(name)
    if name in _registered:
        return _registered[name]
    msg = f"no backend is called {name!r}; known: {', '.join(names())}"
    raise ConfigError(msg)


def names() -> list[str]:
    """Return the names of all backends that can be asked for, built in or not."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - only listing needs it

    outside = {point.name for point in entry_points(group=_GROUP)} | set(_registered)
    return [*_TABLE, *sorted(outside - set(_TABLE))]


def kernel_names() -> list[str]:
    """Return the names of the kernels of all backends."""
    return sorted({kernel for name in names() for kernel in get(name).kernels})


def register_backend(backend: Backend) -> None:
    """
    Make a third-party backend known, by its name and for its library's arrays.

    Parameters
    ----------
    backend : kldiv.backends.Backend
        An adapter of a library that no built-in backend serves.  Installed packages can offer theirs by
        the entry-point group ``kldiv.backends`` instead; it is loaded when its name is asked for.

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
        msg = (
            "register_backend expects an instance of kldiv.backends.Backend, got "
            f"{type(backend).__name__}; derive your adapter from it and pass an instance"
        )
        raise LibraryError(msg)
    taken = backend.name in {*_TABLE, "auto"}
    if taken or _registered.get(backend.name, backend).__class__ is not backend.__class__:
        msg = f"a backend called {backend.name!r} exists already; choose another name"
        raise ConfigError(msg)
    _registered[backend.name] = backend
    _adapters.clear()
    _places.clear()


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
    found = {name: get(name).status() for name in names()}
    return {name: status for name, status in found.items() if status.usable or unusable}


def find(array: Array) -> Backend:
    """Return the adapter of the array's library."""
    return _find_type(type(array))


def _find_type(cls: type) -> Backend:
    if cls not in _adapters:
        _adapters[cls] = _recognise(cls)
    return _adapters[cls]


def resolve(argument: str, *arrays: Array) -> Route:
    """Return who computes on ``arrays`` under the current settings; the first decides the library."""
    return _routes[_settle(argument, *[type(array) for array in arrays])]


def _settle(argument: str, *types: type) -> int:
    """Return the place in `_routes` of the route for arrays of these types."""
    key = (config.current(), types)
    if key not in _places:
        _routes.append(_choose(argument, key[0], types))
        _places[key] = len(_routes) - 1
    return _places[key]


# torch.compile runs a function with this mark for real while it traces, and keeps what it returned: so
# settings are read then, and a first call may load the adapter.  The mark is torch's own, set here by
# name since the adapter that could set it by torch.compiler.assume_constant_result comes too late.
_settle._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _choose(argument: str, settings: config.Settings, types: tuple[type, ...]) -> Route:
    callers = [_find_type(cls) for cls in types]
    caller = callers[0]
    if any(other is not caller for other in callers) and settings.backend == "auto":
        found = dict.fromkeys(
            f"{c.name} ({t.__module__}.{t.__name__})" for c, t in zip(callers, types, strict=True)
        )
        msg = (
            f"{argument} come from two libraries: {' and '.join(found)}; convert them to one, or set "
            "a backend that takes both, for example kldiv.set_config(backend='numpy')"
        )
        raise LibraryError(msg)
    backend = caller if settings.backend == "auto" else get(settings.backend)
    problem = backend.problem()
    if problem is not None:
        mend = f"; install it: {backend.install}" if backend.install else ""
        msg = f"backend {backend.name!r} cannot be used here: {problem}{mend}"
        raise BackendError(msg)
    device = None if settings.device == "auto" else backend.find_device(settings.device)
    return Route(caller, backend, device, backend.choose_kernel(settings.kernel))


def _recognise(cls: type) -> Backend:
    roots = {base.__module__.partition(".")[0] for base in cls.__mro__}
    for name, modules in _TABLE.items():
        if roots.intersection(modules) and (backend := get(name)).recognises(cls):
            return backend
    for backend in _registered.values():
        if backend.recognises(cls):
            return backend
    if hasattr(cls, "__array_namespace__"):
        root = cls.__module__.partition(".")[0]
        return _loaded.setdefault(root, GenericBackend(root))
    msg = (
        f"expected an array of NumPy, PyTorch, JAX, CuPy, Dask or another library of the Python array "
        f"API, got {cls.__module__}.{cls.__qualname__}; convert it, for example by numpy.asarray"
    )
    raise LibraryError(msg)


def _load_entry_points(name: str) -> None:
    from importlib.metadata import entry_points  # noqa: PLC0415 - only an unknown name needs it

    for point in entry_points(group=_GROUP, name=name):
        backend = point.load()
        register_backend(backend() if isinstance(backend, type) else backend)
