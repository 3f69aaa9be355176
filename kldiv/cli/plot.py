"""The picture of a comparison: the distributions and what each class contributes."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from kldiv.cli.render import LABEL, clean
from kldiv.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kldiv.cli.comparison import Comparison

_BLUE: Final = "#3b6ea5"  # P, and what P has more of
_ORANGE: Final = "#d98032"  # Q
_RED: Final = "#b03a3a"
_GREY: Final = "#555555"


class Plot:
    """A picture to be drawn to a file whose suffix names the format.

    Parameters
    ----------
    path : str
        Where it goes.

    Raises
    ------
    click.UsageError
        Matplotlib writes no such format, or the folder does not exist.
    """

    def __init__(self, path: str) -> None:
        kinds = FigureCanvasBase.get_supported_filetypes()
        if Path(path).suffix.lower().removeprefix(".") not in kinds:
            known = ", ".join(f".{kind}" for kind in sorted(kinds))
            raise click.UsageError(f"--plot {path}: the suffix must be one of {known}")
        if not Path(path).parent.is_dir():
            raise click.UsageError(f"--plot {path}: there is no such folder")
        self._path = path

    def draw(self, found: Comparison) -> None:
        """Draw the largest contributors of a comparison."""
        best = found.contributions
        # No pyplot: it would look for a display.
        figure = Figure(figsize=(8.0, 1.6 + 0.3 * max(len(best), 3)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
        places = range(len(best))
        self._probabilities(left, found)
        self._contributions(right, [each.kl_pq for each in best])
        left.set_yticks(places, [_short(each.label) for each in best])
        for label in left.get_yticklabels():
            label.set_parse_math(False)
        left.set_ylim(len(best) - 0.4, -0.6)
        for axes in (left, right):
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.tick_params(axis="x", colors=_GREY, labelsize="small")
            axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
            axes.set_axisbelow(True)
        figure.suptitle(_title(found), fontsize="medium")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a label in a script without a font
            try:
                figure.savefig(self._path, dpi=150)
            except OSError as error:
                why = error.strerror or error
                raise OptionError(f"--plot {self._path}: cannot be written ({why})") from error

    @staticmethod
    def _probabilities(axes: Axes, found: Comparison) -> None:
        best = found.contributions
        names = _names(found)
        sides: list[tuple[list[float], str, str, float]] = [
            ([each.p for each in best], names[0], _BLUE, -0.19),
            ([each.q for each in best], names[1], _ORANGE, 0.19),
        ]
        for (values, name, colour, shift), letter in zip(sides, "PQ", strict=True):
            places = [i + shift for i in range(len(best))]
            axes.barh(places, values, height=0.36, color=colour, label=f"{letter}  {clean(name)}")
        axes.set_title("probability", fontsize="small", color=_GREY)
        legend = axes.legend(fontsize="small", frameon=False, loc="best")
        for text in legend.get_texts():
            text.set_parse_math(False)

    @staticmethod
    def _contributions(axes: Axes, values: list[float]) -> None:
        finite = [value for value in values if math.isfinite(value)]
        largest = max(map(abs, finite), default=0.0) or 1.0
        for place, value in enumerate(values):
            if math.isfinite(value):
                axes.barh(place, value, height=0.6, color=_BLUE if value > 0 else _ORANGE)
            elif not math.isnan(value):
                axes.barh(
                    place, 1.1 * largest, height=0.6, color="none", edgecolor=_RED, hatch="///"
                )
                axes.annotate(
                    "∞",
                    (1.1 * largest, place),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    color=_RED,
                )
        axes.axvline(0.0, color=_GREY, linewidth=0.8)
        axes.margins(x=0.08)
        axes.set_title("contribution to D(P‖Q), in nats", fontsize="small", color=_GREY)


def _names(found: Comparison) -> list[str]:
    """Return the names of the files, with their members where one file holds both."""
    tables = (found.p.table, found.q.table)
    names = [table.path.name for table in tables]
    if names[0] != names[1]:
        return names
    return [
        f"{table.path.name}::{table.member}" if table.member else str(table.path)
        for table in tables
    ]


def _short(label: str) -> str:
    label = clean(label)
    return label if len(label) <= LABEL else label[: LABEL - 1] + "…"


def _title(found: Comparison) -> str:
    text = "   ".join(
        f"{name} = {found.overall(measure):.6g}".replace("inf", "∞")
        for name, measure in (("D(P‖Q)", "kl_pq"), ("D(Q‖P)", "kl_qp"), ("JS", "js"))
    )
    return f"{text}   nats" + (f", {found.over}" if found.over else "")
