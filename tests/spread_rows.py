"""Rows, labels and a sparse teacher, for losses whose classes are spread over ranks."""

from __future__ import annotations

import numpy as np

import kldiv

CLASSES = 64


def rows():
    """Return a student's logits, labels, a sparse teacher, temperatures and β of rows.

    Peaks, ties, masked classes on one rank alone, a label of no rank's, a row to be dropped.
    """
    random = np.random.default_rng(0)
    s = 3 * random.normal(size=(9, CLASSES))
    s[1, 5] += 80
    s[2, 40] += 30
    s[3, :33] = s[5, 8] = -np.inf
    s[4] = 0.0
    s[6, [2, 50]] = 60.0
    s[7] = np.nan
    labels = np.array([3, 5, 5, 40, 63, 7, 50, -100, 33])
    teacher = kldiv.topk_log_probs(2 * random.normal(size=s.shape), 5)
    teacher = teacher._replace(log_probs=single(teacher.log_probs), rest=single(teacher.rest))
    beta = np.array([0, 1, 0.25, 0.625, 1, 0, 0.125, 0.875, 0.5])
    return single(s), labels, teacher, 0.5 + np.arange(9) / 8, beta


def single(array):
    """Return float64 numbers that are float32 numbers too."""
    return array.astype(np.float32).astype(np.float64)


def losses(labels, indices, rest, beta):
    """Return losses of (student, temperatures, log-probabilities) by name, each a number."""
    keep = labels != -100

    def both(s, heat, a, **spread):
        del a
        found = kldiv.log_prob_and_entropy_with_logits(s, labels, temperature=heat, **spread)
        return sum(each.sum() for each in found)

    def policy(s, heat, a, **spread):
        del a
        options = {"reference": 0.75 * s, "temperature": heat, **spread}
        log_prob, entropy, kl = kldiv.log_prob_and_entropy_with_logits(s, labels, **options)
        return (log_prob + 0.5 * entropy + 2.0 * kl).sum()

    def hard(s, heat, a, **spread):
        del a
        options = {"row_weight": heat, "normalizer": 5.0, **spread}
        return kldiv.cross_entropy_with_logits(s, labels, **options)

    def bucket(s, heat, a, **spread):
        options = {"target_rest": rest, "where": keep, "beta": beta, "temperature": heat, **spread}
        return kldiv.topk_kl_div_with_logits(s, a, indices, **options)

    def renormalized(s, heat, a, **spread):
        options = {"tail": "renormalize", "target_temperature": 1.0, "where": keep, **spread}
        return kldiv.topk_kl_div_with_logits(s, a, indices, beta=0.4, temperature=heat, **options)

    return {
        "both": both,
        "policy": policy,
        "hard": hard,
        "bucket": bucket,
        "renormalized": renormalized,
    }
