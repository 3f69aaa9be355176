"""Log-probabilities of labels, entropies and their gradients by their definition, in mpmath."""

from __future__ import annotations

import mpmath
import numpy as np
from reference import softmax


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


def cross_entropy(s, t):
    """−Σ p log q, which is finite, and its gradients in rows of mpmath's numbers; None is −∞."""
    (q, log_q), (p, _) = softmax(s), softmax(t)
    depths = [0 if x is None else -x for x in log_q]
    value = mpmath.fsum(x * d for x, d in zip(p, depths, strict=True))
    of_t = [x * (d - value) for x, d in zip(p, depths, strict=True)]
    return value, [x - y for x, y in zip(q, p, strict=True)], of_t
