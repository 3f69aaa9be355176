"""Blocks of rows: none is empty, and together they are the whole."""

from __future__ import annotations

import numpy as np
import pytest

from kldiv.formulas.blocks import PAIR_BLOCK_BYTES, pairs_at_a_time, row_blocks, rows_at_a_time


def test_a_row_longer_than_a_block_is_a_block():
    assert rows_at_a_time((3, 10**9), "float32") == 1
    assert pairs_at_a_time((5, 10**9), (7, 10**9), "float64", PAIR_BLOCK_BYTES) == (1, 1)
    assert pairs_at_a_time((5, 4), (0, 4), "float32", 64) == (4, 1)
    assert pairs_at_a_time((5, 4), (2, 4), "float32", 64) == (2, 2)


@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 5, 4), (1, 4), (4,), (0, 4)])
@pytest.mark.parametrize("block_bytes", [1, 32, 100, 1 << 20])
def test_blocks_cover_each_row_once(shape, block_bytes):
    seen = np.zeros(shape[:-1])
    for block in row_blocks(shape, "float32", block_bytes):
        seen[block] += 1
    assert (seen == 1).all()
