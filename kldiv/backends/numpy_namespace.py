"""NumPy's reductions by the ufuncs that they come to: its functions take twice as long to begin."""

from __future__ import annotations

from functools import partial

import numpy as np

REDUCTIONS = {
    name: partial(ufunc.reduce, axis=None)
    for name, ufunc in {
        "sum": np.add,
        "max": np.maximum,
        "any": np.logical_or,
        "all": np.logical_and,
    }.items()
}
