"""Log-probabilities of labels, entropies and their gradients by their definition, in mpmath."""

from __future__ import annotations

import mpmath
import numpy as np


def truth(row, label, temperature, factors):
    """−log p(label), the entropy, and the gradient of both times a factor each."""
    with mpmath.workdps(120):
        first, one = int(np.argmax(row)), mpmath.mpf(1)
        depths = [(float(row[first]) - one * float(x)) / temperature for x in row]
        weights = [mpmath.exp(-d) for d in depths]
        rest = mpmath.fsum(w for k, w in enumerate(weights) if k != first)
        depths = [d if w else 0 * one for d, w in zip(depths, weights, strict=True)]
        p = [w / (1 + rest) for w in weights]
        mean = mpmath.fsum(w * d for w, d in zip(p, depths, strict=True))
        lacks = [w - (k == label) for k, w in enumerate(p)]
        gradient = [
            (factors[0] * lack + factors[1] * w * (d - mean)) / temperature
            for lack, w, d in zip(lacks, p, depths, strict=True)
        ]
        cost = depths[label] + mpmath.log1p(rest) if weights[label] else np.inf
        return float(cost), float(mpmath.log1p(rest) + mean), np.array([*map(float, gradient)])


def kl_truth(row, reference, temperature):
    """D(P‖Q) and its gradients in the row and in the reference, P = softmax(row/T)."""
    with mpmath.workdps(200):
        sides = []
        for logits in (row, reference):
            top, one = max(map(float, logits)), mpmath.mpf(1)
            weights = [mpmath.exp((float(x) - one * top) / temperature) for x in logits]
            total = mpmath.fsum(weights)
            sides.append([w / total for w in weights])
        p, q = sides
        ratio = [mpmath.log(a / b) if a and b else mpmath.mpf(0) for a, b in zip(p, q, strict=True)]
        if any(a and not b for a, b in zip(p, q, strict=True)):
            return np.inf, None, None
        value = mpmath.fsum(a * ell for a, ell in zip(p, ratio, strict=True))
        own = [a * (ell - value) / temperature for a, ell in zip(p, ratio, strict=True)]
        other = [(b - a) / temperature for a, b in zip(p, q, strict=True)]
        return float(value), *(np.array([*map(float, each)]) for each in (own, other))
