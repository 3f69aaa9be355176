"""``kldiv compare`` of two distributions that are written out instead of two files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rich.text import Text

import kldiv
from kldiv.cli.expressions import parse
from kldiv.cli.json_output import print_json
from kldiv.cli.render import Page, clean, column, dim
from kldiv.distributions import NoClosedFormError
from kldiv.errors import InputError, OptionError

_LOG_2: Final = math.log(2.0)  # nats in a bit


@dataclass(frozen=True, slots=True)
class Direction:
    """A divergence in one direction, and how it was found."""

    values: np.ndarray
    """One number for each batch entry."""
    errors: np.ndarray | None
    """How far off each may be; None for a closed form."""
    method: str


def show(p_text: str, q_text: str, *, as_json: bool) -> None:
    """Compare two expressions under the settings that hold now, and print it."""
    p, q = parse(p_text), parse(q_text)
    found = {"kl_pq": _divergence(p, q), "kl_qp": _divergence(q, p)}
    if as_json:
        print_json(_to_dict(p_text, q_text, found))
    else:
        _print(p_text, q_text, found)


def _divergence(p: Any, q: Any) -> Direction:
    try:
        return Direction(np.asarray(kldiv.kl_divergence(p, q)), None, "closed form")
    except NoClosedFormError as error:
        reason = error
    for method in ("quadrature", "monte_carlo"):
        try:
            found = kldiv.kl_divergence(p, q, method=method)
        except OptionError:
            continue  # of several dimensions, or without a sampler
        return Direction(np.asarray(found.value), np.asarray(found.standard_error), method)
    raise InputError(str(reason))


def _to_dict(p: str, q: str, found: dict[str, Direction]) -> dict[str, Any]:
    return {
        **{name: each.values.tolist() for name, each in found.items()},
        "units": "nats",
        "bits": {name: (each.values / _LOG_2).tolist() for name, each in found.items()},
        "method": {name: each.method for name, each in found.items()},
        "error": {
            name: None if each.errors is None else each.errors.tolist()
            for name, each in found.items()
        },
        "p": p,
        "q": q,
        "version": kldiv.__version__,
    }


def _print(p: str, q: str, found: dict[str, Direction]) -> None:
    page = Page()
    for name, text in (("P", p), ("Q", q)):
        page.line(Text(name, style="bold"), f"  {clean(text.strip())}")
    page.line()
    parallel = page.glyphs.parallel
    names = {"kl_pq": f"D(P{parallel}Q)", "kl_qp": f"D(Q{parallel}P)"}
    labels, values, methods = [], [], []
    for key, each in found.items():
        for place in np.ndindex(each.values.shape):
            labels.append(names[key] + (str(list(place)) if place else ""))
            values.append(float(each.values[place]))
            methods.append(_method(each, place))
    units = (column([value / unit for value in values], digits=10) for unit in (1.0, _LOG_2))
    rows = []
    for label, value, method, *cells in zip(labels, values, methods, *units, strict=True):
        nats, bits = ["none seen"] * 2 if value < 0 else cells
        rows.append((label, Text(nats, style="bold"), bits, dim(method)))
    page.table(rows, "<>><", ("", "nats", "bits", ""))


def _method(each: Direction, place: tuple[int, ...]) -> str:
    name = each.method.replace("monte_carlo", "Monte Carlo")
    if each.errors is None:
        return name
    return f"{name}, error about {float(each.errors[place]):.1e}"
