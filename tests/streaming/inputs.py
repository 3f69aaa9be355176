"""Rows to compare, of every form, one of them infinite in either direction."""

from __future__ import annotations

import numpy as np


def data(form="logits", shape=(8, 30), seed=0, distance=None):
    """Return P and Q, which are independent unless there is a distance of logits."""
    logits = 3 * np.random.default_rng(seed).normal(size=(2, *shape))
    if form in {"counts", "auto"}:
        return np.floor(9 * np.exp(logits / 9))
    if distance is not None:
        logits[1] = logits[0] + distance * logits[1]
    if len(shape) == 2:
        logits[0, 1, 2] = logits[1, 3, 4] = -np.inf
    if form == "logits":
        return logits
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1)[..., None]
    return log_probs if form == "log-probs" else np.exp(log_probs)
