"""The file from which a stopped comparison goes on, bit for bit as if it had not been stopped."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import kldiv
from kldiv._files import replacing
from kldiv.errors import InputError
from kldiv.readers import Stored
from kldiv.readers.linear_logits import LinearLogits
from kldiv.readers.numpy_files import read_arrays
from kldiv.readers.shards import named
from kldiv.readers.stored import order_of
from kldiv.streaming.options import Held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kldiv.explanation import Explanation
    from kldiv.readers import Table
    from kldiv.streaming.inputs import Pair
    from kldiv.streaming.totals import Total
    from kldiv.streaming.work import Job

_FORMAT: Final = 4
_EVERY: Final = 30.0  # seconds that a process which is killed may lose
_SHARE: Final = 20  # but saving takes no more than this part of the time
_HASHED: Final = 16 << 20  # bytes of an array that are read at a time


class Checkpoint:
    """The state of a comparison on disk: a ``.npz`` of numbers with a text in JSON.

    Parameters
    ----------
    path : Path or None
        The file; nothing is kept without one.
    identity : dict
        The facts that must be the same for a result to be continued.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(identity))  # as it will be read
        self._saved, self._took = time.monotonic(), 0.0
        if path is not None and (path.is_dir() or not os.access(path.parent, os.W_OK)):
            why = "a folder" if path.is_dir() else f"{path.parent} is no folder to write to"
            raise self._error(f"{why}. Name a file in a folder that is there")

    @property
    def rows(self) -> Path | None:
        """The file for divergences of very many rows, which are not copied."""
        return None if self.path is None else self.path.with_name(self.path.name + ".rows")

    def load(self) -> tuple[dict[str, Any], dict[str, Any], list[Held]] | None:
        """Return the saved state, or None where there is none; refuse another comparison's."""
        if self.path is None or not self.path.exists():
            return None
        try:
            arrays = read_arrays(self.path)
            facts = json.loads(arrays.pop("json").tobytes())
            kind, version, identity = facts["kind"], facts["format"], dict(facts["identity"])
            held = [Held(**each) for each in facts["held"]]
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise self._error(
                f"the file is there, but is no checkpoint of kldiv compare ({error}). Name another,"
                " or remove it"
            ) from error
        if (kind, version) != ("kldiv compare", _FORMAT):
            raise self._error(
                f"of format {version}, but this version of kldiv reads {_FORMAT}. Finish it with"
                " the version that wrote it, or remove it"
            )
        names = {**identity, **self._identity}
        odd = [name for name in names if identity.get(name) != self._identity.get(name)]
        if odd:
            listed = "; ".join(
                f"{name}: {_shown(identity.get(name))} then, {_shown(self._identity.get(name))} now"
                for name in odd
            )
            raise self._error(
                f"it is of another comparison: {listed}. Give the same files and options, or name"
                " another file"
            )
        self._check_rows(facts.get("beside", 0))
        return arrays, facts, held

    def _check_rows(self, size: int) -> None:
        """Raise unless the file of divergences is there, where there is one."""
        rows = self.rows
        if not size or rows is None:
            return
        there = rows.stat().st_size if rows.exists() else 0
        if there != size:
            raise self._error(
                f"its divergences of rows are not beside it: {rows} has {there:,} bytes, expected"
                f" {size:,}. Put that file back, or remove the checkpoint"
            )

    def save(self, total: Total | None, held: list[Held]) -> None:
        """Replace the file by the present state."""
        if self.path is None:
            return
        start = time.monotonic()
        arrays, facts = ({}, {}) if total is None else total.save()
        facts |= {"kind": "kldiv compare", "format": _FORMAT, "identity": self._identity}
        facts["held"] = [asdict(each) for each in held]
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        everything: dict[str, Any] = {**arrays, "json": text}
        try:
            with replacing(self.path) as file:
                np.savez(file, **everything)
        except OSError as error:
            raise self._error(f"cannot be written ({error.strerror or error})") from error
        self._saved = time.monotonic()
        self._took = self._saved - start

    @property
    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._saved > max(_EVERY, _SHARE * self._took)

    def remove(self) -> None:
        """Remove the file: the result is there, and a next run should read the data again."""
        if self.path is not None and self.rows is not None:
            self.path.unlink(missing_ok=True)
            self.rows.unlink(missing_ok=True)

    def _error(self, text: str) -> InputError:
        return InputError(f"checkpoint='{self.path}': {text}")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have Ctrl-C wait until something is done as a whole."""
    before = signal.getsignal(signal.SIGINT)  # None where another language has set it
    if before is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        signal.raise_signal(signal.SIGINT)


def identity_of(
    given: tuple[Any, Any, Any], pair: Pair, job: Job, explanation: Explanation
) -> dict[str, Any]:
    """Return the facts that must be the same for a result to be continued."""
    options = {name: value for name, value in asdict(job.options).items() if name != "max_bytes"}
    options["reading"] = str(job.options.reading)
    options |= {name: value for name, value in job.settings if value != "auto"}
    stamps: dict[str, Any] = {}
    for name, each, table in zip("PQ", given[:2], pair.tables, strict=True):
        if isinstance(table.array, LinearLogits):
            own = {"hidden states": table.array.hidden, "weight": table.array.weight}
            stamps |= {f"{which} of {name}": _stamp(None, one) for which, one in own.items()}
        else:
            stamps[name] = _stamp(each, table)
    if pair.next_tokens is not None:
        stamps["`next_tokens`"] = _digest(np.asarray(pair.next_tokens))
    return {
        **stamps,
        **{f"`{name}`": value for name, value in options.items()},
        "`memory`": job.sizes.memory,
        "sizes": [job.sizes.piece, job.sizes.step],
        "kldiv": kldiv.__version__,
        "numpy": np.__version__,
        "computed by": [explanation.backend, explanation.device, explanation.kernel],
    }


def _stamp(given: Any, table: Table) -> dict[str, Any] | str:
    """Return a text that tells one version of an array from another."""
    path, files = table.path, []
    on_disk = isinstance(given, str | os.PathLike) or isinstance(table.array, Stored)
    if path is not None and on_disk:
        found = path.rglob("*") if path.is_dir() else [path] if path.exists() else named(path)
        files = sorted(each for each in found if each.is_file())
    if path is None or not files:  # an array, or the end of a pipe
        return f"an array of shape {table.array.shape}, digest {_digest(table.array)}"
    stats = [file.stat() for file in files]
    digest = hashlib.sha256()
    for file, status in zip(files, stats, strict=True):
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return {
        "path": str(given) if isinstance(given, str | os.PathLike) else f"{path}::{table.member}",
        "bytes": sum(status.st_size for status in stats),
        "modified": max(status.st_mtime_ns for status in stats) / 1e9,
        "files": digest.hexdigest()[:16],
    }


def _digest(array: Any) -> str:
    """Return a digest of an array's numbers, in the order in which they lie in memory."""
    slow = order_of(array)[::-1]
    digest = hashlib.sha256(f"{array.dtype.str} {slow}".encode())
    index = [slice(0, size) for size in array.shape]
    rows = max(_HASHED * array.shape[slow[0]] // array.nbytes, 1)
    for start in range(0, array.shape[slow[0]], rows):
        index[slow[0]] = slice(start, min(start + rows, array.shape[slow[0]]))
        digest.update(np.ascontiguousarray(array[tuple(index)].transpose(slow)).data)
    return digest.hexdigest()[:16]


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value["modified"]))
    return f"{value['path']} of {value['bytes']:,} bytes, modified {when}"
