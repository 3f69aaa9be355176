"""The namespace of JAX, with functions that it keeps elsewhere or is to compute another way."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax.scipy.special

from kldiv.backends.jax_ import sharding
from kldiv.backends.overlay import Overlay

if TYPE_CHECKING:
    from kldiv._types import Array


def _scattered(array: Array, places: Array, values: Array) -> Array:
    if sharding.is_sized(array.shape):
        return jnp.put_along_axis(array, places, values, axis=-1, inplace=False)
    return _scattered_in_rows(array, places, values)


@partial(jnp.vectorize, signature="(n),(k),(k)->(n)")
def _scattered_in_rows(array: Array, places: Array, values: Array) -> Array:
    return array.at[places].set(values)


def _top_places(array: Array, k: int) -> Array:
    return jax.lax.top_k(array, k)[1]


def _matmul(a: Array, b: Array) -> Array:
    """Multiply matrices with all their digits, unless the program asks JAX for another precision.

    JAX's own default rounds float32 factors to 11 bits on GPUs and to 8 on TPUs.
    """
    config: Any = jax.config  # of options that are not typed
    asked = config.jax_default_matmul_precision
    return jnp.matmul(a, b, precision=asked or jax.lax.Precision.HIGHEST)


xp = Overlay(
    jnp,
    scattered=_scattered,
    top_places=_top_places,
    constant=jax.lax.stop_gradient,
    special=jax.scipy.special,
    matmul=_matmul,
)
