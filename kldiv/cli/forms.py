"""What the files hold: a look at every number, then counts, probabilities or logarithms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from kldiv.cli.arithmetic import Linear, Logarithmic, Logits
from kldiv.cli.blocks import Blocks
from kldiv.cli.inputs import LOGARITHMS
from kldiv.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kldiv.cli.arithmetic import Floats, Scale
    from kldiv.cli.blocks import Block
    from kldiv.cli.inputs import Pair
    from kldiv.cli.progress import Progress
    from kldiv.cli.request import Form, Request
    from kldiv.readers import Table

_ROUNDING: Final = 1e-6  # how far from 1 the sum of printed probabilities may be, at least
_SMOOTHING: Final = "--smoothing changes the sum of probabilities: say --normalize too"


@dataclass(slots=True)
class Oddity:
    """Numbers that should not be there: how many, and where the first one is."""

    count: int = 0
    first: tuple[int, ...] = ()

    def add(self, mask: NDArray[np.bool_], block: Block) -> None:
        """Count the marked elements of a block."""
        found = int(np.count_nonzero(mask))
        if found and not self.count:
            row, column = np.unravel_index(int(np.argmax(mask)), mask.shape)
            self.first = block.place(int(row), int(column))
        self.count += found


@dataclass(slots=True)
class Scan:
    """What one pass over an array tells."""

    totals: Floats
    negative: Oddity
    undefined: Oddity
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Distribution:
    """P or Q: an array, what it holds, and the totals of its rows."""

    name: str
    table: Table
    scale: Scale
    form: Form
    guessed: bool
    """Whether nobody asked for the normalisation that counts get."""
    normalized: bool
    scan: Scan

    def read(self, block: Block) -> Floats:
        """Return a block's values on the scale, normalised where that is wanted."""
        values = self.scale.smooth(block.read(self.table.array))
        if not self.normalized:
            return values
        return self.scale.normalize(values, self.scan.totals[block.rows].ravel())

    @property
    def sums(self) -> Floats:
        """What the probabilities of each row sum to, before any normalisation."""
        return self.scale.probabilities(self.scan.totals)

    @property
    def off(self) -> NDArray[np.bool_]:
        """Which rows sum neither to 1, up to rounding, nor to NaN."""
        dtype = self.table.array.dtype
        rounding = math.sqrt(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
        return np.asarray(np.abs(self.sums - 1.0) > max(_ROUNDING, rounding))

    @property
    def nothing(self) -> NDArray[np.bool_]:
        """Which rows give no class any probability."""
        return np.asarray(self.scan.totals == self.scale.empty)


def scale_of(request: Request) -> Scale:
    """Return how the numbers stand for probabilities; refuse options that do not fit."""
    if not math.isfinite(request.smoothing):
        raise click.UsageError(f"--smoothing {request.smoothing}: expected a finite number")
    if request.form not in LOGARITHMS:
        if request.smoothing and request.form == "probs" and not request.normalize:
            raise click.UsageError(_SMOOTHING)
        return Linear(request.smoothing)
    if request.smoothing:
        raise click.UsageError(
            f"--smoothing adds to counts or probabilities, not to {request.form}"
        )
    return Logits() if request.form == "logits" else Logarithmic()


def look(
    name: str, table: Table, pair: Pair, scale: Scale, request: Request, progress: Progress
) -> Distribution:
    """Look at every number of an array once, and decide what they are."""
    scan = _scan(table.array, pair, scale, progress)
    if scan.negative.count:
        kind = "counts" if request.form == "counts" else "probabilities"
        raise InputError(
            f"{name}, {table.path}, has {scan.negative.count:,} negative numbers, the first at"
            f" {pair.place(scan.negative.first)}: they are no {kind}. For logarithms or scores say"
            " --from log-probs or --from logits"
        )
    form = request.form
    if form == "auto":
        sums = scan.totals - request.smoothing * pair.size
        ones = bool(np.all(np.abs(sums - 1.0) < _ROUNDING))  # one-hot rows are both
        form = "counts" if scan.whole and not ones else "probs"
    normalized = request.normalize or form in {"counts", "logits"}
    if request.smoothing and not normalized:
        raise click.UsageError(f"{name} holds probabilities, not counts. {_SMOOTHING}")
    asked = request.normalize or request.smoothing or request.form == form
    return Distribution(name, table, scale, form, normalized and not asked, normalized, scan)


def _scan(array: NDArray[Any], pair: Pair, scale: Scale, progress: Progress) -> Scan:
    scan = Scan(np.full(pair.shape, scale.empty), Oddity(), Oddity())
    linear = isinstance(scale, Linear)
    for group in Blocks(array, pair.axis):
        for block in group:
            values = block.read(array)
            scan.undefined.add(np.isnan(values) | (values == np.inf), block)
            if linear:
                scan.negative.add(values < 0, block)
                # A NaN is no argument: counts with a hole are counts.
                scan.whole = scan.whole and not np.any(np.abs(values - np.rint(values)) > 0)
            before = scan.totals[block.rows]
            total = scale.total(scale.smooth(values)).reshape(before.shape)
            scan.totals[block.rows] = scale.merge(before, total)
            progress.advance()
    return scan
