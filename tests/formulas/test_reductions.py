"""Sums of libraries that add one number after another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kldiv.formulas.reductions import sum_in_pairs


class OneByOne:
    """NumPy, which adds no more numbers at a time than it may."""

    bfloat16 = np.float16

    def __init__(self, most):
        self.most = most

    def __getattr__(self, name):
        return getattr(np, name)

    def sum(self, x, axis, keepdims=False):
        assert x.shape[axis] <= self.most
        return np.sum(x, axis=axis, keepdims=keepdims)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 33), ("float64", 8)])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), ()])
def test_sums_in_pairs(axis, keepdims, dtype, most):
    x = (1000 * np.random.default_rng(0).random((9, 17, 33))).astype(dtype)
    found = sum_in_pairs(OneByOne(most), x, axis, keepdims=keepdims)
    wanted = np.sum(x.astype(np.longdouble), axis=axis, keepdims=keepdims)
    assert found.shape == wanted.shape
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found, wanted, rtol=4 * np.finfo(dtype).eps)


def test_whole_numbers_are_added_as_they_are():
    x = np.arange(10**4)
    assert sum_in_pairs(OneByOne(10**4), x, 0, keepdims=False) == x.sum()


def test_a_sum_in_pairs_is_right_to_a_few_roundings():
    x = np.full(2**16 + 5, 0.1)
    found = float(sum_in_pairs(OneByOne(8), x, None, keepdims=False))
    assert abs(found - math.fsum(x)) <= 4 * np.spacing(found)
