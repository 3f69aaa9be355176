"""Kernels of tensors: kept graphs, operators, torch.compile, and compilers that fail."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
from kernels.conformance import each

import kldiv
from kldiv.errors import BackendError
from kldiv.formulas.divergences import KullbackLeibler
from kldiv.formulas.rows import RowLoss
from kldiv.kernels.cpu import CPU
from kldiv.kernels.spelling import spelled
from kldiv.kernels.triton import TRITON

torch = pytest.importorskip("torch")

from kldiv.backends.torch_.operators import Asked, _fused  # noqa: E402 - after the skip

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:.*torch.jit.*is deprecated:DeprecationWarning",
)
TECHNOLOGIES = {"cpu": CPU, "triton": TRITON}
COMPILERS = {
    "cpu": "kldiv.kernels.cpu.row_loss.compile_for",
    "triton": "kldiv.kernels.triton.row_loss.run",
}
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
    kernels = TECHNOLOGIES[technology.name]
    found, compute = [], kernels.compute
    monkeypatch.setattr(kernels, "compute", lambda work: found.append(work) or compute(work))
    return found


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def on_torch(technology):
    return technology.autograd


def logits(technology, *shape):
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, *shape, generator=generator).to(technology.device)
    return s.requires_grad_(), t.requires_grad_()


@each("name", ["kl_div", "log_target", "KL", "JS"], only=on_torch)
def test_a_graph_that_is_kept_gives_the_same(technology, name):
    """A second backward computes anew: in Triton to the bit, by the CPU in another order."""
    s, t = (each.log_softmax(-1) for each in logits(technology, 3, 400))
    t = t.exp() if name == "kl_div" else t
    value = LOSSES[name](s, t)
    first, second = (torch.autograd.grad(3 * value, (s, t), retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        size = one.abs().sum()  # elements near zero have errors of their neighbours' size
        assert torch.is_nonzero(size)
        assert (one - other).abs().sum() <= (1e-6 if technology.name == "cpu" else 0) * size


@each("reduction", ["mean", "none"], only=on_torch)
def test_the_operator_is_what_torch_expects(technology, reduction):
    s, t = (each.detach() for each in logits(technology, 4, 30))
    upstream = torch.ones(4 if reduction == "none" else (), device=technology.device)
    operation = RowLoss(reduction, *["float32"] * 3, KullbackLeibler(), 1.0)
    words = spelled(Asked(technology.name, operation, (0, 1), value=True, keep=False))
    calls = [(arrays, *words, upstream, None, None) for arrays in ([s, t], [s.T.contiguous().T, t])]
    if technology.name == "triton":  # which keeps what it found for the backward
        words = spelled(Asked(technology.name, operation, (), value=True, keep=True))
        calls = [([s, t], *words, None, None, None)]
        _, kept = _fused(*calls[0])
        words = spelled(Asked(technology.name, operation, (0, 1), value=False, keep=False))
        calls += [([s, t], *words, upstream, kept, None)]
    for arguments in calls:
        assert set(torch.library.opcheck(_fused, arguments).values()) == {"SUCCESS"}


@pytest.mark.filterwarnings("ignore:kldiv computes in a slower way:RuntimeWarning")
@each("compiled", [False, True], only=on_torch)
def test_a_failing_compiler_leaves_it_to_the_next(technology, small_too, monkeypatch, compiled):
    def fail(*_):
        raise RuntimeError("no such instruction\nin line 7")

    torch.compiler.reset()
    kernels = TECHNOLOGIES[technology.name]
    monkeypatch.setattr(kernels, "failure", None)
    monkeypatch.setattr(COMPILERS[technology.name], fail)
    monkeypatch.setattr("kldiv.backends.routing._places", {})
    # As auto chooses it where it is the fastest, on a GPU too.
    monkeypatch.setattr(
        "kldiv.backends.torch_.adapter.TorchBackend.unreachable",
        lambda self, one, *_: None if one is kernels else "elsewhere",
    )
    s, t = logits(technology, 6, 50)
    loss = kldiv.kl_div_with_logits
    if compiled:
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    said = f"'{technology.name}': compiling it fails: RuntimeError: no such"
    with kldiv.config_context(kernel="auto"), pytest.warns(RuntimeWarning, match=said):
        value = loss(s, t)
    found = [value, *torch.autograd.grad(value, (s, t))]
    with kldiv.config_context(kernel="pure"):
        wanted = kldiv.kl_div_with_logits(s, t)
        wanted = [wanted, *torch.autograd.grad(wanted, (s, t))]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert "no such instruction" in kernels.problem()
    with (
        kldiv.config_context(kernel=technology.name),
        pytest.raises(BackendError, match="cannot run here: compiling it fails: RuntimeError: no"),
    ):
        kldiv.kl_div_with_logits(s, t)


@each("name", LOSSES, only=on_torch)
def test_graphs_call_the_kernel(technology, calls, name):
    s, t = (each.detach().log_softmax(-1) for each in logits(technology, 6, 50))
    t = t.exp() if name in {"kl_div", "elements"} else t
    s.requires_grad_(), t.requires_grad_()
    expected = LOSSES[name](s, t)
    gradients = torch.autograd.grad(expected.sum(), (s, t))
    calls.clear()
    value = compiled(LOSSES[name])(s, t)
    found = torch.autograd.grad(value.sum(), (s, t))
    assert len(calls) >= 2  # forward and backward
    if (technology.name, name) == ("triton", "KL"):
        assert [work.keep for work in calls] == [True, False]
        assert calls[1].kept is not None
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
@pytest.mark.parametrize("shape", [(3, 8), (64, 200)], ids=["formulas", "kernels"])
def test_a_temperature_may_change(shape):
    torch.compiler.reset()
    counters = import_module("torch._dynamo.utils").counters
    counters.clear()
    s, t = 9 * torch.randn(2, *shape)
    s.requires_grad_()
    function = compiled(kldiv.kl_div_with_logits)
    for temperature in (1.0, 0.7, 3.1, 4.0):
        value, wanted = (
            loss(s, t, temperature=temperature) for loss in (function, kldiv.kl_div_with_logits)
        )
        torch.testing.assert_close(value, wanted, rtol=3e-7, atol=0)
        slope, right = (torch.autograd.grad(each, s)[0] for each in (value, wanted))
        # A graph computes formulas in float32, whose error is of p's size, not of p - q's.
        torch.testing.assert_close(slope, right, rtol=0, atol=1e-6 / temperature / len(s))
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
