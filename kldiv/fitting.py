"""Which family of distributions fits data best, and how far from the data the best still is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kldiv import backends
from kldiv._families import FAMILIES, Family, family_of
from kldiv.errors import DTypeError, InputError, LibraryError, OptionError, ShapeError
from kldiv.estimators import Estimate
from kldiv.formulas import samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kldiv._families import Sample
    from kldiv._types import Array

POOR = 0.05
"""Nats from data to the best fit that are worth a warning, where the interval lies above."""

_FEWEST = 20


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
        impossible.
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
        What the data were taken for.
    samples : int
        How many points there are.
    warnings : tuple of str
        What to know before relying on it.
    """

    fits: tuple[Fit, ...]
    kind: Literal["continuous", "counts"]
    samples: int
    warnings: tuple[str, ...]

    @property
    def best(self) -> Fit:
        """The best fit."""
        return self.fits[0]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("family", "behind", "±", "KL", "from", "to", "parameters")]
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
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])


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
        Numbers, on any library; more axes than one are taken as one.
    families : iterable of str, optional
        Names of classes of `kldiv.distributions`, or of continuous distributions of
        ``scipy.stats``; by default all that live where the data do.
    kind : {"auto", "continuous", "counts"}, default "auto"
        Counts are whole numbers from 0; ``"auto"`` takes such data for counts.
    folds : int, default 5
        Into how many parts the data are cut for cross-validation.
    seed : int, default 0
        Of the random cut.
    neighbour : int, default 5
        Which nearest neighbour tells the density of continuous data.
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
        Fewer than 20 points.
    InputError
        Data that are not finite, or no family that they fit.
    LibraryError
        SciPy is not installed, which does the fitting.

    Notes
    -----
    The absolute divergence is −H − score, with the entropy H of continuous data from the distances
    to nearest neighbours (Kozachenko and Leonenko 1987), and that of counts from their frequencies
    with Miller's correction (1955). Its interval is that of the central limit theorem. Continuous
    data that were rounded so that many are equal are spread at random over what was rounded to
    each.

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
    points = _finite(data)
    counts = _are_counts(points, kind)
    chosen, warnings = _chosen(families, points, counts=counts)
    if not 2 <= folds <= len(points) // 2:
        raise OptionError(f"folds must lie between 2 and {len(points) // 2}; got {folds!r}")
    random = np.random.default_rng(seed)
    fold = random.permutation(len(points)) % folds
    total, done = len(chosen) * (folds + 1), 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    if counts:
        own, bias = _frequencies(points)
    else:
        own, bias = _densities(points, neighbour, random, warnings), 0.0
    fitted = []
    for family in chosen:
        unseen = np.empty_like(points)
        for part in range(folds):
            here = fold == part
            unseen[here] = family.log_likelihoods(points[here], family.fit(points[~here]))
            advance()
        fitted.append((family, family.fit(points), np.where(np.isnan(unseen), -np.inf, unseen)))
        advance()
    fitted.sort(key=lambda each: -each[2].mean())
    best = fitted[0][2]
    fits = tuple(
        Fit(
            family.name,
            family.parameters(*numbers),
            float(unseen.mean()),
            *_difference(best, unseen),
            _absolute(own - unseen, bias, confidence),
            numbers,
        )
        for family, numbers, unseen in fitted
    )
    if fits[0].kl.low > POOR:
        warnings.append(
            f"the best family, {fits[0].family}, is still {fits[0].kl.value:.3f} nats from the "
            f"data ({fits[0].kl.low:.3f} to {fits[0].kl.high:.3f}): none of these describes them"
        )
    return Ranking(fits, "counts" if counts else "continuous", len(points), tuple(warnings))


def _finite(data: Array) -> Sample:
    """Return the data as a list of float64, or say what is wrong with them."""
    if isinstance(data, list | tuple | range):
        data = np.asarray(data)
    backend = backends.find(data)
    values = np.asarray(backend.to_numpy(backend.export(data)))
    if values.dtype.kind not in "fiub":
        raise DTypeError(f"data have dtype {values.dtype}; expected real numbers")
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
    return values


def _are_counts(points: Sample, kind: str) -> bool:
    whole = bool((points >= 0).all() and (points == np.rint(points)).all())
    if kind == "auto":
        return whole
    if kind == "counts" and not whole:
        raise InputError(
            "kind='counts' needs whole numbers from 0 on; these data are continuous, or negative"
        )
    if kind not in {"continuous", "counts"}:
        raise OptionError(f"kind must be 'auto', 'continuous' or 'counts'; got {kind!r}")
    return kind == "counts"


def _chosen(
    families: Iterable[str] | None, points: Sample, *, counts: bool
) -> tuple[list[Family], list[str]]:
    """Return the families to fit, and what to say of those that cannot be."""
    if isinstance(families, str):
        families = [families]
    asked = families is not None
    wanted = (
        [family_of(name) for name in families] if families is not None else [*FAMILIES.values()]
    )
    same = [family for family in wanted if (family.support == "counts") == counts]
    fit = [family for family in same if family.takes(points)]
    if not fit:
        have = "counts" if counts else "continuous data"
        raise InputError(
            f"none of {', '.join(family.name for family in wanted)} is a family of {have} between "
            f"{points.min():.6g} and {points.max():.6g}; name others, or say kind="
        )
    left = [family.name for family in wanted if family not in fit]
    return fit, [
        f"not where the data are, and left out: {', '.join(left)}"
    ] if asked and left else []


def _frequencies(points: Sample) -> tuple[Sample, float]:
    """Return the logarithm of each point's relative frequency, and what its mean exceeds −H by."""
    _, place, number = np.unique(points, return_inverse=True, return_counts=True)
    n = len(points)
    return np.log(number / n)[place.ravel()], (len(number) - 1) / (2 * n)


def _densities(points: Sample, k: int, random: np.random.Generator, warnings: list[str]) -> Sample:
    """Return the logarithm of the data's density at each point, from its k-th neighbour."""
    from scipy.spatial import KDTree  # noqa: PLC0415 - optional
    from scipy.special import digamma  # noqa: PLC0415 - optional

    if type(k) is not int or not 1 <= k < len(points):
        raise OptionError(
            f"neighbour must be an integer between 1 and {len(points) - 1}; got {k!r}"
        )
    values, place, number = np.unique(points, return_inverse=True, return_counts=True)
    if len(values) == 1:
        raise InputError(f"all data are {values[0]:.6g}: there is nothing to fit")
    if number.max() > k:
        points = samples.spread(values, place.ravel(), random.uniform(size=len(points)))
        warnings.append(
            f"the data are rounded, up to {number.max()} are equal: they are spread over what was "
            "rounded to each value, which makes the divergences rough, but not the ranking"
        )
    distances, _ = KDTree(points[:, None]).query(points[:, None], k=[k + 1])
    digammas = float(digamma(k) - digamma(len(points)))
    return np.asarray(samples.log_density(np, distances[:, 0], digammas))


def _difference(best: Sample, own: Sample) -> tuple[float, float]:
    """Return the mean of the difference, and its standard error."""
    if not np.isfinite(own).all():
        return (0.0, 0.0) if own is best else (math.inf, math.nan)
    return float(np.mean(best - own)), float(np.std(best - own, ddof=1)) / math.sqrt(len(own))


def _absolute(terms: Sample, bias: float, confidence: float) -> Estimate:
    """Return the mean of what the data's own logarithm exceeds the fit's by."""
    if not np.isfinite(terms).all():
        return Estimate(math.inf, math.nan, math.inf, math.inf, len(terms))
    return Estimate(*samples.mean_interval(np, terms, confidence, bias), len(terms))
