"""Compiling by Numba, once: ahead of the first call from a cache on disk that follows the sources.

Numba's own cache looks at one source file only; a function inlined from another would go stale.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
from filelock import FileLock
from numba.core import caching
from numba.core.runtime import rtsys

from kldiv.formulas import numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OPTIONS = {"error_model": "numpy"}
"""A division by zero is an infinity, not an exception, which would keep a loop scalar."""

inline = numba.njit(nogil=True, **OPTIONS)
"""A decorator for the functions of which kernels are made: compiled into each of them."""


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[[], Any]]:
    """Return a decorator for functions that return a function compiled for that signature."""

    def decorate(function: Callable[..., Any]) -> Callable[[], Any]:
        return cache(partial(_compile, signature, function))

    return decorate


def _compile(signature: str, function: Callable[..., Any]) -> Any:
    dispatcher = numba.njit(nogil=True, **OPTIONS)(function)
    dispatcher._cache = _Cache(function)  # noqa: SLF001 - as njit(cache=True) does, elsewhere
    name = f"{function.__module__.rpartition('.')[2]}-{function.__code__.co_firstlineno}"
    with _alone(directory() / f"kernels-{stamp()}" / f"{name}.lock"):
        dispatcher.compile(signature)
    return dispatcher


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock, so that of many processes one compiles and the others load its result."""
    with ExitStack() as stack:
        # Without a place to write or locks there, each process compiles for itself.
        with suppress(OSError, NotImplementedError):
            stack.enter_context(FileLock(path))
        yield


def directory() -> Path:
    """Return the folder of compiled kernels."""
    chosen = os.environ.get("KLDIV_CACHE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs  # noqa: PLC0415 - only a compiler needs it

    return platformdirs.user_cache_path("kldiv")


@cache
def stamp() -> str:
    """Return a digest of all that compiled code depends on, but for the CPU, which Numba adds."""
    digest = hashlib.sha256(f"{numba.__version__}".encode())
    folder = Path(__file__).parent
    for path in [*sorted(folder.glob("*.py")), Path(numbers.__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Locator(caching._CacheLocator):  # noqa: SLF001 - Numba has no public place for it
    """The place of a function's cache, and the stamp that makes it stale."""

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        self._lineno = py_func.__code__.co_firstlineno
        self._file = py_file

    def get_cache_path(self) -> str:
        return str(directory() / f"kernels-{stamp()}")

    def get_source_stamp(self) -> str:
        return stamp()

    def get_disambiguator(self) -> str:
        return str(self._lineno)

    def ensure_cache_path(self) -> None:
        path = self.get_cache_path()
        os.makedirs(path, exist_ok=True)  # noqa: PTH103 - as Numba does
        if not next(Path(path).glob("*.nbi"), None):
            tempfile.TemporaryFile(dir=path).close()  # raises where nothing can be written

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> _Locator:
        self = cls(py_func, py_file)
        self.ensure_cache_path()
        return self


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(caching.FunctionCache):
    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Numba refreshes the context first, which imports all that it could compile, and SciPy for
        # that. A compiled function needs its memory alone; a compiler refreshes by itself.
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)
