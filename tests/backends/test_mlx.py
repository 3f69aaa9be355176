"""MLX: its transformations of losses, and what its namespace lacks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import kldiv
from kldiv.backends import get

SHAPE = 3, 40


@pytest.fixture
def pair(mlx):
    """Logits of MLX and of NumPy."""
    host = 3 * np.random.default_rng(0).normal(size=(2, *SHAPE))
    return [mlx.array(each, dtype=mlx.float64) for each in host], [*host]


LOSSES = [
    kldiv.kl_div_with_logits,
    partial(kldiv.js_div_with_logits, beta=0.3),
    partial(kldiv.kl_div_with_logits, temperature=2.0, where=None),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_transformations_are_those_of_the_loss(mlx, pair, loss):
    (x, y), host = pair
    value, gradients = kldiv.value_and_grad(loss, argnums=(0, 1))(*host)
    with mlx.stream(mlx.cpu):
        ours, found = mlx.value_and_grad(loss, argnums=(0, 1))(x, y)
        direction = mlx.array(np.random.default_rng(1).normal(size=SHAPE), dtype=mlx.float64)
        _, (forward,) = mlx.jvp(lambda x: loss(x, y), [x], [direction])

        def slope(x):
            return (mlx.grad(loss)(x, y) * direction).sum()

        _, (mixed,) = mlx.jvp(slope, [x], [direction])
        second = mlx.grad(slope)(x)
        rows = mlx.vmap(loss)(x, y)
        compiled = mlx.compile(mlx.grad(loss))(x, y)
    close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-15)
    close(ours, value)
    for each, expected in zip(found, gradients, strict=True):
        close(each, expected)
    close(forward, (gradients[0] * np.array(direction)).sum(), rtol=1e-10)
    close(mixed, (np.array(second) * np.array(direction)).sum(), rtol=1e-9)
    close(rows, [loss(*(each[i : i + 1] for each in host)) for i in range(SHAPE[0])])
    close(compiled, gradients[0])
    step = 1e-6 * np.array(direction)
    ahead, behind = (
        kldiv.value_and_grad(loss)(host[0] + sign * step, host[1])[1] for sign in (1, -1)
    )
    np.testing.assert_allclose(
        mixed, ((ahead - behind) * np.array(direction)).sum() / 2e-6, rtol=1e-5
    )


def test_masks_and_weights_have_no_gradient_of_their_own(mlx, pair):
    (x, y), host = pair
    keep = np.array([True, False, True])
    loss = partial(kldiv.kl_div_with_logits, where=mlx.array(keep))
    with mlx.stream(mlx.cpu):
        found = mlx.grad(loss)(x, y)
    expected = kldiv.value_and_grad(partial(kldiv.kl_div_with_logits, where=keep))(*host)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("dtype", "unit"), [("float32", 2.0**-24), ("float64", 2.0**-53)])
def test_what_mlx_rounds_badly_is_bridged(mlx, dtype, unit):
    xp = get("mlx").namespace()
    x = np.linspace(-80, 80, 10_001).astype(dtype)
    numbers = np.random.default_rng(0).random((3, 100_003)).astype(dtype)
    with mlx.stream(mlx.cpu):
        powers = xp.exp(mlx.array(x, dtype=getattr(mlx, dtype)))
        sums = xp.sum(mlx.array(numbers, dtype=getattr(mlx, dtype)), axis=-1, keepdims=True)
        kept = xp.sum(mlx.array(numbers, dtype=getattr(mlx, dtype)), axis=(0, 1), dtype=xp.float64)
    np.testing.assert_allclose(powers, np.exp(x.astype(np.longdouble)).astype(float), rtol=4 * unit)
    expected = numbers.astype(np.longdouble).sum(axis=-1, keepdims=True).astype(float)
    assert sums.shape == (3, 1)
    np.testing.assert_allclose(sums, expected, rtol=2 * unit)
    np.testing.assert_allclose(kept, expected.sum(), rtol=4 * 2.0**-53)


def test_float64_arrives_whole(mlx):
    host = np.array([1 / 3])
    with kldiv.config_context(backend="mlx"):
        found = kldiv.kl_div(np.log(host), host, reduction="sum")
    assert found == kldiv.kl_div(np.log(host), host, reduction="sum") == 0
    assert np.array(get("mlx").from_numpy(host, None))[0] == host[0]
