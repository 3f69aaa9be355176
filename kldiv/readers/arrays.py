"""Arrays of files and callers as numbers to compute with: no mask is lost, no number vanishes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.errors import InputError, LibraryError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def unmasked(name: str, array: Any) -> NDArray[Any]:
    """Return NumPy's array of an object; refuse a masked one, whose mask would be lost."""
    if isinstance(array, np.ma.MaskedArray):
        raise LibraryError(
            f"{name} is a masked array, whose mask would be lost. Give its filled(numpy.nan), or"
            " its data where the mask does not matter"
        )
    return np.asarray(array)


def doubles(name: str, array: NDArray[Any]) -> NDArray[np.float64]:
    """Return numbers as float64; refuse those of a wider dtype that are beyond its range."""
    with np.errstate(all="ignore"):
        found = array.astype(np.float64, copy=False)
    if array.dtype.itemsize > found.dtype.itemsize:
        lost = (np.isinf(found) & np.isfinite(array)) | ((found == 0) & (array != 0))
        if lost.any():
            raise InputError(
                f"{name} has dtype {array.dtype.name} and the number {array[lost][0]!s}, which"
                " float64 does not hold. Divide all by a number that brings them near to 1"
            )
    return found
