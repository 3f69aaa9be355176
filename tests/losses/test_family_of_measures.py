"""Skew, total variation, Hellinger, χ² and α-divergences of probabilities, against mpmath."""

from __future__ import annotations

from functools import cache, partial

import mpmath
import numpy as np
import pytest
from f_divergences import of_masses
from libraries import unit

import kldiv
from kldiv.divergences import Alpha, ChiSquared, Hellinger, Mixture, TotalVariation
from kldiv.errors import OptionError

INF = np.inf
ORDERS = (0.3, 0.999, 2.5, -1)
MEASURES = {
    "skew": (partial(kldiv.skew_divergence, alpha=0.2), Mixture(0.2, 1.0, 0.0)),
    "TV": (kldiv.tv_divergence, TotalVariation()),
    "Hellinger": (kldiv.hellinger_divergence, Hellinger()),
    "chi2": (kldiv.chi2_divergence, ChiSquared()),
    **{f"alpha {a}": (partial(kldiv.alpha_divergence, alpha=a), Alpha(a)) for a in ORDERS},
}


@cache
def rows(dtype):
    """Pairs of rows: near, apart, and some whose classes have hardly any mass."""
    random = np.random.default_rng(3)
    p = random.dirichlet(np.ones(30), size=4)
    q = p * (1 + np.array([[1e-4], [1e-2], [0.9], [0]]) * random.uniform(-1, 1, p.shape))
    p[3], q[3] = np.exp(7 * random.normal(size=(2, 30)) - 30)
    return p.astype(dtype), q.astype(dtype)


@pytest.mark.leave_out(
    lambda lib, name: "compiled, each for seconds" if lib.root == "jax" and name != "skew" else None
)
@pytest.mark.slow_where(lambda lib: lib.root == "jax")
@pytest.mark.parametrize("name", MEASURES)
def test_values_and_gradients(lib, name):
    measure, record = MEASURES[name]
    for dtype in {"float32", "float64"} & set(lib.floats):
        p, q = rows(dtype)
        with mpmath.workdps(50):
            exact = [
                [of_masses(record, *map(mpmath.mpf, pair)) for pair in zip(*row, strict=True)]
                for row in zip(p.astype("f8"), q.astype("f8"), strict=True)
            ]
            wanted = [float(mpmath.fsum(each[0] for each in row)) for row in exact]
        arrays = lib.array(p, dtype), lib.array(q, dtype)
        found = lib.numpy(measure(*arrays))
        np.testing.assert_allclose(found, wanted, rtol=64 * unit(dtype))
        for row in (0, 2, 3):
            one = [array[row, :] for array in arrays]
            _, gradients = kldiv.value_and_grad(measure, argnums=(0, 1))(*one)
            for index, gradient in enumerate(gradients):
                slopes = [float(each[1 + index]) for each in exact[row]]
                # Roundings of log(p/q), which powers magnify.
                np.testing.assert_allclose(lib.numpy(gradient), slopes, rtol=128 * unit(dtype))


# p, q: skew, TV, Hellinger, χ², α = 0.3, α = 2.5
EDGES = {
    (0.0, 0.5): (0.4, 0.25, 0.25, 0.5, 0.5 / 0.3, 0.5 / 2.5),
    (0.5, 0.0): (0.5 * np.log(5) - 0.4, 0.25, 0.25, INF, 0.5 / 0.7, INF),
    (0.0, 0.0): (0, 0, 0, 0, 0, 0),
    (-0.1, 0.5): (np.nan,) * 6,
}


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_edges(lib, edge):
    names = "skew", "TV", "Hellinger", "chi2", "alpha 0.3", "alpha 2.5"
    p, q = (lib.array(np.array([[x, 0.5]])) for x in edge)
    for name, wanted in zip(names, EDGES[edge], strict=True):
        measure, _ = MEASURES[name]
        lib.assert_equal(measure(p, q), [wanted], ulps=4)
        value, slopes = kldiv.value_and_grad(measure, (0, 1))(p[0, :], q[0, :])
        for slope in map(lib.numpy, slopes):
            # 0 where the limit is infinite but the value is not, as a softmax before it needs.
            assert np.isfinite(slope).all() == np.isfinite(lib.numpy(value))
            assert slope[1] == 0


def test_limits_and_options():
    p, q = (row[2] for row in rows("float64"))
    assert kldiv.alpha_divergence(p, q, alpha=1) == kldiv.kl_divergence(p, q)
    assert kldiv.alpha_divergence(p, q, alpha=0) == kldiv.kl_divergence(q, p)
    for alpha, slopes in ((0, (1 - q / p, np.log(q / p))), (1, (np.log(p / q), 1 - p / q))):
        loss = kldiv.value_and_grad(partial(kldiv.alpha_divergence, alpha=alpha), (0, 1))
        np.testing.assert_allclose(loss(p, q)[1], slopes, rtol=1e-12, atol=1e-12)
    for near, limit in ((1 + 1e-12, 1), (1e-13, 0)):
        found, wanted = (kldiv.alpha_divergence(p, q, alpha=a) for a in (near, limit))
        assert found == pytest.approx(wanted, rel=1e-11, abs=0)
    counts = np.array([3, 5]), np.array([1, 1])
    assert kldiv.tv_divergence(*counts, normalize=True) == pytest.approx(0.125)
    skew = [kldiv.skew_divergence(p, q, base=base) for base in (None, 2)]
    assert skew[0] == pytest.approx(skew[1] * np.log(2))
    with pytest.raises(OptionError, match="alpha must lie between 0 and 1"):
        kldiv.skew_divergence(p, q, alpha=1)
    with pytest.raises(OptionError, match="alpha must be a finite number"):
        kldiv.alpha_divergence(p, q, alpha=INF)
