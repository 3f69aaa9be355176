"""The Triton kernels beyond ``test_conformance.py`` and ``test_torch.py``: a GPU, and none."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import pytest
from processes import python

import kldiv
from kldiv.kernels import triton
from kldiv.kernels.triton import TRITON

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from kernels.conformance import TECHNOLOGIES

pytestmark = TECHNOLOGIES["triton"].marks()

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

LOSSES = {
    "kl_div": kldiv.kl_div,
    "log_target": functools.partial(kldiv.kl_div, log_target=True),
    "logits": kldiv.kl_div_with_logits,
    "js": functools.partial(kldiv.js_div_with_logits, beta=0.3),
}


def pair(loss, shape, dtype=torch.float32, seed=0):
    """What a loss takes: log-probabilities or logits, and the target for them."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if loss in {"kl_div", "log_target"}:
        x, y = x.log_softmax(-1), (y.softmax(-1) if loss == "kl_div" else y.log_softmax(-1))
    return [array.to(DEVICE, dtype).requires_grad_() for array in (x, y)]


def agree(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        a, b = one.detach().double(), other.detach().double()
        scale = b[b.isfinite()].abs().amax() if b.isfinite().any() else 0.0
        atol = float(tolerance * scale)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=atol, equal_nan=True)


@pytest.fixture
def fused():
    """Have the kernels or an error."""
    torch.compiler.reset()
    with kldiv.config_context(kernel="triton"):
        yield


# --- autograd -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kl_div", "logits"])
def test_expanded_tensors(fused, loss):
    function = functools.partial(LOSSES[loss], reduction="none")
    x, y = (each[:1].expand(each.shape) for each in pair(loss, (4, 5, 60)))
    for other in (y, y.detach().clone().requires_grad_()):
        found = function(x, other)
        upstream = 0.5 + torch.arange(found.numel(), device=DEVICE).reshape(found.shape)
        results = [found, *torch.autograd.grad(found, (x, other), upstream.float())]
        with kldiv.config_context(kernel="pure"):
            wanted = function(x, other)
            agree(results, [wanted, *torch.autograd.grad(wanted, (x, other), upstream)], 1e-5)


def test_autocast_gives_float32(fused):
    s, t = pair("logits", (3, 40), torch.bfloat16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        value = kldiv.kl_div_with_logits(s, t)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, s)[0].dtype == torch.bfloat16


# --- the quick way --------------------------------------------------------------------------------


def heads(classes, seed=3):
    """One class of each row, at random."""
    places = torch.randint(classes, (2, 1), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(2, classes).scatter_(1, places, 1.0)


# name: student's and teacher's logits, of two arrays of independent normal numbers
QUICK = {
    "independent": lambda a, b: (a, b),
    "close": lambda a, b: (b + 0.01 * a, b),
    "far": lambda a, b: (4 * a, 4 * b),
    "sure teacher": lambda a, b: (a, b + 25 * heads(b.shape[1])),
    "both sure of the same": lambda a, b: (a + 20 * heads(b.shape[1]), b + 25 * heads(b.shape[1])),
    "a class the teacher lacks": lambda a, b: (b + 9 * heads(b.shape[1]), b),
    "both masked": lambda a, b: (a - 1e9 * (b > 1), b - 1e9 * (b > 1)),
    "at another offset": lambda a, b: (b + 1e-4 * a + 1000.3, b),
}


@pytest.mark.parametrize("temperature", [1.0, 2.3])
@pytest.mark.parametrize("name", QUICK)
def test_rows_that_go_the_quick_way(fused, monkeypatch, name, temperature):
    launch, row_loss = (
        importlib.import_module(f"kldiv.kernels.triton.{each}") for each in ("launch", "row_loss")
    )
    monkeypatch.setattr(launch, "SMALL", 0)
    monkeypatch.setattr(launch, "PROGRAMS", 1)
    forward, kept = row_loss._forward, []

    def spy(*args, **options):
        kept.append(forward(*args, **options))
        return kept[-1]

    monkeypatch.setattr(row_loss, "_forward", spy)
    generator = torch.Generator().manual_seed(2)
    s, t = (
        each.to(DEVICE).requires_grad_()
        for each in QUICK[name](*torch.randn((2, 2, 3000), generator=generator))
    )
    loss = functools.partial(kldiv.kl_div_with_logits, temperature=temperature)
    found = loss(s, t)
    slopes = torch.autograd.grad(found, (s, t))
    assert kept[0][0][:, triton.SAVED.index("quick")].tolist() == [1, 1]
    with kldiv.config_context(kernel="pure"):
        s, t = (each.detach().double().requires_grad_() for each in (s, t))
        wanted = loss(s, t)
        exact = torch.autograd.grad(wanted, (s, t))
    assert abs(found.item() / wanted.item() - 1) < 3e-7
    for slope, true in zip(slopes, exact, strict=True):
        assert (slope.double() - true).norm() <= 3e-7 * true.norm()


# --- on a GPU -------------------------------------------------------------------------------------


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("loss", LOSSES)
def test_a_cuda_graph_captures_both_passes(fused, loss):
    arrays = pair(loss, (4, 5000))
    with torch.no_grad():
        others = [each.clone() for each in pair(loss, (4, 5000), seed=1)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles
        torch.autograd.grad(LOSSES[loss](*arrays), arrays)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = LOSSES[loss](*arrays)
        found = torch.autograd.grad(value, arrays)
    with torch.no_grad():
        for array, other in zip(arrays, others, strict=True):
            array.copy_(other)
    graph.replay()
    expected = LOSSES[loss](*arrays)
    agree([value, *found], [expected, *torch.autograd.grad(expected, arrays)], 0)


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
def test_nothing_waits_for_the_gpu(fused):
    arrays = pair("logits", (4, 5000))
    torch.autograd.grad(kldiv.kl_div_with_logits(*arrays), arrays)
    where = torch.ones(4, dtype=torch.bool, device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in (kldiv.kl_div_with_logits, kldiv.js_div_with_logits):
            torch.autograd.grad(loss(*arrays, where=where), arrays)
        torch.autograd.grad(kldiv.kl_div(*arrays, where=where[:, None]), arrays)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- where they do not run ------------------------------------------------------------------------


def test_tensors_of_the_cpu_are_not_interpreted_by_themselves():
    assert kldiv.explain(torch.ones(9)).kernel == "pure"
    assert kldiv.explain(torch.ones(1 << 20)).kernel in {"cpu", "pure"}


def test_without_a_gpu_and_without_triton(monkeypatch):
    monkeypatch.setattr("kldiv.backends.routing._places", {})
    monkeypatch.setattr(TRITON, "failure", None)
    monkeypatch.setattr(TRITON, "interpreted", False)
    monkeypatch.setattr(triton, "has_gpu", lambda: True)
    with kldiv.config_context(kernel="triton"):
        assert kldiv.explain(torch.ones(9)).kernel == "pure", "of a tensor that is elsewhere"
    monkeypatch.setattr(triton, "has_gpu", lambda: False)
    assert TRITON.problem() == "torch finds no CUDA device"
    monkeypatch.setattr(TRITON, "installed", False)
    assert "triton: Triton is not installed" in str(kldiv.explain(torch.ones(9, device=DEVICE)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_kernel_compiles_for_a_gpu_without_spills(dtype):
    script = Path(__file__).with_name("triton_variants.py")
    assert python(script, dtype, TRITON_INTERPRET="0").count(" registers") >= 12
