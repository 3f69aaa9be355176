"""The same call on every array library that is installed, and how well the answers agree.

P are the letter frequencies of English, Q those of German: D(P‖Q) says how badly German letter
counts describe an English text.  Letters that neither language uses have P = Q = 0 and add 0.

    python examples/quickstart.py
"""

from __future__ import annotations

import csv
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import kldiv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LETTERS = Path(__file__).parent / "letters"
TOLERANCE = 1e-12

loss = kldiv.KLDivLoss(reduction="sum")


def frequencies(language: str) -> Any:
    """Return how often each letter occurs in a language."""
    with (LETTERS / f"{language}.csv").open(encoding="utf-8", newline="") as file:
        counts = np.asarray([float(row["count"]) for row in csv.DictReader(file)])
    return counts / counts.sum()


# Each function takes log Q and P as NumPy arrays, computes on its own library, and returns D(P‖Q)
# with its gradient in log Q.


def on_numpy(log_q: Any, p: Any) -> tuple[Any, Any]:
    """NumPy has no gradients of its own: `value_and_grad` brings them."""
    return kldiv.value_and_grad(loss)(log_q, p)


def on_torch(log_q: Any, p: Any) -> tuple[Any, Any]:
    """PyTorch differentiates by autograd, as through any of its own losses."""
    import torch  # noqa: PLC0415

    x = torch.from_numpy(log_q).requires_grad_()
    value = loss(x, torch.from_numpy(p))
    value.backward()
    return value.detach(), x.grad


def on_jax(log_q: Any, p: Any) -> tuple[Any, Any]:
    """JAX differentiates and compiles the call like any function."""
    import jax  # noqa: PLC0415

    with jax.enable_x64(True):  # noqa: FBT003 - otherwise JAX makes float32 of everything
        return jax.jit(jax.value_and_grad(loss))(jax.numpy.asarray(log_q), jax.numpy.asarray(p))


def on_dask(log_q: Any, p: Any) -> tuple[Any, Any]:
    """Dask stays lazy until the end: here until the table is printed."""
    import dask.array as da  # noqa: PLC0415

    x, y = (da.from_array(array, chunks=16) for array in (log_q, p))
    return kldiv.value_and_grad(loss)(x, y)


def on_cupy(log_q: Any, p: Any) -> tuple[Any, Any]:
    """CuPy computes on the GPU."""
    import cupy  # noqa: PLC0415

    value, gradient = kldiv.value_and_grad(loss)(cupy.asarray(log_q), cupy.asarray(p))
    return value.get(), gradient.get()


def on_strict(log_q: Any, p: Any) -> tuple[Any, Any]:
    """Any other library of the array-API standard works too, this one as a witness."""
    import array_api_strict as strict  # noqa: PLC0415

    return kldiv.value_and_grad(loss)(strict.asarray(log_q), strict.asarray(p))


LIBRARIES: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "numpy": on_numpy,
    "torch": on_torch,
    "jax": on_jax,
    "dask": on_dask,
    "cupy": on_cupy,
    "array_api_strict": on_strict,
}


def usable() -> Iterator[str]:
    """Yield the names of the libraries that can compute here."""
    backends = kldiv.available_backends()
    for name in LIBRARIES:
        if name in backends or (name == "array_api_strict" and find_spec(name)):
            yield name


def main() -> int:
    """Print the table; return 1 if the libraries disagree."""
    p = frequencies("english")
    with np.errstate(divide="ignore"):
        log_q = np.log(frequencies("german"))  # −∞ for letters that German does not use
    reference, slope = on_numpy(log_q, p)

    print(f"{'library':<18}{'D(P‖Q) in nats':<22}{'value off by':<14}gradient off by")
    worst = 0.0
    for name in usable():
        value, gradient = (np.asarray(array) for array in LIBRARIES[name](log_q, p))
        off = [float(np.max(np.abs(value - reference))), float(np.max(np.abs(gradient - slope)))]
        worst = float(np.max([worst, *off]))  # unlike max, it does not lose a NaN
        print(f"{name:<18}{float(value):<22.17g}{off[0]:<14.1e}{off[1]:.1e}")
    agree = worst <= TOLERANCE
    print(f"\nThey {'agree' if agree else 'DISAGREE'}: the largest difference is {worst:.1e}.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
