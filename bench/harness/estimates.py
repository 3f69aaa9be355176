"""Medians, their intervals, and verdicts on them."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

UNSTABLE: Final = 0.10
"""A row whose IQR/median exceeds this is unstable and never ranked."""
LEVEL: Final = 0.95
RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Summary:
    """The median of samples and its interval."""

    median: float
    q25: float
    q75: float
    n: int
    outliers: int
    """Samples beyond three IQRs from the quartiles."""

    @property
    def iqr(self) -> float:
        """The distance of the quartiles."""
        return self.q75 - self.q25

    @property
    def unstable(self) -> bool:
        """Whether the samples scatter too much to be ranked; fewer than three are."""
        return self.n < 3 or self.iqr > UNSTABLE * self.median


def summarise(samples: Sequence[float]) -> Summary:
    """Return median, quartiles and outliers of one sample or more."""
    values = np.asarray(samples, dtype=np.float64)
    q25, middle, q75 = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    far = 3 * (q75 - q25)
    outliers = int(((values > q75 + far) | (values < q25 - far)).sum())
    return Summary(middle, q25, q75, values.size, outliers)


@dataclass(frozen=True)
class Ratio:
    """A ratio of times with its interval."""

    ratio: float
    low: float
    high: float


def paired_ratio(own: Sequence[float], peer: Sequence[float], seed: str) -> Ratio:
    """Return how many times the peer's time is ours, from samples of the same rounds.

    The ratio is taken round by round, which cancels the slowness of a whole round; its interval is
    a percentile bootstrap of the median over rounds.
    """
    rounds = min(len(own), len(peer))
    ratios = np.asarray(peer[:rounds], dtype=np.float64) / np.asarray(own[:rounds])
    picks = generator(seed).integers(0, rounds, size=(RESAMPLES, rounds))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def log_ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return by how much the log of a time changed, and the standard error of that.

    It is Hodges and Lehmann's estimate: the median of all differences between a sample of the one
    and a sample of the other. Outliers do not move it, and it takes a third fewer samples than the
    difference of medians. Its error is read off the interval that the rank test gives.
    """
    a, b = (np.log(np.asarray(samples, dtype=np.float64)) for samples in (before, after))
    differences = np.sort((b[:, None] - a[None, :]).ravel())
    middle = float(np.median(differences))
    half = 1.96 * math.sqrt(a.size * b.size * (a.size + b.size + 1) / 12)
    low = max(0, math.floor(differences.size / 2 - half))
    width = float(differences[differences.size - 1 - low] - differences[low])
    return middle, width / (2 * 1.96)


def generator(seed: str) -> np.random.Generator:
    """Return a generator that the same words always seed alike."""
    return np.random.default_rng(zlib.crc32(seed.encode()))
