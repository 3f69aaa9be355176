"""Elementary functions of float32 and float64 tensors, without a chip's approximations.

Exponential and logarithm are those of `kldiv.kernels.cpu.elementary`, to 1 ulp; no
``ex2.approx``, whose error of 2 ulp is nobody's promise, so that they are the same on a GPU and in
Triton's interpreter.  The kernels are compiled without contraction of products and sums: each fused
multiply-add here is written, and each sum of two words is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kldiv.formulas import numbers

LN2 = tl.constexpr(numbers.LN2)
_LN2_HIGH_32 = tl.constexpr(numbers.LN2_HIGH_32)
_LN2_LOW_32 = tl.constexpr(numbers.LN2_LOW_32)
_LN2_HIGH_64 = tl.constexpr(numbers.LN2_HIGH_64)
_LN2_LOW_64 = tl.constexpr(numbers.LN2_LOW_64)
LOG2_E = tl.constexpr(numbers.LOG2_E)
_LOG_32 = tl.constexpr(numbers.LOG_32)
_LOG_64 = tl.constexpr(numbers.LOG_64)
_EXP_32 = tl.constexpr(numbers.EXP_32)
_EXP_64 = tl.constexpr(numbers.EXP_64)
_EXP_WIDE_32 = tl.constexpr(numbers.EXP_WIDE_32)
_ROOT_32 = tl.constexpr(numbers.ROOT_32)
_ROOT_64 = tl.constexpr(numbers.ROOT_64)

# Added to a float this puts its integer part into the lowest bits.
_ROUND_32 = tl.constexpr(1.5 * 2.0**23)
_ROUND_64 = tl.constexpr(1.5 * 2.0**52)
_ROUND_BITS_32 = tl.constexpr(0x4B400000)
_ROUND_BITS_64 = tl.constexpr(0x4338000000000000)


NEAR = tl.constexpr(numbers.NEAR)
"""|x| below which φ is a series."""

_PHI = tl.constexpr(numbers.PHI)
_PHI_32 = tl.constexpr(numbers.PHI_32)
_ARTANH = tl.constexpr(numbers.ARTANH)
_ARTANH_32 = tl.constexpr(numbers.ARTANH_32)
_PHI_TERMS = tl.constexpr(len(numbers.PHI))
_PHI_TERMS_32 = tl.constexpr(len(numbers.PHI_32))
_ARTANH_TERMS = tl.constexpr(len(numbers.ARTANH))
_ARTANH_TERMS_32 = tl.constexpr(len(numbers.ARTANH_32))


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Return ``x`` in another dtype; a float64 becomes a bfloat16 by way of float32.

    Triton's interpreter gets that wrong in one step (its cast takes the two for alike).
    """
    if dtype == tl.bfloat16:
        x = x.to(tl.float32)
    return x.to(dtype)


@triton.jit
def like(x, value: tl.constexpr):
    """Return a number of the dtype of ``x``."""
    return tl.full([], value, x.dtype)


@triton.jit
def polynomial(x, coefficients: tl.constexpr, n: tl.constexpr):
    """Return Σ cₖ xᵏ of all ``n`` coefficients."""
    value = like(x, coefficients[n - 1])
    for k in tl.static_range(n - 1):
        value = tl.fma(value, x, like(x, coefficients[n - 2 - k]))
    return value


@triton.jit
def divide(a, b):
    """Return a/b, rounded once: Triton's ``/`` of float32 is an approximation."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def bounded(x, limit):
    """Return ``x`` between −limit and limit, NaN kept."""
    return tl.where(x < -limit, -limit, tl.where(x > limit, limit, x))


@triton.jit
def total(x):
    """Return the sum along rows in float64."""
    if x.dtype == tl.float64:
        result = tl.sum(x, axis=1, keep_dims=True)
    else:
        groups = tl.reshape(x, [x.shape[0], x.shape[1] // 4, 4])
        result = tl.sum(tl.sum(groups, axis=2).to(tl.float64), axis=1, keep_dims=True)
    return result


# --- double words ---------------------------------------------------------------------------------


@triton.jit
def two_sum(a, b):
    """Return a + b as a double word: rounded, and the rounding error."""
    high = a + b
    back = high - a
    return high, (a - (high - back)) + (b - back)


@triton.jit
def two_difference(a, b):
    """Return a − b as a double word."""
    high = a - b
    back = high - a
    return high, (a - (high - back)) - (b + back)


@triton.jit
def difference(a, a_low, b, b_low):
    """Return a − b of double words as one number, with a small relative error."""
    high, low = two_difference(a_low, b_low)
    return ((a - b) + high) + low


@triton.jit
def add(a, a_low, b):
    """Return the double word a plus a number."""
    high, low = two_sum(a, b)
    low = low + a_low
    total = high + low
    return total, low - (total - high)


# --- exponential ----------------------------------------------------------------------------------


@triton.jit
def _power(k, x):
    """Return 2ᵏ, a normal number, of the dtype of ``x``."""
    if x.dtype == tl.float64:
        power = ((k + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        power = ((k + 127) << 23).to(tl.float32, bitcast=True)
    return power


@triton.jit
def _scaled(x, k):
    """Return x·2ᵏ, rounded once: a subnormal number counts where it is magnified."""
    half = k >> 1
    return x * _power(half, x) * _power(k - half, x)


@triton.jit
def _reduced(high, low, inverse, per, ln2, ln2_low):
    """Return eʳ and k, where (high + low)/T = r + k log 2."""
    shift = like(high, _ROUND_64 if high.dtype == tl.float64 else _ROUND_32)
    shifted = tl.fma(high, per, shift)
    k = shifted - shift
    r = (tl.fma(k, -ln2_low, tl.fma(k, -ln2, high)) + low) * inverse
    if high.dtype == tl.float64:
        value = tl.fma(r * r, polynomial(r, _EXP_64, 10), r) + 1.0
        power = shifted.to(tl.int64, bitcast=True) - _ROUND_BITS_64
    else:
        value = tl.fma(r * r, polynomial(r, _EXP_32, 5), r) + 1.0
        power = shifted.to(tl.int32, bitcast=True) - _ROUND_BITS_32
    return value, power


@triton.jit
def exp_reduced(high, low, inverse, per, ln2, ln2_low):
    """Return exp((high + low)/T) where it does not overflow, and is no less than e⁻¹¹⁰ or e⁻⁷⁶⁰.

    ``inverse`` is 1/T, ``per`` is 1/(T log 2), and T log 2 is ``ln2`` + ``ln2_low``, the first of
    so few bits that its products with whole numbers are exact.
    """
    value, k = _reduced(high, low, inverse, per, ln2, ln2_low)
    return _scaled(value, k)


@triton.jit
def exp(x):
    """Return eˣ."""
    if x.dtype == tl.float64:
        x = tl.where(x < -746.0, -746.0, tl.where(x > 710.0, 710.0, x))
        high, low = like(x, _LN2_HIGH_64), like(x, _LN2_LOW_64)
    else:
        x = tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x))
        high, low = like(x, _LN2_HIGH_32), like(x, _LN2_LOW_32)
    value, k = _reduced(x, like(x, 0.0), like(x, 1.0), like(x, LOG2_E), high, low)
    return _scaled(value, k)


@triton.jit
def phi_ratio(x):
    """Return φ(x)/x² for |x| ≤ `NEAR`."""
    if x.dtype == tl.float64:
        value = polynomial(x, _PHI, _PHI_TERMS)
    else:
        value = polynomial(x, _PHI_32, _PHI_TERMS_32)
    return value


@triton.jit
def phi_near(x):
    """Return φ(x) = e⁻ˣ − 1 + x for |x| ≤ `NEAR`; less φ(x), x is 1 − e⁻ˣ."""
    return x * x * phi_ratio(x)


@triton.jit
def less(x):
    """Return e⁻ˣ − 1."""
    near = bounded(x, like(x, NEAR))
    return tl.where(tl.abs(x) < NEAR, phi_near(near) - near, exp(-x) - 1.0)


@triton.jit
def power_from(x, exponent, inverse, per, ln2, ln2_low):
    """Return e^(x/T)/2ᵐ, 0 below 2⁻¹²⁵, and its exponent of 2, of float32: m is ``exponent``.

    The rest are arguments of `exp_reduced`. Where the exponent is beyond 126, the power is
    meaningless.
    """
    shift = like(x, _ROUND_32) - exponent
    shifted = tl.fma(x, per, shift)
    k = shifted - shift
    r = tl.fma(k, -ln2_low, tl.fma(k, -ln2, x)) * inverse
    value = tl.fma(r * r, polynomial(r, _EXP_32, 5), r) + 1.0
    found = shifted.to(tl.int32, bitcast=True) - _ROUND_BITS_32
    scaled = (value.to(tl.int32, bitcast=True) + (found << 23)).to(tl.float32, bitcast=True)
    return tl.where(found < -125, 0.0, scaled), found


@triton.jit
def exp_less(x, x_low):
    """Return e⁻ˣ, e⁻ˣ − 1, and φ(x) = e⁻ˣ − 1 + x ≥ 0, for a double word x < 80, of float32."""
    # e⁻ˣ = 4ᵏ·eʳ, and k is 0 where φ(x) would be a difference of larger terms.
    shifted = tl.fma(x, like(x, -0.5 * LOG2_E), like(x, _ROUND_32))
    k = shifted - like(x, _ROUND_32)
    r = tl.fma(k, like(x, -2 * _LN2_LOW_32), tl.fma(k, like(x, -2 * _LN2_HIGH_32), -x) - x_low)
    rest = r * r * polynomial(r, _EXP_WIDE_32, 7)
    power = _power(2 * (shifted.to(tl.int32, bitcast=True) - _ROUND_BITS_32), x)
    less = power - 1.0
    # 4ᵏ(1 + r + rest) − 1 − (r + k log 4)
    constant = tl.fma(k, like(x, -2 * LN2), less)
    phi = tl.fma(power, rest, tl.fma(less, r, constant))
    return tl.fma(power, r + rest, power), tl.fma(power, r + rest, less), phi


# --- logarithm ------------------------------------------------------------------------------------


@triton.jit
def _log_normal(x):
    if x.dtype == tl.float64:
        i = x.to(tl.int64, bitcast=True) - _ROOT_64
        k = (i >> 52).to(tl.float64)
        f = ((i & 0xFFFFFFFFFFFFF) + _ROOT_64).to(tl.float64, bitcast=True) - 1.0
        z = f / (2.0 + f)
        half = 0.5 * f * f
        rest = z * z * polynomial(z * z, _LOG_64, 7)
        # log(1 + f) = f − (f²/2 − z·(f²/2 + rest))
        low = tl.fma(k, like(x, _LN2_LOW_64), z * (half + rest))
        value = tl.fma(k, like(x, _LN2_HIGH_64), f - (half - low))
    else:
        i = x.to(tl.int32, bitcast=True) - _ROOT_32
        k = (i >> 23).to(tl.float32)
        f = ((i & 0x7FFFFF) + _ROOT_32).to(tl.float32, bitcast=True) - 1.0
        square = f * f
        low = tl.fma(k, like(x, _LN2_LOW_32), f * square * polynomial(f, _LOG_32, 8))
        low = tl.fma(square, like(x, -0.5), low)
        value = tl.fma(k, like(x, _LN2_HIGH_32), f + low)
    return value


@triton.jit
def log(x):
    """Return log x: −∞ at 0, NaN below."""
    # The whole shift of a subnormal number is added to a logarithm below −80: that is accurate.
    if x.dtype == tl.float64:
        small = x < 2.0**-1022
        value = _log_normal(tl.where(small, x * 2.0**52, x))
        value = tl.where(small, value - 52.0 * LN2, value)
    else:
        small = x < 2.0**-126
        value = _log_normal(tl.where(small, x * 2.0**23, x))
        value = tl.where(small, value - 23.0 * LN2, value)
    value = tl.where(x < float("inf"), value, x)
    value = tl.where(x == 0.0, -float("inf"), value)
    return tl.where(x < 0.0, float("nan"), value)


@triton.jit
def log1p_near(y):
    """Return log(1 + y) and y − log(1 + y) for −½ < y < 1."""
    z = divide(y, 2.0 + y)
    square = z * z
    if y.dtype == tl.float64:
        series = polynomial(square, _ARTANH, _ARTANH_TERMS)
    else:
        series = polynomial(square, _ARTANH_32, _ARTANH_TERMS_32)
    rest = z * square * series
    return z + z + rest, y * z - rest


@triton.jit
def log_less(y, m):
    """Return log m and y − log m, of float32, with small relative errors: m is 1 + y, normal."""
    i = m.to(tl.int32, bitcast=True) - _ROOT_32
    close = (y > -0.5) & (y < 1.0)
    power = tl.where(close, 0, i >> 23)
    f = ((i & 0x7FFFFF) + _ROOT_32).to(tl.float32, bitcast=True) - 1.0
    f = tl.where(close, y, f)
    near, gap = log1p_near(f)
    k = power.to(tl.float32)
    value = tl.fma(k, like(y, _LN2_HIGH_32), tl.fma(k, like(y, _LN2_LOW_32), near))
    return value, tl.where(close, gap, y - value)
