"""Classes below the range of a file that keeps each row's largest logits only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kldiv.readers.llama_files import RANGE

if TYPE_CHECKING:
    from kldiv.streaming._types import Floats


def completed(p: Floats, q: Floats, limited: tuple[bool, bool]) -> list[Floats]:
    """Return whole rows of P and Q with their unknown classes, −∞ where ``limited``, filled in.

    A class is given the other side's logit, both counted from their row's largest, or the end of
    the range if that is less: the divergence is then the least that the file allows, up to the
    probability of such classes, and 0 of rows alike. Classes of neither side stay −∞ in both.
    """
    values = [p, q]
    peaks = [each.max(axis=-1, keepdims=True) for each in values]
    gaps = [each - peak for each, peak in zip(values, peaks, strict=True)]
    for side in (0, 1):
        if limited[side]:
            unknown = values[side] == -np.inf
            filled = peaks[side] + np.minimum(gaps[1 - side], -RANGE)
            values[side] = np.where(unknown, filled, values[side])
    return values
