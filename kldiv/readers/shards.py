"""Files with a part of one array each: those of a folder, or those that a pattern names."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import InputError
from kldiv.readers.stored import Joined
from kldiv.readers.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

_SUFFIXES: Final = (".npy", ".safetensors")
_OF: Final = re.compile(r"-of-(\d+)$")  # model-00001-of-00004, as many writers name them


def read_shards(
    path: Path, key: str | None, axis: int, read: Callable[[Path, str | None], Table]
) -> Table:
    """Return the arrays in several files as one, in the natural order of their names."""
    files = _files(path)
    tables = [read(file, key) for file in files]
    arrays = [table.array for table in tables]
    first = arrays[0]
    if not -first.ndim <= axis < first.ndim:
        raise InputError(
            f"{files[0]}: shape {first.shape} has no axis {axis} along which shards follow one"
            " another. Choose it with `shard_axis`"
        )
    axis %= first.ndim
    for file, array in zip(files, arrays, strict=True):
        _check_same(files[0], first, file, array, axis)
    found = arrays[0] if len(arrays) == 1 else Joined(arrays, axis)
    return Table(found, path, tables[0].member, notes=_gap(path, files))


def _gap(path: Path, files: list[Path]) -> tuple[str, ...]:
    """Say where the one number in which the names of shards differ does not go up evenly."""
    numbers = [[int(part) for part in re.findall(r"\d+", file.stem)] for file in files]
    if len({len(each) for each in numbers}) > 1:
        return ()
    counts = [column for column in zip(*numbers, strict=True) if len(set(column)) > 1]
    steps = np.diff(counts[0]) if len(counts) == 1 else np.ones(1)
    if np.all(steps == steps[0]):
        return ()
    i = int(np.argmax(steps))
    last, following = files[i].name, files[i + 1].name
    return (f"no shard of {path} lies between {last} and {following}: is a file missing?",)


def named(path: Path) -> list[Path]:
    """Return the files that a pattern names."""
    return [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207 - any path


def _files(path: Path) -> list[Path]:
    """Return the shards: all files of the one format that is there."""
    folder = path.is_dir()
    there = [
        each
        for each in (path.iterdir() if folder else named(path))
        if each.suffix.lower() in _SUFFIXES
    ]
    files = [each for each in there if not each.name.startswith(".") and not each.is_dir()]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) != 1:
        found = "files of both kinds" if kinds else "no such file"
        kind = "folder" if folder else "pattern"
        raise InputError(
            f"{path}: a {kind} is read as one array whose parts are its .npy or its .safetensors"
            f" files, but there is {found}. Keep the shards of one array alone in it"
        )
    for file in files:
        of = _OF.search(file.stem)
        if of and int(of[1]) != len(files):
            raise InputError(
                f"{path}: {file.name} says that there are {int(of[1])} shards, but there are"
                f" {len(files)}. Copy the missing ones, or take others out"
            )
    return sorted(files, key=lambda file: _natural(str(file)))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Return a key by which shard-2 comes before shard-10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _check_same(first: Path, one: Any, file: Path, other: Any, axis: int) -> None:
    if other.dtype != one.dtype:
        raise InputError(
            f"{file}: dtype {np.dtype(other.dtype).name}, but {first.name} has"
            f" {np.dtype(one.dtype).name}. All shards must have one; write this one again"
        )
    shapes = [(*array.shape[:axis], *array.shape[axis + 1 :]) for array in (one, other)]
    if one.ndim != other.ndim or shapes[0] != shapes[1]:
        raise InputError(
            f"{file}: shape {other.shape}, but {first.name} has {one.shape}. Shards may differ"
            f" along axis {axis} only, where they follow one another; `shard_axis` chooses another"
        )
