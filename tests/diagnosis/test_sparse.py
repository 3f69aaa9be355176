"""`diagnose` of sparse teachers: what it names, and that it leaves good ones alone."""

from __future__ import annotations

import numpy as np
import pytest

import kldiv

T = np.random.default_rng(2).normal(size=(4, 20))


def found(teacher, classes=20):
    return [each.code for each in kldiv.diagnose(np.zeros((4, classes)), teacher).findings]


def test_good_teachers():
    own = kldiv.topk_log_probs(T, 3)
    assert found(own) == found(own._replace(rest=None)) == found(kldiv.topk_log_probs(T, 20)) == []
    padded = own._replace(log_probs=own.log_probs.copy(), indices=own.indices.copy(), rest=None)
    padded.log_probs[1, 1:], padded.indices[1, 1:] = -np.inf, 99
    assert found(padded) == []


@pytest.mark.parametrize(
    ("code", "severity", "change"),
    [
        ("repeated-indices", "error", lambda a, i: i.__setitem__((2, 1), i[2, 0])),
        ("foreign-indices", "error", lambda a, i: i.__setitem__((2, 1), 20)),
        ("foreign-indices", "error", lambda a, i: i.__setitem__((2, 1), -1)),
        ("nan", "error", lambda a, i: a.__setitem__((2, 1), np.nan)),
        ("mass-above-one", "error", lambda a, i: a.__setitem__(2, np.exp(a[2]))),
        ("rest-rounds-to-zero", "warning", lambda a, i: a.__setitem__(2, [0.0, -50.0, -60.0])),
    ],
)
def test_what_is_named(code, severity, change):
    own = kldiv.topk_log_probs(T, 3)
    own = own._replace(log_probs=own.log_probs.copy(), indices=own.indices.copy(), rest=None)
    change(own.log_probs, own.indices)
    report = kldiv.diagnose(T, own)
    (finding,) = report.findings
    assert (finding.code, finding.severity) == (code, severity)
    assert "1 row, first at [2]" in finding.message
    assert bool(report)


def test_a_teacher_in_bfloat16(torch):
    """NumPy has no such dtype."""
    own = kldiv.topk_log_probs(torch.tensor(T), 3)
    assert found(own._replace(log_probs=own.log_probs.bfloat16())) == []


def test_masses_that_do_not_add_up(torch):
    own = kldiv.topk_log_probs(torch.tensor(T), 3)
    assert found(own._replace(rest=own.rest + 0.1)) == ["masses-do-not-add-up"]
