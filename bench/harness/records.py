"""The results file: its version, how it is checked, read and written.

A file is written whole and renamed into place, so that whatever interrupts a run leaves the file of
the last group that was finished; ``--resume`` goes on from there.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA: Final = "kldiv-bench"
VERSION: Final = 1
GPU_CHECK: Final = "kldiv-gpu-check"
"""The schema of gpu-check's file, which holds a results file."""

Results = dict[str, Any]

Kinds = type | tuple[type, ...]
_OPTIONAL_NUMBER: Final = (int, float, type(None))
_TOP: Final[dict[str, Kinds]] = {
    **dict.fromkeys(("schema", "started"), str),
    "version": int,
    "complete": bool,
    "revision": (dict, type(None)),
    "cells": list,
    **dict.fromkeys(("settings", "machine", "versions", "bandwidth", "missing"), dict),
}
_CELL: Final[dict[str, Kinds]] = {
    **dict.fromkeys(("key", "operation", "pass", "who", "library", "mode", "dtype"), str),
    **dict.fromkeys(("device", "status"), str),
    **dict.fromkeys(("kernel", "reason"), (str, type(None))),
    **dict.fromkeys(("shape", "samples_s"), list),
    **dict.fromkeys(("first_s", "compile_s", "median_s", "q25_s", "q75_s"), _OPTIONAL_NUMBER),
    **dict.fromkeys(("iqr_s", "bytes_per_s", "of_bandwidth"), _OPTIONAL_NUMBER),
    **dict.fromkeys(("error", "gradient_error"), _OPTIONAL_NUMBER),
    **dict.fromkeys(("calls", "n", "outliers"), int),
    **dict.fromkeys(("bytes", "memory", "ratios"), dict),
    "unstable": bool,
}
STATUSES: Final = ("ok", "wrong", "failed", "unavailable")
"""Unavailable: kldiv says that this kernel does not do this."""


class ResultsError(ValueError):
    """A file that is no results file of this version."""


def check(results: Any, place: str = "results") -> Results:
    """Return the results if they follow the schema, else raise and name the first that does not."""
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise ResultsError(
            f"{place}: expected an object with schema {SCHEMA!r}; write one with bench run"
        )
    if results.get("version") != VERSION:
        raise ResultsError(
            f"{place}: schema version {results.get('version')!r}, expected {VERSION}; measure "
            "anew, or use the kldiv that wrote it"
        )
    _check_fields(results, _TOP, place)
    seen = set()
    for index, cell in enumerate(results["cells"]):
        where = f"{place}: cells[{index}]"
        if not isinstance(cell, dict):
            raise ResultsError(f"{where}: expected an object, got {type(cell).__name__}")
        _check_fields(cell, _CELL, where)
        if cell["status"] not in STATUSES:
            raise ResultsError(f"{where}: status {cell['status']!r}, expected one of {STATUSES}")
        if cell["key"] in seen:
            raise ResultsError(f"{where}: key {cell['key']!r} is there twice")
        seen.add(cell["key"])
    return results


def _check_fields(found: Results, fields: dict[str, Kinds], place: str) -> None:
    for name, kinds in fields.items():
        if name not in found:
            raise ResultsError(f"{place}: {name} is missing")
        if not isinstance(found[name], kinds):
            raise ResultsError(f"{place}: {name} is {type(found[name]).__name__}")
    unknown = sorted(found.keys() - fields.keys())
    if unknown:
        raise ResultsError(f"{place}: unknown field {unknown[0]!r}")


def read(path: Path) -> Results:
    """Read a results file and check it."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ResultsError(f"{path}: not JSON: {error}") from error
    if isinstance(found, dict) and found.get("schema") == GPU_CHECK:
        found = found.get("benchmark")
        if found is None:
            raise ResultsError(f"{path}: this GPU check measured no times: {path.name} says why")
    return check(found, str(path))


def write(path: Path, results: Results) -> None:
    """Check the results and write them, a line for each cell, so that changes show as such."""
    check(results)
    write_text(path, dumps_lines(results))


def dumps_lines(value: Any) -> str:
    """Return JSON with a line for each cell, wherever there is a list of cells."""
    return _lines(value, 0) + "\n"


def _lines(value: Any, depth: int) -> str:
    if not isinstance(value, dict):
        return dumps(value)
    inner = " " * (depth + 1)
    parts = []
    for name, each in value.items():
        if name == "cells" and each:
            cells = ",\n".join(f"{inner} {dumps(cell)}" for cell in each)
            text = f"[\n{cells}\n{inner}]"
        else:
            text = _lines(each, depth + 1) if depth < 2 else dumps(each)
        parts.append(f"{inner}{dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n" + " " * depth + "}" if parts else "{}"


def dumps(value: Any) -> str:
    """Return one line of JSON."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value as reading it back would: tuples become lists."""
    return json.loads(dumps(value))


def write_text(path: Path, text: str) -> None:
    """Write a file all at once: an interrupted write leaves the earlier file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold: floats with seven digits, null for inf and NaN."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
