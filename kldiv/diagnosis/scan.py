"""One array: its values, the form it reads as, and its own problems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from kldiv import backends
from kldiv.diagnosis import walking
from kldiv.diagnosis.report import Finding
from kldiv.diagnosis.walking import Least, Tally, blocks, place
from kldiv.diagnosis.words import ROUGH, many, number, row_sum
from kldiv.errors import LibraryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from kldiv._types import Array
    from kldiv.diagnosis.walking import Floats

Kind: TypeAlias = Literal["probabilities", "log-probabilities", "logits", "weights", "undefined"]

EPSILON: Final = {
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
}

SUBNORMAL: Final = {"float16": 2.0**-24}
"""The smallest numbers; those of the other dtypes are too small to matter."""


@dataclass(frozen=True)
class Reading:
    """The most plausible form of an array."""

    kind: Kind
    normalised: bool | None = False
    """Whether most rows sum to 1; None where no row can be summed."""
    over: str = ""
    """Where they do so in another direction: over which axis."""

    def __str__(self) -> str:
        if self.over:
            return f"{self.kind} over {self.over}"
        if self.kind == "log-probabilities" and self.normalised is False:
            return "unnormalised log-probabilities"
        return {"weights": "unnormalised probabilities", "undefined": "nothing but NaN"}.get(
            self.kind, self.kind
        )


def fetched(array: Array, index: tuple[slice, ...] = ()) -> NDArray[Any]:
    """Return a part of an array in host memory, half types as float32: NumPy may have none."""
    backend = backends.find(array)
    part = backend.export(array)
    part = part[index] if index else part
    if backend.dtype_name(array) in {"float16", "bfloat16"}:
        with backend.context(part):
            xp = backend.namespace(part)
            part = xp.astype(part, xp.float32)
    return np.asarray(backend.to_numpy(part))


class Scan:
    """One pass over one array: its values, and the form it reads as."""

    def __init__(self, name: str, array: Array, axis: int) -> None:
        self.name = name
        self.is_target = name == "target"
        self.array = array
        self.dtype = backends.find(array).dtype_name(array)
        self.shape = tuple(int(size) for size in array.shape)
        self.size = math.prod(self.shape)
        self.axis = axis
        self.classes = self.shape[axis] if self.shape else 1
        self.rows = self.size // max(self.classes, 1)
        self.nan, self.plus, self.minus, self.negative, self.zero = (
            Tally(self.shape) for _ in range(5)
        )
        self.low, self.least = Least(), Least()  # of the finite entries, of the positive ones
        self.high = -math.inf
        self.above = self.below = 0.0  # sums of the positive and of the negative entries
        kept = tuple(1 if i == axis else size for i, size in enumerate(self.shape))
        self.sums, self.exp_sums = np.zeros(kept), np.zeros(kept)
        if self.size:
            with np.errstate(all="ignore"):
                for index in blocks(array):
                    self._add(self.fetch(index), index)
                self.reading = self._read()

    def fetch(self, index: tuple[slice, ...]) -> Floats:
        """Return a part of the array as float64 in host memory."""
        try:
            return fetched(self.array, index).astype(np.float64, copy=False)
        except (LibraryError, NotImplementedError) as error:
            raise LibraryError(
                f"diagnose looks at values, and {self.name} ({type(self.array).__name__}) has "
                "none; call it on concrete arrays, outside jax.jit, jax.grad, torch.compile and "
                "torch.func"
            ) from error

    def _add(self, block: Floats, index: tuple[slice, ...]) -> None:
        self.nan.add(np.isnan(block), index)
        self.plus.add(block == math.inf, index)
        self.minus.add(block == -math.inf, index)
        self.negative.add(block < 0, index)
        self.zero.add(block == 0, index)
        finite = block[np.isfinite(block)]
        positive = finite[finite > 0]
        self.low.add(finite)
        self.least.add(positive)
        self.high = max(self.high, float(np.max(finite, initial=-math.inf)))
        self.above += float(np.sum(positive))
        self.below += float(np.sum(finite[finite < 0]))
        if not self.shape:
            self.sums, self.exp_sums = block, np.exp(block)
            return
        # A slab may hold parts of rows, so sums add up.  Where exp overflows, no row is normalised.
        rows = tuple(slice(None) if i == self.axis else part for i, part in enumerate(index))
        self.sums[rows] += np.sum(block, axis=self.axis, keepdims=True)
        self.exp_sums[rows] += np.sum(np.exp(block), axis=self.axis, keepdims=True)

    # ---- the form it reads as --------------------------------------------------------------------

    def tolerance(self, kind: Kind, classes: int) -> float:
        """Return how far from 1 rounding alone takes the sum of a row."""
        # A rounded logarithm is off by |log p|·ε: for a row by its entropy, which is at most log K.
        # Libraries that sum in the array's own dtype lose a few ε more.
        spread = 2.0 + math.log(max(classes, 1)) if kind == "log-probabilities" else 4.0
        rounding = spread * EPSILON[self.dtype] + classes * SUBNORMAL.get(self.dtype, 0.0)
        # Float64 often holds results of float32, whose sums over many classes lose more.
        return max(rounding, 1e-4)

    def _read(self) -> Reading:
        if self.nan.count and self.nan.count + self.minus.count == self.size:
            return Reading("undefined")
        # Rows with NaN or +inf say nothing, nor do rows of zeros, which pad a batch.
        padding = (self.sums == 0) & (self.exp_sums == self.classes) & (self.classes > 1)
        use = np.isfinite(self.exp_sums) & ~padding
        if not self.shape or not np.any(use):
            return self._read_signs(None)
        kind = self._normalised(self.sums[use], self.exp_sums[use], self.classes)
        if kind:
            return Reading(kind, normalised=True)
        total = self._normalised(
            np.asarray([np.sum(self.sums)]), np.asarray([np.sum(self.exp_sums)]), self.size
        )
        if total:
            return Reading(total, over="all axes together")
        for other, size in enumerate(self.shape):
            kind = self._normalised_over(other) if other != self.axis and size > 1 else None
            if kind:
                return Reading(kind, over=f"axis {other}")
        return self._read_signs(float(np.median(self.exp_sums[use])))

    def _normalised(self, sums: Floats, exp_sums: Floats, classes: int) -> Kind | None:
        """Return which sums are 1 in most rows: never both, as the exponentials exceed K + sum."""
        if np.mean(np.abs(sums - 1) <= max(self.tolerance("probabilities", classes), 0.05)) > 0.5:
            return "probabilities"
        limit = max(self.tolerance("log-probabilities", classes), 0.05)
        return "log-probabilities" if np.mean(np.abs(exp_sums - 1) <= limit) > 0.5 else None

    def _normalised_over(self, other: int) -> Kind | None:
        """Return the same along another axis, by a sample of the rows along it."""
        width = max(
            1, round((walking.BLOCK / self.shape[other]) ** (1 / max(len(self.shape) - 1, 1)))
        )
        sample = self.fetch(
            tuple(slice(0, n if i == other else min(n, width)) for i, n in enumerate(self.shape))
        )
        exp_sums = np.sum(np.exp(sample), axis=other)
        use = ~np.isnan(exp_sums)
        if not np.any(use):
            return None
        return self._normalised(np.sum(sample, axis=other)[use], exp_sums[use], self.shape[other])

    def _read_signs(self, mass: float | None) -> Reading:
        """Return the form that signs suggest; ``mass`` is the sum of a row's exp."""
        zeros = self.high == self.low.value == 0
        if self.high <= 0 and (mass is None or mass <= 1.05) and not (zeros and self.is_target):
            return Reading("log-probabilities", normalised=None if mass is None else False)
        if -self.below <= 0.01 * self.above or (zeros and self.is_target):
            known = mass is not None or self.high > 1
            return Reading("weights") if known else Reading("probabilities", normalised=None)
        return Reading("logits")

    # ---- faults of one array ---------------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        """Yield the problems of the array that do not depend on the other one."""
        yield from self._find_nan()
        if self.plus.count:
            text = f"{self.name} holds {many(self.plus.count, '+inf')}, first at {self.plus.where}"
            mend = "find the overflow that made it; no probability or log-probability is +inf"
            yield Finding("infinite", "error", text, mend)
        if self.negative.count and self.reading.kind in {"probabilities", "weights"}:
            text = (
                f"{self.name} holds {many(self.negative.count, 'negative probability')}, first at "
                f"{self.negative.where}, least {number(self.low.value)}; their logarithm is NaN"
            )
            mend = "mend their origin (a subtraction that cancels?), or clip them at 0"
            yield Finding("negative-probabilities", "error", text, mend)
        distribution = self.reading.kind in {"probabilities", "log-probabilities"}
        if distribution or (self.reading.kind == "weights" and self.is_target):
            yield from self._find_row_sums()

    def _find_nan(self) -> Iterator[Finding]:
        if not self.nan.count:
            return
        many = f"{self.name} holds {self.nan.count} NaN among {self.size} entries, first at"
        if self.reading.kind == "undefined":
            yield Finding(
                "log-of-log-probabilities",
                "error",
                f"{many} {self.nan.where}, and no finite number: so looks the logarithm of "
                "negative numbers, such as log_softmax(...).log()",
                "log_softmax returns logarithms already: drop the second log; if there is none, "
                "find the NaN from which the array was made (a model that diverged?)",
            )
            return
        yield Finding(
            "nan",
            "error",
            f"{many} {self.nan.where}; KL does not ignore NaN: each reaches the result",
            "find its origin (the log of a negative number, 0/0, inf − inf); leave out missing "
            "numbers by where=, for example where=~isnan(array)",
        )

    def _find_row_sums(self) -> Iterator[Finding]:
        logs = self.reading.kind == "log-probabilities"
        sums = self.exp_sums if logs else self.sums
        if self.reading.over or not self.shape:
            return  # said already; one number is no distribution
        sound = np.isfinite(sums)
        off = np.where(sound, np.abs(sums - 1), 0.0)
        tolerance = self.tolerance(self.reading.kind, self.classes)
        count = int(np.count_nonzero(off > tolerance))
        if not count:
            return
        first = int(np.argmax(off >= (1 - 1e-9) * np.max(off)))  # of rows that are equally bad
        worst = np.unravel_index(first, off.shape)
        at_worst = place(tuple(":" if i == self.axis else int(at) for i, at in enumerate(worst)))
        empty = int(np.count_nonzero(sound & (sums == 0)))
        what = f"exp({self.name})" if logs else self.name
        text = (
            f"{count} of {many(self.rows, 'row')} of {what} {'does' if count == 1 else 'do'} not "
            f"sum to 1; the worst is {at_worst}, which sums to {row_sum(float(sums[worst]))}"
        )
        mend = "apply log_softmax" if logs else "divide by the sum"
        mend += f" over axis {self.axis}"
        if empty:
            text += f"; {empty} {'has' if empty == 1 else 'have'} no mass at all"
            mend += ", and leave padding out by where="
        rough = float(off[worst]) <= ROUGH
        if rough:
            mend = f"half precision and rounded decimals do as much; where it matters, {mend}"
        yield Finding("row-sums", "note" if rough else "warning", text, mend)
