"""Measure kldiv's share of a small call and of an import, beside PyTorch's `F.kl_div`, in one run.

    python -m bench.studies.overhead [--rounds N]

Rounds of all candidates are interleaved, so that a machine whose speed drifts slows all alike; the
ratios are medians over the rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812 - its usual name

import kldiv

from ..harness.estimates import paired_ratio
from ..harness.timer import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable


def backward(loss: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> None:
    """Compute a loss and its gradient."""
    loss(x, y, reduction="sum").backward()
    x.grad = y.grad = None


def import_seconds(code: str) -> float:
    """Return the time that a fresh interpreter takes for ``code``."""
    script = f"import time; s = time.perf_counter(); {code}; print(time.perf_counter() - s)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    return float(run.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds

    generator = torch.Generator().manual_seed(0)
    x = torch.log_softmax(torch.randn(8, 10, generator=generator), -1)
    y = torch.softmax(torch.randn(8, 10, generator=generator), -1)
    x_tracked, y_tracked = x.clone().requires_grad_(), y.clone().requires_grad_()
    x_numpy, y_numpy = x.numpy(), y.numpy()

    peer = "F.kl_div, forward"
    peer_input = "F.kl_div, forward + backward in the input"
    peer_both = "F.kl_div, forward + backward in both"
    calls: dict[str, tuple[Callable[[], object], str]] = {
        peer: (partial(F.kl_div, x, y, reduction="sum"), peer),
        "kldiv on torch, forward": (partial(kldiv.kl_div, x, y, reduction="sum"), peer),
        "kldiv on NumPy, forward": (partial(kldiv.kl_div, x_numpy, y_numpy, reduction="sum"), peer),
        peer_input: (partial(backward, F.kl_div, x_tracked, y), peer_input),
        "kldiv on torch, forward + backward in the input": (
            partial(backward, kldiv.kl_div, x_tracked, y),
            peer_input,
        ),
        peer_both: (partial(backward, F.kl_div, x_tracked, y_tracked), peer_both),
        "kldiv on torch, forward + backward in both": (
            partial(backward, kldiv.kl_div, x_tracked, y_tracked),
            peer_both,
        ),
    }
    times = in_turns({name: call for name, (call, _) in calls.items()}, rounds, sample=0.02)
    print(f"(8, 10) float32, median of {rounds} interleaved rounds")
    for name, (_, base) in calls.items():
        ratio = paired_ratio(times[base], times[name], name).ratio
        print(f"{median(times[name]) * 1e6:8.1f} us  {ratio:5.2f}x  {name}")

    added = [
        import_seconds("import numpy, kldiv") - import_seconds("import numpy")
        for _ in range(rounds)
    ]
    print(f"{median(added) * 1e3:8.1f} ms  import kldiv beyond import numpy")


if __name__ == "__main__":
    main()
