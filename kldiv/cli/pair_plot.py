"""The picture of all pairs: a heat map, alike distributions beside each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from kldiv.cli.picture import GREY, RED, Picture, plain, short
from kldiv.cli.report import is_information

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from kldiv.streaming import Pairs

    Floats = NDArray[np.float64]

_WRITTEN: Final = 12  # distributions up to which each cell has its number
_DRAWN: Final = 300  # up to which there is a tree
_NAMED: Final = 60  # up to which each has its name
_FAINT: Final = "#f2d7d5"  # of infinite entries
_DARK: Final = 0.55  # share of the scale above which letters are light


class PairPlot(Picture):
    """The picture of all pairs, to be drawn to a file."""

    def draw(self, found: Pairs) -> None:
        """Draw the matrix of a divergence."""
        ((text, matrix),) = found.divergences.items()
        count = len(matrix)
        order, tree = _clustered(matrix)
        names = [short(found.labels[i]) for i in order]
        side = min(max(3.0, 0.5 * count), 8.0)
        widest = max(map(len, names)) * 0.075
        figure = Figure(figsize=(side + widest + 1.6, side + widest + 1.4), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
        axes = figure.subplots()
        image = _heat(axes, matrix[np.ix_(order, order)])
        if tree is not None:
            _draw_tree(axes.inset_axes((0.0, 1.01, 1.0, 0.13)), tree, count)
        step = 1 if count <= _NAMED else math.ceil(count / _NAMED)
        places = range(0, count, step)
        size = "small" if count <= _WRITTEN * 2 else "x-small" if count <= _NAMED else "xx-small"
        shown = [names[i] for i in places]
        axes.set_xticks(places, shown, rotation=90, fontsize=size)
        axes.set_yticks(places, shown, fontsize=size)
        plain(*(*axes.get_xticklabels(), *axes.get_yticklabels()))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("Q", color=GREY)
        axes.set_ylabel("P", color=GREY, rotation=0, ha="right", labelpad=12)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=30)
        bar.outline.set_visible(False)
        bar.ax.tick_params(colors=GREY, labelsize="small")
        units = ", in nats" if is_information(text) else ""
        infinite = "; red: infinite" if np.isinf(matrix).any() else ""
        figure.suptitle(f"{text} of {count} distributions{units}{infinite}", fontsize="medium")
        self.save(figure)


def _heat(axes: Axes, matrix: Floats) -> Any:
    """Draw cells, those that are infinite in red, with their numbers where they are few."""
    finite = np.isfinite(matrix)
    high = float(matrix[finite].max()) if finite.any() else 1.0
    colours = colormaps["Blues"].with_extremes(over=_FAINT)
    shown = np.where(np.isnan(matrix), np.nan, np.minimum(matrix, 2.0 * high + 1.0))
    image = axes.imshow(shown, cmap=colours, vmin=0.0, vmax=high or 1.0)
    if len(matrix) <= _WRITTEN:
        for (i, j), value in np.ndenumerate(matrix):
            dark = math.isfinite(value) and value > _DARK * high
            text = "∞" if math.isinf(value) else "" if math.isnan(value) else _number(value)
            colour = RED if math.isinf(value) else "white" if dark else GREY
            axes.text(j, i, text, ha="center", va="center", fontsize="x-small", color=colour)
    return image


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _clustered(matrix: Floats) -> tuple[Sequence[int], dict[str, Any] | None]:
    """Return an order of clusters, by average distance in both directions, and their tree.

    Without SciPy the order stays; a tree of very many would be a blot.
    """
    as_it_is = range(len(matrix))
    try:
        from scipy.cluster import hierarchy  # noqa: PLC0415 - optional
    except ImportError:
        return as_it_is, None
    if len(matrix) < 3 or np.isnan(matrix).any():
        return as_it_is, None
    # A tree knows no infinity: infinitely far is twice as far as all else.
    finite = matrix[np.isfinite(matrix)]
    far = 2.0 * float(finite.max()) or 1.0
    both = np.where(np.isfinite(matrix), matrix, far)
    both = 0.5 * (both + both.T)
    condensed = both[np.triu_indices(len(both), 1)]
    linked = hierarchy.linkage(condensed, "average", optimal_ordering=len(both) <= _NAMED)
    tree = hierarchy.dendrogram(linked, no_plot=True) if len(both) <= _DRAWN else None
    return hierarchy.leaves_list(linked).tolist(), tree


def _draw_tree(axes: Axes, tree: dict[str, Any], count: int) -> None:
    for places, heights in zip(tree["icoord"], tree["dcoord"], strict=True):
        axes.plot([(each - 5.0) / 10.0 for each in places], heights, color=GREY, linewidth=0.8)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(bottom=0.0)
    axes.axis("off")
