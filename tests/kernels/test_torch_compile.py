"""The kernels of torch's tensors under torch.compile, whose graphs call them."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
from kernels.conformance import each

import kldiv
from kldiv.kernels.cpu import CPU
from kldiv.kernels.triton import TRITON

torch = pytest.importorskip("torch")


LOSSES = {
    "kl_div": kldiv.kl_div,
    "log_target": partial(kldiv.kl_div, log_target=True, reduction="sum"),
    "KL": partial(kldiv.kl_div_with_logits, temperature=1.7),
    "JS": partial(kldiv.js_div_with_logits, beta=0.3, reduction="batchmean"),
    "rows": partial(kldiv.kl_div_with_logits, reduction="none"),
    "elements": partial(kldiv.kl_div, reduction="none"),
}


@pytest.fixture
def calls(technology, monkeypatch):
    """What the kernels compute."""
    torch.compiler.reset()
    kernels = {"cpu": CPU, "triton": TRITON}[technology.name]
    found, compute = [], kernels.compute

    def counted(work):
        found.append(work)
        return compute(work)

    monkeypatch.setattr(kernels, "compute", counted)
    return found


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def on_torch(technology):
    return technology.autograd


@each("name", LOSSES, only=on_torch)
def test_graphs_call_the_kernel(technology, calls, name):
    s, t = (torch.randn(6, 50, device=technology.device).log_softmax(-1) for _ in range(2))
    t = t.exp() if name in {"kl_div", "elements"} else t
    s.requires_grad_(), t.requires_grad_()
    expected = LOSSES[name](s, t)
    gradients = torch.autograd.grad(expected.sum(), (s, t))
    eager = len(calls)
    value = compiled(LOSSES[name])(s, t)
    found = torch.autograd.grad(value.sum(), (s, t))
    assert len(calls) >= eager + 2  # forward and backward
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-7, atol=1e-12)


@pytest.mark.slow
@each(only=on_torch)
def test_a_graph_serves_every_batch(technology, calls):
    counters = import_module("torch._dynamo.utils").counters
    counters.clear()
    function = compiled(kldiv.kl_div_with_logits)
    for size in (3, 4, 5, 9):
        s, t = torch.randn(2, size, 20, device=technology.device)
        s.requires_grad_()
        torch.autograd.grad(function(s, t), s)
    assert counters["stats"]["unique_graphs"] <= 2
    assert len(calls) == 8


@pytest.mark.slow
def test_a_temperature_may_change():
    torch.compiler.reset()
    counters = import_module("torch._dynamo.utils").counters
    counters.clear()
    s, t = 9 * torch.randn(2, 3, 8)
    s.requires_grad_()
    function = compiled(kldiv.kl_div_with_logits)
    for temperature in (1.0, 0.7, 3.1, 4.0):
        value, wanted = (
            loss(s, t, temperature=temperature) for loss in (function, kldiv.kl_div_with_logits)
        )
        torch.testing.assert_close(value, wanted, rtol=3e-7, atol=0)
        slopes = (torch.autograd.grad(each, s)[0] for each in (value, wanted))
        torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-9)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@each(only=on_torch)
def test_vmap_inside_a_graph(technology, calls):
    s, t = torch.randn(2, 3, 4, 20, device=technology.device)

    def mapped(s, t):
        return torch.func.vmap(kldiv.kl_div_with_logits)(s, t)

    found = compiled(mapped)(s, t)
    assert calls
    expected = torch.stack([kldiv.kl_div_with_logits(a, b) for a, b in zip(s, t, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
