"""Soft caps of logits, c·tanh(x/c), and gradients in x: one pass each, of contiguous arrays."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.kernels.cpu import team
from kldiv.kernels.cpu.code import DOUBLE, REALS, Code, at_most, select
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.elementary import NEAR, exp, phi_near
from kldiv.kernels.cpu.runs import PAD, Run
from kldiv.kernels.layout import dtype_name, empty_like, memory, words_of

if TYPE_CHECKING:
    from kldiv.kernels.cpu.code import Real, Value
    from kldiv.kernels.work import Found, Work

_UNIT: Final = 1 << 16
"""Elements of a unit of work, whole vectors."""

FRAME: Final = ("size", "numbers", "products", "gradient", "out")
"""The cap and a factor; the gradient in the logits, 0 where these are wanted themselves."""

_SLOPED, _PLAIN = ("products", "gradient", "out"), ("products", "out")


def _capped(x: Value, cap: Value) -> Value:
    """Return c·tanh(x/c), −∞ as it is: tanh is (1 − e)/(1 + e), e = e^(−2|x/c|)."""
    size = abs(x / cap) * 2.0
    near = size <= NEAR
    small = select(near, size, 0.0)
    lack = select(near, small - phi_near(small), -exp(-size) + 1.0)
    found = cap * (lack / (-lack + 2.0))
    return select(x == -float("inf"), x, select(x < 0.0, -found, found))


def _slope(gradient: Value, x: Value, cap: Value, factor: Value) -> Value:
    """Return a gradient in the logits times their derivative, 1/cosh²."""
    size = abs(x / cap) * 2.0
    shrink = select(size == float("inf"), 0.0, exp(-size))
    whole = shrink + 1.0
    return gradient * (shrink * 4.0 / (whole * whole)) * factor


def write(code: Code, real: Real) -> None:
    """Write the kernel down; it takes a frame, a vector's room, and the first and last unit."""
    frame_at, room, first, last = code.arguments
    frame = code.frame(frame_at, FRAME)
    numbers = [code.load(DOUBLE, frame["numbers"], k).to(real.scalar) for k in range(2)]
    cap, factor = (number.spread(real.lanes) for number in numbers)

    begin = first * _UNIT
    n = at_most(last * _UNIT, frame["size"]) - begin
    with code.either(frame["gradient"] != 0) as branches:
        for names, branch in zip((_SLOPED, _PLAIN), branches, strict=True):
            with branch:
                *inputs, out = (
                    Run(code, real, frame[name] + begin * real.size, n, room + index * PAD)
                    for index, name in enumerate(names)
                )
                for run in inputs:
                    run.fill(0.0)
                with code.loop(out.count) as k:
                    x, *gradient = (run.load(k) for run in inputs)
                    found = _slope(gradient[0], x, cap, factor) if gradient else _capped(x, cap)
                    out.store(k, found)
                out.finish()


def refusal(work: Work) -> str | None:
    """Return why there is no kernel for such work, or None where there is."""
    arrays = work.arrays
    if len({dtype_name(a) for a in arrays}) > 1 or dtype_name(arrays[0]) not in REALS:
        return "there is a fused form of one dtype, float32 or float64"
    if not all(_is_contiguous(array) for array in arrays):
        return "the arrays are not contiguous"
    return None


def _is_contiguous(array: Any) -> bool:
    own = array.is_contiguous() if hasattr(array, "data_ptr") else array.flags.c_contiguous
    return bool(own)


@cache
def kernel(dtype: str) -> Any:
    """Return the compiled function for a dtype."""
    return compiled(f"softcap-{dtype}", 4, partial(write, real=REALS[dtype]))


def compile_for(work: Work) -> Any:
    """Return the compiled kernel."""
    return kernel(dtype_name(work.arrays[0]))


def run(work: Work, kernel: Any) -> Found:
    """Return the logits, or the gradient in the products."""
    operation, (products, *gradient) = work.operation, work.arrays[::-1]
    out, numbers = empty_like(work.xp, products), np.array([operation.cap, operation.factor])
    frame = {
        "size": math.prod(products.shape),
        "numbers": numbers,
        "products": memory(products).address,
        "gradient": memory(gradient[0]).address if gradient else 0,
        "out": memory(out).address,
    }
    units = -(-frame["size"] // _UNIT)
    team.launch(kernel, words_of(FRAME, frame), 3 * PAD, units, work.threads)
    return out, []
