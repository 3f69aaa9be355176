"""The state of a row of logits in the making: `kldiv.formulas.state`, for one block after another.

A block of classes is S = Σ w, Q = Σ exp((s − max s)/T), Y = Σ w (e⁻ˣ − 1) and P = Σ w φ(x) about a
pivot, and D = Σ w (d − a)/T about an anchor a: weights, pivot and anchor as explained there. The
elements are in the dtype of the logits; their sums, and all that is made of these, are in float64.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import overload

from kldiv.kernels import constants
from kldiv.kernels.constants import LN2, LN2_LOW, LOG2_E
from kldiv.kernels.cpu.compiling import OPTIONS, inline
from kldiv.kernels.cpu.elementary import exp_reduced
from kldiv.kernels.cpu.instructions import (
    accumulate,
    fused,
    larger,
    like,
    polynomial,
    select,
)
from kldiv.kernels.cpu.memory import load
from kldiv.kernels.layout import Buffer

# Fields of a state.
T_MAX: Final = 0
S_MAX: Final = 1
T_SUM: Final = 2
S_SUM: Final = 3
PIVOT: Final = 4
PIVOT_LOW: Final = 5
Y: Final = 6
PHI: Final = 7
ANCHOR: Final = 8
ANCHOR_LOW: Final = 9
DRIFT: Final = 10
FIELDS: Final = 11

NEAR: Final = 2.0
"""|x| below which φ is a series."""

_PHI_32: Final = constants.PHI[:14]


# --- elements -------------------------------------------------------------------------------------


def phi_near(x: Any) -> Any:
    """Return φ(x) = e⁻ˣ − 1 + x for |x| ≤ `NEAR`; less φ(x), x is 1 − e⁻ˣ."""
    raise NotImplementedError


@overload(phi_near)
def _phi_near(x: Any) -> Any:
    coefficients = _PHI_32 if x == types.float32 else constants.PHI

    def generic(x: Any) -> Any:
        return x * x * polynomial(x, coefficients)

    return generic


@inline
def two_sum(a: float, b: float) -> tuple[float, float]:
    """Return a + b as a double word."""
    high = a + b
    back = high - a
    return high, (a - (high - back)) + (b - back)


@inline
def two_difference(a: float, b: float) -> tuple[float, float]:
    """Return a − b as a double word."""
    high = a - b
    back = high - a
    return high, (a - (high - back)) - (b + back)


@inline
def difference(a: float, a_low: float, b: float, b_low: float) -> float:
    """Return a − b of double words, with a small relative error."""
    high, low = two_difference(a_low, b_low)
    return ((a - b) + high) + low


def log1p_near(y: Any) -> Any:
    """Return log(1 + y) and y − log(1 + y) for −½ < y < 1."""
    raise NotImplementedError


@overload(log1p_near, jit_options=OPTIONS)
def _log1p_near(y: Any) -> Any:
    coefficients = constants.ARTANH[:7] if y == types.float32 else constants.ARTANH

    def generic(y: Any) -> Any:
        z = y / (like(y, 2.0) + y)
        square = z * z
        rest = z * square * polynomial(square, coefficients)
        return z + z + rest, y * z - rest

    return generic


def limits(kind: Buffer) -> tuple[float, float]:
    """Return the lowest finite number of a dtype, and −log of the weight that counts as 0."""
    raise NotImplementedError


@overload(limits)
def _limits(kind: Any) -> Any:
    single = kind.dtype == types.float32
    lowest = float(np.finfo(np.float32 if single else np.float64).min)
    gone = 110.0 if single else 760.0

    def generic(kind: Any) -> Any:
        return lowest, gone

    return generic


@inline
def finite(x: float, lowest: float) -> float:
    """Return ``x``, −∞ replaced by the lowest finite number."""
    return select(x < lowest, lowest, x)


@inline
def heat(temperature: float, kind: Buffer) -> Any:
    """Return the constants of a temperature that `weight` takes, in the dtype of ``kind``.

    The temperature divides the small rest of an exponent, and log 2 is multiplied by it: then
    nothing is rounded that e to its power would magnify.
    """
    high = temperature * LN2
    low = fused(temperature, LN2, -high) + temperature * LN2_LOW
    zero = like(kind[0], 0.0)
    # A head with so few bits that its product with an exponent of 2 is exact.
    split = high * (2.0**12 + 1.0)  # 41 bits
    head = split - (split - high)
    if kind.itemsize == 4:
        split = high * (2.0**38 + 1.0)  # 15 bits
        head = split - (split - high)
    gone = limits(kind)[1]
    return (
        like(zero, 1.0 / temperature),
        like(zero, LOG2_E / temperature),
        like(zero, head),
        like(zero, (high - head) + low),
        like(zero, -gone * temperature),
    )


@inline
def weight(high: float, low: float, heat: Any) -> float:
    """Return exp((high + low)/T) for ``high`` ≤ 0, NaN kept."""
    inverse, per, ln2, ln2_low, gone = heat
    under = high < gone
    high = select(under, gone, high)
    low = select(under, like(high, 0.0), low)
    return exp_reduced(high, low, inverse, per, ln2, ln2_low)


# --- states ---------------------------------------------------------------------------------------


@inline
def log1p_gap(y: float) -> float:
    """Return y − log(1 + y)."""
    return log1p_near(y)[1] if -0.5 < y < 1.0 else y - math.log1p(y)


@inline
def _exp_over(high: float, low: float, temperature: float) -> float:
    """Return exp((high + low)/T)."""
    high, low = two_sum(high, low)
    quotient = high / temperature
    rest = (fused(-quotient, temperature, high) + low) / temperature
    return math.exp(quotient) * (1.0 + rest) if abs(quotient) < 1000.0 else math.exp(quotient)


@inline
def top(maximum: float) -> float:
    """Return the maximum to subtract: 0 where every class is masked."""
    return 0.0 if maximum == -np.inf else maximum


@inline
def student_scale(s_max: float, t_max: float, c: float, c_low: float, temperature: float) -> float:
    """Return exp((max s − max t + c)/T)."""
    high, low = two_difference(top(s_max), top(t_max))
    high, more = two_sum(high, c)
    return _exp_over(high, low + (more + c_low), temperature)


@inline
def moved_pivot(c: float, c_low: float, by: float) -> tuple[float, float]:
    """Return a double word plus a number."""
    high, low = two_sum(c, by)
    low += c_low
    c = high + low
    return c, low - (c - high)


@inline
def _rescale(old: float, new: float, temperature: float) -> float:
    """Return the factor of sums whose maximum changes."""
    if old == new:
        return 1.0
    high, low = two_difference(old, new)
    return _exp_over(high, low, temperature) if old > -np.inf else 0.0


@inline
def ratio_of_sums(
    t_max: float, t_sum: float, s_max: float, s_sum: float, temperature: float
) -> tuple[float, float]:
    """Return T·log(Σe^{t/T}/Σe^{s/T}), about which x is log(p/q), as a double word."""
    high, low = two_difference(top(t_max), top(s_max))
    return moved_pivot(high, low, temperature * math.log(t_sum / s_sum))


@inline
def _drift(a: Buffer, scale: float, c: float, c_low: float, temperature: float) -> float:
    """Return Σ w (d − c)/T of a state."""
    if a[T_SUM] == 0:
        return 0.0
    h = difference(a[ANCHOR], a[ANCHOR_LOW], c, c_low) / temperature
    return scale * (a[DRIFT] + a[T_SUM] * h)


@inline
def _moved(
    a: Buffer, scale: float, t_max: float, c: float, c_low: float, temperature: float
) -> tuple[float, float]:
    """Return Y and P of a state about another pivot, in the scale of another maximum."""
    h = difference(a[PIVOT], a[PIVOT_LOW], c, c_low) / temperature
    if h == 0:
        return scale * a[Y], scale * a[PHI]
    if a[T_SUM] != 0 and abs(h) < NEAR:
        # φ(x + h) = φ(x) + φ(h) + (e⁻ˣ − 1)(e⁻ʰ − 1)
        step = phi_near(h)
        fall = step - h
        y = scale * (a[Y] + (a[T_SUM] + a[Y]) * fall)
        return y, scale * (a[PHI] + a[T_SUM] * step + a[Y] * fall)
    # Far away Σ w e⁻ˣ is the student's mass: the teacher's weights may underflow or be zero.
    mass = a[S_SUM]
    if mass != 0:
        mass *= student_scale(a[S_MAX], t_max, c, c_low, temperature)
    y = mass - scale * a[T_SUM]
    return y, y + _drift(a, scale, c, c_low, temperature)


@inline
def merge(a: Buffer, b: Buffer, temperature: float) -> None:
    """Make ``a`` the state of the classes of both."""
    t_max, s_max = max(a[T_MAX], b[T_MAX]), max(a[S_MAX], b[S_MAX])
    scale_a = _rescale(a[T_MAX], t_max, temperature)
    scale_b = _rescale(b[T_MAX], t_max, temperature)
    t_sum = scale_a * a[T_SUM] + scale_b * b[T_SUM]
    s_sum = a[S_SUM] * _rescale(a[S_MAX], s_max, temperature)
    s_sum += b[S_SUM] * _rescale(b[S_MAX], s_max, temperature)

    # The heavier one is nearer to the bulk of all.
    second = scale_b * b[T_SUM] > scale_a * a[T_SUM]
    c, c_low = (b[PIVOT], b[PIVOT_LOW]) if second else (a[PIVOT], a[PIVOT_LOW])
    y_a, phi_a = _moved(a, scale_a, t_max, c, c_low, temperature)
    y_b, phi_b = _moved(b, scale_b, t_max, c, c_low, temperature)
    if abs(y_a + y_b) > 0.5 * t_sum and s_sum > 0 and t_sum > 0:
        c, c_low = ratio_of_sums(t_max, t_sum, s_max, s_sum, temperature)
        y_a, phi_a = _moved(a, scale_a, t_max, c, c_low, temperature)
        y_b, phi_b = _moved(b, scale_b, t_max, c, c_low, temperature)
    anchor, anchor_low = (b[ANCHOR], b[ANCHOR_LOW]) if second else (a[ANCHOR], a[ANCHOR_LOW])
    drift = _drift(a, scale_a, anchor, anchor_low, temperature)
    drift += _drift(b, scale_b, anchor, anchor_low, temperature)

    a[T_MAX], a[S_MAX], a[T_SUM], a[S_SUM] = t_max, s_max, t_sum, s_sum
    a[PIVOT], a[PIVOT_LOW], a[Y], a[PHI] = c, c_low, y_a + y_b, phi_a + phi_b
    a[ANCHOR], a[ANCHOR_LOW], a[DRIFT] = anchor, anchor_low, drift


@inline
def finish(a: Buffer, lost: bool) -> tuple[float, float]:
    """Return KL of a row, and its offset: log(p/q) = x + offset, x about the pivot."""
    t_sum = a[T_SUM]
    if not (t_sum > 0 and a[S_SUM] > 0):
        return np.nan, np.nan
    y = a[Y] / t_sum
    kl = np.inf if lost else a[PHI] / t_sum - log1p_gap(y)
    return (0.0 if kl < 0 else kl), math.log1p(y)


# --- sums of buffers ------------------------------------------------------------------------------


def total(values: Any, n: Any) -> Any:
    """Return the sum of ``n`` numbers ≤ 1 in float64, many equal ones included."""
    raise NotImplementedError


@overload(total)
def _total(values: Any, n: Any) -> Any:
    def of_float32(values: Any, n: Any) -> Any:
        result = 0.0
        for k in range(n):
            result = accumulate(result, np.float64(values[k]))
        return result

    def of_float64(values: Any, n: Any) -> Any:
        # Equal numbers are all rounded alike: the first half of the bits is added apart, exactly.
        coarse, rest = 0.0, 0.0
        for k in range(n):
            head = (values[k] + 2.0**26) - 2.0**26
            coarse = accumulate(coarse, head)
            rest = accumulate(rest, values[k] - head)
        return coarse + rest

    return of_float32 if values.dtype == types.float32 else of_float64


@inline
def maximum(address: int, n: int, kind: Buffer) -> float:
    """Return the largest of ``n`` numbers, NaN where there is one."""
    result = like(kind[0], -np.inf)
    for k in range(n):
        result = larger(result, load(address, k, kind))
    return result
