"""Sparse teachers on disk: written block by block, read block by block.

A file is a ``.safetensors`` with the tensors ``log_probs`` and ``indices`` of shape (rows, K),
``rest`` of (rows,), or (0,) where it is not known, ``temperature`` and ``vocabulary`` of (1,).
"""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv import backends
from kldiv._files import replacing
from kldiv._heap import keep_freed_memory
from kldiv.errors import DTypeError, InputError, OptionError, ShapeError
from kldiv.readers import open_table
from kldiv.readers.arrays import unmasked
from kldiv.readers.tensor_files import SAFETENSORS
from kldiv.sparse_losses import SparseTeacher

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

_NAMES: Final = {np.dtype(code).name: name for name, code in SAFETENSORS.items()}


class TeacherWriter:
    """
    A file of a sparse teacher in the making; it appears, whole, when all rows are written.

    Parameters
    ----------
    path : str or path-like
        Where the file shall be, by its suffix a ``.safetensors``.
    rows : int
        How many rows, which is to say tokens, there will be.
    k : int
        How many classes a row has, padding included.
    vocabulary : int
        How many classes the teacher has.
    temperature : float, default 1.0
        The temperature of the log-probabilities.
    dtype : {"float32", "float16"}, default "float32"
        The dtype of log-probabilities on disk.
    rest : bool, default True
        Whether blocks have the mass of the other classes.

    Raises
    ------
    OptionError
        A number is out of range, or there is no such dtype.

    See Also
    --------
    open_teacher : Reads the file that this writes.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import kldiv
    >>> from kldiv.streaming import TeacherWriter, open_teacher
    >>> logits = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "teacher.safetensors")
    ...     with TeacherWriter(path, rows=6, k=4, vocabulary=50) as writer:
    ...         for block in (logits[:4], logits[4:]):
    ...             writer.write(kldiv.topk_log_probs(block, 4))
    ...     teacher = open_teacher(path)
    ...     losses = [
    ...         kldiv.topk_kl_div_with_logits(logits[rows], teacher[rows])
    ...         for rows in (slice(0, 3), slice(3, 6))
    ...     ]
    >>> len(teacher), teacher.vocabulary, bool(max(losses) < 1e-12)
    (6, 50, True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rows: int,
        k: int,
        vocabulary: int,
        temperature: float = 1.0,
        dtype: str = "float32",
        rest: bool = True,
    ) -> None:
        if rows < 0 or not 1 <= k <= vocabulary:
            raise OptionError(
                f"a teacher has rows, and from 1 to all of its classes in each; got rows={rows}, "
                f"k={k}, vocabulary={vocabulary}"
            )
        if not 0 < temperature < math.inf:
            raise OptionError(f"temperature must be positive and finite; got {temperature!r}")
        if dtype not in {"float32", "float16"}:
            raise OptionError(f"dtype must be 'float32' or 'float16'; got {dtype!r}")
        self.path, self.rows, self.k, self.vocabulary = path, rows, k, vocabulary
        self.temperature, self.rest = float(temperature), rest
        self.written = 0
        tensors: dict[str, tuple[Any, tuple[int, ...]]] = {
            "temperature": ("float64", (1,)),
            "vocabulary": ("int64", (1,)),
            "log_probs": (dtype, (rows, k)),
            "indices": ("int32" if vocabulary <= 2**31 else "int64", (rows, k)),
            # In float64, as float32 would round the smallest to 0: a divergence may be ∞ then.
            "rest": ("float64", (rows if rest else 0,)),
        }
        self._dtypes = {name: np.dtype(kind) for name, (kind, _) in tensors.items()}
        header, place = {}, 0
        self._places: dict[str, int] = {}
        for name, (kind, shape) in tensors.items():
            end = place + math.prod(shape) * np.dtype(kind).itemsize
            header[name] = {"dtype": _NAMES[kind], "shape": shape, "data_offsets": (place, end)}
            self._places[name], place = place, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._head = len(text).to_bytes(8, "little") + text
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(replacing(self.path))
        self._file.write(self._head)
        for name, value in (("temperature", self.temperature), ("vocabulary", self.vocabulary)):
            self._put(name, 0, np.asarray([value]))
        return self

    def write(self, teacher: SparseTeacher) -> None:
        """
        Write the next rows.

        Parameters
        ----------
        teacher : SparseTeacher
            Arrays of any library, whose rows may have several axes.

        Raises
        ------
        ShapeError
            Not K classes a row, or more rows than were announced.
        OptionError
            Another temperature, an index that is no class, or the rest is missing.
        DTypeError, LibraryError
            Indices that are no integers, or masked arrays.
        """
        log_probs, indices = (_rows(_host(array), self.k) for array in teacher[:2])
        if indices.dtype.kind not in "iu":
            raise DTypeError(f"{self.path}: indices of dtype {indices.dtype}; expected integers")
        if len(indices) != len(log_probs) or self.written + len(log_probs) > self.rows:
            raise ShapeError(
                f"{self.path}: {len(log_probs)} rows of log-probabilities and {len(indices)} of "
                f"indices after {self.written}; the file was announced with {self.rows}"
            )
        if teacher.temperature != self.temperature:
            raise OptionError(
                f"{self.path}: log-probabilities at temperature {teacher.temperature}; the file's "
                f"are at {self.temperature}"
            )
        wrong = ((indices < 0) | (indices >= self.vocabulary)) & (log_probs != -np.inf)
        if wrong.any():
            raise OptionError(
                f"{self.path}: index {int(indices[wrong][0])} is none of the {self.vocabulary} "
                "classes; padding has a log-probability of −inf"
            )
        indices = np.where(log_probs == -np.inf, 0, indices)
        self._put("log_probs", self.written, log_probs)
        self._put("indices", self.written, indices)
        if self.rest:
            if teacher.rest is None:
                raise OptionError(f"{self.path}: rows without their rest; write with rest=False")
            rest = _rows(_host(teacher.rest)[..., None], 1)
            if len(rest) != len(log_probs):
                raise ShapeError(f"{self.path}: {len(log_probs)} rows, but {len(rest)} of rest")
            self._put("rest", self.written, rest)
        self.written += len(log_probs)

    def _put(self, name: str, row: int, array: NDArray[Any]) -> None:
        array = np.ascontiguousarray(array, self._dtypes[name].newbyteorder("<"))
        width = array.nbytes // len(array) if len(array) else 0
        self._file.seek(len(self._head) + self._places[name] + row * width)
        self._file.write(array.data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self.written != self.rows:
            error = ShapeError(
                f"{self.path}: {self.written} rows were written of {self.rows}; nothing is kept"
            )
            with self._stack:
                raise error
        self._stack.__exit__(kind, error, trace)


class StoredTeacher:
    """
    A sparse teacher on disk, read by slices of rows.

    Attributes
    ----------
    k : int
        How many classes a row has, padding included.
    vocabulary : int
        How many classes the teacher has.
    temperature : float
        The temperature of the log-probabilities.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        names = "log_probs", "indices", "rest", "temperature", "vocabulary"
        found = [open_table(path, key=name).array for name in names]
        self._log_probs, self._indices, rest, *numbers = found
        shapes = {name: tuple(each.shape) for name, each in zip(names, found, strict=True)}
        both, kinds = shapes["log_probs"], "".join(each.dtype.kind for each in found)
        heat, classes = (float(each.reshape(-1)[0]) if each.size else math.nan for each in numbers)
        if (
            len(both) != 2
            or shapes["indices"] != both
            or shapes["rest"] not in {(0,), both[:1]}
            or kinds != "fiffi"
            or not (0 < heat < math.inf and classes >= 1)
        ):
            raise InputError(
                f"{path}: {shapes} at temperature {heat} of {classes} classes is no sparse "
                "teacher; it has log_probs and indices of (rows, K) and rest of (rows,) or (0,). "
                "Write it by TeacherWriter"
            )
        self._rest = rest if rest.shape == both[:1] else None
        self.temperature, self.vocabulary = heat, int(classes)
        self.k = both[1]

    def __len__(self) -> int:
        return int(self._log_probs.shape[0])

    def __getitem__(self, rows: slice) -> SparseTeacher:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise OptionError(f"a teacher on disk is read by slices of step 1; got {rows}")
        some = slice(start, max(start, stop))
        log_probs, indices = (
            array[some, slice(0, self.k)] for array in (self._log_probs, self._indices)
        )
        rest = None if self._rest is None else self._rest[(some,)]
        return SparseTeacher(log_probs, indices, rest, self.temperature)

    def blocks(self, rows: int = 1 << 13) -> Iterator[SparseTeacher]:
        """
        Yield all rows, some at a time.

        Parameters
        ----------
        rows : int, default 8192
            How many at a time.

        Yields
        ------
        SparseTeacher
            Arrays of NumPy.
        """
        keep_freed_memory()
        for start in range(0, len(self), rows):
            yield self[start : start + rows]


def open_teacher(path: str | os.PathLike[str]) -> StoredTeacher:
    """
    Open a sparse teacher that `TeacherWriter` wrote, without trusting the file.

    Parameters
    ----------
    path : str or path-like
        The file; or a folder or pattern of such files is not taken: open each.

    Returns
    -------
    StoredTeacher
        Of which a slice of rows is read when it is asked for.

    Raises
    ------
    InputError
        The file is missing, damaged, or holds no sparse teacher.

    See Also
    --------
    TeacherWriter : Writes it, with an example.
    """
    return StoredTeacher(path)


def _host(array: Any) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return unmasked("the teacher", array)
    return np.asarray(backends.find(array).to_numpy(array))


def _rows(array: NDArray[Any], k: int) -> NDArray[Any]:
    if not array.ndim or array.shape[-1] != k:
        raise ShapeError(f"rows of shape {array.shape}; expected {k} classes on the last axis")
    return array.reshape(-1, k)
