"""A comparison as text, and as JSON."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.cells import cell_len
from rich.text import Text

import kldiv
from kldiv.cli.flags import in_flags
from kldiv.cli.json_output import print_json
from kldiv.cli.render import Page, clean, column, dim, number, print_notes, probability, source

if TYPE_CHECKING:
    from kldiv.metrics import Measured, QuantizationReport
    from kldiv.streaming import Comparison, Contribution, Row, Side, Summary, Zeros

_LOG_2: Final = math.log(2.0)  # nats in a bit
_DIGITS: Final = 10  # of a divergence
_LONG: Final = 1e15  # beyond which a sum is shown in powers of ten
_BAR: Final = (10, 32)  # cells of the longest bar, at least and at most


def show(found: Comparison, *, as_json: bool) -> None:
    """Print a comparison to stdout, and its warnings to stderr."""
    said = [in_flags(text) for text in found.warnings]
    if as_json:
        print_json(to_dict(found, said))
    else:
        _Report(found, Page()).write()
    sys.stdout.flush()
    print_notes(said, apart=True)


# --- JSON -----------------------------------------------------------------------------------------


def to_dict(found: Comparison, said: list[str]) -> dict[str, Any]:
    """Return a comparison as ``--json`` prints it."""
    values = {
        name: np.asarray(each.value if each.values is None else each.values)
        for name, each in _measures(found).items()
    }
    why = found.explanation
    return {
        **{name: value.tolist() for name, value in values.items()},
        "jeffreys": (values["kl_pq"] + values["kl_qp"]).tolist(),
        "generalised": found.generalised,
        "units": "nats",
        "bits": {
            name: (value / _LOG_2).tolist()
            for name, value in values.items()
            if is_information(name)
        },
        "reduction": found.reduction,
        "rows": _rows_to_dict(found),
        **({} if found.quantization is None else {"quantization": found.quantization.to_dict()}),
        "classes": found.classes,
        "axis": found.axis,
        "contributors": [_named("class", each) for each in found.contributions],
        "zeros": {"kl_pq": _zeros_to_dict(found.zeros_q), "kl_qp": _zeros_to_dict(found.zeros_p)},
        "p": _file_to_dict(found.p),
        "q": _file_to_dict(found.q),
        "smoothing": found.smoothing,
        "library": why.library,
        "backend": why.backend,
        "device": why.device,
        "kernel": why.kernel,
        "version": kldiv.__version__,
        "warnings": said,
    }


def _named(kind: str, each: Row | Contribution) -> dict[str, Any]:
    """Return a row or class, its label under the word for its kind."""
    found = asdict(each)
    return {kind: found.pop("label"), **found}


def _measures(found: Comparison) -> dict[str, Summary]:
    return {"kl_pq": found.kl_pq, "kl_qp": found.kl_qp, "js": found.js, **found.divergences}


def is_information(name: str) -> bool:
    """Return whether a divergence has a unit, nats or bits."""
    return name.partition(":")[0] not in {"tv", "hellinger", "chi2", "alpha"}


def _statistics(summary: Summary) -> dict[str, float]:
    return {"mean": summary.mean, "median": summary.median, "max": summary.max}


def _rows_to_dict(found: Comparison) -> dict[str, Any]:
    return {
        "count": found.count,
        **{name: _statistics(each) for name, each in _measures(found).items()},
        "worst": [
            _named("row", row) | ({} if found.shape else {"row": None}) for row in found.worst
        ],
    }


def _zeros_to_dict(zeros: Zeros) -> dict[str, Any]:
    return {"count": zeros.classes, "share": zeros.share, "largest": list(zeros.labels)}


def _file_to_dict(side: Side) -> dict[str, Any]:
    return {
        "path": str(side.path),
        "member": side.member,
        "shape": list(side.shape),
        "dtype": side.dtype,
        "form": side.form,
        "normalized": side.normalized,
    }


def over(found: Comparison) -> str:
    """Return the reduction in words; nothing where there is one row only."""
    if not found.shape:
        return ""
    words = {"sum": "sum over", "batchmean": "batch mean over"}
    return f"{words.get(found.reduction, 'mean over')} {found.count:,} rows"


# --- text -----------------------------------------------------------------------------------------


class _Report:
    """The parts of the text, from top to bottom."""

    def __init__(self, found: Comparison, page: Page) -> None:
        self.found = found
        self.page = page
        parallel = page.glyphs.parallel
        kind = "generalised " if found.generalised else ""
        self.names = {
            "kl_pq": f"{kind}D(P{parallel}Q)",
            "kl_qp": f"{kind}D(Q{parallel}P)",
            "js": f"{kind}JS(P, Q)",
        }
        self.always = [*self.names.values()]
        self.names |= {name: name for name in found.divergences}

    def write(self) -> None:
        self._files()
        if self.found.quantization is not None:
            self._quantization(self.found.quantization)
            self._worst()
        elif self.found.reduction == "none" and self.found.shape:
            self._all_rows()
        else:
            self._values()
            if self.found.shape:
                self._summary()
                self._worst()
        self._contributions()
        self._computed()

    def _files(self) -> None:
        sides = self.found.p, self.found.q
        self.page.table((self._file(side) for side in sides), "<<<")

    def _file(self, side: Side) -> list[str | Text]:
        found = self.found
        size = f"{side.form}, {found.classes:,} classes"
        if found.shape:
            size += f" in {found.count:,} rows"
        elif side.form == "counts":
            total = side.sum - found.smoothing * found.classes
            size += f", {total:,.0f} in all" if total < _LONG else f", {total:.6g} in all"
        return [Text(side.name, style="bold"), source(side), dim(size)]

    def _values(self) -> None:
        values = [each.value for each in _measures(self.found).values()]
        values.append(values[0] + values[1])
        nats = [Text(each, style="bold") for each in column(values, digits=_DIGITS)]
        names = [*self.names.values(), "Jeffreys, PSI"]
        bits = [
            cell if is_information(name) else ""
            for name, cell in zip(
                names, column([value / _LOG_2 for value in values], digits=_DIGITS), strict=True
            )
        ]
        if self.found.shape:
            self.page.head(over(self.found).capitalize())
        else:
            self.page.line()
        self.page.table(zip(names, nats, bits, strict=True), "<>>", ("", "nats", "bits"))

    def _quantization(self, found: QuantizationReport) -> None:
        delta = f"{self.page.glyphs.delta}p"  # the change of the next token's probability
        self.page.head(f"{self.names['kl_pq']}, in nats, of {found.rows:,} tokens")
        percentiles = {
            "median" if percent == 50 else f"{percent:g} %": value
            for percent, value in found.kl_percentiles.items()
        }
        values = {"max": found.kl_max, **percentiles, "min": found.kl_min}
        cells = column([*found.kl, *values.values()], digits=4)
        mean = Text(cells[0], style="bold")
        rows: list[list[str | Text]] = [["mean", mean, self._error(cells[1])]]
        rows += [[name, cell, ""] for name, cell in zip(values, cells[2:], strict=True)]
        self.page.table(rows, "<><")
        self.page.head("Tokens")
        shares = {"same likeliest token": found.same_top, "expected acceptance": found.acceptance}
        perplexities = {}
        words = "Perplexities and changes of probability need --next-tokens."
        if found.next_tokens:
            shares |= {f"RMS of {delta}": found.rms_delta_p, f"mean of {delta}": found.delta_p}
            perplexities = {"P": found.perplexity_p, "Q": found.perplexity_q}
            perplexities["Q by that of P"] = found.perplexity_ratio
            words = f"Of {found.next_tokens:,} next tokens; {delta} is the change of probability."
        rows = [[name, *self._measured(x, 100.0, " %", digits=4)] for name, x in shares.items()]
        rows += [
            [f"perplexity of {name}", *self._measured(x, digits=6)]
            for name, x in perplexities.items()
        ]
        self.page.table(rows, "<><")
        self.page.line(dim(words))

    def _measured(
        self, each: Measured, factor: float = 1.0, unit: str = "", *, digits: int
    ) -> list[str | Text]:
        """Return the cells of a number and its error, with as many decimals."""
        value, error = (factor * number for number in each)
        if not math.isfinite(value):
            return [str(value), ""]
        places = max(digits - 1 - (math.floor(math.log10(abs(value))) if value else 0), 0)
        return [f"{value:.{places}f}{unit}", self._error(f"{error:.{places}f}{unit}")]

    def _error(self, text: str) -> Text:
        return dim(f"{self.page.glyphs.about} {text}")

    def _summary(self) -> None:
        self.page.head("Rows, in nats")
        summaries = [_statistics(each) for each in _measures(self.found).values()]
        columns = [
            column([each[name] for each in summaries], digits=_DIGITS) for name in summaries[0]
        ]
        rows = zip(self.names.values(), *columns, strict=True)
        self.page.table(rows, "<>>>", ("", *summaries[0]))

    def _worst(self) -> None:
        worst = self.found.worst
        if not worst:
            return
        self.page.head(f"Rows that differ most, by {self.names['kl_pq']}, in nats")
        kl_pq = [row.kl_pq for row in worst]
        columns = [kl_pq, [row.kl_qp for row in worst], [row.js for row in worst]]
        names = [self.page.label(row.label) for row in worst]
        head = ["row", *self.always]
        self._with_bars(head, [names, *map(column, columns)], kl_pq)

    def _all_rows(self) -> None:
        self.page.head("Rows, in nats")
        # There may be millions, so no table: each line goes out by itself.
        count, name_of = self.found.count, self.found.row_name
        width = max(cell_len(clean(name_of(row))) for row in range(count))
        head = [f"{name:>14}" for name in self.names.values()]
        self.page.line(dim("  ".join(["row".ljust(width), *head])))
        values = (each.values for each in _measures(self.found).values())
        flat = [each.reshape(-1) for each in values if each is not None]
        for row in range(count):
            name = clean(name_of(row))
            cells = [f"{number(float(each[row])):>14}" for each in flat]
            self.page.plain("  ".join([name + " " * (width - cell_len(name)), *cells]))

    def _contributions(self) -> None:
        best = self.found.contributions
        if not best:
            return
        words = ", ".join(filter(None, ["in nats", over(self.found)]))
        self.page.head(f"Largest contributions to {self.names['kl_pq']}, {words}")
        names = [self.page.label(each.label) for each in best]
        p, q = [probability(each.p) for each in best], [probability(each.q) for each in best]
        parts = [each.kl_pq for each in best]
        self._with_bars(["class", "P", "Q", "nats"], [names, p, q, column(parts, sign="+")], parts)

    def _with_bars(self, head: list[str], columns: list[list[str]], values: list[float]) -> None:
        """Write columns, the last of them drawn as bars beside it."""
        used = sum(
            max(map(len, [name, *cells])) + 2 for name, cells in zip(head, columns, strict=True)
        )
        width = min(max(self.page.width - used, _BAR[0]), _BAR[1])
        bars = self.page.bars(values, width)
        sides = "<" + ">" * (len(head) - 1) + "<"
        self.page.table(zip(*columns, bars, strict=True), sides, (*head, ""))

    def _computed(self) -> None:
        why = self.found.explanation
        text = f"Computed by {why.backend} on {why.device}, kernel {why.kernel}"
        text += "." if why.backend == why.library else f"; the arrays are {why.library}'s."
        self.page.line()
        self.page.line(dim(text))
