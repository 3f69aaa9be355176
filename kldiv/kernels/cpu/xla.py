"""Calls from XLA on a CPU: the arrays of a compiled program, given to the kernels where they lie.

XLA's foreign function interface hands over one C structure, the call frame of
``xla/ffi/api/c_api.h``; it is read here by ``ctypes``. Each structure begins with its size, and
XLA asks a function at its registration which version of the interface it was written for.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import (
    POINTER,
    Structure,
    c_char,
    c_char_p,
    c_int,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION: Final = (0, 3)
"""Of the interface. A larger second number only adds to it."""

_METADATA: Final = 1
_INTERNAL: Final = 13
_BFLOAT16: Final = 16
_DTYPES: Final = {
    1: "bool",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "uint8",
    7: "uint16",
    8: "uint32",
    9: "uint64",
    10: "float16",
    11: "float32",
    12: "float64",
}


def _structure(name: str, **members: Any) -> type[Structure]:
    head = [("struct_size", c_size_t), ("extension_start", c_void_p)]
    return type(name, (Structure,), {"_fields_": [*head, *members.items()]})


def _counted(name: str, **members: Any) -> type[Structure]:
    """Return the structure of arguments, results or attributes."""
    return _structure(name, size=c_int64, types=POINTER(c_int), **members)


_Version = _structure("Version", major=c_int, minor=c_int)
_Api = _structure("Api", version=_Version, internal=c_void_p, create_error=c_void_p)
_Error = _structure("Error", message=c_char_p, code=c_int)
_Buffer = _structure("Buffer", dtype=c_int, data=c_void_p, rank=c_int64, shape=POINTER(c_int64))
_Arrays = _counted("Arrays", items=POINTER(POINTER(_Buffer)))


class _Text(Structure):
    _fields_ = (("start", c_void_p), ("length", c_size_t))


_Attributes = _counted("Attributes", names=c_void_p, items=POINTER(POINTER(_Text)))


class _Metadata(Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32))


class _Extension(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("kind", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    )


_Frame = _structure(
    "Frame",
    api=POINTER(_Api),
    context=c_void_p,
    stage=c_int,
    arguments=_Arrays,
    results=_Arrays,
    attributes=_Attributes,
)

_HANDLER: Final = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
_CREATE_ERROR: Final = ctypes.CFUNCTYPE(c_void_p, POINTER(_Error))


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
            words = ctypes.string_at(text.start, text.length).decode()
            run(words, _arrays(frame.arguments), _arrays(frame.results))
        except Exception as error:  # noqa: BLE001 - nothing may pass through C
            return _failed(frame, f"{type(error).__name__}: {error}")
        return None

    return _HANDLER(handle)


def _answered(frame: Any) -> bool:
    """Tell XLA the version, if it asks for that; return whether it does."""
    if not frame.extension_start:
        return False
    extension = ctypes.cast(frame.extension_start, POINTER(_Extension)).contents
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
    dtype = np.dtype(_bfloat16() if buffer.dtype == _BFLOAT16 else _DTYPES[buffer.dtype])
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer((c_char * size).from_address(buffer.data), dtype).reshape(shape)


def _bfloat16() -> Any:
    import ml_dtypes  # noqa: PLC0415 - it comes with JAX

    return ml_dtypes.bfloat16


def _failed(frame: Any, message: str) -> int | None:
    create = _CREATE_ERROR(frame.api.contents.create_error)
    text = message.encode()
    error = _Error(ctypes.sizeof(_Error), None, text, _INTERNAL)
    return create(ctypes.byref(error))
