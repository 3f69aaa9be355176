"""The picture of a ranking: the data's histogram, and the fits that come closest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.figure import Figure

from kldiv.cli.picture import BLUE, GREEN, GREY, ORANGE, RED, Picture, plain, tidy
from kldiv.cli.render import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kldiv.fitting import Ranking
    from kldiv.readers import Table

_SHOWN: Final = 3
_STYLES: Final = ((ORANGE, "-"), (GREEN, "--"), (RED, ":"))


class FitPlot(Picture):
    """The picture of a ranking, to be drawn to a file."""

    def draw(self, found: Ranking, table: Table) -> None:
        """Draw a ranking of a file's numbers."""
        # No pyplot: it would look for a display.
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        axes = figure.subplots()
        data = np.asarray(table.array, dtype=np.float64).ravel()
        if found.kind == "counts":
            _counts(axes, found, data)
        else:
            _densities(axes, found, data)
        tidy(axes, "y")
        axes.set_ylim(bottom=0.0)
        path = Path(str(table.path))
        axes.set_xlabel(clean(table.member or path.stem), fontsize="small", color=GREY)
        legend = axes.legend(fontsize="small", frameon=False)
        plain(*legend.get_texts())
        axes.set_title(_title(found, clean(path.name)), fontsize="medium")
        self.save(figure)


def _title(found: Ranking, name: str) -> str:
    best, level = found.best, f"{100 * found.confidence:g} %"
    low, high = best.kl.low, best.kl.high
    if not high < np.inf:
        return f"{best.family} comes closest to {name}, but holds some of it for impossible"
    if high <= 0:
        return f"{best.family} fits {name} best: no divergence from the data is found"
    if low <= 0:
        return f"{best.family} fits {name} best: at most {high:.3f} nats from the data ({level})"
    return f"{best.family} fits {name} best: {low:.3f} to {high:.3f} nats from the data ({level})"


def _densities(axes: Axes, found: Ranking, data: np.ndarray) -> None:
    edges = np.histogram_bin_edges(data, bins="auto" if len(np.unique(data)) > 1 else 1)
    bins = min(len(edges) - 1, 100)
    axes.hist(data, bins=bins, density=True, color=BLUE, alpha=0.35, label="data")
    margin = 0.05 * (data.max() - data.min())
    points = np.linspace(data.min() - margin, data.max() + margin, 500)
    for fit, (colour, line) in zip(found.fits[:_SHOWN], _STYLES, strict=False):
        density = np.exp(fit.log_likelihoods(points))
        density[~np.isfinite(density)] = np.nan
        axes.plot(points, density, line, color=colour, linewidth=1.6, label=fit.family)
    axes.set_ylabel("density", fontsize="small", color=GREY)


def _counts(axes: Axes, found: Ranking, data: np.ndarray) -> None:
    values, number = np.unique(data, return_counts=True)
    axes.bar(values, number / len(data), width=0.7, color=BLUE, alpha=0.35, label="data")
    whole = np.arange(values[-1] + 2)
    for fit, (colour, line) in zip(found.fits[:_SHOWN], _STYLES, strict=False):
        probability = np.exp(fit.log_likelihoods(whole))
        axes.plot(
            whole,
            probability,
            f"o{line}",
            color=colour,
            markersize=4,
            linewidth=1.2,
            label=fit.family,
        )
    axes.set_ylabel("probability", fontsize="small", color=GREY)
