"""A file from which a comparison that was stopped goes on, bit for bit as if it had not been."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import kldiv
from kldiv._files import replacing
from kldiv.cli.forms import Held
from kldiv.errors import InputError
from kldiv.readers.numpy_files import read_arrays

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kldiv.cli.blocks import Sizes
    from kldiv.cli.inputs import Pair
    from kldiv.cli.request import Request
    from kldiv.cli.total import Total
    from kldiv.explanation import Explanation

_FORMAT: Final = 2
_EVERY: Final = 30.0  # seconds that a process which is killed may lose
_SHARE: Final = 20  # but saving takes no more than this part of the time
_FREE: Final = ("max_bytes", "as_json", "plot", "checkpoint", "scheduler")  # change no number


class Checkpoint:
    """The state of a comparison on disk: a ``.npz`` of numbers with a text in JSON.

    Parameters
    ----------
    request : Request
        What was asked for; nothing is kept where it names no file.
    pair : Pair
        The files.
    sizes : Sizes
        How they are cut.
    explanation : Explanation
        What computes.
    """

    def __init__(
        self, request: Request, pair: Pair, sizes: Sizes, explanation: Explanation
    ) -> None:
        self.path = None if request.checkpoint is None else Path(request.checkpoint)
        self._saved, self._took = time.monotonic(), 0.0
        if self.path is not None:
            self._check_folder(self.path)
            self._identity = _identity(request, pair, sizes, explanation)

    @property
    def rows(self) -> Path | None:
        """Where divergences of very many rows lie, which are not copied."""
        return None if self.path is None else self.path.with_name(self.path.name + ".rows")

    def load(self) -> tuple[dict[str, Any], dict[str, Any], list[Held]] | None:
        """Return what was saved, or None where nothing was; refuse what is of something else."""
        if self.path is None or not self.path.exists():
            return None
        try:
            arrays = read_arrays(self.path)
            facts = json.loads(arrays.pop("json").tobytes())
            kind, version, identity = facts["kind"], facts["format"], facts["identity"]
            held = [Held(**each) for each in facts["held"]]
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"--checkpoint {self.path}: the file is there, but is no checkpoint of kldiv"
                f" compare ({error}). Name another, or remove it"
            ) from error
        if (kind, version) != ("kldiv compare", _FORMAT):
            raise InputError(
                f"--checkpoint {self.path}: of format {version}, but this version of kldiv reads"
                f" {_FORMAT}. Finish it with the version that wrote it, or remove it"
            )
        odd = [name for name in self._identity if identity.get(name) != self._identity[name]]
        if odd:
            listed = "; ".join(
                f"{name}: {_shown(identity.get(name))} then, {_shown(self._identity[name])} now"
                for name in odd
            )
            raise InputError(
                f"--checkpoint {self.path}: it is of another comparison: {listed}. Give the same"
                " files and options, or name another file"
            )
        return arrays, facts, held

    def save(self, total: Total, held: list[Held]) -> None:
        """Replace the file by the present state."""
        if self.path is None:
            return
        start = time.monotonic()
        arrays, facts = total.save()
        facts |= {"kind": "kldiv compare", "format": _FORMAT, "identity": self._identity}
        facts["held"] = [asdict(each) for each in held]
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        everything: dict[str, Any] = {**arrays, "json": text}
        try:
            with replacing(self.path) as file:
                np.savez(file, **everything)
        except OSError as error:
            raise InputError(
                f"--checkpoint {self.path}: cannot be written ({error.strerror or error})"
            ) from error
        self._saved = time.monotonic()
        self._took = self._saved - start

    def save_now_and_then(self, total: Total, held: list[Held]) -> None:
        """Save where the last time is long enough ago."""
        if time.monotonic() - self._saved > max(_EVERY, _SHARE * self._took):
            self.save(total, held)

    def remove(self) -> None:
        """Remove the file: the result has been told, and a next run should read the data again."""
        if self.path is not None and self.rows is not None:
            self.path.unlink(missing_ok=True)
            self.rows.unlink(missing_ok=True)

    def _check_folder(self, path: Path) -> None:
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            why = "a folder" if path.is_dir() else f"{path.parent} is no folder to write to"
            raise InputError(f"--checkpoint {path}: {why}. Name a file in a folder that is there")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have Ctrl-C wait until something is done as a whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        raise KeyboardInterrupt


def _identity(
    request: Request, pair: Pair, sizes: Sizes, explanation: Explanation
) -> dict[str, Any]:
    """Return what must be the same for a result to be continued."""
    options = {k: v for k, v in asdict(request).items() if k not in {*_FREE, "p", "q"}}
    found = {
        "P": {"path": request.p, **_stamp(pair.p.path)},
        "Q": {"path": request.q, **_stamp(pair.q.path)},
        **{_flag(name): value for name, value in options.items()},
        "kldiv": kldiv.__version__,
        "numpy": np.__version__,
        "computed by": [explanation.backend, explanation.device, explanation.kernel],
        "sizes": asdict(sizes),
    }
    same: dict[str, Any] = json.loads(json.dumps(found))  # as it will be read
    return same


def _flag(name: str) -> str:
    return "--from" if name == "form" else f"--{name.replace('_', '-')}"


def _stamp(path: Path) -> dict[str, Any]:
    """Return what tells one version of a file, or of all files of a folder, from another."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    digest = hashlib.sha256()
    for file, status in zip(files, stats, strict=True):
        name = file.relative_to(path).as_posix()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return {
        "bytes": sum(status.st_size for status in stats),
        "modified": max(status.st_mtime_ns for status in stats) / 1e9,
        "files": digest.hexdigest()[:16],
    }


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value["modified"]))
    return f"{value['path']} of {value['bytes']:,} bytes, modified {when}"
