"""The CPU kernels called by XLA, under the transforms of JAX."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from kernels.conformance import shapes

import kldiv

pytest.importorskip("llvmlite")
jax = pytest.importorskip("jax")

from kldiv.backends.jax_ import cpu_kernels  # noqa: E402 - after the skips

jnp = jax.numpy
LOSSES = {
    "kl_div": kldiv.kl_div,
    "kl_div_with_logits": partial(kldiv.kl_div_with_logits, temperature=1.7),
    "js_div_with_logits": partial(kldiv.js_div_with_logits, beta=0.3),
}
REDUCTIONS = ["none", "mean", "sum", "batchmean"]


@pytest.fixture(autouse=True)
def fused(small_too):
    """Give small arrays to the kernels too."""
    if cpu_kernels.problem():
        pytest.skip(cpu_kernels.problem())
    jax.clear_caches()
    with jax.enable_x64(True):
        yield
    jax.clear_caches()


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def pair(loss, *shape):
    s, t = np.random.default_rng(4).normal(size=(2, *shape))
    s, t = jnp.asarray(s), jnp.asarray(t)
    return s, jax.nn.softmax(t) if loss is kldiv.kl_div else t


def assert_as_the_formulas(run, *arrays):
    found = run(*arrays)
    with kldiv.config_context(kernel="pure"):
        expected = run(*arrays)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        *(("kl_div", reduction) for reduction in REDUCTIONS),
        *((name, reduction) for name in list(LOSSES)[1:] for reduction in ("none", "mean")),
    ],
    indirect=["loss"],
)
def test_values_and_gradients(launches, loss, reduction):
    arrays = pair(loss, 3, 4, 9)
    keep = np.random.default_rng(5).random((3, 4, 9) if loss is kldiv.kl_div else (3, 4)) < 0.7
    for where in (None, jnp.asarray(keep)):
        function = partial(loss, reduction=reduction, where=where)
        gradients = jax.grad(lambda *pair, f=function: jnp.sum(f(*pair) ** 2), argnums=(0, 1))
        assert_as_the_formulas(function, *arrays)
        assert_as_the_formulas(jax.jit(gradients), *arrays)
    assert set(shapes(launches)) == {(3, 4, 9)}


@pytest.mark.parametrize(
    ("reduction", "axes"), [("none", (2, 1)), ("none", (0, None)), ("mean", (None, 2))]
)
def test_vmap(launches, loss, reduction, axes):
    def shaped(array, axis):
        return array[0] if axis is None else jnp.moveaxis(array, 0, axis)

    arrays = [shaped(*each) for each in zip(pair(loss, 5, 3, 8), axes, strict=True)]
    function = partial(loss, reduction=reduction)
    assert_as_the_formulas(jax.vmap(function, axes), *arrays)
    rows = loss is not kldiv.kl_div and reduction == "none"
    assert shapes(launches) == ([(5, 3, 8)] if rows else [(3, 8)] * 5)
    if reduction == "none":
        gradients = jax.grad(lambda *pair: jnp.sum(function(*pair) ** 2), argnums=(0, 1))
        assert_as_the_formulas(jax.jit(jax.vmap(gradients, axes)), *arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "reduction"),
    [("kl_div", "mean"), ("kl_div_with_logits", "none"), ("js_div_with_logits", "mean")],
    indirect=["loss"],
)
def test_vmap_of_vmap(loss, reduction):
    s, t = pair(loss, 4, 2, 3, 8)
    function = jax.vmap(jax.vmap(partial(loss, reduction=reduction), (0, None)), (1, 0))
    assert_as_the_formulas(function, jnp.moveaxis(s, 0, 1), t[:, 0])


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", ["kl_div", "kl_div_with_logits"])
def test_second_derivatives(launches, name, reduction):
    loss = LOSSES[name]

    def total(*pair):
        return jnp.sum(jnp.exp(loss(*pair, reduction=reduction)))

    assert_as_the_formulas(jax.jit(jax.hessian(total)), *pair(loss, 2, 5))
    assert launches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "transform", "at"),
    [
        ("kl_div", lambda loop: jax.jacrev(jax.jacrev(loop)), 0),
        ("kl_div_with_logits", jax.hessian, 0),
        ("kl_div_with_logits", lambda loop: jax.vmap(jax.hessian(loop)), slice(2)),
    ],
    ids=["kl_div", "Hessian", "vmap"],
)
def test_second_derivatives_of_a_loop(launches, name, transform, at):
    loss = LOSSES[name]
    s, t = pair(loss, 3, 2, 5)

    def looped(s):
        def step(total, target):
            return total + jnp.exp(loss(s, target)), None

        return jax.lax.scan(step, 0.0, t)[0]

    found = np.asarray(jax.jit(transform(looped))(s[at]))
    assert launches
    added = transform(lambda s: sum(jnp.exp(loss(s, each)) for each in t))
    with kldiv.config_context(kernel="pure"):
        expected = jax.jit(added)(s[at])
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
