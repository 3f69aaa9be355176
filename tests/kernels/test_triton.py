"""The fused Triton kernels, as they run on a GPU: the same objects, on the same tiles."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from libraries import unit
from logit_families import (
    INF,
    NEARLY_GOOD,
    assert_right,
    batch,
    gradient_error,
    long_rows,
    truths,
    value_error,
)
from reference import exact, extended

import kldiv
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss
from kldiv.kernels import Work

pytest.importorskip("torch")
pytest.importorskip("triton")

import array_api_compat.torch as xp
import torch
import triton
import triton.language as tl
from kernels.triton_cases import DEVICE, LOSSES, MARKS, agree, of, pair, pure, tensors

from kldiv.kernels.triton import elementary, launch, row_loss

pytestmark = MARKS

FLOATS = ["float32", "float64"]


@pytest.fixture(autouse=True)
def fused():
    """Have the kernels or an error."""
    with kldiv.config_context(kernel="triton"):
        yield


# --- exp and log ----------------------------------------------------------------------------------


@triton.jit
def _all(x, out, n, logarithm: tl.constexpr, width: tl.constexpr):
    k = tl.program_id(0) * width + tl.arange(0, width)
    value = tl.load(x + k, mask=k < n, other=1.0)
    value = elementary.log(value) if logarithm else elementary.exp(value)
    tl.store(out + k, value, mask=k < n)


def worst(function, x):
    """Largest error in units of the last place."""
    with np.errstate(all="ignore"):
        true = getattr(np, function)(x.astype(np.longdouble))
        (data,) = tensors(x)
        out = torch.empty_like(data)
        _all[(-(-x.size // 65536),)](data, out, x.size, function == "log", 65536, **launch.OPTIONS)
        found, rounded = out.cpu().numpy(), true.astype(x.dtype)
        finite = np.isfinite(rounded)
        np.testing.assert_array_equal(found[~finite], rounded[~finite])
        ulp = np.spacing(abs(rounded[finite])).astype(np.longdouble)
        return float(np.max(abs(found[finite].astype(np.longdouble) - true[finite]) / ulp))


wide = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="a long double is a double")


@wide
@pytest.mark.parametrize("dtype", FLOATS)
def test_log_is_right_to_an_ulp(dtype):
    random = np.random.default_rng(1)
    bits = {"float32": np.int32, "float64": np.int64}[dtype]
    top = int(np.array(np.inf, dtype).view(bits))
    x = random.integers(0, top + 1, 300_000).astype(bits).view(dtype)  # all exponents alike
    near = (1 + random.normal(size=200_000) * 10.0 ** random.integers(-8, 0, 200_000)).astype(dtype)
    edges = np.array([0, -0.0, np.inf, np.nan, -1, -np.inf], dtype)
    assert worst("log", np.concatenate([x, near[near > 0], edges])) <= 1


@wide
@pytest.mark.parametrize("dtype", FLOATS)
def test_exp_is_right_to_an_ulp(dtype):
    random = np.random.default_rng(2)
    low, high = {"float32": (-104.5, 89.5), "float64": (-746.5, 710.5)}[dtype]
    small = random.normal(size=200_000) * 10.0 ** random.integers(-10, 1, 200_000)
    edges = [0, -0.0, np.inf, -np.inf, np.nan, 1e300, -1e300, 5e-324]
    with np.errstate(over="ignore", under="ignore"):
        x = np.concatenate([random.uniform(low, high, 300_000), small, edges]).astype(dtype)
    assert worst("exp", x) <= 1.2


# --- exactness ------------------------------------------------------------------------------------


def computed(divergence, s, t, dtype, temperature=1.0):
    """Value and both gradients of rows, in the logits' own dtype."""
    operation = RowLoss("none", dtype, dtype, dtype, divergence, temperature)
    value, gradients = row_loss.run(Work(operation, xp, tensors(s, t), gradients=(0, 1)))
    return [each.cpu().numpy() for each in (value, *gradients)]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.3])
@pytest.mark.parametrize(("size", "dtype"), [(3, "float32"), (3, "float64"), (100, "float32")])
def test_kl_of_logits_is_exact(size, dtype, temperature):
    names, s, t = batch(size, dtype)
    found = computed(KullbackLeibler(), s, t, dtype, temperature)
    assert_right(names, found, truths(size, dtype, temperature), dtype)


@pytest.mark.parametrize(
    ("size", "dtype", "beta"),
    [
        *((3, dtype, beta) for dtype in FLOATS for beta in (0.01, 0.5, 0.99)),
        (100, "float32", 0.01),
        (100, "float32", 0.6),
    ],
)
def test_js_of_logits_is_exact(size, dtype, beta):
    names, s, t = batch(size, dtype)
    found = computed(JensenShannon(beta), s, t, dtype)
    assert_right(names, found, truths(size, dtype, 1.0, beta), dtype)


@wide
@pytest.mark.parametrize("beta", [None, 0.4])
@pytest.mark.parametrize(
    ("size", "dtype", "rows"),
    [
        *((size, dtype, 7) for size in (127, 128, 129, 1000) for dtype in FLOATS),
        (1025, "float32", 7),  # of two tiles
        (4099, "float64", 2),
        (32000, "float32", 1),
        (151936, "float32", 1),
    ],
)
def test_many_classes_are_exact(size, dtype, rows, beta):
    if size == 151936 and beta is not None and DEVICE == "cpu":
        pytest.skip("the interpreter takes a minute, and 32000 classes show the same")
    pairs = dict(list(long_rows(size).items())[-rows:] if rows < 7 else long_rows(size).items())
    s, t = (np.stack([each[i] for each in pairs.values()]).astype(dtype) for i in (0, 1))
    divergence = KullbackLeibler() if beta is None else JensenShannon(beta)
    expected = [extended(a, b, beta=beta) for a, b in zip(s, t, strict=True)]
    assert_right(pairs, computed(divergence, s, t, dtype), expected, dtype)


@pytest.mark.parametrize("beta", [None, 0.4])
@pytest.mark.parametrize("size", [1, 2])
def test_one_and_two_classes(size, beta):
    random = np.random.default_rng(size)
    s, t = random.normal(size=(2, 5, size)).astype("float32")
    divergence = KullbackLeibler() if beta is None else JensenShannon(beta)
    found = computed(divergence, s, t, "float32")
    if size == 1:
        assert all((each == 0).all() for each in found)
        return
    assert_right(range(5), found, [extended(a, b, beta=beta) for a, b in zip(s, t, strict=True)],
                 "float32")  # fmt: skip


@pytest.mark.parametrize(
    ("programs", "beta", "every"), [(1, None, 4), (1, 0.4, 20), (24, None, 12), (24, 0.4, 30)]
)
def test_any_sharing_of_rows_is_exact(programs, beta, every, monkeypatch):
    """Rows in many tiles, shared by programs or not, are within the target (G8)."""
    names, s, t = batch(100, "float32")
    rows = slice(None, None, every if DEVICE == "cpu" else 1)  # the interpreter is slow
    times = 11  # each class so often, which only divides the gradients
    expected = [
        true._replace(
            grad_input=np.repeat(true.grad_input / times, times),
            grad_target=np.repeat(true.grad_target / times, times),
        )
        for true in truths(100, "float32", 1.0, beta)[rows]
    ]
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    monkeypatch.setitem(launch.STATE_TILE, False, 128)
    divergence = KullbackLeibler() if beta is None else JensenShannon(beta)
    found = computed(
        divergence, *(np.repeat(each[rows], times, axis=1) for each in (s, t)), "float32"
    )
    assert_right(names[rows], found, expected, "float32")


@pytest.mark.parametrize("name", NEARLY_GOOD)
def test_guesses_that_are_nearly_good_enough(name):
    s, t, beta = NEARLY_GOOD[name]
    divergence = KullbackLeibler() if beta is None else JensenShannon(beta)
    true = exact(s, t, beta=beta)
    assert_right([name], computed(divergence, s[None], t[None], "float32"), [true], "float32")


@pytest.mark.parametrize("upstream", [1e-30, 1e30])
@pytest.mark.parametrize("loss", ["logits", "js"])
def test_gradients_of_any_size(loss, upstream):
    s, t = pair(loss, (1, 3000))
    with torch.no_grad():
        t[0, 2500] += 21  # beyond the first tile
        s[...] = t + 0.1 * s
    found = torch.autograd.grad(LOSSES[loss](s, t), (s, t), torch.tensor(upstream, device=DEVICE))
    with pure():
        expected = torch.autograd.grad(
            LOSSES[loss](s.double(), t.double()),
            (s, t),
            torch.tensor(upstream, device=DEVICE).double(),
        )
    agree(found, expected, 1e-5)


@pytest.mark.parametrize("loss", ["logits", "js"])
def test_rows_that_are_masked_altogether(loss):
    s, t = (torch.full((2, 5), -INF, device=DEVICE, requires_grad=True) for _ in range(2))
    function = functools.partial(LOSSES[loss], reduction="none")
    found = of(function, s, t)
    with pure():
        agree(found, of(function, s, t), 0)
    assert all(each.isnan().all() for each in found)


@wide
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("loss", ["logits", "js"])
def test_half_types_are_exact(loss, dtype):
    random = np.random.default_rng(5)
    s, t = (torch.from_numpy(3 * random.normal(size=(3, 1500))).to(DEVICE, getattr(torch, dtype))
            for _ in range(2))  # fmt: skip
    s.requires_grad_()
    beta = None if loss == "logits" else 0.3
    value = LOSSES[loss](s, t, reduction="none", dtype="float32")
    (gradient,) = torch.autograd.grad(value.sum(), s)
    assert (value.dtype, gradient.dtype) == (torch.float32, s.dtype)
    for k in range(3):
        true = extended(s[k].detach().double().cpu(), t[k].double().cpu(), beta=beta)
        assert value_error(value[k].item(), true.value, "float32") <= 1e-6
        error = gradient_error(gradient[k].double().cpu().numpy(), true.grad_input, "float16")
        assert error <= 2 * unit(dtype)


# --- the same as the formulas ---------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean", "batchmean", "sum"])
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("mask", ["none", "rows", "elements"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_kl_div_agrees_with_the_formulas(dtype, mask, log_target, reduction):
    x, y = pair("log_target" if log_target else "kl_div", (4, 3, 70), getattr(torch, dtype))
    with torch.no_grad():
        x[0, 0, :3] = -INF
        y[0, 0, :3] = torch.tensor([-INF if log_target else 0, 0.5, 0])
    generator = torch.Generator().manual_seed(3)
    where = {
        "none": None,
        "rows": (torch.arange(3) != 2)[:, None].to(DEVICE),
        "elements": (torch.rand(x.shape, generator=generator) < 0.8).to(DEVICE),
    }[mask]
    loss = functools.partial(
        kldiv.kl_div, reduction=reduction, log_target=log_target, where=where, dtype=torch.float64
    )
    found = of(loss, x, y)
    with pure():
        agree(found, of(loss, x, y), 4 * unit(dtype) if "16" in dtype else 1e-6)


LAYOUTS = {
    "transposed": lambda a: a.permute(2, 0, 1),
    "every other": lambda a: a[:, :, ::2],
    "a part": lambda a: a[1:, :-1, 3:-1],
    "of four axes": lambda a: a.reshape(2, 2, 5, 60).permute(2, 0, 1, 3),
    "in four axes apart": lambda a: a.reshape(2, 2, 5, 60)[:, :, :-1, :-1].permute(2, 1, 0, 3),
    "expanded": lambda a: a[:1].expand(a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_any_layout(loss, layout):
    x, y = pair(loss, (4, 5, 60))
    function = functools.partial(LOSSES[loss], reduction="none")
    for other in (LAYOUTS[layout](y), LAYOUTS[layout](y).detach().clone().requires_grad_()):
        own = LAYOUTS[layout](x)
        found = of(function, own, other)
        with pure():
            agree(found, of(function, own, other), 1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_classes_on_another_axis(axis):
    s, t = pair("logits", (5, 40, 6))
    loss = functools.partial(kldiv.kl_div_with_logits, axis=axis)
    found = of(loss, s, t)
    with pure():
        expected = of(loss, s, t)
    agree(found, expected, 1e-6)


@pytest.mark.parametrize("reduction", ["none", "mean", "batchmean", "sum"])
@pytest.mark.parametrize("temperature", ["number", "array"])
@pytest.mark.parametrize("loss", ["logits", "js"])
def test_masks_and_temperatures(loss, temperature, reduction):
    s, t = pair(loss, (4, 3, 50), torch.float64)
    with torch.no_grad():
        s[1, 2] = torch.nan
        t[0, 1, :2] = -INF
    where = torch.ones(4, 3, dtype=torch.bool, device=DEVICE)
    where[1] = False
    warm = {"number": 0.7, "array": torch.tensor([0.5, 1.0, 3.0], device=DEVICE)}[temperature]
    function = functools.partial(LOSSES[loss], temperature=warm, where=where, reduction=reduction)
    found = of(function, s, t)
    assert all(each.isfinite().all() for each in found)
    with pure():
        agree(found, of(function, s, t), 1e-12)


def test_a_temperature_is_differentiable():
    s, t = pair("logits", (3, 50), torch.float64)
    temperature = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, device=DEVICE)
    temperature.requires_grad_()

    def loss(s, t, temperature):
        return kldiv.kl_div_with_logits(s, t, temperature=temperature)

    found = of(loss, s, t, temperature, wanted=(0, 1, 2))
    with pure():
        agree(found, of(loss, s, t, temperature, wanted=(0, 1, 2)), 1e-12)


@pytest.mark.parametrize("loss", ["logits", "js"])
def test_rows_that_are_no_distributions(loss):
    s, t = pair(loss, (9, 20))
    with torch.no_grad():
        s[0], t[1], s[2, 3], t[3, 4] = -INF, -INF, INF, torch.nan
        s[4, 5], t[5, 6], s[6, 7], t[6, 7] = -INF, -INF, -INF, -INF
        t[7] = s[7] + 5
    function = functools.partial(LOSSES[loss], reduction="none")
    found = of(function, s, t)
    with pure():
        expected = of(function, s, t)
    assert found[0][:4].isnan().all()
    assert found[0][4].isinf() == (loss == "logits")
    agree([each[:7] for each in found], [each[:7] for each in expected], 1e-5)
    assert (found[0][4:] >= 0).all()


# --- torch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_twice_the_same_bits_and_nothing_modified(loss):
    x, y = pair(loss, (3, 1500))
    before = [array.detach().clone() for array in (x, y)]
    versions = [array._version for array in (x, y)]
    value = LOSSES[loss](x, y)
    first, second = (torch.autograd.grad(value, (x, y), retain_graph=True) for _ in range(2))
    again = torch.autograd.grad(LOSSES[loss](x, y), (x, y))
    assert torch.equal(value, LOSSES[loss](x, y))
    for a, b, c in zip(first, second, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y), strict=True))
    assert versions == [array._version for array in (x, y)]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_gradient_alone(loss, index):
    x, y = pair(loss, (3, 40))
    both = of(LOSSES[loss], x, y)
    arrays = [each if k == index else each.detach() for k, each in enumerate((x, y))]
    agree(of(LOSSES[loss], *arrays, wanted=(index,)), [both[0], both[1 + index]], 0)


def test_second_order_is_left_to_the_formulas():
    s, t = pair("logits", (3, 40), torch.float64)

    def second(loss):
        (gradient,) = torch.autograd.grad(loss(s, t), s, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), (s, t))

    found = second(kldiv.kl_div_with_logits)
    with pure():
        agree(found, second(kldiv.kl_div_with_logits), 1e-11)


def test_autocast_gives_float32():
    s, t = pair("logits", (3, 40), torch.bfloat16)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        value = kldiv.kl_div_with_logits(s, t)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, s)[0].dtype == torch.bfloat16


def test_value_and_grad():
    s, t = (each.detach() for each in pair("js", (3, 40)))
    found = kldiv.value_and_grad(kldiv.js_div_with_logits, (0, 1))(s, t)
    with pure():
        expected = kldiv.value_and_grad(kldiv.js_div_with_logits, (0, 1))(s, t)
    agree([found[0], *found[1]], [expected[0], *expected[1]], 1e-5)
