"""The picture of a comparison: the distributions and the contribution of each class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from kldiv.cli.picture import BLUE, GREEN, GREY, ORANGE, RED, Picture, plain, short, tidy
from kldiv.cli.render import clean
from kldiv.cli.report import over

_NAMED = 5  # classes that a line names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kldiv.metrics import QuantizationReport
    from kldiv.streaming import Comparison


class Plot(Picture):
    """The picture of a comparison, to be drawn to a file."""

    def draw(self, found: Comparison) -> None:
        """Draw the largest contributors of a comparison."""
        if found.quantization is not None:
            self.save(_distribution(found.quantization, _names(found)))
            return
        best = found.contributions
        # No pyplot: it would look for a display.
        figure = Figure(figsize=(8.0, 1.6 + 0.3 * max(len(best), 3)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1))
        places = range(len(best))
        self._probabilities(left, found)
        self._contributions(right, [each.kl_pq for each in best])
        left.set_yticks(places, [short(each.label) for each in best])
        plain(*left.get_yticklabels())
        left.set_ylim(len(best) - 0.4, -0.6)
        for axes in (left, right):
            tidy(axes, "x")
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0, labelsize="medium", labelcolor="black")
        for place, each in enumerate(best):
            if each.kl_qp == math.inf and each.kl_pq < math.inf:
                at = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
                right.annotate("D(Q‖P) ∞", (0, place), color=RED, fontsize="small", **at)
        figure.suptitle(_title(found), fontsize="medium")
        lines = _infinite(found)
        if lines:
            figure.set_figheight(figure.get_figheight() + 0.22 * len(lines))
            said = figure.supxlabel("\n".join(lines), fontsize="small", color=RED)
            plain(said)
        self.save(figure)

    @staticmethod
    def _probabilities(axes: Axes, found: Comparison) -> None:
        best = found.contributions
        sides = zip("PQ", _names(found), (BLUE, ORANGE), (-0.19, 0.19), strict=True)
        for letter, name, colour, shift in sides:
            values = [getattr(each, letter.lower()) for each in best]
            places = [i + shift for i in range(len(best))]
            axes.barh(places, values, height=0.36, color=colour, label=f"{letter}  {clean(name)}")
        axes.set_title("probability", fontsize="small", color=GREY)
        legend = axes.legend(fontsize="small", frameon=False, loc="best")
        plain(*legend.get_texts())

    @staticmethod
    def _contributions(axes: Axes, values: list[float]) -> None:
        finite = [value for value in values if math.isfinite(value)]
        largest = max(map(abs, finite), default=0.0) or 1.0
        for place, value in enumerate(values):
            if math.isfinite(value):
                axes.barh(place, value, height=0.6, color=BLUE if value > 0 else ORANGE)
            elif not math.isnan(value):
                axes.barh(
                    place, 1.1 * largest, height=0.6, color="none", edgecolor=RED, hatch="///"
                )
                axes.annotate(
                    "∞",
                    (1.1 * largest, place),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    color=RED,
                )
        axes.axvline(0.0, color=GREY, linewidth=0.8)
        axes.margins(x=0.08)
        axes.set_title("contribution to D(P‖Q), in nats", fontsize="small", color=GREY)


def _distribution(found: QuantizationReport, names: list[str]) -> Figure:
    """Return the picture of the divergences of all rows."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.subplots()
    edges, counts, below = found.histogram or ([], [], 0)
    seen = [i for i, count in enumerate(counts) if count]
    low, high = (seen[0], seen[-1] + 1) if seen else (0, 1)
    shares = [100.0 * count / found.rows for count in counts[low:high]]
    axes.stairs(shares, edges[low : high + 1], fill=True, color=BLUE, alpha=0.45)
    if below:  # rows alike have no logarithm: a bar of their own, to the left
        left = edges[low] / 10**0.4
        axes.bar(left, 100.0 * below / found.rows, width=0.3 * left, color=GREY)
        axes.annotate(
            f"< {edges[0]:.0e}",
            (left, 0),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize="small",
            color="white",
        )
    marks = [
        (found.kl_median, "median", GREEN, "-"),
        (found.kl.value, "mean", RED, "-"),
        *((found.kl_percentiles.get(q, math.nan), f"{q:g} %", ORANGE, ":") for q in (99.0, 99.9)),
    ]
    for value, name, colour, line in marks:
        if 0 < value < math.inf:
            axes.axvline(value, color=colour, linestyle=line, label=f"{name}  {value:.3g}")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0.0)
    tidy(axes, "y")
    axes.set_xlabel("D(P‖Q) of a token, in nats", fontsize="small", color=GREY)
    axes.set_ylabel("% of tokens, in each tenth of a power of ten", fontsize="small", color=GREY)
    axes.legend(fontsize="small", frameon=False, loc="upper left")
    title = axes.set_title(
        f"{clean(names[1])} beside {clean(names[0])}: {found.rows:,} tokens,"
        f" {100 * found.same_top.value:.2f} % with the same likeliest",
        fontsize="medium",
    )
    plain(title)
    return figure


def _names(found: Comparison) -> list[str]:
    """Return the names of the files, with their members where one file holds both."""
    paths = [Path(str(side.path)) for side in (found.p, found.q)]
    if paths[0].name != paths[1].name:
        return [path.name for path in paths]
    return [
        f"{path.name}::{side.member}" if side.member else str(path)
        for path, side in zip(paths, (found.p, found.q), strict=True)
    ]


def _infinite(found: Comparison) -> list[str]:
    """Return a line for each direction that is infinite, with the classes that make it so."""
    lines = []
    for zeros, direction, one, other in (
        (found.zeros_q, "D(P‖Q)", "Q", "P"),
        (found.zeros_p, "D(Q‖P)", "P", "Q"),
    ):
        if zeros.classes:
            named = ", ".join(map(short, zeros.labels[:_NAMED]))
            more = ", …" if zeros.classes > len(zeros.labels[:_NAMED]) else ""
            share = f"{100 * zeros.share:.3g} % of {other}"
            lines.append(f"{direction} = ∞: {one} lacks {named}{more} ({share})")
    return lines


def _title(found: Comparison) -> str:
    text = "   ".join(
        f"{name} = {each.value:.6g}".replace("inf", "∞")
        for name, each in (("D(P‖Q)", found.kl_pq), ("D(Q‖P)", found.kl_qp), ("JS", found.js))
    )
    words = over(found)
    return f"{text}   nats" + (f", {words}" if words else "")
