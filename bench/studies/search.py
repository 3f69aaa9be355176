"""Hill-climb for the worst error of public functions, against mpmath.

    python -m bench.studies.search [--minutes N] [--group NAME] [--only NAME] [--library NAME ...]
                                   [--order N] [--seed N] [--json FILE]

Errors are in units of roundoff, scaled by the condition: of a value |D| + Σ |θᵢ ∂D/∂θᵢ|, the most
that rounding of the parameters moves it; of a gradient's element Gᵢ = |∂ᵢD| + Σ |θⱼ ∂ᵢ∂ⱼD|;
of a Hessian's element √(∂ᵢ∂ᵢD ∂ⱼ∂ⱼD) + Gᵢ/|θⱼ| + Gⱼ/|θᵢ|. Every target has the same time; the worst
inputs are printed as they are found to be written into a test.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import mpmath
import numpy as np

from ..harness.progress import bar
from ..harness.records import write_text
from ..report.markdown import markdown
from .searching import LIBRARIES, Found, Target, draw, mutate
from .targets import GROUPS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .searching import Floats

    Line = dict[str, Any]

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}
BATCH, KEPT, FRESH = 32, 8, 0.3  # cases at once, the worst that are mutated, the part drawn anew
PARTS = ("value", "gradient", "Hessian")
HESSIAN_UNITS = 1e4  # a few digits lost: curvature is used for steps, not for results


class Truth(NamedTuple):
    """The exact numbers of a case, and the condition of each."""

    value: float
    gradient: Floats
    hessian: Floats
    value_scale: float
    gradient_scale: Floats
    hessian_scale: Floats


def truth(target: Target, case: Floats) -> Truth | None:
    """Return the truth about a case, or None where it is no finite number."""
    k, h = len(case), mpmath.mpf(10) ** -18
    with mpmath.workdps(target.digits):
        at = [mpmath.mpf(float(x)) for x in case]
        steps = [h * max(abs(x), mpmath.mpf(10) ** -30) for x in at]

        def moved(*changes: tuple[int, int]) -> Any:
            numbers = list(at)
            for i, sign in changes:
                numbers[i] = numbers[i] + sign * steps[i]
            return target.truth(*numbers)

        try:
            value = moved()
            up, down = ([moved((i, sign)) for i in range(k)] for sign in (1, -1))
            gradient = [(a - b) / (2 * e) for a, b, e in zip(up, down, steps, strict=True)]
            hessian = np.empty((k, k), object)
            for i in range(k):
                hessian[i, i] = (up[i] - 2 * value + down[i]) / steps[i] ** 2
                for j in range(i):
                    corners = [moved((i, a), (j, b)) * a * b for a, b in product((1, -1), repeat=2)]
                    hessian[i, j] = hessian[j, i] = sum(corners) / (4 * steps[i] * steps[j])
        except (ZeroDivisionError, ValueError):
            return None
        if not all(mpmath.isfinite(x) for x in (value, *gradient, *hessian.ravel())):
            return None
        slopes, bends = np.array(gradient, float), hessian.astype(float)
    sizes = abs(case)
    roots = np.sqrt(abs(np.diagonal(bends)))
    parts = 1.0 / np.maximum(sizes, 1e-30)
    of_slopes = abs(slopes) + abs(bends) @ sizes
    if target.whole:
        of_slopes = np.max(of_slopes * sizes) * parts
    whole = abs(float(value)) + (sizes * abs(slopes)).sum()
    per_number = np.outer(of_slopes, parts)
    # Differences in 100 digits hold no slope of 1e-82 of the others, no bend of 1e-64.
    return Truth(
        float(value),
        slopes,
        bends,
        whole,
        of_slopes + 1e-60 * whole * parts,
        np.outer(roots, roots) + per_number + per_number.T + 1e-42 * whole * np.outer(parts, parts),
    )


def errors(
    found: Found, index: int, true: Truth, dtype: str, *, signed: bool = False
) -> list[float]:
    """Return the error of value, gradient and Hessian of a case in scaled units."""
    tiny = float(np.finfo(dtype).tiny) / UNIT[dtype]
    largest = float(np.finfo(dtype).max)
    parts = zip(
        found, (true.value, true.gradient, true.hessian),
        (true.value_scale, true.gradient_scale, true.hessian_scale), strict=True,
    )  # fmt: skip
    worst = []
    for given, exact, scale in parts:
        if given is None or abs(true.value) > largest / 16:
            worst.append(0.0)
            continue
        fits = abs(np.asarray(exact)) < largest / 16
        with np.errstate(all="ignore"):
            off = abs(given[index] - exact) / (UNIT[dtype] * (scale + tiny))
        off = np.where(np.isfinite(given[index]), off, math.inf)
        worst.append(float(np.max(np.where(fits, off, 0.0))))
    if not signed and abs(true.value) < largest / 16 and found.value[index] < 0 <= true.value:
        worst[0] = math.inf
    return worst


class Worst(NamedTuple):
    """The worst case of a part of a target, on a library in a dtype."""

    error: float
    case: list[float]
    exact: float
    given: float


def climb(
    target: Target, libraries: Sequence[str], dtype: str, until: float, random: np.random.Generator
) -> tuple[int, dict[tuple[str, str], Worst]]:
    """Search one target until then; return the number of cases and each library's worst parts."""
    pool: list[tuple[float, Floats]] = []
    worst: dict[tuple[str, str], Worst] = {}
    tried = 0
    while not tried or monotonic() < until:
        cases = [
            draw(target, random, dtype)
            if not pool or random.random() < FRESH
            else mutate(target, pool[random.integers(len(pool))][1], random, dtype)
            for _ in range(BATCH)
        ]
        known = [(case, true) for case in cases if (true := truth(target, case)) is not None]
        if not known:
            continue
        filled = np.array([known[i % len(known)][0] for i in range(BATCH)])  # one shape: JAX
        with np.errstate(all="ignore"):
            found = {library: LIBRARIES[library](target, filled, dtype) for library in libraries}
        tried += len(known)
        for index, (case, true) in enumerate(known):
            score = 0.0
            for library, each in found.items():
                off = errors(each, index, true, dtype, signed=target.signed)
                score = max(score, off[0], off[1], off[2] * target.units / HESSIAN_UNITS)
                for part, error in zip(PARTS, off, strict=True):
                    key = library, part
                    if key not in worst or error > worst[key].error:
                        given = float(each.value[index])
                        worst[key] = Worst(error, case.tolist(), true.value, given)
            pool.append((score, case))
        pool = sorted(pool, key=lambda each: -each[0])[:KEPT]
    return tried, worst


def usable(library: str) -> bool:
    """Return whether a library is installed."""
    return find_spec(library) is not None


def search(options: argparse.Namespace, report: Callable[[float, str], None]) -> list[Line]:
    """Search all that is asked for, each for the same time."""
    targets = [
        (group, replace(target, order=min(target.order, options.order)))
        for group, targets in GROUPS.items()
        if options.group in {None, group}
        for target in targets()
        if options.only in {None, target.name}
    ]
    wanted = options.library or LIBRARIES
    installed = [name for name in LIBRARIES if name in wanted and usable(name)]
    jobs = list(product(targets, UNIT))
    start, lines = monotonic(), []
    for number, ((group, target), dtype) in enumerate(jobs):
        report(number / len(jobs), f"{target.name}, {dtype}")
        until = start + 60 * options.minutes * (number + 1) / len(jobs)
        random = np.random.default_rng([options.seed, number])
        libraries = [name for name in installed if name in target.libraries]
        if not libraries:
            continue
        try:
            tried, worst = climb(target, libraries, dtype, until, random)
        except Exception as error:  # noqa: BLE001 - a finding too, and the others go on
            print(f"{target.name}, {dtype}: {type(error).__name__}: {error}", flush=True)
            continue
        for (library, part), found in worst.items():
            limit = HESSIAN_UNITS if part == "Hessian" else target.units
            line = {
                "group": group, "target": target.name, "library": library, "dtype": dtype,
                "part": part, "tried": tried, "units": found.error, "limit": limit,
                "case": found.case, "exact": found.exact, "given": found.given,
            }  # fmt: skip
            lines.append(line)
            if found.error > limit:
                print(
                    f"{target.name}, {library} {dtype}, {part}: {found.error:.3g} units (limit "
                    f"{limit:g}) at {found.case}: {found.given!r}, exactly {found.exact!r}",
                    flush=True,
                )
    return lines


def _key(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in ("group", "part", "dtype"))


def summary(lines: list[Line]) -> str:
    """Return the worst of each group, library, dtype and part as a Markdown table."""
    rows: dict[tuple[str, ...], Line] = {}
    for line in lines:
        key = _key(line)
        if key not in rows or line["units"] > rows[key]["units"]:
            rows[key] = line
    text = []
    for key, line in rows.items():
        cases = sum(each["tried"] for each in lines if _key(each) == key)
        where = f"{line['target']} on {line['library']}"
        text.append([*key, f"{cases:,}", f"{line['units']:.3g}", where])
    return markdown(["group", "part", "dtype", "cases", "worst", "where"], text)


def main(arguments: list[str] | None = None) -> int:
    """Search, print the worst, and return 1 where something is beyond its limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.search", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--group", choices=list(GROUPS))
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("--library", choices=list(LIBRARIES), nargs="+")
    parser.add_argument(
        "--order", type=int, default=2, help="derivatives; JAX compiles second ones for minutes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    with bar() as report:
        lines = search(options, report)
    print(summary(lines))
    if options.json:
        write_text(options.json, json.dumps(lines, indent=1))
    return int(any(line["units"] > line["limit"] for line in lines))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
