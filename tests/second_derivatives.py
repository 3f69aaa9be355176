"""Second derivatives of divergences in mpmath, and the error of those that are found."""

from __future__ import annotations

import mpmath
import numpy as np

from bench.studies.targets.rows import generalised, of_mixture


def mixed(p, q, beta):
    """Return β KL(P‖M) + (1 − β) KL(Q‖M) of M = βP + (1 − β)Q; of β = 0 KL(P‖Q), of 1 KL(Q‖P)."""
    if beta in (0, 1):
        return generalised(*p, *q) if beta == 0 else generalised(*q, *p)
    return of_mixture(beta, beta, 1 - beta)(*p, *q)


@mpmath.workdps(500)
def hessian_error(found, function, x):
    """Return the largest error of a Hessian, as `bench.studies.search` scales it."""
    at = [mpmath.mpf(float(each)) for each in x]
    slopes, wanted = _derivatives(function, at)
    reach = abs(slopes) + abs(wanted) @ [abs(each) for each in at]
    share = np.outer(reach, [1 / abs(each) for each in at])
    curved = [mpmath.sqrt(abs(each)) for each in np.diagonal(wanted)]
    error = abs(np.array(found) - wanted) / (np.outer(curved, curved) + share + share.T)
    assert all(map(mpmath.isfinite, error.ravel()))
    return error.max()


def _derivatives(function, x):
    """Return the gradient and the Hessian by differences."""
    step = mpmath.mpf(10) ** -120
    corners = [(i, j) for i in (1, -1) for j in (1, -1)]

    def moved(k, other, i, j):
        y = list(x)
        y[k] += i * step
        y[other] += j * step
        return function(y)

    size = range(len(x))
    slopes = [(moved(k, k, 1, 0) - moved(k, k, -1, 0)) / (2 * step) for k in size]
    return np.array(slopes), np.array(
        [
            [sum(i * j * moved(k, m, i, j) for i, j in corners) / (4 * step**2) for m in size]
            for k in size
        ]
    )
