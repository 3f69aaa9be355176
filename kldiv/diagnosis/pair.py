"""Input and target together: zeros, clipping, the reduction that was meant."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from kldiv.diagnosis.report import Finding
from kldiv.diagnosis.scan import EPSILON, SUBNORMAL
from kldiv.diagnosis.walking import Tally, blocks
from kldiv.diagnosis.words import many, number
from kldiv.formulas.pointwise import KL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kldiv.diagnosis.scan import Scan
    from kldiv.diagnosis.walking import Floats

FILL: Final = -1e3
"""No logarithm of a probability is below it: masks are filled with such numbers."""

LOG10: Final = math.log(10.0)


class Pair:
    """One pass over both arrays: their sums, and the share of these that hangs on a trick."""

    def __init__(self, x: Scan, t: Scan, *, swapped: bool) -> None:
        self.x, self.t = x, t
        self.total = math.nan
        self.floors = {scan.name: _floor(scan) for scan in (x, t)}
        self.doubled = {"input": 0, "target": 0}  # how many entries are twice the floor
        self.parts = {"input": 0.0, "target": 0.0}  # of the divergence, from classes on a floor
        self.mass = 0.0  # of P, on the floor of Q
        self.lost = Tally(x.shape)
        self.lost_mass = 0.0
        known = {"probabilities", "log-probabilities"}
        self.possible = (
            not swapped and x.reading.kind in known and t.reading.kind in {*known, "weights"}
        )
        if self.possible:
            self.total = 0.0
            with np.errstate(all="ignore"):
                for index in blocks(x.array, t.array):
                    self._add(x.fetch(index), t.fetch(index), index)

    def _add(self, x: Floats, t: Floats, index: tuple[slice, ...]) -> None:
        log_q = x if self.x.reading.kind == "log-probabilities" else np.log(x)
        p = np.exp(t) if self.t.reading.kind == "log-probabilities" else t
        values = KL().value(np, log_q, p)
        self.total += float(np.sum(values))
        lost = (log_q == -math.inf) & (p > 0)
        self.lost.add(lost, index)
        self.lost_mass += float(np.sum(p[lost]))
        for scan, array in ((self.x, x), (self.t, t)):
            floor = self.floors[scan.name]
            if floor is not None:
                on_it = array == floor
                self.mass += float(np.sum(p[on_it])) if scan is self.x else 0.0
                self.parts[scan.name] += float(np.sum(values[on_it]))
                logs = scan.reading.kind == "log-probabilities"
                twice = array - floor - math.log(2.0) if logs else array / floor / 2.0 - 1.0
                self.doubled[scan.name] += int(np.count_nonzero(np.abs(twice) < 1e-5))

    def findings(self) -> Iterator[Finding]:
        """Yield the problems of the two arrays together."""
        if self.lost.count:
            yield Finding(
                "zeros-in-q",
                "error",
                f"Q is 0 where P is not: {many(self.lost.count, 'entry')} with "
                f"{number(self.lost_mass / self.x.rows)} of P's mass per row, first at "
                f"{self.lost.where}; the divergence is +inf, and that is the honest answer",
                "take log_softmax of logits, which does not underflow, rather than log(softmax); "
                "true zeros need another measure (Jensen-Shannon) or smoothing that you state",
            )
        yield from self._find_clipping()
        yield from self._find_reduction()

    def _find_clipping(self) -> Iterator[Finding]:
        for scan in (self.x, self.t):
            floor = self.floors[scan.name]
            logs = scan.reading.kind == "log-probabilities"
            if floor is None or not self.possible:
                continue
            least = scan.low if logs else scan.least
            if self.doubled[scan.name] > 0.05 * least.count:
                continue  # relative frequencies: multiples of one part in N
            shift = self.parts[scan.name]
            effect = f"the floor makes {number(shift / scan.rows)} of it"
            if scan is self.x and self.mass and floor > FILL:
                shift = self.mass * LOG10
                effect = f"a floor ten times lower would add {number(shift / scan.rows)} to it"
            weight = abs(shift) / max(abs(self.total), 1e-3 * scan.rows)
            if not weight > 1e-6:
                continue
            size = f"log({number(math.exp(floor))})" if logs and floor > FILL else number(floor)
            yield Finding(
                "clipped",
                "warning" if weight > 1e-3 else "note",
                f"{least.count} of {scan.size} entries of {scan.name} lie on the floor {size}, "
                "which looks like clipping; the divergence is "
                f"{number(self.total / scan.rows)} per row, and {effect}",
                "do not clip: P = 0 adds exactly 0, and Q = 0 where P > 0 is +inf; take "
                "log_softmax of logits, or smooth by a share that you state",
            )

    def _find_reduction(self) -> Iterator[Finding]:
        x = self.x
        if x.classes < 2:
            if x.shape:
                text = f"axis {x.axis} of shape {x.shape} holds one class: every divergence is 0"
                mend = "check the axis; for yes/no probabilities stack p and 1 − p"
                yield Finding("single-class", "note", text, mend)
            return
        value = self.total / x.size
        numbers = (
            f": {number(value)} instead of {number(self.total / x.rows)}"
            if math.isfinite(value) and value
            else ""
        )
        if x.rows == 1:
            mend = "use reduction='sum'"
        elif x.axis and x.rows == x.shape[0]:
            mend = "use reduction='batchmean'"
        else:
            mend = f"use reduction='sum' and divide by the number of distributions, {x.rows}"
        yield Finding(
            "mean-over-elements",
            "note",
            f"reduction='mean' divides by all {x.size} elements: it is {x.classes} times smaller "
            f"than the divergence of a distribution{numbers}",
            mend,
        )


def _floor(scan: Scan) -> float | None:
    """Return the least value of ``scan`` where it looks like a floor that values are clipped at."""
    logs = scan.reading.kind == "log-probabilities"
    least = scan.low if logs else scan.least
    half = scan.dtype in {"float16", "bfloat16"}
    # Half types have so few values that some are met by chance.
    if least.count < (max(3, 0.01 * scan.size) if half else 1):
        return None
    if (scan.minus if logs else scan.zero).count:
        return None  # clipped probabilities have no zeros
    if logs and least.value <= FILL:
        return least.value
    depth = least.value if logs else math.log(least.value)
    mass = least.count * math.exp(depth) / scan.rows
    if depth > -5.0 * LOG10 + 0.01 or mass > 0.01:
        return None  # too much for a floor: smoothing, which is meant
    # Rows that were normalised after clipping are off by about the mass on the floor.
    slack = 1e-6 + 2 * mass + 4 * EPSILON[scan.dtype] * (-depth if logs else 1.0)
    slack += 0.0 if logs else SUBNORMAL.get(scan.dtype, 0.0) / least.value
    powers = round(depth / LOG10) * LOG10
    known = (powers, *map(math.log, (2.0**-23, 2.0**-52, 2.0**-126, 2.0**-1022)), -100.0)
    return least.value if any(abs(depth - k) <= slack for k in known) else None
