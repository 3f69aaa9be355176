"""A sparse teacher beside the student's logits: indices, masses, digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kldiv import backends
from kldiv.diagnosis.report import SEVERITIES, Diagnosis, Finding
from kldiv.diagnosis.walking import Tally
from kldiv.diagnosis.words import many, number
from kldiv.errors import DTypeError, LibraryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from kldiv._types import Array
    from kldiv.sparse_losses import SparseTeacher

_BLOCK = 1 << 16
"""Rows looked at together."""


def diagnose_sparse(logits: Array, teacher: SparseTeacher, axis: int) -> Diagnosis:
    """Report problems in the arguments of a call of `topk_kl_div_with_logits`."""
    classes = int(logits.shape[axis])
    log_probs, indices = (np.moveaxis(_host(array), axis, -1) for array in teacher[:2])
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"indices have dtype {indices.dtype.name}; expected integers")
    rows, k = log_probs.shape[:-1], log_probs.shape[-1]
    a, places = (each.reshape(-1, k) for each in (log_probs, indices))
    rest = None if teacher.rest is None else _host(teacher.rest).reshape(-1)
    tallies = {name: Tally(rows) for name in ("nan", "foreign", "repeated", "above", "lost", "off")}
    worst = 1.0
    for start in range(0, len(a), _BLOCK):
        block = slice(start, start + _BLOCK)
        own, ids = a[block].astype(np.float64), places[block]
        valid = own != -np.inf
        foreign = ((ids < 0) | (ids >= classes)) & valid
        # Padding gets numbers of its own, below all indices.
        distinct = np.where(valid, ids, -1 - np.arange(k))
        distinct = np.sort(distinct, axis=-1)
        repeated = (distinct[:, 1:] == distinct[:, :-1]).any(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            mass = np.exp(own).sum(-1)
        slack = 4 * k * float(np.finfo(log_probs.dtype).eps)
        worst = max(worst, float(np.nanmax(mass, initial=0.0)))
        left = (valid.sum(-1) < classes) & (mass >= 1.0)
        found = {
            "nan": np.isnan(own).any(-1),
            "foreign": foreign.any(-1),
            "repeated": repeated,
            "above": mass > 1.0 + slack,
            "lost": left & (mass <= 1.0 + slack) & (rest is None),
        }
        if rest is not None:
            found["off"] = np.abs(mass + rest[block] - 1.0) > slack + 1e-3
        for name, mask in found.items():
            _add(tallies[name], mask, start)
    findings = sorted(
        _findings(tallies, classes, worst), key=lambda each: SEVERITIES.index(each.severity)
    )
    return Diagnosis(tuple(findings), "logits", "a sparse teacher")


def _add(tally: Tally, mask: NDArray[np.bool_], start: int) -> None:
    """Count marked rows, given by their place among all."""
    count = int(np.count_nonzero(mask))
    if count:
        tally.count += count
        if tally.first < 0:
            tally.first = start + int(np.argmax(mask))


def _findings(tallies: dict[str, Tally], classes: int, worst: float) -> Iterator[Finding]:
    words = {
        "nan": (
            "nan",
            "error",
            "log-probabilities are NaN",
            "drop the rows by where=, or find out what made them",
        ),
        "foreign": (
            "foreign-indices",
            "error",
            f"an index is none of the {classes} classes: the loss of the row is NaN",
            "check that both have one vocabulary; padding has a log-probability of −inf",
        ),
        "repeated": (
            "repeated-indices",
            "error",
            "a class is given twice, so that its mass counts twice",
            "keep one entry of each; some engines repeat the token that was chosen",
        ),
        "above": (
            "mass-above-one",
            "error",
            f"the given classes have more mass than 1, up to {number(worst)}",
            "pass log-probabilities, not probabilities or logits: log_softmax over all classes",
        ),
        "lost": (
            "rest-rounds-to-zero",
            "warning",
            "the mass of the other classes rounds to 0: reverse divergences are +inf",
            "pass target_rest, the mass itself: topk_log_probs gives it",
        ),
        "off": (
            "masses-do-not-add-up",
            "warning",
            "the given classes and the rest do not add up to 1",
            "take both from the same logits at the same temperature: topk_log_probs does",
        ),
    }
    for name, (code, severity, text, mend) in words.items():
        tally = tallies[name]
        if tally.count:
            where = f"{many(tally.count, 'row')}, first at {tally.where}"
            yield Finding(code, severity, f"{where}: {text}", mend)  # type: ignore[arg-type]


def _host(array: Any) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    backend = backends.find(array)
    try:
        return backend.on_host(array)
    except (TypeError, RuntimeError) as error:
        raise LibraryError("diagnose looks at values, which traced arrays do not have") from error
