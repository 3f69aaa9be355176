"""Small pieces without cancellation: φ, the logarithm with its remainder, numbers of two words.

Each is right to a few roundings on every library: of theirs only ``exp`` and ``log`` are called,
not near a zero.  (JAX's ``log1p`` on a CPU is off by up to 129 ulp in float64, its ``expm1`` by 5;
torch.compile computes ``expm1(x)`` as exp(x) − 1.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kldiv.formulas.numbers import ARTANH, ARTANH_32, NEAR, PHI, PHI_32
from kldiv.formulas.reductions import like

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kldiv._types import Array, Namespace


def total(xp: Namespace, terms: Array) -> Array:
    """Return the sum over the classes, as an axis of length one."""
    return xp.sum(terms, axis=-1, keepdims=True)


def largest(xp: Namespace, a: Array) -> Array:
    """Return the maximum of the classes, as an axis of length one: −∞ where there is none."""
    return xp.max(a, axis=-1, keepdims=True) if a.shape[-1] else total(xp, a) - float("inf")


def merged_ties(xp: Namespace, parts: Sequence[Sequence[Array]]) -> list[Array]:
    """Merge the maxima of parts, and how often each is there."""
    tops, ties = (xp.concat(same, axis=-1) for same in zip(*parts, strict=True))
    top = largest(xp, tops)
    return [top, total(xp, xp.where(tops == top, ties, 0.0))]


def counted(xp: Namespace, array: Array) -> Array:
    """Return 0, 1, … for the elements of the last axis."""
    place = getattr(array, "device", None)  # a tracer has none
    return xp.arange(array.shape[-1], **({} if place is None else {"device": place}))


def phi(xp: Namespace, x: Array) -> Array:
    """Return φ(x) = e⁻ˣ − 1 + x ≥ 0."""
    near = phi_near(xp, xp.clip(x, -NEAR, NEAR))
    return xp.where(abs(x) < NEAR, near, xp.exp(-x) + (x - 1.0))


def phi_near(xp: Namespace, x: Array) -> Array:
    """Return φ(x) for |x| ≤ `NEAR`."""
    return x * x * phi_ratio(xp, x)


def phi_ratio(xp: Namespace, x: Array) -> Array:
    """Return φ(x)/x² for |x| ≤ `NEAR`."""
    return polynomial(x, PHI if x.dtype == xp.float64 else PHI_32)


def expm1(xp: Namespace, x: Array) -> Array:
    """Return eˣ − 1."""
    near = expm1_near(xp, xp.clip(x, -NEAR, NEAR))
    return xp.where(abs(x) < NEAR, near, xp.exp(x) - 1.0)


def exp_by_expm1(xp: Namespace, x: Array) -> Array:
    """Return e^x by way of float64, where a library's own is less exact than its e^x − 1."""
    rise = xp.expm1(abs(xp.astype(x, xp.float64))) + 1.0
    return like(xp, xp.where(x < 0, 1.0 / rise, rise), x)


def expm1_near(xp: Namespace, x: Array) -> Array:
    """Return eˣ − 1 for |x| ≤ `NEAR`: no library's, as torch.compile makes that exp(x) − 1."""
    return x + phi_near(xp, -x)


def exp_rise(xp: Namespace, rate: float, at: Array, step: Array) -> Array:
    """Return e^(rate·(at + step)) − e^(rate·at), right to a few units however small the step is."""
    change = rate * step
    near = xp.exp(rate * at) * expm1_near(xp, xp.clip(change, -NEAR, NEAR))
    return xp.where(abs(change) < NEAR, near, xp.exp(rate * (at + step)) - xp.exp(rate * at))


def alpha_terms(xp: Namespace, kappa: float, p: Array, q: Array, ell: Array, power: Array) -> Array:
    r"""Return α times the terms of an α-divergence, none below 0, given κ = 1 − α ≤ ½.

    With ℓ = log(p/q), finite, m = p^α q^κ and φ(x) = x² P(x) they are

        p φ(ℓ) − p φ(κℓ)/κ = p ℓ² (P(ℓ) − κ P(κℓ)) = (q − p) − (m − p)/κ
    """
    widest = 1.0 / max(1.0, abs(kappa))
    x, z = xp.clip(ell, -widest, widest), xp.clip(kappa * ell, -1.0, 1.0)
    near = p * x * x * (phi_ratio(xp, x) - kappa * phi_ratio(xp, kappa * x))
    # (m − p)/κ, also where κ is small.
    less = xp.where(
        abs(kappa * ell) < 1.0, -(p * ell) * (1.0 - z * phi_ratio(xp, z)), (power - p) / kappa
    )
    apart = xp.where(abs(ell) < 1.0, p * expm1(xp, xp.clip(-ell, -1.0, 1.0)), q - p)
    return xp.where(abs(ell) < widest, near, apart - less)


def exp_change(xp: Namespace, rate: float, x: Array) -> Array:
    """Return (1 − e^(−rate·x))/rate, right to a few units also where the rate is small."""
    z = rate * x
    small = xp.clip(z, -1.0, 1.0)
    near = x * (1.0 - small * phi_ratio(xp, small))
    return xp.where(abs(z) < 1.0, near, (1.0 - xp.exp(-z)) / rate)


def log1p(xp: Namespace, y: Array) -> Array:
    """Return log(1 + y) for y > −1."""
    z, rest = _artanh(xp, y / (2.0 + y))
    # Outside −1/2 < y < 1 rounding 1 + y costs nothing: it is exact below, beside the log above.
    return xp.where(abs(z) < 1 / 3, 2.0 * z + rest, xp.log(1.0 + y))


def log1p_gap(xp: Namespace, y: Array) -> Array:
    """Return y − log(1 + y) ≥ 0 for y > −1."""
    z, rest = _artanh(xp, y / (2.0 + y))
    return xp.where(abs(z) < 1 / 3, y * z - rest, y - xp.log(1.0 + y))


def log_ratio(xp: Namespace, a: Array, b: Array, difference: Array | None = None) -> Array:
    """Return log(a/b) for a, b > 0, right to a few units of itself, however close they are.

    ``difference`` is a − b, where it is known better than its subtraction gives it.
    """
    z, rest = _artanh(xp, _share(xp, a - b if difference is None else difference, a, b))
    return xp.where(abs(z) < 1 / 3, 2.0 * z + rest, _log_quotient(xp, a, b))


def relative(xp: Namespace, a: Array, b: Array, difference: Array | None = None) -> Array:
    """Return a·φ(log(a/b)) = a·log(a/b) + b − a ≥ 0 for a, b > 0, right to a few units of itself.

    With z = (a − b)/(a + b) and log(a/b) = 2z + R(z) it is z(a − b) + a·R(z): nothing cancels.
    """
    change = a - b if difference is None else difference
    z, rest = _artanh(xp, _share(xp, change, a, b))
    far = a * (_log_quotient(xp, a, b) - 1.0) + b
    return xp.where(abs(z) < 1 / 3, z * change + a * rest, far)


def _share(xp: Namespace, change: Array, a: Array, b: Array) -> Array:
    """Return change/(a + b), also where the sum is beyond the largest number."""
    both = a + b
    half = xp.where(both < float("inf"), 1.0, xp.full_like(both, 0.5))
    return (half * change) / (half * a + half * b)


def _log_quotient(xp: Namespace, a: Array, b: Array) -> Array:
    # A quotient keeps digits that the difference of two large logarithms would lose.  That of the
    # roots overflows only beside a subnormal number, where that of their roots has enough.
    a, b = xp.sqrt(a), xp.sqrt(b)
    ratio = a / b
    usual = (ratio < float("inf")) & (ratio >= float(xp.finfo(ratio.dtype).smallest_normal))
    log = xp.log(xp.where(usual, ratio, xp.sqrt(a) / xp.sqrt(b)))
    return xp.where(usual, 2.0 * log, 4.0 * log)


def _artanh(xp: Namespace, z: Array) -> tuple[Array, Array]:
    """Return z = y/(2 + y), for which y − 2z = y·z, and log1p(y) − 2z."""
    square = z * z
    series = polynomial(square, ARTANH if z.dtype == xp.float64 else ARTANH_32)
    return z, z * square * series


def artanh_parts(xp: Namespace, z: Array) -> tuple[Array, Array]:
    """Return z, and 2 artanh(z) − 2z, for |z| < 1/3; elsewhere finite numbers."""
    return _artanh(xp, xp.clip(z, -1 / 3, 1 / 3))


def polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """Return Σ cₖ xᵏ, the coefficients from the constant one on; there are two at least."""
    *rest, value = coefficients
    for coefficient in reversed(rest):
        value = value * x + coefficient
    return value


def unit_of(xp: Namespace, x: Array) -> Array:
    """Return a power of two within a factor of 2⁸ of x; 1 of 0, ∞ and NaN."""
    unit = xp.ones_like(x)
    for bits in (512, 256, 128, 64, 32, 16, 8)[0 if x.dtype == xp.float64 else 3 :]:
        step = 2.0**bits
        large, small = (x >= step) & (x < float("inf")), (x > 0) & (x <= 1.0 / step)
        unit = xp.where(large, unit * step, xp.where(small, unit / step, unit))
        x = xp.where(large, x / step, xp.where(small, x * step, x))
    return unit


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a + b as a double word: rounded, and the remainder (Knuth, TAOCP 2, 4.2.2)."""
    high = a + b
    back = high - a
    return high, (a - (high - back)) + (b - back)


def two_difference(a: Array, b: Array) -> tuple[Array, Array]:
    """Return a − b as a double word."""
    high = a - b
    back = high - a
    return high, (a - (high - back)) - (b + back)


def add(a: Array, a_low: Array, b: Array) -> tuple[Array, Array]:
    """Return the double word a plus a number."""
    high, low = two_sum(a, b)
    low = low + a_low
    a = high + low
    return a, low - (a - high)


def difference(a: Array, a_low: Array, b: Array, b_low: Array) -> Array:
    """Return a − b of double words as one number, right to a few u of *itself*, however small."""
    high, low = two_difference(a_low, b_low)
    return ((a - b) + high) + low
