"""The quick way through float32 logits: one pass over a block, where x is nowhere large.

It guesses an origin of the exponents and a pivot, from the elements before, and sees afterwards how
good they were: a block is done again about a better pivot, or left to `kldiv.kernels.cpu.logits`,
which takes all there is. The origin is a power of 2, so that no maximum is subtracted, and x is so
small that w·e⁻ˣ neither underflows nor loses digits: the student needs no exponential of its own.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import overload

from kldiv.kernels.cpu.compiling import OPTIONS, inline
from kldiv.kernels.cpu.elementary import ROUND_32, ROUND_BITS_32, apart_32, power_32
from kldiv.kernels.cpu.instructions import accumulate, bits, load_float32, store_float32
from kldiv.kernels.cpu.layout import Buffer
from kldiv.kernels.cpu.state import (
    ANCHOR,
    ANCHOR_LOW,
    DRIFT,
    PHI,
    PIVOT,
    PIVOT_LOW,
    S_MAX,
    S_SUM,
    T_MAX,
    T_SUM,
    Y,
    difference,
    log1p_gap,
    two_difference,
)

SIZE: Final = 2048
"""Elements of a block."""

LONGEST: Final = 1 << 20
"""Classes of a row of which so much is kept, for its gradients, as the caches hold."""

# What is guessed: the exponent of 2 at the origin and its logit, by what sums about the one differ
# from sums about the other, and the pivot.
_EXPONENT: Final = 0
_TOP: Final = 1
_SCALE: Final = 2
_CENTER: Final = 3
GUESSES: Final = 4

_STRIP: Final = 128
"""Elements whose sum is taken in float32, in as many lanes as the CPU has."""

_GLANCE: Final = 64
"""Elements of a row from which the first guess is made."""

_FAR: Final = int(np.float32(8).view(np.int32))
"""The bits of an |x| that must be known better than to a rounding for e⁻ˣ."""

_DEEP: Final = 87.0
"""−log of the smallest weight: what is below it counts as that."""

_LEAST: Final = 1e-24
"""Σ w φ(x) that such weights do not touch."""

_RISE: Final = 32
"""By how many powers of 2 a weight may exceed 1."""

_HIGHEST: Final = 150
"""The largest exponent of 2 at the origin: its multiples of log 2 stay exact."""

_AMPLIFIED: Final = 1.5
"""How much larger roundings may become by a pivot that is not the mean."""

_LN2: Final = math.log(2)


# --- one pass -------------------------------------------------------------------------------------


@inline
def _pass(t: int, s: int, n: int, kept: int, low: Any, shift: Any, hot: Any, c: Any) -> Any:
    """Return the sums of w, w x, w |x| and w φ(x), and the largest |x| and exponent, as bits.

    It always keeps w, w (e⁻ˣ − 1) and w x, needed or not: a loop of its own for values alone would
    hardly be faster, and its sums would differ in the last bit.
    """
    t_sum = drift = spread = phi = 0.0
    far = top = np.int32(0)
    for start in range(0, n, _STRIP):
        w_part = x_part = size_part = phi_part = np.float32(0.0)
        for k in range(start, min(start + _STRIP, n)):
            own, other = load_float32(t, k), load_float32(s, k)
            w, exponent = power_32(own, low, shift, hot)
            d, d_low = two_difference(own, other)
            # Of one word, as c is, d − c is exact where it is not much larger than d's error.
            x = ((d - c) + d_low) * hot[0]
            rest, fall = apart_32(x)
            wx = w * x
            w_part = accumulate(w_part, w)
            x_part = accumulate(x_part, wx)
            size_part = accumulate(size_part, abs(wx))
            phi_part = accumulate(phi_part, w * rest)
            far = max(far, np.int32(bits(x) & np.int32(0x7FFFFFFF)))
            top = max(top, exponent)
            store_float32(kept, k, w)
            store_float32(kept, k + SIZE, w * fall)
            store_float32(kept, k + 2 * SIZE, wx)
        t_sum += np.float64(w_part)
        drift += np.float64(x_part)
        spread += np.float64(size_part)
        phi += np.float64(phi_part)
    return t_sum, drift, spread, phi, far, top


# --- a block --------------------------------------------------------------------------------------


@inline
def _origin(exponent: float, temperature: float, guess: Buffer) -> bool:
    """Take another origin; return whether it is one that can be."""
    if not abs(exponent) <= _HIGHEST:
        return False
    top = np.float64(np.float32(exponent * temperature * _LN2))
    guess[_EXPONENT], guess[_TOP] = exponent, top
    guess[_SCALE] = math.exp(exponent * _LN2 - top / temperature)
    return True


@inline
def _glance(t: int, s: int, n: int, temperature: float, guess: Buffer) -> bool:
    """Guess from the first elements of a row; return whether it may be done quickly."""
    top, total = np.float32(-np.inf), np.float32(0.0)
    n = min(n, _GLANCE)
    for k in range(n):
        own = load_float32(t, k)
        top = max(top, own)
        total += own - load_float32(s, k)
    guess[_CENTER] = total / np.float32(n)
    return _origin(math.floor(top / (temperature * _LN2) + 0.5), temperature, guess)


def state(
    t: Any,
    s: Any,
    n: Any,
    begins: Any,
    kept: Any,
    temperature: Any,
    hot: Any,
    guess: Any,
    a: Any,
) -> Any:
    """Fill the state of a block, and what is kept of it; return whether that could be done.

    ``begins`` says whether it is a row's first.
    """
    raise NotImplementedError


@overload(state, jit_options=OPTIONS)
def _state(
    t: Any,
    s: Any,
    n: Any,
    begins: Any,
    kept: Any,
    temperature: Any,
    hot: Any,
    guess: Any,
    a: Any,
) -> Any:
    return _state_32 if hot[0] == types.float32 else _never


def _never(
    t: Any,
    s: Any,
    n: Any,
    begins: Any,
    kept: Any,
    temperature: Any,
    hot: Any,
    guess: Any,
    a: Any,
) -> Any:
    return False


def _state_32(
    t: Any,
    s: Any,
    n: Any,
    begins: Any,
    kept: Any,
    temperature: Any,
    hot: Any,
    guess: Any,
    a: Any,
) -> Any:
    if begins and not _glance(t, s, n, temperature, guess):
        return False
    for _ in range(3):
        c = np.float32(guess[_CENTER])
        low = np.float32(guess[_TOP] - _DEEP * temperature)
        shift = np.float32(ROUND_32 - guess[_EXPONENT])
        t_sum, drift, spread, phi, far, rise = _pass(t, s, n, kept, low, shift, hot, c)
        if far >= _FAR:  # or NaN
            return False
        if rise - ROUND_BITS_32 > _RISE:
            higher = guess[_EXPONENT] + (rise - ROUND_BITS_32)
            if not _origin(higher, temperature, guess):
                return False
        elif not phi >= _LEAST:
            return False
        elif _central(t_sum, drift, spread, phi):
            _fill(t_sum, drift, phi, temperature, guess, a)
            return True
        else:
            guess[_CENTER] = np.float32(guess[_CENTER] + temperature * (drift / t_sum))
    return False


@inline
def _central(t_sum: float, drift: float, spread: float, phi: float) -> bool:
    """Return whether a pivot is so near to the mean that roundings grow but little."""
    y = (phi - drift) / t_sum
    kl = phi - t_sum * log1p_gap(y)
    return (phi <= _AMPLIFIED * kl * (1.0 + y)) & (abs(drift) <= 0.7 * spread)


@inline
def _fill(
    t_sum: float, drift: float, phi: float, temperature: float, guess: Buffer, a: Buffer
) -> None:
    scale, c = guess[_SCALE], guess[_CENTER]
    a[T_MAX], a[T_SUM] = guess[_TOP], scale * t_sum
    a[PIVOT], a[PIVOT_LOW], a[ANCHOR], a[ANCHOR_LOW] = c, 0.0, c, 0.0
    a[DRIFT], a[PHI] = scale * drift, scale * phi
    a[Y] = scale * (phi - drift)
    # Σ w e⁻ˣ = Σ exp((s − (origin − c))/T)
    apart = guess[_TOP] - c
    a[S_MAX] = np.float32(apart)
    a[S_SUM] = (a[T_SUM] + a[Y]) * math.exp((apart - a[S_MAX]) / temperature)


# --- gradients ------------------------------------------------------------------------------------


def gradient(
    of_teacher: Any,
    kept: Any,
    n: Any,
    out: Any,
    guess: Any,
    a: Any,
    shift: Any,
    by: Any,
    temperature: Any,
    kind: Any,
) -> Any:
    """Write a gradient, times a factor, from what was kept of a block and its row's state."""
    raise NotImplementedError


@overload(gradient, jit_options=OPTIONS)
def _gradient(
    of_teacher: Any,
    kept: Any,
    n: Any,
    out: Any,
    guess: Any,
    a: Any,
    shift: Any,
    by: Any,
    temperature: Any,
    kind: Any,
) -> Any:
    return _gradient_32 if kind.dtype == types.float32 else _nothing


def _nothing(
    of_teacher: Any,
    kept: Any,
    n: Any,
    out: Any,
    guess: Any,
    a: Any,
    shift: Any,
    by: Any,
    temperature: Any,
    kind: Any,
) -> Any:
    pass


def _gradient_32(
    of_teacher: Any,
    kept: Any,
    n: Any,
    out: Any,
    guess: Any,
    a: Any,
    shift: Any,
    by: Any,
    temperature: Any,
    kind: Any,
) -> Any:
    c = guess[_CENTER]
    # p/w, with the factor
    first = by * guess[_SCALE] * math.exp((guess[_TOP] - a[T_MAX]) / temperature) / a[T_SUM]
    if of_teacher:
        # p (x − its mean)
        moved = difference(c, 0.0, a[ANCHOR], a[ANCHOR_LOW]) / temperature
        second = first * (moved - a[DRIFT] / a[T_SUM])
        which = 2 * SIZE
    else:
        # log(p/q) is x + δ, and e^(−x−δ) − 1 = e^(−δ)(e⁻ˣ − 1) + (e^(−δ) − 1)
        fall = math.expm1(-(difference(c, 0.0, a[PIVOT], a[PIVOT_LOW]) / temperature + shift))
        first, second = first * (1.0 + fall), first * fall
        which = SIZE
    one, other = np.float32(first), np.float32(second)
    for k in range(n):
        value = one * load_float32(kept, k + which) + other * load_float32(kept, k)
        store_float32(out, k, value)
