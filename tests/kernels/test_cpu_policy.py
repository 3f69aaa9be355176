"""The CPU kernel of a policy and its reference, against mpmath and against the formulas."""

from __future__ import annotations

import numpy as np
import pytest
from label_rows import kl_truth, truth

import kldiv
from kldiv.formulas.policy import PolicyLoss
from kldiv.kernels.cpu import CPU
from kldiv.kernels.work import Work

pytest.importorskip("llvmlite")

INF = np.inf
LOSS = kldiv.log_prob_and_entropy_with_logits


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Give small arrays to the kernel too."""
    monkeypatch.setattr(CPU, "small", 0)
    monkeypatch.setattr("kldiv.backends.routing._places", {})  # whose routes keep launchers


def pairs(dtype):
    """Rows without order and a reference each: near and far, peaked, shifted and masked."""
    random = np.random.default_rng(1)
    for place, classes in enumerate((2, 7, 16, 17, 33, 127, 1025, 2051)):
        for kind in range(4):
            row = random.normal(size=classes) * 10.0 ** random.uniform(-2, 1)
            distance = (1.0, 1e-3, 1e-6, 10.0)[(place + kind) % 4]
            if kind == 1:
                row[random.integers(classes)] += (80, 1, 20)[place % 3]
            if kind == 2:
                row += (1e4, -250, 1e30 * (dtype == "float64"))[place % 3]
            row = row.astype(dtype)
            other = (row + distance * random.normal(size=classes)).astype(dtype)
            if kind == 3:
                row[0] = -INF
                if place % 2:
                    other[0] = -INF
            yield row, other


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_targets(dtype):
    limit, tiny = (1e-6, 2.0**-126) if dtype == "float32" else (2e-15, 2.0**-1022)
    xp = kldiv.backends.get("numpy").namespace()
    for place, (row, other) in enumerate(pairs(dtype)):
        label = place % row.size if place % 2 else int(np.argmax(row))
        temperature = (1.0, 0.7, 50.0)[place % 3]
        factors = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, -0.25, 1.0), (0.0, 0.0, -2.0)]
        first, second, third = factors[place // 4 % 4]
        cost, entropy, gradient = truth(row, label, temperature, (first, second))
        kl, own, reference = kl_truth(row, other, temperature)
        loss = PolicyLoss("none", dtype, dtype, dtype, temperature, labelled=True, entropic=True)
        arrays = [row[None], other[None], np.array([label])]
        upstream = np.array([[first, second, third]], dtype)
        values, found = CPU.compute(Work(loss, xp, arrays, 1, True, (0, 1), upstream))
        for one, wanted in zip(values[0], (cost, entropy, kl), strict=True):
            close = wanted == one or abs(one - wanted) <= limit * wanted + tiny
            assert close, (place, one, wanted)
        wanted = [gradient + third * own, third * reference]
        # Where parts cancel, each is as exact as it is alone.
        sizes = [abs(gradient).sum() + abs(third * own).sum(), abs(wanted[1]).sum()]
        for one, true, size in zip(found, wanted, sizes, strict=True):
            off = abs(one[0] - true).sum()
            assert off <= limit * size + row.size * tiny, (place, row.size, off, size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_as_the_formulas(torch, dtype):
    """Strides, half types, masks, temperatures of rows, and rows that are NaN or have no label."""
    random = np.random.default_rng(3)
    s, r = 3 * random.normal(size=(2, 6, 5, 82))
    s[0, 0, :15], s[1, 0, 6], s[1, 1], s[1, 2, 10], r[2, 2, 4] = -INF, np.nan, -INF, INF, -INF
    labels = torch.tensor(random.integers(41, size=(6, 5)))
    labels[0, 0], labels[4, 4], labels[4, 3] = 3, -100, 41
    keep, upstream = torch.rand(6, 5) < 0.8, torch.rand(3, 6, 5)
    kind = getattr(torch, dtype)
    s, r = (torch.tensor(each).to(kind)[..., ::2].requires_grad_() for each in (s, r))
    unit = {"float32": 1e-6, "float64": 4e-15, "bfloat16": 2.0**-7}[dtype]
    heat = torch.linspace(0.5, 2.0, 5).to(torch.float64 if dtype == "float64" else torch.float32)
    for options in ({}, {"temperature": heat, "where": keep}, {"temperature": 0.7, "where": keep}):
        found = []
        for kernel in ("cpu", "pure"):
            with kldiv.config_context(kernel=kernel):
                values = LOSS(s, labels, reference=r, **options)
                slopes = torch.autograd.grad(values, (s, r), [*upstream.to(kind)])
            found.append([each.detach() for each in (*values, *slopes)])
        for one, other in zip(*found, strict=True):
            assert one.dtype == other.dtype
            size = float(other[torch.isfinite(other)].abs().max())
            torch.testing.assert_close(*(one, other), rtol=unit, atol=unit * size, equal_nan=True)


def test_an_infinite_divergence_that_does_not_count(torch):
    s = torch.randn(2, 20, requires_grad=True)
    r = torch.randn(2, 20)
    r[0, 3] = -INF
    r.requires_grad_()
    labels = torch.tensor([3, 4])
    log_prob, entropy, kl = LOSS(s, labels, reference=r)
    assert kl[0] == INF
    found = torch.autograd.grad((log_prob + entropy).sum(), (s, r))
    wanted = torch.autograd.grad(sum(LOSS(s, labels)).sum(), s)
    torch.testing.assert_close(found, (*wanted, torch.zeros_like(r)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_derivatives_and_transforms_of_torch(torch, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    s, r = torch.randn(2, 4, 3, 40, generator=generator, dtype=torch.float64)
    both = s.requires_grad_(), r.requires_grad_()
    labels = torch.randint(40, (4, 3), generator=generator)
    kinds, prepare = [], CPU.prepare

    def prepared(work):
        launch = prepare(work)
        return lambda work: (
            kinds.append((type(work.operation), work.arrays[0].shape)) or launch(work)
        )

    monkeypatch.setattr(CPU, "prepare", prepared)

    def loss(s, r, labels):
        log_prob, entropy, kl = LOSS(s, labels, reference=r)
        return (log_prob.exp() * entropy**2 + kl**1.5).sum()

    once = (PolicyLoss, s.shape)
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        found = torch.autograd.grad(function(*both, labels), both)
        assert kinds == [once, once], "the values, and both gradients"
        kinds.clear()
        with kldiv.config_context(kernel="pure"):
            wanted = torch.autograd.grad(loss(*both, labels), both)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
    small = [each[:1, 0, :6].detach().requires_grad_() for each in both]
    run = lambda s, r: LOSS(s, labels[:1, 0] % 6, reference=r)  # noqa: E731
    assert torch.autograd.gradcheck(run, small, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, small, fast_mode=True)
    kinds.clear()
    mapped = torch.func.vmap(lambda s, r, labels: LOSS(s, labels, reference=r))(*both, labels)
    torch.testing.assert_close([*mapped], [*LOSS(s, labels, reference=r)])
    assert kinds == [once, once], "one call for all entries"


def test_jax(jax):
    random = np.random.default_rng(5)
    s, r = (jax.numpy.asarray(each, "float32") for each in random.normal(size=(2, 3, 40)))
    labels = jax.numpy.asarray(random.integers(40, size=3))

    def loss(s, r):
        log_prob, entropy, kl = LOSS(s, labels, reference=r)
        return (jax.numpy.exp(log_prob) * entropy**2 + kl**1.5).sum()

    def slopes(s, r):
        return jax.grad(lambda s: (jax.grad(loss)(s, r) ** 2).sum())(s)

    for run in (loss, jax.grad(loss, (0, 1)), slopes):
        found = jax.jit(run)(s, r)
        with kldiv.config_context(kernel="pure"):
            wanted = jax.jit(lambda s, r, run=run: run(s, r))(s, r)
        for pair in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(70, 3000), (2, 600_000)])
def test_the_same_bits_for_any_number_of_threads(torch, monkeypatch, shape):
    s = torch.randn(*shape, requires_grad=True)
    r, labels, results = torch.randn(*shape, requires_grad=True), torch.arange(shape[0]), []
    labels[-1] = shape[-1] - 1
    number = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        values = LOSS(s, labels, reference=r)
        results.append([*values, *torch.autograd.grad(sum(values).sum(), (s, r))])
    torch.set_num_threads(number)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_results_have_their_own_dtypes():
    s, r = np.zeros((2, 8), np.float16), np.ones((2, 8), np.float32)
    found = LOSS(s, np.array([0, 1]), reference=r)
    assert [each.dtype for each in found] == [np.float16, np.float16, np.float32]
