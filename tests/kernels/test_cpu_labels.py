"""Labels, entropies and policies by CPU kernels and NumPy on blocks: mpmath, and the formulas."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from kernels.conformance import shapes
from label_rows import truth
from reference import exact

import kldiv
from kldiv.formulas.labels import LabelLoss
from kldiv.formulas.policy import PolicyLoss
from kldiv.kernels.blocks import BLOCKS
from kldiv.kernels.cpu import CPU
from kldiv.kernels.work import Work

pytest.importorskip("llvmlite")

pytestmark = pytest.mark.usefixtures("small_too")

INF = np.inf
XP = kldiv.backends.get("numpy").namespace()
BOTH = kldiv.log_prob_and_entropy_with_logits
LOSSES = {
    "both": BOTH,
    "labels": kldiv.cross_entropy_with_logits,
    "entropy": kldiv.entropy_with_logits,
}
UNITS = {"float32": 1e-6, "float64": 4e-15, "bfloat16": 2.0**-7}
"""As near as sums of a few thousand are."""


def of_policy(*logits, labels):
    """Both results of a row, and where there is a reference the divergence from it."""
    return BOTH(logits[0], labels, reference=logits[1] if len(logits) > 1 else None)


of_technologies = pytest.mark.parametrize("technology", [CPU, BLOCKS], ids=["cpu", "blocks"])
of_one_and_two = pytest.mark.parametrize("sides", [1, 2], ids=["row", "policy"])


# --- against mpmath -------------------------------------------------------------------------------


def rows_of(dtype):
    """Rows without order: from nearly equal to far apart, masked, and where blocks end."""
    random = np.random.default_rng(1)
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
            yield row.astype(dtype)


def pairs_of(dtype):
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


def cases(rows):
    """Number the rows, and give each a label and a temperature."""
    for place, row in enumerate(rows):
        first = row[0] if isinstance(row, tuple) else row
        label = place % first.size if place % 2 else int(np.argmax(first))
        yield place, row, label, (1.0, 0.7, 50.0)[place % 3]


def check(technology, loss, arrays, label, factors, values, gradients, sizes):
    """Hold a row's results and gradients against the truth; `sizes` are those of what cancels."""
    dtype = arrays[0].dtype.name
    limit, tiny = (1e-6, 2.0**-126) if dtype == "float32" else (2e-15, 2.0**-1022)
    given = [*(array[None] for array in arrays), np.array([label])]
    upstream = np.array([factors], dtype)
    found, slopes = technology.compute(
        Work(loss, XP, given, 1, True, range(len(gradients)), upstream)
    )
    for one, wanted in zip(found[0], values, strict=True):
        assert wanted == one or abs(one - wanted) <= limit * wanted + tiny
    for one, true, size in zip(slopes, gradients, sizes, strict=True):
        assert abs(one[0] - true).sum() <= limit * size + true.size * tiny


def operation(kind, dtype, temperature):
    return kind("none", dtype, dtype, dtype, temperature, labelled=True, entropic=True)


@of_technologies
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_are_exact(technology, dtype):
    for place, row, label, temperature in cases(rows_of(dtype)):
        factors = [(1.0, 0.0), (0.0, 1.0), (1.0, -0.5)][place // 4 % 3]
        *values, gradient = truth(row, label, temperature, factors)
        loss = operation(LabelLoss, dtype, temperature)
        check(technology, loss, [row], label, factors, values, [gradient], [abs(gradient).sum()])


@of_technologies
@pytest.mark.parametrize("factors", [(1.0, 0.0), (0.0, 1.0)], ids=["label", "entropy"])
def test_a_label_far_above_the_others(technology, factors):
    row = np.float32([0.0, 40.0, 1.0])
    *values, gradient = truth(row, 1, 1.0, factors)
    loss, sizes = operation(LabelLoss, "float32", 1.0), [abs(gradient).sum()]
    check(technology, loss, [row], 1, factors, values, [gradient], sizes)


@of_technologies
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_policies_are_exact(technology, dtype):
    for place, pair, label, temperature in cases(pairs_of(dtype)):
        factors = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.5, -0.25, 1.0), (0.0, 0.0, -2.0)]
        first, second, third = factors = factors[place // 4 % 4]
        cost, entropy, gradient = truth(pair[0], label, temperature, (first, second))
        kl, reference, own = exact(*pair[::-1], temperature=temperature)
        gradients = [gradient + third * own, third * reference]
        # Where parts cancel, each is as exact as it is alone.
        sizes = [abs(gradient).sum() + abs(third * own).sum(), abs(gradients[1]).sum()]
        loss = operation(PolicyLoss, dtype, temperature)
        check(technology, loss, pair, label, factors, (cost, entropy, kl), gradients, sizes)


# --- as the formulas ------------------------------------------------------------------------------


def assert_as_the_formulas(run, unit):
    """Means of NaN where these are NaN."""
    found = run()
    with kldiv.config_context(kernel="pure"):
        wanted = run()
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


@pytest.mark.parametrize("dtype", UNITS)
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
    unit = UNITS[dtype]
    for heat in (1.0, as_array(HEATS)):
        assert_as_the_formulas(lambda t=heat: read(BOTH(s, labels, temperature=t)), unit)
    for options in OPTIONS.values():
        given = {"row_weight": as_array(weight), "where": keep}
        given["temperature"] = as_array(HEATS) if options.get("temperature") is HEATS else 0.7
        own = {k: given.get(k, v) for k, v in options.items()}
        for arrays, name in (((s, labels), "labels"), ((s,), "entropy")):
            gradient = kldiv.value_and_grad(partial(LOSSES[name], **own))
            assert_as_the_formulas(lambda f=gradient, a=arrays: read(f(*a)), unit)


@pytest.mark.parametrize("dtype", UNITS)
def test_policies_of_any_layout(torch, dtype):
    """Strides, half types, masks, temperatures of rows, and rows that are NaN or have no label."""
    random = np.random.default_rng(3)
    s, r = 3 * random.normal(size=(2, 6, 5, 82))
    s[0, 0, :15], s[1, 0, 6], s[1, 1], s[1, 2, 10], r[2, 2, 4] = -INF, np.nan, -INF, INF, -INF
    labels = torch.tensor(random.integers(41, size=(6, 5)))
    labels[0, 0], labels[4, 4], labels[4, 3] = 3, -100, 41
    keep, upstream = torch.rand(6, 5) < 0.8, torch.rand(3, 6, 5)
    kind = getattr(torch, dtype)
    s, r = (torch.tensor(each).to(kind)[..., ::2].requires_grad_() for each in (s, r))
    heat = torch.tensor(HEATS).to(torch.float64 if dtype == "float64" else torch.float32)

    def run(**options):
        values = BOTH(s, labels, reference=r, **options)
        found = [*values, *torch.autograd.grad(values, (s, r), [*upstream.to(kind)])]
        assert [each.dtype for each in found] == [kind] * 5
        return [each.detach().double() for each in found]

    for options in ({}, {"temperature": heat, "where": keep}, {"temperature": 0.7, "where": keep}):
        assert_as_the_formulas(partial(run, **options), UNITS[dtype])


def test_an_infinite_divergence_that_does_not_count(torch):
    s = torch.randn(2, 20, requires_grad=True)
    r = torch.randn(2, 20)
    r[0, 3] = -INF
    r.requires_grad_()
    labels = torch.tensor([3, 4])
    log_prob, entropy, kl = BOTH(s, labels, reference=r)
    assert kl[0] == INF
    found = torch.autograd.grad((log_prob + entropy).sum(), (s, r))
    wanted = torch.autograd.grad(sum(BOTH(s, labels)).sum(), s)
    torch.testing.assert_close(found, (*wanted, torch.zeros_like(r)))


def test_results_have_their_own_dtypes():
    s, r = np.zeros((2, 8), np.float16), np.ones((2, 8), np.float32)
    found = BOTH(s, np.array([0, 1]), reference=r)
    assert [each.dtype for each in found] == [np.float16, np.float16, np.float32]


# --- derivatives and transforms -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@of_one_and_two
def test_derivatives_and_transforms_of_torch(torch, launches, sides):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(sides, 4, 3, 40, generator=generator, dtype=torch.float64)
    logits = [each.requires_grad_() for each in logits]
    labels = torch.randint(40, (4, 3), generator=generator)
    once = ({1: LabelLoss, 2: PolicyLoss}[sides], logits[0].shape)

    def launched():
        found = [(type(work.operation), work.arrays[0].shape) for work in launches]
        launches.clear()
        return found

    def loss(*logits):
        log_prob, entropy, *kl = of_policy(*logits, labels=labels)
        return (log_prob.exp() * entropy**2 + sum(each**1.5 for each in kl)).sum()

    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        found = torch.autograd.grad(function(*logits), logits)
        assert launched() == [once, once], "the values, and all gradients"
        with kldiv.config_context(kernel="pure"):
            wanted = torch.autograd.grad(loss(*logits), logits)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
    small = [each[:1, 0, :6].detach().requires_grad_() for each in logits]
    run = partial(of_policy, labels=labels[:1, 0] % 6)
    assert torch.autograd.gradcheck(run, small, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, small, fast_mode=True)
    launched()
    mapped = torch.func.vmap(lambda labels, *logits: of_policy(*logits, labels=labels))
    found = mapped(labels, *logits)
    assert once in launched(), "one call for all entries"
    torch.testing.assert_close([*found], [*of_policy(*logits, labels=labels)])


def test_each_alone_under_vmap(torch, launches):
    s, labels = torch.randn(4, 3, 40, dtype=torch.float64), torch.randint(40, (4, 3))
    for name, arrays in {"labels": (s, labels), "entropy": (s,)}.items():
        mapped = torch.func.vmap(LOSSES[name])(*arrays)
        assert shapes(launches) == [(4, 3, 40)], "one call for all entries"
        parts = [LOSSES[name](*each) for each in zip(*arrays, strict=True)]
        torch.testing.assert_close([*mapped], parts)
        launches.clear()


@of_one_and_two
def test_jax(jax, sides):
    """Called by compiled programs, the gradient too; second derivatives are the formulas'."""
    random = np.random.default_rng(5)
    logits = [jax.numpy.asarray(s, "float32") for s in random.normal(size=(sides, 3, 40))]
    labels = jax.numpy.asarray(random.integers(40, size=3))

    def loss(*logits):
        log_prob, entropy, *kl = of_policy(*logits, labels=labels)
        return (jax.numpy.exp(log_prob) * entropy**2 + sum(each**1.5 for each in kl)).sum()

    def slopes(*logits):
        return jax.grad(lambda s: (jax.grad(loss)(s, *logits[1:]) ** 2).sum())(logits[0])

    gradients = jax.grad(loss, tuple(range(sides)))
    assert "kldiv_cpu" in jax.jit(gradients).lower(*logits).as_text()
    for run in (loss, gradients, slopes):
        found = jax.jit(run)(*logits)
        with kldiv.config_context(kernel="pure"):
            wanted = jax.jit(lambda *logits, run=run: run(*logits))(*logits)
        for pair in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-6)


def test_explained():
    s, labels = np.zeros((4, 5000), "f4"), np.zeros(4, np.int64)
    for loss in LOSSES.values():
        arrays = (s,) if loss is kldiv.entropy_with_logits else (s, labels)
        assert kldiv.explain(*arrays, operation=loss.__name__).kernel == "cpu"
