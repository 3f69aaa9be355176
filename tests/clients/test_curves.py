"""Trainers take kldiv's losses: the same curves, and better gradients where theirs are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from clients.real import curves, missing


@pytest.mark.leave_out.with_args(missing)
@pytest.mark.parametrize("client", curves.CURVES)
def test_the_training_curve_is_that_of_the_client_s_own_loss(client):
    losses, off = curves.difference(curves.CURVES[client])
    assert len(np.unique(losses)) == curves.STEPS, "nothing is trained"
    assert off <= 1e-5


@pytest.mark.leave_out.with_args(missing)
@pytest.mark.parametrize("client", curves.GRADIENTS)
def test_the_gradient_is_nearer_to_the_truth(client):
    for case, (own, ours) in zip(
        curves.CASES, curves.errors(*curves.GRADIENTS[client]), strict=True
    ):
        rounding = 2e-7 if "float32" in case.split(",") else 2e-3
        assert ours <= rounding, case
        assert ours <= 1.01 * own, case  # of results in bfloat16 it is the rounding alone
