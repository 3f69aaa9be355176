"""How wrong each library's divergence is, as student and teacher come together.

    python -m bench.studies.accuracy [--out docs/images/accuracy.png]
                                     [--json bench/results/accuracy.json]

The student's logits are the teacher's plus ε times noise, ε = 1 … 1e-8, rounded to the working
dtype.  The truth is that of the logits so given: mpmath evaluates the definition on them, with its
digits doubled until nothing changes.  A full run takes some ten minutes, nearly all of it there.
``--quick`` takes some twenty seconds and writes only the files that are named.  ``--replot`` does
not measure: it draws the numbers of the JSON, and prints the tables of docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv

from ..harness.machine import versions
from ..harness.operations import SPREAD, TARGETS
from ..harness.records import dumps_lines, write_text
from ..report.markdown import markdown

try:
    import mpmath

    from ..harness.progress import bar
except ImportError:
    sys.exit('this script needs mpmath and rich: pip install "kldiv[test]"')

from ..oracle.exact import converged, js, kl, numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Row = np.ndarray[Any, Any]
    Method = Callable[[Row, Row], float]
    """From the student's and the teacher's logits, one row, to the divergence."""
    Methods = dict[tuple[str, str], Method]
    """By the divergence, KL or JS, and a name."""
    Results = dict[str, Any]

ROOT = Path(__file__).parents[2]
EPSILONS = tuple(10.0**-k for k in range(9))
DTYPES = ("float32", "float64")


# --- the truth ------------------------------------------------------------------------------------


def truth(s: Row, t: Row) -> dict[str, Any]:
    """Return KL(P‖Q) and JS as mpmath numbers, right to 25 digits."""

    def both() -> list[list[Any]]:
        logits = numbers(s), numbers(t)
        return [[kl(*logits)[0], js(*logits, mpmath.mpf("0.5"))[0]]]

    (found,) = converged(both)
    return dict(zip(("KL", "JS"), found, strict=True))


# --- the cases ------------------------------------------------------------------------------------


def on_numpy() -> Methods:
    """Return kldiv on NumPy, and Keras' formula."""

    def keras(s: Row, t: Row) -> float:
        # keras.losses.KLDivergence, written out, on its softmax; 1e-7 is keras.config.epsilon().
        p, q = (np.clip(softmax(logits), 1e-7, 1.0) for logits in (t, s))
        return float((p * np.log(p / q)).sum())

    def softmax(logits: Row) -> Row:
        weights: Row = np.exp(logits - logits.max())
        weights /= weights.sum()
        return weights

    return {
        ("KL", "kldiv, NumPy"): lambda s, t: float(kldiv.kl_div_with_logits(s, t)),
        ("KL", "Keras' formula"): keras,
        ("JS", "kldiv, NumPy"): lambda s, t: float(kldiv.js_div_with_logits(s, t)),
    }


def on_torch() -> Methods:
    """Return kldiv on PyTorch, and PyTorch."""
    import torch
    from torch.nn import functional as F  # noqa: N812 - its usual name

    def own(loss: Callable[..., Any], s: Row, t: Row) -> float:
        return float(loss(torch.from_numpy(s), torch.from_numpy(t)))

    def peer(s: Any, t: Any) -> Any:
        log_q, log_p = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    return {
        ("KL", "kldiv, torch"): partial(own, kldiv.kl_div_with_logits),
        ("KL", "torch"): partial(own, peer),
        ("JS", "kldiv, torch"): partial(own, kldiv.js_div_with_logits),
    }


def on_jax() -> Methods:
    """Return kldiv on JAX, compiled."""
    import jax

    def own(loss: Callable[..., Any]) -> Method:
        compiled = jax.jit(loss)

        def call(s: Row, t: Row) -> float:
            with jax.enable_x64(True):  # noqa: FBT003 - without it float64 becomes float32
                return float(compiled(s, t))

        return call

    return {
        ("KL", "kldiv, JAX jit"): own(kldiv.kl_div_with_logits),
        ("JS", "kldiv, JAX jit"): own(kldiv.js_div_with_logits),
    }


def on_optax() -> Methods:
    """Return Optax."""
    import jax
    import optax

    @jax.jit
    def compiled(s: Any, t: Any) -> Any:
        return optax.losses.kl_divergence(jax.nn.log_softmax(s), jax.nn.softmax(t))

    def call(s: Row, t: Row) -> float:
        with jax.enable_x64(True):  # noqa: FBT003
            return float(compiled(s, t))

    return {("KL", "optax"): call}


def on_scipy() -> Methods:
    """Return SciPy's functions: three of KL, one of JS."""
    from scipy import special, stats
    from scipy.spatial import distance

    def of_probabilities(function: Callable[..., Any], s: Row, t: Row) -> float:
        return float(np.sum(function(special.softmax(t), special.softmax(s))))

    def jensenshannon(p: Row, q: Row) -> Any:
        with np.errstate(invalid="ignore"):  # the root of a negative sum
            return distance.jensenshannon(p, q) ** 2

    return {
        ("KL", "scipy.special.kl_div"): partial(of_probabilities, special.kl_div),
        ("KL", "scipy.special.rel_entr"): partial(of_probabilities, special.rel_entr),
        ("KL", "scipy.stats.entropy"): partial(of_probabilities, stats.entropy),
        ("JS", "scipy jensenshannon²"): partial(of_probabilities, jensenshannon),
    }


LIBRARIES = {
    "numpy": on_numpy,
    "torch": on_torch,
    "jax": on_jax,
    "optax": on_optax,
    "scipy": on_scipy,
}


def methods() -> tuple[Methods, dict[str, str]]:
    """Return the methods that can be measured here, kldiv first, and the others with the reason."""
    found: Methods = {}
    skipped = {}
    for name, load in LIBRARIES.items():
        try:
            found |= load()
        except ImportError as error:
            skipped[name] = f"skipped, not installed ({error})"
    order = sorted(found, key=lambda key: (key[0] != "KL", not key[1].startswith("kldiv")))
    return {key: found[key] for key in order}, skipped


# --- the measurement ------------------------------------------------------------------------------


def pair(classes: int, seed: int, epsilon: float, dtype: str) -> tuple[Row, Row]:
    """Return the logits of a student and a teacher, as a user would hold them."""
    generator = np.random.default_rng([classes, seed])
    teacher, noise = generator.normal(0.0, SPREAD, classes), generator.normal(0.0, 1.0, classes)
    return (teacher + epsilon * noise).astype(dtype), teacher.astype(dtype)


def relative_error(value: float, exact: Any) -> float:
    """Return |value − exact|/exact; infinite for NaN."""
    if not math.isfinite(value):
        return math.inf
    return float(abs(mpmath.mpf(value) - exact) / exact)


def measure(sizes: Sequence[int], seeds: int) -> Results:
    """Measure all methods on all cases."""
    found, skipped = methods()
    cells, done, total = [], 0, len(DTYPES) * len(EPSILONS) * seeds * sum(sizes)
    with bar() as told:
        for classes, dtype, epsilon in product(sizes, DTYPES, EPSILONS):
            values: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in found}
            for seed in range(seeds):
                s, t = pair(classes, seed, epsilon, dtype)
                exact = truth(s, t)
                for (divergence, name), method in found.items():
                    value = method(s, t)
                    error = relative_error(value, exact[divergence])
                    values[divergence, name].append((value, error))
                done += classes
                told(done / total, f"{dtype}, V = {classes}, ε = {epsilon:.0e}")
            cells += [
                cell(key, dtype, classes, epsilon, measured) for key, measured in values.items()
            ]
    return {
        "about": "relative errors by bench/studies/accuracy.py; null stands for the error of a NaN",
        "settings": {"sizes": [*sizes], "seeds": seeds, "spread": SPREAD},
        "versions": _versions(),
        "skipped": skipped,
        "cells": cells,
    }


def cell(
    key: tuple[str, str],
    dtype: str,
    classes: int,
    epsilon: float,
    measured: Sequence[tuple[float, float]],
) -> Results:
    """Return the summary of one method on the seeds of one case."""
    errors = [error for _, error in measured]
    return {
        "divergence": key[0],
        "method": key[1],
        "dtype": dtype,
        "classes": classes,
        "epsilon": epsilon,
        "median": _or_none(median(errors)),
        "worst": _or_none(max(errors)),
        "not_positive": sum(not value > 0 for value, _ in measured),  # NaN included
        "results": len(measured),
    }


def _or_none(error: float) -> float | None:
    # JSON has no infinity; six digits are more than an error has.
    return float(f"{error:.6g}") if math.isfinite(error) else None


def _versions() -> dict[str, str]:
    """Return the versions of all that takes part."""
    here = versions()
    names = ("kldiv", "numpy", "mpmath", "torch", "jax", "optax", "scipy")
    found = {name: here.get(name, "not installed") for name in names}
    return {"python": here["python"], "machine": platform.machine(), **found}


# --- the report -----------------------------------------------------------------------------------


def write(path: Path, results: Results) -> None:
    """Write the results all at once: an interrupted run leaves an earlier file as it was."""
    write_text(path, dumps_lines(results))


def table(results: Results, dtype: str, divergence: str) -> str:
    """Return the worst errors over seeds and sizes as Markdown, one line per method."""
    cells = [c for c in results["cells"] if (c["dtype"], c["divergence"]) == (dtype, divergence)]
    head = ["ε", *(number(epsilon) for epsilon in EPSILONS), "≤ 0 or NaN"]
    lines = []
    for method in dict.fromkeys(c["method"] for c in cells):
        mine = [c for c in cells if c["method"] == method]
        worst = (_worst(c for c in mine if c["epsilon"] == epsilon) for epsilon in EPSILONS)
        wrong, all_ = (sum(c[key] for c in mine) for key in ("not_positive", "results"))
        lines.append([method, *map(number, worst), f"{wrong} of {all_}"])
    return markdown(head, lines)


def _worst(cells: Iterable[Results]) -> float:
    return max(math.inf if c["worst"] is None else c["worst"] for c in cells)


def number(error: float) -> str:
    """Return a number as short as the table wants it."""
    if error == math.inf:
        return "NaN"
    if error == 0 or 0.01 <= error < 999.5:
        return f"{error:.0f}" if error >= 9.95 else f"{error:.2g}"
    digits, exponent = f"{error:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def page(results: Results) -> str:
    """Return the tables as docs/accuracy.md shows them."""
    names = {"KL": "D(P‖Q)", "JS": "Jensen-Shannon"}
    return "\n\n".join(
        f"{names[divergence]}, {dtype}:\n\n{table(results, dtype, divergence)}"
        for dtype, divergence in product(DTYPES, names)
    )


def beyond(results: Results) -> list[str]:
    """Return where kldiv misses its targets."""
    return [
        f"{c['method']}, {c['divergence']}, {c['dtype']}, V = {c['classes']}, "
        f"ε = {c['epsilon']:.0e}: {c['worst']}, {c['not_positive']} not positive"
        for c in results["cells"]
        if c["method"].startswith("kldiv")
        and (c["worst"] is None or c["worst"] > TARGETS[c["dtype"]] or c["not_positive"])
    ]


LOOKS = {
    # Okabe and Ito's colours, which the colour-blind can tell apart, and markers beside.
    "Keras' formula": ("#cc79a7", "D"),
    "torch": ("#d55e00", "o"),
    "optax": ("#e69f00", "^"),
    "scipy.special.rel_entr": ("#56b4e9", "v"),
    "scipy.stats.entropy": ("#777777", "s"),
    "scipy.special.kl_div": ("#009e73", "P"),
}
OWN = "#0050a0"
INK, FAINT = "#222222", "#8a8a8a"


def draw(results: Results, out: Path) -> None:
    """Draw median errors at the largest size against ε; bands reach up to the worst."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    classes, seeds = max(results["settings"]["sizes"]), results["settings"]["seeds"]
    style: Any = {
        "font.size": 11,
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        figure, panels = plt.subplots(1, 2, figsize=(13.6, 6.6), sharey=True)
        figure.subplots_adjust(left=0.047, right=0.872, top=0.78, bottom=0.095, wspace=0.38)
        for axes, dtype in zip(panels, DTYPES, strict=True):
            _panel(axes, [c for c in results["cells"] if c["classes"] == classes], dtype)
        figure.text(
            0.047,
            0.935,
            "Near P = Q the usual formulas lose every digit; kldiv keeps them",
            fontsize=18,
            fontweight="bold",
        )
        figure.text(
            0.047,
            0.885,
            f"Student logits = teacher logits + ε·noise, {classes} classes.  "
            f"Lines: median of {seeds} seeds; bands: up to the worst.",
            color="#555555",
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150, facecolor="white")
        plt.close(figure)


def _panel(axes: Any, cells: Sequence[Results], dtype: str) -> None:
    cells = [c for c in cells if c["dtype"] == dtype]
    axes.set(xscale="log", yscale="log", xlim=(1.5, 0.6e-8), ylim=(1e-17, 1e9))
    axes.set_xlabel("ε        closer  →", loc="left", labelpad=6)
    axes.set_title(dtype, loc="left", fontsize=13, fontweight="bold", pad=12)
    axes.set_title("relative error of D(P‖Q)", loc="right", fontsize=11, color="#555555", pad=12)
    axes.set_xticks(EPSILONS, [_power(-k) for k in range(len(EPSILONS))])
    axes.set_yticks([10.0**k for k in range(-15, 10, 3)], [_power(k) for k in range(-15, 10, 3)])
    axes.minorticks_off()
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axhspan(1.0, 1e9, color="#f6ece6", linewidth=0, zorder=0)
    axes.text(1.2, 1e8, "not one digit is right", color="#a0522d", fontsize=10.5, va="center")

    ends: list[tuple[float, str, str]] = []
    for method, (color, marker) in LOOKS.items():
        mine = [c for c in cells if c["method"] == method]
        if not mine:
            continue
        x, middle, worst = _curve(mine)
        axes.fill_between(x, middle, worst, color=color, alpha=0.1, linewidth=0)
        axes.plot(x, middle, color=color, marker=marker, markersize=4.5, linewidth=1.7)
        ends.append((middle[-1], method, color))
    for divergence, look in (("JS", (0, (1.2, 1.6))), ("KL", "-")):
        mine = [
            c for c in cells if c["method"].startswith("kldiv") and c["divergence"] == divergence
        ]
        x, middle, worst = _curve(mine)
        axes.fill_between(x, middle, worst, color=OWN, alpha=0.13, linewidth=0)
        axes.plot(x, middle, color=OWN, linewidth=3.0, linestyle=look, zorder=4)
        if divergence == "KL":
            ends.append((middle[-1], "kldiv", OWN))
    _label(axes, ends)


def _curve(cells: Sequence[Results]) -> tuple[list[float], list[float], list[float]]:
    """Return ε, medians and worst errors, each the worst over the methods given; all drawable."""
    epsilons = sorted({c["epsilon"] for c in cells}, reverse=True)

    def series(key: str) -> list[float]:
        return [
            max(1e9 if c[key] is None else max(c[key], 1e-17) for c in cells if c["epsilon"] == e)
            for e in epsilons
        ]

    return epsilons, series("median"), series("worst")


def _label(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each line beside its end, at a distance from the next name."""
    beside, apart = 0.28e-8, 1.25  # the latter in decades
    places: list[float] = []
    ordered = sorted(ends)
    for y, _, _ in ordered:
        places.append(max(math.log10(y), places[-1] + apart if places else -math.inf))
    # A crowd that was pushed upwards comes back by half.
    groups: list[list[int]] = []
    for index, place in enumerate(places):
        if groups and place - places[groups[-1][-1]] <= apart * 1.001:
            groups[-1].append(index)
        else:
            groups.append([index])
    for group in groups:
        pushed = sum(places[i] - math.log10(ordered[i][0]) for i in group) / len(group)
        for i in group:
            places[i] -= pushed
    for (y, name, color), place in zip(ordered, places, strict=True):
        own = name == "kldiv"
        library, _, function = name.rpartition(".")
        short = f"{function} ({library.partition('.')[0]})" if library else name
        axes.annotate(
            "kldiv" if own else short,
            xy=(EPSILONS[-1], y),
            xytext=(beside, 10.0**place),
            color=color,
            fontsize=14 if own else 10.5,
            fontweight="bold" if own else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
        if own:
            axes.annotate(
                "NumPy, torch, JAX\n(dotted: JS)",
                xy=(beside, 10.0**place),
                xytext=(0, -12),
                textcoords="offset points",
                color=color,
                fontsize=10,
                va="top",
                annotation_clip=False,
            )


def _power(k: int) -> str:
    return "1" if k == 0 else f"$10^{{{k}}}$".replace("-", "−")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, draw and print; return 1 where kldiv misses its targets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="the picture (docs/images/accuracy.png)")
    parser.add_argument("--json", type=Path, help="the results (bench/results/accuracy.json)")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="V = 1000 and two seeds only")
    parser.add_argument("--replot", action="store_true", help="read the results, do not measure")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    if not options.quick:
        options.out = options.out or ROOT / "docs" / "images" / "accuracy.png"
        options.json = options.json or ROOT / "bench" / "results" / "accuracy.json"

    if options.replot:
        results = json.loads(options.json.read_text(encoding="utf-8"))
    else:
        sizes, seeds = ([1000], 2) if options.quick else ([1000, 32000], options.seeds)
        try:
            results = measure(sizes, seeds)
        except KeyboardInterrupt:
            print("interrupted: nothing is written")
            return 130
        if options.json:
            write(options.json, results)
    print(page(results))
    for name, why in results["skipped"].items():
        print(f"{name}: {why}")
    if options.out:
        draw(results, options.out)
    misses = beyond(results)
    print("\n".join(["kldiv misses its targets:", *misses] if misses else ["kldiv: all in target"]))
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
