"""Files that pictures are drawn to, and the colours in them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import click
from matplotlib.backend_bases import FigureCanvasBase

from kldiv.cli.render import LABEL, clean
from kldiv.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

BLUE: Final = "#3b6ea5"  # P, and where P is larger
ORANGE: Final = "#d98032"  # Q
RED: Final = "#b03a3a"
GREY: Final = "#555555"
GREEN: Final = "#3f8f5f"


def plain(*texts: Text) -> None:
    """Take texts as they stand: a label of a file is no mathematics."""
    for text in texts:
        text.set_parse_math(False)


def short(label: str, most: int = LABEL) -> str:
    """Return a label of a file that is safe to draw and not too long."""
    label = clean(label)
    return label if len(label) <= most else f"{label[: most - 1]}…"


def tidy(axes: Axes, values: Literal["x", "y"]) -> None:
    """Leave of a frame the line of an axis of values, with a grid behind the picture."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY, labelsize="small")
    axes.grid(axis=values, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


class Picture:
    """A file whose suffix names the format.

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

    def save(self, figure: Figure) -> None:
        """Write the figure."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a label in a script without a font
            try:
                figure.savefig(self._path, dpi=150)
            except OSError as error:
                why = error.strerror or error
                raise OptionError(f"--plot {self._path}: cannot be written ({why})") from error
        click.echo(f"wrote {self._path}", err=True)
