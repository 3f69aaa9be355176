"""Metrics: any split gives the whole; masks, weights, infinities; kept, merged, gathered."""

from __future__ import annotations

import math

import numpy as np
import pytest
from processes import ranks

import kldiv
from kldiv import metrics
from kldiv.errors import DTypeError, InputError, LibraryError, OptionError, ShapeError

RNG = np.random.default_rng(0)
S, T = RNG.normal(size=(2, 40, 7))
KEEP = RNG.random(40) < 0.8
WEIGHT = RNG.random(40) * (RNG.random(40) < 0.9)
CUTS = [slice(0, 1), slice(1, 1), slice(1, 17), slice(17, 40)]


def rows_of(s=S, t=T):
    return kldiv.kl_div_with_logits(s, t, reduction="none")


def written_out(rows, weight):
    mean = (weight * rows).sum() / weight.sum()
    n = (weight != 0).sum()
    error = math.sqrt((weight**2 * (rows - mean) ** 2).sum() * n / (n - 1)) / weight.sum()
    return mean, error, rows[weight != 0].min(), rows[weight != 0].max(), n


@pytest.mark.parametrize("weighed", [False, True])
def test_any_split_gives_the_whole(lib, weighed):
    metric = metrics.KLDivergence()
    for cut in CUTS:
        options = {"row_weight": lib.array(WEIGHT[cut])} if weighed else {}
        spoilt = np.where(KEEP[cut, None], S[cut], np.nan)
        metric.update(lib.array(spoilt), lib.array(T[cut]), where=lib.array(KEEP[cut]), **options)
    found = metric.compute()
    weight = np.where(KEEP, WEIGHT if weighed else 1.0, 0.0)
    tolerance = 1e-13 if lib.widest == "float64" else 1e-5
    np.testing.assert_allclose(found[:5], written_out(rows_of(), weight), rtol=tolerance)
    assert found[5:7] == (0, 0)


def test_one_far_from_zero_loses_no_digits():
    """Sums of squares would: the numbers differ in their tenth digit."""
    rows = 1e6 + RNG.normal(size=10_000) * 1e-4
    metric = metrics.Metric(lambda x: x)
    for part in np.split(rows, 100):
        metric.update(part)
    found = metric.compute()
    assert found.mean == pytest.approx(rows.mean(), rel=1e-15, abs=0)
    error = (rows - rows.mean()).std(ddof=1) / 100
    assert found.standard_error == pytest.approx(error, rel=1e-6, abs=0)


def test_many_batches_of_float32_keep_seven_digits():
    """A billion rows: a thousand batches, doubled again and again."""
    rows = RNG.gamma(2.0, size=(1000, 500)).astype(np.float32)
    metric = metrics.Metric(lambda x: x)
    for batch in rows:
        metric.update(batch)
    whole = metric.copy()
    for _ in range(11):  # 2**11 times the rows, by mergers of equal size
        whole.merge(whole.copy())
    found = whole.compute()
    assert found.rows == rows.size * 2**11 > 1e9
    assert found.mean == pytest.approx(rows.astype(float).mean(), rel=1e-7, abs=0)
    assert found.standard_error == pytest.approx(
        rows.astype(float).std() / math.sqrt(found.rows), rel=1e-6
    )


def test_infinite_and_undefined_rows_are_counted():
    metric = metrics.Metric(lambda x: x)
    metric.update(np.array([1.0, np.inf, 3.0]))
    found = metric.compute()
    assert (found.mean, found.max, found.infinite, found.rows) == (math.inf, math.inf, 1, 3)
    assert found.finite_mean == 2.0
    metric.update(np.array([np.nan]), row_weight=np.array([0.0]))
    assert metric.compute().undefined == 0
    metric.update(np.array([np.nan]))
    assert math.isnan(metric.compute().mean)
    assert metric.compute().undefined == 1
    metric.reset()
    nothing = metric.compute()
    assert nothing.rows == 0
    assert all(map(math.isnan, nothing[:4]))


def test_forms_agree():
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (T, S))
    for cls in (metrics.KLDivergence, metrics.JensenShannonDivergence):
        means = []
        for form, pair in (
            ("logits", (S, T)),
            ("log-probs", (np.log(q), np.log(p))),
            ("probs", (q, p)),
        ):
            metric = cls(form=form)
            metric.update(*pair)
            means.append(metric.compute().mean)
        np.testing.assert_allclose(means, means[0], rtol=1e-13)
    with pytest.raises(OptionError, match="form must be 'logits'"):
        metrics.KLDivergence(form="logit")


def test_cross_entropy_and_perplexity():
    labels = RNG.integers(7, size=40)
    labels[::5] = -100
    metric = metrics.CrossEntropy()
    metric.update(S, labels, where=KEEP)
    log_p = S - np.log(np.exp(S).sum(-1, keepdims=True))
    kept = (labels >= 0) & KEEP
    wanted = -log_p[kept, labels[kept]]
    assert metric.compute().rows == kept.sum()
    assert metric.perplexity == pytest.approx(math.exp(wanted.mean()), rel=1e-13)
    metric.update(np.array([[0.0, 1e6]]), np.array([0]))
    assert metric.perplexity == math.inf


def test_quantiles_within_the_stated_rank_error():
    pytest.importorskip("datasketches")
    rows = RNG.permutation(100_000).astype(float)
    parts = [metrics.Metric(lambda x: x, quantiles=True) for _ in range(3)]
    for part, some in zip(parts, np.array_split(rows, 3), strict=True):
        for batch in np.array_split(some, 20):
            part.update(batch, where=batch >= 0)
    parts[0].merge(parts[1]).merge(parts[2])
    levels = [0.01, 0.1, 0.5, 0.9, 0.999]
    np.testing.assert_allclose(np.array(parts[0].quantile(levels)) / 1e5, levels, atol=0.0068)
    few = metrics.Metric(lambda x: x, quantiles=True)
    few.update(np.arange(10.0), where=np.arange(10) != 9, row_weight=np.arange(10.0))
    assert [few.quantile(q) for q in (0, 1)] == [1.0, 8.0]
    with pytest.raises(OptionError, match="made with quantiles=True"):
        metrics.KLDivergence().quantile(0.5)
    with pytest.raises(OptionError, match="between 0 and 1"):
        few.quantile(1.5)


def test_quantiles_need_their_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasketches", None)
    with pytest.raises(LibraryError, match=r'pip install "kldiv\[metrics\]"'):
        metrics.KLDivergence(quantiles=True)


def test_saved_and_loaded(tmp_path):
    pytest.importorskip("datasketches")
    metric = metrics.KLDivergence(quantiles=True)
    metric.update(S, T)
    metric.save(tmp_path / "a.npz")
    again = metrics.KLDivergence(quantiles=True).load(tmp_path / "a.npz")
    assert again.compute() == metric.compute()
    assert again.quantile([0.2, 0.9]) == metric.quantile([0.2, 0.9])
    assert metrics.KLDivergence().load(tmp_path / "a.npz").compute() == metric.compute()
    with pytest.raises(InputError, match="does not exist"):
        metric.load(tmp_path / "b.npz")
    metrics.KLDivergence().save(tmp_path / "plain.npz")
    with pytest.raises(InputError, match="sketch"):
        metric.load(tmp_path / "plain.npz")
    assert metric.compute() == again.compute(), "a refused file changes nothing"
    for state in ({}, {"format": 9, "moments": np.zeros(11)}, {"format": 1, "moments": [0.0]}):
        with pytest.raises(InputError):
            metric.load_state_dict(state)


def test_merged_are_alike():
    with pytest.raises(OptionError, match="like this one"):
        metrics.KLDivergence().merge(metrics.JensenShannonDivergence())
    with pytest.raises(DTypeError, match="where has dtype uint8; expected bool"):
        metrics.KLDivergence().update(S, T, where=np.full(40, 254, np.uint8))
    with pytest.raises(ShapeError, match=r"where has shape \(3,\)"):
        metrics.KLDivergence().update(S, T, where=np.ones(3, bool))
    with pytest.raises(ShapeError, match="logits and labels"):
        metrics.CrossEntropy().update(S)
    with pytest.raises(OptionError, match="floating-point"):
        metrics.moments(np.arange(3))


def test_inside_a_compiled_function(jax):
    from jax.sharding import PartitionSpec

    metric = metrics.KLDivergence()
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("rows",))

    def moments_of(s, t):
        return metrics.merged(metrics.moments(metric.rows(s, t)), "rows")

    rows, all_of_it = PartitionSpec("rows"), PartitionSpec()
    step = jax.jit(
        jax.shard_map(
            moments_of, mesh=mesh, in_specs=(rows, rows), out_specs=all_of_it, check_vma=False
        )
    )
    with jax.enable_x64(True):
        metric.update_moments(step(S, T))
    wanted = written_out(rows_of(), np.ones(40))
    np.testing.assert_allclose(metric.compute()[:5], wanted, rtol=1e-12)


@pytest.mark.slow
def test_several_processes(torch, tmp_path):
    """Two ranks with unlike numbers of rows get the numbers of all."""
    ranks(_rank, 2, tmp_path)
    found = [np.load(tmp_path / f"{rank}.npy") for rank in (0, 1)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0][:5], written_out(rows_of(), np.ones(40)), rtol=1e-13)


def _rank(rank, size, folder):
    part = (slice(0, 13), slice(13, 40))[rank]
    metric = metrics.KLDivergence()
    metric.update(S[part], T[part])
    alone = metric.compute()
    np.save(f"{folder}/{rank}.npy", metric.sync().compute())
    assert metric.compute() == alone


def test_states_of_several_processes(torch):
    with pytest.raises(LibraryError, match="init_process_group"):
        metrics.KLDivergence().sync()
    states = []
    for cut in CUTS:
        part = metrics.KLDivergence()
        part.update(S[cut], T[cut])
        states.append(part.state_dict())
    found = part._like(states).compute()
    np.testing.assert_allclose(found[:5], written_out(rows_of(), np.ones(40)), rtol=1e-13)
    assert part.compute().rows == 23


def test_gradients_do_not_flow(torch):
    metric = metrics.KLDivergence()
    metric.update(torch.tensor(S, requires_grad=True), torch.tensor(T))
    assert not metric._pending[0].requires_grad
    assert "KLDivergence(kl_div_with_logits, rows=40)" in repr(metric)
