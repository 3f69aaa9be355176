"""The fused Pallas kernels under JAX: its transforms, programs for a GPU, and where they fail.

Without a GPU Pallas interprets them on the CPU, and they are lowered for a GPU, which needs none;
where there is one, the same tests run on it.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
from kernels.conformance import TECHNOLOGIES
from reference import truth

import kldiv
from kldiv.backends.choice import choose
from kldiv.errors import BackendError
from kldiv.explanation import OPERATIONS
from kldiv.kernels import Work, pallas

pytest.importorskip("jax")

import jax
import jax.numpy as jnp

if pallas.unsupported():
    pytest.skip(pallas.unsupported(), allow_module_level=True)

from kldiv.kernels.pallas import states

GPU = jax.default_backend() == "gpu"

pytestmark = [pytest.mark.gpu] if GPU else []

TECHNOLOGY = TECHNOLOGIES["pallas"]
LOSSES = {
    "logits": kldiv.kl_div_with_logits,
    "js": functools.partial(kldiv.js_div_with_logits, beta=0.3),
}


@pytest.fixture(autouse=True)
def fused(monkeypatch):
    """Have the kernels or an error."""
    with TECHNOLOGY.prepared(monkeypatch):
        yield


quickly = TECHNOLOGY.compiled


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


# --- beyond the kernel ----------------------------------------------------------------------------


def test_a_temperature_is_differentiable():
    s, t = pair((3, 50))
    warm = jnp.asarray([0.5, 1.0, 3.0])
    function = functools.partial(kldiv.kl_div_with_logits, reduction="sum")
    slope = quickly(jax.grad(lambda each: function(s, t, temperature=each)))(warm)
    s, t, warm = (np.asarray(each, np.float64) for each in (s, t, warm))
    above, below = (truth(s, t, temperature=warm + step).value for step in (1e-6, -1e-6))
    agree(slope, (above - below) / 2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_a_long_row_are_merged(loss):
    s, t = pair((2, 2 * states.TILE["float32"] + 3))
    function = LOSSES[loss]
    found = quickly(jax.value_and_grad(function, (0, 1)))(s, t)
    agree(found, by_formulas(function, s, t))


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


@pytest.mark.slow
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
    monkeypatch.setattr(pallas, "elsewhere", lambda: None)
    jax.clear_caches()  # of interpreted ones
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "dtype"),
    [("logits", "float32"), ("logits", "bfloat16"), ("js", "float64"), ("js", "float16")],
)
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
    monkeypatch.setattr(pallas, "elsewhere", lambda: None)
    monkeypatch.setattr(states, "_compile", fail)


@pytest.mark.slow
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
    assert "no such instruction" in pallas.PALLAS.problem()


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
    work = Work(OPERATIONS["kl_div"], jnp, (s, t))
    choice = choose(kldiv.backends.get("jax"), "pallas", work)
    assert "XLA itself fuses kl_div" in choice.reason
