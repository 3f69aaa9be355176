"""Divergences other than KL and Jensen-Shannon by the CPU kernels, and how one is added."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from libraries import Library, unit

import kldiv
from kldiv.divergences import Jeffreys, Mixture
from kldiv.formulas.rows import RowLoss
from kldiv.kernels import Work
from kldiv.kernels.cpu import CPU

pytest.importorskip("llvmlite")

from kldiv.kernels.cpu import divergences, row_loss
from kldiv.kernels.cpu.code import at_least, select
from kldiv.kernels.cpu.elementary import NEAR, exp, phi_near

XP = kldiv.backends.get("numpy").namespace()
RECORDS = (
    Jeffreys(0.7, 1.3),
    Jeffreys(0.0, 2.0),
    Jeffreys(1e-3, 1.0),
    Mixture(0.1, 1.0, 0.0),
    Mixture(0.99, 0.0, 1.0),
    Mixture(0.3, 0.2, 2.0),
)


def rows(dtype, distance):
    random = np.random.default_rng(3)
    t = 3 * random.normal(size=(6, 4000))
    s = t + distance * random.normal(size=t.shape)
    t[0, 5] = s[1, 7] = s[2, 9] = t[2, 9] = -np.inf
    t[3] += 100
    return s.astype(dtype), t.astype(dtype)


def assert_right(found, wanted, dtype):
    np.testing.assert_allclose(found[0], wanted[0], rtol=9 * unit(dtype))
    for one, other in zip(found[1], wanted[1], strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        error = np.nansum(abs(one - other), axis=-1)
        assert (error <= 9 * unit(dtype) * np.nansum(abs(other), axis=-1)).all()


@pytest.mark.parametrize("divergence", RECORDS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "distance"), [("float32", 1e-3), ("float32", 20), ("float64", 1)]
)
def test_mixtures_and_jeffreys(divergence, dtype, distance):
    s, t = rows(dtype, distance)
    operation = RowLoss("none", dtype, dtype, dtype, divergence, 0.8)
    work = Work(operation, XP, [s, t], 1, gradients=(0, 1))
    assert CPU.refusal(work) is None
    loss = functools.partial(kldiv.f_div_with_logits, divergence=divergence, temperature=0.8)
    with kldiv.config_context(kernel="pure"), np.errstate(all="ignore"):
        wide = s.astype("f8"), t.astype("f8")
        value = loss(*wide, reduction="none")
        _, gradients = kldiv.value_and_grad(functools.partial(loss, reduction="sum"), (0, 1))(*wide)
    assert_right(CPU.compute(work), (value, gradients), dtype)


@pytest.mark.parametrize("lib", [Library.NUMPY, Library.TORCH], ids=str)
def test_public_records_run_on_the_kernel(lib, monkeypatch):
    if problem := lib.problem():
        pytest.skip(problem)
    calls, run = [], row_loss.run
    monkeypatch.setattr(row_loss, "run", lambda *a, **k: calls.append(1) or run(*a, **k))
    s, t = rows("float32", 1)
    if lib is Library.TORCH:
        torch = pytest.importorskip("torch")
        s, t = torch.from_numpy(s), torch.from_numpy(t)
    for divergence in RECORDS:
        kldiv.f_div_with_logits(s, t, divergence=divergence)
    assert len(calls) == len(RECORDS)


# --- a divergence more ----------------------------------------------------------------------------


class TotalVariation(divergences.Divergence):
    """½ Σ |p − q|, u is ½ of the sign of log(p/q)."""

    name = "total variation"

    def term(self, lane, fall):
        return abs(fall) * 0.5

    def rise(self, rows, side):
        at = rows.vector(_half_sign(rows.get(f"at_{side}")))
        return lambda lane: _half_sign(lane.x) - at


def _half_sign(x):
    return select(x > 0.0, 0.5, select(x < 0.0, x.of(-0.5), 0.0))


class Hellinger(divergences.Divergence):
    """½ Σ (√p − √q)², u is ½(1 − √(q/p))."""

    name = "Hellinger"

    def term(self, lane, fall):
        base = select(lane.x < 0.0, lane.q, lane.p)
        less = _less(abs(lane.x) * 0.5)
        return base * 0.5 * less * less

    def rise(self, rows, side):
        scale = rows.vector(exp(rows.get(f"at_{side}") * -0.5) * -0.5)
        return lambda lane: scale * _less(at_least(lane.step, -170.0) * 0.5)


def _less(x):
    return select(abs(x) < NEAR, phi_near(x) - x, exp(-x) - 1.0)


@pytest.mark.parametrize("kind", [TotalVariation, Hellinger])
def test_a_divergence_is_three_functions(kind, monkeypatch, tmp_path):
    monkeypatch.setenv("KLDIV_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(divergences.DIVERGENCES, kind.name, kind)
    monkeypatch.setattr(row_loss, "spelled", lambda _: row_loss.Spelled(kind.name))
    s, t = rows("float64", 1)
    operation = RowLoss("none", "float64", "float64", "float64")
    found = CPU.compute(Work(operation, XP, [s, t], 1, gradients=(0, 1)))
    q, p = (np.exp(a - a.max(-1, keepdims=True)) for a in (s, t))
    q, p = (a / a.sum(-1, keepdims=True) for a in (q, p))
    value = abs(p - q) / 2 if kind is TotalVariation else (np.sqrt(p) - np.sqrt(q)) ** 2 / 2
    gradients = []
    for own, other in ((q, p), (p, q)):
        with np.errstate(all="ignore"):
            u = np.sign(own - other) / 2
            u = u if kind is TotalVariation else (1 - np.sqrt(other / own)) / 2
        u = np.where(own > 0, u, 0)
        gradients.append(own * (u - (own * u).sum(-1, keepdims=True)))
    np.testing.assert_allclose(found[0], value.sum(-1), rtol=1e-13)
    for one, other in zip(found[1], gradients, strict=True):
        assert abs(one - other).sum() <= 1e-13 * abs(other).sum()
