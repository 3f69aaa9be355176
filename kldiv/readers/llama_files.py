"""The files that llama.cpp's ``llama-perplexity --kl-divergence-base FILE`` writes.

As its source has it (``tools/perplexity/perplexity.cpp``): ``_logits_``, then the context, the
vocabulary and the number of chunks as int32, the tokens of all chunks as int32, and for each
position of the second half of each chunk but its last a row: two float32, the step and the least
log-probability, and a code of 16 bits for each class, padded to an even number of codes.  A row's
log-probability is step × code + least.  It spans from the likeliest class to the unlikeliest, or
over 16 nats, whichever is less; in the latter case the code 0 stands for all classes farther down.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.readers.sources import check_alone, check_budget, stays
from kldiv.readers.stored import Stamped, fill
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from kldiv.readers.sources import Source
    from kldiv.readers.stored import Index

MAGIC: Final = b"_logits_"

_HEAD: Final = 20  # bytes
RANGE: Final = 16.0
"""Nats from a row's likeliest class to the end of its range."""
_ROUNDED: Final = 1e-3  # of the range, by float32
_STEPS: Final = 65535
_CHUNK: Final = 8 << 20  # bytes that are decoded at a time
_CODE: Final = np.dtype("<u2")


def read_base(source: Source) -> Table:
    """Return the log-probabilities of a base file, −∞ where a class is below its range."""
    check_alone(source, "a base file")
    context, classes, chunks = _header(source)
    rows = context - 1 - context // 2
    start = _HEAD + 4 * context * chunks
    array = BaseFile(source.path, start, rows * chunks, classes)
    there = source.size - start
    if there != array.stored:
        whole = max(there, 0) // (array.stored // chunks)
        raise source.error(
            f"{chunks:,} chunks of {context:,} tokens and {classes:,} classes are declared, of"
            f" which {whole:,} are there: {there:,} bytes, expected {array.stored:,}. Let"
            " llama-perplexity finish"
        )
    source.file.seek(_HEAD)
    tokens = np.frombuffer(source.file.read(4 * context * chunks), "<i4").reshape(chunks, context)
    note = (
        f"{source.path.name} has log-probabilities of 16 bits, in steps of at most 0.00025 nats,"
        " and none below 16 nats from a row's likeliest class: there it is taken to be as close to"
        " the other file as that allows"
    )
    table = Table(
        array,
        source.path,
        notes=(note,),
        next_tokens=tokens[:, context // 2 + 1 :].reshape(-1).astype(np.int32),
    )
    stored = stays(source, array.nbytes)
    if source.max_bytes is not None or not stored:
        check_budget(source, array.nbytes, source.size)
    if stored:
        return table
    source.file.seek(start)
    raw = np.frombuffer(source.file.read(array.stored), np.uint8)
    return replace(table, array=array.decoded(raw, slice(0, classes)))


def _header(source: Source) -> tuple[int, int, int]:
    source.file.seek(len(MAGIC))
    head = source.file.read(_HEAD - len(MAGIC))
    numbers = [int(n) for n in np.frombuffer(head[: len(head) // 4 * 4], "<i4")]
    if len(numbers) < 3 or numbers[0] < 3 or min(numbers) < 1:
        raise source.error(
            f"starts as a base file of llama.cpp, but declares {numbers} as context, vocabulary and"
            " chunks. Write it again"
        )
    context, classes, chunks = numbers
    return context, classes, chunks


class BaseFile(Stamped):
    """Rows of log-probabilities in a base file, decoded as they are read, to float32.

    Parameters
    ----------
    path : Path
        The file.
    start : int
        Where its rows start.
    rows, classes : int
        How many there are.
    """

    def __init__(self, path: Path, start: int, rows: int, classes: int) -> None:
        super().__init__(path, (rows, classes), np.dtype(np.float32))
        self._start = start
        self._codes = 4 + 2 * ((classes + 1) // 2)

    @property
    def stored(self) -> int:
        """The number of bytes of all rows in the file."""
        return self.shape[0] * self._codes * _CODE.itemsize

    def __getitem__(self, index: Index) -> NDArray[Any]:
        rows, classes = index
        found = np.empty((rows.stop - rows.start, classes.stop - classes.start), self.dtype)
        row = self._codes * _CODE.itemsize
        step = max(_CHUNK // row, 1)
        with self.opened() as file:
            for start in range(rows.start, rows.stop, step):
                stop = min(start + step, rows.stop)
                raw = np.empty((stop - start) * row, np.uint8)
                file.seek(self._start + start * row)
                fill(file, raw.data)
                found[start - rows.start : stop - rows.start] = self.decoded(raw, classes)
        return found

    def decoded(self, raw: NDArray[np.uint8], classes: slice) -> NDArray[Any]:
        """Return some classes of whole rows, given their bytes."""
        codes = raw.view(_CODE).reshape(-1, self._codes)
        step, least = np.ascontiguousarray(codes[:, :4]).view("<f4").astype(np.float32).T
        some = codes[:, 4 + classes.start : 4 + classes.stop]
        with np.errstate(all="ignore"):
            found = some.astype(np.float32)
            found *= step[:, None]
            found += least[:, None]
            cut = step * _STEPS >= RANGE - _ROUNDED
        found[(some == 0) & cut[:, None]] = -math.inf
        return found
