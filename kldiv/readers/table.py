"""The table that every reader returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A column of raw values, each an observation.

    Attributes
    ----------
    name : str
        Of the column.
    values : numpy.ndarray or tuple of str
        Numbers, or categories.
    missing : int
        How many cells hold neither; they are not among the values.
    """

    name: str
    values: Any
    missing: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """An array, with the names that its file gives to its classes and rows.

    Attributes
    ----------
    array : numpy.ndarray
        The numbers, in the machine's byte order; read-only where the file is memory-mapped.
    path : pathlib.Path or None
        The file; None for an array of the caller's own.
    member : str or None
        The array, tensor or column that was taken, for a file that can hold several.
    classes : tuple of str or None
        Labels along the last axis: the text column of one column of values, or the header of a
        matrix.
    rows : tuple of str or None
        Labels along the first axis of a matrix: its text column.
    edges : numpy.ndarray or None
        The edges of bins, a row for each class of a histogram.
    notes : tuple of str
        The decisions on things that the file leaves open, in sentences.
    samples : tuple of Sample
        The columns, where `read_samples` asked for them.
    next_tokens : numpy.ndarray or None
        Of a base file of llama.cpp: the token that follows, for each row of log-probabilities. Of
        classes that are −∞ there is known only that they are 16 nats below the row's likeliest.
    """

    array: Any
    path: Path | None = None
    member: str | None = None
    classes: tuple[str, ...] | None = None
    rows: tuple[str, ...] | None = None
    edges: Any = None
    notes: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    next_tokens: Any = None
