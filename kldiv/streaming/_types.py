"""The types that several files of this package name."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Triple: TypeAlias = tuple[Floats, Floats, Floats]
"""D(P‖Q), D(Q‖P) and the Jensen-Shannon divergence, or parts of them."""

Index: TypeAlias = tuple[slice, ...]
Names: TypeAlias = tuple[str, ...] | None
Form: TypeAlias = Literal["auto", "probs", "log-probs", "logits", "counts"]
Reduction: TypeAlias = Literal["mean", "sum", "batchmean", "none"]
