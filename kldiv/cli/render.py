"""Text for terminals and pipes: consoles, aligned columns, numbers, bars."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kldiv import streaming
    from kldiv.readers import Table

    Cell: TypeAlias = str | Text
    Side: TypeAlias = Literal["<", ">"]

WIDTH: Final = 80  # where the output is no terminal
LABEL: Final = 24  # cells that a label may take
_GAP: Final = "  "
_SMALL: Final = -5  # powers of ten from which numbers are written with an exponent
_LARGE: Final = 1e7


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Characters that not every encoding has."""

    parallel: str
    dots: str
    none: str
    right: str
    right_half: str
    infinite: str
    left: str
    left_half: str
    about: str
    delta: str


UNICODE: Final = Glyphs("‖", "…", "–", "█", "▌", "▒", "█", "▐", "±", "Δ")
ASCII: Final = Glyphs("||", "...", "-", "+", "", "*", "-", "", "+-", "d")


class _Console(Console):
    """A console that leaves a closed pipe to `kldiv.cli.app`, where its exit code is decided."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Page:
    """Where text goes: a stream with its width, encoding and colours.

    Parameters
    ----------
    stderr : bool, default False
        Whether to write to stderr rather than to stdout.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        # Rich would leave bold and dim in place; without colour means plain here.
        plain = bool(os.environ.get("NO_COLOR"))
        self._console = _Console(
            file=stream,
            color_system=None if plain else "auto",
            width=None if stream.isatty() else WIDTH,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self.terminal = self._console.is_terminal
        self.width = self._console.width
        unicode = self._console.encoding.lower().startswith("utf")
        self.glyphs = UNICODE if unicode else ASCII

    def line(self, *cells: Cell) -> None:
        """Write one line; it is never wrapped."""
        text = Text.assemble(*cells, no_wrap=True)
        text.rstrip()
        self._console.print(text, soft_wrap=True)

    def plain(self, line: str) -> None:
        """Write one line without styles, fast."""
        self._console.file.write(f"{line}\n")

    def paragraph(self, head: Text, body: str) -> None:
        """Write a message: wrapped and indented on a terminal, else one line."""
        if self.glyphs is ASCII:
            body = body.translate({ord("‖"): "||", ord("−"): "-"})
        if not self.terminal:
            self.line(head, clean(body))
            return
        parts = Text(clean(body)).wrap(self._console, max(self.width - head.cell_len, 20))
        for i, part in enumerate(parts):
            self.line(" " * head.cell_len if i else head, part)

    def head(self, text: str, style: str = "bold") -> None:
        """Write a heading, apart from the lines above it."""
        self.line()
        self.line(Text(text, style=style))

    def table(self, rows: Iterable[Sequence[Cell]], sides: str, head: Sequence[str] = ()) -> None:
        """Write rows of cells in columns, each aligned to its side, ``<`` or ``>``."""
        titles = [[*map(dim, head)]] if head else []
        texts = [
            [cell if isinstance(cell, Text) else Text(cell) for cell in row]
            for row in (*titles, *rows)
        ]
        widths = [max(cell.cell_len for cell in column) for column in zip(*texts, strict=True)]
        for row in texts:
            cells: list[Cell] = []
            for cell, width, side in zip(row, widths, sides, strict=True):
                space = " " * (width - cell.cell_len)
                cells += [cell, space, _GAP] if side == "<" else [space, cell, _GAP]
            self.line(*cells)

    def label(self, label: str) -> str:
        """Return a label that is safe to print and not too long."""
        text = Text(clean(label))
        if text.cell_len > LABEL:
            text.truncate(LABEL - len(self.glyphs.dots))
            return f"{text.plain}{self.glyphs.dots}"
        return text.plain

    def bars(self, values: Sequence[float], width: int) -> list[Text]:
        """Return a bar for each value: to the right of a common line, or to its left below 0."""
        finite = [value for value in values if math.isfinite(value)]
        low, high = min([0.0, *finite]), max([0.0, *finite])
        if any(value == math.inf for value in values):
            high = high or -low or 1.0
        span = (high - low) or 1.0
        left = math.ceil(width * -low / span)
        right = width - left
        return [self._bar(value, low, high, left, right) for value in values]

    def _bar(self, value: float, low: float, high: float, left: int, right: int) -> Text:
        glyphs = self.glyphs
        if math.isnan(value):
            return Text()
        if value < 0:
            whole, half = _halves(left * max(value / low, 0.0) if low else left)
            bar = (glyphs.left_half if half else "") + glyphs.left * whole
            return Text(" " * (left - len(bar))).append(bar, style="magenta")
        if value == math.inf:
            return Text(" " * left).append(glyphs.infinite * right, style="red")
        whole, half = _halves(right * value / high if high else 0.0)
        bar = glyphs.right * whole + (glyphs.right_half if half else "")
        return Text(" " * left).append(bar, style="cyan")


dim: Final = partial(Text, style="dim")
"""Text that stands back."""


def print_notes(notes: Iterable[str], *, apart: bool = False) -> None:
    """Write remarks to stderr; ``apart`` puts a blank line first on a terminal."""
    page = Page(stderr=True)
    for i, text in enumerate(notes):
        if apart and not i and page.terminal:
            page.line()
        page.paragraph(Text("note: ", style="bold yellow"), text)


def _halves(length: float) -> tuple[int, bool]:
    """Return whole cells, and whether half a cell more."""
    halves = round(2 * length)
    return halves // 2, bool(halves % 2)


def clean(text: str) -> str:
    """Return text from a file without the characters that would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def source(array: Table | streaming.Side) -> str:
    """Return where an array came from, safe to print."""
    return clean(f"{array.path}::{array.member}" if array.member else str(array.path))


def number(value: float) -> str:
    """Return a number with ten significant digits."""
    return f"{value:#.10g}" if math.isfinite(value) else str(value)


def probability(value: float) -> str:
    """Return a probability; an exact 0 is told from a small one."""
    if value == 0:
        return "0"
    return f"{value:.5f}" if 1e-3 <= value < _LARGE else f"{value:.2e}"


def column(values: Iterable[float], *, digits: int = 3, sign: str = "") -> list[str]:
    """Return numbers in one format for all, in which the smallest keeps ``digits`` digits."""
    values = list(values)
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    before = math.floor(math.log10(min(sizes))) if sizes else 0
    form = f"{sign}.{max(digits - 1 - before, 0)}f"
    if before < _SMALL or (sizes and max(sizes) >= _LARGE):
        form = f"{sign}.{digits - 1}e"
    return [format(value, form) for value in values]
