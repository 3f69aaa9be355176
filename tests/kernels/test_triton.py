"""The Triton kernels under torch: autograd, its compiler and graphs, and where they fail."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kldiv
from kldiv.cli.app import app
from kldiv.errors import BackendError
from kldiv.formulas.rows import KullbackLeibler, RowLoss
from kldiv.kernels import triton
from kldiv.kernels.cpu import CPU
from kldiv.kernels.spelling import spelled
from kldiv.kernels.triton import TRITON

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from kernels.conformance import TECHNOLOGIES

from kldiv.backends.torch_ import operators

pytestmark = TECHNOLOGIES["triton"].marks()

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"

LOSSES = {
    "kl_div": kldiv.kl_div,
    "log_target": functools.partial(kldiv.kl_div, log_target=True),
    "logits": kldiv.kl_div_with_logits,
    "js": functools.partial(kldiv.js_div_with_logits, beta=0.3),
}


def pure():
    return kldiv.config_context(kernel="pure")


def pair(loss, shape, dtype=torch.float32, seed=0):
    """What a loss takes: log-probabilities or logits, and the target for them."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    if loss in {"kl_div", "log_target"}:
        x, y = x.log_softmax(-1), (y.softmax(-1) if loss == "kl_div" else y.log_softmax(-1))
    return [array.to(DEVICE, dtype).requires_grad_() for array in (x, y)]


def of(loss, *arrays, wanted=(0, 1)):
    """Value and gradients, the upstream gradient not 1."""
    value = loss(*arrays)
    upstream = 0.5 + torch.arange(value.numel(), device=value.device).reshape(value.shape)
    found = torch.autograd.grad(value, [arrays[i] for i in wanted], upstream.to(value.dtype))
    return [value.detach(), *found]


def agree(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        a, b = one.detach().double(), other.detach().double()
        scale = b[b.isfinite()].abs().amax() if b.isfinite().any() else 0.0
        atol = float(tolerance * scale)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=atol, equal_nan=True)


torch_warns = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:.*torch.jit.*is deprecated:DeprecationWarning",
)


@pytest.fixture
def fused():
    """Have the kernels or an error."""
    torch.compiler.reset()
    with kldiv.config_context(kernel="triton"):
        yield


@pytest.fixture
def calls(monkeypatch):
    """Count what the kernels compute."""
    found, compute = [], TRITON.compute

    def counted(work):
        found.append(work)
        return compute(work)

    monkeypatch.setattr(TRITON, "compute", counted)
    return found


# --- autograd -------------------------------------------------------------------------------------

LAYOUTS = {
    "of four axes": lambda a: a.reshape(2, 2, 5, 60).permute(2, 0, 1, 3),
    "expanded": lambda a: a[:1].expand(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", ["kl_div", "logits"])
def test_layouts_of_torch(fused, loss, layout):
    x, y = pair(loss, (4, 5, 60))
    function = functools.partial(LOSSES[loss], reduction="none")
    for other in (LAYOUTS[layout](y), LAYOUTS[layout](y).detach().clone().requires_grad_()):
        own = LAYOUTS[layout](x)
        found = of(function, own, other)
        with pure():
            agree(found, of(function, own, other), 1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_graph_that_is_kept_gives_the_same_bits(fused, loss):
    x, y = pair(loss, (2, 40))
    value = LOSSES[loss](x, y)
    first, second = (torch.autograd.grad(value, (x, y), retain_graph=True) for _ in range(2))
    again = torch.autograd.grad(LOSSES[loss](x, y), (x, y))
    for each in zip(first, second, again, strict=True):
        assert torch.equal(each[0], each[1])
        assert torch.equal(each[0], each[2])


def test_autocast_gives_float32(fused):
    s, t = pair("logits", (3, 40), torch.bfloat16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        value = kldiv.kl_div_with_logits(s, t)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, s)[0].dtype == torch.bfloat16


# --- torch.compile and operators ------------------------------------------------------------------


@torch_warns
def test_what_a_compiled_forward_keeps_serves_its_backward(fused, calls):
    s, t = pair("logits", (6, 50))
    value = torch.compile(kldiv.kl_div_with_logits, fullgraph=True, backend="aot_eager")(s, t)
    value.backward()
    assert [work.keep for work in calls] == [True, False]
    assert calls[1].kept is not None


@torch_warns
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_operator_is_what_torch_expects(fused, reduction):
    s, t = (each.detach() for each in pair("logits", (4, 30)))
    upstream = torch.ones(4 if reduction == "none" else (), device=DEVICE)
    dtypes = ["float32"] * 3
    words = ("triton", *spelled(RowLoss(reduction, *dtypes, KullbackLeibler(), 1.0)))
    forward = ([s, t], *words, [], None, True, True, None, None)
    _, kept = operators._fused(*forward)
    for arguments in (forward, ([s, t], *words, [0, 1], upstream, False, False, kept, None)):
        found = torch.library.opcheck(operators._fused, arguments)
        assert set(found.values()) == {"SUCCESS"}


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


@pytest.fixture
def no_routes(monkeypatch):
    monkeypatch.setattr("kldiv.backends.routing._places", {})
    monkeypatch.setattr(TRITON, "failure", None)


def test_tensors_of_the_cpu_are_not_interpreted_by_themselves():
    assert kldiv.explain(torch.ones(9)).kernel == "pure"
    assert kldiv.explain(torch.ones(1 << 20)).kernel in {"cpu", "pure"}


def test_explain_and_doctor_say_why(no_routes, monkeypatch, capsys):
    monkeypatch.setattr(TRITON, "installed", False)
    assert "triton: Triton is not installed" in str(kldiv.explain(torch.ones(9, device=DEVICE)))
    with pytest.raises(SystemExit):
        app(["doctor"], prog_name="kldiv")
    assert "triton (torch): Triton is not installed" in capsys.readouterr().out
    with (
        kldiv.config_context(kernel="triton"),
        pytest.raises(BackendError, match="'triton' cannot run here: Triton is not installed"),
    ):
        kldiv.kl_div(torch.ones(9), torch.ones(9))


def test_without_a_gpu(no_routes, monkeypatch):
    monkeypatch.setattr(TRITON, "interpreted", False)
    monkeypatch.setattr(triton, "has_gpu", lambda: False)
    assert TRITON.problem() == "torch finds no CUDA device"


def test_tensors_elsewhere(no_routes, monkeypatch):
    monkeypatch.setattr(TRITON, "interpreted", False)
    monkeypatch.setattr(triton, "has_gpu", lambda: True)
    with kldiv.config_context(kernel="triton"):
        assert kldiv.explain(torch.ones(9)).kernel == "pure"


@torch_warns
@pytest.mark.parametrize("compiled", [False, True])
def test_a_failing_compiler_is_told_once(no_routes, monkeypatch, compiled):
    def fail(work):
        raise RuntimeError("no such instruction\nin line 7")

    torch.compiler.reset()
    monkeypatch.setattr(CPU, "small", 0)
    monkeypatch.setattr("kldiv.kernels.triton.row_loss.run", fail)
    # As auto chooses them on a GPU.
    monkeypatch.setattr("kldiv.backends.torch_.adapter.TorchBackend.unreachable",
                        lambda self, technology, *_: None if technology is TRITON
                        else "elsewhere")  # fmt: skip
    s, t = pair("logits", (6, 50))
    loss = kldiv.kl_div_with_logits
    if compiled:
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match="'triton': compiling it fails: RuntimeError: no such"):
        value = loss(s, t)
    found = [value, *torch.autograd.grad(value, (s, t))]
    with pure():
        expected = kldiv.kl_div_with_logits(s, t)
        agree(found, [expected, *torch.autograd.grad(expected, (s, t))], 1e-6)
    assert "no such instruction" in TRITON.problem()


def test_by_name_a_failing_compiler_is_an_error(no_routes, monkeypatch):
    def fail(work):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("kldiv.kernels.triton.pointwise_loss.run", fail)
    with (
        kldiv.config_context(kernel="triton"),
        pytest.raises(BackendError, match="cannot run here: compiling it fails: RuntimeError: no"),
    ):
        kldiv.kl_div(torch.ones(9, device=DEVICE), torch.ones(9, device=DEVICE))


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_without_spills():
    script = Path(__file__).with_name("triton_variants.py")
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(script)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(" registers") >= 12
