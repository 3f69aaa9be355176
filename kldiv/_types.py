"""The few type aliases that the whole package shares."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, TypeVar

# No typing protocol spans the functions that formulas use of all array libraries, so inside the
# package arrays and namespaces are checked at run time.
Array: TypeAlias = Any
"""An array of any supported library."""


class SupportsArray(Protocol):
    """An array as public functions take it: all libraries have these, text and lists do not."""

    @property
    def shape(self) -> Any:
        """Return the size along each axis."""

    @property
    def dtype(self) -> Any:
        """Return the type of the elements."""

    @property
    def ndim(self) -> Any:
        """Return the number of axes."""


ArrayT = TypeVar("ArrayT", bound=SupportsArray)
"""The type of the arrays that a public function is given, and of the one that it returns."""

Namespace: TypeAlias = Any
"""A module-like object with the functions of the Python array API."""

Reduction: TypeAlias = Literal["none", "mean", "batchmean", "sum"]
