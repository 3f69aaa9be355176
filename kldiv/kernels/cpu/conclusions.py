"""Conclusions that the sums of a pass allow: the pivot, the value, and the means of gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from kldiv.kernels.cpu.code import DOUBLE, Value, at_least, at_most, select
from kldiv.kernels.cpu.elementary import (
    added,
    eighth_difference,
    log,
    log1p,
    quotient,
    two_difference,
    two_sum,
)
from kldiv.kernels.cpu.peaks import Peak
from kldiv.kernels.cpu.row import SEGMENT, STUDENT, TEACHER, low_width
from kldiv.kernels.cpu.sums import Total

if TYPE_CHECKING:
    from kldiv.kernels.cpu.peaks import Scale
    from kldiv.kernels.cpu.row import Row

_MODERATE: Final = 1e3
"""Σ p^α q^κ, or 1 over it, up to which Rényi's divergence and its gradient are as exact as those
of α."""
_NOTHING: Final = (0.0, 0.0)


class _Side(NamedTuple):
    """A side of a row, as the records of its blocks tell."""

    top: Value
    beside: Value
    """The other side's largest logit where the own is largest."""
    lost: Value
    """Whether a class is there that the other side lacks."""
    scale: Scale
    total: Value
    """The sum of its weights."""


def _sides(row: Row) -> list[_Side]:
    """Return the sides of a row, and write the factors of their blocks."""
    found: list[_Side] = []
    code, count = row.code, len(row.divergence.sides)
    tops = [code.variable(code.real(-float("inf"))) for _ in range(count)]
    flags, besides = ([code.variable(code.real(0.0)) for _ in range(count)] for _ in range(2))
    with code.loop(row.blocks) as block:
        record = row.record(block)
        for index in range(count):
            places = 2 * index, 4 + index, 6 + index
            own, flag, other = (code.load(DOUBLE, record, place) for place in places)
            higher = own > tops[index].get()
            tops[index].set(select(higher, own, tops[index].get()))
            if row.divergence.paired:
                besides[index].set(select(higher, other, besides[index].get()))
                flags[index].set(at_least(flags[index].get(), flag))
    for index, top in enumerate(each.get() for each in tops):
        scale, total = row.scale(top), Total(code)
        with code.loop(row.blocks) as block:
            record = row.record(block)
            highest = code.load(DOUBLE, record, 2 * index)
            factor = scale.of(row.scale(highest), highest == -float("inf"))
            code.store(record, factor, 8 + index)
            if row.divergence.paired:
                total.add(code.load(DOUBLE, record, 2 * index + 1) * factor)
        found.append(_Side(top, besides[index].get(), flags[index].get(), scale, total.get()))
    return found


def find_scales(row: Row) -> None:
    """Find the scales of weights, the teacher's peak and the pivot, as far as they are wanted."""
    sides = _sides(row)
    if row.divergence.labelled:
        _find_peak(row, sides[0])
    if row.divergence.paired:
        _find_pivot(row, *sides)


def _find_peak(row: Row, side: _Side) -> None:
    """Write −log p(label) and the entropy of the teacher, and keep numbers for its gradient."""
    code, scale = row.code, side.scale
    taken, rest, depths = code.variable(code.real(0.0)), Total(code), Total(code)
    with code.loop(row.blocks) as block:
        record = row.record(block)
        top, ties, *sums, factor = (code.load(DOUBLE, record, at) for at in (0, 10, 11, 12, 8))
        first = select((top == side.top) & (taken.get() == 0.0), code.real(1.0), 0.0)
        taken.set(taken.get() + first)
        below, moment = (each * 2.0**-row.own.lift for each in sums)
        # A lost block is beyond numbers, but NaN in it counts.
        share = factor * (below + row.scale(top).weight(top) * (ties - first))
        rest.add(share)
        depth = select(factor == 0.0, 0.0, side.top - top) / scale.heat.temperature
        depths.add(factor * moment + share * depth)
    peak = Peak(scale, rest.get() / scale.weight(side.top), depths.get())
    peak = peak._replace(mean=peak.mean * peak.per)
    label, inside = row.label()
    of_label = row.sums(select(inside, label, 0) // SEGMENT, 0)
    row.store(peak.cost(code.load(DOUBLE, of_label), inside), 0)
    row.store(peak.entropy, 1)
    row.set(top_t=side.top, rest=peak.rest, depth=peak.mean)
    row.set(t_scale=peak.per * 2.0**-row.own.lift)


def _find_pivot(row: Row, teacher: _Side, student: _Side) -> None:
    for name, side in (("t", teacher), ("s", student)):
        origin, exponent = side.scale.origin, side.scale.exponent
        numbers = {"origin": origin, "exponent": exponent, "scale": 1.0 / side.total}
        row.set(**{f"{name}_{key}": number for key, number in numbers.items()})
        row.set(**{f"top_{name}": side.top, f"beside_{name}": side.beside})
    heat = row.heat_64()
    both = (teacher.total > 0.0) & (student.total > 0.0)
    powers = teacher.scale.exponent - student.scale.exponent
    temperature = row.eighth_temperature()
    first = eighth_difference(teacher.top, student.top, row.least)
    of_s, of_t = (side.top - side.scale.origin for side in (student, teacher))
    ratio = added(eighth_difference(of_s, of_t, row.least), powers * (heat.ln2 * 0.125))
    quotient = log(teacher.total / student.total)
    ratio = added(ratio, powers * (heat.ln2_low * 0.125) + temperature * quotient)
    snap = temperature * (2.0**-17 if row.real.single else 2.0**-44)
    pivot, low = _either(abs(ratio[0]) <= snap, _NOTHING, ratio)
    pivot = select(both, pivot, float("nan"))
    row.set(first=first, ratio=ratio)
    if row.divergence.exact:
        # Of one word first: d − c is exact where it is small, and y tells the rest.
        whole = (first[0] + pivot).to(row.real.scalar).to(DOUBLE)
        row.set(pivot=added(two_difference(whole, first[0]), -first[1]))
        row.set(pivot_words=(whole, row.code.real(0.0), row.code.real(0.0)))
    else:
        _set_pivot(row, (pivot, low))
    # Beside the largest number such a logit is nothing.
    moderate = at_least(abs(teacher.top), abs(student.top)) < 1e30
    lost, lone = (
        row.divergence.counted(row, index, side.lost)
        for index, side in enumerate((teacher, student))
    )
    row.set(plain=moderate if row.divergence.exact else 0.0, lost=lost, lone=lone)


def _set_pivot(row: Row, pivot: tuple[Value, Value]) -> None:
    """Change the pivot, given less ``first``."""
    first, first_low = row.words("first")
    high, more = two_sum(first, pivot[0])
    more, less = two_sum(first_low, more)
    low, rest = two_sum(more, pivot[1] + less)
    row.set(pivot=pivot)
    _set_words(row, "pivot", *two_sum(high, low), rest)


def _set_words(row: Row, name: str, high: Value, low: Value, rest: Value | float = 0.0) -> None:
    """Keep a pivot or an anchor as three numbers of the elements' dtype."""
    head = high.to(row.real.scalar).to(DOUBLE)
    low, less = two_sum(high - head, low)
    second = low.to(row.real.scalar).to(DOUBLE)
    row.set(**{f"{name}_words": (head, second, (low - second) + (less + rest))})


def better_pivot(row: Row, stage: Value) -> None:
    """Settle the pivot, or move it by log1p(y)."""
    code, divergence = row.code, row.divergence
    temperature = row.eighth_temperature()
    before = stage - 1
    y, size, value = (row.sum(before, index) for index in range(3))
    offset = log1p(y)
    pivot, change = row.words("pivot"), temperature * offset
    moved = added(pivot, -change)
    if divergence.exact:
        enough = abs(y) <= size * 0.5
    else:
        # The sum of terms changes by about y² beside size², and by y itself where all is far.
        most = 2.0**-12, 2.0**-22
        most = most if row.real.single else (2.0**-27, 2.0**-51)
        most = most if divergence.smooth else (most[1], most[1])
        enough = abs(y) <= at_most(size * most[0], most[1])
    done = enough | (stage == TEACHER)
    with code.either(done) as (then, otherwise):
        with then:
            value = divergence.value(value, y)
            if divergence.logarithmic:
                value = _logarithm(row, value, row.sum(before, 3 + 2 * row.along))
            if not divergence.smooth:
                # Moving the pivot by y changes either half of the sum by that times its mass.
                value = value + (row.sum(before, 3) - 0.5) * y
            value = select(value < 0.0, 0.0, value)
            for flag, infinite in zip(("lost", "lone"), divergence.unbounded, strict=True):
                if infinite:
                    value = select(row.get(flag) > 0.0, float("inf"), value)
            value = select(pivot[0] == pivot[0], value, float("nan"))
            row.set(settled=1.0, value=value, y=y)
            if row.gradients:
                _set_pivot(row, moved)
            if row.along:
                # Of q that is by y too large: that is less than a gradient's roundings.
                # Signs alone tell whether its mean is exact: about p = q one class far
                # away may have most of the square.
                mean, size = (row.sum(before, index) for index in (3, 4))
                known = (size - abs(mean)) * 2.0 >= abs(mean)
                if divergence.squares:
                    # With r = p/q, whose mean is 1, and M^α that of r^α, the mean deviation of r^α
                    # is at least 2 M^(α−1) (M − 1), as r^α ≤ r M^(α−1) below M: for 1 < α ≤ 2 no
                    # less than M^α − 1, the mean of v but for a factor.
                    alpha = row.number(0)
                    known = known | ((alpha > 1.0) & (alpha <= 2.0))
                known = known & (abs(y) <= 0.5 * most[1]) & (value < float("inf"))
                row.set(mean_s=mean, known=known)
            row.store(value, row.results - 1)
        with otherwise:
            moved = _either(abs(offset) < 0.5, moved, row.words("ratio"))
            snap = 2.0**-16 if row.real.single else 2.0**-40
            row.set(plain=0.0)
            _set_pivot(row, _either(abs(moved[0]) <= abs(change) * snap, _NOTHING, moved))


def _logarithm(row: Row, value: Value, whole: Value) -> Value:
    """Return Rényi's divergence, given that of α and Σ p^α q^κ; NaN where the latter is far.

    Such a row is left to the formulas.
    """
    alpha, kappa, _, scale = (row.number(index) for index in range(4))
    change = -(alpha * kappa) * value
    near = abs(change) <= 0.5
    whole = select(near, change + 1.0, whole)
    moderate = (whole > 1.0 / _MODERATE) & (whole < _MODERATE)
    whole = select(moderate, whole, float("nan"))
    row.set(slope=scale * alpha / whole)
    found = select(near, log1p(select(near, change, 0.0)), log(whole)) / -kappa
    # Of an order so near to 1 it is the α-divergence itself.
    found = select(abs(change) < 1e-30, alpha * value, found)
    return scale * select(moderate, found, float("nan"))


def find_mean(row: Row, stage: Value, side: str) -> None:
    """Take the mean that the stage before found, or another anchor."""
    code = row.code
    sign = 1.0 if side == "t" else -1.0
    base = TEACHER if side == "t" else STUDENT
    with code.when(row.flag("again") & (row.frame[f"wants_{side}"] != 0)):
        mean, size, middle = (row.sum(stage - 1, index) for index in range(3))
        row.set(**{f"mean_{side}": mean})
        if not row.divergence.smooth:
            row.set(**{f"below_{side}": size, f"level_{side}": middle}, again=0.0)
            return
        # Half of the part that cancels, and the share of the anchor's own class, are no less than
        # the mean deviation: either tells that nothing is lost by the mean.
        known = (size - abs(mean)) * 8.0 >= abs(mean)
        known = known | (row.get(f"{side}_scale") > 0.1 * 2.0**-row.own.lift)
        if row.divergence.squares:
            # So is the deviation itself.
            square, own = row.sum(stage - 1, 3), mean * mean
            known = known | (((square - own) * 16.0 >= own) & (square < float("inf")))
        with code.when(stage == base + 1):
            old, middle = row.words(f"anchor_{side}"), middle * sign
            if row.divergence.linear:
                better = added(old, middle)
            else:
                away = row.get("pivot") + row.eighth_temperature() * middle
                better = added(row.words("first"), away)
            with code.when(~known):
                row.set(size=size, old=old)
                _anchor(row, side, better)
            row.set(again=~known)
        with code.when(stage == base + 2):
            # Rounding of u is beside Σ own |u|: the anchor with the smaller one is better.
            worse = size > row.get("size")
            with code.when(worse):
                _anchor(row, side, row.words("old"))
            row.set(again=worse)


def first_anchor(row: Row, side: str) -> None:
    """Take the anchor where the own side is largest: in the bulk, if all is in one class."""
    top, beside = (row.get(f"{name}_{side}") for name in ("top", "beside"))
    t, s = (top, beside) if side == "t" else (beside, top)
    anchor = eighth_difference(t, s, row.least)
    if row.wide and side == "t":
        place = low_width(row.frame["classes"], row.real.lanes) - row.real.lanes
        low = row.code.load(row.real.scalar, row.low_at(), place).to(DOUBLE)
        anchor = anchor[0], anchor[1] + low * 0.125
    _anchor(row, side, anchor)
    row.set(again=~row.flag("known") if row.along and side == "s" else 1.0)


def _anchor(row: Row, side: str, anchor: tuple[Value, Value]) -> None:
    """Take an anchor, and log(own/other) there: of two words, so that powers are right."""
    row.set(**{f"anchor_{side}": anchor})
    _set_words(row, f"anchor_{side}", *anchor)
    if row.divergence.linear:
        return
    # First from ``first``, in four words, and from there to the pivot.
    pairs = zip(anchor, row.words("first"), strict=True)
    (high, low), (next_high, next_low) = (two_difference(*pair) for pair in pairs)
    pivot, pivot_low = row.words("pivot")
    high, more = two_sum(high, next_high)
    high, last = two_difference(high, pivot)
    apart = two_sum(high, ((low + next_low) + (more + last)) - pivot_low)
    at, rest = quotient(apart, row.eighth_temperature())
    if side == "s":
        at, rest = -at, -rest
    # Farther away powers are 0 or infinite, and the rest may be no number.
    row.set(**{f"at_{side}": (at, select(abs(at) < 1e5, rest, 0.0))})


def _either(
    condition: Value, yes: tuple[Value | float, Value | float], no: tuple[Value, Value]
) -> tuple[Value, Value]:
    return select(condition, yes[0], no[0]), select(condition, yes[1], no[1])
