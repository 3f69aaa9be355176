"""The CPU kernel of soft caps, against the formulas in wider numbers."""

from __future__ import annotations

import numpy as np
import pytest
from libraries import unit

import kldiv
from kldiv.formulas.layers import SoftCap, SoftCapSlope

pytest.importorskip("llvmlite")

INF = np.inf


def evaluated(operation, *arrays, kernel):
    backend = kldiv.backends.get("numpy")
    with np.errstate(all="ignore"):
        return backend.compute(operation, arrays, kernel)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_as_the_formulas(dtype):
    random = np.random.default_rng(0)
    sizes = 10.0 ** random.uniform(-9, 3, 70_003)
    x = (random.normal(size=70_003) * sizes).astype(dtype)
    x[:6] = 0.0, -INF, INF, np.nan, np.finfo(dtype).max, -15.0001
    gradient = random.normal(size=x.shape).astype(dtype)
    wide = [a.astype("longdouble") for a in (gradient, x)]
    found = evaluated(SoftCap(30.0), x, kernel="cpu")
    wanted = evaluated(SoftCap(30.0), wide[1], kernel="pure")
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, wanted.astype("f8"), rtol=6 * unit(dtype), atol=0)
    found = evaluated(SoftCapSlope(30.0, 0.7), gradient, x, kernel="cpu")
    wanted = evaluated(SoftCapSlope(30.0, 0.7), *wide, kernel="pure").astype("f8")
    # The exponent is rounded, so where the derivative is small, its logarithm is right.
    np.testing.assert_allclose(found, wanted, rtol=6 * unit(dtype), atol=32 * unit(dtype))


def test_layers_use_it(small_too, launches):
    random = np.random.default_rng(1)
    head = kldiv.Head(random.normal(size=(5, 3)), random.normal(size=(7, 3)), softcap=2.0)
    kldiv.value_and_grad(kldiv.linear_kl_div)(head, head)
    used = [type(work.operation).__name__ for work in launches]
    assert used == ["SoftCap", "SoftCap", "RowLoss", "SoftCapSlope"]
