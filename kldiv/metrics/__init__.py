"""
Divergences over many batches: update, merge, compute, on any library.

A metric holds eleven numbers in float64, whatever the number of rows: the mean with its standard
error, the extremes, and how many rows are infinite.  They merge, so that any split of the rows,
over batches, processes or devices, gives the numbers of the whole.
"""

from __future__ import annotations

from kldiv.metrics.metric import (
    CrossEntropy,
    JensenShannonDivergence,
    KLDivergence,
    Metric,
    Result,
    mean_of,
    merge_moments,
    merged,
    moments,
)
from kldiv.metrics.quantization import Histogram, Measured, Quantization, QuantizationReport

__all__ = [
    "CrossEntropy",
    "Histogram",
    "JensenShannonDivergence",
    "KLDivergence",
    "Measured",
    "Metric",
    "Quantization",
    "QuantizationReport",
    "Result",
    "mean_of",
    "merge_moments",
    "merged",
    "moments",
]
