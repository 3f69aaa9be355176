"""The CPU kernels under torch's vmap: what a loop over the entries gives, from few calls."""

from __future__ import annotations

from functools import partial

import pytest
from kernels.conformance import shapes

import kldiv
from kldiv.kernels.cpu import CPU

pytest.importorskip("llvmlite")
torch = pytest.importorskip("torch")

from torch.func import grad, hessian, jacfwd, jacrev, vmap  # noqa: E402 - after the skip

LOSSES = {
    "kl_div": kldiv.kl_div,
    "log_target": partial(kldiv.kl_div, log_target=True),
    "kl_div_with_logits": partial(kldiv.kl_div_with_logits, temperature=1.7),
    "js_div_with_logits": partial(kldiv.js_div_with_logits, beta=0.3),
}
REDUCTIONS = ["none", "mean", "sum", "batchmean"]
BATCH = 5


@pytest.fixture
def calls(monkeypatch, launches):
    """What the kernels were given; entries alone are too small for them."""
    monkeypatch.setattr(CPU, "small", 900)
    return launches


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def pair(loss, *shape):
    generator = torch.Generator().manual_seed(3)
    s, t = (torch.randn(shape, generator=generator).log_softmax(-1) for _ in range(2))
    of_probabilities = loss is kldiv.kl_div
    return s, t.exp() if of_probabilities else t


def by_a_loop(function, dims, *arrays):
    """What vmap is defined to be, with the kernels for each entry."""
    entries = [
        function(*(a if d is None else a.select(d, i) for a, d in zip(arrays, dims, strict=True)))
        for i in range(BATCH)
    ]
    if isinstance(entries[0], tuple):
        return tuple(torch.stack(each) for each in zip(*entries, strict=True))
    return torch.stack(entries)


def assert_the_same(found, expected):
    # The loop's entries are smaller than what the kernels take, unless it is asked for them.
    torch.testing.assert_close(found, expected, rtol=4e-7, atol=1e-9)


@pytest.mark.parametrize("dims", [(0, 0), (2, 1), (0, None), (None, 1)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_and_gradients(calls, loss, reduction, dims):
    function = partial(loss, reduction=reduction)
    entries = pair(loss, BATCH, 4, 70)
    arrays = [a[0] if d is None else a.movedim(0, d) for a, d in zip(entries, dims, strict=True)]
    found = vmap(function, in_dims=dims)(*arrays)
    assert shapes(calls) == [(BATCH, 4, 70)]
    gradients = grad(lambda *pair: function(*pair).square().sum(), argnums=(0, 1))
    mapped = vmap(gradients, in_dims=dims)(*arrays)
    assert len(calls) <= 4  # the value again and both gradients
    assert set(shapes(calls)) == {(BATCH, 4, 70)}
    with kldiv.config_context(kernel="cpu"):
        assert_the_same(found, by_a_loop(function, dims, *arrays))
        assert_the_same(mapped, by_a_loop(gradients, dims, *arrays))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("of_mask", [0, None])
def test_masks(calls, loss, reduction, of_mask):
    s, t = pair(loss, BATCH, 4, 70)
    pointwise = loss in {LOSSES["kl_div"], LOSSES["log_target"]}
    keep = torch.rand((BATCH, 70) if pointwise else (BATCH, 4)) < 0.6
    keep[2] = of_mask is None  # a loss of nothing
    keep = keep if of_mask == 0 else keep[0]
    s = torch.where(torch.arange(BATCH)[:, None, None] == 2, torch.inf, s) if of_mask == 0 else s

    def masked(s, t, keep):
        return loss(s, t, reduction=reduction, where=keep)

    def gradient(s, t, keep):
        return grad(lambda s: masked(s, t, keep).sum())(s)

    dims = (0, 0, of_mask)
    found = vmap(masked, dims)(s, t, keep), vmap(gradient, dims)(s, t, keep)
    assert calls
    with kldiv.config_context(kernel="cpu"):
        expected = by_a_loop(masked, dims, s, t, keep), by_a_loop(gradient, dims, s, t, keep)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=4e-7, atol=1e-9, equal_nan=True)


def test_temperatures(calls):
    s, t = pair(None, BATCH, 4, 70)
    for temperature in (torch.rand(BATCH, 4) + 0.5, torch.rand(BATCH) + 0.5):

        def tempered(s, t, temperature):
            return kldiv.kl_div_with_logits(s, t, temperature=temperature)

        found = vmap(tempered)(s, t, temperature)
        assert shapes(calls)[-1] == (BATCH, 4, 70)
        with kldiv.config_context(kernel="cpu"):
            assert_the_same(found, by_a_loop(tempered, (0, 0, 0), s, t, temperature))
        calls.clear()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_of_vmap(calls, loss, reduction):
    s, t = pair(loss, BATCH, 3, 2, 70)
    function = partial(loss, reduction=reduction)
    inner = vmap(function, in_dims=(1, None))
    found = vmap(inner, in_dims=(0, 0))(s.movedim(1, 2), t[:, 0])
    assert shapes(calls) == [(BATCH, 3, 2, 70)]
    entries = [[function(s[i, j], t[i, 0]) for j in range(3)] for i in range(BATCH)]
    assert_the_same(found, torch.stack([torch.stack(row) for row in entries]))


def test_many_elements_are_summed_entry_by_entry(calls, monkeypatch):
    monkeypatch.setattr("kldiv.backends.torch_.vmap.MANY", 4 * 70)
    s, t = pair(kldiv.kl_div, BATCH, 4, 70)
    found = vmap(kldiv.kl_div)(s, t)
    assert shapes(calls) == [(4, 70)] * BATCH
    torch.testing.assert_close(found, by_a_loop(kldiv.kl_div, (0, 0), s, t), rtol=4e-7, atol=0)


@pytest.mark.parametrize("name", ["kl_div", "kl_div_with_logits", "js_div_with_logits"])
def test_other_transforms_are_still_right(calls, name):
    loss = LOSSES[name]
    s, t = (a.double() for a in pair(loss, BATCH, 2, 90))

    def total(s, t):
        return vmap(loss)(s, t).square().sum()

    transforms = {
        "gradient of vmap": lambda: grad(total, argnums=(0, 1))(s, t),
        "jacrev": lambda: jacrev(partial(loss, reduction="none"))(s[0], t[0]),
        "jacfwd": lambda: jacfwd(partial(loss, reduction="none"))(s[0], t[0]),
        "Hessian": lambda: hessian(loss)(s[0, :, :40], t[0, :, :40]),
        "vmap of Hessians": lambda: vmap(hessian(loss))(s[..., :9], t[..., :9]),
    }
    for transform, run in transforms.items():
        found = run()
        with kldiv.config_context(kernel="pure"):
            expected = run()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13, msg=transform)
    assert calls


def test_batched_cotangents():
    s, t = (a.requires_grad_() for a in pair(None, 12, 90))
    rows = kldiv.kl_div_with_logits(s, t, reduction="none")
    found = torch.autograd.grad(rows, (s, t), torch.eye(12), is_grads_batched=True)
    rows = kldiv.kl_div_with_logits(s, t)
    expected = torch.autograd.grad(rows, (s, t))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.sum(0) / 12, other, rtol=1e-6, atol=1e-9)


def test_bfloat16(calls):
    s, t = (a.bfloat16() for a in pair(None, BATCH, 4, 70))
    wide = partial(kldiv.kl_div_with_logits, dtype="float32")
    assert_the_same(vmap(wide)(s, t), by_a_loop(wide, (0, 0), s.float(), t.float()))
    assert shapes(calls)[0] == (BATCH, 4, 70)
