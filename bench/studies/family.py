"""Every member of the family beside Kullback-Leibler's own time, on a CPU, and the targets.

    python -m bench.studies.family [--library L] [--rounds N] [--rows N] [--only WORDS]

All calls of a table take turns in one process, so that a machine whose speed drifts slows all
alike; ratios are medians over the rounds. Times are the processor's, those of all threads together,
which other programs on a busy machine disturb least.
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv

from ..harness.timer import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable

    Table = tuple[dict[str, Callable[[], Any]], dict[str, float]]
    """Calls, all compared with the first, and the largest ratios asked for."""

GIVEN = 64
"""Classes that a sparse teacher gives."""
_DIVERGENCES = ("js", "skew_kl", "jeffreys", "tv", "hellinger", "chi2", "alpha", "renyi")
DENSE = {f"{name}_div_with_logits": 2.2 for name in _DIVERGENCES}


class Arrays:
    """Random logits, hidden states and layers of one library, and derivatives by its means."""

    def __init__(self, options: argparse.Namespace) -> None:
        random = np.random.default_rng(0)
        rows, classes, features = options.rows, options.classes, options.features
        t = 3 * random.standard_normal((rows, classes), dtype=np.float32)
        s = t + random.standard_normal(t.shape, dtype=np.float32)
        shapes = 2 * [(rows, features), (classes, features)]
        layers = [random.standard_normal(shape, dtype=np.float32) for shape in shapes]
        layers = [a if k % 2 == 0 else a * np.float32(features**-0.5) for k, a in enumerate(layers)]
        labels = random.integers(classes, size=rows)
        self.torch = options.library == "torch"
        if self.torch:
            import torch

            s, t, labels, *layers = map(torch.from_numpy, (s, t, labels, *layers))
        self.finish: Callable[[Any], Any] = lambda found: found
        """Waits for a result."""
        self.jax = None
        if options.library == "jax":
            import jax

            s, t, labels, *layers = map(jax.numpy.asarray, (s, t, labels, *layers))
            self.jax, self.finish = jax, jax.block_until_ready
        self.s, self.t, self.labels, self.layers = s, t, labels, layers
        self.sparse = kldiv.topk_log_probs(t, GIVEN)

    def slopes(
        self, loss: Callable[..., Any], *arrays: Any, wanted: tuple[int, ...] = (0,)
    ) -> Callable[[], Any]:
        """Return a call for a loss and its gradients in some arrays."""
        if self.jax:
            return partial(self.jax.jit(self.jax.value_and_grad(loss, wanted)), *arrays)
        if not self.torch:
            return partial(kldiv.value_and_grad(loss, wanted), *arrays)

        def call() -> None:
            own = [a.detach().requires_grad_() if k in wanted else a for k, a in enumerate(arrays)]
            loss(*own).backward()

        return call


def dense(given: Arrays) -> Table:
    """Return the losses of two arrays of logits, and of a sparse teacher, with their gradient."""
    pair = given.s, given.t
    calls = {"kl_div_with_logits": given.slopes(kldiv.kl_div_with_logits, *pair)}
    calls |= {
        name: given.slopes(
            partial(
                getattr(kldiv, name),
                **({"alpha": 0.7} if name.startswith(("alpha", "renyi")) else {}),
            ),
            *pair,
        )
        for name in DENSE
    }
    calls["distillation_loss, β = 0"] = given.slopes(
        partial(kldiv.distillation_loss, beta=0.0), *pair
    )
    sparse = partial(kldiv.topk_kl_div_with_logits, target_rest=given.sparse.rest)
    name = f"topk_kl_div_with_logits, K = {GIVEN}"
    calls[name] = given.slopes(sparse, given.s, given.sparse.log_probs, given.sparse.indices)
    return calls, {**DENSE, "distillation_loss, β = 0": 1.1, name: 0.6}


def labels(given: Arrays) -> Table:
    """Return the losses of labels and entropies, the value alone."""
    calls = {
        "kl_div_with_logits": partial(kldiv.kl_div_with_logits, given.s, given.t),
        "log_prob_and_entropy_with_logits": partial(
            kldiv.log_prob_and_entropy_with_logits, given.s, given.labels
        ),
        "the same with a reference": partial(
            kldiv.log_prob_and_entropy_with_logits, given.s, given.labels, reference=given.t
        ),
        "entropy_with_logits": partial(kldiv.entropy_with_logits, given.s),
        "cross_entropy_with_logits, labels": partial(
            kldiv.cross_entropy_with_logits, given.s, given.labels
        ),
    }
    alone = [name for name in list(calls)[1:] if not name.startswith("the same")]
    return calls, dict.fromkeys(alone, 0.75)


def linear(given: Arrays) -> Table:
    """Return the losses of layers, with the gradients of the student's."""
    student, teacher = given.layers[:2], given.layers[2:]
    own = partial(given.slopes, wanted=(0, 1))
    hard = {"labels": given.labels, "hard_weight": 0.3}
    distillation = kldiv.linear_distillation_loss
    both = *student, *teacher
    calls = {
        "linear_kl_div": own(kldiv.linear_kl_div, *both),
        "linear_js_div": own(kldiv.linear_js_div, *both),
        "linear_kl_div, soft caps": own(
            partial(kldiv.linear_kl_div, softcap=30.0, target_softcap=30.0), *both
        ),
        "linear_distillation_loss, β = 0, labels": own(
            partial(distillation, beta=0.0, **hard), *both
        ),
        "linear_distillation_loss, β = ½, labels": own(partial(distillation, **hard), *both),
        f"linear_topk_kl_div, K = {GIVEN}": own(
            partial(
                kldiv.linear_topk_kl_div,
                target_log_probs=given.sparse.log_probs,
                target_indices=given.sparse.indices,
                target_rest=given.sparse.rest,
            ),
            *student,
        ),
    }
    if given.torch:

        def loss(*layer: Any) -> Any:
            log_prob, entropy = kldiv.linear_log_prob_and_entropy(*layer, given.labels)
            return (entropy - log_prob).mean()

        calls["linear_log_prob_and_entropy"] = own(loss, *student)
    return calls, dict.fromkeys(list(calls)[1:], 1.3)


TABLES = {
    "dense and sparse teachers, with the gradient": dense,
    "labels and entropies, the value": labels,
    "layers, with the gradients": linear,
}


def main() -> None:
    """Measure the tables and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"rounds": 11, "rows": 512, "features": 512, "classes": 32000}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--library", choices=("numpy", "torch", "jax"), default="numpy")
    parser.add_argument("--only", default="", help="measure the tables with this in their title")
    options = parser.parse_args()
    given = Arrays(options)
    for title, table in TABLES.items():
        if options.only not in title:
            continue
        calls, asked = table(given)
        whole = {name: lambda call=call: given.finish(call()) for name, call in calls.items()}
        times = in_turns(whole, options.rounds, clock=process_time)
        first, *_ = calls
        print(f"{options.library}, {title}: {options.rows} x {options.classes}, float32")
        for name, each in times.items():
            ratio = median(a / b for a, b in zip(each, times[first], strict=True))
            told = ""
            if name in asked:
                told = f", <= {asked[name]}: {'met' if ratio <= asked[name] else 'missed'}"
            print(f"  {1e3 * median(each):8.1f} ms  {ratio:5.2f} x  {name}{told}", flush=True)


if __name__ == "__main__":
    main()
