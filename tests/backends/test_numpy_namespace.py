"""Compare the functions that stand in for NumPy's own with these, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from kldiv.backends.numpy_namespace import _FEW, where

SHAPE = (4, _FEW // 4)
NUMBERS = [0.0, -0.0, 1.5, -2.5e-40, np.inf, -np.inf, np.nan]


def numbers(dtype, first=0):
    return np.resize(NUMBERS[first:] + NUMBERS[:first], SHAPE).astype(dtype)


OTHERS = {
    "array": lambda dtype: numbers(dtype, 3),
    "number": lambda dtype: 0.25,
    "whole number": lambda dtype: 3,
    "scalar": lambda dtype: np.dtype(dtype).type(-np.inf),
    "column": lambda dtype: numbers(dtype)[:, :1],
    "wider scalar": lambda dtype: np.float64(0.1),
    "wider array": lambda dtype: numbers(np.float64, 2),
    "truth": lambda dtype: True,
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("condition", ["bool", "int64"])
def test_a_choice_by_bits(condition, dtype, other):
    most = 2 if condition == "bool" else 3
    mask = np.random.default_rng(0).integers(most, size=SHAPE).astype(condition)
    own, other = numbers(dtype), OTHERS[other](dtype)
    for pair in ((own, other), (other, own), (own[:, ::-1], other), (own[:1], other)):
        found, wanted = where(mask, *pair), np.where(mask, *pair)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert found.tobytes() == wanted.tobytes()
