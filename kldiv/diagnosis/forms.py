"""Whether input and target are of the forms that the call takes them for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kldiv.diagnosis.report import Finding
from kldiv.diagnosis.words import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kldiv.diagnosis.scan import Scan


def swapped(x: Scan, t: Scan, *, log_target: bool) -> bool:
    """Return whether the arguments stand in each other's place."""
    kinds = (x.reading.kind, t.reading.kind)
    return kinds == ("probabilities", "log-probabilities") and not log_target


def find_forms(x: Scan, t: Scan, *, log_target: bool) -> Iterator[Finding]:
    """Yield where an array is not of the form that the call takes it for."""
    yield from _find_wrong_axis(x, t)
    if swapped(x, t, log_target=log_target):
        yield Finding(
            "arguments-swapped",
            "error",
            "input holds probabilities and target log-probabilities: kl_div takes log Q first, P "
            "second",
            "call kl_div(target, input); if the order is meant, take the log of input and pass "
            "log_target=True",
        )
        return
    yield from _find_input_form(x)
    yield from _find_target_form(t, log_target=log_target)


def _find_wrong_axis(x: Scan, t: Scan) -> Iterator[Finding]:
    for scan in (x, t):
        if scan.reading.over:
            # Where both agree, the classes may simply lie there: kl_div itself knows no axis.
            agree = x.reading.over == t.reading.over
            yield Finding(
                "wrong-axis",
                "warning" if agree else "error",
                f"{scan.name} of shape {scan.shape} sums to 1 over {scan.reading.over}, not over "
                f"axis {scan.axis}: it looks like a softmax over the wrong axis",
                f"apply softmax or log_softmax over axis {scan.axis}; where the classes do lie on "
                "another axis, pass it to diagnose",
            )


def _find_input_form(x: Scan) -> Iterator[Finding]:
    span = f"from {number(x.low.value)} to {number(x.high)}"
    kind = x.reading.kind
    if kind == "probabilities" or (kind == "weights" and 0 < x.high <= 1):
        sums = {True: ": its rows sum to 1", False: ": its rows do not sum to 1", None: ""}
        yield Finding(
            "probabilities-as-input",
            "error",
            f"input holds probabilities{sums[x.reading.normalised]} ({span}), but kl_div takes "
            "log Q",
            "pass log_softmax of the logits, or log(input)",
        )
    elif kind in {"logits", "weights"}:
        text = f"input holds logits or counts ({span}), but kl_div takes log Q"
        known = x.exp_sums[~np.isnan(x.exp_sums)]
        if known.size:
            text += f"; exp of a row sums to {number(float(np.median(known)))} (median), not to 1"
        yield Finding(
            "logits-as-input",
            "error",
            text,
            f"pass log_softmax(input) over axis {x.axis}",
        )


def _find_target_form(t: Scan, *, log_target: bool) -> Iterator[Finding]:
    span = f"from {number(t.low.value)} to {number(t.high)}"
    kind = t.reading.kind
    if kind == "logits":
        yield Finding(
            "logits-as-target",
            "error",
            f"target holds logits ({span}), but kl_div takes P"
            + (", its logarithm with log_target=True" if log_target else ""),
            f"pass {'log_' * log_target}softmax(target) over axis {t.axis}",
        )
    elif kind == "log-probabilities" and not log_target:
        yield Finding(
            "log-probabilities-as-target",
            "error",
            f"target holds log-probabilities ({span}), which kl_div takes for P: the logarithm of "
            "a negative number is NaN",
            "pass log_target=True",
        )
    elif kind in {"probabilities", "weights"} and log_target:
        yield Finding(
            "probabilities-as-log-target",
            "error",
            f"target holds probabilities ({span}), but the call says log_target=True: kl_div takes "
            "their exponential for P",
            "leave log_target=True out",
        )
