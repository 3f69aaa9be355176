"""Exponential and logarithm of float32 and float64 as straight-line code, which LLVM vectorises.

Both are within 1 ulp over their whole domain, subnormal numbers, zeros, infinities and NaN
included; the tests measure it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from kldiv.kernels.constants import (
    EXP_32,
    EXP_64,
    EXP_WIDE_32,
    LN2,
    LN2_HIGH_32,
    LN2_HIGH_64,
    LN2_LOW_32,
    LN2_LOW_64,
    LOG2_E,
    LOG_32,
    LOG_64,
    ROOT_32,
    ROOT_64,
)
from kldiv.kernels.cpu.compiling import OPTIONS, inline
from kldiv.kernels.cpu.instructions import bits, like, multiply_add, polynomial, select

# Added to a float this puts its integer part into the lowest bits.
ROUND_32, _ROUND_64 = 1.5 * 2.0**23, 1.5 * 2.0**52
ROUND_BITS_32, _ROUND_BITS_64 = 0x4B400000, 0x4338000000000000

_NORMAL_32, _NORMAL_64 = 2.0**-126, 2.0**-1022


@inline
def _log_normal_32(x: float) -> float:
    i = np.int32(bits(x) - np.int32(ROOT_32))
    k = np.float32(i >> np.int32(23))
    f = bits(np.int32((i & np.int32(0x7FFFFF)) + np.int32(ROOT_32))) - np.float32(1.0)
    square = f * f
    low = multiply_add(k, np.float32(LN2_LOW_32), f * square * polynomial(f, LOG_32))
    low = multiply_add(square, np.float32(-0.5), low)
    return multiply_add(k, np.float32(LN2_HIGH_32), f + low)


@inline
def _log_normal_64(x: float) -> float:
    i = bits(x) - ROOT_64
    k = np.float64(i >> 52)
    f = bits((i & 0xFFFFFFFFFFFFF) + ROOT_64) - 1.0
    z = f / (2.0 + f)
    half = 0.5 * f * f
    rest = z * z * polynomial(z * z, LOG_64)
    # log(1 + f) = f − (f²/2 − z·(f²/2 + rest))
    return multiply_add(k, LN2_HIGH_64, f - (half - multiply_add(k, LN2_LOW_64, z * (half + rest))))


def log_normal(x: float) -> float:
    """Return log x of positive normal numbers; for others the result is meaningless."""
    raise NotImplementedError


@overload(log_normal, jit_options=OPTIONS)
def _log_normal(x: Any) -> Any:
    function = _log_normal_32 if x == types.float32 else _log_normal_64

    def generic(x: Any) -> float:
        return function(x)

    return generic


def is_normal(x: float) -> bool:
    """Return whether x is a positive normal number."""
    raise NotImplementedError


@overload(is_normal)
def _is_normal(x: Any) -> Any:
    smallest = _NORMAL_32 if x == types.float32 else _NORMAL_64

    def generic(x: Any) -> bool:
        return (x >= like(x, smallest)) & (x < like(x, np.inf))

    return generic


def log(x: float) -> float:
    """Return log x: −∞ at 0, NaN below."""
    raise NotImplementedError


@overload(log, jit_options=OPTIONS)
def _log(x: Any) -> Any:
    single = x == types.float32
    tiny, lift = (_NORMAL_32, 23) if single else (_NORMAL_64, 52)
    # The whole shift is added to a logarithm below −80: that costs no accuracy.
    factor, shift = 2.0**lift, lift * LN2

    def generic(x: Any) -> float:
        small = x < like(x, tiny)
        value = log_normal(select(small, x * like(x, factor), x))
        value = select(small, value - like(x, shift), value)
        value = select(x < like(x, np.inf), value, x)
        value = select(x == like(x, 0.0), like(x, -np.inf), value)
        return select(x < like(x, 0.0), like(x, np.nan), value)

    return generic


@inline
def scale_32(x: float, k: int) -> float:
    """Return x·2ᵏ, rounded once, for any k that a float32 x needs."""
    half = np.int32(k >> np.int32(1))
    rest = np.int32(k - half)
    first = bits(np.int32((half + np.int32(127)) << np.int32(23)))
    return x * first * bits(np.int32((rest + np.int32(127)) << np.int32(23)))


@inline
def scale_64(x: float, k: int) -> float:
    """Return x·2ᵏ, rounded once, for any k that a float64 x needs."""
    half = k >> 1
    return x * bits((half + 1023) << 52) * bits((k - half + 1023) << 52)


@inline
def _exp_32(
    high: float, low: float, inverse: float, per: float, ln2: float, ln2_low: float
) -> float:
    shifted = multiply_add(high, per, np.float32(ROUND_32))
    k = shifted - np.float32(ROUND_32)
    r = (multiply_add(k, -ln2_low, multiply_add(k, -ln2, high)) + low) * inverse
    value = multiply_add(r * r, polynomial(r, EXP_32), r) + np.float32(1.0)
    return scale_32(value, np.int32(bits(shifted) - np.int32(ROUND_BITS_32)))


@inline
def _exp_64(
    high: float, low: float, inverse: float, per: float, ln2: float, ln2_low: float
) -> float:
    shifted = multiply_add(high, per, _ROUND_64)
    k = shifted - _ROUND_64
    r = (multiply_add(k, -ln2_low, multiply_add(k, -ln2, high)) + low) * inverse
    value = multiply_add(r * r, polynomial(r, EXP_64), r) + 1.0
    return scale_64(value, bits(shifted) - _ROUND_BITS_64)


def exp_reduced(high: Any, low: Any, inverse: Any, per: Any, ln2: Any, ln2_low: Any) -> Any:
    """Return exp((high + low)/T) where it does not overflow, and is no less than e⁻¹¹⁰ or e⁻⁷⁶⁰.

    ``inverse`` is 1/T, ``per`` is 1/(T log 2), and T log 2 is ``ln2`` + ``ln2_low``, the first of
    so few bits that its products with whole numbers are exact.
    """
    raise NotImplementedError


@overload(exp_reduced, jit_options=OPTIONS)
def _exp_reduced(high: Any, low: Any, inverse: Any, per: Any, ln2: Any, ln2_low: Any) -> Any:
    function = _exp_32 if high == types.float32 else _exp_64

    def generic(high: Any, low: Any, inverse: Any, per: Any, ln2: Any, ln2_low: Any) -> Any:
        return function(high, low, inverse, per, ln2, ln2_low)

    return generic


def exp(x: Any) -> Any:
    """Return eˣ."""
    raise NotImplementedError


@overload(exp, jit_options=OPTIONS)
def _exp(x: Any) -> Any:
    single = x == types.float32
    least, most = (-104.0, 89.0) if single else (-746.0, 710.0)
    ln2 = (LN2_HIGH_32, LN2_LOW_32) if single else (LN2_HIGH_64, LN2_LOW_64)
    high, low = ln2

    def generic(x: Any) -> Any:
        x = select(x < like(x, least), like(x, least), x)
        x = select(x > like(x, most), like(x, most), x)
        one = like(x, 1.0)
        return exp_reduced(x, like(x, 0.0), one, like(x, LOG2_E), like(x, high), like(x, low))

    return generic


@inline
def power_32(x: float, rest: float, low: float, shift: float, hot: Any) -> tuple[float, int]:
    """Return e^((x + rest)/T)/2ᵐ, where x is no less than ``low``, and its exponent of 2 as bits.

    ``shift`` is `ROUND_32` − m; ``hot`` begins with inverse, per, ln2 and ln2_low of `exp_reduced`.
    The exponent, less `ROUND_BITS_32`, is beyond ±126 where the result is meaningless.
    """
    inverse, per, ln2, ln2_low = hot[0], hot[1], hot[2], hot[3]
    x = select(x < low, low, x)
    shifted = multiply_add(x, per, shift)
    k = shifted - shift
    r = (multiply_add(k, -ln2_low, multiply_add(k, -ln2, x)) + rest) * inverse
    value = multiply_add(r * r, polynomial(r, EXP_32), r) + np.float32(1.0)
    exponent = bits(shifted)
    return bits(np.int32(bits(value) + np.int32(exponent << np.int32(23)))), exponent


@inline
def apart_32(x: float) -> tuple[float, float]:
    """Return φ(x) = e⁻ˣ − 1 + x ≥ 0, and e⁻ˣ − 1, for |x| < 80."""
    # e⁻ˣ = 4ᵏ·eʳ, and k is 0 where φ(x) would be a difference of larger terms.
    shifted = multiply_add(x, np.float32(-0.5 * LOG2_E), np.float32(ROUND_32))
    k = shifted - np.float32(ROUND_32)
    r = multiply_add(k, np.float32(-2 * LN2_HIGH_32), -x)
    r = multiply_add(k, np.float32(-2 * LN2_LOW_32), r)
    rest = r * r * polynomial(r, EXP_WIDE_32)
    power = bits(np.int32(np.int32(bits(shifted) << np.int32(24)) + np.int32(0x3F800000)))
    less = power - np.float32(1.0)
    # 4ᵏ(1 + r + rest) − 1 − (r + k log 4)
    constant = multiply_add(k, np.float32(-2 * LN2), less)
    phi = multiply_add(power, rest, multiply_add(less, r, constant))
    return phi, multiply_add(power, r + rest, less)
