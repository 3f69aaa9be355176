"""Give every picture of the site the same looks, on a light and on a dark page."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from cycler import cycler

COLOURS = [
    "#0b5cad",
    "#c2410c",
    "#15803d",
    "#7e22ce",
    "#a16207",
    "#475569",
]  # 4.5 : 1 on white


def apply(_: dict[str, Any], __: str) -> None:
    """Set Matplotlib's defaults before a script of the gallery runs."""
    mpl.rcdefaults()
    mpl.rcParams.update(
        {
            "figure.figsize": (8, 4.2),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.grid": True,
            "grid.color": "#e2e8f0",
            "grid.linewidth": 0.7,
            "legend.frameon": False,
            "lines.linewidth": 2.0,
            "font.size": 11,
        }
    )
