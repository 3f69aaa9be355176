"""Soft caps of logits, c·tanh(x/c), and gradients in x: one pass each, of contiguous arrays."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kldiv.kernels import threads
from kldiv.kernels.cpu.code import DOUBLE, I64, REALS, Code, at_most, select
from kldiv.kernels.cpu.compiling import compiled
from kldiv.kernels.cpu.elementary import NEAR, exp, phi_near
from kldiv.kernels.layout import dtype_name, empty_like, memory

if TYPE_CHECKING:
    from kldiv.kernels.cpu.code import Real, Value
    from kldiv.kernels.work import Found, Work

_UNIT: Final = 1 << 16
"""Elements of a unit of work, whole vectors."""

FRAME: Final = ("size", "numbers", "products", "gradient", "out")
"""The cap and a factor; the gradient in the logits, 0 where these are wanted themselves."""


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
    frame = {name: code.load(I64, frame_at, index) for index, name in enumerate(FRAME)}
    numbers = [code.load(DOUBLE, frame["numbers"], k).to(real.scalar) for k in range(2)]
    cap, factor = (number.spread(real.lanes) for number in numbers)

    def vector(at: list[Value], k: Any, *, sloped: bool) -> None:
        x = code.load(real.vector, at[0], k)
        if sloped:
            found = _slope(code.load(real.vector, at[1], k), x, cap, factor)
        else:
            found = _capped(x, cap)
        code.store(at[-1], found, k)

    with code.either(frame["gradient"] != 0) as branches:
        for sloped, branch in zip((True, False), branches, strict=True):
            names = ("products", *["gradient"] * sloped, "out")
            with branch:
                begin, end = first * _UNIT, at_most(last * _UNIT, frame["size"])
                whole = begin + (end - begin) // real.lanes * real.lanes
                at = [frame[name] for name in names]
                with code.loop(whole, begin, real.lanes) as k:
                    vector(at, k, sloped=sloped)
                with code.when(whole < end):
                    pads = [room + index * 128 for index in range(len(names))]
                    for source, pad in zip(at[:-1], pads, strict=False):
                        with code.loop(end, whole) as k:
                            code.store(pad, code.load(real.scalar, source, k), k - whole)
                    vector(pads, 0, sloped=sloped)
                    with code.loop(end, whole) as k:
                        code.store(at[-1], code.load(real.scalar, pads[-1], k - whole), k)


def refusal(work: Work) -> str | None:
    """Return why there is no kernel for such work, or None where there is."""
    arrays = work.arrays
    if not all(isinstance(a, np.ndarray) or hasattr(a, "data_ptr") for a in arrays):
        return "there is a fused form for arrays of NumPy and PyTorch only"
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
    size = math.prod(products.shape)
    places = [memory(each).address for each in (products, *gradient)]
    frame = [size, numbers.ctypes.data, *(places if gradient else [*places, 0])]
    words = np.array([*frame, memory(out).address])

    def part(first: int, last: int) -> None:
        room = np.zeros(3 * 128 + 64, np.uint8)
        kernel(words.ctypes.data, -(-room.ctypes.data // 64) * 64, first, last)

    threads.share(part, -(-size // _UNIT), threads.number(work.threads))
    return out, []
