"""Exponential and logarithm of float32 and float64 as straight-line code, which LLVM vectorises.

Both are within 1 ulp over their whole domain, subnormal numbers, zeros, infinities and NaN
included; the tests measure it. The polynomials are minimax, fitted for this file.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from kldiv.kernels.cpu.compiling import OPTIONS, inline
from kldiv.kernels.cpu.instructions import bits, like, multiply_add, polynomial, select

# The first has so few bits that its product with any exponent is exact.
_LN2_HIGH_32 = 0.693359375
_LN2_LOW_32 = math.log(2) - _LN2_HIGH_32
_LN2_HIGH_64 = float.fromhex("0x1.62e42feep-1")
_LN2_LOW_64 = float.fromhex("0x1.a39ef35793c76p-33")
_LOG2_E = 1 / math.log(2)

# log(1 + f) = f − f²/2 + f³·P(f) for √½ ≤ 1 + f < √2, within 6e-9 of itself
_LOG_32 = (
    0.33333331707289265,
    -0.2500082104531514,
    0.20001226938086014,
    -0.1662335694550242,
    0.1420175595042327,
    -0.13160184467694075,
    0.12761594843398072,
    -0.07634514490184806,
)
# log(1 + f) = 2z + z³·P(z²), z = f/(2 + f), within 2e-18
_LOG_64 = (
    0.6666666666666734,
    0.39999999999414343,
    0.285714287424695,
    0.22222198564100976,
    0.18183564831711022,
    0.1531403679955515,
    0.14796095142155627,
)
# exp(r) = 1 + r + r²·P(r) for |r| ≤ ½ log 2, within 4e-9 and 4e-18
_EXP_32 = (
    0.5000000095704549,
    0.16666518306154118,
    0.041666204126187614,
    0.008368953501337987,
    0.0013950603085746583,
)
_EXP_64 = (
    0.5000000000000013,
    0.166666666666667,
    0.04166666666651432,
    0.008333333333307028,
    0.0013888888947330839,
    0.00019841269917766753,
    2.480148959095654e-05,
    2.755721595842778e-06,
    2.763141365878929e-07,
    2.5117969684469478e-08,
)
# the same for |r| ≤ log 2, within 7e-9 of P
_EXP_WIDE_32 = (
    0.5000000005339994,
    0.1666666998660857,
    0.04166664987944348,
    0.00833277653110906,
    0.0013889450665501798,
    0.00020073657909108414,
    2.4878527042216776e-05,
)
_ROOT_32, _ROOT_64 = 0x3F3504F3, 0x3FE6A09E667F3BCD
"""The bits of √½."""

# Added to a float this puts its integer part into the lowest bits.
ROUND_32, _ROUND_64 = 1.5 * 2.0**23, 1.5 * 2.0**52
ROUND_BITS_32, _ROUND_BITS_64 = 0x4B400000, 0x4338000000000000

_NORMAL_32, _NORMAL_64 = 2.0**-126, 2.0**-1022


@inline
def _log_normal_32(x: float) -> float:
    i = np.int32(bits(x) - np.int32(_ROOT_32))
    k = np.float32(i >> np.int32(23))
    f = bits(np.int32((i & np.int32(0x7FFFFF)) + np.int32(_ROOT_32))) - np.float32(1.0)
    square = f * f
    low = multiply_add(k, np.float32(_LN2_LOW_32), f * square * polynomial(f, _LOG_32))
    low = multiply_add(square, np.float32(-0.5), low)
    return multiply_add(k, np.float32(_LN2_HIGH_32), f + low)


@inline
def _log_normal_64(x: float) -> float:
    i = bits(x) - _ROOT_64
    k = np.float64(i >> 52)
    f = bits((i & 0xFFFFFFFFFFFFF) + _ROOT_64) - 1.0
    z = f / (2.0 + f)
    half = 0.5 * f * f
    rest = z * z * polynomial(z * z, _LOG_64)
    # log(1 + f) = f − (f²/2 − z·(f²/2 + rest))
    return multiply_add(
        k, _LN2_HIGH_64, f - (half - multiply_add(k, _LN2_LOW_64, z * (half + rest)))
    )


def log_normal(x: float) -> float:
    """Return log x of positive normal numbers; what it returns for others means nothing."""
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
    factor, shift = 2.0**lift, lift * math.log(2)

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
    value = multiply_add(r * r, polynomial(r, _EXP_32), r) + np.float32(1.0)
    return scale_32(value, np.int32(bits(shifted) - np.int32(ROUND_BITS_32)))


@inline
def _exp_64(
    high: float, low: float, inverse: float, per: float, ln2: float, ln2_low: float
) -> float:
    shifted = multiply_add(high, per, _ROUND_64)
    k = shifted - _ROUND_64
    r = (multiply_add(k, -ln2_low, multiply_add(k, -ln2, high)) + low) * inverse
    value = multiply_add(r * r, polynomial(r, _EXP_64), r) + 1.0
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
    ln2 = (_LN2_HIGH_32, _LN2_LOW_32) if single else (_LN2_HIGH_64, _LN2_LOW_64)
    high, low = ln2

    def generic(x: Any) -> Any:
        x = select(x < like(x, least), like(x, least), x)
        x = select(x > like(x, most), like(x, most), x)
        one = like(x, 1.0)
        return exp_reduced(x, like(x, 0.0), one, like(x, _LOG2_E), like(x, high), like(x, low))

    return generic


@inline
def power_32(x: float, rest: float, low: float, shift: float, hot: Any) -> tuple[float, int]:
    """Return e^((x + rest)/T)/2ᵐ, where x is no less than ``low``, and its exponent of 2 as bits.

    ``shift`` is `ROUND_32` − m; ``hot`` begins with what `exp_reduced` calls inverse, per, ln2 and
    ln2_low. The exponent, without `ROUND_BITS_32`, is beyond ±126 where the result means nothing.
    """
    inverse, per, ln2, ln2_low = hot[0], hot[1], hot[2], hot[3]
    x = select(x < low, low, x)
    shifted = multiply_add(x, per, shift)
    k = shifted - shift
    r = (multiply_add(k, -ln2_low, multiply_add(k, -ln2, x)) + rest) * inverse
    value = multiply_add(r * r, polynomial(r, _EXP_32), r) + np.float32(1.0)
    exponent = bits(shifted)
    return bits(np.int32(bits(value) + np.int32(exponent << np.int32(23)))), exponent


@inline
def apart_32(x: float) -> tuple[float, float]:
    """Return φ(x) = e⁻ˣ − 1 + x ≥ 0, and e⁻ˣ − 1, for |x| < 80."""
    # e⁻ˣ = 4ᵏ·eʳ, and k is 0 where φ(x) would be a difference of larger terms.
    shifted = multiply_add(x, np.float32(-0.5 * _LOG2_E), np.float32(ROUND_32))
    k = shifted - np.float32(ROUND_32)
    r = multiply_add(k, np.float32(-2 * _LN2_HIGH_32), -x)
    r = multiply_add(k, np.float32(-2 * _LN2_LOW_32), r)
    rest = r * r * polynomial(r, _EXP_WIDE_32)
    power = bits(np.int32(np.int32(bits(shifted) << np.int32(24)) + np.int32(0x3F800000)))
    less = power - np.float32(1.0)
    # 4ᵏ(1 + r + rest) − 1 − (r + k log 4)
    constant = multiply_add(k, np.float32(-2 * math.log(2)), less)
    phi = multiply_add(power, rest, multiply_add(less, r, constant))
    return phi, multiply_add(power, r + rest, less)
