"""The CPU kernel of labels and entropies, against mpmath and against the formulas."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from label_rows import truth

import kldiv
from kldiv.formulas.labels import LabelLoss
from kldiv.kernels.cpu import CPU
from kldiv.kernels.work import Work

pytest.importorskip("llvmlite")

INF = np.inf
LOSSES = {
    "both": kldiv.log_prob_and_entropy_with_logits,
    "labels": kldiv.cross_entropy_with_logits,
    "entropy": kldiv.entropy_with_logits,
}


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Give small arrays to the kernel too."""
    monkeypatch.setattr(CPU, "small", 0)


def rows_of(dtype):
    """Rows without order: from nearly equal to far apart, masked, and where blocks end."""
    random = np.random.default_rng(1)
    found = []
    for place, classes in enumerate((1, 2, 7, 16, 17, 33, 127, 1025, 2051)):
        for kind in range(4):
            row = random.normal(size=classes) * 10.0 ** random.uniform(-9, 4)
            if kind == 1:  # one above all others, which the entropy is made of
                row = random.normal(size=classes) * 10.0 ** random.uniform(-7, 0)
                row[random.integers(classes)] += (80, 1, 300)[place % 3]
            if kind == 2:
                row = np.round(random.normal(size=classes)) + (1e4, -250, 1e30)[place % 3]
            if kind == 3:
                row[random.random(classes) < (0.1, 0.95)[place % 2]] = -INF
                row[random.integers(classes)] = 1.0
            found.append(row.astype(dtype))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_targets(dtype):
    limit, tiny = (1e-6, 2.0**-126) if dtype == "float32" else (2e-15, 2.0**-1022)
    xp = kldiv.backends.get("numpy").namespace()
    for place, row in enumerate(rows_of(dtype)):
        label = place % row.size if place % 2 else int(np.argmax(row))
        temperature = (1.0, 0.7, 50.0)[place % 3]
        factors = [(1.0, 0.0), (0.0, 1.0), (1.0, -0.5)][place // 4 % 3]
        true = truth(row, label, temperature, factors)
        loss = LabelLoss("none", dtype, dtype, dtype, temperature, labelled=True, entropic=True)
        arrays, upstream = [row[None], np.array([label])], np.array([factors], dtype)
        values, (gradient,) = CPU.compute(Work(loss, xp, arrays, 1, True, (0,), upstream))
        for found, wanted in zip(values[0], true[:2], strict=True):
            close = wanted == found or abs(found - wanted) <= limit * wanted + tiny
            assert close, (place, found, wanted)
        off = abs(gradient[0] - true[2]).sum()
        assert off <= limit * abs(true[2]).sum() + row.size * tiny, (place, row.size, off)


def assert_as_the_formulas(run, unit):
    """Means of NaN where these are NaN, and else as near as sums of a few thousand are."""
    found = run()
    with kldiv.config_context(kernel="pure"):
        wanted = run()
    assert len(found) == len(wanted)
    for pair in zip(found, wanted, strict=True):
        one, other = (np.asarray(each, "f8") for each in pair)
        assert one.shape == other.shape
        size = abs(other[np.isfinite(other)]).max(initial=1e-30)
        np.testing.assert_allclose(one, other, rtol=unit, atol=unit * size)


HEATS = np.linspace(0.5, 2.0, 5)
OPTIONS = {
    "weights": {"row_weight": True, "normalizer": 7.0, "where": True},
    "temperatures": {"temperature": HEATS, "where": True},
    "batches": {"reduction": "batchmean", "temperature": 0.7, "where": True},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_layouts_masks_and_rows_that_are_none(library, dtype, request):
    random = np.random.default_rng(3)
    s = 3 * random.normal(size=(6, 5, 82))[..., ::2]
    s[0, 0, :15], s[1, 0, 3], s[1, 1], s[1, 2, 5] = -INF, np.nan, -INF, INF
    labels = random.integers(41, size=(6, 5))
    labels[0, 0], labels[4, 4] = 3, -100
    weight, keep = random.random((6, 5)), random.random((6, 5)) < 0.8
    weight[1], weight[2, 2], keep[1] = 0, 0, False
    wide = "float64" if dtype == "float64" else "float32"
    if library == "torch":
        torch = request.getfixturevalue("torch")
        base = torch.tensor(s).to(getattr(torch, dtype)).repeat_interleave(2, -1)
        s, labels, keep = base[..., ::2], torch.tensor(labels), torch.tensor(keep)
        as_array = lambda array: torch.tensor(array).to(getattr(torch, wide))  # noqa: E731
        read = lambda found: [each.double().numpy() for each in found]  # noqa: E731
    else:
        kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        s = np.repeat(s.astype(kind), 2, -1)[..., ::2]
        as_array, read = partial(np.asarray, dtype=wide), list
    unit = {"float32": 1e-6, "float64": 4e-15, "bfloat16": 2.0**-7}[dtype]
    both = LOSSES["both"]
    for heat in (1.0, as_array(HEATS)):
        assert_as_the_formulas(lambda t=heat: read(both(s, labels, temperature=t)), unit)
    for options in OPTIONS.values():
        given = {"row_weight": as_array(weight), "where": keep}
        given["temperature"] = as_array(HEATS) if options.get("temperature") is HEATS else 0.7
        own = {k: given.get(k, v) for k, v in options.items()}
        for arrays, name in (((s, labels), "labels"), ((s,), "entropy")):
            gradient = kldiv.value_and_grad(partial(LOSSES[name], **own))
            assert_as_the_formulas(lambda f=gradient, a=arrays: read(f(*a)), unit)


def test_derivatives_and_transforms_of_torch(torch, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(4, 3, 40, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(40, (4, 3), generator=generator)
    shapes, prepare = [], CPU.prepare

    def prepared(work):
        launch = prepare(work)
        return lambda work: shapes.append(work.arrays[0].shape) or launch(work)

    monkeypatch.setattr(CPU, "prepare", prepared)
    monkeypatch.setattr("kldiv.backends.routing._places", {})  # whose routes keep launchers

    def loss(s, labels):
        log_prob, entropy = LOSSES["both"](s, labels)
        return (log_prob.exp() * entropy**2).sum()

    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        (found,) = torch.autograd.grad(function(s, labels), s)
        assert len(shapes) == 2, "the values, and the gradient"
        shapes.clear()
        with kldiv.config_context(kernel="pure"):
            (wanted,) = torch.autograd.grad(loss(s, labels), s)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
    small = s[:1, 0, :6].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(
        partial(LOSSES["both"], labels=labels[:1, 0] % 6), small, fast_mode=True
    )
    shapes.clear()
    for name, arrays in {"both": (s, labels), "labels": (s, labels), "entropy": (s,)}.items():
        mapped = torch.func.vmap(LOSSES[name])(*arrays)
        parts = [LOSSES[name](*each) for each in zip(*arrays, strict=True)]
        together = map(torch.stack, zip(*parts, strict=True)) if name == "both" else [*parts]
        torch.testing.assert_close([*mapped], [*together])
    assert shapes.count((4, 3, 40)) == 3, "one call for all entries"


def test_jax(jax):
    """Called by compiled programs, the gradient too; second derivatives are the formulas'."""
    random = np.random.default_rng(5)
    s = jax.numpy.asarray(random.normal(size=(3, 40)), jax.numpy.float32)
    labels = jax.numpy.asarray(random.integers(40, size=3))

    def loss(s):
        log_prob, entropy = LOSSES["both"](s, labels)
        return (jax.numpy.exp(log_prob) * entropy**2).sum()

    def slopes(s):
        return jax.grad(lambda s: (jax.grad(loss)(s) ** 2).sum())(s)

    program = jax.jit(jax.grad(loss)).lower(s)
    assert "kldiv_cpu" in program.as_text()
    for found, run in ((program.compile()(s), jax.grad(loss)), (jax.jit(slopes)(s), slopes)):
        with kldiv.config_context(kernel="pure"):
            wanted = jax.jit(run)(s)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(70, 5000), (2, 600_001)])
@pytest.mark.parametrize("loss", [kldiv.entropy_with_logits, kldiv.cross_entropy_with_logits])
def test_the_same_bits_for_any_number_of_threads(monkeypatch, loss, shape):
    s = np.random.default_rng(2).normal(size=shape).astype("f4")
    labels = [] if loss is kldiv.entropy_with_logits else [np.full(shape[0], shape[1] - 1)]
    results = []
    for number in (1, 3):
        monkeypatch.setenv("KLDIV_NUM_THREADS", str(number))
        results.append(kldiv.value_and_grad(loss)(s, *labels))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_explained():
    s, labels = np.zeros((4, 5000), "f4"), np.zeros(4, np.int64)
    assert kldiv.explain(s, labels, operation="cross_entropy_with_logits").kernel == "cpu"
    assert kldiv.explain(s, operation="entropy_with_logits").kernel == "cpu"
    found = kldiv.explain(s, labels, operation="log_prob_and_entropy_with_logits")
    assert found.kernel == "cpu"
