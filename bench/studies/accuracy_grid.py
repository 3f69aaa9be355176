"""kldiv's errors as student and teacher come together, on any library and device.

``accuracy.py`` does this beside the peers, on a CPU and with mpmath; here the truth is in
double-doubles (``oracle/``), which need nothing but NumPy.
"""

from __future__ import annotations

from html import escape
from importlib import import_module
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.errors import BackendError

from ..harness.libraries import LIBRARIES, settings, supports
from ..harness.operations import OPERATIONS, TARGETS, UNIT, make
from ..harness.timer import brief
from ..report import show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..harness.operations import Data

_OPERATIONS: Final = (
    "kl_div",
    *(name for name in OPERATIONS if name.endswith("_div_with_logits")),
)
_DTYPES: Final = ("float32", "float64", "bfloat16")
_CLASSES: Final = (1000, 32000)
_ROWS: Final = 4
_EPSILONS: Final = tuple(10.0**-k for k in range(9))


def measure(
    libraries: Sequence[str],
    device: str,
    *,
    quick: bool,
    enough: Callable[[], bool],
    progress: Callable[[float, str], None],
) -> dict[str, Any]:
    """Return the errors of all libraries, until it is enough, and how many cases were left out."""
    sizes, epsilons = (_CLASSES[:1], _EPSILONS[::4]) if quick else (_CLASSES, _EPSILONS)
    cases = [
        case
        for case in product(sizes, _DTYPES, _OPERATIONS, epsilons)
        # Of log-probabilities as given, that are close, little is left to be right or wrong.
        if OPERATIONS[case[2]].inputs == "logits" or case[3] == epsilons[0]
    ]
    found: list[dict[str, Any]] = []
    functions: dict[Any, Any] = {}
    for index, (classes, dtype, name, epsilon) in enumerate(cases):
        if enough():
            return {"cells": found, "left": len(cases) - index}
        progress(index / len(cases), f"{name} {dtype}, {classes} classes, ε = {epsilon:.0e}")
        data = make(OPERATIONS[name], dtype, (_ROWS, classes), distance=epsilon)
        if np.array_equal(*data.tile):
            continue  # rounded to the same: there is no divergence to be wrong about
        for each in libraries:
            if supports(LIBRARIES[each], dtype) is None:
                found += _errors(each, device, data, functions)
    return {"cells": found, "left": 0}


def _errors(name: str, device: str, data: Data, functions: dict[Any, Any]) -> list[dict[str, Any]]:
    library = LIBRARIES[name]
    found = []
    for kernel in library.kernels():
        record = {
            "library": name,
            "kernel": kernel,
            "operation": data.operation.name,
            "dtype": data.dtype,
            "classes": data.shape[1],
            "epsilon": data.origin[1],
            "error": None,
            "gradient_error": None,
            "target": target(data),
            "within": False,
            "reason": None,
        }
        key = (name, kernel, data.operation.name, data.dtype, data.shape)
        try:
            with settings(library, data.dtype, kernel):
                if key not in functions:  # one for all ε, so that it is compiled once
                    functions[key] = library.own(data.operation, "gradient", library.modes[0])
                x, y = (library.put(each, device) for each in (data.input, data.target))
                value, gradient = functions[key](x, y)
                error, slope = data.errors(library.get(value), library.get(gradient))
            limits = (record["target"], _gradient_target(data))
            within = error <= limits[0] and slope is not None and slope <= limits[1]
            record |= {"error": error, "gradient_error": slope, "within": within}
        except BackendError:
            record["reason"] = _fault(kernel)
            if record["reason"] is None:
                continue  # kldiv says that this kernel does not do this
        except Exception as error:  # noqa: BLE001 - whatever a library raises; the others go on
            record["reason"] = brief(error)
        found.append(record)
    return found


def _fault(kernel: str) -> str | None:
    """Return why a kernel could not run, if it could not, and let the next ones be tried."""
    if kernel not in {"cpu", "cuda", "pallas", "triton"}:
        return None
    technology = getattr(import_module(f"kldiv.kernels.{kernel}"), kernel.upper())
    found: str | None = technology.failure
    technology.failure = None
    return found


def target(data: Data) -> float:
    """Return the relative error that kldiv's value may have."""
    unit = UNIT[data.dtype]
    if data.dtype in {"bfloat16", "float16"}:
        return 2 * unit  # the loss is rounded to the inputs' dtype
    if data.operation.inputs == "logits":
        return TARGETS[data.dtype]
    # Its arrays are taken as they are: each term may lose 4 u of its parts.
    x, y = (each.astype(np.float64) for each in data.tile)
    with np.errstate(divide="ignore"):
        parts = y * (np.abs(np.where(y > 0, np.log(np.where(y > 0, y, 1)), 0)) + np.abs(x))
    return max(unit, 4 * unit * float(parts.sum()) / abs(data.exact()))


def _gradient_target(data: Data) -> float:
    return 2 * UNIT[data.dtype] if data.dtype not in TARGETS else TARGETS[data.dtype]


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Return the worst errors as HTML, a line for each library, kernel, operation and dtype."""
    lines: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        key = (cell["library"], cell["kernel"], cell["operation"], cell["dtype"])
        lines.setdefault(key, []).append(cell)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(part)}</td>' for part in key)}"
        f"<td data-n>{show.error(_worst(members, 'error'))}</td>"
        f"<td data-n>{show.error(_worst(members, 'gradient_error'))}</td>{_standing(members)}</tr>"
        for key, members in lines.items()
    )
    heads = ("library", "kernel", "operation", "dtype", "worst value", "worst gradient", "")
    head = "".join(f"<td>{each}</td>" for each in heads)
    return (
        "<section><h2>Accuracy</h2><p>Relative errors, the worst over sizes and over distances "
        "of 1 to 1e-8 between the logits of student and teacher.</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>\n"
    )


def _worst(cells: Sequence[dict[str, Any]], name: str) -> float | None:
    return max((cell[name] for cell in cells if cell[name] is not None), default=None)


def _standing(cells: Sequence[dict[str, Any]]) -> str:
    bad = [cell for cell in cells if not cell["within"]]
    if not bad:
        return "<td>within the targets"
    reason = next((cell["reason"] for cell in bad if cell["reason"]), None)
    return f'<td class="failed">{len(bad)} beyond{": " + escape(reason) if reason else ""}'
