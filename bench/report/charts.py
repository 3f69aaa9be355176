"""Three charts as inline SVG, whose colours the page's style sheet chooses."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any, Final

from ..harness.cells import FLOOR, OWN
from ..harness.operations import UNIT, half_the_digits
from . import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..harness.records import Results

    Record = dict[str, Any]

_FAMILIES: Final = ("torch", "jax", "numpy", "scipy", "simsimd", "liger")
_WIDTH: Final = 560
_LABEL: Final = 194
_VALUE: Final = 124
_ROW: Final = 24


def facets(cell: Record) -> dict[str, str]:
    """Return the fields that the page's filters choose by."""
    rows, classes = cell["shape"]
    return {
        "o": cell["operation"],
        "p": cell["pass"],
        "d": cell["dtype"],
        "s": f"{rows}×{classes}",
        "v": cell["device"],
    }


def data(cell: Record) -> str:
    """Return these as one attribute, as short as may be: there may be thousands."""
    return f'data-f="{escape("|".join(facets(cell).values()))}"'


def color(cell: Record) -> str:
    """Return the class that colours whoever computes a cell."""
    if cell["who"] in {OWN, FLOOR}:
        return "own" if cell["who"] == OWN else "floor"
    name = cell["who"].lower()
    return next((family for family in _FAMILIES if family in name), "other")


# --- ratios ---------------------------------------------------------------------------------------


def ratios(cells: Sequence[Record]) -> str:
    """Return a panel for each group: every time as a multiple of kldiv's best."""
    panels = [_panel(members) for members in show.groups(cells).values()]
    if not panels:
        return "<section><h2>Times</h2><p>There is no cell.</p></section>\n"
    return (
        "<section><h2>Times, as multiples of kldiv's best</h2><p>Longer is slower; the axis is "
        "logarithmic. Pale bars are not ranked: <i>unstable</i> ones scattered by more than 10 %, "
        "<i>wrong</i> ones lost half of their digits.</p>"
        f'<div class="panels">{"".join(panels)}</div></section>\n'
    )


def _panel(members: Sequence[Record]) -> str:
    timed = [cell for cell in members if cell["median_s"]]
    shown = show.order(timed)
    if not shown:
        return ""
    reference = _reference(shown)
    rows = [(cell, *_ratio(cell, reference)) for cell in shown]
    low = min(0.8, *(low for _, _, low, _ in rows))
    high = max(1.25, *(high for _, _, _, high in rows))
    left, right = _LABEL, _WIDTH - _VALUE

    def x(ratio: float) -> float:
        place = math.log(ratio / low) / math.log(high / low)
        return round(left + place * (right - left), 1)

    height = _ROW * len(rows) + 30
    parts = [_grid(low, high, x, height - 22)]
    for index, (cell, ratio, least, most) in enumerate(rows):
        parts.append(_bar(cell, (ratio, least, most), x, 6 + _ROW * index, cell is reference))
    title = escape(show.group_title(members[0]))
    standing = f", {show.standing(reference)}" if show.standing(reference) else ""
    time = show.duration(reference["median_s"])
    against = escape(f"1 = {show.who(reference)}, {time}{standing}")
    return (
        f"<figure {data(members[0])}><figcaption>{title}<small>{against}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _reference(shown: Sequence[Record]) -> Record:
    """Return the fastest of kldiv, ranked if any is, else the fastest of all."""
    own = [cell for cell in shown if cell["who"] == OWN]
    return (own or list(shown))[0]


def _ratio(cell: Record, reference: Record) -> tuple[float, float, float]:
    found = reference["ratios"].get(cell["who"]) if cell["who"] != OWN else None
    if found is None:
        ratio = cell["median_s"] / reference["median_s"]
        return ratio, ratio, ratio
    return found["ratio"], found["low"], found["high"]


def _grid(low: float, high: float, x: Callable[[float], float], bottom: float) -> str:
    parts = []
    last = -math.inf
    for tick in _ticks(low, high):
        at = x(tick)
        if tick != 1 and (at - last < 34 or 0 < x(1.0) - at < 34):
            continue  # labels would touch
        last = at
        name = "one" if tick == 1 else "grid"
        parts.append(
            f'<path class="{name}" d="M{at} 0V{bottom}"/>'
            f'<text class="tick" x="{at}" y="{bottom + 16}">{tick:g}×</text>'
        )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if high / low < 200 else (1,)
    found = [step * 10.0**k for k in range(first, last + 1) for step in steps]
    return [tick for tick in found if low <= tick <= high]


def _bar(
    cell: Record,
    found: tuple[float, float, float],
    x: Callable[[float], float],
    top: float,
    reference: bool,  # noqa: FBT001 - private
) -> str:
    ratio, least, most = found
    standing = show.standing(cell)
    start, end = sorted((x(1.0), x(ratio)))
    middle = top + 8
    kind = f"{color(cell)} pale" if standing else color(cell)
    whisker = (
        f'<path class="whisker" d="M{x(least)} {middle}H{x(most)}"/>'
        if most / least > 1.005
        else ""
    )
    text = f"{show.digits(ratio)}×" if not reference else show.duration(cell["median_s"])
    if standing:
        text += f' <tspan class="note">{standing}</tspan>'
    name = escape(show.who(cell))
    tip = escape(f"{show.who(cell)}: {show.duration(cell['median_s'])}, {least:.3g}–{most:.3g}×")
    return (
        f'<g><title>{tip}</title><text class="who{" me" if cell["who"] == OWN else ""}" '
        f'x="{_LABEL - 8}" y="{middle + 4}">{name}</text>'
        f'<rect class="{kind}" x="{start}" y="{top + 1}" width="{max(2.0, round(end - start, 1))}" '
        f'height="14" rx="2"/>{whisker}'
        f'<text class="value" x="{_WIDTH - _VALUE + 8}" y="{middle + 4}">{text}</text></g>'
    )


# --- roofline -------------------------------------------------------------------------------------


class _Axes:
    """A plane with two logarithmic axes."""

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], size: tuple[int, int], left: int
    ) -> None:
        self.width, self.height = size
        self.left, self.bottom = left, self.height - 40
        self.x_range, self.y_range = _range(xs), _range(ys)

    def x(self, value: float) -> float:
        """Return where a value lies, from the left."""
        return self._place(value, self.x_range, self.left, self.width - 16)

    def y(self, value: float) -> float:
        """Return where a value lies, from the top."""
        return self._place(value, self.y_range, self.bottom, 14)

    @staticmethod
    def _place(value: float, span: tuple[float, float], start: float, end: float) -> float:
        low, high = span
        place = (math.log10(value) - low) / (high - low)
        return round(start + min(1.0, max(0.0, place)) * (end - start), 1)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten that an axis goes between: the values, and some air."""
    low, high = math.log10(min(values)), math.log10(max(values))
    air = max(0.06 * (high - low), 0.5 - (high - low) / 2)
    return low - air, high + air


def _powers(span: tuple[float, float]) -> Iterable[int]:
    """Return the whole powers of ten inside."""
    return range(math.ceil(span[0]), math.floor(span[1]) + 1)


def roofline(results: Results) -> str:
    """Return achieved against measured bandwidth, for every cell with a time."""
    cells = [cell for cell in results["cells"] if cell["bytes_per_s"]]
    if not cells:
        return ""
    roofs = [
        (f"{device}: {name}", rate)
        for device, found in results["bandwidth"].items()
        for name, rate in found.items()
    ]
    moved = [sum(cell["bytes"].values()) for cell in cells]
    rates = [cell["bytes_per_s"] for cell in cells] + [rate for _, rate in roofs]
    axes = _Axes(moved, rates, (1120, 420), 76)
    parts = []
    for k in _powers(axes.x_range):
        at = axes.x(10.0**k)
        parts.append(
            f'<path class="grid" d="M{at} 14V{axes.bottom}"/>'
            f'<text class="tick" x="{at}" y="{axes.bottom + 18}">{_metric(k)}B</text>'
        )
    for k in _powers(axes.y_range):
        at = axes.y(10.0**k)
        parts.append(
            f'<path class="grid" d="M{axes.left} {at}H{axes.width - 16}"/>'
            f'<text class="tick end" x="{axes.left - 8}" y="{at + 4}">{_metric(k)}B/s</text>'
        )
    for index, (name, rate) in enumerate(sorted(roofs, key=lambda roof: roof[1])):
        at = axes.y(rate)
        text = at - 5 if index else at + 14  # they lie close together
        parts.append(
            f'<path class="roof" d="M{axes.left} {at}H{axes.width - 16}"/>'
            f'<text class="rooftext" x="{axes.left + 6 + 170 * index}" y="{text}">'
            f"{escape(name)} {rate / 1e9:.0f} GB/s</text>"
        )
    for cell, amount in zip(cells, moved, strict=True):
        parts.append(_point(cell, axes.x(amount), axes.y(cell["bytes_per_s"])))
    return (
        "<section><h2>Achieved bandwidth</h2><p>The bytes that must move, over the time; the lines "
        "are what the memory was measured to do in this run. Above them is the work of caches.</p>"
        f'<figure class="wide"><svg viewBox="0 0 {axes.width} {axes.height}" role="img" '
        f'aria-label="Achieved bandwidth">{"".join(parts)}</svg>{_legend(cells)}</figure>'
        "</section>\n"
    )


def _metric(k: int) -> str:
    units = ["", "k", "M", "G", "T", "P"]
    index = max(0, min(k // 3, len(units) - 1))
    return f"{10.0 ** (k - 3 * index):g} {units[index]}"


def _point(cell: Record, x: float, y: float) -> str:
    kind = f"{color(cell)} pale" if show.standing(cell) else color(cell)
    tip = f"{show.who(cell)}, {show.group_title(cell)}: {show.percent(cell['of_bandwidth'])}"
    return (
        f'<circle {data(cell)} class="{kind}" cx="{x}" cy="{y}" r="5">'
        f"<title>{escape(tip)}</title></circle>"
    )


def _legend(cells: Iterable[Record]) -> str:
    names = {"own": "kldiv", "floor": "moving the bytes", "simsimd": "SimSIMD", "liger": "Liger"}
    found = dict.fromkeys(color(cell) for cell in cells)
    parts = "".join(
        f'<span><svg viewBox="0 0 12 12"><circle class="{kind}" cx="6" cy="6" r="5"/></svg>'
        f"{names.get(kind, kind)}</span>"
        for kind in found
    )
    return f'<div class="legend">{parts}</div>'


# --- errors ---------------------------------------------------------------------------------------


def errors(cells: Sequence[Record]) -> str:
    """Return the error of everybody, a line for each, with the limits of the dtypes."""
    known = [cell for cell in cells if show.worst_error(cell) is not None]
    if not known:
        return ""
    lines: dict[str, list[Record]] = {}
    for cell in known:
        lines.setdefault(show.who(cell), []).append(cell)
    dtypes = [dtype for dtype in UNIT if any(cell["dtype"] == dtype for cell in known)]
    limits = [half_the_digits(dtype) for dtype in dtypes]
    found = [show.worst_error(cell) or 0.0 for cell in known]
    values = [*limits, *(UNIT[dtype] for dtype in dtypes), *(e for e in found if e > 0), 1e-17]
    height = 22 * len(lines) + 82
    axes = _Axes([min(max(value, 1e-18), 10.0) for value in values], [1, 10], (1120, height), 220)
    bottom = height - 44
    parts = []
    for k in _powers(axes.x_range):
        at = axes.x(10.0**k)
        if k % 2 == 0:
            parts.append(
                f'<path class="grid" d="M{at} 34V{bottom}"/>'
                f'<text class="tick" x="{at}" y="{bottom + 18}">1e{k}</text>'
            )
    for dtype in dtypes:
        for kind, value, top, text in (
            ("roof", UNIT[dtype], 12, f"unit of {dtype}"),
            ("limit", half_the_digits(dtype), 28, f"{dtype} wrong from here"),
        ):
            at = axes.x(value)
            parts.append(
                f'<path class="{kind}" d="M{at} {top + 5}V{bottom}"/>'
                f'<text class="rooftext mid" x="{at}" y="{top}">{text}</text>'
            )
    for index, (name, members) in enumerate(lines.items()):
        y = 50 + 22 * index
        mine = " me" if members[0]["who"] == OWN else ""
        parts.append(f'<text class="who{mine}" x="208" y="{y + 4}">{escape(name)}</text>')
        parts.append(f'<path class="row" d="M220 {y}H1104"/>')
        parts += [
            _error_point(cell, axes.x(max(show.worst_error(cell) or 1e-18, 1e-18)), y)
            for cell in members
        ]
    return (
        "<section><h2>Errors</h2><p>Relative, against the loss in double-double arithmetic on the "
        "same inputs; further left is better. Circles are float32, squares float64, triangles "
        "narrower types.</p>"
        f'<figure class="wide"><svg viewBox="0 0 1120 {height}" role="img" aria-label="Errors">'
        f"{''.join(parts)}</svg></figure></section>\n"
    )


def _error_point(cell: Record, x: float, y: float) -> str:
    kind = f"{color(cell)} wrong" if cell["status"] == "wrong" else color(cell)
    tip = f"{show.group_title(cell)}: {show.error(show.worst_error(cell))}"
    head, tail = f'{data(cell)} class="{kind}"', f"<title>{escape(tip)}</title>"
    if cell["dtype"] == "float32":
        return f'<circle {head} cx="{x}" cy="{y}" r="5">{tail}</circle>'
    if cell["dtype"] == "float64":
        return f'<rect {head} x="{x - 4.5}" y="{y - 4.5}" width="9" height="9">{tail}</rect>'
    return f'<path {head} d="M{x - 5} {y + 4}h10l-5 -9z">{tail}</path>'
