"""`linear_kl_div` on every library: the loss of the logits that it never holds."""

from __future__ import annotations

import math
import sys
import tracemalloc
from functools import partial
from importlib import import_module

import numpy as np
import pytest
from libraries import unit
from processes import python

import kldiv
from kldiv.backends import chunks
from kldiv.backends.numpy_ import NumPyBackend
from kldiv.errors import DTypeError, OptionError, ShapeError
from kldiv.formulas import layers, linear, terms
from kldiv.formulas.divergences import KullbackLeibler
from kldiv.formulas.rows import RowLoss

RNG = np.random.default_rng(5)
ROWS, CLASSES = (4, 3), 7
ARRAYS = tuple(RNG.normal(size=shape) for shape in ((*ROWS, 5), (7, 5), (*ROWS, 6), (7, 6)))
BIAS, TARGET_BIAS = RNG.normal(size=(2, CLASSES))
BIAS[2] = TARGET_BIAS[2] = -math.inf  # a class of neither
TARGET_BIAS[4] = -math.inf  # and one of the student alone
MASK = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], bool)
CASES = {
    "plain": {},
    "biases": {"bias": BIAS, "target_bias": TARGET_BIAS, "reduction": "sum"},
    "where": {"where": MASK, "target_bias": TARGET_BIAS, "reduction": "batchmean"},
    "temperature": {"temperature": 2.5, "bias": BIAS, "target_bias": BIAS, "where": MASK},
    "of each row": {"temperature": RNG.uniform(0.5, 2.0, ROWS), "where": MASK},
}
WANTED = (0, 1, 2, 3)


@pytest.fixture
def few_rows(monkeypatch, lib):
    """Three rows of logits and their gradients at a time."""
    size = 8 if lib.widest == "float64" else 4
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 3 * 4 * CLASSES * size)
    if lib.root == "jax":  # what is compiled has its chunks
        sys.modules["jax"].clear_caches()


def logits(arrays, bias=0.0, target_bias=0.0):
    hidden, weight, target_hidden, target_weight = arrays
    return hidden @ weight.T + bias, target_hidden @ target_weight.T + target_bias


def composed(arrays, **options):
    """Value and gradients by the logits, in float64."""
    pair = logits(arrays, options.pop("bias", 0.0), options.pop("target_bias", 0.0))
    loss = partial(kldiv.kl_div_with_logits, **options)
    with kldiv.config_context(kernel="pure"):
        value, slopes = kldiv.value_and_grad(loss, argnums=(0, 1))(*pair)
    gradients = []
    for slope, hidden, weight in zip(slopes, arrays[::2], arrays[1::2], strict=True):
        flat = slope.reshape(-1, slope.shape[-1])
        gradients += [slope @ weight, flat.T @ hidden.reshape(-1, hidden.shape[-1])]
    return value, gradients


def given(lib, options):
    return {
        name: lib.array(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def close(found, wanted, dtype, factor=64):
    assert np.abs(found - wanted).max() <= factor * unit(dtype) * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_those_of_the_logits(lib, few_rows, case):
    options = CASES[case]
    value, gradients = composed(ARRAYS, **options)
    arrays = [lib.array(array) for array in ARRAYS]
    loss = partial(kldiv.linear_kl_div, **given(lib, options))
    lib.assert_equal(loss(*arrays), value, ulps=64)
    found, of_arrays = kldiv.value_and_grad(loss, argnums=WANTED)(*arrays)
    lib.assert_equal(found, value, ulps=64)
    for gradient, wanted in zip(of_arrays, gradients, strict=True):
        lib.assert_like(gradient, wanted.shape, lib.widest)
        close(lib.numpy(gradient), wanted, lib.widest)


def test_rows(lib, few_rows):
    arrays = [lib.array(array) for array in ARRAYS]
    options = {"bias": BIAS, "target_bias": TARGET_BIAS, "where": MASK, "reduction": "none"}
    s, t = logits(ARRAYS, BIAS, TARGET_BIAS)
    wanted = kldiv.kl_div_with_logits(s, t, where=MASK, reduction="none")
    assert not wanted[~MASK].any()
    lib.assert_equal(kldiv.linear_kl_div(*arrays, **given(lib, options)), wanted, ulps=64)


def test_a_single_row_and_none(lib):
    arrays = [ARRAYS[0][0, 0], ARRAYS[1], ARRAYS[2][0, 0], ARRAYS[3]]
    value, gradients = composed(arrays)
    loss = kldiv.value_and_grad(kldiv.linear_kl_div, argnums=WANTED)
    found, of_arrays = loss(*map(lib.array, arrays))
    lib.assert_equal(found, value, ulps=64)
    for gradient, wanted in zip(of_arrays, gradients, strict=True):
        close(lib.numpy(gradient), wanted.reshape(gradient.shape), lib.widest)
    empty = [ARRAYS[0][:0], ARRAYS[1], ARRAYS[2][:0], ARRAYS[3]]
    total, of_arrays = kldiv.value_and_grad(partial(kldiv.linear_kl_div, reduction="sum"), WANTED)(
        *map(lib.array, empty)
    )
    assert float(lib.numpy(total)) == 0.0
    for gradient, array in zip(of_arrays, empty, strict=True):
        assert lib.numpy(gradient).shape == array.shape
        assert not lib.numpy(gradient).any()
    assert math.isnan(float(lib.numpy(kldiv.linear_kl_div(*map(lib.array, empty)))))


def test_float32_is_as_right_as_its_products():
    """Each logit is off by δ ≤ (H + 1)·u·Σ|h||w|, and KL by at most the spread of its gradient."""
    arrays = [array.astype(np.float32) for array in ARRAYS]
    wide = [array.astype(np.float64) for array in arrays]
    s, t = logits(wide)
    bound = 0.0
    for hidden, weight in (wide[:2], wide[2:]):
        bound += 7 * unit("float32") * (np.abs(hidden) @ np.abs(weight).T).max()
    wanted = kldiv.kl_div_with_logits(s, t, reduction="none")
    found = kldiv.linear_kl_div(*arrays, reduction="none")
    spread = (s - t).max(-1) - (s - t).min(-1)  # Σ|∂KL/∂t| is at most that, Σ|∂KL/∂s| at most 2
    assert (np.abs(found - wanted) <= bound * (spread + 2) + 1e-6 * wanted).all()


@pytest.mark.leave_out(lambda lib: lib.root == "dask" and "Dask's blocks are NumPy's")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(lib, monkeypatch, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 4 * CLASSES * 4)
    monkeypatch.setattr(layers, "_BLOCK_BYTES", 3 * 5 * 4)  # three classes at a time
    if lib.root == "jax":
        sys.modules["jax"].clear_caches()
    arrays = [
        lib.array(np.repeat(array, 60, 0) if k % 2 == 0 else array, dtype)
        for k, array in enumerate(ARRAYS)
    ]
    wide = [lib.numpy(array).astype(np.float64) for array in arrays]
    value, gradients = composed(wide)
    loss = partial(kldiv.linear_kl_div, dtype="float32")
    found, of_arrays = kldiv.value_and_grad(loss, argnums=WANTED)(*arrays)
    lib.assert_like(found, (), "float32")
    assert abs(float(found) - value) <= 1e-6 * value  # products are exact, sums are float32
    for gradient, wanted in zip(of_arrays, gradients, strict=True):
        lib.assert_like(gradient, wanted.shape, dtype)
        found = lib.numpy(gradient).astype(np.float64)
        # G and the result are rounded, sums of 180 chunks are not.
        assert np.abs(found - wanted).max() <= 2.5 * unit(dtype) * np.abs(wanted).max()


def test_the_result_has_the_widest_dtype():
    arrays = [array.astype(np.float32) for array in ARRAYS]
    assert kldiv.linear_kl_div(*arrays).dtype == np.float32
    assert kldiv.linear_kl_div(*arrays, bias=BIAS).dtype == np.float64
    wide = kldiv.linear_kl_div(*arrays, dtype="float64")
    exactly = kldiv.linear_kl_div(*(array.astype(np.float64) for array in arrays))
    assert abs(wide - exactly) <= 1e-14 * exactly


# ---- nothing is multiplied in vain ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "number"), [((0,), 3), ((1,), 3), ((0, 1), 4), ((2, 3), 4), (WANTED, 6)]
)
def test_frozen_arrays_cost_no_product(monkeypatch, wanted, number):
    calls = []
    product = layers.Products.__call__

    def counted(self, a, b):
        calls.append(a.shape)
        return product(self, a, b)

    monkeypatch.setattr(layers.Products, "__call__", counted)
    kldiv.value_and_grad(kldiv.linear_kl_div, argnums=wanted)(*ARRAYS)
    assert len(calls) == number
    calls.clear()
    kldiv.value_and_grad(partial(kldiv.linear_kl_div, where=MASK), argnums=wanted)(*ARRAYS)
    assert len(calls) == number
    # Dropped rows are not multiplied.
    assert {MASK.sum(), CLASSES} == {shape[0] for shape in calls} | {CLASSES}


def test_frozen_arrays_cost_no_product_in_jax(jax):
    arrays = [jax.numpy.asarray(array) for array in ARRAYS]
    for wanted, number in ((0, 3), ((0, 1), 4), (WANTED, 6)):
        found = jax.make_jaxpr(jax.grad(kldiv.linear_kl_div, wanted))(*arrays)
        compiled = jax.jit(jax.grad(kldiv.linear_kl_div, wanted)).lower(*arrays).as_text()
        assert compiled.count("stablehlo.dot_general") == number, found


def test_products_have_all_digits_in_jax_unless_it_is_asked_for_fewer(jax):
    """On GPUs and TPUs JAX's own default would round float32 factors."""
    arrays = [jax.numpy.asarray(array, "float32") for array in ARRAYS]
    gradient = jax.value_and_grad(kldiv.linear_kl_div, WANTED)
    assert jax.jit(gradient).lower(*arrays).as_text().count("[HIGHEST, HIGHEST]") == 6
    with jax.default_matmul_precision("default"):
        assert "HIGHEST" not in jax.jit(gradient).lower(*arrays).as_text()


# ---- memory --------------------------------------------------------------------------------------


def large(rows):
    shapes = (rows, 32), (4096, 32), (rows, 16), (4096, 16)
    return [RNG.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["auto", "pure"])
@pytest.mark.parametrize("name", ["linear_kl_div", "linear_distillation_loss"])
def test_memory_does_not_grow_with_rows_in_numpy(monkeypatch, kernel, name):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**23)
    monkeypatch.setattr(NumPyBackend, "block_bytes", lambda *_: 2**20)
    arrays, options = large(1024), {}  # whose logits have 16 MiB each
    if name != "linear_kl_div":
        options = {"labels": RNG.integers(4096, size=1024), "hard_weight": 0.3, "softcap": 30.0}
    loss = kldiv.value_and_grad(partial(getattr(kldiv, name), **options), argnums=WANTED)
    with kldiv.config_context(kernel=kernel):
        results = loss(*arrays)[1]
        tracemalloc.start()
        loss(*arrays)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # The budget, the results with a chunk's share, and what a block of the formulas takes.
    assert peak <= 2**23 + 2 * sum(array.nbytes for array in results) + 21 * 2**20


CAPS = {"softcap": 30.0, "target_softcap": 20.0, "logit_scale": 0.7}


@pytest.mark.parametrize("options", [{}, CAPS], ids=["plain", "caps and labels"])
def test_gradients_are_written_over_the_products(monkeypatch, options):
    monkeypatch.setattr(NumPyBackend, "block_bytes", lambda *_: 2**20)
    arrays, loss = large(1024), kldiv.linear_kl_div
    if options:
        labels = RNG.integers(4096, size=1024)
        loss = partial(kldiv.linear_distillation_loss, labels=labels, hard_weight=0.3)
    loss = kldiv.value_and_grad(partial(loss, **options), argnums=WANTED)
    results = loss(*arrays)[1]
    tracemalloc.start()
    loss(*arrays)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Both sides' products, of one chunk, the results, and half a dozen arrays of a block.
    assert peak <= 2 * 2**24 + 2 * sum(array.nbytes for array in results) + 8 * 2**20


BLOCKS = {
    "caps": (
        kldiv.linear_kl_div,
        {**CAPS, "temperature": RNG.uniform(0.5, 2.0, ROWS), "where": MASK},
    ),
    "rows": (kldiv.linear_js_div, {"bias": BIAS, "target_bias": BIAS, "reduction": "none"}),
    "labels": (
        kldiv.linear_distillation_loss,
        {
            **CAPS,
            "labels": np.where(MASK, RNG.integers(CLASSES, size=ROWS), -100),
            "hard_weight": 0.3,
            "row_weight": RNG.uniform(size=ROWS) * (np.arange(3) > 0),
        },
    ),
}


@pytest.mark.parametrize("wanted", [(0, 1), (2, 3), WANTED])
@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_of_a_chunk_are_as_the_whole(torch, monkeypatch, case, wanted):
    loss, options = BLOCKS[case]
    options = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}

    def found():
        arrays = [torch.tensor(a, requires_grad=k in wanted) for k, a in enumerate(ARRAYS)]
        total = (loss(*arrays, **options) ** 2).sum()
        return [total, *torch.autograd.grad(total, [arrays[k] for k in wanted])]

    adapter, results = type(kldiv.backends.get("torch")), []
    for size in (None, 5 * CLASSES * 8):  # no block, and rows that blocks of 5 do not fill
        monkeypatch.setattr(adapter, "block_bytes", lambda *_, size=size: size)
        results.append(found())
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-15)


_PROGRAM = """
import resource
import torch, kldiv
from kldiv.backends import chunks
chunks.CHUNK_BYTES = 2**24
torch.manual_seed(0)
arrays = [torch.randn(*shape) for shape in ((8192, 16), (4096, 16), (8192, 16), (4096, 16))]
arrays[0].requires_grad_(), arrays[1].requires_grad_()
few = [array[:256] for array in arrays]
kldiv.linear_kl_div(few[0], arrays[1], few[2], arrays[3]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kldiv.linear_kl_div(*arrays).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_rows_in_torch(torch):
    # The C library gives large pieces back at once: what it keeps would vary by 50 MiB.
    found = python("-c", _PROGRAM, MALLOC_MMAP_THRESHOLD_="1048576")
    assert int(found) <= 64, "MiB, where the logits have 256"


@pytest.mark.slow
def test_memory_does_not_grow_with_rows_in_jax(jax, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**22)
    jax.clear_caches()

    def temporary(function, rows):
        plan = jax.jit(function).lower(*map(jax.numpy.asarray, large(rows))).compile()
        return plan.memory_analysis().temp_size_in_bytes

    def rows(*arrays):
        return kldiv.linear_kl_div(*arrays, reduction="none").sum()

    for function in (kldiv.linear_kl_div, jax.grad(kldiv.linear_kl_div, (0, 1)), jax.grad(rows)):
        few, many = temporary(function, 512), temporary(function, 2048)
        assert many - few <= 2**21, "48 MiB of logits more"


# ---- PyTorch -------------------------------------------------------------------------------------


def tensors(torch, **options):
    arrays = [torch.tensor(array, requires_grad=True) for array in ARRAYS]
    return arrays, {
        k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()
    }


def whole(torch, arrays, bias=0.0, target_bias=0.0, **options):
    s, t = (a @ w.T for a, w in (arrays[:2], arrays[2:]))
    return kldiv.kl_div_with_logits(s + bias, t + target_bias, **options)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_in_torch(torch, monkeypatch, compiled, reduction):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 500)
    torch._dynamo.reset()
    options = {"bias": BIAS, "target_bias": TARGET_BIAS, "where": MASK}
    options["temperature"] = RNG.uniform(0.5, 2, ROWS)
    arrays, options = tensors(torch, **options, reduction=reduction)
    options["temperature"].requires_grad_()
    options["bias"].requires_grad_()
    leaves = [*arrays, options["bias"], options["temperature"]]
    loss = partial(kldiv.linear_kl_div, **options)
    loss = torch.compile(loss, fullgraph=True) if compiled else loss
    value, wanted = loss(*arrays), whole(torch, arrays, **options)
    cotangent = torch.randn_like(value)
    found = torch.autograd.grad(value, leaves, cotangent)
    expected = torch.autograd.grad(wanted, leaves, cotangent)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(found, expected)


def test_one_compilation_for_every_number_of_rows(torch):
    torch._dynamo.reset()
    arrays, _ = tensors(torch)
    whole(torch, arrays)  # a first call of either settles who computes
    kldiv.linear_kl_div(*arrays)
    compiled = torch.compile(kldiv.linear_kl_div, fullgraph=True, dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (4, 3, 2):
            part = [(a[:rows] if a.ndim > 2 else a).detach() for a in arrays]
            torch.testing.assert_close(compiled(*part), whole(torch, part))


def test_the_operator_is_sound(torch):
    import_module("kldiv.backends.torch_.linear")  # which defines it
    spelling = import_module("kldiv.kernels.spelling")
    arrays, _ = tensors(torch)
    arrays = [array.detach() for array in arrays]
    operator = torch.ops.kldiv.linear_in_chunks.default
    dtypes = ["float64"] * 3
    rows = RowLoss("none", *dtypes, KullbackLeibler(), 2.0)
    sides = layers.Layer(softcap=3.0), layers.Layer()
    operation = linear.LinearLoss("none", *dtypes, sides, (terms.Term(0.5, rows, (0, 1)),))
    for wanted, weight in (((0, 1, 3), None), ((0,), torch.rand(12, dtype=torch.float64))):
        words = spelling.spelled((operation, wanted, "auto"))
        torch.library.opcheck(operator, (arrays, *words, weight))


def test_autocast_multiplies_in_its_dtype(torch):
    arrays = [torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in ARRAYS]
    rounded = [array.detach().bfloat16().double().numpy() for array in arrays]
    with torch.autocast("cpu", torch.bfloat16):
        loss = kldiv.linear_kl_div(*arrays)
    loss.backward()
    value, gradients = composed(rounded)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - value) <= 1e-6 * value
    for array, wanted in zip(arrays, gradients, strict=True):
        assert array.grad.dtype == torch.float32
        close(array.grad.numpy(), wanted, "bfloat16", 2)


# ---- JAX -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_transformations_in_jax(jax, monkeypatch, reduction):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
    jnp = jax.numpy
    with jax.enable_x64(True):
        jax.clear_caches()
        arrays = [jnp.asarray(array) for array in ARRAYS]
        options = {"where": jnp.asarray(MASK), "reduction": reduction}

        def loss(bias, *given):
            return jnp.sum(jnp.sin(kldiv.linear_kl_div(*given, bias=bias, **options)))

        def same(bias, *given):
            s, t = (a @ w.T for a, w in (given[:2], given[2:]))
            return jnp.sum(jnp.sin(kldiv.kl_div_with_logits(s + bias, t, **options)))

        given = [jnp.where(jnp.isfinite(BIAS), BIAS, -3.0), *arrays]
        every = (0, 1, 2, 3, 4)
        transformations = {
            "mean": [
                lambda f: jax.grad(f, every)(*given),
                lambda f: jax.hessian(f, (0, 2))(*given),
            ],
            "none": [lambda f: jax.jvp(f, given, given)],
        }
        for of in transformations[reduction]:
            found, wanted = (jax.tree.leaves(jax.jit(partial(of, f))()) for f in (loss, same))
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
        del options["where"]  # which has all axes of the rows
        of = jax.grad if reduction == "none" else jax.value_and_grad
        mapped = [jax.jit(jax.vmap(of(f, every), (None, 0, None, 0, None))) for f in (loss, same)]
        for a, b in zip(*(jax.tree.leaves(each(*given)) for each in mapped), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


# ---- settings, errors ----------------------------------------------------------------------------


def test_kernels_compute_the_chunks():
    pytest.importorskip("llvmlite")
    arrays = large(64)
    with kldiv.config_context(kernel="cpu"):
        found = kldiv.value_and_grad(kldiv.linear_kl_div, argnums=(0, 1))(*arrays)
        assert kldiv.explain(*arrays, operation="linear_kl_div").kernel == "cpu"
    value, gradients = composed([array.astype(np.float64) for array in arrays])
    assert abs(found[0] - value) <= 1e-6 * value
    for gradient, wanted in zip(found[1], gradients, strict=False):
        assert np.abs(gradient - wanted).sum() <= 1e-5 * np.abs(wanted).sum()
    with pytest.raises(OptionError, match="got 2"):
        kldiv.explain(*arrays[:2], operation="linear_kl_div")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": ARRAYS[1].T}, r"weight\.T"),
        ({"weight": ARRAYS[1][:, :3]}, "input of shape .* has 5 features and weight .* takes 3"),
        ({"weight": ARRAYS[1][0]}, "expected two axes"),
        ({"target_weight": ARRAYS[3][:, :3]}, "target_input of shape .* has 6 features"),
        ({"target_input": ARRAYS[2][:3]}, r"same rows; got \(4, 3\) and \(3, 3\)"),
        (
            {"target_weight": ARRAYS[3][:4]},
            r", weight\[:4\], .*target_bias=kldiv\.pad_classes\(target_bias, 7\)",
        ),
        ({"weight": ARRAYS[1][:0], "target_weight": ARRAYS[3][:0]}, "no classes"),
        ({"input": np.float64(1.0)}, "input needs a last axis of features"),
        ({"bias": BIAS[:3]}, r"bias has shape \(3,\); expected \(7,\)"),
        ({"target_bias": TARGET_BIAS[:, None]}, "target_bias has shape"),
        ({"where": MASK.T}, "where has shape"),
        ({"temperature": np.ones(2)}, "temperature has shape"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    names = ("input", "weight", "target_input", "target_weight")
    with pytest.raises(ShapeError, match=message):
        kldiv.linear_kl_div(**{**dict(zip(names, ARRAYS, strict=True)), **change})


def test_backward_inside_a_forward_mode_level():
    torch = pytest.importorskip("torch")
    arrays = [torch.randn(6, 3), torch.randn(5, 3), torch.randn(6, 4), torch.randn(5, 4)]
    hidden = arrays[0].requires_grad_()
    (expected,) = torch.autograd.grad(3 * kldiv.linear_kl_div(*arrays), hidden)
    with torch.autograd.forward_ad.dual_level():
        (found,) = torch.autograd.grad(3 * kldiv.linear_kl_div(*arrays), hidden)
    torch.testing.assert_close(found, expected)


# --- distillation, sparse teachers, labels --------------------------------------------------------

CAPS = {"softcap": 2.0, "logit_scale": 0.5, "target_softcap": 3.0, "target_logit_scale": 1.5}
LABELS = np.where(MASK, RNG.integers(CLASSES, size=ROWS), -100)
HOT = RNG.uniform(0.5, 2.0, ROWS)
WEIGHTS = np.where(RNG.uniform(size=ROWS) < 0.3, 0.0, RNG.uniform(size=ROWS))
BETAS = RNG.choice([0.0, 0.3, 0.8, 1.0], ROWS)
DISTILLATION = {
    "labels": {"hard_weight": 0.3, "temperature": 2.0, "scale_by_temperature": True},
    "forward": {"beta": 0.0, "row_weight": WEIGHTS, "num_items_in_batch": 5},
    "reverse": {"beta": 1.0, "temperature": HOT, "reduction": "mean"},
    "beta of rows": {"beta": BETAS, "hard_weight": 0.2, "row_weight": WEIGHTS},
    "rows": {"beta": 0.1, "hard_weight": 0.2, "reduction": "none"},
}


def capped(products, cap, scale):
    """Logits, and their derivative in products that are not yet scaled."""
    x = products * scale / cap
    return cap * np.tanh(x), scale / np.cosh(x) ** 2


def chained(loss, own, *teacher, number=2):
    """A loss of capped logits, and its gradients in the layers of so many sides."""
    sides = [
        capped(hidden @ weight.T, cap, scale)
        for hidden, weight, cap, scale in (
            (*ARRAYS[:2], CAPS["softcap"], CAPS["logit_scale"]),
            (*ARRAYS[2:], CAPS["target_softcap"], CAPS["target_logit_scale"]),
        )
    ][:number]
    pair = [logits for logits, _ in sides] + [*teacher]
    with kldiv.config_context(kernel="pure"):
        if own.get("reduction") == "none":
            return loss(*pair), []
        value, slopes = kldiv.value_and_grad(loss, tuple(range(len(pair))))(*pair)
    gradients = []
    for k, (_, factor) in enumerate(sides):
        slope, (hidden, weight) = slopes[k] * factor, ARRAYS[2 * k : 2 * k + 2]
        flat = slope.reshape(-1, CLASSES).T @ hidden.reshape(-1, hidden.shape[-1])
        gradients += [slope @ weight, flat]
    return value, [*gradients, *slopes[number:]]


@pytest.mark.usefixtures("few_rows")
@pytest.mark.slow_where(lambda lib, case: "strict" in lib.value and case != "beta of rows")
@pytest.mark.parametrize("case", DISTILLATION)
def test_distillation(lib, case):
    """As `distillation_loss` of the logits, which `chained` differentiates."""
    options = DISTILLATION[case]
    dense = partial(kldiv.distillation_loss, labels=LABELS, **options)
    value, gradients = chained(dense, options)
    own = given(lib, {**options, **CAPS, "labels": LABELS})
    arrays = [lib.array(array) for array in ARRAYS]
    loss = partial(kldiv.linear_distillation_loss, **own)
    close(lib.numpy(loss(*arrays)), value, lib.widest)
    if gradients:
        _, found = kldiv.value_and_grad(loss, WANTED)(*arrays)
        for gradient, wanted in zip(found, gradients, strict=True):
            close(lib.numpy(gradient), wanted, lib.widest)


@pytest.mark.usefixtures("few_rows")
@pytest.mark.leave_out(lambda lib: "the same program" if lib.value == "jax" else None)
@pytest.mark.slow_where(lambda lib: lib.value in {"jax-x64", "array-api-strictest"})
def test_sparse_and_dense_teachers_without_hidden_states(lib):
    student, t = [lib.array(array) for array in ARRAYS[:2]], logits(ARRAYS)[1]
    caps = {name: CAPS[name] for name in ("softcap", "logit_scale")}
    head = kldiv.Head(*student, **caps)
    sparse = kldiv.topk_log_probs(t, 3)
    own = kldiv.SparseTeacher(*map(lib.array, sparse[:3]))
    cases = {"beta": 0.3}, {"beta": BETAS}, {"tail": "renormalize", "temperature": 2.0}
    for options in cases[1:2] if lib.root == "jax" else cases:  # which compiles each
        dense = partial(kldiv.topk_kl_div_with_logits, target_indices=sparse.indices, **options)
        if "tail" in options:
            dense = partial(dense, target_temperature=1.0)
        else:
            dense = partial(dense, target_rest=sparse.rest)
        value, gradients = chained(dense, options, sparse.log_probs, number=1)
        loss = partial(kldiv.linear_topk_kl_div, **given(lib, options))
        found, slopes = kldiv.value_and_grad(loss, (0, 1, 2))(head, own)
        close(lib.numpy(found), value, lib.widest)
        for gradient, wanted in zip(slopes, gradients, strict=True):
            close(lib.numpy(gradient), wanted, lib.widest)
    s = capped(ARRAYS[0] @ ARRAYS[1].T, 2.0, 0.5)[0]
    labels = lib.array(LABELS)
    hard = kldiv.cross_entropy_with_logits(s, LABELS)
    soft = kldiv.topk_kl_div_with_logits(s, sparse, beta=0.3, where=LABELS >= 0)
    if lib.root != "jax":
        found = kldiv.linear_distillation_loss(head, own, labels, beta=0.3, hard_weight=0.25)
        close(lib.numpy(found), 0.25 * hard + 0.75 * soft, lib.widest)
    found = kldiv.linear_distillation_loss(head, labels, target_log_probs=lib.array(t))
    close(lib.numpy(found), kldiv.distillation_loss(s, t, LABELS), lib.widest)
    both = kldiv.linear_log_prob_and_entropy(head, labels)
    wanted = kldiv.log_prob_and_entropy_with_logits(s, LABELS)
    for each, other in zip(both, wanted, strict=True):
        close(lib.numpy(each), other, lib.widest)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, t: kldiv.linear_distillation_loss(s), "the teacher is missing"),
        (lambda s, t: kldiv.linear_distillation_loss(*s[:2], *t[:1]), "the teacher is missing"),
        (lambda s, t: kldiv.linear_distillation_loss(s, t, softcap=1.0), "softcap is in the Head"),
        (lambda s, t: kldiv.linear_distillation_loss(s, t, tail="renormalize"), "tail says how"),
        (lambda s, t: kldiv.linear_kl_div(s._replace(softcap=-1.0), t), "softcap must be"),
        (lambda s, t: kldiv.linear_kl_div(s, t, target_logit_scale=0.0), "target_logit_scale must"),
        (lambda s, t: kldiv.linear_kl_div(*s[:1]), "weight is missing"),
        (lambda s, t: kldiv.linear_topk_kl_div(s), "target_log_probs is missing"),
        (
            lambda s, t: kldiv.linear_distillation_loss(s, t, normalizer=1, num_items_in_batch=1),
            "are the same",
        ),
        (
            lambda s, t: kldiv.linear_distillation_loss(s, target_log_probs=ARRAYS[0]),
            r"expected \(4, 3, 7\), the rows of input and the classes of weight",
        ),
        (
            lambda s, t: kldiv.linear_log_prob_and_entropy(s, s.weight, LABELS),
            "weight is in the Head",
        ),
        (
            lambda s, t: kldiv.linear_topk_kl_div(s, s.weight, ARRAYS[0], LABELS),
            "weight is in the Head",
        ),
        (
            lambda s, t: kldiv.linear_log_prob_and_entropy(s, LABELS.clip(0) + 7),
            "none of the 7 classes",
        ),
        (kldiv.value_and_grad(kldiv.linear_kl_div, 4), "argnums 4 is bias, which is not given"),
        (lambda s, t: kldiv.value_and_grad(kldiv.linear_kl_div, 6), "argnums"),
        (
            lambda s, t: kldiv.linear_kl_div(*ARRAYS[:3], np.ones((7, 6), np.int64)),
            "target_weight has dtype int64",
        ),
        (lambda s, t: kldiv.linear_kl_div(s, t, where=np.ones(ROWS)), "where has dtype"),
        (lambda s, t: kldiv.linear_kl_div(s, t, temperature=0.0), "temperature"),
        (lambda s, t: kldiv.linear_kl_div(s, t, reduction="avg"), "reduction"),
    ],
)
def test_wrong_heads_and_teachers(call, message):
    heads = kldiv.Head(*ARRAYS[:2], softcap=2.0), kldiv.Head(*ARRAYS[2:])
    with pytest.raises((DTypeError, OptionError, ShapeError), match=message):
        call(*heads)
