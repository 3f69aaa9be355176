"""How wrong the losses of trainers are, beside kldiv's: the tables of docs/accuracy.md.

    python -m bench.studies.trainers

Each formula is written anew here from its published definition, in PyTorch, on logits in float32 or
bfloat16: ``generalized_jsd_loss`` of trl 1.16, the Jensen-Shannon divergence of liger-kernel 0.8.5,
``low_var_kl`` (k3) averaged over the vocabulary and the entropy of verl 0.9.1, and
``ReverseKLLoss`` and ``SymmetricKLLoss`` of torchtune 0.6.1.  The student's logits are the
teacher's plus ε times noise, rounded to the dtype; the truth is that of the logits so given, by
mpmath.  It takes about a minute.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
import torch
from torch.nn.functional import log_softmax, softmax

import kldiv

from ..harness.operations import SPREAD
from ..oracle.exact import converged, js, kl, numbers
from ..report.markdown import markdown
from .accuracy import number, relative_error

if TYPE_CHECKING:
    from collections.abc import Callable

    Loss = Callable[[Any, Any], Any]

EPSILONS = (1.0, 1e-2, 1e-4)
PEAKS = (0.0, 10.0, 20.0)
DTYPES = (torch.float32, torch.bfloat16)
CLASSES, SEEDS = 1000, 5


def trl(s: Any, t: Any, beta: float) -> Any:
    """Return TRL's generalised JSD: β = 0 and 1 are the directions of KL."""
    student, teacher = log_softmax(s, -1), log_softmax(t, -1)
    if beta in {0, 1}:
        first, second = (student, teacher) if beta == 0 else (teacher, student)
        return torch.nn.functional.kl_div(first, second, reduction="sum", log_target=True)
    weight = torch.tensor(beta, dtype=student.dtype)
    parts = [student + torch.log1p(-weight), teacher + torch.log(weight)]
    mixture = torch.logsumexp(torch.stack(parts), dim=0)
    of_teacher, of_student = (
        torch.nn.functional.kl_div(mixture, each, reduction="sum", log_target=True)
        for each in (teacher, student)
    )
    return beta * of_teacher + (1 - beta) * of_student


def liger(s: Any, t: Any) -> Any:
    """Return Liger's JSD, whose kernel is float32 on log-probabilities of the logits' dtype."""
    log_q, log_p = (log_softmax(each, -1).float() for each in (s, t))
    top = torch.maximum(log_p, log_q)
    log_m = top + torch.log(0.5 * (log_p - top).exp() + 0.5 * (log_q - top).exp())
    return (0.5 * log_p.exp() * (log_p - log_m) + 0.5 * log_q.exp() * (log_q - log_m)).sum()


def k3(s: Any, t: Any) -> Any:
    """Return verl's low_var_kl of log-probabilities, averaged over the student's samples."""
    log_q, log_p = log_softmax(s, -1), log_softmax(t, -1)
    difference = torch.clamp(log_p - log_q, min=-20, max=20)
    each = torch.clamp(torch.exp(difference) - difference - 1, min=-10, max=10)
    return (log_q.exp().float() * each.float()).sum()


def reverse(s: Any, t: Any) -> Any:
    """Return torchtune's reverse KL: both softmax in float32."""
    q, log_q = softmax(s, -1, dtype=torch.float32), log_softmax(s, -1, dtype=torch.float32)
    log_p = log_softmax(t, -1, dtype=torch.float32)
    return -((q * log_p).sum() - (q * log_q).sum())


def forward(s: Any, t: Any) -> Any:
    """Return the forward part of torchtune's symmetric KL, that of the arguments exchanged."""
    return reverse(t, s)


def entropy(s: Any) -> Any:
    """Return verl's entropy_from_logits."""
    return torch.logsumexp(s, -1) - (softmax(s, -1) * s).sum(-1)


def own(loss: Callable[..., Any], **options: Any) -> Loss:
    """Return a loss of kldiv's, in float32 whatever the logits are."""
    return partial(loss, dtype="float32", **options)


FORWARD, REVERSE, HALF = "D(P‖Q)", "D(Q‖P)", "Jensen-Shannon"
METHODS: dict[tuple[str, str], Loss] = {
    (FORWARD, "kldiv"): own(kldiv.kl_div_with_logits),
    (FORWARD, "TRL, β = 0"): partial(trl, beta=0),
    (FORWARD, "torchtune, forward"): forward,
    (REVERSE, "kldiv"): lambda s, t: kldiv.kl_div_with_logits(t, s, dtype="float32"),
    (REVERSE, "TRL, β = 1"): partial(trl, beta=1),
    (REVERSE, "torchtune, reverse"): reverse,
    (REVERSE, "verl, k3"): k3,
    (HALF, "kldiv"): own(kldiv.js_div_with_logits),
    (HALF, "TRL, β = ½"): partial(trl, beta=0.5),
    (HALF, "Liger"): liger,
}


def truth(s: Any, t: Any) -> dict[str, Any]:
    """Return the divergences of two rows of logits by their definitions."""

    def compute() -> list[list[Any]]:
        logits = numbers(s), numbers(t)
        half = mpmath.mpf("0.5")
        return [[kl(*logits)[0], kl(*logits[::-1])[0], js(*logits, half)[0]]]

    (found,) = converged(compute)
    return dict(zip((FORWARD, REVERSE, HALF), found, strict=True))


def divergences() -> list[list[str]]:
    """Return the worst errors over the seeds, a line for each method."""
    worst: dict[Any, float] = {}
    for dtype in DTYPES:
        for epsilon in EPSILONS:
            for seed in range(SEEDS):
                random = np.random.default_rng([CLASSES, seed])
                teacher, noise = random.normal(size=(2, CLASSES)) * [[SPREAD], [epsilon]]
                s, t = (torch.tensor(x).to(dtype) for x in (teacher + noise, teacher))
                exact = truth(*(x.double().numpy() for x in (s, t)))
                for key, loss in METHODS.items():
                    if not exact[key[0]]:
                        continue
                    error = relative_error(float(loss(s, t)), exact[key[0]])
                    place = (*key, dtype, epsilon)
                    worst[place] = max(worst.get(place, 0.0), error)
    columns = [(dtype, epsilon) for dtype in DTYPES for epsilon in EPSILONS]
    return [[*key, *(number(worst[(*key, *each)]) for each in columns)] for key in METHODS]


def entropies() -> list[list[str]]:
    """Return the worst errors of entropies, where one logit is so far above the others."""
    lines = []
    methods = {"kldiv": own(kldiv.entropy_with_logits), "verl": entropy}
    for name, method in methods.items():
        line = [name]
        for dtype in DTYPES:
            for peak in PEAKS:
                worst = 0.0
                for seed in range(SEEDS):
                    logits = np.random.default_rng([CLASSES, seed]).normal(size=CLASSES)
                    logits[0] = logits.max() + math.log(CLASSES) * (peak > 0) + peak
                    s = torch.tensor(logits).to(dtype)
                    worst = max(worst, relative_error(float(method(s)), _entropy(s)))
                line.append(number(worst))
        lines.append(line)
    return lines


def _entropy(s: Any) -> Any:
    with mpmath.workdps(60):
        powers = [mpmath.exp(mpmath.mpf(float(x))) for x in s.double()]
        whole = mpmath.fsum(powers)
        return -mpmath.fsum(x / whole * mpmath.log(x / whole) for x in powers)


def page() -> str:
    """Return the tables as docs/accuracy.md shows them."""
    names = [str(dtype).partition(".")[2] for dtype in DTYPES]
    head = ["", "", *(f"{name}, ε = {number(e)}" for name in names for e in EPSILONS)]
    of_entropies = ["entropy", *(f"{name}, +{peak:.0f}" for name in names for peak in PEAKS)]
    return "\n\n".join([markdown(head, divergences()), markdown(of_entropies, entropies())])


if __name__ == "__main__":
    sys.stdout.write(page() + "\n")
