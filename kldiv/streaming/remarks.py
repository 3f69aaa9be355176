"""Sentences on a comparison: assumptions, oddities, and why it is infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kldiv.streaming.places import Places
    from kldiv.streaming.results import Comparison, Side
    from kldiv.streaming.seen import Seen

_NORMALIZE: Final = {
    True: "normalize=True divides by the sum",
    False: "normalize=True makes it a distribution; if these are logits, say form='logits'",
}


def remarks(found: Comparison, seen: tuple[Seen, Seen], places: Places) -> Iterator[str]:
    """Yield the warnings of a comparison, in plain sentences."""
    sides = found.p, found.q
    yield from _guesses(sides)
    for side, each in zip(sides, seen, strict=True):
        yield from _sums(side, each, places)
        yield from reasons(side, each, places)
    yield from _infinities(found, places)


def _guesses(sides: tuple[Side, Side]) -> Iterator[str]:
    names = [side.name for side in sides if side.guessed]
    if names:
        read = "are read" if len(names) > 1 else "is read"
        yield (
            f"{' and '.join(names)} {read} as counts (all numbers are whole) and divided by the"
            " total; form='counts' or normalize=True says so and silences this"
        )


def _some(places: Places, number: int) -> str:
    """Return how many rows are meant; nothing where there is one only."""
    return f" in {number:,} of {places.count:,} rows" if places.shape else ""


def _sums(side: Side, seen: Seen, places: Places) -> Iterator[str]:
    if side.normalized or not seen.off:
        return
    low, high = f"{seen.low:.6g}", f"{seen.high:.6g}"
    name = side.name if side.form == "probs" else f"exp({side.name})"
    if places.shape:
        between = low if low == high else f"between {low} and {high}"
        text = f"{seen.off:,} of {places.count:,} rows of {name} do not sum to 1 but to {between}"
    else:
        text = f"{name} sums to {low}, not to 1"
    mend = _NORMALIZE[side.form == "probs"]
    yield f"{text}: the divergence is the generalised one, Σ p·log(p/q) + q − p. {mend}"


def reasons(side: Side, seen: Seen, places: Places) -> Iterator[str]:
    """Yield the reasons why a result is NaN."""
    whose = side.name if side.path is None else f"{side.name}, {side.path},"
    rows = "; `reduction` 'none' keeps the other rows" if places.shape else ""
    for odd, what, mend in (
        (seen.undefined, "NaN", "na='drop' leaves out their classes"),
        (seen.infinite, "infinite", "no probability or logit is"),
    ):
        if odd.count:
            noun = "number that is" if odd.count == 1 else "numbers that are"
            yield (
                f"{whose} has {odd.count:,} {noun} {what}, the first at"
                f" {places.element(odd.first)}, and all that they touch is no number either. Mend"
                f" the data; {mend}{rows}"
            )
    if seen.beyond and side.normalized and not seen.infinite.count:
        yield (
            f"{whose} sums to more than the largest number there is"
            f"{_some(places, seen.beyond)}, so that nothing can be divided by the sum. Divide its"
            " numbers by 1e9 first"
        )
    if seen.nothing and side.normalized:
        yield (
            f"{whose} has no probability anywhere{_some(places, seen.nothing)}: it is no"
            f" distribution, and the result no number. Mend the data{rows}"
        )


def _infinities(found: Comparison, places: Places) -> Iterator[str]:
    for summary, zeros, one, other in (
        (found.kl_pq, found.zeros_q, found.p, found.q),
        (found.kl_qp, found.zeros_p, found.q, found.p),
    ):
        if not zeros.classes:
            continue
        more = zeros.classes - len(zeros.labels)
        listed = ", ".join(zeros.labels) + (f" and {more:,} more" if more else "")
        noun = "class" if zeros.classes == 1 else "classes"
        yield (
            f"D({one.name}‖{other.name}) is infinite{_some(places, summary.infinite)}: {other.name}"
            f" gives no probability to {zeros.classes:,} {noun}, {listed}, with"
            f" {100 * zeros.share:.3g} % of {one.name}. {_mend(other)}"
        )


def _mend(side: Side) -> str:
    if side.form == "counts":
        return "smoothing=0.5 adds half a count to every class"
    if side.form == "probs":
        return "normalize=True, smoothing=A adds A to every number"
    return "It is the right answer; for a finite one, leave these classes out of both"
