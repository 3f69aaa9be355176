"""Gradient descent on a divergence, with PyTorch, with JAX, and with NumPy alone.

Fits the logits of a softmax to the letter frequencies P of English by minimising the divergence
D(P‖softmax(logits)), from equal logits on.  Every library takes the same steps, those of gradient
descent with momentum; what differs is where the gradient comes from: autograd, `jax.grad`, or
`kldiv.value_and_grad` and one line of chain rule.

    python examples/optimise.py --backend all --out optimise.png

Ctrl-C stops early and draws what there is.
"""

from __future__ import annotations

import argparse
import csv
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Descent = Iterator[tuple[float, np.ndarray[Any, Any]]]

ENGLISH = Path(__file__).parent / "letters" / "english.csv"
MOMENTUM = 0.9


def letters() -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the letters that English uses and their frequencies, the commonest first."""
    with ENGLISH.open(encoding="utf-8", newline="") as file:
        counts = {row["letter"]: float(row["count"]) for row in csv.DictReader(file)}
    used = sorted((name for name in counts if counts[name] > 0), key=counts.__getitem__)[::-1]
    p = np.asarray([counts[name] for name in used])
    return used, p / p.sum()


# Each function yields the divergence and Q after each step, for as long as it is asked.


def descend_numpy(p: np.ndarray[Any, Any], rate: float) -> Descent:
    """Take the loss's gradient from kldiv, and carry it through the softmax by hand."""
    loss = kldiv.value_and_grad(kldiv.KLDivLoss(reduction="sum"))
    logits, velocity = np.zeros_like(p), np.zeros_like(p)
    while True:
        log_q = logits - np.log(np.sum(np.exp(logits)))
        q = np.exp(log_q)
        value, slope = loss(log_q, p)
        yield float(value), q
        gradient = slope - q * np.sum(slope)  # the chain rule of log_softmax
        velocity = MOMENTUM * velocity + gradient
        logits = logits - rate * velocity


def descend_torch(p: np.ndarray[Any, Any], rate: float) -> Descent:
    """Train as any model of PyTorch is trained."""
    import torch  # noqa: PLC0415

    target = torch.from_numpy(p)
    logits = torch.zeros_like(target, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=rate, momentum=MOMENTUM)
    while True:
        log_q = torch.log_softmax(logits, -1)
        loss = kldiv.kl_div(log_q, target, reduction="sum")
        yield loss.item(), log_q.detach().exp().numpy()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def descend_jax(p: np.ndarray[Any, Any], rate: float) -> Descent:
    """Differentiate and compile the whole step."""
    import jax  # noqa: PLC0415

    @jax.jit
    def step(logits: Any, velocity: Any, target: Any) -> tuple[Any, Any, Any, Any]:
        def loss(logits: Any) -> Any:
            return kldiv.kl_div(jax.nn.log_softmax(logits), target, reduction="sum")

        value, gradient = jax.value_and_grad(loss)(logits)
        velocity = MOMENTUM * velocity + gradient
        return value, jax.nn.softmax(logits), logits - rate * velocity, velocity

    logits, velocity = np.zeros_like(p), np.zeros_like(p)
    while True:
        with jax.enable_x64(True):  # noqa: FBT003 - otherwise JAX makes float32 of everything
            value, q, logits, velocity = step(logits, velocity, p)
        yield float(value), np.asarray(q)


DESCENTS: dict[str, Callable[[np.ndarray[Any, Any], float], Descent]] = {
    "numpy": descend_numpy,
    "torch": descend_torch,
    "jax": descend_jax,
}


def draw(
    names: list[str],
    p: np.ndarray[Any, Any],
    fits: dict[str, list[tuple[float, np.ndarray[Any, Any]]]],
    out: Path,
) -> None:
    """Draw the losses, and the last fit against the letter frequencies."""
    import matplotlib as mpl  # noqa: PLC0415 - what is heavy comes last

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    looks = {  # one over the other, so that all stay visible where they agree
        "numpy": {"color": "#9ecae1", "linewidth": 6.0, "linestyle": "-"},
        "torch": {"color": "#d94801", "linewidth": 2.2, "linestyle": "-"},
        "jax": {"color": "#08306b", "linewidth": 1.6, "linestyle": (0, (1.5, 2.5))},
    }
    titles = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX"}
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(12, 4.6), width_ratios=(1, 1.25), layout="constrained"
        )
        for name, fit in fits.items():
            left.plot([value for value, _ in fit], label=titles[name], **looks[name])
        left.set_yscale("log", nonpositive="mask")  # rounding can take a tiny value below 0
        left.set_xlabel("step")
        left.set_ylabel("D(P‖Q) in nats")
        same = ", the same on each library" if len(fits) > 1 else ""
        left.set_title(f"The divergence falls{same}", loc="left")
        left.grid(axis="y", color="#dddddd", linewidth=0.6)
        left.legend(frameon=False)

        fit = next(reversed(fits.values()))
        right.bar(names, 100 * p, color="#9ecae1", label="P: letters of English")
        right.plot(names, 100 * fit[-1][1], "o", color="#d94801", markersize=5, label="Q: the fit")
        right.axhline(100 / len(names), color="#888888", linewidth=0.8, linestyle="--")
        right.annotate(
            "start: all equal",
            (len(names) - 0.5, 100 / len(names)),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color="#666666",
        )
        right.set_ylabel("share in %")
        right.set_title(f"The letters after {len(fit) - 1} steps", loc="left")
        right.margins(x=0.01)
        handles, labels = right.get_legend_handles_labels()
        right.legend(handles[::-1], labels[::-1], frameon=False)  # P first
        figure.savefig(out, dpi=150)
        plt.close(figure)


def choose(backend: str) -> list[str]:
    """Return the libraries to run on, or leave with what is missing."""
    usable = kldiv.available_backends(unusable=True)
    wanted = list(DESCENTS) if backend == "all" else [backend]
    for name in wanted:
        if not usable[name].usable:
            print(f"without {name}: {usable[name].reason}; {usable[name].install}")
    chosen = [name for name in wanted if usable[name].usable]
    if not chosen:
        sys.exit(2)
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the descents and draw them; return 130 if they were interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=[*DESCENTS, "all"], default="all")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1.0, help="the learning rate")
    parser.add_argument("--out", type=Path, default=Path("optimise.png"))
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")

    try:
        from rich.progress import track  # noqa: PLC0415
    except ImportError:
        sys.exit('this example draws with rich and matplotlib: pip install "kldiv[cli]"')

    names, p = letters()
    fits: dict[str, list[tuple[float, np.ndarray[Any, Any]]]] = {}
    interrupted = False
    for name in choose(options.backend):
        fits[name] = []
        try:
            steps = islice(DESCENTS[name](p, options.rate), options.steps + 1)
            for step in track(steps, f"{name:<6}", total=options.steps + 1):
                fits[name].append(step)  # kept one by one, to be there if interrupted
        except KeyboardInterrupt:
            interrupted = True
            break
    fits = {name: fit for name, fit in fits.items() if fit}
    for name, fit in fits.items():
        print(f"{name:<6} D(P‖Q) = {fit[0][0]:.6f} at first, {fit[-1][0]:.3e} after {len(fit) - 1}")
    if fits:
        draw(names, p, fits, options.out)
        print(f"drawn into {options.out}")
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
