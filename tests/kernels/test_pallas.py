"""The fused Pallas kernels, as they run on a GPU: the same objects, on the same tiles.

Without a GPU Pallas interprets them on the CPU, and they are lowered for a GPU, which needs none;
where there is one, the same tests run on it.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
from libraries import unit
from logit_families import assert_right, batch, gradient_error, long_rows, truths, value_error
from reference import exact, extended

import kldiv
from kldiv.errors import BackendError
from kldiv.explanation import OPERATIONS
from kldiv.formulas.rows import JensenShannon, KullbackLeibler, RowLoss
from kldiv.kernels import Work, pallas

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

if pallas._lacking():
    pytest.skip(pallas._lacking(), allow_module_level=True)

from kldiv.backends._jax import xp
from kldiv.kernels.pallas import row_loss, states

GPU = jax.default_backend() == "gpu"

QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}

pytestmark = [pytest.mark.gpu] if GPU else []

KL = KullbackLeibler()
LOSSES = {
    "logits": kldiv.kl_div_with_logits,
    "js": functools.partial(kldiv.js_div_with_logits, beta=0.3),
}
wide = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="a long double is a double")


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Have the kernels or an error."""
    monkeypatch.setattr("kldiv.backends.routing._places", {})
    monkeypatch.setattr(pallas, "_failure", None)
    if not GPU:
        monkeypatch.setenv("KLDIV_PALLAS_INTERPRET", "1")
    with kldiv.config_context(kernel="pallas"):
        yield


@functools.cache
def known_options():
    """What makes compiling quick without a GPU, as far as this XLA knows it."""
    found = {}
    for name, value in QUICKLY.items():
        try:
            jax.jit(jnp.negative).lower(1.0).compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError:  # JAX renames them at will
            continue
        found[name] = value
    return None if GPU else found


def quickly(function):
    """Compile in a third of the time, without a GPU."""
    return jax.jit(function, compiler_options=known_options())


def pair(shape, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    return [jnp.asarray(random.normal(size=shape), dtype) for _ in range(2)]


def by_formulas(loss, *logits, **options):
    """Value and both gradients by NumPy in float64."""
    arrays = [np.asarray(each, np.float64) for each in logits]
    loss = functools.partial(loss, **options)
    with kldiv.config_context(kernel="pure"):
        value, gradients = kldiv.value_and_grad(loss, (0, 1))(*arrays)
    return value, *gradients


def agree(found, expected, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(one, np.float64), np.asarray(other)
        assert a.shape == b.shape
        scale = abs(b[np.isfinite(b)]).max(initial=0.0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


# --- exactness ------------------------------------------------------------------------------------


def computed(divergence, s, t, dtype, temperature=1.0, compiler=quickly):
    """Value and both gradients of rows, in the logits' own dtype."""
    operation = RowLoss("none", dtype, dtype, dtype, divergence, temperature)
    with jax.enable_x64(dtype == "float64"):
        work = Work(operation, xp, [], gradients=(0, 1))
        run = compiler(lambda *arrays: row_loss.run(work._replace(arrays=arrays)))
        value, gradients = run(jnp.asarray(s), jnp.asarray(t))
    return [np.asarray(each) for each in (value, *gradients)]


@pytest.mark.parametrize(
    ("size", "dtype", "temperature"),
    [(3, "float64", 3.3), (100, "float32", 0.7)],
)
def test_kl_of_logits_is_exact(size, dtype, temperature):
    names, s, t = batch(size, dtype)
    # As programs are compiled, with products and sums contracted.
    found = computed(KL, s, t, dtype, temperature, jax.jit)
    assert_right(names, found, truths(size, dtype, temperature), dtype)


@pytest.mark.parametrize(
    ("size", "dtype", "beta"),
    [(3, "float64", 0.5), (100, "float32", 0.01)],
)
def test_js_of_logits_is_exact(size, dtype, beta):
    names, s, t = batch(size, dtype)
    found = computed(JensenShannon(beta), s, t, dtype)
    assert_right(names, found, truths(size, dtype, 1.0, beta), dtype)


@wide
@pytest.mark.parametrize(
    ("size", "dtype", "beta"),
    [
        (127, "float32", None),
        (128, "float32", None),
        (129, "float32", None),
        (1000, "float32", None),
        (1025, "float64", None),  # of two tiles
        (32000, "float32", None),
        (32000, "float32", 0.4),
        (151936, "float32", None),
    ],
)
def test_many_classes_are_exact(size, dtype, beta):
    pairs = long_rows(size)
    if size == 151936:
        pairs = {name: pairs[name] for name in ("1e-3", "a ramp")}
    s, t = (np.stack([each[i] for each in pairs.values()]).astype(dtype) for i in (0, 1))
    divergence = KL if beta is None else JensenShannon(beta)
    expected = [extended(a, b, beta=beta) for a, b in zip(s, t, strict=True)]
    assert_right(pairs, computed(divergence, s, t, dtype), expected, dtype)


@pytest.mark.parametrize("size", [1, 2])
def test_one_and_two_classes(size):
    s, t = np.random.default_rng(size).normal(size=(2, 5, size)).astype("float32")
    found = computed(KL, s, t, "float32")
    if size == 1:
        assert all((each == 0).all() for each in found)
        return
    assert_right(range(5), found, [exact(a, b) for a, b in zip(s, t, strict=True)], "float32")


@wide
def test_any_sharing_of_rows_is_exact(monkeypatch):
    """Many parts of a row (G8)."""
    pairs = long_rows(1100)
    s, t = (np.stack([each[i] for each in pairs.values()]).astype("float32") for i in (0, 1))
    expected = [extended(a, b) for a, b in zip(s, t, strict=True)]
    monkeypatch.setitem(states.TILE, "float32", 64)
    assert_right(pairs, computed(KL, s, t, "float32"), expected, "float32")


@wide
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_are_exact(dtype):
    s, t = pair((3, 1500), dtype, seed=5)
    function = functools.partial(kldiv.kl_div_with_logits, reduction="sum", dtype="float32")
    value, gradient = kldiv.value_and_grad(function)(s, t)
    assert (value.dtype, gradient.dtype) == (jnp.float32, s.dtype)
    wide = [np.asarray(each, np.float64) for each in (s, t)]
    true = [extended(*rows) for rows in zip(*wide, strict=True)]
    assert value_error(float(value), sum(row.value for row in true), "float32") <= 1e-6
    for row, found in zip(true, np.asarray(gradient, np.float64), strict=True):
        assert gradient_error(found, row.grad_input, "float16") <= 2 * unit(dtype)


# --- the same as the formulas ---------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_axes_masks_and_temperatures(loss):
    s, t = pair((4, 50, 3))
    s, t = s.at[1, :, 2].set(jnp.nan), t.at[0, :2, 1].set(-jnp.inf)
    where, temperature = np.ones((4, 3), bool), np.array([0.5, 1.0, 3.0])
    where[1] = False
    function = functools.partial(LOSSES[loss], axis=1)
    found = quickly(
        lambda s, t: jax.value_and_grad(function, (0, 1))(
            s, t, where=jnp.asarray(where), temperature=jnp.asarray(temperature, "float32")
        )
    )(s, t)
    expected = by_formulas(function, s, t, where=where, temperature=temperature)
    assert all(np.isfinite(each).all() for each in expected)
    agree(found, expected)


def test_a_temperature_is_differentiable():
    s, t = pair((3, 50))
    warm = jnp.asarray([0.5, 1.0, 3.0])
    function = functools.partial(kldiv.kl_div_with_logits, reduction="sum")
    slope = quickly(jax.grad(lambda each: function(s, t, temperature=each)))(warm)
    s, t, warm = (np.asarray(each, np.float64) for each in (s, t, warm))
    with kldiv.config_context(kernel="pure"):
        above, below = (
            function(s, t, temperature=warm + step, reduction="none") for step in (1e-6, -1e-6)
        )
    agree(slope, (above - below) / 2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_that_are_no_distributions(loss):
    s, t = (np.array(each) for each in pair((9, 20)))
    s[0], t[1], s[2, 3], t[3, 4] = -np.inf, -np.inf, np.inf, np.nan
    s[4, 5], t[5, 6], s[6, 7], t[6, 7] = -np.inf, -np.inf, -np.inf, -np.inf
    t[7] = s[7] + 5

    @quickly
    def rows_and_gradients(*arrays):
        value, pull = jax.vjp(functools.partial(LOSSES[loss], reduction="none"), *arrays)
        return value, *pull(jnp.ones_like(value))

    found = rows_and_gradients(jnp.asarray(s), jnp.asarray(t))
    assert jnp.isnan(found[0][:4]).all()
    assert jnp.isinf(found[0][4]) == (loss == "logits")
    assert (found[0][4:] >= 0).all()
    for k in range(7):
        agree([each[k] for each in found], by_formulas(LOSSES[loss], s[k], t[k]))


# --- JAX ------------------------------------------------------------------------------------------


def kernels_in(function, *arrays):
    return str(jax.make_jaxpr(function)(*arrays)).count("pallas_call[")


@pytest.mark.parametrize("loss", LOSSES)
def test_one_kernel_serves_value_and_gradients(loss):
    arrays = pair((3, 40))
    for function in (
        LOSSES[loss],
        jax.value_and_grad(LOSSES[loss], (0, 1)),
        kldiv.value_and_grad(LOSSES[loss], (0, 1)),
    ):
        assert kernels_in(function, *arrays) == 1
    with kldiv.config_context(kernel="pure"):
        assert kernels_in(functools.partial(LOSSES[loss], reduction="sum"), *arrays) == 0


def test_under_vmap_and_scan():
    s, t = pair((2, 3, 4, 300))

    def step(total, logits):
        value, gradients = jax.vmap(jax.value_and_grad(kldiv.kl_div_with_logits, (0, 1)))(*logits)
        return total + value.sum(), (value, *gradients)

    _, found = quickly(lambda *arrays: jax.lax.scan(step, 0.0, arrays))(s, t)
    for i in np.ndindex(2, 3):
        agree([each[i] for each in found], by_formulas(kldiv.kl_div_with_logits, s[i], t[i]))


def test_forward_mode_and_second_order():
    arrays, steps = pair((3, 40)), pair((3, 40), seed=1)
    function = jax.value_and_grad(kldiv.kl_div_with_logits, (0, 1))
    _, found = quickly(lambda *each: jax.jvp(function, each[:2], each[2:]))(*arrays, *steps)
    beside = []
    for size in (1e-5, -1e-5):
        moved = [
            np.asarray(array, np.float64) + size * np.asarray(step)
            for array, step in zip(arrays, steps, strict=True)
        ]
        beside.append(by_formulas(kldiv.kl_div_with_logits, *moved))
    agree(found, [(above - below) / 2e-5 for above, below in zip(*beside, strict=True)])


def test_linear_layers_use_it():
    hidden, weights = pair((5, 4)), pair((30, 4), seed=1)
    arguments = hidden[0], weights[0], hidden[1], weights[1]
    assert kernels_in(jax.grad(kldiv.linear_kl_div, (0, 1)), *arguments)
    logits = [each @ weight.T for each, weight in zip(hidden, weights, strict=True)]
    expected = by_formulas(kldiv.kl_div_with_logits, *logits)[0]
    agree(quickly(kldiv.linear_kl_div)(*arguments), expected)


# --- for a GPU, without one -----------------------------------------------------------------------


@pytest.fixture
def not_interpreted(monkeypatch):
    """Have the kernels as if there were a GPU."""
    monkeypatch.delenv("KLDIV_PALLAS_INTERPRET", raising=False)
    monkeypatch.setattr(pallas, "_elsewhere", lambda: None)
    jax.clear_caches()  # of interpreted ones
    yield
    jax.clear_caches()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_kernel_is_lowered_for_a_gpu(loss, dtype, not_interpreted, monkeypatch):
    monkeypatch.setattr(states, "_compile", lambda *tile: None)
    where = jnp.asarray([True, False, True])

    def warm(s, t, temperature):
        return LOSSES[loss](s, t, temperature=temperature, where=where)

    def kernels(function, *arrays):
        program = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",))
        return program.as_text().count("gpu$xla.gpu.triton")

    with jax.enable_x64(dtype == "float64"):
        both = jax.value_and_grad(LOSSES[loss], (0, 1))
        assert kernels(jax.vmap(both), *pair((2, 3, 32000), dtype)) == 1
        assert kernels(warm, *pair((3, 5), dtype), jnp.ones(3)) == 1
        if loss == "logits":
            assert (
                kernels(functools.partial(LOSSES[loss], temperature=0.7), *pair((5,), dtype)) == 1
            )


@pytest.mark.skipif(GPU, reason="the program must end up on a CPU")
def test_a_program_for_the_cpu_has_the_formulas(not_interpreted):
    arrays = pair((3, 40))
    found = quickly(kldiv.kl_div_with_logits)(*arrays)
    agree(found, by_formulas(kldiv.kl_div_with_logits, *arrays)[0])


# --- where it cannot run --------------------------------------------------------------------------


def failing(monkeypatch):
    """Have a compiler for a GPU that fails."""

    def fail(*_):
        raise RuntimeError("no such instruction\nof many lines")

    monkeypatch.delenv("KLDIV_PALLAS_INTERPRET", raising=False)
    monkeypatch.setattr(pallas, "_elsewhere", lambda: None)
    monkeypatch.setattr(states, "_compile", fail)


def test_a_failing_compiler_leaves_it_to_the_formulas_with_one_warning(monkeypatch):
    failing(monkeypatch)
    s, t = pair((3, 7))
    with kldiv.config_context(kernel="auto"):
        with pytest.warns(RuntimeWarning, match="kernels 'pallas': compiling it fails: .*no such"):
            value = kldiv.kl_div_with_logits(s, t, temperature=1.7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradient = jax.grad(kldiv.kl_div_with_logits)(s, t, temperature=1.7)
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient).all()
    assert "no such instruction" in kldiv.backends.get("jax").kernel_problems()["pallas"]


def test_by_name_a_failing_compiler_is_an_error(monkeypatch):
    failing(monkeypatch)
    with pytest.raises(BackendError, match="cannot run here: compiling it fails: RuntimeError: no"):
        kldiv.kl_div_with_logits(*pair((3, 7)), temperature=1.3)


@pytest.mark.skipif(GPU, reason="it runs here")
def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.delenv("KLDIV_PALLAS_INTERPRET", raising=False)
    s, t = pair((3, 7))
    with pytest.raises(BackendError, match="kernel 'pallas' cannot run here: JAX has"):
        kldiv.kl_div_with_logits(s, t)
    assert kldiv.backends.get("jax").status().kernel_problems["pallas"] == "JAX has no GPU"


def test_explain_says_what_is_left_to_xla():
    s, t = pair((3, 7))
    assert kldiv.explain(s, t, operation="kl_div_with_logits").kernel == "pallas"
    assert kldiv.explain(s, t).kernel == "pure"
    _, why = kldiv.backends.get("jax").explain_kernel("pallas", OPERATIONS["kl_div"], (s, t))
    assert "XLA itself fuses kl_div" in why
