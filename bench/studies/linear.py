"""`linear_kl_div` beside the same loss of whole logits: time and memory, forward and gradient.

    python -m bench.studies.linear [--rounds N] [--rows N] [--features N] [--classes N]

Both sides of a table take turns, so that a machine whose speed drifts slows both alike; ratios are
medians over the rounds. Each library has a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv

from ..harness.memory import headline, peaks
from ..harness.timer import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable

    Calls = dict[str, Callable[[], Any]]

LIBRARIES = ("torch", "jax")


def inputs(options: argparse.Namespace) -> list[np.ndarray]:
    """Return hidden states and weights of a student and a teacher, whose logits have variance 1."""
    random = np.random.default_rng(0)
    shapes = 2 * [(options.rows, options.features), (options.classes, options.features)]
    arrays = [random.standard_normal(shape, dtype=np.float32) for shape in shapes]
    scale = np.float32(options.features**-0.5)
    return [
        array * scale if of_weight else array
        for array, of_weight in zip(arrays, (0, 1, 0, 1), strict=True)
    ]


def whole(hidden: Any, weight: Any, target_hidden: Any, target_weight: Any) -> Any:
    """Return the loss from whole logits."""
    return kldiv.kl_div_with_logits(hidden @ weight.T, target_hidden @ target_weight.T)


def torch_calls(arrays: list[np.ndarray]) -> Calls:
    """Return the calls in eager PyTorch, with the gradients of the student's two."""
    import torch
    from torch.nn import functional as F  # noqa: N812 - its usual name

    given = tuple(map(torch.from_numpy, arrays))
    student = [tensor.requires_grad_() for tensor in given[:2]]

    def usual(hidden: Any, weight: Any, target_hidden: Any, target_weight: Any) -> Any:
        pair = (
            F.log_softmax(h @ w.T, -1)
            for h, w in ((hidden, weight), (target_hidden, target_weight))
        )
        return F.kl_div(*pair, log_target=True, reduction="batchmean")

    def call(loss: Callable[..., Any]) -> None:
        for tensor in student:
            tensor.grad = None
        loss(*given).backward()

    losses = {"linear_kl_div": kldiv.linear_kl_div, "whole logits": whole, "usual": usual}
    return {name: partial(call, loss) for name, loss in losses.items()}


def jax_calls(arrays: list[np.ndarray]) -> Calls:
    """Return the calls under `jax.jit`."""
    import jax

    given = tuple(map(jax.numpy.asarray, arrays))

    def usual(hidden: Any, weight: Any, target_hidden: Any, target_weight: Any) -> Any:
        s, t = (
            jax.nn.log_softmax(h @ w.T)
            for h, w in ((hidden, weight), (target_hidden, target_weight))
        )
        return jax.numpy.mean(jax.numpy.sum(jax.numpy.exp(t) * (t - s), -1))

    losses = {"linear_kl_div": kldiv.linear_kl_div, "whole logits": whole, "usual": usual}
    compiled = {name: jax.jit(jax.value_and_grad(loss, (0, 1))) for name, loss in losses.items()}
    return {
        name: lambda function=function: jax.block_until_ready(function(*given))
        for name, function in compiled.items()
    }


def table(library: str, options: argparse.Namespace) -> None:
    """Measure one library and print its table."""
    calls = {"torch": torch_calls, "jax": jax_calls}[library](inputs(options))
    held = {}
    for name, call in calls.items():
        call()  # compiles
        held[name] = headline(peaks(call, "rss", "cpu", (None, None)))
    times = in_turns(calls, options.rounds)
    print(f"{library}: {options.rows} x {options.features}, {options.classes} classes, float32")
    ours = times["linear_kl_div"]
    for name, each in times.items():
        ratio = median(a / b for a, b in zip(each, ours, strict=True))
        peak = "unknown" if held[name] is None else f"{held[name][0] / 2**20:6.0f} MiB"
        print(f"  {median(each):7.3f} s  {ratio:5.2f} x  {peak}  {name}", flush=True)


def main() -> None:
    """Measure each library in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rounds": 5, "rows": 1024, "features": 512, "classes": 32000}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--library", choices=LIBRARIES, help="this one, in this process")
    options = parser.parse_args()
    if options.library:
        table(options.library, options)
        return
    for library in LIBRARIES:
        program = [sys.executable, "-m", "bench.studies.linear", *sys.argv[1:]]
        subprocess.run([*program, "--library", library], check=True)  # noqa: S603 - this program


if __name__ == "__main__":
    main()
