"""Series and data frames of pandas and polars, matched by their labels, as NumPy arrays.

Neither library is imported: its user's objects are read by their own methods.
"""

from __future__ import annotations

import unicodedata
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import DTypeError, OptionError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from kldiv._types import Array

LIBRARIES: Final = "pandas", "polars"
NAMED: Final = 5  # labels that a message names


def as_arrays(
    names: Sequence[str], values: tuple[Any, ...], *, rows: bool = True
) -> tuple[Array, ...]:
    """Return arrays: series and frames as NumPy's, in the order of the first one's labels.

    Without ``rows`` the labels of frames' rows are not matched.
    """
    if not any(map(_framed, values)):
        return values
    first: list[tuple[str, tuple[Hashable, ...]] | None] = [None, None]
    found = []
    for name, value in zip(names, values, strict=True):
        if not _framed(value):
            found.append(value)
            continue
        array = _numbers(name, value)
        for axis, labels in enumerate(_labels(value)):
            place = axis - array.ndim  # columns are last, a series has classes only
            if labels is None or not (rows or place == -1):
                continue
            known = first[place]
            if known is None:
                first[place] = name, labels
            elif known[1] != labels:
                array = np.take(array, _order(known[0], known[1], name, labels), axis=axis)
        found.append(array)
    return tuple(found)


def _framed(value: Any) -> bool:
    # By attributes first: a compiler that traces this knows those of its arrays.
    if not (hasattr(value, "iloc") or hasattr(value, "to_arrow")):
        return False
    return type(value).__module__.partition(".")[0] in LIBRARIES


def _labels(value: Any) -> list[tuple[Hashable, ...] | None]:
    """Return the labels of each axis, None where there are none: polars' rows."""
    rows = tuple(value.index) if hasattr(value, "iloc") else None
    return [rows, tuple(value.columns)] if len(value.shape) == 2 else [rows]


def _numbers(name: str, value: Any) -> Any:
    """Return the numbers of a series or frame; missing ones are NaN."""
    columns: dict[Any, Any] = {None: value}
    if len(value.shape) == 2:
        pandas = hasattr(value, "iloc")
        columns = {
            label: value.iloc[:, i] if pandas else value[label]
            for i, label in enumerate(value.columns)
        }
    for label, column in columns.items():
        dtype = column.dtype
        numeric = dtype.kind in "fiu" if hasattr(dtype, "kind") else dtype.is_numeric()
        if not numeric:
            whole = name if label is None else f"column {label!r} of {name}"
            mend = (
                "convert it to numbers"
                if label is None
                else f"leave it out, {name}.drop(columns={label!r}), or make it the index, "
                f"{name}.set_index({label!r})"
                if hasattr(value, "iloc")
                else f"leave it out, {name}.drop({label!r}), after sorting both by it"
            )
            raise DTypeError(f"{whole} has dtype {dtype}; expected numbers; {mend}")
    array: Any = value.to_numpy()
    if array.dtype != object:
        return array
    if hasattr(value, "iloc"):  # types of pandas that know a missing value
        return value.to_numpy(dtype=np.float64, na_value=np.nan)
    raise DTypeError(f"{name} has no dtype of NumPy; cast it to Float64 first")


def _order(
    first: str, wanted: tuple[Hashable, ...], name: str, labels: tuple[Hashable, ...]
) -> list[int]:
    """Return where ``labels`` has those that are wanted; raise unless they are the same ones."""
    for each, own in ((first, wanted), (name, labels)):
        seen: set[Hashable] = set()
        for label in own:
            if label in seen:
                raise OptionError(
                    f"{each} has the label {label!r} twice, and {first} and {name} differ in their "
                    "labels, by which they are matched; add up equal labels first, or pass both "
                    ".to_numpy() to compare by position"
                )
            seen.add(label)
    where = {label: i for i, label in enumerate(labels)}
    absent, spare = [a for a in wanted if a not in where], set(labels).difference(wanted)
    if not absent and not spare:
        return [where[label] for label in wanted]
    known = {folded(str(label)): label for label in absent}
    for label in labels:
        if label in spare and folded(str(label)) in known:
            raise OptionError(
                f"{known[folded(str(label))]!r} in {first} and {label!r} in {name} differ by case, "
                "blanks, Unicode form, type or the spelling of a number alone; spell the labels "
                "alike first, or pass both .to_numpy() to compare by position"
            )
    parts = [
        f"{each} alone has {_listed(own)}"
        for each, own in ((first, absent), (name, [a for a in labels if a in spare]))
        if own
    ]
    raise OptionError(
        f"{first} and {name} are matched by their labels, and {'; '.join(parts)}; fill both first, "
        f"for pandas by {first}, {name} = {first}.align({name}, fill_value=0), or pass both "
        ".to_numpy() to compare by position"
    )


def _listed(labels: Iterable[Hashable]) -> str:
    named = list(labels)
    more = f" and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    return ", ".join(map(repr, named[:NAMED])) + more


_UNSEEN: Final = dict.fromkeys((0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))
"""Characters without a width, which come along when text is copied."""


_LABELS: Final = Context(prec=1000)


def folded(label: str) -> str:
    """Return a label without case, spare blanks and Unicode form; of a number, its value."""
    text = unicodedata.normalize("NFKC", label.translate(_UNSEEN)).casefold()
    text = " ".join(text.split())
    text = unicodedata.normalize("NFKC", text)
    try:  # not by float, to which long numbers of customers or tweets are alike
        number = text.isascii() and "_" not in text
        return str(Decimal(text).normalize(_LABELS)) if number else text
    except ArithmeticError:
        return text
