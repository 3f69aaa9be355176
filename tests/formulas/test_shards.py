"""Rows whose classes lie in parts, one of them empty: every plan gives what whole rows give."""

from __future__ import annotations

import itertools
from importlib import import_module

import numpy as np
import pytest
from f_divergences import RECORDS

import kldiv
from kldiv.backends import get
from kldiv.formulas import numbers, state
from kldiv.formulas.divergences import JensenShannon, KullbackLeibler
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.plans import plan_of
from kldiv.formulas.rows import RowGradient, RowLoss
from kldiv.formulas.shards import Alone, of_rank
from kldiv.formulas.sparse import TopKLoss
from kldiv.formulas.spread import Labels, LabelShare
from kldiv.formulas.state import Rows, State

XP = get("numpy").namespace()
WIDE = ("none", "float64", "float64", "float64")
CUTS = [0, 3, 3, 5, 9]
ROWS = 4


def by_parts(operation, arrays, *, tree, differentiated=False):
    """Run a plan by hand: parts share, shares merge, one after another or in a tree."""
    plan = plan_of(operation, differentiated=differentiated)
    classed, more = arrays[: plan.classed], arrays[plan.classed :]
    weight, others = more[: plan.weighted], more[plan.weighted :]
    parts = [[a[:, i:j] for a in classed] for i, j in itertools.pairwise(CUTS)]
    known = []

    def shares(share, *first):
        joined = [np.concatenate(known, axis=-1)] if known else []
        return [share.elements(XP, *part, *first, *joined, *others) for part in parts]

    for stage in plan.stages:
        found = shares(stage.share)
        if tree:
            pairs = (found[:2], found[2:])
            found = [stage.merge(XP, pair) for pair in pairs]
        known.append(stage.finish(XP, found))
        assert known[-1].shape == (ROWS, stage.known)
    if plan.last.keeps_classes:
        return np.concatenate(shares(plan.last, *weight), axis=-1)
    return plan.last.elements(XP, np.concatenate(known, axis=-1), *others)


def agree(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-16)


@pytest.fixture(autouse=True)
def calm():
    """As an adapter calls formulas."""
    with get("numpy").context(np.zeros(1)):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("others", ["", "temperature", "temperature mask", "mask"])
@pytest.mark.parametrize(
    "divergence",
    [
        KullbackLeibler(),
        JensenShannon(),
        JensenShannon(0.05),
        *(RECORDS[name] for name in ("skew", "Jeffreys, weighed", "Hellinger")),
    ],
    ids=repr,
)
def test_logits(rng, divergence, others, tree):
    s, t = (3 * rng.normal(size=(ROWS, CUTS[-1])) for _ in range(2))
    s[1] = t[1] + 1e-9 * s[1]  # nearly equal
    s[2, 0], t[2, 4] = -np.inf, -np.inf
    more = [rng.uniform(0.5, 3, ROWS)] if "temperature" in others else []
    if "mask" in others:
        more.append(np.array([True, True, True, False]))
    how = (divergence.canonical()[0], None if "temperature" in others else 1.7)
    loss = RowLoss(*WIDE, *how)
    arrays = [s, t, *more]
    wanted = loss.value(XP, *arrays)
    for differentiated in (False, True):
        agree(by_parts(loss, arrays, tree=tree, differentiated=differentiated), wanted)
    weight = rng.normal(size=ROWS)
    for index in (0, 1):
        slope = RowGradient(*WIDE, *how, index)
        wanted = slope.elements(XP, s, t, weight, *more)
        agree(by_parts(slope, [s, t, weight, *more], tree=tree), wanted)


def test_one_order_of_a_state_s_fields():
    assert State._fields == numbers.FIELDS
    assert Rows._fields == numbers.ROW_FIELDS
    triton = pytest.importorskip("kldiv.kernels.triton.state", exc_type=ImportError)
    assert triton.State._fields == import_module("kldiv.kernels.triton").FIELDS


def test_a_backward_by_formulas_reads_no_state_again(monkeypatch):
    torch = pytest.importorskip("torch")
    read, saved = [], []
    block_state = state.block_state
    monkeypatch.setattr(
        state,
        "block_state",
        lambda *given, **options: read.append(given) or block_state(*given, **options),
    )
    s, t = torch.randn(2, ROWS, 50, dtype=torch.float64)
    s.requires_grad_()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda a: saved.append(a) or a, lambda a: a)
    with kldiv.config_context(kernel="pure"), hooks:
        rows = kldiv.kl_div_with_logits(s, t, reduction="none")
        assert rows.is_contiguous()
        rows.mul_(2).sum().backward()
    assert len(read) == 1
    assert [a.shape[-1] for a in saved if a.shape[:-1] == (ROWS,)] == [50, 50, len(Rows._fields)]


@pytest.mark.parametrize("alpha", [0, 0.5, 3, np.inf])
def test_an_empty_chunk_of_dask(rng, alpha):
    da = pytest.importorskip("dask.array")
    p, q = rng.dirichlet(np.ones(6), size=(2, 3))
    chunked = [da.from_array(a, chunks=(3, (3, 0, 3))) for a in (p, q)]
    found = kldiv.renyi_divergence(*chunked, alpha=alpha)
    agree(np.asarray(found), kldiv.renyi_divergence(p, q, alpha=alpha))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_part_that_masks_its_classes_by_finite_logits_has_no_entropy(dtype):
    """Its depth times its mass is beyond the largest number, and its share of the whole is 0."""
    lowest = np.finfo(dtype).min
    s = np.array([[0.5, 1.0, *[lowest] * 4]], dtype)
    loss = LabelLoss("none", dtype, dtype, dtype, labelled=False, entropic=True)
    parts = [loss.settings(LabelShare).elements(XP, part) for part in (s[:, :2], s[:, 2:])]
    labels = Labels(XP, None, Alone(), loss, [s])
    agree(labels.values(labels.merged(parts, 1.0)), loss.elements(XP, s))


def test_a_rank_s_share_beside_a_teacher_of_all_classes(rng):
    """There are no others, whose shares would be 0/0: all gradients are those of whole rows."""
    s, t = rng.normal(size=(2, ROWS, 5))
    a = t - np.log(np.exp(t).sum(axis=-1, keepdims=True))
    arrays = [s, a, rng.uniform(0.5, 2, ROWS), np.tile(np.arange(5), (ROWS, 1))]
    loss = TopKLoss(*WIDE, temperature=None)

    def evaluate(operation, *given):
        return operation.elements(XP, *given)

    rank = of_rank(XP, evaluate, Alone(), loss, arrays)
    values, known = rank.forward()
    agree(values, loss.elements(XP, *arrays))
    ones = np.ones(ROWS)
    for index in range(3):
        wanted = loss.pullback(XP, evaluate, index, ones, *arrays)
        agree(rank.backward(index, ones, known), wanted)
