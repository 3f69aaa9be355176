"""Which family of distributions fits data best, and how far from the data the best still is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kldiv import backends
from kldiv._families import FAMILIES, Family, family_of
from kldiv._notebook import table
from kldiv.errors import DTypeError, InputError, LibraryError, OptionError, ShapeError
from kldiv.estimators import Estimate
from kldiv.formulas import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from kldiv._families import Sample
    from kldiv._types import Array
    from kldiv.formulas.samples import Noise

POOR = 0.05
"""Nats from data to the best fit that are worth a warning, where the interval lies above."""

_FEWEST = 20

_EXPECTED, _OBSERVED = 2.0, 5.0
"""Points of a cell that are enough for the chi-squared distribution, expected or observed."""


@dataclass(frozen=True)
class Fit:
    """
    A family fitted to data.

    Parameters
    ----------
    family : str
        Its name: a class of `kldiv.distributions`, or one of ``scipy.stats``.
    parameters : dict
        Parameters of largest likelihood, by the names of ``torch.distributions``.
    score : float
        Mean log-likelihood of points that the fit had not seen, in nats; −∞ where one of them is
        impossible. Where the ends of the family follow the data (Uniform, Pareto) some probability
        is left beyond them: see `rank`.
    behind : float
        How much less that is than the best family's.
    behind_error : float
        The standard error of that difference, point by point.
    kl : Estimate
        Divergence from the data's distribution to the fit, in nats.
    """

    family: str
    parameters: dict[str, float]
    score: float
    behind: float
    behind_error: float
    kl: Estimate

    def distribution(self) -> Any:
        """
        Return the fitted distribution.

        Returns
        -------
        object
            Of `kldiv.distributions`, with NumPy parameters; a frozen one of ``scipy.stats`` for a
            family that is only there.
        """
        if self.family in FAMILIES:
            from kldiv import distributions  # noqa: PLC0415 - not needed to rank

            numbers = {name: np.float64(value) for name, value in self.parameters.items()}
            return getattr(distributions, self.family)(**numbers)
        import scipy.stats  # noqa: PLC0415 - optional, and slow to import

        return getattr(scipy.stats, self.family)(**self.parameters)

    def log_likelihoods(self, data: Sample) -> Sample:
        """
        Return the logarithm of the fit's density, or probability, at points.

        Parameters
        ----------
        data : array
            The points.

        Returns
        -------
        array
            In nats.
        """
        return family_of(self.family).log_likelihoods(data, self.numbers)

    numbers: tuple[float, ...] = ()
    """The parameters as SciPy has them."""


@dataclass(frozen=True)
class Ranking:
    """
    Families in the order of how well they predict the data.

    Parameters
    ----------
    fits : tuple of Fit
        The best first.
    kind : {"continuous", "counts"}
        Whether the data were taken for counts or for continuous numbers.
    samples : int
        How many points there are.
    warnings : tuple of str
        Families that were left out with the reason, and doubts about data and fit.
    confidence : float, default 0.95
        Of the intervals.
    """

    fits: tuple[Fit, ...]
    kind: Literal["continuous", "counts"]
    samples: int
    warnings: tuple[str, ...]
    confidence: float = 0.95

    @property
    def best(self) -> Fit:
        """The best fit."""
        return self.fits[0]

    @property
    def taken_for(self) -> str:
        """How many data there are, and whether they are counts or continuous."""
        kind = "counts" if self.kind == "counts" else "continuous numbers"
        return f"{self.samples:,} points, taken for {kind}"

    def __str__(self) -> str:
        level = f"{100 * self.confidence:g} %"
        rows: list[tuple[str, ...]] = [
            ("family", "behind", "±", "KL", f"{level} from", "to", "parameters")
        ]
        for fit in self.fits:
            numbers = fit.behind, fit.behind_error, fit.kl.value, fit.kl.low, fit.kl.high
            given = ", ".join(f"{name}={value:.5g}" for name, value in fit.parameters.items())
            rows.append((fit.family, *(f"{number:.4f}" for number in numbers), given))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i in {0, 6} else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([self.taken_for, *lines, *(f"warning: {text}" for text in self.warnings)])

    def _repr_html_(self) -> str:
        rows = [
            (
                fit.family,
                fit.behind,
                fit.behind_error,
                *fit.kl[:1],
                f"{fit.kl.low:.4g} to {fit.kl.high:.4g}",
                ", ".join(f"{name}={value:.5g}" for name, value in fit.parameters.items()),
            )
            for fit in self.fits
        ]
        level = f"{100 * self.confidence:g} %"
        head = ("family", "nats behind", "±", "KL from the data", level, "parameters")
        return table(self.taken_for, head, rows, self.warnings)


def rank(
    data: Array,
    families: Iterable[str] | None = None,
    *,
    kind: Literal["auto", "continuous", "counts"] = "auto",
    folds: int = 5,
    seed: int = 0,
    neighbour: int = 5,
    confidence: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    r"""
    Fit families of distributions to data, and rank them by the divergence from the data to each.

    As the entropy of the data is the same for all, the family of smallest D(data‖fit) is that of
    largest mean log-likelihood; it is taken over points that the fit has not seen, by
    cross-validation, so that more parameters are no merit in themselves.

    Parameters
    ----------
    data : array
        A list of numbers, on any library; a single column of a table too.
    families : iterable of str, optional
        Names of classes of `kldiv.distributions`, or of continuous distributions of
        ``scipy.stats``; by default all that live where the data do.
    kind : {"auto", "continuous", "counts"}, default "auto"
        Counts are whole numbers from 0 to 2⁵³. ``"auto"`` takes such integers for counts, and such
        floating-point numbers where a value occurs twice on average; `Ranking.kind` says which.
    folds : int, default 5
        Into how many parts the data are cut for cross-validation.
    seed : int, default 0
        Of the random cut.
    neighbour : int, default 5
        How many places apart in order are the points whose distance tells the density of
        continuous data.
    confidence : float, default 0.95
        Of the intervals.
    progress : callable, optional
        Called after every fit with how many are done, and how many there are.

    Returns
    -------
    Ranking
        The best family first.

    Raises
    ------
    OptionError
        No such family, or an option out of range.
    ShapeError
        Fewer than 20 points, more axes than one, or several columns.
    InputError
        Data that are not finite, or no family that can be fitted.
    LibraryError
        SciPy is not installed, which does the fitting.

    Notes
    -----
    The ends of Uniform, of Pareto, and of families of ``scipy.stats`` follow the data, and beyond
    the end of n points lies a new one with probability 1/(n + 1): that much probability is put
    there when unseen points are judged, exponentially over the distance at which the fit's own
    quantile of 1/(n + 1) lies. For Uniform it is the Bayesian predictive density to first order
    (Aitchison and Dunsmore 1975). The divergence is that to this predictive density.

    The absolute divergence is −H − score. The entropy H of continuous data is that of the best fit,
    and of the best fit's distribution function at the points, which is nearly uniform: from
    spacings of order ``neighbour``, without bias where it is uniform (Vasicek 1976), and with
    Cressie's variance (1976). The entropy of counts is from their frequencies, those of rare values
    taken together, with Miller's correction (1955). Of 1,000 points of a family itself the 95 %
    intervals cover the divergence to its fit in 94 to 97 % of samples
    (``python -m bench.studies.fit_coverage``).
    Continuous data that were rounded so that many are equal are spread at random over the interval
    that was rounded to each.

    References
    ----------
    J. Aitchison, I. R. Dunsmore, "Statistical Prediction Analysis", Cambridge 1975.
    O. Vasicek, "A test for normality based on sample entropy", J. R. Statist. Soc. B 38 (1976)
    54-59.
    N. Cressie, "On the logarithms of high-order spacings", Biometrika 63 (1976) 343-355.
    G. A. Miller, "Note on the bias of information estimates", Information Theory in Psychology
    (1955) 95-100.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv import fitting
    >>> data = np.random.default_rng(0).gamma(3.0, 2.0, size=1_000)
    >>> ranking = fitting.rank(data, ["Normal", "Gamma", "Exponential"])
    >>> [fit.family for fit in ranking.fits]
    ['Gamma', 'Normal', 'Exponential']
    """
    if not 0 < confidence < 1:
        raise OptionError(f"confidence must lie between 0 and 1; got {confidence!r}")
    try:
        import scipy.stats  # noqa: F401, PLC0415 - does the fitting; optional
    except ImportError:
        raise LibraryError(
            'fitting needs SciPy, which is not installed: pip install "kldiv[scipy]"'
        ) from None
    warnings: list[str] = []
    points, integers = _finite(data, warnings)
    counts = _are_counts(points, kind, warnings, integers=integers)
    chosen = _chosen(families, points, warnings, counts=counts)
    if not 2 <= folds <= len(points) // 2:
        raise OptionError(f"folds must lie between 2 and {len(points) // 2}; got {folds!r}")
    if not counts:
        _check_continuous(points, neighbour)
    random = np.random.default_rng(seed)
    fold = random.permutation(len(points)) % folds
    fitted = _fit_all(chosen, points, fold, warnings, progress)
    fitted.sort(key=lambda each: -each[2].mean())
    best, best_numbers, best_unseen = fitted[0]
    offsets, bias = np.zeros_like(points), 0.0
    if counts:
        own, bias, noise = _frequencies(points, best, best_numbers)
    else:
        offsets = _unrounded(points, neighbour, random, warnings)
        own, noise = _densities(points, offsets, neighbour, best, best_numbers)
    fits = tuple(
        Fit(
            family.name,
            family.parameters(*numbers),
            float(unseen.mean()),
            *_difference(best_unseen, unseen),
            _absolute(
                own - unseen + _cost_of_rounding(points, offsets, family, numbers),
                *(confidence, bias, noise),
            ),
            numbers,
        )
        for family, numbers, unseen in fitted
    )
    if fits[0].kl.low > POOR:
        warnings.append(
            f"the best family, {fits[0].family}, is still {fits[0].kl.value:.3f} nats from the "
            f"data ({fits[0].kl.low:.3f} to {fits[0].kl.high:.3f}): none of these describes them"
        )
    told_kind: Literal["continuous", "counts"] = "counts" if counts else "continuous"
    return Ranking(fits, told_kind, len(points), tuple(warnings), confidence)


def _fit_all(
    chosen: list[Family],
    points: Sample,
    fold: NDArray[np.int64],
    warnings: list[str],
    progress: Callable[[int, int], None] | None,
) -> list[tuple[Family, tuple[float, ...], Sample]]:
    """Return families with their fits and log-likelihoods of unseen points; name those left out."""
    folds = int(fold.max()) + 1
    steps = folds + 1

    def tell(place: int, done: int) -> None:
        if progress is not None:
            progress(place * steps + done, len(chosen) * steps)

    fitted, failures = [], []
    for place, family in enumerate(chosen):
        unseen = np.empty_like(points)
        try:
            for part in range(folds):
                here = fold == part
                seen = points[~here]
                unseen[here] = family.log_predictive(points[here], family.fit(seen), len(seen))
                tell(place, part + 1)
            fitted.append((family, family.fit(points), unseen))
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            cause = str(error).partition("\n")[0] or type(error).__name__
            failures.append(f"{family.name} cannot be fitted to these data, so left out: {cause}")
        tell(place, steps)
    if not fitted:
        raise InputError("; ".join(failures))
    warnings += failures
    return fitted


def _check_continuous(points: Sample, order: int) -> None:
    if type(order) is not int or not 1 <= order < len(points):
        raise OptionError(
            f"neighbour must be an integer between 1 and {len(points) - 1}; got {order!r}"
        )
    if points.min() == points.max():
        raise InputError(f"all data are {points[0]:.6g} in float64: nothing to fit")


def _finite(data: Array, warnings: list[str]) -> tuple[Sample, bool]:
    """Return the data as a list of float64 and whether they were integers; raise on others."""
    columns = getattr(data, "columns", None)
    if columns is not None and len(columns) != 1:
        raise ShapeError(
            f"data have {len(columns)} columns, {', '.join(map(str, columns))}; a ranking is of "
            f"one: data[{columns[0] if len(columns) else 'name'!r}]"
        )
    if columns is not None or isinstance(data, list | tuple | range):
        data = np.asarray(data)
    values = backends.find(data).on_host(data)
    if values.dtype.kind not in "fiub":
        raise DTypeError(f"data have dtype {values.dtype}; expected real numbers")
    if values.size != max(values.shape, default=1):
        raise ShapeError(
            f"data have shape {values.shape}; expected one list of numbers: take a column, "
            "data[:, 0], or data.ravel() if all are samples of one distribution"
        )
    integers = values.dtype.kind != "f"
    if integers and (np.abs(values.astype(np.float64)) > 2**53).any():
        warnings.append("integers beyond 2**53 are rounded to float64: subtract their common part")
    values = values.astype(np.float64).ravel()
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        first = int(np.argmax(~np.isfinite(values)))
        raise InputError(
            f"data hold {bad} numbers that are NaN or infinite, the first at {first}; leave them "
            "out: data[numpy.isfinite(data)]"
        )
    if len(values) < _FEWEST:
        raise ShapeError(f"a ranking needs {_FEWEST} points at least; got {len(values)}")
    return values, integers


def _are_counts(points: Sample, kind: str, warnings: list[str], *, integers: bool) -> bool:
    """Return whether the data are taken for counts; ``integers`` is their dtype."""
    if kind not in {"auto", "continuous", "counts"}:
        raise OptionError(f"kind must be 'auto', 'continuous' or 'counts'; got {kind!r}")
    # Floating-point numbers from 2⁵³ on are whole whatever they measure.
    can = bool((points >= 0).all() and (points == np.rint(points)).all() and points.max() < 2**53)
    if kind == "counts" and not can:
        raise InputError(
            "kind='counts' needs whole numbers from 0 to 2**53; these data are continuous, "
            "negative, or larger"
        )
    if kind != "auto":
        return kind == "counts"
    distinct = len(np.unique(points))
    if can and not integers and 2 * distinct > len(points):
        warnings.append(
            f"the data are whole numbers, but of {len(points):,} {distinct:,} differ, so they "
            "are taken for continuous; if they are counts say kind='counts' (--kind counts)"
        )
        return False
    return can


def _chosen(
    families: Iterable[str] | None, points: Sample, warnings: list[str], *, counts: bool
) -> list[Family]:
    """Return the families to fit, and add to the warnings those whose domain is elsewhere."""
    if isinstance(families, str):
        families = [families]
    wanted = [*FAMILIES.values()] if families is None else [*map(family_of, families)]
    same = [family for family in wanted if (family.support == "counts") == counts]
    fit = [family for family in same if family.takes(points)]
    if not fit:
        have = "counts" if counts else "continuous data"
        raise InputError(
            f"none of {', '.join(family.name for family in wanted)} is a family of {have} between "
            f"{points.min():.6g} and {points.max():.6g}; name others, or say kind="
        )
    left = [family.name for family in wanted if family not in fit]
    if families is not None and left:
        warnings.append(f"not where the data are, and left out: {', '.join(left)}")
    return fit


def _frequencies(
    points: Sample, best: Family, numbers: tuple[float, ...]
) -> tuple[Sample, float, Noise]:
    """Return the logarithm of each point's probability, its mean's bias, and the noise in it.

    Rare values are counted together with their neighbours, and have the best fit's shares of that
    cell. The mean of K cells has the bias (K − 1)/2n.
    """
    values, place, number = np.unique(points, return_inverse=True, return_counts=True)
    n = len(points)
    # Before each value, and after the last, are values that do not occur.
    expected, observed = np.zeros(2 * len(values) + 1), np.zeros(2 * len(values) + 1)
    observed[1::2] = number
    expected[1::2] = n * np.exp(best.log_likelihoods(values, numbers))
    reached = best.law.cdf(values, *numbers)
    before = best.law.cdf(values - 1, *numbers)
    expected[:-1:2] = n * np.clip(before - np.concatenate([[0.0], reached[:-1]]), 0.0, None)
    expected[-1] = n * best.law.sf(values[-1], *numbers)
    cell = _cells(expected, observed)
    ratio = np.bincount(cell, observed) / np.bincount(cell, expected)
    with np.errstate(divide="ignore"):
        own = best.log_likelihoods(points, numbers) + np.log(ratio)[cell[1::2]][place.ravel()]
    noise = samples.frequency_noise(len(ratio), n)
    return own, noise.joint, noise


def _cells(expected: Sample, observed: Sample) -> NDArray[np.int64]:
    """Return the cell of each value: neighbours join until a cell has points enough."""
    cells = np.empty(len(expected), dtype=np.int64)
    cell, most, seen = 0, 0.0, 0.0
    for place, (likely, number) in enumerate(zip(expected, observed, strict=True)):
        cells[place] = cell
        most, seen = most + likely, seen + number
        if most >= _EXPECTED or seen >= _OBSERVED:
            cell, most, seen = cell + 1, 0.0, 0.0
    return np.minimum(cells, max(cell - 1, 0))  # the rest joins the last


def _unrounded(
    points: Sample, order: int, random: np.random.Generator, warnings: list[str]
) -> Sample:
    """Return how far to move points that were rounded until many were equal; 0 for others."""
    values, place, number = np.unique(points, return_inverse=True, return_counts=True)
    if number.max() <= order:
        return np.zeros_like(points)
    warnings.append(
        f"the data are rounded, up to {number.max()} are equal: they are spread over the "
        "interval that each stands for, which makes the divergences rough, but not the ranking"
    )
    moved: Sample = samples.spread(values, place.ravel(), random.uniform(size=len(points)))
    return moved


def _inside(points: Sample, offsets: Sample, family: Family, numbers: tuple[float, ...]) -> Sample:
    """Return the offsets with which points stay inside the support of a fit."""
    low, high = family.law.support(*numbers)
    with np.errstate(invalid="ignore"):  # of infinite ends
        under, over = points - low + offsets, high - points - offsets
        offsets = np.where(under < 0, offsets - 2 * under, offsets)
        return np.where(over < 0, offsets + 2 * over, offsets)


def _cost_of_rounding(
    points: Sample, offsets: Sample, family: Family, numbers: tuple[float, ...]
) -> Sample | float:
    """Return how much likelier points are than the values that were rounded to them.

    A density that peaks at a value that occurs often gains nothing by it.
    """
    if not offsets.any():
        return 0.0
    moved = points + _inside(points, offsets, family, numbers)
    with np.errstate(invalid="ignore"):
        found = family.log_likelihoods(points, numbers) - family.log_likelihoods(moved, numbers)
    return np.where(np.isnan(found), np.inf, found)


def _densities(
    points: Sample, offsets: Sample, order: int, best: Family, numbers: tuple[float, ...]
) -> tuple[Sample, Noise]:
    """Return the logarithm of the data's density at each point, and the noise in these.

    It is the best fit's density, times the density of that fit's distribution function.
    """
    from scipy.special import digamma, polygamma  # noqa: PLC0415 - optional

    offsets = _inside(points, offsets, best, numbers)
    n, ranks = len(points), np.lexsort((offsets, points))
    line = (points + offsets)[ranks]
    ends = [sign for sign, _ in best.moving_ends(numbers)]
    inside = 1 - len(ends) / (n + 1)
    share = {sign: 1 / (n + 1) if sign in ends else 0.0 for sign in (-1, 1)}
    with np.errstate(all="ignore"):
        below = share[-1] + inside * best.law.cdf(line, *numbers)
        above = share[1] + inside * best.law.sf(line, *numbers)
        start = np.log(inside) + best.log_likelihoods(line, numbers)
        below, above = np.concatenate([[0.0], below, [1.0]]), np.concatenate([[1.0], above, [0.0]])
        digammas = float(digamma(order) - digamma(n + 1))
        found = start + samples.log_density_on_unit(np, below, above, order, digammas)
        coarse = offsets.any() and not np.diff(line).all()  # numbers of this size lie too far apart
        if coarse or not np.isfinite(found).all():
            # Or the best fit is so poor that its distribution function underflows at some points.
            found = samples.log_density_on_line(np, points[ranks], offsets[ranks], order, digammas)
    own = np.empty_like(points)
    own[ranks] = found
    polygammas = float(polygamma(1, order)), float(polygamma(3, order))
    return own, samples.spacing_noise(order, n, polygammas)


def _difference(best: Sample, own: Sample) -> tuple[float, float]:
    """Return the mean of the difference, and its standard error."""
    if not np.isfinite(own).all():
        return (0.0, 0.0) if own is best else (math.inf, math.nan)
    return float(np.mean(best - own)), float(np.std(best - own, ddof=1)) / math.sqrt(len(own))


def _absolute(terms: Sample, confidence: float, bias: float, noise: Noise) -> Estimate:
    """Return the mean of the data's own logarithms less the fit's, with its interval."""
    if not np.isfinite(terms).all():
        return Estimate(math.inf, math.nan, math.inf, math.inf, len(terms))
    return Estimate(*samples.mean_interval(np, terms, confidence, bias, noise), len(terms))
