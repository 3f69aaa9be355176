"""How tables are read, where a file alone does not say it."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Final, Literal

from kldiv.errors import OptionError

_MARKS: Final = {".", ","}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    r"""
    How to read the table in a file where the file alone leaves it open.

    Parameters
    ----------
    labels : str or tuple of str, optional
        Columns with the labels; an empty one says that no column has any. By default text columns,
        and a first column of numbers that is asked about where it could be either.
    values : str or tuple of str, optional
        Columns with the numbers: one is a distribution, several are a matrix.
    sep : str, optional
        The character between cells; ``" "`` is any run of blanks, ``"\t"`` a tab.
    decimal : {".", ","}, optional
        The decimal mark; the other one then separates thousands.
    encoding : str, optional
        The encoding of the text, such as "latin-1".
    comment : str, optional
        The start of lines to leave out; an empty one says that there are none.
    na : {"zero", "drop"}, optional
        Whether empty cells and marks such as NA are 0, or NaN, which `kldiv.streaming.compare`
        leaves out of both distributions. By default they are refused.
    header : bool, optional
        Whether the first line names the columns, where that is in doubt; columns without names are
        called by their numbers, 1, 2, ….

    Raises
    ------
    OptionError
        An option has a value that it does not take.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from kldiv.readers import Reading, read
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "ratings.csv")
    ...     size = path.write_text("rating;share\n5;0,75\n3;0,25\n", encoding="utf-8")
    ...     table = read(path, reading=Reading(labels="rating"))
    >>> table.classes, table.array
    (('5', '3'), array([0.75, 0.25]))
    """

    labels: str | tuple[str, ...] | None = None
    values: str | tuple[str, ...] | None = None
    sep: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    comment: str | None = None
    na: Literal["zero", "drop"] | None = None
    header: bool | None = None

    def __post_init__(self) -> None:
        if self.sep is not None and (len(self.sep) != 1 or self.sep in '"\r\n'):
            raise OptionError(f"sep={self.sep!r}: expected one character, such as ';' or '|'")
        if self.decimal is not None and self.decimal not in _MARKS:
            raise OptionError(f"decimal={self.decimal!r}: expected '.' or ','")
        if self.sep is not None and self.sep == self.decimal:
            raise OptionError(f"sep={self.sep!r} is the decimal mark too: they must differ")
        if self.na not in {None, "zero", "drop"}:
            raise OptionError(f"na={self.na!r}: expected 'zero' or 'drop'")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except (LookupError, ValueError):
                raise OptionError(
                    f"encoding={self.encoding!r}: no such encoding; there are utf-8, utf-16,"
                    " latin-1, cp1252 and others of Python's"
                ) from None

    def names(self, which: Literal["labels", "values"]) -> tuple[str, ...] | None:
        """Return the columns that were named, or None.

        Parameters
        ----------
        which : {"labels", "values"}
            The option.

        Returns
        -------
        tuple of str or None
            Empty where the option says that there are none.
        """
        given = getattr(self, which)
        names = (given,) if isinstance(given, str) else given
        return None if names is None else tuple(name for name in names if name)


PLAIN: Final = Reading()
