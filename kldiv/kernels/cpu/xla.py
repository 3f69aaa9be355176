"""Calls from XLA on a CPU: the arrays of a compiled program, given to the kernels where they lie.

XLA's foreign function interface hands over one C structure, the call frame of
``xla/ffi/api/c_api.h``; it is read here by ``ctypes``. Each structure begins with its size, and
XLA asks a function at its registration which version of the interface it was written for.
"""

from __future__ import annotations

import ctypes as c
import math
from ctypes import POINTER, Structure
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION: Final = (0, 3)
"""Of the interface. A larger second number only adds to it."""

_METADATA: Final = 1
_INTERNAL: Final = 13
_BFLOAT16: Final = 16
_BOOL: Final = 1
_DTYPES: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""The dtypes from `_BOOL` on."""


def _plain(name: str, **members: Any) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": [*members.items()]})


def _structure(name: str, **members: Any) -> type[Structure]:
    return _plain(name, struct_size=c.c_size_t, extension_start=c.c_void_p, **members)


def _counted(name: str, **members: Any) -> type[Structure]:
    """Return the structure of arguments, results or attributes."""
    return _structure(name, size=c.c_int64, types=POINTER(c.c_int), **members)


_Version = _structure("Version", major=c.c_int, minor=c.c_int)
_Api = _structure("Api", version=_Version, internal=c.c_void_p, create_error=c.c_void_p)
_Error = _structure("Error", message=c.c_char_p, code=c.c_int)
_Shape = POINTER(c.c_int64)
_Buffer = _structure("Buffer", dtype=c.c_int, data=c.c_void_p, rank=c.c_int64, shape=_Shape)
_Arrays = _counted("Arrays", items=POINTER(POINTER(_Buffer)))
_Text = _plain("Text", start=c.c_void_p, length=c.c_size_t)
_Attributes = _counted("Attributes", names=c.c_void_p, items=POINTER(POINTER(_Text)))
_Metadata = _plain("Metadata", struct_size=c.c_size_t, version=_Version, traits=c.c_uint32)
_Extension = _plain(
    "Extension", struct_size=c.c_size_t, kind=c.c_int, next=c.c_void_p, metadata=POINTER(_Metadata)
)
_Frame = _structure(
    "Frame",
    api=POINTER(_Api),
    context=c.c_void_p,
    stage=c.c_int,
    arguments=_Arrays,
    results=_Arrays,
    attributes=_Attributes,
)

_HANDLER: Final = c.CFUNCTYPE(c.c_void_p, POINTER(_Frame))
_CREATE_ERROR: Final = c.CFUNCTYPE(c.c_void_p, POINTER(_Error))


def handler(run: Callable[[str, list[Any], list[Any]], None]) -> Any:
    """Return a C function for XLA that calls ``run`` with a text, arguments and results.

    The text is the only attribute of a call; an exception of ``run`` becomes an error of XLA's.
    """

    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        try:
            if _answered(frame):
                return None
            text = frame.attributes.items[0].contents
            words = c.string_at(text.start, text.length).decode()
            run(words, _arrays(frame.arguments), _arrays(frame.results))
        except Exception as error:  # noqa: BLE001 - nothing may pass through C
            return _failed(frame, f"{type(error).__name__}: {error}")
        return None

    return _HANDLER(handle)


def _answered(frame: Any) -> bool:
    """Tell XLA the version, if it asks for that; return whether it does."""
    if not frame.extension_start:
        return False
    extension = c.cast(frame.extension_start, POINTER(_Extension)).contents
    if extension.kind != _METADATA:
        return False
    metadata = extension.metadata.contents
    metadata.version.major, metadata.version.minor = VERSION
    metadata.traits = 0
    return True


def _arrays(given: Any) -> list[np.ndarray[Any, Any]]:
    return [_array(given.items[index].contents) for index in range(given.size)]


def _array(buffer: Any) -> np.ndarray[Any, Any]:
    """Return an array of NumPy in XLA's memory."""
    shape = tuple(buffer.shape[: buffer.rank])
    dtype = np.dtype(_bfloat16() if buffer.dtype == _BFLOAT16 else _DTYPES[buffer.dtype - _BOOL])
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer((c.c_char * size).from_address(buffer.data), dtype).reshape(shape)


def _bfloat16() -> Any:
    import ml_dtypes  # noqa: PLC0415 - it comes with JAX

    return ml_dtypes.bfloat16


def _failed(frame: Any, message: str) -> int | None:
    create = _CREATE_ERROR(frame.api.contents.create_error)
    text = message.encode()
    error = _Error(c.sizeof(_Error), None, text, _INTERNAL)
    return create(c.byref(error))
