"""``kldiv compare --from samples``: how far the columns of two tables have drifted apart."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_left
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.text import Text

import kldiv
from kldiv import estimators
from kldiv.cli.json_output import print_json
from kldiv.cli.progress import Progress
from kldiv.cli.render import Page, clean, dim, print_notes
from kldiv.cli.tables import part_of, picture, refuse
from kldiv.errors import InputError
from kldiv.readers import open_samples

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from kldiv.cli.drift_plot import DriftPlot
    from kldiv.readers import Sample

    Column: TypeAlias = Callable[[], Sample]
    Columns: TypeAlias = dict[str, Column]

_BINS: Final = 10  # as PSI usually has, for the measures that neighbours do not give
_MANY: Final = 100_000  # numbers of a column, beyond which neighbours take minutes
_PARTS: Final = 10  # of a sample, each left out once, tell the spread of an estimate
_LEVEL: Final = 1.96  # standard errors of an interval of 95 %
_NEIGHBOUR: Final = 5
_DRAWS: Final = 400
_FEW_CLASSES: Final = 10_000  # beyond which drawing counts anew takes seconds a column
_UNUSED: Final = (
    *("align", "fold", "rebin", "normalize", "generalized", "smoothing", "checkpoint", "scheduler"),
    *("quantization", "next_tokens", "hidden", "weight", "weight_q"),
)


class _NoNeighboursError(InputError):
    """Numbers that have no nearest neighbours to go by."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one column differs, in nats but for TV, which is a share."""

    column: str
    kind: str
    samples: tuple[int, int]
    missing: tuple[int, int]
    kl_pq: float
    kl_qp: float
    kl_pq_interval: tuple[float, float] | None
    kl_qp_interval: tuple[float, float] | None
    js: float
    psi: float
    tv: float


def show(options: dict[str, Any], bins: int | None, *, neighbours: bool = False) -> None:
    """Print the drift of all columns, the largest first."""
    refuse(options, _UNUSED, "not for samples")
    plot: DriftPlot | None = picture("drift_plot", "DriftPlot", options["plot"])
    p, q = (
        open_samples(options[name], reading=options["reading"], **part_of(options, name))
        for name in ("p", "q")
    )
    with Progress() as progress:
        found, notes = _compared(p, q, bins, progress, neighbours=neighbours, plot=plot)
    found.sort(key=lambda each: (-each.js, -_number(each.kl_pq)))
    if plot is not None:
        shown = found[: options["top"]] if options["top"] else found
        titles = {each.column: f"JS {each.js:.4f}, PSI {each.psi:.3f}" for each in shown}
        plot.draw(titles, (options["p"], options["q"]))
    if options["as_json"]:
        print_json(_to_dict(found, notes, options, bins))
    else:
        _print(found, options, bins)
    print_notes(notes)


def _number(value: float) -> float:
    return value if value == value else -math.inf  # noqa: PLR0124 - NaN comes last


def _paired(p: Columns, q: Columns) -> tuple[list[tuple[Column, Column]], list[str]]:
    """Return the columns that both have, and remarks on the others; two single ones are a pair."""
    notes = []
    if len(p) == len(q) == 1:
        pairs = list(zip(p.values(), q.values(), strict=True))
    else:
        pairs = [(p[name], q[name]) for name in p if name in q]
        for name, own, others in (("Q", p, q), ("P", q, p)):
            absent = [clean(each) for each in own if each not in others]
            if absent:
                notes.append(f"{name} has no column {', '.join(absent)}: left out")
    if not pairs:
        names = " and ".join(", ".join(map(repr, each)) for each in (p, q))
        raise InputError(f"no column is in both files: {names}. Rename some, or take file::column")
    return pairs, notes


def _compared(
    p: Columns,
    q: Columns,
    bins: int | None,
    progress: Progress,
    *,
    neighbours: bool,
    plot: DriftPlot | None,
) -> tuple[list[Drift], list[str]]:
    """Return the drift of each column, and remarks; fill ``plot``."""
    pairs, notes = _paired(p, q)
    found, many = [], list[str]()
    for done, pair in enumerate(pairs):
        progress.reach(done, len(pairs))
        one, other = (read() for read in pair)  # two columns at a time
        notes += [*_missing(one, other), *_spellings(one, other)]
        try:
            own = bins
            if bins is None and not neighbours and _are_many(one, other):
                own = _BINS
            found.append(_drift(one, other, own, asked=bins is not None))
            if own != bins and not found[-1].kind.endswith("classes"):
                many.append(clean(one.name))
        except InputError as error:
            if len(pairs) == 1:
                raise
            if not isinstance(error, _NoNeighboursError):
                notes.append(f"{error}: left out")
                continue
            notes.append(f"column {clean(one.name)}: by {_BINS} bins, as neighbours do not serve")
            found.append(_drift(one, other, _BINS))
        if plot is not None:
            plot.keep(one, other)
    if many:
        notes.append(
            f"by {_BINS} bins, as there are more than {_MANY:,} numbers: {', '.join(many)}."
            " --neighbours goes by nearest neighbours"
        )
    if not found:
        raise InputError(f"no column can be compared: {'; '.join(notes)}")
    return found, notes


def _missing(p: Sample, q: Sample) -> list[str]:
    """Say how many cells have no value, if any."""
    missing = p.missing + q.missing
    noun = "cell is" if missing == 1 else "cells are"
    return [f"column {clean(p.name)}: {missing:,} missing {noun} left out"] if missing else []


def _spellings(p: Sample, q: Sample) -> list[str]:
    """Say where categories of one side alone are those of the other but for their spelling."""
    if not (isinstance(p.values, tuple) and isinstance(q.values, tuple)):
        return []
    words = {*p.values}, {*q.values}
    known = {_folded(word): word for word in sorted(words[0] - words[1])}
    other = next((each for each in sorted(words[1] - words[0]) if _folded(each) in known), None)
    if other is None:
        return []
    text = (
        f"column {clean(p.name)}: {clean(known[_folded(other)])!r} in P and {clean(other)!r} in Q"
    )
    return [f"{text}, which differ by case, blanks or Unicode form alone, are two categories"]


def _folded(word: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", word).casefold().split())


def _are_many(p: Sample, q: Sample) -> bool:
    both = p.values, q.values
    return max(map(len, both)) > _MANY and not any(isinstance(each, tuple) for each in both)


def _drift(p: Sample, q: Sample, bins: int | None, *, asked: bool = True) -> Drift:
    for name, each in (("P", p), ("Q", q)):
        if not len(each.values):
            raise InputError(f"column {each.name!r} of {name} has no values")
    words = isinstance(p.values, tuple), isinstance(q.values, tuple)
    if words[0] != words[1]:
        raise InputError(
            f"column {p.name!r} has categories in {'P' if words[0] else 'Q'} and numbers in the"
            " other file. Write both in the same way"
        )
    size = len(p.values), len(q.values)
    if words[0]:
        keys = [Counter(each.values) for each in (p, q)]
        words_of_both = list(keys[0] | keys[1])
        counts = [np.array([each[key] for key in words_of_both], float) for each in keys]
        return _of_counts(p, q, size, f"{len(words_of_both):,} classes", counts)
    classes = None if bins is not None and asked else _repeated(p.values, q.values)
    sizes = np.abs([] if classes is None else classes)
    if ((sizes > 2.0**53) & (sizes < 2.0**64)).any():  # larger ones are marks of floats
        raise InputError(
            f"column {p.name!r} has whole numbers beyond 2**53, which float64 does not tell apart:"
            " write them as text, or take --bins where they are no classes"
        )
    if classes is not None:
        counts = [_counted(each.values, classes) for each in (p, q)]
        return _of_counts(p, q, size, f"{len(classes):,} classes", counts)
    for name, each in (("P", p), ("Q", q)):
        if not np.isfinite(each.values).all():
            raise InputError(f"column {each.name!r} of {name} has infinite numbers")
    counts = _binned(p.values, q.values, bins or _BINS)
    if bins is not None:
        return _of_counts(p, q, size, f"numbers, {len(counts[0])} bins", counts)
    kl_pq, interval = _neighbours(p.values, q.values, p.name)
    kl_qp, reverse = _neighbours(q.values, p.values, p.name)
    missing = p.missing, q.missing
    rest = _symmetric(counts)
    return Drift(p.name, "numbers", size, missing, kl_pq, kl_qp, interval, reverse, *rest)


def _of_counts(
    p: Sample, q: Sample, size: tuple[int, int], kind: str, counts: list[np.ndarray]
) -> Drift:
    kl_pq, kl_qp = (
        float(kldiv.kl_divergence(*pair, normalize=True)) for pair in (counts, counts[::-1])
    )
    missing = p.missing, q.missing
    of_pq, of_qp = _resampled(counts, (kl_pq, kl_qp))
    return Drift(p.name, kind, size, missing, kl_pq, kl_qp, of_pq, of_qp, *_symmetric(counts))


def _resampled(
    counts: list[np.ndarray], found: tuple[float, float]
) -> list[tuple[float, float] | None]:
    """Return intervals of 95 % of D(P‖Q) and D(Q‖P), by drawing both samples anew.

    Few data make either too large. So much as draws exceed it, it exceeds the truth: the interval
    lies about the difference (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §10.6).
    """
    if len(counts[0]) > _FEW_CLASSES:
        return [None, None]
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(int(each.sum()), each / each.sum(), _DRAWS) for each in counts]
    intervals: list[tuple[float, float] | None] = []
    for value, pair in zip(found, (drawn, drawn[::-1]), strict=True):
        draws = np.asarray(kldiv.kl_divergence(*pair, normalize=True))
        draws = draws[np.isfinite(draws)]
        if not math.isfinite(value) or 2 * len(draws) < _DRAWS:
            intervals.append(None)
            continue
        middle, error = 2.0 * value - float(draws.mean()), _LEVEL * float(draws.std())
        intervals.append((middle - error, middle + error))
    return intervals


def _symmetric(counts: list[np.ndarray]) -> tuple[float, float, float]:
    """Return Jensen-Shannon, PSI, which is Jeffreys' divergence, and total variation."""
    shares = [each / each.sum() for each in counts]
    return (
        float(kldiv.js_divergence(*counts, normalize=True)),
        float(kldiv.jeffreys_divergence(*counts, normalize=True)),
        0.5 * float(np.abs(shares[0] - shares[1]).sum()),
    )


def _repeated(p: np.ndarray, q: np.ndarray) -> np.ndarray | None:
    """Return the classes that numbers are: whole, each twice on average; else None."""
    if not all(np.array_equal(each, np.rint(each)) for each in (p, q)):
        return None
    classes = np.union1d(*(np.unique(each) for each in (p, q)))
    return classes if 2 * len(classes) <= len(p) + len(q) else None


def _counted(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(classes, values), minlength=len(classes)).astype(float)


def _binned(p: np.ndarray, q: np.ndarray, bins: int) -> list[np.ndarray]:
    """Count both in bins that hold equal shares of a mixture of the two, half of each."""
    both = np.sort(p), np.sort(q)
    edges = np.unique([_quantile(both, k, bins) for k in range(1, bins)])
    edges = edges[edges < max(each[-1] for each in both)]
    below = [np.searchsorted(each, edges, side="right") for each in both]
    return [
        np.diff(at, prepend=0, append=len(each)).astype(float)
        for at, each in zip(below, both, strict=True)
    ]


def _quantile(both: tuple[np.ndarray, np.ndarray], k: int, bins: int) -> float:
    """Return the least number of two sorted lists at or below which k/bins of the mixture are."""
    sizes = [len(each) for each in both]
    wanted = 2 * k * sizes[0] * sizes[1]  # of the mixture's share, times all denominators

    def reached(value: float) -> bool:
        at = [int(np.searchsorted(each, value, side="right")) for each in both]
        return bins * (at[0] * sizes[1] + at[1] * sizes[0]) >= wanted

    places = [bisect_left(each, 1, key=reached) for each in both]
    return min(float(each[i]) for each, i in zip(both, places, strict=True) if i < len(each))


def _neighbours(x: np.ndarray, y: np.ndarray, name: str) -> tuple[float, tuple[float, float]]:
    """Estimate D(P‖Q) with an interval of 95 %, by leaving out a part of both at a time."""
    if min(len(x), len(y)) < 2 * _PARTS:
        raise _NoNeighboursError(
            f"column {name!r} has {min(len(x), len(y))} numbers; nearest neighbours need"
            f" {2 * _PARTS} in both files. Take --bins 2, or more data"
        )
    value = float(estimators.knn_kl(x, y, k=_NEIGHBOUR))
    if not math.isfinite(value):
        raise _NoNeighboursError(
            f"column {name!r} has numbers that occur more than {_NEIGHBOUR} times: they have no"
            " distance to a neighbour. --bins 10 counts them in bins"
        )
    mixed = [np.random.default_rng(0).permutation(each) for each in (x, y)]
    spread = 0.0
    for side in range(2):
        found = []
        for part in range(_PARTS):
            both = list(mixed)
            both[side] = np.delete(mixed[side], np.s_[part::_PARTS])
            found.append(float(estimators.knn_kl(*both, k=_NEIGHBOUR)))
        spread += (_PARTS - 1) * float(np.var(found))
    error = _LEVEL * math.sqrt(spread)
    return value, (value - error, value + error)


def _to_dict(
    found: list[Drift], notes: list[str], options: dict[str, Any], bins: int | None
) -> dict[str, Any]:
    return {
        "columns": [asdict(each) for each in found],
        "bins": bins,
        "units": "nats",
        "confidence": 0.95,
        "p": options["p"],
        "q": options["q"],
        "version": kldiv.__version__,
        "warnings": notes,
    }


def _print(found: list[Drift], options: dict[str, Any], bins: int | None) -> None:
    page = Page()
    for name in ("p", "q"):
        page.line(Text(name.upper(), style="bold"), f"  {clean(options[name])}")
    page.line()
    parallel = page.glyphs.parallel
    head = ("column", f"D(P{parallel}Q)", "95 %", f"D(Q{parallel}P)", "JS", "PSI", "TV", "")
    shown = found[: options["top"]] if options["top"] else found
    rows: list[list[str | Text]] = [
        [
            Text(page.label(each.column), style="bold"),
            _shown(each.kl_pq),
            _interval(each.kl_pq_interval),
            _shown(each.kl_qp),
            *(f"{value:.4f}" for value in (each.js, each.psi, each.tv)),
            dim(f"{each.kind}, {each.samples[0]:,} and {each.samples[1]:,}"),
        ]
        for each in shown
    ]
    page.table(rows, "<>>>>>><", head)
    if len(shown) < len(found):
        page.line(f"and {len(found) - len(shown):,} more columns: --top 0 shows all")
    page.line()
    page.line(dim(f"In nats, but for TV. PSI is Jeffreys' divergence, {head[1]} + {head[3]}."))
    if any(each.kind == "numbers" for each in found):
        text = f"D of numbers by nearest neighbours; their JS, PSI and TV by {bins or _BINS} bins."
        page.line(dim(text))
    if any(each.kl_pq_interval and each.kind != "numbers" for each in found):
        text = "Intervals of counts allow for few data, by which D is estimated too large."
        page.line(dim(text))


def _shown(value: float) -> str:
    """Return an estimate; below 0 it says that nothing was found."""
    return f"{value:.4f}" if value > 0 or value == 0 else "none seen"


def _interval(found: tuple[float, float] | None) -> str:
    return "" if found is None else f"{max(found[0], 0.0):.4f} to {max(found[1], 0.0):.4f}"
