"""Programs that compilers and exports make of the losses give what the losses give."""

from __future__ import annotations

from functools import partial

import pytest

import kldiv
from kldiv.divergences import Mixture

LOSSES = {
    "kl": kldiv.kl_div_with_logits,
    "js": partial(kldiv.js_div_with_logits, temperature=1.5, reduction="batchmean"),
    "skew": kldiv.skew_kl_div_with_logits,
    "tv": kldiv.tv_div_with_logits,
    "hellinger": kldiv.hellinger_div_with_logits,
    "chi2": kldiv.chi2_div_with_logits,
    "alpha": partial(kldiv.alpha_div_with_logits, alpha=1.7),
    "renyi": partial(kldiv.renyi_div_with_logits, alpha=0.7),
    "jeffreys": kldiv.jeffreys_div_with_logits,
    "distillation": lambda s, t: kldiv.distillation_loss(s, t, t.argmax(-1), hard_weight=0.1),
    "entropy": lambda s, t: kldiv.entropy_with_logits(s, temperature=1.3),
    "label": lambda s, t: kldiv.cross_entropy_with_logits(s, t.argmax(-1)),
    "sparse": lambda s, t: kldiv.topk_kl_div_with_logits(s, kldiv.topk_log_probs(t, 5)),
    "kl_div": lambda s, t: kldiv.kl_div(s, t, log_target=True),
    "measure": lambda s, t: kldiv.kl_divergence(s * s, t * t).sum(),
    "linear": lambda s, t: kldiv.linear_kl_div(s, s[:1].T * t[:1], t, s[:1].T + t[:1]),
}
QUICK = {"kl_div"}
each = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in LOSSES
        if name not in {"hellinger", "chi2"}  # programs of alpha's
    ],
)


@pytest.fixture
def torch():
    found = pytest.importorskip("torch")
    found.manual_seed(0)
    return found


def exported(torch, function, *arrays, dynamic=False):
    """Export a function of two tensors, of rows in any number where it is dynamic."""

    class Module(torch.nn.Module):
        def forward(self, s, t):
            return function(s, t)

    batch = {0: torch.export.Dim("batch", min=2)}
    return torch.export.export(Module(), arrays, dynamic_shapes=(batch, batch) if dynamic else None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@each
def test_torch_export_with_a_dynamic_batch(torch, name):
    program = exported(torch, LOSSES[name], *torch.randn(2, 4, 20), dynamic=True)
    assert not any("kldiv" in str(node.target) for node in program.graph.nodes)
    s, t = torch.randn(2, 7, 20)
    torch.testing.assert_close(program.module()(s, t), LOSSES[name](s, t), rtol=1e-6, atol=0)


DENSE = "kl", "js", "skew", "tv", "hellinger", "chi2", "alpha", "renyi", "jeffreys", "distillation"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [*DENSE, "entropy", "label"])
def test_torch_exports_are_differentiated_exactly_where_logits_are_close(torch, name):
    t = 4 * torch.randn(4, 1000) + 50
    s = t + 1e-4 * torch.randn(4, 1000)
    program = exported(torch, LOSSES[name], s, t).module()
    slopes = []
    for function, dtype in ((program, s.dtype), (LOSSES[name], torch.float64)):
        own = s.to(dtype).requires_grad_()
        slopes.append(torch.autograd.grad(function(own, t.to(dtype)), own)[0])
    assert (slopes[0] - slopes[1]).abs().sum() <= 1e-6 * slopes[1].abs().sum()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torch_exports_value_and_gradient(torch):
    both = kldiv.value_and_grad(kldiv.js_div_with_logits, (0, 1))
    program = exported(torch, both, *torch.randn(2, 4, 20), dynamic=True)
    s, t = torch.randn(2, 7, 20)
    for found, wanted in zip(program.module()(s, t)[1], both(s, t)[1], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@each
def test_jax_export_of_symbolic_sizes_for_other_platforms(name):
    jax = pytest.importorskip("jax")
    pytest.importorskip("flatbuffers", reason="JAX serialises by flatbuffers")
    (batch,) = jax.export.symbolic_shape("batch")
    like = jax.ShapeDtypeStruct((batch, 20), "float32")
    function = jax.jit(jax.value_and_grad(LOSSES[name]))
    exported = jax.export.export(function, platforms=("cpu", "cuda", "tpu"))(like, like)
    s, t = jax.random.normal(jax.random.key(0), (2, 7, 20))
    value, slope = jax.export.deserialize(exported.serialize()).call(s, t)
    wanted, gradient = function(s, t)
    assert abs(value - wanted) <= 1e-6 * abs(wanted)
    assert abs(slope - gradient).max() <= 1e-5 * abs(gradient).max()


@pytest.mark.slow
def test_jax_exports_no_kernel():
    jax = pytest.importorskip("jax")
    like = jax.ShapeDtypeStruct((64, 1000), "float32")
    function = jax.jit(jax.value_and_grad(kldiv.kl_div_with_logits))
    exported = jax.export.export(function, platforms=("cpu", "cuda"))(like, like)
    assert "kldiv_cpu" not in exported.mlir_module()


SETTINGS = {
    **{name: loss for name, loss in LOSSES.items() if name not in DENSE},
    **{name: LOSSES[name] for name in ("js", "tv", "alpha", "renyi")},
    "both": lambda s, t: kldiv.kl_div_with_logits(s, t) + kldiv.kl_div_with_logits(t, s),
    "weights": partial(kldiv.jeffreys_div_with_logits, weights=(0.3, 0.7)),
    "distillation": lambda s, t: kldiv.distillation_loss(
        s, t, t.argmax(-1), hard_weight=0.1, beta=0.3, temperature=1.7
    ),
    "mixture": partial(kldiv.f_div_with_logits, divergence=Mixture(0.9, 0.3, 1.0)),
    "classes": partial(
        kldiv.js_div_with_logits, input_classes=[1, 2, 5, 0], target_classes=[3, 4, 1, 0]
    ),
}
"""Numbers that are settings, which ``dynamic=True`` would take for symbols: each kind once."""
ALONE = {"tv", "both"}
"""Those that compute nothing of their settings: of the others a symbol may show in the gradient."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_torch_compile_with_symbols(torch, name):
    loss = SETTINGS[name]
    torch.compiler.reset()
    backend = "eager" if name in ALONE else "aot_eager"
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    s, t = torch.randn(4, 20, requires_grad=True), torch.randn(4, 20)
    for tensor in (s, t):  # whose sizes as symbols take three quarters of the time
        torch._dynamo.mark_static(tensor)
    value, wanted = compiled(s, t), loss(s, t)
    torch.testing.assert_close(value, wanted, rtol=1e-6, atol=0)
    slopes = [torch.autograd.grad(found, s)[0] for found in (value, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-5, atol=1e-7)
