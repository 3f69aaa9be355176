"""The result of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kldiv._notebook import table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kldiv.explanation import Explanation
    from kldiv.metrics import QuantizationReport
    from kldiv.streaming._types import Floats, Form, Reduction
    from kldiv.streaming.places import Places


@dataclass(frozen=True, slots=True)
class Side:
    """P or Q as it was read.

    Attributes
    ----------
    name : str
        P or Q.
    path : pathlib.Path or None
        The file, folder or pattern; None for an array.
    member : str or None
        The array of a file that holds several.
    shape : tuple of int
        Its shape.
    dtype : str
        Its dtype.
    form : str
        The form of its numbers; never "auto".
    normalized : bool
        Whether its rows were divided by their sums.
    guessed : bool
        Whether nobody asked for the normalisation that counts get.
    sum : float
        The sum of the last row before any normalisation, of which there may be one only.
    off : int
        Rows taken as they are that do not sum to 1, up to rounding.
    furthest : float
        The sum of these that is furthest from 1.
    """

    name: str
    path: Path | None
    member: str | None
    shape: tuple[int, ...]
    dtype: str
    form: Form
    normalized: bool
    guessed: bool
    sum: float
    off: int = 0
    furthest: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """One divergence over all rows, in nats.

    Attributes
    ----------
    value : float
        The reduction; the mean where that is "none".
    mean : float
        The mean over rows.
    median : float
        The median; NaN where any row is.
    max : float
        The largest.
    infinite : int
        The number of rows that are infinite.
    values : numpy.ndarray or None
        Every row's, where the reduction is "none"; None elsewhere.
    """

    value: float
    mean: float
    median: float
    max: float
    infinite: int
    values: Floats | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the label or number, the place in C order, and the divergences.

    Attributes
    ----------
    label : str
        Its label, or its number.
    index : int
        Its place in C order.
    kl_pq : float
        D(P‖Q).
    kl_qp : float
        D(Q‖P).
    js : float
        The Jensen-Shannon divergence.
    """

    label: str
    index: int
    kl_pq: float
    kl_qp: float
    js: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """One class: its mean probabilities, and its part of the divergences.

    Attributes
    ----------
    label : str
        The class's label, or its number.
    index : int
        Its place on the axis.
    p : float
        Its mean probability in P.
    q : float
        Its mean probability in Q.
    kl_pq : float
        Its part of D(P‖Q).
    kl_qp : float
        Its part of D(Q‖P).
    js : float
        Its part of the Jensen-Shannon divergence.
    """

    label: str
    index: int
    p: float
    q: float
    kl_pq: float
    kl_qp: float
    js: float


@dataclass(frozen=True, slots=True)
class Zeros:
    """Classes to which one distribution gives no probability where the other gives some.

    Attributes
    ----------
    classes : int
        The number of classes.
    share : float
        Their part of the other distribution.
    labels : tuple of str
        The labels of the largest.
    """

    classes: int
    share: float
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """
    Divergences of two arrays of distributions, in nats, and where they come from.

    Made by `kldiv.streaming.compare`.

    Attributes
    ----------
    kl_pq : Summary
        D(P‖Q).
    kl_qp : Summary
        D(Q‖P).
    js : Summary
        The Jensen-Shannon divergence.
    p : Side
        P as it was read.
    q : Side
        Q as it was read.
    worst : tuple of Row
        The rows of largest D(P‖Q).
    contributions : tuple of Contribution
        The classes of largest contribution to D(P‖Q).
    zeros_q : Zeros
        Zeros of Q, which make D(P‖Q) infinite.
    zeros_p : Zeros
        Zeros of P, which make D(Q‖P) infinite.
    reduction : str
        The reduction of rows.
    smoothing : float
        The number that was added to counts.
    explanation : Explanation
        Who computed it, as `kldiv.explain` says.
    warnings : tuple of str
        Assumptions, oddities of the data, and why a divergence is infinite.
    undefined : tuple of str
        Those of the warnings that say why a divergence is NaN.
    divergences : dict of Summary
        The other divergences that were asked for.
    quantization : QuantizationReport or None
        The report on Q as a quantised model; where that was asked for.
    """

    kl_pq: Summary
    kl_qp: Summary
    js: Summary
    p: Side
    q: Side
    worst: tuple[Row, ...]
    contributions: tuple[Contribution, ...]
    zeros_q: Zeros
    zeros_p: Zeros
    reduction: Reduction
    smoothing: float
    explanation: Explanation
    _places: Places = field(repr=False)
    warnings: tuple[str, ...] = ()
    undefined: tuple[str, ...] = ()
    divergences: Mapping[str, Summary] = field(default_factory=dict)
    quantization: QuantizationReport | None = None

    @property
    def mean(self) -> float:
        """The mean of D(P‖Q) over the rows."""
        return self.kl_pq.mean

    @property
    def generalised(self) -> bool:
        """Whether some sums are not 1: D is then Σ p·log(p/q) + q − p, the generalised one."""
        return bool(self.p.off or self.q.off)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return self._places.size

    @property
    def axis(self) -> int:
        """The axis of the classes, counted from 0."""
        return self._places.axis

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the rows: one entry a distribution."""
        return self._places.shape

    @property
    def count(self) -> int:
        """The number of rows."""
        return self._places.count

    def __repr__(self) -> str:
        divergences = f"D(P‖Q)={self.kl_pq.value:.6g}, D(Q‖P)={self.kl_qp.value:.6g}"
        return f"Comparison({divergences}, JS={self.js.value:.6g}, rows={self.count})"

    def _repr_html_(self) -> str:
        rows = [
            (name, each.value, each.median, each.max, each.infinite)
            for name, each in (
                *(("D(P‖Q)", self.kl_pq), ("D(Q‖P)", self.kl_qp), ("JS", self.js)),
                *self.divergences.items(),
            )
        ]
        caption = f"{self.count:,} rows of {self.classes:,} classes, in nats"
        head = ("", self.reduction, "median", "max", "infinite rows")
        return table(caption, head, rows, self.warnings)

    def row_name(self, index: int) -> str:
        """Return the label of a row, or its number; rows are counted in C order."""
        return self._places.row_name(index)
