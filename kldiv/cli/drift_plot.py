"""The picture of a drift report: a small panel for each column, the largest drift first."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.figure import Figure

from kldiv.cli.picture import BLUE, GREY, ORANGE, Picture, plain, short
from kldiv.cli.render import LABEL, clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from kldiv.readers import Sample

_ACROSS: Final = 3  # panels in a row
_BINS: Final = 30
_TAIL: Final = 0.005  # share of numbers on each side that may lie outside a panel
_BARS: Final = 8  # categories that a panel shows
_LOOK: Final = 1000  # numbers that mostly tell whether there are few different ones


@dataclass(frozen=True, slots=True)
class _Panel:
    """The shares of both samples of a column, by edges of bins or by names of categories."""

    shares: tuple[Any, Any]
    edges: Any = None
    names: tuple[str, ...] = ()


class DriftPlot(Picture):
    """The picture of a drift report, to be drawn to a file."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._panels: dict[str, _Panel] = {}

    def keep(self, p: Sample, q: Sample) -> None:
        """Keep the shares that a panel shows of a column, which is not read again."""
        self._panels[p.name] = _panel(p, q)

    def draw(self, titles: Mapping[str, str], files: Sequence[str]) -> None:
        """Draw the columns that have titles, in their order."""
        across = min(_ACROSS, len(titles))
        down = math.ceil(len(titles) / across)
        size = (2.7 * across + 0.3, 2.0 * down + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).ravel()
        for panel, (name, title) in zip(panels, titles.items(), strict=False):
            _draw_column(panel, self._panels[name])
            said = panel.set_title(f"{short(name)}\n{title}", fontsize="small", loc="left")
            plain(said)
        for panel in panels[len(titles) :]:
            panel.set_visible(False)
        handles = panels[0].get_legend_handles_labels()[0][:2]
        names = [f"{letter}  {clean(file)}" for letter, file in zip("PQ", files, strict=True)]
        legend = figure.legend(
            handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize="small"
        )
        plain(*legend.get_texts())
        self.save(figure)


def _panel(p: Sample, q: Sample) -> _Panel:
    values = [each.values for each in (p, q)]
    if isinstance(values[0], tuple) or len(_few(*values)) <= _BARS:
        return _categories(*(Counter(list(each)) for each in values))
    return _numbers(*values)


def _draw_column(axes: Axes, panel: _Panel) -> None:
    if panel.edges is None:
        _draw_categories(axes, panel)
    else:
        for shares, colour in zip(panel.shares, (BLUE, ORANGE), strict=True):
            axes.stairs(shares, panel.edges, fill=True, color=colour, alpha=0.35, label="sample")
            axes.stairs(shares, panel.edges, color=colour)
        axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=GREY, labelsize="x-small")
    axes.set_yticks([])


def _few(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the different numbers of both; of some of them where these are many already."""
    some = np.unique(np.concatenate([p[:_LOOK], q[:_LOOK]]))
    return some if len(some) > _BARS else np.unique(np.concatenate([p, q]))


def _numbers(p: np.ndarray, q: np.ndarray) -> _Panel:
    ends = [np.quantile(each, (_TAIL, 1.0 - _TAIL)) for each in (p, q)]
    low, high = min(each[0] for each in ends), max(each[1] for each in ends)
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    first, second = (np.histogram(each, edges)[0] / len(each) for each in (p, q))
    return _Panel((first, second), edges)


def _categories(p: Counter[object], q: Counter[object]) -> _Panel:
    names = [name for name, _ in (p + q).most_common(_BARS)]
    if not any(isinstance(name, str) for name in names):
        names.sort(key=float)  # type: ignore[arg-type]
    first, second = ([each[name] / each.total() for name in names] for each in (p, q))
    shown = [f"{name:g}" if isinstance(name, float) else str(name) for name in names]
    return _Panel((first, second), names=tuple(shown))


def _draw_categories(axes: Axes, panel: _Panel) -> None:
    for shares, colour, shift in zip(panel.shares, (BLUE, ORANGE), (-0.2, 0.2), strict=True):
        places = [i + shift for i in range(len(shares))]
        axes.bar(places, shares, width=0.4, color=colour, label="sample")
    shown = [short(name, 9) for name in panel.names]
    angle = 0 if sum(map(len, shown)) < 2 * LABEL else 45
    axes.set_xticks(range(len(shown)), shown, rotation=angle, ha="right" if angle else "center")
    plain(*axes.get_xticklabels())
