"""The CPU kernels beside the memory's own speed, PyTorch, torch.compile and SciPy, in one run.

    python -m bench.studies.cpu_kernels [--rounds N] [--threads N] [--quick] [--only WORDS]

Rounds of all candidates of a table are interleaved, so that a machine whose speed drifts slows all
alike; ratios are medians over the rounds. Writes bench/results/cpu_kernels.json; ``--only``
measures the tables whose title has these words, and leaves the others there as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Calls = dict[str, Callable[[], object]]

RESULTS = Path(__file__).parents[1] / "results" / "cpu_kernels.json"


def arguments() -> argparse.Namespace:
    """Return the options; the number of threads must be known before libraries load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="leave the slow peers out")
    parser.add_argument("--only", default="", help="measure the tables with this in their title")
    return parser.parse_args()


OPTIONS = arguments()
os.environ["KLDIV_NUM_THREADS"] = str(OPTIONS.threads)

import numpy as np  # noqa: E402 - after the number of threads is set
import torch  # noqa: E402
from scipy.special import rel_entr  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812 - its usual name

import kldiv  # noqa: E402

from ..harness.memory import peaks  # noqa: E402
from ..harness.peers import NUMPY, OPTAX  # noqa: E402
from ..harness.progress import bar  # noqa: E402
from ..harness.records import write_text  # noqa: E402
from ..harness.timer import in_turns  # noqa: E402


def backward(loss: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> None:
    """Compute a loss and its gradient."""
    loss(x, y).backward()
    x.grad = None


def usual(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return KL from logits as it is usually written."""
    return F.kl_div(
        F.log_softmax(s, -1), F.log_softmax(t, -1), log_target=True, reduction="batchmean"
    )


def pointwise(dtype: str) -> tuple[Calls, dict[str, tuple[str, str, float]]]:
    """Return the calls of `kl_div`, sum, 1024 × 32000, and the limits of their ratios."""
    random = np.random.default_rng(0)
    shape = (1024, 32000)
    y = random.random(shape, dtype=np.float32).astype(dtype)
    y /= y.sum(-1, keepdims=True)
    x = np.log(random.random(shape, dtype=np.float32) + 1e-6).astype(dtype)
    tx, ty = torch.from_numpy(x), torch.from_numpy(y)
    tracked = tx.clone().requires_grad_()
    out, given = torch.empty_like(tx), np.empty_like(x)
    ours = partial(kldiv.kl_div, reduction="sum")
    eager = partial(F.kl_div, reduction="sum")
    compiled = torch.compile(eager)
    both = kldiv.value_and_grad(ours)
    calls: Calls = {
        "floor": lambda: (tx.sum(), ty.sum()),
        "NumPy": lambda: ours(x, y),
        "torch": lambda: ours(tx, ty),
        "eager": lambda: eager(tx, ty),
        "compiled": lambda: compiled(tx, ty),
    }
    asked = {
        "NumPy / floor": ("NumPy", "floor", -1.15),
        "torch / floor": ("torch", "floor", -1.15),
        "eager / torch": ("eager", "torch", 15.0 if dtype == "float32" else 10.0),
        "compiled / torch": ("compiled", "torch", 1.8),
    }
    if dtype == "float32":
        calls |= {
            "floor, read 2, write 1": lambda: torch.add(tx, ty, out=out),
            "the same, allocated": lambda: torch.add(tx, ty),
            "NumPy with gradient": lambda: both(x, y),
            "NumPy with gradient, memory given": lambda: both(x, y, out=given),
            "torch with gradient": lambda: backward(ours, tracked, ty),
            "torch with gradient, memory given": lambda: both(tx, ty, out=out),
            "eager with gradient": lambda: backward(eager, tracked, ty),
        }
        asked |= {
            **{
                f"{library} with gradient{memory} / floor": (
                    f"{library} with gradient{memory}",
                    "floor, read 2, write 1",
                    -1.3 if memory else -1.6,
                )
                for library in ("NumPy", "torch")
                for memory in ("", ", memory given")
            },
            "eager / torch, with gradient": ("eager with gradient", "torch with gradient", 6.0),
        }
        if not OPTIONS.quick:
            q = np.exp(x)
            calls["SciPy"] = lambda: rel_entr(y, q).sum()
            asked["SciPy / NumPy"] = ("SciPy", "NumPy", 50.0)
    else:
        asked = {key: value for key, value in asked.items() if value[2] > 0}
    return calls, asked


def rows() -> tuple[Calls, dict[str, tuple[str, str, float]]]:
    """Return the calls of KL and JS from logits, mean, 512 × 32000, and their ratios' limits."""
    random = np.random.default_rng(1)
    shape = (512, 32000)
    t = 3 * random.standard_normal(shape, dtype=np.float32)
    s = t + random.standard_normal(shape, dtype=np.float32)
    ts, tt = torch.from_numpy(s), torch.from_numpy(t)
    tracked = ts.clone().requires_grad_()
    compiled = torch.compile(usual)
    ours, mixed = kldiv.kl_div_with_logits, kldiv.js_div_with_logits
    both, of_mixed = kldiv.value_and_grad(ours), kldiv.value_and_grad(mixed)
    memory = np.empty_like(s)
    calls: Calls = {
        "floor": lambda: (ts.sum(), tt.sum()),
        "NumPy": lambda: ours(s, t),
        "torch": lambda: ours(ts, tt),
        "eager": lambda: usual(ts, tt),
        "compiled": lambda: compiled(ts, tt),
        "NumPy with gradient": lambda: both(s, t),
        "torch with gradient": lambda: backward(ours, tracked, tt),
        "eager with gradient": lambda: backward(usual, tracked, tt),
        "compiled with gradient": lambda: backward(compiled, tracked, tt),
        "KL with gradient, memory given": lambda: both(s, t, out=memory),
        "JS": lambda: mixed(s, t),
        "JS with gradient, memory given": lambda: of_mixed(s, t, out=memory),
    }
    return calls, {
        "NumPy / floor": ("NumPy", "floor", -3.2),
        "torch / floor": ("torch", "floor", -3.2),
        "JS / KL": ("JS", "NumPy", -2.0),
        "JS / KL, with gradient, memory given": (
            "JS with gradient, memory given",
            "KL with gradient, memory given",
            -2.2,
        ),
        "eager / torch": ("eager", "torch", 6.0),
        "compiled / torch": ("compiled", "torch", 1.25),
        "eager / torch, with gradient": ("eager with gradient", "torch with gradient", 5.0),
        "compiled / torch, with gradient": ("compiled with gradient", "torch with gradient", 2.5),
    }


def masked() -> tuple[Calls, dict[str, tuple[str, str, float]]]:
    """Return the calls on logits of which the last classes are padding, and the same without."""
    random = np.random.default_rng(4)
    t = 3 * random.standard_normal((512, 32000), dtype=np.float32)
    s = t + random.standard_normal(t.shape, dtype=np.float32)
    padded = [each.copy() for each in (s, t)]
    for each in padded:
        each[:, -1000:] = -np.inf
    both = kldiv.value_and_grad(kldiv.kl_div_with_logits)
    calls: Calls = {
        "plain": lambda: kldiv.kl_div_with_logits(s, t),
        "masked": lambda: kldiv.kl_div_with_logits(*padded),
        "plain with gradient": lambda: both(s, t),
        "masked with gradient": lambda: both(*padded),
    }
    return calls, {
        "masked / plain": ("masked", "plain", -1.2),
        "masked / plain, with gradient": ("masked with gradient", "plain with gradient", -1.2),
    }


def halves() -> tuple[Calls, dict[str, tuple[str, str, float]]]:
    """Return the calls on bfloat16 logits, 512 × 151936, with gradient."""
    generator = torch.Generator().manual_seed(2)
    t = 3 * torch.randn(512, 151936, generator=generator)
    s = (t + torch.randn(512, 151936, generator=generator)).bfloat16().requires_grad_()
    t = t.bfloat16()
    ours = partial(kldiv.kl_div_with_logits, dtype="float32")
    calls: Calls = {
        "torch with gradient": lambda: backward(ours, s, t),
        "eager with gradient": lambda: backward(usual, s, t),
    }
    return calls, {
        "eager / torch, with gradient": ("eager with gradient", "torch with gradient", 6.0)
    }


def jitted() -> tuple[Calls, dict[str, tuple[str, str, float]]]:
    """Return the calls under `jax.jit`, and those of optax."""
    jax = import_module("jax")
    random = np.random.default_rng(6)
    y = random.dirichlet(np.ones(32000), 512).astype(np.float32)
    x = np.log(random.dirichlet(np.ones(32000), 512) + 1e-9).astype(np.float32)
    arrays = [jax.device_put(each) for each in (x, y, np.log(y + np.float32(1e-9)))]
    ours = {
        "kl_div": partial(kldiv.kl_div, reduction="sum"),
        "kl_div_with_logits": kldiv.kl_div_with_logits,
    }
    calls: Calls = {}
    for (name, loss), target in zip(ours.items(), arrays[1:], strict=True):
        for whose, compiled in (("", jax.jit(loss)), (", optax", OPTAX.formula(name, "value"))):
            calls[name + whose] = partial(waited, compiled, arrays[0], target)
    return calls, {
        f"{name} / optax": (name, f"{name}, optax", most)
        for name, most in (("kl_div", -0.3), ("kl_div_with_logits", -0.2))
    }


def waited(function: Callable[..., Any], *arrays: Any) -> None:
    """Call a function of JAX arrays and wait for its result."""
    function(*arrays).block_until_ready()


def without_llvmlite() -> tuple[Calls, dict[str, tuple[str, str, float]]]:
    """Return the calls by the kernel blocks, and those of NumPy and torch as they are written."""
    random = np.random.default_rng(5)
    t = 3 * random.standard_normal((512, 32000), dtype=np.float32)
    z = random.standard_normal(t.shape, dtype=np.float32)
    y = np.exp(t - t.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    summed = partial(kldiv.kl_div, reduction="sum")
    calls: Calls = {}
    asked = {}
    for name, loss, peer, given, target in (
        ("kl_div", summed, partial(F.kl_div, reduction="sum"), -abs(z) - 1, y),
        ("logits, 3 apart", kldiv.kl_div_with_logits, usual, t + 3 * z, t),
        ("logits, 1e-3 apart", kldiv.kl_div_with_logits, usual, t + np.float32(1e-3) * z, t),
    ):
        operation = "kl_div" if loss is summed else "kl_div_with_logits"
        there = torch.from_numpy(given), torch.from_numpy(target)
        tracked = there[0].clone().requires_grad_()
        both = kldiv.value_and_grad(loss)
        calls |= {
            name: partial(in_blocks, loss, given, target),
            f"{name}, NumPy": partial(NUMPY.formula(operation, "value"), given, target),
            f"{name}, torch": partial(in_blocks, loss, *there),
            f"{name}, eager": partial(peer, *there),
            f"{name}, gradient": partial(in_blocks, both, given, target),
            f"{name}, NumPy, gradient": partial(
                NUMPY.formula(operation, "gradient"), given, target
            ),
            f"{name}, torch, gradient": partial(in_blocks, backward, loss, tracked, there[1]),
            f"{name}, eager, gradient": partial(backward, peer, tracked, there[1]),
        }
        most = -1.4 if loss is summed else -1.3
        asked |= {
            f"{name}: blocks / NumPy": (name, f"{name}, NumPy", most),
            f"{name}: blocks / NumPy, with gradient": (
                f"{name}, gradient",
                f"{name}, NumPy, gradient",
                -1.3,
            ),
            f"{name}: blocks / eager": (f"{name}, torch", f"{name}, eager", -1.0),
            f"{name}: blocks / eager, with gradient": (
                f"{name}, torch, gradient",
                f"{name}, eager, gradient",
                -1.5,
            ),
        }
    return calls, asked


def in_blocks(function: Callable[..., object], *arrays: Any) -> None:
    """Call a function where llvmlite is not used."""
    with kldiv.config_context(kernel="blocks"):
        function(*arrays)


def small() -> tuple[Calls, dict[str, tuple[str, str, float]]]:
    """Return a thousand calls on (8, 10) as they are, and by the formulas alone."""
    generator = torch.Generator().manual_seed(3)
    x = torch.log_softmax(torch.randn(8, 10, generator=generator), -1)
    y = torch.softmax(torch.randn(8, 10, generator=generator), -1)

    def many(*arrays: Any, kernel: str) -> None:
        with kldiv.config_context(kernel=kernel):
            for _ in range(1000):
                kldiv.kl_div(*arrays, reduction="sum")

    pairs = {"torch": (x, y), "NumPy": (x.numpy(), y.numpy())}
    calls: Calls = {
        f"{library}, {kernel}": partial(many, *arrays, kernel=kernel)
        for library, arrays in pairs.items()
        for kernel in ("auto", "pure")
    }
    return calls, {
        f"{library}, auto / pure": (f"{library}, auto", f"{library}, pure", -1.05)
        for library in pairs
    }


def memory() -> dict[str, float | None]:
    """Return the peak extra memory of reduced forwards, in MiB."""
    x = np.full((256, 32000), -1.0, np.float32)
    calls: Calls = {
        "kl_div": lambda: kldiv.kl_div(x, x, log_target=True, reduction="sum"),
        "kl_div_with_logits": lambda: kldiv.kl_div_with_logits(x, x),
    }
    found = {}
    for name, call in calls.items():
        call()
        held = peaks(call, "rss", "cpu", (None, None)).get("rss")
        found[name] = None if held is None else held / 2**20
    return found


FIRST = """
import time
import numpy as np, kldiv
x = np.full((64, 32000), -10, np.float32)
y = np.exp(x)
start = time.perf_counter()
{}(x, y)
print(time.perf_counter() - start)
"""
FIRST_CALL = "first call of a process, with what is compiled on disk"


def first_calls() -> dict[str, Any]:
    """Return the seconds of a first call, all imports included, and their limits."""
    found: dict[str, Any] = {"target": "<= 0.3", "seconds": {}}
    for name in ("kl_div", "kl_div_with_logits", "js_div_with_logits"):
        for call in (f"kldiv.{name}", f"kldiv.value_and_grad(kldiv.{name})"):
            command = [sys.executable, "-c", FIRST.format(call)]
            times = [subprocess.check_output(command) for _ in range(6)]  # noqa: S603 - our own
            runs = [float(each) for each in times]
            found["seconds"][call.replace("kldiv.", "")] = round(median(runs[1:]), 3)
    found["met"] = max(found["seconds"].values()) <= 0.3
    return found


TABLES = {
    "kl_div, sum, 1024 x 32000, float32": partial(pointwise, "float32"),
    "kl_div, sum, 1024 x 32000, float64": partial(pointwise, "float64"),
    "kl_div_with_logits, mean, 512 x 32000, float32": rows,
    "kl_div_with_logits, masked classes, 512 x 32000, float32": masked,
    "kl_div_with_logits, 512 x 151936, bfloat16": halves,
    "jax.jit, 512 x 32000, float32": jitted,
    "kernel blocks, 512 x 32000, float32": without_llvmlite,
    "kl_div, sum, 8 x 10, a thousand calls": small,
}


def main() -> None:
    """Measure, print, and write the results."""
    torch.set_num_threads(OPTIONS.threads)
    report: dict[str, Any] = {
        "threads": OPTIONS.threads,
        "rounds": OPTIONS.rounds,
        "machine": platform.processor() or platform.machine(),
        "versions": {"kldiv": kldiv.__version__, "torch": torch.__version__},
        "tables": {},
    }
    if OPTIONS.only and RESULTS.exists():
        before = json.loads(RESULTS.read_text())
        report = before | report | {"tables": before["tables"]}
    for title, prepare in TABLES.items():
        if OPTIONS.only not in title:
            continue
        print(title)
        calls, asked = prepare()
        with bar() as told:
            times = in_turns(
                calls, OPTIONS.rounds, progress=lambda done, title=title: told(done, title)
            )
        for name, each in times.items():
            print(f"  {1e3 * median(each):9.2f} ms  {name}")
        ratios = {}
        for name, (above, below, target) in asked.items():
            ratio = median(a / b for a, b in zip(times[above], times[below], strict=True))
            met = ratio <= -target if target < 0 else ratio >= target
            sign = "<=" if target < 0 else ">="
            print(f"  {ratio:8.2f} x  {name}, {sign} {abs(target)}: {'met' if met else 'missed'}")
            ratios[name] = {"ratio": round(ratio, 3), "target": f"{sign} {abs(target)}", "met": met}
        report["tables"][title] = {
            "ms": {name: round(1e3 * median(each), 3) for name, each in times.items()},
            "ratios": ratios,
        }
        del calls
    if OPTIONS.only in "peak extra memory":
        report["peak_extra_MiB"] = memory()
        print("peak extra memory, MiB:", report["peak_extra_MiB"])
    if OPTIONS.only in FIRST_CALL:
        report["first_call"] = first_calls()
        print(FIRST_CALL, report["first_call"])
    write_text(RESULTS, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
