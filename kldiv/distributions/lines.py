"""Coordinates in which densities are smooth at any scale: logarithmic towards every edge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Places(NamedTuple):
    """Points of a line: x, the logarithms of x and 1 − x where they say more, and log dx/dy."""

    x: Any
    log_x: Any
    log_rest: Any
    log_slope: Any


@dataclass(frozen=True)
class Real:
    """The real line: x = centre + scale · sinh y."""

    centre: float
    scale: float

    def at(self, y: Any) -> Places:
        """Return the points at y."""
        size = np.abs(y)
        slope = math.log(self.scale / 2) + size + np.log1p(np.exp(-2 * size))
        # sinh overflows at 710: there as much of the logarithm as possible is the scale's.
        with np.errstate(over="ignore"):
            large = np.sign(y) * np.exp(size + math.log(self.scale / 2))
        offset = np.where(size < 20, self.scale * np.sinh(np.clip(y, -20, 20)), large)
        return Places(self.centre + offset, None, None, slope)

    def of(self, x: Any) -> Any:
        """Return y at x."""
        return np.arcsinh((x - self.centre) / self.scale)


@dataclass(frozen=True)
class Half:
    """A half-line: x = edge + sign · e^y."""

    edge: float
    sign: int = 1

    def at(self, y: Any) -> Places:
        """Return the points at y."""
        x = self.edge + self.sign * np.exp(y)
        log_x = None
        if self.sign > 0 and self.edge >= 0:
            log_x = np.logaddexp(math.log(self.edge), y) if self.edge else y
        return Places(x, log_x, None, y)

    def of(self, x: Any) -> Any:
        """Return y at x."""
        return np.log(self.sign * (x - self.edge))


@dataclass(frozen=True)
class Interval:
    """An interval: (x − low)/(high − low) = 1/(1 + e^(−y))."""

    low: float
    high: float

    def at(self, y: Any) -> Places:
        """Return the points at y."""
        width = self.high - self.low
        left, right = -np.logaddexp(0.0, -y), -np.logaddexp(0.0, y)
        x = np.where(y < 0, self.low + width * np.exp(left), self.high - width * np.exp(right))
        log_x = math.log(width) + left if self.low == 0 else None
        log_rest = math.log(width) + right if self.high == 1 else None
        return Places(x, log_x, log_rest, math.log(width) + left + right)

    def of(self, x: Any) -> Any:
        """Return y at x."""
        return np.log(x - self.low) - np.log(self.high - x)


Line = Real | Half | Interval


def within(low: float, high: float) -> float:
    """Return some number between two, which may be infinite."""
    if math.isfinite(low) and math.isfinite(high):
        return (low + high) / 2
    return low + 1 if math.isfinite(low) else high - 1 if math.isfinite(high) else 0.0


def line(bounds: tuple[float, float], marks: Any) -> Line:
    """Return a coordinate for a support in which mass lies among the marks."""
    low, high = bounds
    if math.isfinite(low) and math.isfinite(high):
        return Interval(low, high)
    if math.isfinite(low):
        return Half(low)
    if math.isfinite(high):
        return Half(high, -1)
    gaps = np.diff(marks)
    gaps = np.where(gaps > 0, gaps, math.inf)
    if not len(gaps) or not np.isfinite(gaps).any():
        return Real(float(marks[0]) if len(marks) else 0.0, 1.0)
    place = int(np.argmin(gaps))
    return Real(float(marks[place] + marks[place + 1]) / 2, float(gaps[place]))
