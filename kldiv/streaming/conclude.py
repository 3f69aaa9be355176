"""The result of a comparison from the sums over all of its steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv.streaming.remarks import reasons, remarks
from kldiv.streaming.results import Comparison, Contribution, Row, Side, Summary, Zeros
from kldiv.streaming.rows import statistics, worst
from kldiv.streaming.tokens import report

if TYPE_CHECKING:
    from kldiv.explanation import Explanation
    from kldiv.streaming._types import Floats, Reduction
    from kldiv.streaming.columns import Holes
    from kldiv.streaming.options import Held
    from kldiv.streaming.places import Places
    from kldiv.streaming.totals import Total
    from kldiv.streaming.work import Work


@np.errstate(all="ignore")
def conclude(work: Work, total: Total, held: list[Held], explanation: Explanation) -> Comparison:
    """Return the result of a total that is finished."""
    places, options, best = work.pair.places, work.job.options, total.best
    divisor = _divisor(places.shape, options.reduction)
    measures, more = total.rows[:3], total.rows[3:]
    flat = measures.reshape(3, -1)
    kl_pq, kl_qp, js = (summary_of(rows, options.reduction, places.shape) for rows in measures)
    found = Comparison(
        kl_pq=kl_pq,
        kl_qp=kl_qp,
        js=js,
        p=_side(work, total, held, 0),
        q=_side(work, total, held, 1),
        worst=tuple(
            Row(places.row_name(row) if places.shape else "", row, *map(float, flat[:, row]))
            for row in worst(measures, options.top)
        ),
        contributions=tuple(_contribution(each, places, divisor) for each in best.best.T),
        zeros_q=_zeros(best.zeros_q, places, best.masses[0]),
        zeros_p=_zeros(best.zeros_p, places, best.masses[1]),
        reduction=options.reduction,
        smoothing=options.smoothing,
        explanation=explanation,
        _places=places,
    )
    if len(more):
        pair = work.pair
        judged = report(flat[0], more, pair.next_tokens, limited=any(pair.limited))
        found = replace(found, quantization=judged)
    sides = zip((found.p, found.q), total.seen, strict=True)
    undefined = tuple(text for each in sides for text in reasons(*each, places))
    warnings = *work.pair.notes, *remarks(found, total.seen, places)
    return replace(found, warnings=warnings, undefined=undefined)


def _side(work: Work, total: Total, held: list[Held], number: int) -> Side:
    table, each, seen = work.pair.tables[number], held[number], total.seen[number]
    off = 0 if each.normalized else seen.off
    return Side(
        "PQ"[number],
        table.path,
        table.member,
        table.array.shape,
        table.array.dtype.name,
        each.form,
        each.normalized,
        each.guessed,
        seen.sum,
        off,
        max(seen.low, seen.high, key=lambda low: abs(low - 1.0)) if off else 1.0,
    )


def _divisor(shape: tuple[int, ...], reduction: Reduction) -> int:
    """Return the divisor of the sum over rows, as in `kldiv.kl_div` of their divergences."""
    if reduction == "sum":
        return 1
    if reduction == "batchmean":
        return shape[0] if shape else 1
    return math.prod(shape)


def summary_of(rows: Floats, reduction: Reduction, shape: tuple[int, ...]) -> Summary:
    """Return one divergence over all rows, given that of each."""
    total, median, most, infinite = statistics(rows)
    values = np.asarray(rows) if reduction == "none" else None
    mean = total / rows.size
    return Summary(total / _divisor(shape, reduction), mean, median, most, infinite, values)


def _contribution(column: Floats, places: Places, divisor: int) -> Contribution:
    index = int(column[0])
    p, q = (float(x) / places.count for x in column[1:3])
    return Contribution(
        places.class_name(index), index, p, q, *(float(x) / divisor for x in column[3:])
    )


def _zeros(holes: Holes, places: Places, mass: Any) -> Zeros:
    labels = tuple(places.class_name(index) for _, index in holes.largest)
    return Zeros(holes.count, float(holes.mass / mass) if holes.count else 0.0, labels)
