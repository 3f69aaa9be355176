"""What must be said about a comparison: what was assumed, what is odd, why it is infinite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kldiv.cli.comparison import Comparison
    from kldiv.cli.forms import Distribution


_NORMALIZE: Final = {
    True: "--normalize divides by the sum",
    False: "--normalize makes it a distribution; if these are logits, say --from logits",
}


def remarks(found: Comparison) -> list[str]:
    """Return the warnings of a comparison, in plain sentences."""
    both = (found.p, found.q)
    said = list(_guesses(both))
    for each in both:
        said += _sums(found, each)
        said += _oddities(found, each)
    return [*said, *_infinities(found)]


def _guesses(both: tuple[Distribution, ...]) -> Iterator[str]:
    names = [each.name for each in both if each.held.guessed]
    if names:
        read = "are read" if len(names) > 1 else "is read"
        yield (
            f"{' and '.join(names)} {read} as counts (all numbers are whole) and divided by the"
            " total; --from counts or --normalize says so and silences this"
        )


def _some(found: Comparison, number: int) -> str:
    """Return how many rows are meant; nothing where there is one only."""
    return f" in {number:,} of {found.count:,} rows" if found.pair.shape else ""


def _sums(found: Comparison, each: Distribution) -> Iterator[str]:
    if each.normalized:
        return
    number = each.seen.off
    if not number:
        return
    low, high = f"{each.seen.low:.6g}", f"{each.seen.high:.6g}"
    what = each.name if each.form == "probs" else f"exp({each.name})"
    if found.pair.shape:
        between = low if low == high else f"between {low} and {high}"
        text = f"{number:,} of {found.count:,} rows of {what} do not sum to 1 but to {between}"
    else:
        text = f"{what} sums to {low}, not to 1"
    yield f"{text}: computed as it stands. {_NORMALIZE[each.form == 'probs']}"


def _oddities(found: Comparison, each: Distribution) -> Iterator[str]:
    odd = each.seen.undefined
    if odd.count:
        where = found.pair.place(odd.first)
        yield (
            f"{each.name} has {odd.count:,} numbers that are NaN or infinite, the first at {where}."
            " Nothing is left out: what they touch is no number either"
        )
    number = each.seen.nothing
    if number and each.normalized:
        yield (
            f"{each.name} has no probability anywhere{_some(found, number)}: it is no distribution,"
            " and the result no number"
        )


def _infinities(found: Comparison) -> Iterator[str]:
    for measure, one, other in (("kl_pq", found.p, found.q), ("kl_qp", found.q, found.p)):
        zeros = found.zeros[measure]
        if not zeros.classes:
            continue
        number = found.summaries[measure].infinite
        more = zeros.classes - len(zeros.labels)
        listed = ", ".join(zeros.labels) + (f" and {more:,} more" if more else "")
        noun = "class" if zeros.classes == 1 else "classes"
        yield (
            f"D({one.name}‖{other.name}) is infinite{_some(found, number)}: {other.name} gives no"
            f" probability to {zeros.classes:,} {noun}, {listed}, with {100 * zeros.share:.3g} % of"
            f" {one.name}. {_mend(other)}"
        )


def _mend(each: Distribution) -> str:
    if each.form == "counts":
        return "--smoothing 0.5 adds half a count to every class"
    if each.form == "probs":
        return "--normalize --smoothing A adds A to every number"
    return "It is the right answer; for a finite one, leave these classes out of both"
